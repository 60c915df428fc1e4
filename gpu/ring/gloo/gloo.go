//go:build libtorch

package gloo

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
	"unsafe"

	"github.com/ebitengine/purego"

	"github.com/open-autoglm/autoglm/gpu/ring"
)

// library is the shim. Every function fills text with what went wrong and then
// returns 1.
type library struct {
	store     func(out *uintptr, host string, port *int32, master, rank, world, timeout int32, text *byte, room int32) int32
	join      func(group uintptr, address string, timeout int32, text *byte, room int32) int32
	sum       func(group uintptr, p unsafe.Pointer, n int64, text *byte, room int32) int32
	broadcast func(group uintptr, p unsafe.Pointer, bytes int64, root int32, text *byte, room int32) int32
	gather    func(group uintptr, p unsafe.Pointer, bytes, chunk int64, text *byte, room int32) int32
	free      func(group uintptr)
}

const environment = "AUTOGLM_GLOO"

var loaded struct {
	sync.Once
	lib *library
	err error
}

func load() (*library, error) {
	loaded.Do(func() {
		path := os.Getenv(environment)
		if path == "" {
			var self string
			if self, loaded.err = os.Executable(); loaded.err != nil {
				return
			}
			path = filepath.Join(filepath.Dir(self), "libautoglm-gloo.so")
		}
		loaded.lib, loaded.err = open(path)
	})
	return loaded.lib, loaded.err
}

func open(path string) (*library, error) {
	lib, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return nil, fmt.Errorf("%s can't be loaded (%w): run `autoglm libtorch fit` where gloo's headers are (apt-get install libgloo-dev), or set %s to the file", path, err, environment)
	}
	l := &library{}
	for _, s := range []struct {
		f    any
		name string
	}{
		{&l.store, "autoglm_gloo_store"},
		{&l.join, "autoglm_gloo_join"},
		{&l.sum, "autoglm_gloo_sum"},
		{&l.broadcast, "autoglm_gloo_broadcast"},
		{&l.gather, "autoglm_gloo_gather"},
		{&l.free, "autoglm_gloo_free"},
	} {
		p, err := purego.Dlsym(lib, s.name)
		if err != nil {
			return nil, fmt.Errorf("%s has no %s: it is of another autoglm; run `autoglm libtorch fit` again: %w", path, s.name, err)
		}
		purego.RegisterFunc(s.f, p)
	}
	return l, nil
}

// group is a rank's end.
type group struct {
	*library
	place  ring.Place
	thread *ring.Thread

	// Of the thread.
	handle uintptr
	text   [1024]byte
}

// check turns a result into an error.
func (g *group) check(code int32) error {
	if code == 0 {
		return nil
	}
	n := 0
	for n < len(g.text) && g.text[n] != 0 {
		n++
	}
	return errors.New(string(g.text[:n]))
}

func millis(d time.Duration) int32 { return int32(min(max(d.Milliseconds(), 1), 1<<30)) }

// join implements ring.Library.
func join(p ring.Place) (ring.Collectives, error) {
	l, err := load()
	if err != nil {
		return nil, err
	}
	g := &group{library: l, place: p, thread: ring.NewThread()}
	if err := g.join(); err != nil {
		return nil, errors.Join(err, g.Close(false))
	}
	return g, nil
}

// join opens the store at rank 0, tells the others where it is, and connects all.
func (g *group) join() error {
	p := g.place
	rank, world := int32(p.Rank), int32(p.World)
	run := func(f func() error) error { return g.thread.Run(time.Until(p.Deadline), p.Quit, f) }
	var port int32
	meet := func(host string, master int32) error {
		return run(func() error {
			return g.check(g.store(&g.handle, host, &port, master, rank, world, millis(time.Until(p.Deadline)), &g.text[0], int32(len(g.text))))
		})
	}
	var at []byte
	if rank == 0 {
		if err := meet(p.Address, 1); err != nil {
			return fmt.Errorf("open the store: %w", err)
		}
		at = append(binary.LittleEndian.AppendUint32(nil, uint32(port)), p.Address...)
	}
	at, err := p.Tell(at)
	if err != nil {
		return err
	}
	if len(at) < 5 {
		return errors.New("rank 0 does not say where its store is")
	}
	if rank != 0 {
		port = int32(binary.LittleEndian.Uint32(at))
		if err := meet(string(at[4:]), 0); err != nil {
			return fmt.Errorf("reach the store of rank 0: %w", err)
		}
	}
	return run(func() error {
		return g.check(g.library.join(g.handle, p.Address, millis(p.Timeout), &g.text[0], int32(len(g.text))))
	})
}

// Do implements ring.Collectives. It returns at once when the ring has ended.
func (g *group) Do(op *ring.Op) error {
	return g.thread.Run(g.place.Timeout, g.place.Quit, func() error { return g.carry(op) })
}

func (g *group) carry(op *ring.Op) error {
	p, n, room := unsafe.Pointer(&op.Data[0]), int64(len(op.Data)), int32(len(g.text))
	switch op.Kind {
	case ring.AllReduce, ring.ReduceScatter: // which not every Gloo has: the rest of the buffer is as good
		return g.check(g.sum(g.handle, p, n/4, &g.text[0], room))
	case ring.Broadcast:
		return g.check(g.broadcast(g.handle, p, n, op.Root, &g.text[0], room))
	case ring.AllGather:
		_, chunk := op.Share(0, g.place.World)
		return g.check(g.gather(g.handle, p, n, int64(chunk), &g.text[0], room))
	}
	return fmt.Errorf("gloo is not asked for a %s", op.Kind)
}

// finalLimit bounds how long Gloo's connections take to close.
const finalLimit = 5 * time.Second

// Close implements ring.Collectives.
func (g *group) Close(bool) error {
	err := g.thread.Run(finalLimit, nil, func() error {
		if g.handle != 0 {
			g.free(g.handle)
		}
		return nil
	})
	return errors.Join(err, g.thread.Close())
}

func init() {
	ring.Register(ring.Library{
		Name:  ring.Gloo,
		Check: func() error { _, err := load(); return err },
		Join:  join,
	})
}
