package data

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"os"
)

// createFunc opens a file for writing.
type createFunc func(path string) (io.WriteCloser, error)

func createFile(path string) (io.WriteCloser, error) {
	return os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
}

// spoolRow is a cleaned row between the two passes: what the second pass needs to
// place it, and its payload as the part file will have it.
type spoolRow struct {
	group       uint64
	line        int64
	file        uint32
	all, scored uint32 // bytes of text
	payload     []byte
}

const spoolHead = 32

// spool is the file of cleaned rows, in order.
type spool struct {
	path string
	f    io.WriteCloser
	w    *bufio.Writer
	head [spoolHead]byte
	rows uint64
}

func newSpool(create createFunc, path string) (*spool, error) {
	f, err := create(path)
	if err != nil {
		return nil, writeError(path, err)
	}
	return &spool{path: path, f: f, w: bufio.NewWriterSize(f, 256<<10)}, nil
}

func (s *spool) write(r *spoolRow) error {
	h := s.head[:]
	binary.LittleEndian.PutUint32(h, uint32(len(r.payload)))
	binary.LittleEndian.PutUint32(h[4:], r.file)
	binary.LittleEndian.PutUint64(h[8:], r.group)
	binary.LittleEndian.PutUint64(h[16:], uint64(r.line))
	binary.LittleEndian.PutUint32(h[24:], r.all)
	binary.LittleEndian.PutUint32(h[28:], r.scored)
	s.rows++
	if _, err := s.w.Write(h); err != nil {
		return writeError(s.path, err)
	}
	_, err := s.w.Write(r.payload)
	return writeError(s.path, err)
}

func (s *spool) close() error {
	err := s.w.Flush()
	if cerr := s.f.Close(); err == nil {
		err = cerr
	}
	return writeError(s.path, err)
}

// each reads the rows back in order.
func (s *spool) each(visit func(ord uint64, r *spoolRow) error) error {
	f, err := os.Open(s.path)
	if err != nil {
		return fmt.Errorf("read back %s: %w", s.path, err)
	}
	defer func() { _ = f.Close() }()
	in := bufio.NewReaderSize(f, 256<<10)
	var r spoolRow
	var buf []byte
	for ord := range s.rows {
		h := s.head[:]
		if _, err := io.ReadFull(in, h); err != nil {
			return fmt.Errorf("read back %s: %w", s.path, err)
		}
		n := int(binary.LittleEndian.Uint32(h))
		if cap(buf) < n {
			buf = make([]byte, n+n/4)
		}
		r = spoolRow{
			file: binary.LittleEndian.Uint32(h[4:]), group: binary.LittleEndian.Uint64(h[8:]), line: int64(binary.LittleEndian.Uint64(h[16:])),
			all: binary.LittleEndian.Uint32(h[24:]), scored: binary.LittleEndian.Uint32(h[28:]), payload: buf[:n],
		}
		if _, err := io.ReadFull(in, r.payload); err != nil {
			return fmt.Errorf("read back %s: %w", s.path, err)
		}
		if err := visit(ord, &r); err != nil {
			return err
		}
	}
	return nil
}
