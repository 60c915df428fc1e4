package ring

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// shared is the transport between processes of one host: a board in a memfd, and
// arenas for buffers that all ranks map. A memfd has no name: nothing is left
// behind, whoever dies.
type shared struct {
	board  *board
	mesh   *mesh
	ranks  []int    // of the board, by their numbers in the ring
	maps   [][]byte // to unmap
	arenas []arena

	running sync.Mutex // held by Do and alloc, so that Close frees nothing under them
}

// arena is one Alloc: every rank's piece as this rank sees it.
type arena struct {
	id    uint32
	ranks [][]byte
}

// newShared joins those ranks of a mesh that are given, in ascending order, over
// its unix sockets; the first one makes the board, without slots where nothing but
// checks is done on it.
func newShared(m *mesh, ranks []int, slots bool, stop *stopper, cfg *Config) (*shared, error) {
	t := &shared{mesh: m, ranks: ranks}
	world, rank := len(ranks), slices.Index(ranks, cfg.Rank)
	size := boardSize(world, slots)
	var mem []byte
	var err error
	if rank == 0 {
		var f *os.File
		if f, mem, err = t.create("board", size); err == nil {
			err = t.offer(f, 0)
		}
	} else {
		mem, err = t.accept(0, size, 0, time.Now().Add(cfg.FormTimeout))
	}
	if err != nil {
		t.unmap()
		return nil, err
	}
	t.board = newBoard(mem, rank, world, slots, cfg.Timeout, stop)
	t.board.names = ranks
	t.board.yield = schedYield
	t.board.left = func(r int) bool { return m.left(ranks[r]) }
	t.board.reach = t.reach
	return t, nil
}

// create makes a memfd of that size whose pages are all there: a lack of memory
// is an error here and not a signal later.
func (t *shared) create(what string, size int) (*os.File, []byte, error) {
	size = (size + 4095) &^ 4095
	fd, err := unix.MemfdCreate("autoglm-"+what, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, nil, fmt.Errorf("shared memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "autoglm-"+what)
	if err := unix.Fallocate(fd, 0, 0, int64(size)); err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("shared memory: the host can't give %d MB more: %w; free some, or choose the unix or tcp transport", size>>20, err)
	}
	// A peer that maps it can rely on its size.
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("shared memory: %w", err)
	}
	mem, err := t.mmap(f, size)
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, mem, nil
}

func (t *shared) mmap(f *os.File, size int) ([]byte, error) {
	mem, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("shared memory: map %d MB: %w", size>>20, err)
	}
	t.maps = append(t.maps, mem)
	return mem, nil
}

// offer sends a memfd to every other rank and closes it.
func (t *shared) offer(f *os.File, what uint64) error {
	defer f.Close()
	for _, r := range t.ranks {
		p := t.mesh.peers[r]
		if p == nil {
			continue
		}
		if err := p.send(frameFile, what, "", int(f.Fd())); err != nil {
			// A rank that has given up hangs up: its reason says more.
			t.mesh.stop.ended()
			if reason := t.mesh.stop.reason(); reason != nil {
				return reason
			}
			return fmt.Errorf("shared memory: hand it to rank %d: %w", p.rank, err)
		}
	}
	return nil
}

// accept waits for the memfd of the board's rank r and maps it.
func (t *shared) accept(r, size int, what uint64, deadline time.Time) ([]byte, error) {
	rank := t.ranks[r]
	size = (size + 4095) &^ 4095
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case got, ok := <-t.mesh.peers[rank].file:
		if !ok {
			return nil, fmt.Errorf("shared memory: %w", &LostError{Rank: rank, Why: "it left before it handed its memory over"})
		}
		defer got.f.Close()
		if got.what != what {
			return nil, fmt.Errorf("%w: rank %d hands over memory %d where this rank expects %d", ErrOutOfStep, rank, got.what, what)
		}
		info, err := got.f.Stat()
		if err != nil {
			return nil, fmt.Errorf("shared memory of rank %d: %w", rank, err)
		}
		if info.Size() != int64(size) {
			return nil, fmt.Errorf("%w: rank %d shares %d bytes where this rank shares %d", ErrOutOfStep, rank, info.Size(), size)
		}
		return t.mmap(got.f, size)
	case <-t.mesh.stop.done:
		return nil, t.mesh.stop.reason()
	case <-timer.C:
		return nil, fmt.Errorf("%w: rank %d did not hand its memory over", ErrTimeout, rank)
	}
}

// alloc implements allocator.
func (t *shared) alloc(bytes int, seq uint32) ([]byte, error) {
	if bytes == 0 {
		return nil, nil
	}
	t.running.Lock()
	defer t.running.Unlock()
	a := arena{id: seq, ranks: make([][]byte, t.board.world)}
	f, mem, err := t.create("arena", bytes)
	if err == nil {
		err = t.offer(f, uint64(seq))
	}
	deadline := time.Now().Add(t.board.timeout)
	for r := range a.ranks {
		if err != nil {
			break
		}
		if a.ranks[r] = mem; r != t.board.rank {
			a.ranks[r], err = t.accept(r, bytes, uint64(seq), deadline)
		}
	}
	if err != nil {
		t.mesh.abort(err) // the others would wait for this rank's memory
		return nil, err
	}
	t.arenas = append(t.arenas, a)
	return mem[:bytes:bytes], nil
}

// reach finds rank r's buffer in the arena that its head names.
func (t *shared) reach(r int, h *head, bytes int) []byte {
	if h.arena == 0 {
		return nil
	}
	i := slices.IndexFunc(t.arenas, func(a arena) bool { return a.id == h.arena })
	if i < 0 {
		return nil
	}
	mem := t.arenas[i].ranks[r]
	if h.offset > uint64(len(mem)) || uint64(len(mem))-h.offset < uint64(bytes) {
		return nil
	}
	return mem[h.offset : h.offset+uint64(bytes)]
}

// Do implements Transport.
func (t *shared) Do(op *Op) error {
	t.running.Lock()
	defer t.running.Unlock()
	if t.maps == nil {
		return ErrClosed
	}
	var id uint32
	var offset uint64
	if len(op.Data) > 0 {
		p := uintptr(unsafe.Pointer(&op.Data[0]))
		for _, a := range t.arenas {
			mem := a.ranks[t.board.rank]
			if base := uintptr(unsafe.Pointer(&mem[0])); p >= base && p+uintptr(len(op.Data)) <= base+uintptr(len(mem)) {
				id, offset = a.id, uint64(p-base)
				break
			}
		}
	}
	return t.board.do(op, id, offset)
}

// Abort implements Transport.
func (t *shared) Abort(reason error) { t.mesh.abort(reason) }

// Close implements Transport. The memory that Alloc gave goes with it.
func (t *shared) Close() error {
	err := t.mesh.close() // what runs returns
	t.running.Lock()
	defer t.running.Unlock()
	return errors.Join(err, t.unmap())
}

func (t *shared) unmap() error {
	var err error
	for _, m := range t.maps {
		err = errors.Join(err, unix.Munmap(m))
	}
	t.maps, t.arenas = nil, nil
	return err
}
