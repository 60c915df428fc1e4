package data

import (
	"fmt"
	"sort"
	"strings"
)

// force applies the task and the columns that the user gave.
func (p *FileProbe) force(cfg *Config) error {
	if cfg.Task == "" || cfg.Task == TaskAuto {
		if len(cfg.Columns) == 0 {
			return nil
		}
		if t := taskOfRoles(cfg.Columns); t != "" {
			p.Guess = Guess{t, 1, []string{"columns given by the user"}, nil}
		}
	} else if p.Guess.Task != cfg.Task {
		p.Guess = Guess{cfg.Task, 1, []string{"task given by the user"}, nil}
	} else {
		p.Guess.Confidence = 1
		p.Guess.Reasons = append([]string{"task given by the user"}, p.Guess.Reasons...)
	}
	have := map[string]bool{}
	for _, c := range p.Columns {
		have[c] = true
	}
	roles := map[string]string{}
	for k, v := range p.Guess.Roles {
		roles[k] = v
	}
	names := make([]string, 0, len(cfg.Columns))
	for r := range cfg.Columns {
		names = append(names, r)
	}
	sort.Strings(names)
	for _, r := range names {
		c := cfg.Columns[r]
		if !have[c] {
			return &InputError{File: p.File, Field: c, Msg: "no such column for role " + r, Hint: "the columns are " + strings.Join(p.Columns, ", ")}
		}
		roles[r] = c
	}
	need := taskRoles[p.Guess.Task]
	for _, r := range need {
		if roles[r.String()] != "" {
			continue
		}
		for _, a := range aliasNames(r) {
			for _, c := range p.Columns {
				if plainName(c) == a && roles[r.String()] == "" {
					roles[r.String()] = c
				}
			}
		}
		if roles[r.String()] == "" {
			return &InputError{File: p.File, Field: r.String(), Msg: fmt.Sprintf("task %s needs a column for %s, and none has a name for it", p.Guess.Task, r), Hint: "map it; the columns are " + strings.Join(p.Columns, ", ")}
		}
	}
	p.Guess.Roles = roles
	return nil
}

// taskRoles are the roles without which a task has no examples.
var taskRoles = map[Task][]role{
	TaskText: {roleText}, TaskQA: {roleQuestion, roleAnswer}, TaskSummary: {roleDocument, roleSummary},
	TaskDialogue: {roleMessages}, TaskClassification: {roleText, roleLabel},
}

func taskOfRoles(cols map[string]string) Task {
	for _, t := range []Task{TaskDialogue, TaskQA, TaskSummary, TaskClassification, TaskText} {
		all := true
		for _, r := range taskRoles[t] {
			all = all && cols[r.String()] != ""
		}
		if all {
			return t
		}
	}
	return ""
}
