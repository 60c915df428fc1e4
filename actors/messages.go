package actors

import (
	"context"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/open-autoglm/autoglm/gpu/ring"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// Interrupt asks the Supervisor to stop and keep the job's state.
type Interrupt struct{}

// AgentReady says that a SearchAgent (re)started and needs the history.
type AgentReady struct{}

// History is all that a search has decided and learnt.
type History struct {
	Plan      search.Plan // as it was made: the orders extend it
	Decisions []search.Decision
	Orders    []search.Order
	Outcomes  map[int]search.Outcome // by decision
	Closed    bool
}

// Decide is a decision to carry out.
type Decide struct{ Decision search.Decision }

// Outcome is the committed end of a decision.
type Outcome struct {
	Seq     int
	Outcome search.Outcome
}

// CloseSearch lets no further decision out.
type CloseSearch struct{}

// Steer is an order of a user's. The Supervisor answers who asked with Steered.
type Steer struct {
	Order search.Order
	From  *actor.PID // who asked; the sender, where it is nil
}

// Ordered is the search's answer to a Steer: the order with its place among the
// decisions, to be committed, or why it is refused.
type Ordered struct {
	From  *actor.PID
	Order search.Order
	Err   error
}

// Steered says that an order was committed, or why not.
type Steered struct {
	Order search.Order
	Err   error
}

// StopTrial ends a trial at its next step.
type StopTrial struct{ Why string }

// SearchEnded says that the search is over.
type SearchEnded struct{ Err error }

// Assign gives one rank of a task to a worker.
type Assign struct {
	Epoch uint64
	Rank  int
	World int
	Ring  *ring.Group `msgpack:"-"` // nil when World is 1; a worker of another node makes its own
	Task  train.Task
	Owner *actor.PID
	// Resumes is the epoch whose ring lost a rank: a worker that still runs it goes
	// on under this assignment, any other starts and gets the state from a peer.
	// 0 starts the task.
	Resumes uint64
	// Next brings the assignment under which the run goes on after its ring lost a
	// rank. The worker sets it.
	Next <-chan *Assign `msgpack:"-"`
	// Replaced is closed when Next brings one: a task of one rank has no ring whose end
	// would tell. The worker sets it.
	Replaced <-chan struct{} `msgpack:"-"`
	// Broken tells the Trial that the ring of an epoch has ended under this rank,
	// where nobody aborted it. The worker sets it; any goroutine may call it.
	Broken func(epoch uint64, why error) `msgpack:"-"`
}

// RingBroken says that a rank's ring ended without any worker being lost: a
// rank was taken for lost, or one is that does not know yet.
type RingBroken struct {
	Epoch uint64
	Rank  int
	Err   error
}

// RingCard is a rank's card for a ring whose ranks are on several nodes, on its way to
// the Trial, where they meet.
type RingCard struct {
	Epoch uint64
	Rank  int
	Card  []byte
	From  *actor.PID // the worker
}

// RingCards are the cards of ranks At, At+1, …, or why there are none.
type RingCards struct {
	Epoch uint64
	At    int
	Cards [][]byte
	Err   error
}

// Enlist brings a Supervisor workers of another node. It comes again and again: the
// Supervisor may not be there yet, or have started anew and know of none.
type Enlist struct {
	Workers []*actor.PID
	Asked   bool       // the job's constraint asks for them: no training tries whether they pay
	From    *actor.PID // hears Enlisted
}

// Enlisted is the Supervisor's answer. Workers that it lost sight of are not taken
// back: what they ran runs elsewhere by now.
type Enlisted struct{ Lost bool }

// Grow offers a Trial more workers while it runs, to be kept if it is faster with them.
type Grow struct{ Workers []*actor.PID }

// Returned gives workers back that a task did not get faster with.
type Returned struct {
	Seq           int
	Workers       []*actor.PID
	With, Without float64 // tokens a second
}

// Widen lets a search have so many trials side by side.
type Widen struct{ Slots int }

// Sick takes a worker's device out for good.
type Sick struct{ Why string }

// Release tells a worker to give up what runs under an epoch.
type Release struct{ Epoch uint64 }

// Progress is what rank 0 of a trial measured, on credit: the Supervisor answers some
// with a Credit.
type Progress struct {
	Epoch   uint64
	Seq     int // of the decision; −1 for the final training
	Trial   string
	Metrics train.StepMetrics
	N       uint64     `json:"-"` // counts the reports of an epoch
	From    *actor.PID `json:"-"` // the worker
}

// Said is a node's word on its part in a job whose Supervisor is elsewhere, on credit.
type Said struct {
	N    uint64 // counts them
	Text string
	From *actor.PID
}

// RankEnded is how one rank's part of a task ended.
type RankEnded struct {
	Epoch  uint64
	Rank   int
	Report train.Report
	Err    error
	Lost   bool // the worker is gone, or started anew: not the task's fault
}

// TrialEnded is how a task ended: all of its ranks are through.
type TrialEnded struct {
	Seq    int
	Report train.Report
	Err    error
	Gone   bool // its last worker is gone: no fault of the task
}

// Across makes a group whose ranks are on several nodes; a nil meet is the group's own
// Meeting. See ring.GroupConfig.
type Across func(t *train.Task, world int, epoch uint64, meet ring.Rendezvous) *ring.Group

// Work is what a Supervisor has done for it. Its methods run on goroutines of
// the Supervisor: those of stages that do not need each other may overlap, attempts
// at one stage never. Errors that a retry can't mend are wrapped in Final.
type Work interface {
	// Stage runs probe, clean, tokenize, bundle, or a step of the user's, and brings here
	// what train starts from.
	Stage(ctx context.Context, name string, st journal.State) error
	// Plan times the machine and divides the budget, active seconds of which are gone.
	Plan(ctx context.Context, active float64) (search.Plan, error)
	// Search makes the empty search of a plan: the same each time.
	Search(p search.Plan, slots int) (*search.Search, error)
	// Size decides whether the final training is of the winner as it is or of a larger
	// model; nil is the former, where there is nothing to decide by.
	Size(ctx context.Context, st journal.State, winner string) (*search.Sizing, error)
	// Task is the training that a decision asks for, or the final training when
	// d is nil.
	Task(st journal.State, d *search.Decision) (train.Task, error)
	// Evaluate scores the finished model on the held-out part, and says where it did
	// if there was a choice.
	Evaluate(ctx context.Context, st journal.State) (train.Score, *journal.Placed, error)
}

// Final marks an error that a retry can't mend.
type Final struct{ Err error }

func (f Final) Error() string { return f.Err.Error() }

// Unwrap gives the cause.
func (f Final) Unwrap() error { return f.Err }

// Events are called from the Supervisor's mailbox; any may be nil, none may
// block.
type Events struct {
	Journal  func(e journal.Event, st *journal.State) // after each commit
	Progress func(p Progress)
	End      func(err error, interrupted bool) // once
	Notice   func(text string)                 // what a user wants to know, and no journal keeps
}

// Hooks are for tests: Receive sees every message before its actor does, and may
// panic in its place.
type Hooks struct {
	Receive func(who string, message any)
}

func (h Hooks) receive(who string, message any) {
	if h.Receive != nil {
		h.Receive(who, message)
	}
}
