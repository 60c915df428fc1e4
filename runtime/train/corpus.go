package train

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Corpus is one part of the data as token ids, memory-mapped. It is read-only
// and may be shared.
//
//	file, little endian:
//	+--------------------+
//	| "AGLMTOK" 0x01     |  magic and version, 8 bytes
//	| u64 tokens         |  n
//	| u64 documents      |  d
//	| u64 bytes          |  of the scored text
//	+--------------------+
//	| d × u64            |  where each document starts, in tokens
//	| n × u32            |  id in the low 31 bits; the top bit is set where the
//	|                    |  token is scored as a target
//	+--------------------+
type Corpus struct {
	mem    []byte
	tokens []uint32
	docs   []uint64
	bytes  int64
}

const (
	corpusHeader = 32
	scoredBit    = 1 << 31
)

var corpusMagic = []byte("AGLMTOK\x01")

// CorpusWriter lays a corpus down, document by document.
type CorpusWriter struct {
	path  string
	f     *os.File
	w     *bufio.Writer
	n     uint64
	docs  []uint64
	bytes int64

	marked []uint32 // scratch
	buf    []byte   // scratch
}

// CreateCorpus starts a corpus; Close puts it in place, Abort drops it.
func CreateCorpus(path string) (*CorpusWriter, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".corpus.*")
	if err != nil {
		return nil, err
	}
	return &CorpusWriter{path: path, f: f, w: bufio.NewWriterSize(f, 1<<20)}, nil
}

// Begin starts a document.
func (w *CorpusWriter) Begin() { w.docs = append(w.docs, w.n) }

// Add appends ids to the document; scored tells whether they are targets of the
// loss. textBytes is the length of the text that scored ids stand for.
func (w *CorpusWriter) Add(ids []int32, scored bool, textBytes int) error {
	mark := uint32(0)
	if scored {
		mark = scoredBit
	} else {
		textBytes = 0
	}
	w.marked = w.marked[:0]
	for _, id := range ids {
		w.marked = append(w.marked, uint32(id)|mark)
	}
	return w.addMarked(w.marked, textBytes)
}

// addMarked appends ids that carry the scored bit where they are; textBytes is
// the length of those' text.
func (w *CorpusWriter) addMarked(tokens []uint32, textBytes int) error {
	w.buf = w.buf[:0]
	for _, t := range tokens {
		w.buf = binary.LittleEndian.AppendUint32(w.buf, t)
	}
	w.n += uint64(len(tokens))
	w.bytes += int64(textBytes)
	_, err := w.w.Write(w.buf)
	return err
}

// Abort drops what was written.
func (w *CorpusWriter) Abort() {
	w.f.Close()
	os.Remove(w.f.Name())
}

// Close writes the file's end and puts it in place. The index of documents goes
// before the tokens, so the file is written a second time when there are many.
func (w *CorpusWriter) Close() (err error) {
	defer func() {
		if err != nil {
			w.Abort()
		}
	}()
	if err := w.w.Flush(); err != nil {
		return err
	}
	out, err := os.CreateTemp(filepath.Dir(w.path), ".corpus.*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			out.Close()
			os.Remove(out.Name())
		}
	}()
	bw := bufio.NewWriterSize(out, 1<<20)
	bw.Write(corpusMagic)
	head := binary.LittleEndian.AppendUint64(nil, w.n)
	head = binary.LittleEndian.AppendUint64(head, uint64(len(w.docs)))
	head = binary.LittleEndian.AppendUint64(head, uint64(w.bytes))
	for _, d := range w.docs {
		head = binary.LittleEndian.AppendUint64(head, d)
	}
	if _, err := bw.Write(head); err != nil {
		return err
	}
	if _, err := w.f.Seek(0, 0); err != nil {
		return err
	}
	if _, err := bw.ReadFrom(w.f); err != nil {
		return err
	}
	if err := errors.Join(bw.Flush(), out.Sync(), out.Chmod(0o644), out.Close()); err != nil {
		return err
	}
	if err := os.Rename(out.Name(), w.path); err != nil {
		return err
	}
	w.Abort()
	return nil
}

// OpenCorpus maps a corpus file. Call Close when nothing reads it any more.
func OpenCorpus(path string) (*Corpus, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	damaged := func(why string) (*Corpus, error) {
		return nil, fmt.Errorf("token file %s: %s; delete it and build again", path, why)
	}
	if info.Size() < corpusHeader {
		return damaged("is cut off")
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("token file %s: %w", path, err)
	}
	if string(mem[:8]) != string(corpusMagic) {
		unix.Munmap(mem)
		return damaged("has another format")
	}
	n, d := binary.LittleEndian.Uint64(mem[8:]), binary.LittleEndian.Uint64(mem[16:])
	if n > 1<<40 || d > 1<<40 || uint64(info.Size()) != corpusHeader+8*d+4*n {
		unix.Munmap(mem)
		return damaged("has the wrong length")
	}
	c := &Corpus{mem: mem, bytes: int64(binary.LittleEndian.Uint64(mem[24:]))}
	if d > 0 {
		c.docs = unsafe.Slice((*uint64)(unsafe.Pointer(&mem[corpusHeader])), d)
	}
	for i, at := range c.docs {
		if at > n || i == 0 && at != 0 || i > 0 && at < c.docs[i-1] {
			unix.Munmap(mem)
			return damaged("has a damaged index")
		}
	}
	if n > 0 {
		c.tokens = unsafe.Slice((*uint32)(unsafe.Pointer(&mem[corpusHeader+8*d])), n)
	}
	return c, nil
}

// Close unmaps the file.
func (c *Corpus) Close() error { return unix.Munmap(c.mem) }

// Tokens is the number of tokens.
func (c *Corpus) Tokens() int64 { return int64(len(c.tokens)) }

// Docs is the number of documents.
func (c *Corpus) Docs() int { return len(c.docs) }

// Bytes is the length of the scored text.
func (c *Corpus) Bytes() int64 { return c.bytes }

// doc returns where document i starts and ends.
func (c *Corpus) doc(i int) (from, to int) {
	from, to = int(c.docs[i]), len(c.tokens)
	if i+1 < len(c.docs) {
		to = int(c.docs[i+1])
	}
	return from, to
}
