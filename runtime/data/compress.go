package data

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// compression names what the first bytes say: "", gzip, zstd, bzip2, xz, zip.
func compression(head []byte) string {
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return "gzip"
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return "zstd"
	case len(head) > 10 && bytes.HasPrefix(head, []byte("BZh")) && '1' <= head[3] && head[3] <= '9' && bytes.HasPrefix(head[4:], []byte{0x31, 0x41, 0x59, 0x26, 0x53, 0x59}):
		return "bzip2"
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return "xz"
	case bytes.HasPrefix(head, []byte("PK\x03\x04")):
		return "zip"
	}
	return ""
}

// decompress undoes the compression that the stream's first bytes show.
func decompress(name string, src io.Reader) (io.Reader, func(), string, error) {
	br := bufio.NewReaderSize(src, 256<<10)
	head, err := br.Peek(16)
	if err != nil && err != io.EOF {
		return nil, nil, "", err
	}
	none := func() {}
	kind := compression(head)
	switch kind {
	case "gzip":
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, nil, "", &InputError{File: name, Msg: "gzip header is damaged", Hint: "make the archive again", Err: err}
		}
		return &namedReader{z, name, kind}, none, kind, nil
	case "zstd":
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(128<<20))
		if err != nil {
			return nil, nil, "", &InputError{File: name, Msg: "zstd header is damaged", Hint: "make the archive again", Err: err}
		}
		return &namedReader{z, name, kind}, z.Close, kind, nil
	case "bzip2":
		return &namedReader{bzip2.NewReader(br), name, kind}, none, kind, nil
	case "xz", "zip":
		return nil, nil, "", &InputError{File: name, Msg: "is compressed with " + kind + ", which is not read", Hint: "unpack it, or use gzip, zstd or bzip2"}
	}
	return br, none, "", nil
}

// namedReader says which file and compression a damaged stream belongs to.
type namedReader struct {
	r          io.Reader
	name, kind string
}

func (n *namedReader) Read(p []byte) (int, error) {
	k, err := n.r.Read(p)
	if err != nil && err != io.EOF {
		err = &InputError{File: n.name, Msg: fmt.Sprintf("%s stream is damaged or cut off: %v", n.kind, err), Hint: "fetch or pack the file again", Err: err}
	}
	return k, err
}
