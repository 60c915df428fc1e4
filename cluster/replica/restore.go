package replica

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/open-autoglm/autoglm/runtime/durable"
)

// Verify reads a backup to its end and counts its streams: all must be whole.
func Verify(r io.Reader) (streams int, err error) {
	err = readSnapshot(bufio.NewReaderSize(r, 1<<16), func(name string, body io.Reader, size int64) error {
		read := &counted{r: body}
		if err := readRecords(bufio.NewReaderSize(read, 64<<10), func([]byte) error { return nil }); err != nil {
			return fmt.Errorf("stream %q: %w", name, err)
		}
		if read.n != size {
			return fmt.Errorf("stream %q: %w", name, io.ErrUnexpectedEOF)
		}
		streams++
		return nil
	})
	return streams, err
}

type counted struct {
	r io.Reader
	n int64
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	return n, err
}

// ErrHasJournal means that a folder to restore into has a copy already.
var ErrHasJournal = errors.New("holds a journal already")

// restoredTerm is the term of what a backup holds; the first election brings the next.
const restoredTerm = 1

// Restore makes of a backup a copy that Open takes for one whose only voter it is.
// The cluster that made the backup must be gone: two that go on from one history
// know nothing of each other. Dir must not be there, or be empty.
func Restore(dir string, backup io.ReadSeeker) (err error) {
	if list, err := os.ReadDir(dir); err == nil && len(list) > 0 {
		return fmt.Errorf("%s %w", dir, ErrHasJournal)
	}
	if _, err := Verify(backup); err != nil {
		return fmt.Errorf("the backup is damaged: %w", err)
	}
	if _, err := backup.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	gen := make([]byte, 4)
	if _, err := rand.Read(gen); err != nil {
		return err
	}
	server := "restored/" + hex.EncodeToString(gen)
	snaps, err := raft.NewFileSnapshotStoreWithLogger(dir, 2, hclog.NewNullLogger())
	if err != nil {
		return err
	}
	// The address is put right by the first leader, which is this copy.
	only := raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(server), Address: "restored:0"}}}
	_, trans := raft.NewInmemTransport("restored:0") // encodes addresses in the snapshot's description
	sink, err := snaps.Create(raft.SnapshotVersionMax, 1, restoredTerm, only, 1, trans)
	if err != nil {
		return err
	}
	if _, err := io.Copy(sink, backup); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	if err := sink.Close(); err != nil {
		return err
	}
	log, err := openLog(dir)
	if err != nil {
		return err
	}
	if err := errors.Join(log.SetUint64([]byte("CurrentTerm"), restoredTerm), log.Close()); err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(dir, aloneFile), []byte("this copy is the only voter\n")); err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, idFile), []byte(server+"\n"))
}
