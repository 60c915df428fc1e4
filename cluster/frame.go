package cluster

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/vmihailenco/msgpack/v5"
)

// maxFrame bounds a frame's body in bytes: a greeting with a node's inventory.
const maxFrame = 1 << 20

func writeFrame(w io.Writer, v any) error {
	var b bytes.Buffer
	b.Write(make([]byte, 4))
	if err := msgpack.NewEncoder(&b).Encode(v); err != nil {
		return err
	}
	n := b.Len() - 4
	if n > maxFrame {
		return fmt.Errorf("%T takes %d bytes, at most %d travel", v, n, maxFrame)
	}
	binary.LittleEndian.PutUint32(b.Bytes(), uint32(n))
	_, err := w.Write(b.Bytes())
	return err
}

func readFrame(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n > maxFrame {
		return fmt.Errorf("a frame of %d bytes, at most %d travel", n, maxFrame)
	}
	var b bytes.Buffer // what was announced is not believed before it has come
	if _, err := io.CopyN(&b, r, int64(n)); err != nil {
		return fmt.Errorf("a frame of %d bytes is cut off after %d: %w", n, b.Len(), noEOF(err))
	}
	if err := msgpack.Unmarshal(b.Bytes(), v); err != nil {
		return fmt.Errorf("a frame that is no %T: %w", v, err)
	}
	return nil
}

// noEOF tells an end in the middle from one between frames.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
