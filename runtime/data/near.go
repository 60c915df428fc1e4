package data

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// MinHash over word triples (wide characters count as words), cut into bands for
// locality-sensitive hashing: rows that share a band are compared by their whole
// signatures. With 16 bands of 4 a pair of Jaccard 0.7 meets with probability
// 0.99, one of 0.3 with 0.12. (Broder 1997; Leskovec et al., Mining of Massive
// Datasets, ch. 3.) The estimate's standard deviation at 0.7 is 0.06.
const (
	hashes    = 64
	bandRows  = 4
	bands     = hashes / bandRows
	minShings = 8 // a shorter text is compared exactly only
)

// multipliers of the hash family h ↦ high 32 bits of a·h, a odd.
var minhashA = func() (a [hashes]uint64) {
	s := uint64(0x2545F4914F6CDD1D)
	for i := range a {
		s += prime
		a[i] = mix(s) | 1
	}
	return a
}()

// nearIndex finds near duplicates after all rows were added. Signatures are kept
// as their low bytes, 64 a row, in memory up to sigLimit rows, then in a file.
type nearIndex struct {
	threshold float64
	table     *markTable
	sigs      *sigStore
	shings    []uint64
}

func newNearIndex(dir string, threshold float64, marks, sigRows int) *nearIndex {
	return &nearIndex{threshold: threshold, table: newMarkTable(dir, "bands", marks), sigs: &sigStore{dir: dir, limit: sigRows}}
}

// add takes a folded text. Rows come with rising ord.
func (x *nearIndex) add(folded []byte, ord uint64) error {
	var h1, h2 uint64
	n := 0
	x.shings = x.shings[:0]
	words(folded, func(h uint64) bool {
		if n++; n > 2 {
			x.shings = append(x.shings, mix(h1*3+h2*0x9E3779B1+h*0x85EBCA77C2B2AE63))
		}
		h1, h2 = h2, h
		return true
	})
	if len(x.shings) < minShings {
		return nil
	}
	var sig [hashes]uint32
	minhash(&sig, x.shings)
	for b := range bands {
		k := uint64(b+1) * prime
		for r := range bandRows {
			k = mix(k ^ uint64(sig[b*bandRows+r]))
		}
		if err := x.table.add(k, ord); err != nil {
			return err
		}
	}
	return x.sigs.put(ord, &sig)
}

// minhash gives, for each of the family's functions, the least value over all
// shingles. Four functions at a time keep their minima in registers.
func minhash(sig *[hashes]uint32, shings []uint64) {
	for k := 0; k < hashes; k += 4 {
		a0, a1, a2, a3 := minhashA[k], minhashA[k+1], minhashA[k+2], minhashA[k+3]
		m0, m1, m2, m3 := ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0)
		for _, h := range shings {
			m0 = min(m0, h*a0)
			m1 = min(m1, h*a1)
			m2 = min(m2, h*a2)
			m3 = min(m3, h*a3)
		}
		sig[k], sig[k+1], sig[k+2], sig[k+3] = uint32(m0>>20), uint32(m1>>20), uint32(m2>>20), uint32(m3>>20)
	}
}

// resolve reports every row that is near to an earlier one. What is dropped does
// not hang on the order of bands: a row goes when any earlier row is near.
func (x *nearIndex) resolve(gone bitmap, drop func(ord, of uint64)) error {
	var leaders []uint64
	return x.table.groups(func(m []mark) error {
		leaders = leaders[:0]
	rows:
		for _, c := range m {
			if gone.has(c.ord) {
				continue
			}
			for _, l := range leaders {
				j, err := x.sigs.similarity(l, c.ord)
				if err != nil {
					return err
				}
				if j >= x.threshold {
					drop(c.ord, l)
					continue rows
				}
			}
			if len(leaders) < 16 {
				leaders = append(leaders, c.ord)
			}
		}
		return nil
	})
}

func (x *nearIndex) Close() {
	x.table.Close()
	x.sigs.close()
}

// sigStore holds the low byte of every minimum, a row at ord·64.
type sigStore struct {
	dir   string
	limit int
	mem   []byte
	file  *os.File
	tail  []byte // not yet written
	at    int64  // where tail begins in the file
}

func (s *sigStore) put(ord uint64, sig *[hashes]uint32) error {
	if ord < uint64(s.limit) {
		for uint64(len(s.mem)) < ord*hashes {
			s.mem = append(s.mem, make([]byte, hashes)...)
		}
		for _, v := range sig {
			s.mem = append(s.mem, byte(v))
		}
		return nil
	}
	at := int64(ord-uint64(s.limit)) * hashes
	if s.file == nil {
		path := filepath.Join(s.dir, "signatures")
		f, err := os.Create(path)
		if err != nil {
			return writeError(path, err)
		}
		s.file, s.at = f, at
	}
	if at != s.at+int64(len(s.tail)) || len(s.tail) >= 1<<20 {
		if err := s.flush(); err != nil {
			return err
		}
		s.at = at
	}
	for _, v := range sig {
		s.tail = append(s.tail, byte(v))
	}
	return nil
}

func (s *sigStore) flush() error {
	if len(s.tail) == 0 {
		return nil
	}
	_, err := s.file.WriteAt(s.tail, s.at)
	s.at += int64(len(s.tail))
	s.tail = s.tail[:0]
	return writeError(s.file.Name(), err)
}

func (s *sigStore) get(ord uint64, b *[hashes]byte) error {
	if ord < uint64(s.limit) {
		copy(b[:], s.mem[ord*hashes:])
		return nil
	}
	if err := s.flush(); err != nil {
		return err
	}
	if _, err := s.file.ReadAt(b[:], int64(ord-uint64(s.limit))*hashes); err != nil && err != io.EOF {
		return fmt.Errorf("read %s: %w", s.file.Name(), err)
	}
	return nil
}

// similarity estimates the Jaccard similarity of two rows.
func (s *sigStore) similarity(a, b uint64) (float64, error) {
	var x, y [hashes]byte
	if err := s.get(a, &x); err != nil {
		return 0, err
	}
	if err := s.get(b, &y); err != nil {
		return 0, err
	}
	same := 0
	for i := range x {
		if x[i] == y[i] {
			same++
		}
	}
	return float64(same) / hashes, nil
}

func (s *sigStore) close() {
	if s.file != nil {
		_ = s.file.Close()
		_ = os.Remove(s.file.Name())
	}
}
