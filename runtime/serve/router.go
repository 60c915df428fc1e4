package serve

import (
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/open-autoglm/autoglm/gpu/device"
)

// RouterConfig says by what a Router decides.
type RouterConfig struct {
	// Load is the GPU's, 0 to 1; negative or NaN where it isn't known, which keeps new texts
	// on the CPU. It may block; calls never overlap.
	Load   func() float64
	Policy device.LoadPolicy
	// Failed is told once, when the GPU failed. May be nil.
	Failed func(error)
}

// lookEvery is how old a GPU's load may be when a text is begun.
const lookEvery = time.Second

// Router says where new texts begin: on the GPU while its load is under the policy's
// bound, otherwise on the CPU; after a failure of the GPU always on the CPU. The models
// of a process that share a GPU share its Router. All methods may be called from any
// goroutine.
type Router struct {
	cfg RouterConfig

	mu struct {
		sync.Mutex
		last    device.Kind
		load    float64 // NaN before the first look
		looked  time.Time
		looking bool
		failed  error
	}
}

// NewRouter refuses a policy that can't be.
func NewRouter(cfg RouterConfig) (*Router, error) {
	if err := cfg.Policy.Validate(); err != nil {
		return nil, fmt.Errorf("router: %w", err)
	}
	r := &Router{cfg: cfg}
	r.mu.last, r.mu.load = device.Auto, math.NaN()
	return r, nil
}

// Next is where a text that is begun now goes. It looks at the load when that is older
// than a second; who asks meanwhile gets an answer by the load that was seen last.
func (r *Router) Next() device.Kind {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.failed == nil && !r.mu.looking && time.Since(r.mu.looked) >= lookEvery {
		r.mu.looking = true
		r.mu.Unlock()
		load := r.cfg.Load()
		r.mu.Lock()
		r.mu.looking, r.mu.load, r.mu.looked = false, load, time.Now()
	}
	if r.mu.failed != nil || r.mu.looked.IsZero() { // the first look is under way
		return device.CPU
	}
	r.mu.last = r.cfg.Policy.Next(r.mu.last, r.mu.load)
	return r.mu.last
}

// Fail leaves the GPU out from now on.
func (r *Router) Fail(err error) {
	r.mu.Lock()
	first := r.mu.failed == nil
	if first {
		r.mu.failed = err
	}
	r.mu.Unlock()
	if first && r.cfg.Failed != nil {
		r.cfg.Failed(err)
	}
}

// Failed is why the GPU is left out; nil where it is not.
func (r *Router) Failed() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.failed
}

// Load is the GPU's load as it was seen last; NaN before that.
func (r *Router) Load() float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.load
}
