package native

import (
	"fmt"
	"sync"

	"github.com/open-autoglm/autoglm/gpu/engine"
)

// handOver sums the threads' gradients part by part, as the backward pass
// finishes them, and hands them to a sync. Part Layers is the final norm and an
// untied head; part l is layer l; what is left, the embedding, is summed by all
// threads after the pass. The last thread to finish a part sums it, the others go
// on computing.
type handOver struct {
	model *Model
	on    bool  // there is a sync
	first []int // of each part: its first element; the part before it ends there

	mu struct {
		sync.Mutex
		done    []int // of each part: threads that have finished it
		buckets engine.Buckets
	}
	// from on the gradient is summed. Written under mu while threads compute; else
	// by the model's goroutine.
	from int
}

// begin starts a Backward. Without a sync nothing is summed before its end.
func (o *handOver) begin(m *Model, sync engine.GradientSync) {
	if o.model == nil {
		o.model = m
		const tensors = 9 // of a layer
		for l := range m.arch.Layers + 1 {
			o.first = append(o.first, m.layout[1+l*tensors].Offset)
		}
		o.mu.done = make([]int, len(o.first))
	}
	o.on, o.from = sync != nil, m.size
	o.mu.buckets = engine.NewBuckets(m.grads, sync)
	clear(o.mu.done)
}

// done tells that the calling thread adds nothing more to a part. Threads finish
// the parts from the last to the first, so that the last of them to finish one
// does so after the part behind it was handed over.
func (o *handOver) done(part int) {
	if !o.on {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.mu.done[part]++; o.mu.done[part] < o.model.job.active {
		return
	}
	o.model.reduce(engine.Range{From: o.first[part], To: o.from})
	o.from = o.first[part]
	o.mu.buckets.Ready(o.from)
}

// end hands over the rest.
func (o *handOver) end() {
	if o.on {
		o.mu.buckets.Ready(0)
	}
}

var _ engine.GradientViews = (*Model)(nil)

// UseGradients implements engine.GradientViews.
func (m *Model) UseGradients(mem []float32) error {
	if m.opt.Inference {
		return errInference
	}
	if mem == nil {
		mem = make([]float32, m.size)
	}
	if len(mem) != m.size {
		return fmt.Errorf("native: %d elements for gradients, the arena has %d", len(mem), m.size)
	}
	clear(mem)
	m.grads = mem[:m.size:m.size]
	w := m.worker[0]
	w.arena, w.g = m.grads, view(m.arch, m.layout, m.grads)
	return nil
}
