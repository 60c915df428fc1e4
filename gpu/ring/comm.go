package ring

import (
	"fmt"
	"sync"
)

// Comm is one rank's end of a ring. One goroutine owns it; Abort and Close may
// be called from any.
type Comm struct {
	rank, world int
	epoch       uint64
	backend     string
	choice      string
	devices     bool // the transport takes buffers on GPUs
	transport   Transport
	stop        *stopper
	seq         uint32
	committed   uint64
	onClose     []func() error
	closeOnce   sync.Once
	closeErr    error

	// What Reform needs; nil in a ring that Form did not make.
	cfg   *Config
	cards []card
	mesh  *mesh

	queue   *queue // of Reduce; nil when Wait does the work
	pending []Op
}

func newComm(rank, world int, epoch uint64, t Transport, stop *stopper, eager bool) *Comm {
	c := &Comm{rank: rank, world: world, epoch: epoch, transport: t, stop: stop}
	if eager {
		c.queue = newQueue(t)
	}
	return c
}

// Rank is this end's number, 0 ≤ Rank < World.
func (c *Comm) Rank() int { return c.rank }

// World is the number of ranks.
func (c *Comm) World() int { return c.world }

// Epoch is the ring's life: a ring that was formed anew has a higher one.
func (c *Comm) Epoch() uint64 { return c.epoch }

// Shared tells whether the ranks share memory: sums then run in Wait, not beside
// the caller.
func (c *Comm) Shared() bool { return c.queue == nil }

// Backend is what joins the ranks: what Auto has picked, "" in a world of one.
func (c *Comm) Backend() string { return c.backend }

// Choice is what joins the ranks and why it was chosen, for people; "" where there
// was nothing to choose.
func (c *Comm) Choice() string { return c.choice }

// Devices tells whether the ring takes buffers on GPUs.
func (c *Comm) Devices() bool { return c.devices }

// AllReduce replaces the buffer by the sum over all ranks. Sums are taken in
// rank order, so every rank ends with the same bits.
func (c *Comm) AllReduce(b Buffer) error { return c.run(c.op(AllReduce, b, 0, 0)) }

// ReduceScatter leaves in each rank's Share of the buffer the sum over all ranks;
// the rest of it is undefined afterwards.
func (c *Comm) ReduceScatter(b Buffer) error { return c.run(c.op(ReduceScatter, b, 0, 0)) }

// AllGather replaces each rank's Share of the buffer by that rank's.
func (c *Comm) AllGather(b Buffer) error { return c.run(c.op(AllGather, b, 0, 0)) }

// Broadcast replaces the buffer by the root's.
func (c *Comm) Broadcast(b Buffer, root int) error {
	if root < 0 || root >= c.world {
		return fmt.Errorf("broadcast from rank %d of %d", root, c.world)
	}
	return c.run(c.op(Broadcast, b, root, 0))
}

// Barrier returns when every rank has called it.
func (c *Comm) Barrier() error { return c.run(c.op(Barrier, Buffer{}, 0, 0)) }

// Commit ends a step: every rank calls it when all of the step's sums are there,
// and applies them when it returns nil. Where any rank's Commit of a step has
// returned nil, all ranks hold all of the step's sums: after a loss the survivors
// exchange the highest step that one of them committed. Whoever has not applied
// it yet does so from the sums that it still holds; where none has, all do the
// step again. Steps count upwards.
func (c *Comm) Commit(step uint64) error {
	o := c.op(Barrier, Buffer{}, 0, 0)
	o.Bucket = int32(step)
	if err := c.run(o); err != nil {
		return err
	}
	c.committed = step
	return nil
}

// Committed is the last step whose Commit returned nil, 0 before the first.
func (c *Comm) Committed() uint64 { return c.committed }

// Reduce hands a bucket of gradients over to be summed as by AllReduce; errors
// show at Wait. The bucket's number is checked for agreement between ranks. Over
// sockets the sum runs beside the caller; where ranks share memory it is quicker
// to do it in Wait than to disturb the cores that compute.
func (c *Comm) Reduce(bucket int, b Buffer) {
	o := c.op(AllReduce, b, 0, bucket)
	if c.queue != nil {
		c.queue.put(o)
		return
	}
	c.pending = append(c.pending, o)
}

// Wait blocks until all buckets handed over are summed, or the ring has ended.
func (c *Comm) Wait() error {
	if c.queue != nil {
		return c.wrap(c.queue.wait())
	}
	var err error
	for i := range c.pending {
		if err = c.do(&c.pending[i]); err != nil {
			break
		}
	}
	clear(c.pending)
	c.pending = c.pending[:0]
	return err
}

func (c *Comm) op(kind Kind, b Buffer, root, bucket int) Op {
	c.seq++
	o := Op{Kind: kind, DType: b.DType, Root: int32(root), Bucket: int32(bucket), Seq: c.seq, Data: b.bytes()}
	if b.Device != 0 {
		o.Device, o.DeviceBytes, o.Stream = b.Device, b.N*b.DType.Size(), b.Stream
		if !c.devices && c.world > 1 {
			// The others would wait for it.
			c.Abort(fmt.Errorf("%w, and backend %s sums host memory: copy it there first, or form the ring with backend %s", ErrOnDevice, c.backend, NCCL))
		}
	}
	return o
}

// run does an operation after all that are pending.
func (c *Comm) run(o Op) error {
	if err := c.Wait(); err != nil {
		return err
	}
	return c.do(&o)
}

func (c *Comm) do(o *Op) error {
	if c.world == 1 {
		if c.stop.flag.Load() {
			return c.wrap(c.stop.reason())
		}
		return nil
	}
	return c.wrap(c.transport.Do(o))
}

func (c *Comm) wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("ring epoch %d, rank %d: %w", c.epoch, c.rank, err)
}

// Alloc gives n elements of memory for buffers. Where ranks are processes of one
// host, they share it, and sums over buffers in it need no copies. It is a
// collective: every rank calls it with the same n in the same order. The memory
// lives until Close. The error says what the machine lacks.
func (c *Comm) Alloc(n int) ([]float32, error) {
	if err := c.Wait(); err != nil {
		return nil, err
	}
	if a, ok := c.transport.(allocator); ok && c.world > 1 {
		c.seq++
		mem, err := a.alloc(4*n, c.seq)
		return floats(mem), c.wrap(err)
	}
	return make([]float32, n), nil
}

// allocator is a Transport whose buffers are best taken from memory of its own.
type allocator interface {
	alloc(bytes int, seq uint32) ([]byte, error)
}

// Abort ends the ring for this rank and tells the others: every operation,
// running or to come, returns the first reason.
func (c *Comm) Abort(reason error) { c.transport.Abort(reason) }

// Close says goodbye to the other ranks and frees what the ring holds. What is
// still running ends with ErrClosed.
func (c *Comm) Close() error {
	c.closeOnce.Do(func() {
		c.closeErr = c.transport.Close() // what runs returns
		if c.queue != nil {
			c.queue.close()
		}
		for _, f := range c.onClose {
			if err := f(); c.closeErr == nil {
				c.closeErr = err
			}
		}
	})
	return c.closeErr
}

// queue runs operations on a goroutine of its own, in order.
type queue struct {
	t    Transport
	wake chan struct{} // buffered, 1: there is something to do
	end  chan struct{}

	mu struct {
		sync.Mutex
		ops    []Op
		busy   bool
		closed bool
		err    error
		idle   *sync.Cond
	}
}

func newQueue(t Transport) *queue {
	q := &queue{t: t, wake: make(chan struct{}, 1), end: make(chan struct{})}
	q.mu.idle = sync.NewCond(&q.mu.Mutex)
	go q.loop()
	return q
}

func (q *queue) put(o Op) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.mu.closed {
		return
	}
	q.mu.ops = append(q.mu.ops, o)
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *queue) loop() {
	defer close(q.end)
	for range q.wake {
		for {
			q.mu.Lock()
			if len(q.mu.ops) == 0 || q.mu.err != nil {
				q.mu.ops = q.mu.ops[:0]
				q.mu.busy = false
				q.mu.idle.Broadcast()
				q.mu.Unlock()
				break
			}
			o := q.mu.ops[0]
			q.mu.ops = q.mu.ops[1:]
			q.mu.busy = true
			q.mu.Unlock()
			if err := q.t.Do(&o); err != nil {
				q.mu.Lock()
				q.mu.err = err
				q.mu.Unlock()
			}
		}
	}
}

// wait blocks until nothing is queued or running. Its bound is the transport's.
func (q *queue) wait() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for (len(q.mu.ops) > 0 || q.mu.busy) && !q.mu.closed {
		q.mu.idle.Wait()
	}
	return q.mu.err
}

// close ends the goroutine. The transport is closed before, so that a running
// operation returns.
func (q *queue) close() {
	q.mu.Lock()
	q.mu.closed = true
	if q.mu.err == nil {
		q.mu.err = ErrClosed
	}
	q.mu.idle.Broadcast()
	q.mu.Unlock()
	close(q.wake)
	<-q.end
}
