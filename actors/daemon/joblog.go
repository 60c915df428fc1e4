package daemon

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/open-autoglm/autoglm/runtime/journal"
)

// A job's journal is a stream of the leader's. Its records carry the epoch of the
// node that wrote them and count up within it, so that a record that was sent twice
// is kept once, and one of a node that the job was taken from is refused.
//
//	stream: u64 epoch, LE | u64 sequence, LE | the record
//	body of an append: repeated: u32 length, LE | record

func jobStream(id string) string { return "job/" + id }

const entryHead = 16

func encodeEntry(epoch, seq uint64, rec []byte) []byte {
	b := make([]byte, 0, entryHead+len(rec))
	b = binary.LittleEndian.AppendUint64(b, epoch)
	b = binary.LittleEndian.AppendUint64(b, seq)
	return append(b, rec...)
}

func decodeEntry(b []byte) (epoch, seq uint64, rec []byte, err error) {
	if len(b) < entryHead {
		return 0, 0, nil, errors.New("a journal's entry is cut off")
	}
	return binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]), b[entryHead:], nil
}

func appendFrame(b, rec []byte) []byte {
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(rec))), rec...)
}

// maxBatch bounds the body of an append, bytes.
const maxBatch = journal.MaxRecord + 4

func readFrames(r io.Reader, visit func([]byte) error) error {
	br := bufio.NewReader(r)
	for {
		var head [4]byte
		if _, err := io.ReadFull(br, head[:]); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		n := binary.LittleEndian.Uint32(head[:])
		if n > journal.MaxRecord {
			return fmt.Errorf("a record of %d bytes, at most %d travel", n, journal.MaxRecord)
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(br, b); err != nil {
			return err
		}
		if err := visit(b); err != nil {
			return err
		}
	}
}

// jobLog is a job's journal.Log on the node that carries it out. Append waits for
// the next leader when one is lost; it fails when ctx ends, or with errTaken when
// the job is another node's by now.
type jobLog struct {
	d     *Daemon
	ctx   context.Context // of the run: a Log's methods have none
	id    string
	epoch uint64
	seq   uint64 // of the next record
	wait  []byte // frames without sync, which go with the next one
	first uint64 // sequence of wait's first
}

var errTaken = errors.New("the job was given to another node")

// Append implements journal.Log.
func (l *jobLog) Append(rec []byte, sync bool) error {
	if len(l.wait) == 0 {
		l.first = l.seq
	}
	l.wait = appendFrame(l.wait, rec)
	l.seq++
	if !sync && len(l.wait) < 64<<10 {
		return nil
	}
	return l.flush()
}

func (l *jobLog) flush() error {
	if len(l.wait) == 0 {
		return nil
	}
	path := fmt.Sprintf("/internal/jobs/%s/log?epoch=%d&seq=%d", l.id, l.epoch, l.first)
	err := l.d.toLeader(l.ctx, http.MethodPost, path, l.wait, nil)
	if err == nil {
		l.wait = l.wait[:0]
	}
	return err
}

// Replay implements journal.Log.
func (l *jobLog) Replay(f func([]byte) error) error {
	if err := l.flush(); err != nil {
		return err
	}
	var all [][]byte
	err := l.d.toLeader(l.ctx, http.MethodGet, fmt.Sprintf("/internal/jobs/%s/log", l.id), nil, func(r io.Reader) error {
		all = all[:0]
		return readFrames(r, func(b []byte) error {
			all = append(all, b)
			return nil
		})
	})
	if err != nil {
		return err
	}
	for _, b := range all {
		if err := f(b); err != nil {
			return err
		}
	}
	return nil
}

// Close implements journal.Log.
func (l *jobLog) Close() error { return nil }
