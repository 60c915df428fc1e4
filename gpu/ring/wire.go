package ring

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// How two ranks greet each other on a new connection. All numbers are little
// endian.
//
//	hello:  8 "AGLMRING" | 2 version | 1 purpose | 1 stream | 4 rank | 4 world |
//	        8 epoch | 2 length | fingerprint
//	answer: 1 status (0 welcome, 1 refused) | 2 length | reason
const (
	wireMagic   = "AGLMRING"
	wireVersion = 2
)

// What a connection is for.
const (
	forControl = 1
	forData    = 2 // from the dialling rank to the other
	forRelay   = 4 // between the first ranks of two hosts, both ways
)

type hello struct {
	purpose, stream byte
	rank, world     int
	epoch           uint64
	fingerprint     string
}

const maxText = 4096 // bytes of a fingerprint or a reason

func (h hello) write(w io.Writer) error {
	if len(h.fingerprint) > maxText {
		return fmt.Errorf("the fingerprint has %d bytes, at most %d travel", len(h.fingerprint), maxText)
	}
	b := append([]byte(wireMagic), 0, 0, h.purpose, h.stream)
	binary.LittleEndian.PutUint16(b[8:], wireVersion)
	b = binary.LittleEndian.AppendUint32(b, uint32(h.rank))
	b = binary.LittleEndian.AppendUint32(b, uint32(h.world))
	b = binary.LittleEndian.AppendUint64(b, h.epoch)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(h.fingerprint)))
	_, err := w.Write(append(b, h.fingerprint...))
	return err
}

func readHello(r io.Reader) (h hello, err error) {
	var b [30]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return h, err
	}
	if string(b[:8]) != wireMagic {
		return h, errors.New("it does not speak the ring's protocol")
	}
	if v := binary.LittleEndian.Uint16(b[8:]); v != wireVersion {
		return h, fmt.Errorf("it speaks version %d of the ring's protocol, this rank %d; run the same autoglm everywhere", v, wireVersion)
	}
	h.purpose, h.stream = b[10], b[11]
	h.rank, h.world = int(binary.LittleEndian.Uint32(b[12:])), int(binary.LittleEndian.Uint32(b[16:]))
	h.epoch = binary.LittleEndian.Uint64(b[20:])
	h.fingerprint, err = readText(r, int(binary.LittleEndian.Uint16(b[28:])))
	return h, err
}

func readText(r io.Reader, n int) (string, error) {
	if n > maxText {
		return "", fmt.Errorf("a text of %d bytes, at most %d travel", n, maxText)
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return string(b), err
}

func writeAnswer(w io.Writer, refusal string) error {
	refusal = refusal[:min(len(refusal), maxText)]
	b := []byte{0, 0, 0}
	if refusal != "" {
		b[0] = 1
	}
	binary.LittleEndian.PutUint16(b[1:], uint16(len(refusal)))
	_, err := w.Write(append(b, refusal...))
	return err
}

// RefusedError is another rank's word that this one has no place in its ring.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return "refused: " + e.Reason }

func readAnswer(r io.Reader) error {
	var b [3]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return err
	}
	reason, err := readText(r, int(binary.LittleEndian.Uint16(b[1:])))
	if err != nil || b[0] == 0 {
		return err
	}
	return &RefusedError{reason}
}

// greet says hello on a new connection and waits for the answer.
func greet(c net.Conn, h hello, deadline time.Time) error {
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	if err := h.write(c); err != nil {
		return err
	}
	if err := readAnswer(c); err != nil {
		return err
	}
	return c.SetDeadline(time.Time{})
}
