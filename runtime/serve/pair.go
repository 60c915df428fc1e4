package serve

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/runtime/token"
)

// Pair is a bundle's decoders on both kinds of device. A Hub gives each a Scheduler of
// its own, and the router says which of them begins a text. Taken as a Decoder it is the
// CPU's.
type Pair struct {
	engine.Decoder // on the CPU
	GPU            engine.Decoder
	Router         *Router
}

// Close closes both.
func (p *Pair) Close() error { return errors.Join(p.Decoder.Close(), p.GPU.Close()) }

// Generator is what a Model generates by: a Scheduler, or one on each of two devices. See
// Scheduler for its methods.
type Generator interface {
	Generate(ctx context.Context, req Request, emit func(Piece) error) (Result, error)
	Status() Status
	Refuse()
	Drain(ctx context.Context)
	Close()
}

// newGenerator schedules dec, which it owns from now on unless there is an error.
func newGenerator(dec engine.Decoder, tok *token.Tokenizer, cfg SchedulerConfig) (Generator, error) {
	p, ok := dec.(*Pair)
	if !ok {
		return NewScheduler(dec, tok, cfg)
	}
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("scheduler: %w", err)
	}
	r := &routed{router: p.Router}
	for _, side := range []struct {
		to   *side
		dec  engine.Decoder
		kind device.Kind
	}{{&r.cpu, p.Decoder, device.CPU}, {&r.gpu, p.GPU, device.GPU}} {
		s, err := NewScheduler(side.dec, tok, cfg)
		if err != nil {
			return nil, err // of cfg alone, which was looked at
		}
		side.to.Scheduler, side.to.kind = s, side.kind
	}
	return r, nil
}

// routed is a Pair at work. All methods may be called from any goroutine.
type routed struct {
	router   *Router
	cpu, gpu side
}

// side is one device's scheduler and what was asked of it.
type side struct {
	*Scheduler
	kind          device.Kind
	begun, failed atomic.Int64 // requests; those that the device let down
}

func (s *side) generate(ctx context.Context, req Request, emit func(Piece) error) (Result, error) {
	s.begun.Add(1)
	res, err := s.Generate(ctx, req, emit)
	var of *DecoderError
	if errors.As(err, &of) {
		s.failed.Add(1)
	}
	return res, err
}

// Generate is Scheduler.Generate on the device that the router says; a text stays where it
// began. What the GPU refuses goes to the CPU, and so does a request that the GPU failed
// before anybody saw a piece of it; one of which somebody did gets the error.
func (r *routed) Generate(ctx context.Context, req Request, emit func(Piece) error) (Result, error) {
	if emit == nil {
		emit = func(Piece) error { return nil }
	}
	if r.router.Next() != device.GPU {
		return r.cpu.generate(ctx, req, emit)
	}
	seen := false
	var held []Piece
	res, err := r.gpu.generate(ctx, req, func(p Piece) error {
		if req.Whole {
			held = append(held, p)
			return nil
		}
		seen = true
		return emit(p)
	})
	for i := 0; i < len(held) && err == nil; i++ {
		err = emit(held[i])
	}
	var busy *BusyError
	var failed *DecoderError
	switch {
	case errors.As(err, &busy), errors.Is(err, ErrNoEmbedding):
		return r.cpu.generate(ctx, req, emit)
	case !errors.As(err, &failed):
		return res, err
	}
	r.router.Fail(failed.Err)
	// A grammar that was told of tokens can't begin again.
	if !seen && (req.Grammar == nil || len(res.IDs) == 0) && ctx.Err() == nil {
		return r.cpu.generate(ctx, req, emit)
	}
	return res, fmt.Errorf("the GPU failed in the middle of this text and is left out from now on; ask again, for one from the CPU: %w", err)
}

// Status is of both, and what each device has.
func (r *routed) Status() Status {
	st, gpu := r.cpu.Status(), r.gpu.Status()
	st.Devices = []DeviceStatus{r.gpu.status(gpu), r.cpu.status(st)}
	st.Devices[0].Load = r.router.Load()
	st.Running += gpu.Running
	st.Waiting += gpu.Waiting
	st.Slots += gpu.Slots
	st.Queue += gpu.Queue
	st.Stalled = max(st.Stalled, gpu.Stalled)
	st.PrefixQueries += gpu.PrefixQueries
	st.PrefixHits += gpu.PrefixHits
	st.Pages += gpu.Pages
	st.PagesHeld += gpu.PagesHeld
	return st
}

// DeviceStatus is how one of several devices fares.
type DeviceStatus struct {
	Device           device.Kind
	Load             float64 // of a GPU, as it was seen last; NaN before that
	Running, Waiting int
	Requests         int64 // that went to it
	Failed           int64 // of them, by the device
}

func (s *side) status(of Status) DeviceStatus {
	return DeviceStatus{Device: s.kind, Running: of.Running, Waiting: of.Waiting, Requests: s.begun.Load(), Failed: s.failed.Load()}
}

// Refuse implements Generator.
func (r *routed) Refuse() {
	r.gpu.Refuse()
	r.cpu.Refuse()
}

// Drain implements Generator. What the GPU fails while it drains is refused by the CPU.
func (r *routed) Drain(ctx context.Context) {
	r.Refuse()
	var both sync.WaitGroup
	both.Go(func() { r.gpu.Drain(ctx) })
	both.Go(func() { r.cpu.Drain(ctx) })
	both.Wait()
}

// Close implements Generator.
func (r *routed) Close() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	r.Drain(ctx)
}
