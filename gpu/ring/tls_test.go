package ring

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net"
	"testing"
)

// sealedPair is both ends of one direction, over loopback.
func sealedPair(t testing.TB) (from, to *sealed) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	out, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	in, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	end := func(c net.Conn) *sealed {
		s := &sealed{}
		if err := s.keys.set(bytes.Repeat([]byte{7}, 32)); err != nil {
			t.Fatal(err)
		}
		if s.socket, err = newSocket(c.(*net.TCPConn)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.close() })
		return s
	}
	return end(out), end(in)
}

// What is written in pieces of any length is read in pieces of any length, over a
// change of keys.
func TestSealedCarriesAll(t *testing.T) {
	from, to := sealedPair(t)
	from.keys.count, to.keys.count = rekeyAfter-3, rekeyAfter-3
	rng := rand.New(rand.NewPCG(1, 2))
	text := make([]byte, 3<<20)
	for i := range text {
		text[i] = byte(rng.Uint32())
	}
	var got []byte
	buf := make([]byte, 300<<10)
	rest, piece := text, []byte(nil)
	for len(got) < len(text) {
		if len(piece) == 0 && len(rest) > 0 {
			n := min(len(rest), 1+rng.IntN(200<<10))
			piece, rest = rest[:n], rest[n:]
		}
		if len(piece) > 0 {
			n, err := from.write(piece)
			if err != nil {
				t.Fatal(err)
			}
			piece = piece[n:]
		}
		n, err := to.read(buf[:1+rng.IntN(len(buf)-1)])
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, buf[:n]...)
	}
	if !bytes.Equal(got, text) {
		t.Error("other bytes came than were sent")
	}
	if bytes.Equal(from.keys.secret, bytes.Repeat([]byte{7}, 32)) {
		t.Error("the key was never changed")
	}
}

// A record that was changed, repeated or cut is refused, whatever it holds.
func FuzzSealed(f *testing.F) {
	f.Add([]byte("a record"), uint16(0), byte(1))
	f.Add(bytes.Repeat([]byte("long "), 300), uint16(9), byte(128))
	f.Fuzz(func(t *testing.T, text []byte, at uint16, flip byte) {
		if len(text) == 0 || len(text) > recordText || flip == 0 {
			return
		}
		from, to := sealedPair(t)
		// Seal without sending, then send what was tampered with.
		from.keys.count = 5
		nonce, err := from.keys.next()
		if err != nil {
			t.Fatal(err)
		}
		head := []byte{byte(len(text)), byte(len(text) >> 8), byte(len(text) >> 16), 0}
		record := from.keys.aead.Seal(head, nonce, text, head)
		record[int(at)%len(record)] ^= flip
		to.keys.count = 5
		if _, err := from.socket.f.Write(record); err != nil {
			t.Fatal(err)
		}
		from.close()
		buf := make([]byte, recordText)
		for {
			n, err := to.read(buf)
			if n > 0 {
				t.Fatalf("%d bytes came of a record with byte %d changed", n, int(at)%len(record))
			}
			if err != nil {
				if _, again := to.read(buf); errors.Is(err, errForged) && !errors.Is(again, errForged) {
					t.Fatal("it reads on behind a forged record")
				}
				return
			}
		}
	})
}
