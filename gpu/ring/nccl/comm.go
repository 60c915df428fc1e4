//go:build gpu

package nccl

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/open-autoglm/autoglm/gpu/ring"
)

const (
	// abortLimit bounds how long NCCL may take to let a communicator go.
	abortLimit = 2 * time.Second
	// finalLimit bounds how long the others may keep an orderly end waiting.
	finalLimit = 2 * time.Second
	// grace is how long the GPU's thread has to notice that it is no longer waited
	// for; it looks up every few microseconds, unless a call holds it.
	grace = 10 * time.Millisecond
)

// comm is a rank's end of a communicator. Its GPU has a thread of its own, which
// alone calls CUDA and NCCL; whoever waits for it does so to a bound, and then
// aborts, from outside when a call holds the thread.
type comm struct {
	*library
	place ring.Place
	jobs  chan func() error // to the thread; closed at the end
	done  chan error
	ended chan struct{} // the thread is through

	given  atomic.Bool    // the thread's work is no longer waited for
	handle atomic.Uintptr // ncclComm_t; 0 is none
	stuck  bool           // the thread did not come back

	// Of the thread.
	device  int32
	stream  uintptr
	event   uintptr
	staging uintptr // memory for buffers of the host
	room    int     // bytes of it
}

var (
	errGiven = errors.New("it was given up")
	errStuck = errors.New("NCCL did not let the communicator go: end this process")
)

// join implements ring.Library.
func join(p ring.Place) (ring.Collectives, error) {
	l, err := load()
	if err != nil {
		return nil, err
	}
	if p.GPU == nil {
		return nil, errors.New("this rank has no GPU")
	}
	c := &comm{library: l, place: p, jobs: make(chan func() error, 1), done: make(chan error, 1), ended: make(chan struct{})}
	go c.thread()
	var id uniqueID
	err = c.run(time.Until(p.Deadline), func() error {
		if err := c.open(); err != nil || p.Rank != 0 {
			return err
		}
		return c.failed(c.getUniqueID(&id), "ncclGetUniqueId", 0)
	})
	raw := (*[uniqueIDBytes]byte)(unsafe.Pointer(&id))
	if err == nil {
		var b []byte
		if b, err = p.Tell(raw[:]); err == nil && len(b) != uniqueIDBytes {
			err = fmt.Errorf("rank 0 tells a unique ID of %d bytes, not %d", len(b), uniqueIDBytes)
		}
		copy(raw[:], b)
	}
	if err == nil {
		err = c.run(time.Until(p.Deadline), func() error { return c.begin(id) })
	}
	if err != nil {
		return nil, errors.Join(err, c.Close(false))
	}
	return c, nil
}

// thread is the GPU's.
func (c *comm) thread() {
	runtime.LockOSThread() // and never unlocked: the thread ends with its context
	defer close(c.ended)
	for f := range c.jobs {
		c.done <- f()
	}
}

// run has the thread do something, and waits for it: limit at the most, and no
// longer than the ring lasts.
func (c *comm) run(limit time.Duration, f func() error) error {
	c.jobs <- f
	timer := time.NewTimer(max(limit, 0))
	defer timer.Stop()
	var why error
	select {
	case err := <-c.done:
		if err != nil {
			c.let(true)
		}
		return err
	case <-c.place.Quit:
		why = errGiven
	case <-timer.C:
		why = fmt.Errorf("%w: NCCL did not come to an end within %s", ring.ErrTimeout, limit)
	}
	c.given.Store(true)
	select {
	case <-c.done:
		return errors.Join(why, c.let(true))
	case <-time.After(grace):
	}
	return errors.Join(why, c.let(false))
}

// let aborts the communicator. Where the thread is free it does it itself;
// otherwise a call holds it, which the abort ends.
func (c *comm) let(free bool) error {
	c.given.Store(true)
	h := c.handle.Swap(0)
	aborted := make(chan error, 1)
	abort := func() error {
		if h == 0 {
			return nil
		}
		return c.failed(c.abort(h), "ncclCommAbort", 0)
	}
	if free {
		c.jobs <- func() error { aborted <- abort(); return nil }
	} else {
		go func() { aborted <- abort() }()
	}
	limit := time.After(abortLimit)
	var err error
	select {
	case err = <-aborted:
	case <-limit:
		c.stuck = true
		return errStuck
	}
	select {
	case <-c.done:
	case <-limit:
		c.stuck = true
		return errStuck
	}
	return err
}

// open takes the GPU.
func (c *comm) open() error {
	if err := c.check(c.init(0), "cuInit"); err != nil {
		return fmt.Errorf("%w: is there a GPU, and may this user use /dev/nvidia*?", err)
	}
	var n int32
	if err := c.check(c.deviceGetCount(&n), "cuDeviceGetCount"); err != nil {
		return err
	}
	if o := c.place.GPU.Ordinal; o < 0 || o >= int(n) {
		return fmt.Errorf("GPU %d of %d: ordinals count from 0, among those that CUDA_VISIBLE_DEVICES leaves", o, n)
	}
	if err := c.check(c.deviceGet(&c.device, int32(c.place.GPU.Ordinal)), "cuDeviceGet"); err != nil {
		return err
	}
	var ctx uintptr
	if err := c.check(c.primaryRetain(&ctx, c.device), "cuDevicePrimaryCtxRetain"); err != nil {
		return err
	}
	if err := c.check(c.ctxSetCurrent(ctx), "cuCtxSetCurrent"); err != nil {
		return err
	}
	if err := c.check(c.streamCreate(&c.stream, streamNonBlocking), "cuStreamCreate"); err != nil {
		return err
	}
	return c.check(c.eventCreate(&c.event, eventDisableTiming), "cuEventCreate")
}

// begin makes the communicator.
func (c *comm) begin(id uniqueID) error {
	cfg := config{size: unsafe.Sizeof(config{}), magic: configMagic, version: configVersion, blocking: 0}
	var h uintptr
	code := c.initRank(&h, int32(c.place.World), id, int32(c.place.Rank), &cfg)
	c.handle.Store(h)
	if err := c.failed(code, "ncclCommInitRankConfig", 0); err != nil {
		return err
	}
	return c.settle("ncclCommInitRankConfig")
}

// settle polls until what was called is no longer under way.
func (c *comm) settle(call string) error {
	for n := 0; ; n++ {
		h := c.handle.Load()
		if c.given.Load() || h == 0 {
			return errGiven
		}
		var state int32
		if err := c.failed(c.asyncError(h, &state), "ncclCommGetAsyncError", h); err != nil {
			return err
		}
		if state != inProgress {
			return c.failed(state, call, h)
		}
		pause(n)
	}
}

// pause lets others run: briefly at first.
func pause(n int) {
	switch {
	case n < 200:
		runtime.Gosched()
	case n < 2000:
		time.Sleep(20 * time.Microsecond)
	default:
		time.Sleep(time.Millisecond)
	}
}

// Do implements ring.Collectives. It returns within abortLimit of the ring's end,
// usually within grace.
func (c *comm) Do(op *ring.Op) error {
	return c.run(c.place.Timeout, func() error { return c.carry(op) })
}

// carry runs on the thread.
func (c *comm) carry(op *ring.Op) error {
	p := op.Device
	if p == 0 {
		if err := c.stage(op.Bytes()); err != nil {
			return err
		}
		p = c.staging
		if err := c.give(p, op.Data); err != nil {
			return err
		}
	} else {
		if err := c.check(c.eventRecord(c.event, op.Stream), "cuEventRecord"); err != nil {
			return err
		}
		if err := c.check(c.streamWaitEvent(c.stream, c.event, 0), "cuStreamWaitEvent"); err != nil {
			return err
		}
	}
	if err := c.call(op, p); err != nil {
		return err
	}
	if op.Device == 0 {
		if err := c.take(op.Data, p); err != nil {
			return err
		}
	}
	return c.drain()
}

// give and take begin a copy, on the thread.
func (c *comm) give(to uintptr, from []byte) error {
	return c.check(c.memcpyHtoD(to, unsafe.Pointer(&from[0]), uintptr(len(from)), c.stream), "cuMemcpyHtoDAsync")
}

func (c *comm) take(to []byte, from uintptr) error {
	return c.check(c.memcpyDtoH(unsafe.Pointer(&to[0]), from, uintptr(len(to)), c.stream), "cuMemcpyDtoHAsync")
}

// ToHost implements ring.Stager.
func (c *comm) ToHost(to []byte, from uintptr) error {
	return c.run(c.place.Timeout, func() error {
		if err := c.take(to, from); err != nil {
			return err
		}
		return c.drain()
	})
}

// ToDevice implements ring.Stager.
func (c *comm) ToDevice(to uintptr, from []byte) error {
	return c.run(c.place.Timeout, func() error {
		if err := c.give(to, from); err != nil {
			return err
		}
		return c.drain()
	})
}

// call starts an operation on a buffer of the GPU.
func (c *comm) call(op *ring.Op, p uintptr) error {
	h := c.handle.Load()
	if c.given.Load() || h == 0 {
		return errGiven
	}
	dt, size := dtype(op.DType), uintptr(op.DType.Size())
	count := uintptr(op.Bytes()) / size
	world := c.place.World
	share := func(r int) (at, n uintptr) {
		lo, hi := op.Share(r, world)
		return p + uintptr(lo), uintptr(hi-lo) / size
	}
	mine, n := share(c.place.Rank)
	// The last shares are shorter unless they all are one length; NCCL knows only
	// that.
	even := n*uintptr(world) == count
	for r := range world {
		_, m := share(r)
		even = even && m == n
	}
	name := ""
	code := int32(success)
	switch {
	case op.Kind == ring.AllReduce:
		name, code = "ncclAllReduce", c.allReduce(p, p, count, dt, sum, h, c.stream)
	case op.Kind == ring.Broadcast:
		name, code = "ncclBroadcast", c.broadcast(p, p, count, dt, op.Root, h, c.stream)
	case op.Kind == ring.ReduceScatter && even:
		name, code = "ncclReduceScatter", c.reduceScatter(p, mine, n, dt, sum, h, c.stream)
	case op.Kind == ring.AllGather && even:
		name, code = "ncclAllGather", c.allGather(mine, p, n, dt, h, c.stream)
	case op.Kind == ring.ReduceScatter || op.Kind == ring.AllGather:
		return c.shares(op, h, share)
	default:
		return fmt.Errorf("NCCL has no %s", op.Kind)
	}
	if err := c.failed(code, name, h); err != nil || code == success {
		return err
	}
	return c.settle(name)
}

// shares reduces or broadcasts every rank's share by itself, as one group.
func (c *comm) shares(op *ring.Op, h uintptr, share func(r int) (at, n uintptr)) error {
	if err := c.failed(c.groupStart(), "ncclGroupStart", h); err != nil {
		return err
	}
	dt := dtype(op.DType)
	var first error
	for r := range c.place.World {
		at, n := share(r)
		if n == 0 {
			continue
		}
		name, code := "ncclReduce", int32(0)
		if op.Kind == ring.AllGather {
			name, code = "ncclBroadcast", c.broadcast(at, at, n, dt, int32(r), h, c.stream)
		} else {
			code = c.reduce(at, at, n, dt, sum, int32(r), h, c.stream)
		}
		if err := c.failed(code, name, h); err != nil && first == nil {
			first = err
		}
	}
	code := c.groupEnd()
	if first != nil {
		return first
	}
	if err := c.failed(code, "ncclGroupEnd", h); err != nil || code == success {
		return err
	}
	return c.settle("ncclGroupEnd")
}

// stage makes room for a buffer of host memory.
func (c *comm) stage(bytes int) error {
	if bytes <= c.room {
		return nil
	}
	if c.staging != 0 {
		if err := c.check(c.memFree(c.staging), "cuMemFree"); err != nil {
			return err
		}
		c.staging, c.room = 0, 0
	}
	size := (bytes + 1<<20 - 1) &^ (1<<20 - 1)
	if err := c.check(c.memAlloc(&c.staging, uintptr(size)), fmt.Sprintf("cuMemAlloc of %d MB", size>>20)); err != nil {
		return err
	}
	c.room = size
	return nil
}

// drain polls until the stream is empty, or NCCL has found an error.
func (c *comm) drain() error {
	for n := 0; ; n++ {
		code := c.streamQuery(c.stream)
		if code == success {
			return nil
		}
		if code != cudaNotReady {
			return c.check(code, "cuStreamQuery")
		}
		h := c.handle.Load()
		if c.given.Load() || h == 0 {
			return errGiven
		}
		if n%16 == 15 {
			var state int32
			if err := c.failed(c.asyncError(h, &state), "ncclCommGetAsyncError", h); err != nil {
				return err
			}
			if err := c.failed(state, "NCCL", h); err != nil {
				return err
			}
		}
		pause(n)
	}
}

// Close implements ring.Collectives: within finalLimit and twice abortLimit.
func (c *comm) Close(ended bool) error {
	var err error
	if !c.given.Load() && ended {
		err = c.finish()
	}
	if !c.stuck && c.handle.Load() != 0 {
		err = errors.Join(err, c.let(true))
	}
	if c.stuck {
		return errors.Join(err, errStuck) // the thread, and what it holds, end with the process
	}
	c.jobs <- c.free
	select {
	case ferr := <-c.done:
		err = errors.Join(err, ferr)
	case <-time.After(abortLimit):
		c.stuck = true
		return errors.Join(err, errStuck)
	}
	close(c.jobs)
	<-c.ended
	return err
}

// finish ends the communicator in order: all that was begun is through. Where the
// others don't do the same in time it is aborted instead.
func (c *comm) finish() error {
	end := time.Now().Add(finalLimit)
	c.jobs <- func() error {
		h := c.handle.Load()
		if err := c.failed(c.finalize(h), "ncclCommFinalize", h); err != nil {
			return err
		}
		for n := 0; ; n++ {
			var state int32
			if err := c.failed(c.asyncError(h, &state), "ncclCommGetAsyncError", h); err != nil {
				return err
			}
			if err := c.failed(state, "ncclCommFinalize", h); err != nil {
				return err
			}
			if state == success {
				c.handle.Store(0)
				return c.failed(c.destroy(h), "ncclCommDestroy", 0)
			}
			if c.given.Load() || time.Now().After(end) {
				return nil // Close aborts it
			}
			pause(n)
		}
	}
	select {
	case err := <-c.done:
		return err
	case <-time.After(finalLimit + grace):
		c.given.Store(true)
		return c.let(false)
	}
}

// free gives the GPU back; it runs on the thread.
func (c *comm) free() error {
	var err error
	if c.staging != 0 {
		err = errors.Join(err, c.check(c.memFree(c.staging), "cuMemFree"))
	}
	if c.event != 0 {
		err = errors.Join(err, c.check(c.eventDestroy(c.event), "cuEventDestroy"))
	}
	if c.stream != 0 {
		err = errors.Join(err, c.check(c.streamDestroy(c.stream), "cuStreamDestroy"), c.check(c.primaryRelease(c.device), "cuDevicePrimaryCtxRelease"))
	}
	return err
}
