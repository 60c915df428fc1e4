package data

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
)

// mark says that the thing with number ord has hash.
type mark struct{ hash, ord uint64 }

const (
	markBytes  = 16
	partitions = 256
)

// markTable groups marks by hash without holding them all: they are partitioned
// by the hash's top byte, kept in memory up to limit and appended to one file a
// partition beyond. Its owner closes it.
type markTable struct {
	dir, name string
	limit     int // marks held in memory
	held      int
	mem       [partitions][]mark
	files     [partitions]*os.File
}

func newMarkTable(dir, name string, limit int) *markTable {
	return &markTable{dir: dir, name: name, limit: limit}
}

func (t *markTable) add(hash, ord uint64) error {
	p := hash >> 56
	t.mem[p] = append(t.mem[p], mark{hash, ord})
	if t.held++; t.held >= t.limit {
		return t.spill()
	}
	return nil
}

func (t *markTable) spill() error {
	var buf []byte
	for p := range t.mem {
		if len(t.mem[p]) == 0 {
			continue
		}
		buf = buf[:0]
		for _, m := range t.mem[p] {
			buf = binary.LittleEndian.AppendUint64(buf, m.hash)
			buf = binary.LittleEndian.AppendUint64(buf, m.ord)
		}
		if t.files[p] == nil {
			path := filepath.Join(t.dir, fmt.Sprintf("%s.%02x", t.name, p))
			f, err := os.Create(path)
			if err != nil {
				return writeError(path, err)
			}
			t.files[p] = f
		}
		if _, err := t.files[p].Write(buf); err != nil {
			return writeError(t.files[p].Name(), err)
		}
		t.mem[p] = t.mem[p][:0]
	}
	t.held = 0
	return nil
}

// groups calls visit with the numbers, ascending, of every hash that more than
// one thing has.
func (t *markTable) groups(visit func(ords []mark) error) error {
	var all []mark
	for p := range t.mem {
		all = all[:0]
		if f := t.files[p]; f != nil {
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				return err
			}
			r := bufio.NewReaderSize(f, 1<<20)
			var b [markBytes]byte
			for {
				if _, err := io.ReadFull(r, b[:]); err == io.EOF {
					break
				} else if err != nil {
					return fmt.Errorf("read %s: %w", f.Name(), err)
				}
				all = append(all, mark{binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint64(b[8:])})
			}
		}
		all = append(all, t.mem[p]...)
		slices.SortFunc(all, func(a, b mark) int {
			if c := cmp.Compare(a.hash, b.hash); c != 0 {
				return c
			}
			return cmp.Compare(a.ord, b.ord)
		})
		for i := 0; i < len(all); {
			j := i + 1
			for j < len(all) && all[j].hash == all[i].hash {
				j++
			}
			if j > i+1 {
				if err := visit(all[i:j]); err != nil {
					return err
				}
			}
			i = j
		}
	}
	return nil
}

// Close removes the files.
func (t *markTable) Close() {
	for _, f := range t.files {
		if f != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}
}

// bitmap is a set of numbers that grows.
type bitmap []uint64

func (b *bitmap) set(i uint64) {
	for uint64(len(*b)) <= i/64 {
		*b = append(*b, 0)
	}
	(*b)[i/64] |= 1 << (i % 64)
}

func (b bitmap) has(i uint64) bool {
	return i/64 < uint64(len(b)) && b[i/64]>>(i%64)&1 != 0
}
