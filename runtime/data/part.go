package data

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
)

// A part is one file of examples, all integers little-endian:
//
//	offset  size  what
//	0       8     magic "AGLMPART"
//	8       4     version, 1
//	12      4     zero
//	16      …     records
//
//	record: 4 length n (below 2^31) | 4 CRC-32C of the payload | n payload
//	payload: 1 flags (1 continued, 2 more)
//	         uvarint length, id
//	         uvarint count of segments, then each:
//	           1 role (0 none, 1 system, 2 user, 3 assistant), +128 when scored
//	           uvarint length, UTF-8 text
//
//	end: 4 0xFFFFFFFF | 8 examples | 8 text bytes | 8 scored bytes | 4 CRC-32C of those 24 bytes
//
// A file without its end was cut off and is refused.
const (
	partMagic   = "AGLMPART"
	partVersion = 1
	partEnd     = 0xFFFFFFFF
	maxPayload  = 1 << 30
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var roleTokens = [...]string{"", System, User, Assistant}

// rawSegment is a segment whose text lives in the pipeline's buffers.
type rawSegment struct {
	role   byte
	scored bool
	text   []byte
}

const (
	flagContinued = 1
	flagMore      = 2
)

func appendPayload(b []byte, id []byte, segs []rawSegment, flags byte) []byte {
	b = append(b, flags)
	b = binary.AppendUvarint(b, uint64(len(id)))
	b = append(b, id...)
	b = binary.AppendUvarint(b, uint64(len(segs)))
	for _, s := range segs {
		r := s.role
		if s.scored {
			r |= 128
		}
		b = append(b, r)
		b = binary.AppendUvarint(b, uint64(len(s.text)))
		b = append(b, s.text...)
	}
	return b
}

var errPayload = errors.New("damaged record")

// parsePayload calls visit for each segment.
func parsePayload(b []byte, visit func(role byte, scored bool, text []byte)) (flags byte, id []byte, err error) {
	take := func() ([]byte, bool) {
		n, k := binary.Uvarint(b)
		if k <= 0 || n > uint64(len(b)-k) {
			return nil, false
		}
		v := b[k : k+int(n)]
		b = b[k+int(n):]
		return v, true
	}
	if len(b) < 1 || b[0] > flagContinued|flagMore {
		return 0, nil, errPayload
	}
	flags, b = b[0], b[1:]
	id, ok := take()
	if !ok {
		return 0, nil, errPayload
	}
	n, k := binary.Uvarint(b)
	if k <= 0 || n > uint64(len(b)) {
		return 0, nil, errPayload
	}
	b = b[k:]
	for range n {
		if len(b) < 1 || b[0]&127 > 3 {
			return 0, nil, errPayload
		}
		r := b[0]
		b = b[1:]
		text, ok := take()
		if !ok {
			return 0, nil, errPayload
		}
		visit(r&127, r&128 != 0, text)
	}
	if len(b) != 0 {
		return 0, nil, errPayload
	}
	return flags, id, nil
}

// partWriter writes one part.
type partWriter struct {
	path  string
	f     io.WriteCloser
	w     *bufio.Writer
	sum   hash.Hash
	count PartCount
	head  [8]byte
}

// PartCount is what a part holds.
type PartCount struct {
	Examples    int64  `json:"examples"`
	Documents   int64  `json:"documents"`    // examples, with the pieces of one long text as one
	Bytes       int64  `json:"bytes"`        // UTF-8 bytes of all texts, without special tokens
	ScoredBytes int64  `json:"scored_bytes"` // of those that count in the loss
	SHA256      string `json:"sha256"`       // of the part's file
}

func newPartWriter(create createFunc, path string) (*partWriter, error) {
	f, err := create(path)
	if err != nil {
		return nil, writeError(path, err)
	}
	p := &partWriter{path: path, f: f, sum: sha256.New()}
	p.w = bufio.NewWriterSize(io.MultiWriter(f, p.sum), 256<<10)
	head := binary.LittleEndian.AppendUint32([]byte(partMagic), partVersion)
	_, err = p.w.Write(append(head, 0, 0, 0, 0))
	return p, writeError(path, err)
}

func (p *partWriter) write(payload []byte, all, scored int64) error {
	binary.LittleEndian.PutUint32(p.head[:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(p.head[4:], crc32.Checksum(payload, castagnoli))
	if _, err := p.w.Write(p.head[:]); err != nil {
		return writeError(p.path, err)
	}
	if _, err := p.w.Write(payload); err != nil {
		return writeError(p.path, err)
	}
	p.count.Examples++
	if payload[0]&flagContinued == 0 {
		p.count.Documents++
	}
	p.count.Bytes += all
	p.count.ScoredBytes += scored
	return nil
}

// finish writes the end, syncs and closes.
func (p *partWriter) finish() (PartCount, error) {
	b := make([]byte, 0, 24)
	b = binary.LittleEndian.AppendUint64(b, uint64(p.count.Examples))
	b = binary.LittleEndian.AppendUint64(b, uint64(p.count.Bytes))
	b = binary.LittleEndian.AppendUint64(b, uint64(p.count.ScoredBytes))
	out := binary.LittleEndian.AppendUint32(nil, partEnd)
	out = append(out, b...)
	out = binary.LittleEndian.AppendUint32(out, crc32.Checksum(b, castagnoli))
	_, err := p.w.Write(out)
	if err == nil {
		err = p.w.Flush()
	}
	if s, ok := p.f.(interface{ Sync() error }); ok && err == nil {
		err = s.Sync()
	}
	if cerr := p.f.Close(); err == nil {
		err = cerr
	}
	p.count.SHA256 = hex.EncodeToString(p.sum.Sum(nil))
	return p.count, writeError(p.path, err)
}

// PartReader iterates the examples of one part. It is for one goroutine.
type PartReader struct {
	path     string
	f        io.ReadCloser
	r        *bufio.Reader
	buf      []byte
	examples uint64
	all      int64
	scored   int64
	done     bool
}

// PartFile names the file of a part ("train", "valid" or "test") in dir.
func PartFile(dir, part string) string { return filepath.Join(dir, part+".part") }

// OpenPart opens part "train", "valid" or "test" of a prepared folder. The caller
// closes it.
func OpenPart(dir, part string) (*PartReader, error) {
	path := PartFile(dir, part)
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open part %s: %w", part, err)
	}
	p, err := newPartReader(path, f)
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return p, nil
}

func newPartReader(path string, f io.ReadCloser) (*PartReader, error) {
	p := &PartReader{path: path, f: f, r: bufio.NewReaderSize(f, 256<<10)}
	var head [16]byte
	if _, err := io.ReadFull(p.r, head[:]); err != nil || string(head[:8]) != partMagic {
		return nil, &InputError{File: path, Msg: "is not a part of a prepared dataset", Hint: "prepare the data again"}
	}
	if v := binary.LittleEndian.Uint32(head[8:]); v != partVersion {
		return nil, &InputError{File: path, Msg: fmt.Sprintf("has format version %d; this program reads %d", v, partVersion), Hint: "prepare the data again"}
	}
	return p, nil
}

func (p *PartReader) damaged(what string) error {
	return &InputError{File: p.path, Msg: fmt.Sprintf("%s after example %d", what, p.examples), Hint: "prepare the data again"}
}

// payload gives the next record's payload, valid until the next call.
func (p *PartReader) payload() ([]byte, error) {
	if p.done {
		return nil, io.EOF
	}
	var head [8]byte
	if _, err := io.ReadFull(p.r, head[:4]); err != nil {
		return nil, p.damaged("file is cut off")
	}
	n := binary.LittleEndian.Uint32(head[:4])
	if n == partEnd {
		var end [28]byte
		if _, err := io.ReadFull(p.r, end[:]); err != nil {
			return nil, p.damaged("file is cut off")
		}
		if crc32.Checksum(end[:24], castagnoli) != binary.LittleEndian.Uint32(end[24:]) ||
			binary.LittleEndian.Uint64(end[:]) != p.examples || int64(binary.LittleEndian.Uint64(end[8:])) != p.all {
			return nil, p.damaged("count or checksum does not agree")
		}
		p.done = true
		return nil, io.EOF
	}
	if n > maxPayload {
		return nil, p.damaged("record is damaged")
	}
	if _, err := io.ReadFull(p.r, head[4:]); err != nil {
		return nil, p.damaged("file is cut off")
	}
	// grow as bytes come in, so that a damaged length cannot take all memory
	p.buf = p.buf[:0]
	for uint32(len(p.buf)) < n {
		k := min(int(n)-len(p.buf), max(1<<20, len(p.buf)))
		p.buf = append(p.buf, make([]byte, k)...)
		if _, err := io.ReadFull(p.r, p.buf[len(p.buf)-k:]); err != nil {
			return nil, p.damaged("file is cut off")
		}
	}
	if crc32.Checksum(p.buf, castagnoli) != binary.LittleEndian.Uint32(head[4:]) {
		return nil, p.damaged("checksum does not agree")
	}
	p.examples++
	return p.buf, nil
}

// Next gives the next example, and io.EOF after the last. Damage is an InputError.
func (p *PartReader) Next() (Example, error) {
	b, err := p.payload()
	if err != nil {
		return Example{}, err
	}
	var e Example
	flags, id, err := parsePayload(b, func(role byte, scored bool, text []byte) {
		e.Segments = append(e.Segments, Segment{Role: roleTokens[role], Text: string(text), Scored: scored})
		p.all += int64(len(text))
		if scored {
			p.scored += int64(len(text))
		}
	})
	if err != nil {
		return Example{}, p.damaged("record is damaged")
	}
	e.ID, e.Continued, e.More = string(id), flags&flagContinued != 0, flags&flagMore != 0
	return e, nil
}

// Close closes the file.
func (p *PartReader) Close() error { return p.f.Close() }
