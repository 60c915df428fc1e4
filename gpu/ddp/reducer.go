package ddp

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/ring"
)

// Ring is what a Reducer needs of a ring.Comm.
type Ring interface {
	Rank() int
	World() int
	Reduce(bucket int, b ring.Buffer)
	Wait() error
	AllReduce(b ring.Buffer) error
	ReduceScatter(b ring.Buffer) error
	AllGather(b ring.Buffer) error
	Broadcast(b ring.Buffer, root int) error
	Commit(step uint64) error
}

// Level is how a bucket travels.
type Level uint8

// Levels.
const (
	None Level = iota
	BF16
	Int8
	PowerSGD
	levels
)

var levelNames = [levels]string{"none", "bf16", "int8", "powersgd"}

func (l Level) String() string { return levelNames[l] }

// Auto is the mode that chooses a level for each bucket.
const Auto = "auto"

// Modes lists what Config.Mode may say.
func Modes() []string { return append(slices.Clone(levelNames[:]), Auto) }

// Config says how to sum.
type Config struct {
	Mode   string      // one of Modes; "" is none
	Layout []glm.Param // of the gradient's arena, for powersgd
	Size   int         // of the arena, elements; buckets come from its end to its beginning
	// Beside runs the sums on a goroutine while the caller computes the next
	// bucket; otherwise Wait does them.
	Beside bool
	// Shared says that the ranks share memory, which moves faster than any encoding:
	// Auto stays at none.
	Shared bool
	// Scatter leaves in each rank's Share of a bucket the sum, and the rest
	// undefined: half the bytes where the optimiser's state is divided.
	Scatter bool
	Decide  func(Decision) // on rank 0; may be nil
}

// Decision is one bucket's change of level, with its grounds.
type Decision struct {
	Step    uint64  `json:"step"`
	Bucket  int     `json:"bucket"`
	From    string  `json:"from"`
	To      string  `json:"to"`
	Reason  string  `json:"reason"`
	Exposed float64 `json:"exposed_s"` // running averages, seconds …
	Code    float64 `json:"code_s"`    // … to encode and decode at the higher level of the two
	Ratio   float64 `json:"ratio"`     // bytes of the new level over the old one's
	Error   float64 `json:"error"`     // relative, of the encoding
}

// Reducer is an engine.GradientSync that compresses. One goroutine owns it.
type Reducer struct {
	ring    Ring
	cfg     Config
	buckets []*bucket
	next    int // bucket that comes next in this step
	end     int // where it ends in the arena
	commits int
	// Of Auto: when the last step was committed, and what a step takes, seconds.
	committed time.Time
	stepTime  float64
	wire      int64 // bytes that this step's buckets stood for on the wire

	todo   []func() error // of Wait
	queue  chan func() error
	done   chan struct{}
	flight sync.WaitGroup
	mu     struct {
		sync.Mutex
		err error
	}
}

// New wraps a ring. The error names a mode that is unknown.
func New(r Ring, cfg Config) (*Reducer, error) {
	if cfg.Mode == "" {
		cfg.Mode = None.String()
	}
	if !slices.Contains(Modes(), cfg.Mode) {
		return nil, fmt.Errorf("compression %q; there are %s", cfg.Mode, strings.Join(Modes(), ", "))
	}
	d := &Reducer{ring: r, cfg: cfg, end: cfg.Size}
	if cfg.Beside {
		d.queue, d.done = make(chan func() error, 1024), make(chan struct{})
		go d.loop()
	}
	return d, nil
}

func (d *Reducer) loop() {
	defer close(d.done)
	for f := range d.queue {
		if d.failed() == nil {
			if err := f(); err != nil {
				d.mu.Lock()
				d.mu.err = err
				d.mu.Unlock()
			}
		}
		d.flight.Done()
	}
}

func (d *Reducer) failed() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.err
}

func (d *Reducer) put(f func() error) {
	if d.queue == nil {
		d.todo = append(d.todo, f)
		return
	}
	d.flight.Add(1)
	d.queue <- f
}

// Reduce implements engine.GradientSync. Buckets of numbers below 0 are control
// words, and never compressed.
func (d *Reducer) Reduce(number int, b ring.Buffer) {
	if number < 0 || b.DType != ring.F32 {
		d.put(func() error {
			d.ring.Reduce(number, b)
			return d.ring.Wait()
		})
		return
	}
	if b.Device != 0 {
		d.put(func() error {
			return fmt.Errorf("ddp: bucket %d is in a GPU's memory, and compression works in the host's: copy it there", number)
		})
		return
	}
	d.end -= len(b.Data)
	if d.next == len(d.buckets) {
		d.buckets = append(d.buckets, newBucket(d, d.next, d.end, len(b.Data)))
	}
	k := d.buckets[d.next]
	if k.from != d.end || k.n != len(b.Data) {
		d.put(func() error {
			return fmt.Errorf("ddp: bucket %d has elements %d to %d, had %d to %d before", number, d.end, d.end+len(b.Data), k.from, k.from+k.n)
		})
		return
	}
	d.next++
	k.handed = time.Now()
	d.wire += int64(k.bytes(k.level))
	d.put(func() error { return k.sum(d.ring, b.Data) })
}

// Wait implements engine.GradientSync.
func (d *Reducer) Wait() error {
	now := time.Now()
	for _, k := range d.buckets[:d.next] {
		k.hidden = now.Sub(k.handed)
		if d.queue == nil {
			k.hidden = 0
		}
	}
	d.next, d.end = 0, d.cfg.Size
	var err error
	if d.queue != nil {
		d.flight.Wait()
		err = d.failed()
	}
	for _, f := range d.todo {
		if err = f(); err != nil {
			break
		}
	}
	clear(d.todo)
	d.todo = d.todo[:0]
	return err
}

// Commit ends a step: see ring.Comm.Commit. In Auto mode the levels of the next
// steps go with it.
func (d *Reducer) Commit(step uint64) error {
	if err := d.Wait(); err != nil {
		return err
	}
	if err := d.ring.Commit(step); err != nil {
		return err
	}
	if d.cfg.Mode != Auto || len(d.buckets) == 0 || d.cfg.Shared || d.ring.World() == 1 {
		return nil
	}
	for _, k := range d.buckets {
		k.measured.take(max(0, k.comm-k.hidden).Seconds(), k.code.Seconds(), k.err, k.norm)
	}
	d.commits++
	now := time.Now()
	if !d.committed.IsZero() {
		took := now.Sub(d.committed).Seconds()
		if d.stepTime == 0 {
			d.stepTime = took
		}
		d.stepTime = keep*d.stepTime + (1-keep)*took
	}
	d.committed = now
	if !agrees(d.commits) {
		return nil
	}
	// The step is committed whatever becomes of this: a ring that ends here ends
	// the next step, whose first sum says so.
	if err := d.agree(step); err != nil {
		d.put(func() error { return err })
	}
	return nil
}

// agree gathers what the ranks have measured and brings rank 0's levels to all.
func (d *Reducer) agree(step uint64) error {
	// A rank's part is its Share of the gathered buffer.
	part := (words*len(d.buckets) + 31) &^ 31
	all := make([]float32, part*d.ring.World())
	mine := all[part*d.ring.Rank():]
	for i, k := range d.buckets {
		a := &k.measured
		mine[words*i], mine[words*i+1], mine[words*i+2] = float32(a.exposed), float32(a.code), float32(a.err)
	}
	if err := d.ring.AllGather(ring.Buffer{Data: all}); err != nil {
		return err
	}
	plan := make([]uint16, len(d.buckets))
	if d.ring.Rank() == 0 {
		for i, k := range d.buckets {
			exposed, code, worst := float64(all[words*i]), 0.0, 0.0
			for r := range d.ring.World() {
				w := all[part*r+words*i:]
				exposed, code, worst = min(exposed, float64(w[0])), max(code, float64(w[1])), max(worst, float64(w[2]))
			}
			plan[i] = uint16(k.decide(exposed, code, worst, d.stepTime*float64(k.n)/float64(d.cfg.Size)))
			k.measured.moved = false
		}
	}
	if err := d.ring.Broadcast(ring.Buffer{Half: plan, DType: ring.BF16}, 0); err != nil {
		return err
	}
	for i, k := range d.buckets {
		to := Level(plan[i])
		if to >= levels {
			return fmt.Errorf("ddp: rank 0 sends level %d for bucket %d", to, i)
		}
		if to == k.level {
			continue
		}
		if d.ring.Rank() == 0 && d.cfg.Decide != nil {
			d.cfg.Decide(k.decision(step, to))
		}
		k.set(to)
	}
	return nil
}

// Broadcast is ring.Comm's.
func (d *Reducer) Broadcast(b ring.Buffer, root int) error {
	if err := d.Wait(); err != nil {
		return err
	}
	return d.ring.Broadcast(b, root)
}

// TakeWire returns the bytes that the buckets since the last call were encoded
// to, on this rank.
func (d *Reducer) TakeWire() int64 {
	w := d.wire
	d.wire = 0
	return w
}

// Levels counts the buckets by level, as "int8 3, powersgd 12"; "" when all are
// plain.
func (d *Reducer) Levels() string {
	var n [levels]int
	for _, k := range d.buckets {
		n[k.level]++
	}
	var out []string
	for l, c := range n {
		if c > 0 && c < len(d.buckets) || c > 0 && Level(l) != None {
			out = append(out, fmt.Sprintf("%s %d", Level(l), c))
		}
	}
	return strings.Join(out, ", ")
}

// Close ends the Reducer's goroutine. The ring stays; close or abort it first
// where a sum may still run.
func (d *Reducer) Close() error {
	if d.queue != nil {
		close(d.queue)
		<-d.done
		d.queue = nil
	}
	return nil
}
