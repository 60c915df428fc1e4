package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/open-autoglm/autoglm/runtime/durable"
)

// Log stores records in order. One goroutine uses it.
type Log interface {
	// Append adds a record. With sync it is durable when Append returns nil.
	Append(record []byte, sync bool) error
	// Replay calls f with every record from the first on; f must not keep the slice.
	Replay(f func(record []byte) error) error
	Close() error
}

// ErrInUse means that another process holds the journal.
var ErrInUse = errors.New("in use by another process")

// MaxRecord is the longest record in bytes.
const MaxRecord = 16 << 20

var (
	magic = []byte("AGLMJRN\x01")
	table = crc32.MakeTable(crc32.Castagnoli)
)

// File is a Log in one file, locked against other processes while it is open.
type File struct {
	f    *os.File
	size int64 // of whole records
}

// FileName is the log's name inside its folder.
const FileName = "events.log"

// OpenFile opens or creates the log in dir, and cuts a torn tail. ErrInUse when
// another process has it open.
func OpenFile(dir string) (*File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	path := filepath.Join(dir, FileName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	l := &File{f: f}
	if err := l.open(dir); err != nil {
		f.Close()
		return nil, fmt.Errorf("journal %s: %w", path, err)
	}
	return l, nil
}

func (l *File) open(dir string) error {
	if err := unix.Flock(int(l.f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return ErrInUse
		}
		return fmt.Errorf("lock: %w", err)
	}
	info, err := l.f.Stat()
	if err != nil {
		return err
	}
	if info.Size() < int64(len(magic)) {
		if err := l.f.Truncate(0); err != nil {
			return err
		}
		if _, err := l.f.WriteAt(magic, 0); err != nil {
			return err
		}
		if err := l.f.Sync(); err != nil {
			return err
		}
		l.size = int64(len(magic))
		return durable.SyncDir(dir)
	}
	end, err := scan(l.f, info.Size(), nil)
	if err != nil {
		return err
	}
	if end < info.Size() {
		if err := l.f.Truncate(end); err != nil {
			return err
		}
		if err := l.f.Sync(); err != nil {
			return err
		}
	}
	l.size = end
	return nil
}

// scan calls visit for each whole record and returns where the last one ends.
func scan(f io.ReaderAt, size int64, visit func([]byte) error) (int64, error) {
	head := make([]byte, len(magic))
	if _, err := f.ReadAt(head, 0); err != nil {
		return 0, err
	}
	if string(head) != string(magic) {
		if string(head[:7]) == string(magic[:7]) {
			return 0, fmt.Errorf("version %d is not known to this autoglm; use a newer one", head[7])
		}
		return 0, errors.New("not a journal (wrong magic)")
	}
	at := int64(len(magic))
	var h [8]byte
	var buf []byte
	for at+8 <= size {
		if _, err := f.ReadAt(h[:], at); err != nil {
			return 0, err
		}
		n := int64(binary.LittleEndian.Uint32(h[:4]))
		if n > MaxRecord || at+8+n > size {
			break
		}
		if int64(cap(buf)) < n {
			buf = make([]byte, n)
		}
		buf = buf[:n]
		if _, err := f.ReadAt(buf, at+8); err != nil {
			return 0, err
		}
		if checksum(h[:4], buf) != binary.LittleEndian.Uint32(h[4:]) {
			if at+8+n < size {
				return 0, fmt.Errorf("record at byte %d is damaged and others follow it; restore the file from a copy", at)
			}
			break
		}
		if visit != nil {
			if err := visit(buf); err != nil {
				return 0, err
			}
		}
		at += 8 + n
	}
	return at, nil
}

func checksum(length, record []byte) uint32 {
	return crc32.Update(crc32.Checksum(length, table), table, record)
}

// Append implements Log. After an error the file holds whole records only.
func (l *File) Append(record []byte, sync bool) error {
	if len(record) > MaxRecord {
		return fmt.Errorf("journal: record of %d bytes, at most %d", len(record), MaxRecord)
	}
	b := make([]byte, 8, 8+len(record))
	binary.LittleEndian.PutUint32(b, uint32(len(record)))
	binary.LittleEndian.PutUint32(b[4:], checksum(b[:4], record))
	b = append(b, record...)
	if _, err := l.f.WriteAt(b, l.size); err != nil {
		_ = l.f.Truncate(l.size) // a full disk: take the half-written record back
		return fmt.Errorf("journal: %w", err)
	}
	if sync {
		if err := l.f.Sync(); err != nil {
			return fmt.Errorf("journal: %w", err)
		}
	}
	l.size += int64(len(b))
	return nil
}

// Replay implements Log.
func (l *File) Replay(f func([]byte) error) error {
	_, err := scan(l.f, l.size, f)
	return err
}

// Reset drops every record.
func (l *File) Reset() error {
	if err := l.f.Truncate(int64(len(magic))); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	l.size = int64(len(magic))
	return l.f.Sync()
}

// Close syncs and unlocks.
func (l *File) Close() error { return errors.Join(l.f.Sync(), l.f.Close()) }
