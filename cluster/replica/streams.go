package replica

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/hashicorp/raft"
)

// Bounds.
const (
	MaxRecord = 8 << 20 // bytes
	maxName   = 255
)

type op byte

const (
	opAppend op = 1
	opDelete op = 2
)

// ErrStale means that this node leads no longer, or leads again under another term.
var ErrStale = errors.New("another node leads, or this one under a new term")

type command struct {
	op     op
	term   uint64
	stream string
	record []byte
}

func (c command) encode() []byte {
	b := make([]byte, 0, 10+len(c.stream)+len(c.record))
	b = append(b, byte(c.op))
	b = binary.LittleEndian.AppendUint64(b, c.term)
	b = append(b, byte(len(c.stream)))
	b = append(b, c.stream...)
	return append(b, c.record...)
}

func decodeCommand(b []byte) (command, error) {
	if len(b) < 10 || len(b) < 10+int(b[9]) {
		return command{}, errors.New("not a command")
	}
	n := int(b[9])
	return command{op: op(b[0]), term: binary.LittleEndian.Uint64(b[1:]), stream: string(b[10 : 10+n]), record: b[10+n:]}, nil
}

// streams is raft's state machine: a file a stream. Nothing here is synced: what is
// lost is made again from raft's log.
type streams struct {
	dir  string
	warn func(error)

	mu    sync.Mutex
	files map[string]*stream
}

type stream struct {
	f    *os.File
	size int64
	tail []byte // records that a full disk has not taken yet
}

// newStreams begins with an empty folder.
func newStreams(dir string, warn func(error)) (*streams, error) {
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return &streams{dir: dir, warn: warn, files: map[string]*stream{}}, nil
}

// path of a stream: names may hold anything.
func (s *streams) path(name string) string {
	return filepath.Join(s.dir, hex.EncodeToString([]byte(name)))
}

// Apply implements raft.FSM.
func (s *streams) Apply(l *raft.Log) any { return s.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch implements raft.BatchingFSM. What it returns for a command is why it
// had no effect.
func (s *streams) ApplyBatch(logs []*raft.Log) []any {
	out := make([]any, len(logs))
	s.mu.Lock()
	defer s.mu.Unlock()
	touched := map[string]*stream{}
	for i, l := range logs {
		if l.Type != raft.LogCommand {
			continue
		}
		c, err := decodeCommand(l.Data)
		if err == nil && c.term != l.Term {
			err = ErrStale
		}
		if err != nil {
			out[i] = err
			continue
		}
		switch c.op {
		case opAppend:
			f, err := s.open(c.stream)
			if err != nil { // an empty file could not be made: nothing was there to lose
				s.warn(err)
				f = &stream{}
				s.files[c.stream] = f
			}
			f.tail = appendRecord(f.tail, c.record)
			touched[c.stream] = f
		case opDelete:
			if f, ok := s.files[c.stream]; ok {
				f.close()
				delete(s.files, c.stream)
				delete(touched, c.stream)
				_ = os.Remove(s.path(c.stream))
			}
		}
	}
	for name, f := range touched {
		if err := s.flush(name, f); err != nil {
			s.warn(err)
		}
	}
	return out
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func appendRecord(b, record []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(record)))
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(record, castagnoli))
	return append(b, record...)
}

// open finds or makes a stream's file; the lock is held.
func (s *streams) open(name string) (*stream, error) {
	if f, ok := s.files[name]; ok {
		return f, nil
	}
	file, err := os.OpenFile(s.path(name), os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	f := &stream{f: file}
	s.files[name] = f
	return f, nil
}

// flush writes a stream's tail. Where the disk is full the tail stays in memory,
// whole, and the next flush tries again; the lock is held.
func (s *streams) flush(name string, f *stream) error {
	if len(f.tail) == 0 {
		return nil
	}
	if f.f == nil {
		file, err := os.OpenFile(s.path(name), os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		f.f = file
	}
	if _, err := f.f.WriteAt(f.tail, f.size); err != nil {
		return err
	}
	f.size += int64(len(f.tail))
	f.tail = nil
	return nil
}

func (f *stream) close() {
	if f.f != nil {
		_ = f.f.Close()
	}
}

// replay calls visit with each record of a stream that is there now.
func (s *streams) replay(name string, visit func([]byte) error) error {
	s.mu.Lock()
	f, ok := s.files[name]
	if !ok {
		s.mu.Unlock()
		return nil
	}
	tail := f.tail
	var r io.Reader = bytes.NewReader(tail)
	if f.f != nil {
		// A descriptor of its own, so that a deletion does not end the reading.
		file, err := os.Open(s.path(name))
		if err != nil {
			s.mu.Unlock()
			return err
		}
		defer file.Close()
		r = io.MultiReader(io.NewSectionReader(file, 0, f.size), r)
	}
	s.mu.Unlock()
	return readRecords(bufio.NewReaderSize(r, 64<<10), visit)
}

func readRecords(r io.Reader, visit func([]byte) error) error {
	var head [8]byte
	var buf []byte
	for {
		if _, err := io.ReadFull(r, head[:]); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		n := binary.LittleEndian.Uint32(head[:])
		if n > MaxRecord {
			return fmt.Errorf("a record of %d bytes", n)
		}
		buf = slices.Grow(buf[:0], int(n))[:n]
		if _, err := io.ReadFull(r, buf); err != nil {
			return err
		}
		if crc32.Checksum(buf, castagnoli) != binary.LittleEndian.Uint32(head[4:]) {
			return errors.New("a record is damaged")
		}
		if err := visit(buf); err != nil {
			return err
		}
	}
}

func (s *streams) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.files))
}

func (s *streams) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.files {
		f.close()
	}
}

const snapMagic = "AGLSNAP\x01"

// snapshot is the streams as they were: files only grow, so that their sizes and
// descriptors are enough.
type snapshot struct{ parts []part }

type part struct {
	name string
	f    *os.File
	size int64
}

// Snapshot implements raft.FSM.
func (s *streams) Snapshot() (raft.FSMSnapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	snap := &snapshot{}
	for _, name := range slices.Sorted(maps.Keys(s.files)) {
		f := s.files[name]
		if err := s.flush(name, f); err != nil {
			snap.Release()
			return nil, err
		}
		if f.f == nil {
			continue
		}
		file, err := os.Open(s.path(name))
		if err != nil {
			snap.Release()
			return nil, err
		}
		snap.parts = append(snap.parts, part{name, file, f.size})
	}
	return snap, nil
}

// Persist implements raft.FSMSnapshot.
func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.write(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (s *snapshot) write(w io.Writer) error {
	if _, err := io.WriteString(w, snapMagic); err != nil {
		return err
	}
	for _, p := range s.parts {
		head := append([]byte{byte(len(p.name))}, p.name...)
		head = binary.LittleEndian.AppendUint64(head, uint64(p.size))
		if _, err := w.Write(head); err != nil {
			return err
		}
		if _, err := io.Copy(w, io.NewSectionReader(p.f, 0, p.size)); err != nil {
			return err
		}
	}
	return nil
}

// Release implements raft.FSMSnapshot.
func (s *snapshot) Release() {
	for _, p := range s.parts {
		_ = p.f.Close()
	}
}

// Restore implements raft.FSM.
func (s *streams) Restore(r io.ReadCloser) error {
	defer r.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, f := range s.files {
		f.close()
		_ = os.Remove(s.path(name))
	}
	clear(s.files)
	return readSnapshot(bufio.NewReaderSize(r, 1<<16), func(name string, body io.Reader, size int64) error {
		f, err := s.open(name)
		if err != nil {
			return err
		}
		n, err := io.Copy(f.f, body)
		if err != nil {
			return err
		}
		if n != size {
			return io.ErrUnexpectedEOF
		}
		f.size = n
		return nil
	})
}

// readSnapshot calls visit with each stream; the body is to be read to its end.
func readSnapshot(r *bufio.Reader, visit func(name string, body io.Reader, size int64) error) error {
	magic := make([]byte, len(snapMagic))
	if _, err := io.ReadFull(r, magic); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	if string(magic) != snapMagic {
		return errors.New("not a snapshot of this version")
	}
	for {
		n, err := r.ReadByte()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		head := make([]byte, int(n)+8)
		if _, err := io.ReadFull(r, head); err != nil {
			return fmt.Errorf("snapshot: %w", err)
		}
		size := int64(binary.LittleEndian.Uint64(head[n:]))
		if size < 0 {
			return errors.New("snapshot: a stream of negative size")
		}
		if err := visit(string(head[:n]), io.LimitReader(r, size), size); err != nil {
			return err
		}
	}
}

// ReadBackup calls visit with each record of a Store's Backup, stream by stream in
// the order of their names. Visit must not keep the record.
func ReadBackup(r io.Reader, visit func(stream string, record []byte) error) error {
	return readSnapshot(bufio.NewReaderSize(r, 64<<10), func(name string, body io.Reader, _ int64) error {
		err := readRecords(body, func(rec []byte) error { return visit(name, rec) })
		if err != nil {
			return fmt.Errorf("stream %s: %w", name, err)
		}
		return nil
	})
}
