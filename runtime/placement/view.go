package placement

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/open-autoglm/autoglm/gpu/device"
)

// View is a cluster at one moment.
type View struct {
	Nodes   []Node
	Waiting []Item
	Running []Running
	Usage   map[string]float64 // by owner: devices in use, mean over the last Config.Window
}

// Node is a machine of the cluster.
type Node struct {
	ID        string
	Name      string // for people; the ID when empty
	Machine   device.Machine
	FreeBytes int64   // of the host's memory, as measured; 0 is not known
	Load      float64 // runnable processes per processor
	Labels    map[string]string
	Draining  bool              // takes nothing new
	Held      map[string]string // by device: who holds it that is no item of the view
}

func (n *Node) name() string { return cmp.Or(n.Name, n.ID) }

// Item is a piece of work that runs as a whole.
type Item struct {
	ID          string
	Owner       string
	Priority    int
	Need        device.Request
	Either      device.LoadPolicy // of a need of kind auto that may compute on quiet GPUs; zero: on processors alone
	Spread      bool              // the devices may be of several nodes
	Memory      int64             // bytes as measured: of each GPU, or of the host; 0 is not known
	Labels      map[string]string // that its node must have
	Near        []string          // nodes that hold its data or checkpoints
	Submitted   time.Time
	Preemptible bool
	NotBefore   time.Time            // it failed, and is tried again then
	Refused     []Refusal            // nodes that did not take it
	Preempted   map[string]time.Time // when it was last stopped, by the owner of the work it was stopped for
	Keeps       []Share              // of a Keep: devices that wait for it
}

// Refusal is a node's, good for a while.
type Refusal struct {
	Node  string
	Until time.Time
	Why   string
}

// Share is a node's part of what an item runs on.
type Share struct {
	Node    string
	Devices []string // IDs, in the order of the ring
}

// Running is an item that was started.
type Running struct {
	Item
	On       []Share
	Since    time.Time
	Stopping bool // it was pre-empted and has not ended yet
}

// Verb of an action.
type Verb string

// The verbs.
const (
	Start   Verb = "start"
	Preempt Verb = "preempt"
	Keep    Verb = "keep"
	Wait    Verb = "wait"
)

// Action is one thing that is to be done, or said.
type Action struct {
	Do   Verb
	Item string
	On   []Share // of a start; of a keep, none where it keeps nothing any longer
	For  string  // of a pre-emption: the item that needs the devices
	Why  string
}

// Config of decisions.
type Config struct {
	Window  time.Duration      // over which an owner's use of devices counts; see Scheduler
	Protect time.Duration      // see the package's text on pre-emption
	Shares  map[string]float64 // by owner, relative to the others; 1 where there is none
}

// DefaultConfig looks back an hour and protects for ten minutes.
func DefaultConfig() Config { return Config{Window: time.Hour, Protect: 10 * time.Minute} }

// Validate names the field that is wrong.
func (c Config) Validate() error {
	if c.Window <= 0 {
		return fmt.Errorf("window %v is not above 0", c.Window)
	}
	if c.Protect < 0 {
		return fmt.Errorf("protect %v is negative", c.Protect)
	}
	for owner, s := range c.Shares {
		if !(s > 0) || math.IsInf(s, 0) {
			return fmt.Errorf("the share %v of %s is not above 0", s, owner)
		}
	}
	return nil
}

func (c Config) share(owner string) float64 {
	if s, ok := c.Shares[owner]; ok {
		return s
	}
	return 1
}

// Decide says what is to be done now, and why the rest waits.
func Decide(v View, now time.Time, c Config) []Action {
	s := newScheduler(v, now, c)
	out := s.Decide(now)
	for _, e := range s.queue() {
		out = append(out, Action{Do: Wait, Item: e.ID, Why: s.why(e)})
	}
	return out
}

// before is the order within an owner's queue.
func before(a, b *Item) int {
	return cmp.Or(a.Submitted.Compare(b.Submitted), cmp.Compare(len(a.ID), len(b.ID)), strings.Compare(a.ID, b.ID))
}

// queue is all that waits, the first first.
func (s *Scheduler) queue() []*entry {
	out := make([]*entry, 0, len(s.items)-len(s.running))
	for _, e := range s.items {
		if e.on == nil {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b *entry) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), before(&a.Item, &b.Item))
	})
	return out
}
