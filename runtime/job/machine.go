package job

import (
	"fmt"
	"time"
)

// Stage is one node of the job's graph.
type Stage struct {
	Name    string
	Needs   []string
	Timeout time.Duration // 0 is none
	Retries int           // further attempts after the first
}

// Names of the stages.
const (
	StageProbe    = "probe"
	StageClean    = "clean"
	StageTokenize = "tokenize"
	StageSearch   = "search"
	StageTrain    = "train"
	StageEvaluate = "evaluate"
	StageBundle   = "bundle"
)

// Stages is the graph of a build: probe → clean → tokenize → search → train →
// evaluate → bundle.
func Stages() []Stage {
	return []Stage{
		{Name: StageProbe, Retries: 0},
		{Name: StageClean, Needs: []string{StageProbe}},
		{Name: StageTokenize, Needs: []string{StageClean}, Retries: 1},
		{Name: StageSearch, Needs: []string{StageTokenize}, Retries: 2},
		{Name: StageTrain, Needs: []string{StageSearch}, Retries: 2},
		{Name: StageEvaluate, Needs: []string{StageTrain}, Retries: 1},
		{Name: StageBundle, Needs: []string{StageEvaluate}, Retries: 1},
	}
}

func stageNames() []string {
	var out []string
	for _, s := range Stages() {
		out = append(out, s.Name)
	}
	return out
}

// StagesOf is Stages with the spec's overrides.
func StagesOf(s Spec) []Stage {
	stages := Stages()
	for i := range stages {
		l, ok := s.Stages[stages[i].Name]
		if !ok {
			continue
		}
		if l.Timeout > 0 {
			stages[i].Timeout = l.Timeout.D()
		}
		if l.Retries != nil {
			stages[i].Retries = *l.Retries
		}
	}
	return stages
}

// EventKind says what happened.
type EventKind string

// Kinds of events.
const (
	Begin        EventKind = "begin"         // the job starts, or goes on after a restart
	StageDone    EventKind = "stage_done"    //
	StageFailed  EventKind = "stage_failed"  // Err says why; Final means that a retry can't help
	StageTimeout EventKind = "stage_timeout" //
	Cancel       EventKind = "cancel"
)

// Event is what the machine is told.
type Event struct {
	Kind  EventKind
	Stage string
	Err   string
	Final bool
}

// ActionKind says what to do.
type ActionKind string

// Kinds of actions.
const (
	StartStage ActionKind = "start_stage"
	StopStage  ActionKind = "stop_stage"
	Finish     ActionKind = "finish"
	Fail       ActionKind = "fail"
)

// Action is what the machine asks for.
type Action struct {
	Kind    ActionKind
	Stage   string
	Attempt int // from 1
	Timeout time.Duration
	Err     string
}

// Status of a stage or of the job.
type Status string

// Statuses.
const (
	Waiting   Status = "waiting"
	Running   Status = "running"
	Done      Status = "done"
	Failed    Status = "failed"
	Cancelled Status = "cancelled"
)

// Machine is the state of a job's graph: events in, actions out. It is a plain
// value, owned by one goroutine.
type Machine struct {
	stages   []Stage
	status   map[string]Status
	attempts map[string]int
	job      Status
}

// NewMachine starts with every stage waiting. It panics on a graph with a need
// that doesn't stand before its stage: graphs are code.
func NewMachine(stages []Stage) *Machine {
	m := &Machine{stages: stages, status: map[string]Status{}, attempts: map[string]int{}, job: Waiting}
	for _, s := range stages {
		for _, n := range s.Needs {
			if _, ok := m.status[n]; !ok {
				panic(fmt.Sprintf("job: stage %s needs %s, which does not stand before it", s.Name, n))
			}
		}
		m.status[s.Name] = Waiting
	}
	return m
}

// Restore marks a stage done, as the journal says, before Begin.
func (m *Machine) Restore(stage string) { m.status[stage] = Done }

// Status of a stage.
func (m *Machine) Status(stage string) Status { return m.status[stage] }

// Job is the status of the whole.
func (m *Machine) Job() Status { return m.job }

// Step takes an event and returns what to do about it. Events about stages that
// do not run are ignored: they are late.
func (m *Machine) Step(e Event) []Action {
	switch m.job {
	case Done, Failed, Cancelled:
		return nil
	}
	switch e.Kind {
	case Begin:
		m.job = Running
		return m.ready()
	case StageDone:
		if m.status[e.Stage] != Running {
			return nil
		}
		m.status[e.Stage] = Done
		return m.ready()
	case StageFailed, StageTimeout:
		if m.status[e.Stage] != Running {
			return nil
		}
		s := m.stage(e.Stage)
		var out []Action
		if e.Kind == StageTimeout {
			e.Err = fmt.Sprintf("took longer than %s", s.Timeout)
			out = append(out, Action{Kind: StopStage, Stage: s.Name, Attempt: m.attempts[s.Name]})
		}
		if !e.Final && m.attempts[s.Name] <= s.Retries {
			m.status[s.Name] = Waiting
			return append(out, m.ready()...)
		}
		m.status[s.Name], m.job = Failed, Failed
		for _, o := range m.stages {
			if m.status[o.Name] == Running {
				out = append(out, Action{Kind: StopStage, Stage: o.Name, Attempt: m.attempts[o.Name]})
				m.status[o.Name] = Cancelled
			}
		}
		return append(out, Action{Kind: Fail, Stage: s.Name, Err: e.Err})
	case Cancel:
		var out []Action
		for _, o := range m.stages {
			if m.status[o.Name] == Running {
				out = append(out, Action{Kind: StopStage, Stage: o.Name, Attempt: m.attempts[o.Name]})
				m.status[o.Name] = Cancelled
			}
		}
		m.job = Cancelled
		return out
	}
	return nil
}

// ready starts every waiting stage whose needs are done, or finishes the job.
func (m *Machine) ready() []Action {
	var out []Action
	all := true
	for _, s := range m.stages {
		if m.status[s.Name] != Done {
			all = false
		}
		if m.status[s.Name] != Waiting || !m.met(s) {
			continue
		}
		m.status[s.Name] = Running
		m.attempts[s.Name]++
		out = append(out, Action{Kind: StartStage, Stage: s.Name, Attempt: m.attempts[s.Name], Timeout: s.Timeout})
	}
	if all {
		m.job = Done
		out = append(out, Action{Kind: Finish})
	}
	return out
}

func (m *Machine) met(s Stage) bool {
	for _, n := range s.Needs {
		if m.status[n] != Done {
			return false
		}
	}
	return true
}

func (m *Machine) stage(name string) Stage {
	for _, s := range m.stages {
		if s.Name == name {
			return s
		}
	}
	return Stage{}
}
