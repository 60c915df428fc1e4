package train

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/ring"
)

// Place is a rank's place in a ring.
type Place struct {
	Rank, World int
	Ring        Collective // nil when World is 1
}

// elastic is what a run needs to outlive a ring.
type elastic struct {
	phase   phase
	settled bool                 // holds a state that all ranks of a ring have agreed on
	lead    func(st State) error // called when this rank is the first one of a new ring; may be nil
	micro   int                  // sequences of one Backward, which the model was made for
}

// phase is how far a task is, for ranks that come later: its parts differ in the
// schedule of the rate, and only one of them may save what others go on from.
type phase int

const (
	flatPart phase = iota
	flatEnd        // all ranks have reached the end of the flat part, none has gone on
	decay
)

// errRegroup ends a ring of one.
var errRegroup = &ring.LostError{Why: "a larger ring is formed"}

// mendable tells whether the run goes on in another ring after that error.
func (r *Run) mendable(err error) bool {
	return r.Rejoin != nil && r.Shard == nil && errors.Is(err, ring.ErrLost)
}

// microBatch is Config.MicroBatch of the first world: a smaller one accumulates.
func (r *Run) microBatch() int {
	if r.micro == 0 {
		r.micro = r.Config.MicroBatch(r.World)
	}
	return r.micro
}

// meter joins the run to the present ring; a single rank has none.
func (r *Run) meter() error {
	if r.World <= 1 {
		err := r.sync.close()
		r.sync = nil
		return err
	}
	if r.sync != nil && r.sync.ring == r.Ring && (r.sync.reducer != nil || r.Shard == nil) {
		return nil
	}
	if err := r.sync.close(); err != nil {
		return err
	}
	var err error
	r.sync, err = r.newMeter()
	return err
}

// Close ends what the run has beside its goroutine. The ring stays, unless the run
// failed where a sum may still wait for the other ranks: then cause aborts it.
func (r *Run) Close(cause error) error {
	if cause != nil && r.sync != nil && r.sync.reducer != nil {
		r.Ring.Abort(cause)
	}
	err := r.sync.close()
	r.sync = nil
	return err
}

// Join makes all ranks of a new ring hold one state and returns it: the furthest
// that a rank holds which was in the training before, or else the furthest that
// any has loaded. Ranks that are behind receive it from that peer. Every rank
// calls it, before To.
func (r *Run) Join(ctx context.Context, st State) (State, error) {
	st, err := r.meet(st)
	if err != nil && r.mendable(err) {
		return r.rejoin(ctx, st, err)
	}
	return st, err
}

// rejoin drops the step that was cut off and joins the next ring. A step whose
// sums only some ranks have applied is applied by all: the others receive the
// state behind it.
func (r *Run) rejoin(ctx context.Context, st State, cause error) (State, error) {
	if err := r.Close(cause); err != nil {
		return st, err
	}
	r.Model.ZeroGrad()
	for {
		p, err := r.Rejoin(ctx, cause)
		if err != nil {
			return st, fmt.Errorf("%w; the ring was not formed anew: %w", cause, err)
		}
		r.Rank, r.World, r.Ring = p.Rank, p.World, p.Ring
		if st, err = r.meet(st); err == nil || !errors.Is(err, ring.ErrLost) {
			return st, err
		}
		cause = err
	}
}

// standing is what one rank tells the others when they meet, as float32 words.
const standing = 4

func (r *Run) meet(st State) (State, error) {
	r.shares = balance{}
	r.microBatch()
	if r.World > 1 {
		var err error
		if st, err = r.level(st); err != nil {
			return st, err
		}
	}
	r.settled = true
	if r.Rank == 0 && r.lead != nil {
		return st, r.lead(st)
	}
	return st, nil
}

// level brings the ranks that are behind to the state of the furthest.
func (r *Run) level(st State) (State, error) {
	all := make([]float32, standing*r.World)
	mine := all[standing*r.Rank:]
	if r.settled {
		mine[0] = 1
	}
	mine[1], mine[2] = float32(st.Step>>20), float32(st.Step&(1<<20-1))
	r.Ring.Reduce(-4, ring.Buffer{Data: all})
	if err := r.Ring.Wait(); err != nil {
		return st, err
	}
	root, differ := 0, false
	order := func(rank int) float64 {
		w := all[standing*rank:]
		return float64(w[0])*(1<<48) + float64(w[1])*(1<<20) + float64(w[2])
	}
	for rank := 1; rank < r.World; rank++ {
		differ = differ || order(rank) != order(0)
		if order(rank) > order(root) {
			root = rank
		}
	}
	if !differ {
		return st, nil
	}
	return r.transfer(st, root, order(r.Rank) < order(root))
}

// header goes before the tensors of a transfer.
type header struct {
	State   State
	Phase   phase
	Average bool // an average follows the model's tensors
}

const headerBytes = 16384

// transfer broadcasts the root's state. Ranks that are not behind only take part.
func (r *Run) transfer(st State, root int, behind bool) (State, error) {
	half := make([]uint16, headerBytes/2)
	if r.Rank == root {
		b, err := json.Marshal(header{st, r.phase, r.average != nil})
		if err != nil {
			return st, err
		}
		if len(b) >= headerBytes {
			return st, fmt.Errorf("the state of step %d takes %d bytes, a transfer's head %d", st.Step, len(b), headerBytes)
		}
		for i, c := range append(b, '\n') {
			half[i/2] |= uint16(c) << (8 * (i % 2))
		}
	}
	if err := r.Ring.Broadcast(ring.Buffer{Half: half, DType: ring.BF16}, root); err != nil {
		return st, err
	}
	b := make([]byte, 0, headerBytes)
	for _, h := range half {
		b = append(b, byte(h), byte(h>>8))
	}
	line, _, _ := strings.Cut(string(b), "\n")
	var h header
	if err := json.Unmarshal([]byte(line), &h); err != nil {
		return st, fmt.Errorf("state from rank %d: %w", root, err)
	}
	tensors := r.Model.State()
	if h.Average {
		a := r.average
		if a == nil { // this rank's engine keeps none
			_, size := r.Config.Arch.Layout()
			a = &average{mean: make([]float32, size)}
		}
		tensors = append(tensors, a.state()...)
	}
	var got engine.StateDict
	var scratch []float32
	for _, t := range tensors {
		buf := t.Data
		if r.Rank != root {
			if len(scratch) < len(t.Data) || behind {
				scratch = make([]float32, len(t.Data))
			}
			buf = scratch[:len(t.Data)]
		}
		if err := r.Ring.Broadcast(ring.Buffer{Data: buf}, root); err != nil {
			return st, err
		}
		if behind {
			got = append(got, engine.Tensor{Name: t.Name, Shape: t.Shape, Data: buf})
		}
	}
	if !behind {
		return st, nil
	}
	got, err := r.average.load(got)
	if err != nil {
		return st, fmt.Errorf("state from rank %d: %w", root, err)
	}
	if err := r.Model.Load(got); err != nil {
		return st, fmt.Errorf("state from rank %d: %w", root, err)
	}
	r.phase = h.Phase
	return h.State, nil
}

// peakBytes is the most memory of its device that the model's engine has held, as
// far as the engine counts it; otherwise what this process has held, 0 where the
// kernel does not say.
func peakBytes(m engine.Model) int64 {
	if c, ok := m.(interface{ PeakBytes() int64 }); ok {
		if n := c.PeakBytes(); n > 0 {
			return n
		}
	}
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, rest, ok := strings.Cut(string(b), "VmHWM:")
	if !ok {
		return 0
	}
	kb, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	return kb << 10
}
