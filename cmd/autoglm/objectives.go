package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/open-autoglm/autoglm/actors/node"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// What tables and lines show of other objectives than the score.

// columnHeads are short names of objectives.
var columnHeads = map[string]string{job.Latency: "s/token", job.Memory: "memory", job.Size: "size", job.Energy: "J/token"}

// costHead heads the columns of costRow; empty for a job that asks for no cost.
func costHead(b *journal.Leaderboard) string {
	var s strings.Builder
	for _, c := range b.Columns() {
		fmt.Fprintf(&s, " %9s", columnHeads[c])
	}
	if s.Len() > 0 {
		fmt.Fprintf(&s, " %-6s", "mark")
	}
	return s.String()
}

// costRow is an entry's columns, and its mark.
func costRow(b *journal.Leaderboard, e journal.Entry) string {
	var s strings.Builder
	for _, c := range b.Columns() {
		fmt.Fprintf(&s, " %9s", amount(c, e))
	}
	if s.Len() > 0 {
		fmt.Fprintf(&s, " %-6s", e.Mark())
	}
	return s.String()
}

// amount is an entry's objective in words.
func amount(objective string, e journal.Entry) string {
	if e.Cost == nil {
		return "–"
	}
	return job.Amount(objective, job.Value(objective, 0, *e.Cost))
}

// costWords are a cost in the words of a board's columns, as the end of a line.
func costWords(b *journal.Leaderboard, c *train.Cost) string {
	s := ""
	for _, o := range b.Columns() {
		if c != nil {
			s += fmt.Sprintf(", %s %s", o, job.Amount(o, job.Value(o, 0, *c)))
		}
	}
	return s
}

// printObjectives tells of a plan's objectives and constraints, where there are any
// beside the score.
func printObjectives(w io.Writer, spec job.Spec, o node.Outlook) {
	c := spec.Constraints
	var bounds []string
	if c.MaxParams > 0 {
		bounds = append(bounds, fmt.Sprintf("at most %s parameters", size(c.MaxParams)))
	}
	if c.MaxMemoryMB > 0 {
		bounds = append(bounds, fmt.Sprintf("at most %d MiB to train in", c.MaxMemoryMB))
	}
	for _, b := range spec.Bounds() {
		bounds = append(bounds, fmt.Sprintf("%s at most %s", b.Objective, job.Amount(b.Objective, b.Limit)))
	}
	if len(spec.Goals()) > 1 {
		fmt.Fprintf(w, "Objectives: %s; the knee of their front is trained to the end\n", strings.Join(spec.Goals(), ", "))
	}
	if len(bounds) > 0 {
		fmt.Fprintf(w, "Constraints: %s\n", strings.Join(bounds, ", "))
	}
	if o.Cost == nil {
		return
	}
	fmt.Fprintf(w, "First trial's model would generate on cpu-%d", o.Cost.Threads)
	for _, x := range []string{job.Latency, job.Memory, job.Size, job.Energy} {
		if v := job.Value(x, 0, *o.Cost); v > 0 {
			fmt.Fprintf(w, ", %s %s", x, job.Amount(x, v))
		}
	}
	if o.Cost.EnergyBy != "" {
		fmt.Fprintf(w, " (latency by shapes that were timed here; energy by %s)", o.Cost.EnergyBy)
	}
	fmt.Fprintln(w)
}
