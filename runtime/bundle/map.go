package bundle

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Use opens a bundle as Open does and gives it to f, but for its weights: those are not
// read but mapped, so that only what f makes of them takes memory. Params are valid until
// f returns, in f's own goroutine, and nil afterwards; they may not be written. Tensors
// that are not float32 in the file are converted, into memory of their own.
//
// Whoever replaces a bundle writes a new folder and renames it (as Write does): what is
// mapped stays the old one. A file that is written in place or cut short while f runs is
// an error, of which what f made is not to be used; afterwards it doesn't matter.
func Use(dir string, f func(*Bundle) error) (*Bundle, error) {
	var files mappings
	b, err := files.use(dir, f)
	if err != nil {
		return nil, fmt.Errorf("open bundle %s: %w", dir, err)
	}
	return b, nil
}

// mappings are the files of weights of one bundle.
type mappings []mapping

// mapping is a file in memory, as it was when it was mapped.
type mapping struct {
	file *os.File
	data []byte
	info os.FileInfo
}

func (m *mappings) use(dir string, f func(*Bundle) error) (b *Bundle, err error) {
	defer m.close()
	// What lies beyond the end of a file that was cut is a fault.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			fault, ok := p.(interface{ Addr() uintptr })
			if !ok || !m.holds(fault.Addr()) {
				panic(p)
			}
			err = m.changed()
			if err == nil {
				err = fmt.Errorf("a file of weights can't be read: %v", p)
			}
		}
	}()
	if b, err = open(dir, m.tensors); err != nil {
		return nil, err
	}
	err = f(b)
	b.Params = nil
	if changed := m.changed(); changed != nil {
		err = changed
	}
	return b, err
}

// tensors maps a file of weights.
func (m *mappings) tensors(dir, name string) (tensors, error) {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return tensors{}, err
	}
	info, err := f.Stat()
	if err == nil && info.Size() == 0 {
		err = fmt.Errorf("%s is empty", name)
	}
	if err != nil {
		_ = f.Close()
		return tensors{}, err
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		_ = f.Close()
		return tensors{}, fmt.Errorf("map %s: %w", name, err)
	}
	_ = unix.Madvise(data, unix.MADV_WILLNEED) // only makes it sooner
	*m = append(*m, mapping{f, data, info})
	return tensors{ReaderAt: bytes.NewReader(data), size: info.Size(), mapped: data}, nil
}

// changed tells of a file that is not what it was.
func (m *mappings) changed() error {
	for _, x := range *m {
		now, err := x.file.Stat()
		if err != nil {
			return err
		}
		if now.Size() != x.info.Size() || !now.ModTime().Equal(x.info.ModTime()) {
			return fmt.Errorf("%s was written while it was read: write another folder and rename it", filepath.Base(x.file.Name()))
		}
	}
	return nil
}

func (m *mappings) holds(addr uintptr) bool {
	for _, x := range *m {
		first := uintptr(unsafe.Pointer(unsafe.SliceData(x.data)))
		if addr >= first && addr-first < uintptr(len(x.data)) {
			return true
		}
	}
	return false
}

func (m *mappings) close() {
	for _, x := range *m {
		_ = unix.Munmap(x.data)
		_ = x.file.Close()
	}
	*m = nil
}

// floatsAt is memory seen as float32; nil where it doesn't lie as those do.
func floatsAt(b []byte) []float32 {
	p := unsafe.Pointer(unsafe.SliceData(b))
	if len(b) == 0 || uintptr(p)%unsafe.Alignof(float32(0)) != 0 || !littleEndian {
		return nil
	}
	return unsafe.Slice((*float32)(p), len(b)/4)
}

// littleEndian tells that the machine's floats lie as the file's do.
var littleEndian = func() bool {
	one := math.Float32bits(1)
	return *(*byte)(unsafe.Pointer(&one)) == 0
}()
