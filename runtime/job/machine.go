package job

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Stage is one node of the job's graph: a stage of ours, or a step of the user's.
type Stage struct {
	Name      string        `json:"name"`
	Needs     []string      `json:"needs,omitempty"`
	Step      bool          `json:"step,omitempty"`     // of the user's
	Priority  int           `json:"priority,omitempty"` // of those that could start, the higher does first
	Resources Resources     `json:"resources,omitzero"` // that it takes while it runs; ours compute on the job's devices
	Timeout   time.Duration `json:"timeout,omitempty"`  // 0 is none
	Retries   int           `json:"retries"`            // further attempts after the first
	Backoff   time.Duration `json:"backoff,omitempty"`  // before the second attempt; doubled before each next, up to MaxBackoff
}

// MaxBackoff bounds the time between two attempts.
const MaxBackoff = 10 * time.Minute

// delay before the attempt that follows the n-th.
func (s Stage) delay(n int) time.Duration {
	d := s.Backoff
	for range n - 1 {
		if d >= MaxBackoff {
			break
		}
		d *= 2
	}
	return min(d, MaxBackoff)
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
	StageCompress = "compress" // of jobs that ask for it
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

// EventKind says what happened.
type EventKind string

// Kinds of events.
const (
	Begin        EventKind = "begin"         // the job starts, or goes on after a restart
	StageDone    EventKind = "stage_done"    //
	StageFailed  EventKind = "stage_failed"  // Err says why; Final means that a retry can't help
	StageTimeout EventKind = "stage_timeout" //
	StageDue     EventKind = "stage_due"     // the time before a stage's next attempt is over
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
	DelayStage ActionKind = "delay_stage" // tell StageDue after Delay
	Finish     ActionKind = "finish"
	Fail       ActionKind = "fail"
)

// Action is what the machine asks for.
type Action struct {
	Kind    ActionKind
	Stage   string
	Attempt int // from 1
	Timeout time.Duration
	Delay   time.Duration
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
	room     Resources
	status   map[string]Status
	attempts map[string]int           // begun
	delays   map[string]time.Duration // of stages that wait for their next attempt
	job      Status
}

// NewMachine starts with every stage waiting. It panics on a graph with a need
// that doesn't stand before its stage: Graph orders them. Stages run beside each
// other as far as there is room for what they take; a zero of it is no bound.
func NewMachine(stages []Stage, room Resources) *Machine {
	m := &Machine{stages: stages, room: room, status: map[string]Status{}, attempts: map[string]int{}, delays: map[string]time.Duration{}, job: Waiting}
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

// RestoreFailed says before Begin that so many attempts at a stage have failed, and
// how long its next one is to wait yet.
func (m *Machine) RestoreFailed(stage string, attempts int, wait time.Duration) {
	s := m.stage(stage)
	attempts = min(attempts, s.Retries) // it was not given up yet
	m.attempts[stage] = attempts
	if wait = min(wait, s.delay(attempts)); wait > 0 {
		m.delays[stage] = wait
	}
}

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
		out := m.ready()
		for _, s := range m.stages {
			if d := m.delays[s.Name]; d > 0 {
				out = append(out, Action{Kind: DelayStage, Stage: s.Name, Attempt: m.attempts[s.Name] + 1, Delay: d})
			}
		}
		return out
	case StageDue:
		delete(m.delays, e.Stage)
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
			e.Err = TookLonger(s.Timeout)
			out = append(out, Action{Kind: StopStage, Stage: s.Name, Attempt: m.attempts[s.Name]})
		}
		if !e.Final && m.attempts[s.Name] <= s.Retries {
			m.status[s.Name] = Waiting
			if d := s.delay(m.attempts[s.Name]); d > 0 {
				m.delays[s.Name] = d
				out = append(out, Action{Kind: DelayStage, Stage: s.Name, Attempt: m.attempts[s.Name] + 1, Delay: d})
			}
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

// TookLonger is the reason of a stage that did not end in time.
func TookLonger(than time.Duration) string { return fmt.Sprintf("took longer than %s", than) }

// ready starts the waiting stages whose needs are done, as far as there is room, or
// finishes the job.
func (m *Machine) ready() []Action {
	var could []Stage
	var used Resources
	left := 0
	for _, s := range m.stages {
		switch m.status[s.Name] {
		case Done:
			continue
		case Running:
			used.CPUs += s.Resources.CPUs
			used.Memory += s.Resources.Memory
		case Waiting:
			if m.delays[s.Name] == 0 && m.met(s) {
				could = append(could, s)
			}
		}
		left++
	}
	if left == 0 {
		m.job = Done
		return []Action{{Kind: Finish}}
	}
	slices.SortStableFunc(could, func(a, b Stage) int { return cmp.Compare(b.Priority, a.Priority) })
	var out []Action
	for _, s := range could {
		// What takes more than there is runs when nothing else does.
		if over(used.CPUs, s.Resources.CPUs, m.room.CPUs) || over(used.Memory, s.Resources.Memory, m.room.Memory) {
			continue
		}
		used.CPUs += s.Resources.CPUs
		used.Memory += s.Resources.Memory
		m.status[s.Name] = Running
		m.attempts[s.Name]++
		out = append(out, Action{Kind: StartStage, Stage: s.Name, Attempt: m.attempts[s.Name], Timeout: s.Timeout})
	}
	return out
}

func over[T float64 | Bytes](used, more, room T) bool {
	return more > 0 && used > 0 && room > 0 && used+more > room
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
