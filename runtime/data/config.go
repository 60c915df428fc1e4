package data

import (
	"fmt"
	"math"
	"sort"
	"strings"
)

// Task is what the examples teach.
type Task string

// The tasks. TaskAuto asks the probe.
const (
	TaskAuto           Task = "auto"
	TaskText           Task = "text-generation"
	TaskQA             Task = "question-answering"
	TaskSummary        Task = "summarization"
	TaskDialogue       Task = "dialogue"
	TaskClassification Task = "classification"
)

// Tasks lists the tasks that can be asked for.
func Tasks() []Task {
	return []Task{TaskAuto, TaskText, TaskQA, TaskSummary, TaskDialogue, TaskClassification}
}

// PluginConfig names an executable that speaks the line protocol of PLUGINS.md.
// Whether it is a source or a cleaning step it says itself.
type PluginConfig struct {
	Command []string          `json:"command"`          // program and arguments
	Config  map[string]string `json:"config,omitempty"` // handed over in the first line
}

// Config says what to read and how. The zero value of a field takes the default
// of DefaultConfig where it says so.
type Config struct {
	Files   []string          `json:"files,omitempty"`   // paths and globs; directories are refused
	URLs    []string          `json:"urls,omitempty"`    // http and https
	Plugins []PluginConfig    `json:"plugins,omitempty"` // sources, and cleaning steps in order
	Sources []DataPlugin      `json:"-"`                 // sources in Go, already connected
	Task    Task              `json:"task,omitempty"`    // "" and auto ask the probe
	Columns map[string]string `json:"columns,omitempty"` // role to column: text, question, context, answer, document, summary, label, messages
	Valid   []string          `json:"valid,omitempty"`   // files that replace the held-out part

	MinLength int `json:"min_length"` // characters of a text-generation row below which it is dropped; a Chinese one counts as 3
	MaxLength int `json:"max_length"` // characters above which a text is split and any other row dropped; 0: no limit

	Exact         bool    `json:"exact"`          // drop exact duplicates
	Near          bool    `json:"near"`           // drop near duplicates of texts and documents
	NearThreshold float64 `json:"near_threshold"` // Jaccard similarity of word triples from which rows are near

	ValidFraction float64 `json:"valid_fraction"` // share of the bytes for the search
	TestFraction  float64 `json:"test_fraction"`  // share of the bytes held out for the final score
	Seed          int64   `json:"seed"`           // of the split

	Memory int64 `json:"memory"` // bytes that the indexes of duplicates may take; more goes to disk

	create createFunc // test hook: opens the files that are written
}

// DefaultConfig gives what Prepare and Probe expect to be filled.
func DefaultConfig() Config {
	return Config{
		Task: TaskAuto, MinLength: 10, Exact: true, Near: true, NearThreshold: 0.65,
		ValidFraction: 0.05, TestFraction: 0.05, Seed: 1, Memory: 96 << 20,
	}
}

// Validate checks the fields; errors are of type InputError.
func (c *Config) Validate() error {
	bad := func(field, msg, hint string) error { return &InputError{Field: field, Msg: msg, Hint: hint} }
	if len(c.Files)+len(c.URLs)+len(c.Plugins)+len(c.Sources) == 0 {
		return bad("data", "no data is named", "give at least one file")
	}
	ok := c.Task == ""
	for _, t := range Tasks() {
		ok = ok || c.Task == t
	}
	if !ok {
		return bad("task_type", fmt.Sprintf("%q is not a task", c.Task), "use one of "+joinTasks())
	}
	roles := make([]string, 0, len(c.Columns))
	for r := range c.Columns {
		roles = append(roles, r)
	}
	sort.Strings(roles)
	for _, r := range roles {
		if _, ok := roleByName[r]; !ok {
			return bad("columns", fmt.Sprintf("%q is not a role", r), "use text, question, context, answer, document, summary, label or messages")
		}
	}
	for _, f := range []struct {
		name string
		v    float64
	}{{"valid_fraction", c.ValidFraction}, {"test_fraction", c.TestFraction}} {
		if math.IsNaN(f.v) || f.v <= 0 || f.v > 0.4 {
			return bad(f.name, fmt.Sprintf("is %v", f.v), "give a share above 0 and up to 0.4")
		}
	}
	switch {
	case math.IsNaN(c.NearThreshold) || c.NearThreshold < 0.3 || c.NearThreshold > 1:
		return bad("near_threshold", fmt.Sprintf("is %v", c.NearThreshold), "give a similarity from 0.3 to 1")
	case c.MinLength < 0 || c.MaxLength < 0:
		return bad("max_length", "is negative", "give a count of characters, or 0")
	case c.MaxLength > 0 && c.MaxLength < 64:
		return bad("max_length", fmt.Sprintf("is %d", c.MaxLength), "give at least 64 characters")
	case c.Memory < 1<<20:
		return bad("memory", fmt.Sprintf("is %d bytes", c.Memory), "give at least 1 MiB")
	}
	return nil
}

func joinTasks() string {
	var s []string
	for _, t := range Tasks() {
		s = append(s, string(t))
	}
	return strings.Join(s, ", ")
}
