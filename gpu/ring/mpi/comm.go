//go:build gpu

package mpi

import (
	"errors"
	"fmt"
	"sync"
	"time"
	"unsafe"

	"github.com/open-autoglm/autoglm/gpu/ring"
)

// finalLimit bounds how long the others may keep an orderly end waiting.
const finalLimit = 5 * time.Second

// comm is a rank's end.
type comm struct {
	*library
	place  ring.Place
	thread *ring.Thread
	handle uintptr

	// Of the thread.
	counts, at []int32
	part       []byte // of a reduce-scatter
}

// begun tells that this process has joined a ring: MPI allows it once.
var begun struct {
	sync.Mutex
	is bool
}

// join implements ring.Library.
func join(p ring.Place) (ring.Collectives, error) {
	l, err := load()
	if err != nil {
		return nil, err
	}
	begun.Lock()
	defer begun.Unlock()
	if begun.is {
		return nil, errors.New("MPI joins ranks once a process: start new processes")
	}
	begun.is = true
	c := &comm{library: l, place: p, thread: ring.NewThread()}
	if err := c.thread.Run(time.Until(p.Deadline), p.Quit, c.begin); err != nil {
		return nil, errors.Join(err, c.Close(false))
	}
	return c, nil
}

// begin makes a communicator in which ranks have the ring's numbers.
func (c *comm) begin() error {
	var is, provided, size int32
	if err := c.check(c.initialized(&is), "MPI_Initialized"); err != nil {
		return err
	}
	if is == 0 {
		if err := c.check(c.initThread(0, 0, threadSerialized, &provided), "MPI_Init_thread"); err != nil {
			return err
		}
	}
	if err := c.check(c.commSize(c.world, &size), "MPI_Comm_size"); err != nil {
		return err
	}
	if int(size) != c.place.World {
		return fmt.Errorf("mpirun has started %d processes, the ring has %d ranks: start as many, by the mpirun of %s", size, c.place.World, c.family)
	}
	if err := c.check(c.setErrhandler(c.world, c.errorsReturn), "MPI_Comm_set_errhandler"); err != nil {
		return err
	}
	if err := c.check(c.commSplit(c.world, 0, int32(c.place.Rank), &c.handle), "MPI_Comm_split"); err != nil {
		return err
	}
	return c.check(c.setErrhandler(c.handle, c.errorsReturn), "MPI_Comm_set_errhandler")
}

// Do implements ring.Collectives. It returns at once when the ring has ended.
func (c *comm) Do(op *ring.Op) error {
	return c.thread.Run(c.place.Timeout, c.place.Quit, func() error { return c.carry(op) })
}

// most is how many elements a call takes: MPI counts in 32 bits.
const most = 1 << 30

func (c *comm) carry(op *ring.Op) error {
	dt, size := c.bytes, 1
	if op.DType == ring.F32 {
		dt, size = c.float, 4
	}
	n := len(op.Data) / size
	switch op.Kind {
	case ring.AllReduce, ring.Broadcast:
		for lo := 0; lo < n; lo += most {
			p, count := unsafe.Pointer(&op.Data[lo*size]), int32(min(most, n-lo))
			code, call := int32(0), "MPI_Bcast"
			if op.Kind == ring.AllReduce {
				call, code = "MPI_Allreduce", c.allreduce(c.inPlace, p, count, dt, c.sum, c.handle)
			} else {
				code = c.bcast(p, count, dt, op.Root, c.handle)
			}
			if err := c.check(code, call); err != nil {
				return err
			}
		}
		return nil
	case ring.ReduceScatter, ring.AllGather:
		if n > most {
			return fmt.Errorf("MPI's %s takes %d elements at the most, not %d: split the bucket", op.Kind, most, n)
		}
		c.counts, c.at = c.counts[:0], c.at[:0]
		for r := range c.place.World {
			lo, hi := op.Share(r, c.place.World)
			c.counts, c.at = append(c.counts, int32((hi-lo)/size)), append(c.at, int32(lo/size))
		}
		p := unsafe.Pointer(&op.Data[0])
		if op.Kind == ring.AllGather {
			return c.check(c.allgatherv(c.inPlace, 0, dt, p, &c.counts[0], &c.at[0], dt, c.handle), "MPI_Allgatherv")
		}
		// In place the share would end at the buffer's beginning.
		lo, hi := op.Share(c.place.Rank, c.place.World)
		if cap(c.part) <= hi-lo {
			c.part = make([]byte, hi-lo+4)
		}
		part := c.part[:hi-lo+1]
		if err := c.check(c.reduceScatter(p, unsafe.Pointer(&part[0]), &c.counts[0], dt, c.sum, c.handle), "MPI_Reduce_scatter"); err != nil {
			return err
		}
		copy(op.Data[lo:hi], part)
		return nil
	}
	return fmt.Errorf("MPI is not asked for a %s", op.Kind)
}

// Close implements ring.Collectives. In order it ends MPI in this process, when
// all ranks do so within finalLimit; otherwise MPI is left as it is.
func (c *comm) Close(ended bool) error {
	var err error
	if ended {
		err = c.thread.Run(finalLimit, nil, func() error {
			if err := c.check(c.commFree(&c.handle), "MPI_Comm_free"); err != nil {
				return err
			}
			return c.check(c.finalize(), "MPI_Finalize")
		})
	}
	return errors.Join(err, c.thread.Close())
}
