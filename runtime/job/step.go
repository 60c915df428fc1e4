package job

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Step is a program of the user's own that stands in the job's graph. It runs in
// the folder steps/NAME of the job's, where nodes allow such programs.
type Step struct {
	Name      string            `json:"name"`              // small letters, digits, - and _
	Run       Command           `json:"run"`               // a list of words; a text is a line for sh -c
	Files     []string          `json:"files,omitempty"`   // copied into its folder before it runs; ./FILE in front of Run is one of them
	Before    []string          `json:"before,omitempty"`  // stages of ours that wait for it
	Needs     []string          `json:"needs,omitempty"`   // stages and steps that it waits for
	Image     string            `json:"image,omitempty"`   // of a container; without one it is a plain process
	Network   bool              `json:"network,omitempty"` // gives a container the machine's network
	Env       map[string]string `json:"env,omitempty"`     //
	Resources Resources         `json:"resources,omitzero"`
	Priority  int               `json:"priority,omitempty"` // of steps that could start, the higher does first; ±MaxPriority
	Timeout   Duration          `json:"timeout,omitempty"`  // of an attempt; 0 is none
	Retries   int               `json:"retries,omitempty"`  // 0 … 10
	Backoff   Duration          `json:"backoff,omitempty"`  // before the second attempt; doubled before each next
}

// Resources bound what a step takes; 0 is no bound. Steps run beside each other as
// far as what they take is there.
type Resources struct {
	CPUs   float64 `json:"cpus,omitempty"`
	Memory Bytes   `json:"memory,omitempty"` // of all its processes together
}

// Command is a program and its arguments. As text it is a line for the shell.
type Command []string

// Line is the command of a line of text.
func Line(text string) Command { return Command{"sh", "-c", text} }

// UnmarshalJSON reads a list, or a text.
func (c *Command) UnmarshalJSON(b []byte) error {
	var text string
	if json.Unmarshal(b, &text) == nil {
		*c = Line(text)
		return nil
	}
	var words []string
	err := json.Unmarshal(b, &words)
	*c = words
	return err
}

// Bytes reads as "64MiB", "2GB" or a number.
type Bytes int64

var units = map[string]float64{
	"": 1, "B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
}

// UnmarshalText reads a size.
func (s *Bytes) UnmarshalText(b []byte) error {
	text := string(b)
	num := strings.TrimRight(text, "kKMGTiB")
	n, err := strconv.ParseFloat(strings.TrimSpace(num), 64)
	unit, ok := units[text[len(num):]]
	if err != nil || !ok || !(n >= 0 && n*unit < 1<<62) {
		return fmt.Errorf("%q is no size; write 500MB, 50GB or 1TiB", text)
	}
	*s = Bytes(n * unit)
	return nil
}

// UnmarshalJSON reads a number or a text.
func (s *Bytes) UnmarshalJSON(b []byte) error {
	return s.UnmarshalText([]byte(strings.Trim(string(b), `"`)))
}

func (s Bytes) String() string {
	for _, u := range []string{"TiB", "GiB", "MiB", "KiB"} {
		if n := Bytes(units[u]); s >= n && s%n == 0 {
			return fmt.Sprintf("%d%s", s/n, u)
		}
	}
	return fmt.Sprintf("%dB", int64(s))
}

// Bounds of steps.
const (
	maxSteps      = 64
	minStepMemory = 4 << 20
)

var (
	stepName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,31}$`)
	envName  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

// StepsDir is where steps work, within the job's folder.
const StepsDir = "steps"

// Step is the step of a name.
func (s *Spec) Step(name string) (Step, bool) {
	i := slices.IndexFunc(s.Steps, func(t Step) bool { return t.Name == name })
	if i < 0 {
		return Step{}, false
	}
	return s.Steps[i], true
}

// StepFile tells which step makes a file of the data, if one does: such files are
// named steps/NAME/FILE, from the job's folder.
func (s *Spec) StepFile(path string) (step string, ok bool) {
	parts := strings.Split(path, "/")
	if len(parts) < 3 || parts[0] != StepsDir || !filepath.IsLocal(path) {
		return "", false
	}
	_, ok = s.Step(parts[1])
	return parts[1], ok
}

// bring has a program named ./FILE come along, and lets files stand relative to a
// folder.
func (t *Step) bring(dir string) {
	first := t.Run[0]
	if len(t.Run) == 3 && slices.Equal(t.Run, Line(t.Run[2])) {
		first, _, _ = strings.Cut(strings.TrimSpace(t.Run[2]), " ")
	}
	if name, ok := strings.CutPrefix(first, "./"); ok && name == filepath.Base(name) && !slices.ContainsFunc(t.Files, func(f string) bool { return filepath.Base(f) == name }) {
		t.Files = append(t.Files, name)
	}
	for i, f := range t.Files {
		if !filepath.IsAbs(f) {
			t.Files[i] = filepath.Join(dir, f)
		}
	}
}

func (s *Spec) validateSteps() error {
	if len(s.Steps) > maxSteps {
		return fieldError("steps", "are %d; at most %d stand in a job", len(s.Steps), maxSteps)
	}
	known := s.stageNames()
	for i, t := range s.Steps {
		bad := func(field, format string, a ...any) error {
			return fieldError(fmt.Sprintf("steps[%d].%s", i, field), format, a...)
		}
		switch {
		case !stepName.MatchString(t.Name):
			return bad("name", "%q is no name; write up to 32 small letters, digits, - and _", t.Name)
		case contains(s.stageNames(), t.Name):
			return bad("name", "%q is a stage of ours; choose another", t.Name)
		case contains(known, t.Name):
			return bad("name", "%q stands twice", t.Name)
		case len(t.Run) == 0 || t.Run[0] == "":
			return bad("run", "is empty; write run: ./script, or a list of words")
		case strings.HasPrefix(t.Image, "-") || strings.ContainsAny(t.Image, " \t\n"):
			return bad("image", "%q is no image", t.Image)
		case t.Network && t.Image == "":
			return bad("network", "is about containers; a plain process has the machine's network")
		case !(t.Resources.CPUs >= 0 && t.Resources.CPUs <= 4096):
			return bad("resources.cpus", "%v is outside 0 … 4096", t.Resources.CPUs)
		case t.Resources.Memory != 0 && t.Resources.Memory < minStepMemory:
			return bad("resources.memory", "%s is too little for any program; give at least %s", t.Resources.Memory, Bytes(minStepMemory))
		case t.Priority < -MaxPriority || t.Priority > MaxPriority:
			return bad("priority", "%d is outside -%d … %d", t.Priority, MaxPriority, MaxPriority)
		case t.Retries < 0 || t.Retries > 10:
			return bad("retries", "%d is outside 0 … 10", t.Retries)
		case t.Backoff.D() > MaxBackoff:
			return bad("backoff", "%s is more than %s", t.Backoff, MaxBackoff)
		}
		for k := range t.Env {
			if !envName.MatchString(k) || strings.HasPrefix(k, "AUTOGLM_") {
				return bad("env", "%q is no name of a variable; those that begin with AUTOGLM_ are ours", k)
			}
		}
		names := []string{"log", "log.1"}
		for j, f := range t.Files {
			base := filepath.Base(f)
			if contains(names, base) || base == "." || base == ".." || base == "/" {
				return bad(fmt.Sprintf("files[%d]", j), "%q is a name that is taken in the step's folder", base)
			}
			names = append(names, base)
		}
		for j, b := range t.Before {
			if !contains(s.stageNames(), b) {
				return bad(fmt.Sprintf("before[%d]", j), "%q is no stage of ours; there are %s%s; a step that is to wait says needs itself", b, strings.Join(s.stageNames(), ", "), didYouMean(b, s.stageNames()))
			}
		}
		known = append(known, t.Name)
	}
	for i, t := range s.Steps {
		for j, n := range t.Needs {
			if !contains(known, n) {
				return fieldError(fmt.Sprintf("steps[%d].needs[%d]", i, j), "%q is no stage and no step; there are %s%s", n, strings.Join(known, ", "), didYouMean(n, known))
			}
		}
	}
	stages, err := s.graph()
	if err != nil {
		return err
	}
	before := ancestors(stages, StageProbe)
	for _, list := range []struct {
		path  string
		files []string
	}{{"data.files", s.Data.Files}, {"data.valid", s.Data.Valid}} {
		for i, f := range list.files {
			if step, ok := s.StepFile(f); ok && !before[step] {
				return fieldError(fmt.Sprintf("%s[%d]", list.path, i), "is made by the step %s, for which no stage waits; give it before: [%s]", step, StageProbe)
			}
		}
	}
	return nil
}

// ancestors are all that stands before a stage.
func ancestors(stages []Stage, of string) map[string]bool {
	out := map[string]bool{}
	for _, s := range slices.Backward(stages) { // needs stand before their stage
		if s.Name == of || out[s.Name] {
			for _, n := range s.Needs {
				out[n] = true
			}
		}
	}
	return out
}

// StagesOf is the graph of a job that is valid: Stages with its overrides, compress where
// it asks for that, and its steps, each after all that it needs.
func StagesOf(s Spec) []Stage {
	stages, err := s.graph()
	if err != nil {
		panic("job: " + err.Error())
	}
	return stages
}

func (s *Spec) graph() ([]Stage, error) {
	all := s.stages()
	for i := range all {
		st := &all[i]
		l := s.Stages[st.Name]
		if l.Timeout > 0 {
			st.Timeout = l.Timeout.D()
		}
		if l.Retries != nil {
			st.Retries = *l.Retries
		}
		st.Backoff = l.Backoff.D()
		for _, t := range s.Steps {
			if contains(t.Before, st.Name) && !contains(st.Needs, t.Name) {
				st.Needs = append(st.Needs, t.Name)
			}
		}
	}
	for _, t := range s.Steps {
		all = append(all, Stage{
			Name: t.Name, Needs: t.Needs, Step: true, Priority: t.Priority, Resources: t.Resources,
			Timeout: t.Timeout.D(), Retries: t.Retries, Backoff: t.Backoff.D(),
		})
	}
	var out []Stage
	placed := map[string]bool{}
	for len(all) > 0 {
		i := slices.IndexFunc(all, func(st Stage) bool {
			return !slices.ContainsFunc(st.Needs, func(n string) bool { return !placed[n] })
		})
		if i < 0 {
			return nil, s.circle(all)
		}
		out, placed[all[i].Name] = append(out, all[i]), true
		all = slices.Delete(all, i, i+1)
	}
	return out, nil
}

// circle is the error of stages each of which waits for another of them.
func (s *Spec) circle(left []Stage) error {
	needs := map[string]string{} // one that is left, of each
	for _, st := range left {
		for _, n := range st.Needs {
			if slices.ContainsFunc(left, func(o Stage) bool { return o.Name == n }) {
				needs[st.Name] = n
			}
		}
	}
	at := left[0].Name
	for range left {
		at = needs[at] // into the circle
	}
	round := []string{at}
	for n := needs[at]; n != at; n = needs[n] {
		round = append(round, n)
	}
	i := slices.IndexFunc(s.Steps, func(t Step) bool { return contains(round, t.Name) })
	return fieldError(fmt.Sprintf("steps[%d]", i), "waits for itself: %s → %s", strings.Join(round, " → "), at)
}
