package worker

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/vmihailenco/msgpack/v5"
)

// A frame is one message:
//
//	+----------------+------------+---------+---------------+
//	| u32 length, LE | u8 version | u8 kind | msgpack body  |
//	+----------------+------------+---------+---------------+
//
// The length counts what follows it.
const (
	version  = 1
	maxFrame = 16 << 20 // a vocabulary's lengths, or the cards of 256 ranks
)

// kind says which message a frame carries.
type kind byte

// message is one of those of message.go.
type message interface{ kind() kind }

// encode lays a message out as a frame.
func encode(m message) ([]byte, error) {
	var b bytes.Buffer
	b.Write([]byte{0, 0, 0, 0, version, byte(m.kind())})
	if err := msgpack.NewEncoder(&b).Encode(m); err != nil {
		return nil, fmt.Errorf("encode %T: %w", m, err)
	}
	if n := b.Len() - 4; n > maxFrame {
		return nil, fmt.Errorf("encode %T: %d bytes, at most %d travel", m, n, maxFrame)
	}
	binary.LittleEndian.PutUint32(b.Bytes(), uint32(b.Len()-4))
	return b.Bytes(), nil
}

// readFrame reads one message. The error is io.EOF where the other side hung up
// between two frames.
func readFrame(r io.Reader) (message, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n < 2 || n > maxFrame {
		return nil, fmt.Errorf("a frame of %d bytes, 2 to %d travel", n, maxFrame)
	}
	// What was announced is not believed before it has come.
	var b bytes.Buffer
	if _, err := io.CopyN(&b, r, int64(n)); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return decode(b.Bytes())
}

// decode reads what follows a frame's length.
func decode(b []byte) (message, error) {
	if len(b) < 2 {
		return nil, fmt.Errorf("a frame of %d bytes has no kind", len(b))
	}
	if b[0] != version {
		return nil, fmt.Errorf("a frame of version %d, this autoglm speaks %d: was the binary replaced while it ran?", b[0], version)
	}
	make, ok := kinds[kind(b[1])]
	if !ok {
		return nil, fmt.Errorf("a frame of the unknown kind %d", b[1])
	}
	m := make()
	d := msgpack.NewDecoder(bytes.NewReader(b[2:]))
	if err := d.Decode(m); err != nil {
		return nil, fmt.Errorf("decode %T: %w", m, err)
	}
	return m, nil
}
