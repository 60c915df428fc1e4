package ring

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
)

// overTLS makes an endpoint's listener and dialling speak TLS. The handshake of a
// connection that was taken is done by whoever reads first.
func (c *EndpointConfig) overTLS(l net.Listener) net.Listener {
	cfg := c.TLS.Clone()
	dial := c.Dial
	if dial == nil {
		var d net.Dialer
		dial = func(ctx context.Context, addr string) (net.Conn, error) { return d.DialContext(ctx, "tcp", addr) }
	}
	c.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
		raw, err := dial(ctx, addr)
		if err != nil {
			return nil, err
		}
		own := cfg
		if own.ServerName == "" && !own.InsecureSkipVerify {
			host, _, err := net.SplitHostPort(addr)
			if err != nil {
				raw.Close()
				return nil, err
			}
			own = cfg.Clone()
			own.ServerName = host
		}
		t := tls.Client(raw, own)
		if err := t.HandshakeContext(ctx); err != nil {
			raw.Close()
			return nil, err
		}
		return t, nil
	}
	return tls.NewListener(l, cfg)
}

// sealed is a stream of data over a TLS connection that has done its handshake and
// its greeting. crypto/tls wants a blocking connection and goroutines, which cost
// more than AES does; here both sides take the socket over and go on with records
// of their own, under a key that TLS exports to this connection alone (RFC 8446,
// section 7.5): who holds it has passed the handshake's authentication.
//
//	record: 4 length n of the text | n bytes of ciphertext | 16 tag
//
// AES-256-GCM; the length is authenticated with the text; the nonce counts the
// records. After rekeyAfter records a key is replaced by one derived from it, long
// before GCM's bounds.
//
// Data goes one way, so that a connection has one key. Nobody sends between the
// answer to the greeting and the first record: the TLS connection has read ahead
// nothing when it is left.
type sealed struct {
	*socket
	keys keys

	out  []byte // records to write
	sent int    // … that are written
	text int    // how much text they hold

	in     []byte // records as they come, from r to w
	r, w   int
	plain  []byte // text that the reader has not taken, from p on
	p      int
	broken error
}

const (
	recordText = 64 << 10
	recordHead = 4
	recordTag  = 16
	recordsOut = 4 // that one write takes
	recordsIn  = 4
	rekeyAfter = 1 << 20
)

// keys is one direction's present key.
type keys struct {
	secret []byte
	aead   cipher.AEAD
	count  uint64
	nonce  [12]byte
}

func (k *keys) set(secret []byte) error {
	b, err := aes.NewCipher(secret)
	if err != nil {
		return err
	}
	k.secret, k.count = secret, 0
	k.aead, err = cipher.NewGCM(b)
	return err
}

// next is the nonce of the next record.
func (k *keys) next() ([]byte, error) {
	if k.count == rekeyAfter {
		secret, err := hkdf.Expand(sha256.New, k.secret, "autoglm ring next key", len(k.secret))
		if err == nil {
			err = k.set(secret)
		}
		if err != nil {
			return nil, err
		}
	}
	binary.BigEndian.PutUint64(k.nonce[4:], k.count)
	k.count++
	return k.nonce[:], nil
}

// newSealed takes a TLS connection's socket over; nil where that can't be: it has
// no socket of its own below, or speaks less than TLS 1.3.
func newSealed(c *tls.Conn) (stream, error) {
	state := c.ConnectionState()
	t, ok := c.NetConn().(*net.TCPConn)
	if !ok || !state.HandshakeComplete || state.Version < tls.VersionTLS13 {
		return nil, nil
	}
	secret, err := state.ExportKeyingMaterial("EXPORTER-autoglm-ring-data", nil, 32)
	if err != nil {
		return nil, err
	}
	s := &sealed{}
	if err := s.keys.set(secret); err != nil {
		return nil, err
	}
	if s.socket, err = newSocket(t); err != nil {
		return nil, err
	}
	return s, nil
}

// write seals as much of b as one call takes and writes it. A length is returned
// when all of that is out; until then the caller comes back with the same b.
func (s *sealed) write(b []byte) (int, error) {
	if s.text == 0 {
		s.out, s.sent = s.out[:0], 0
		for s.text < len(b) && s.text < recordsOut*recordText {
			piece := b[s.text:min(s.text+recordText, len(b))]
			nonce, err := s.keys.next()
			if err != nil {
				return 0, err
			}
			at := len(s.out)
			s.out = binary.LittleEndian.AppendUint32(s.out, uint32(len(piece)))
			s.out = s.keys.aead.Seal(s.out, nonce, piece, s.out[at:at+recordHead])
			s.text += len(piece)
		}
	}
	for s.sent < len(s.out) {
		n, err := s.socket.write(s.out[s.sent:])
		if n == 0 || err != nil {
			return 0, err
		}
		s.sent += n
	}
	n := s.text
	s.text = 0
	return n, nil
}

var errForged = errors.New("a record is not what was sent: the connection was tampered with")

// read opens the next record, straight into b where there is room for all of it.
func (s *sealed) read(b []byte) (int, error) {
	if s.p < len(s.plain) {
		n := copy(b, s.plain[s.p:])
		s.p += n
		return n, nil
	}
	if s.broken != nil || len(b) == 0 {
		return 0, s.broken
	}
	if s.in == nil {
		s.in = make([]byte, recordsIn*(recordHead+recordText+recordTag))
	}
	n, whole, err := s.record()
	if err == nil && !whole {
		if s.r > 0 {
			s.w = copy(s.in, s.in[s.r:s.w])
			s.r = 0
		}
		var got int
		if got, err = s.socket.read(s.in[s.w:]); err == nil {
			s.w += got
			n, whole, err = s.record()
		}
	}
	if err != nil || !whole {
		s.broken = err
		return 0, err
	}
	nonce, err := s.keys.next()
	if err != nil {
		return 0, err
	}
	head, body := s.in[s.r:s.r+recordHead], s.in[s.r+recordHead:s.r+recordHead+n+recordTag]
	to := b[:0:len(b)]
	if len(b) < n {
		if s.plain == nil {
			s.plain = make([]byte, 0, recordText)
		}
		to = s.plain[:0]
	}
	text, err := s.keys.aead.Open(to, nonce, body, head)
	if err != nil {
		s.broken = errForged
		return 0, errForged
	}
	if s.r += recordHead + n + recordTag; s.r == s.w {
		s.r, s.w = 0, 0
	}
	if len(b) >= n {
		return n, nil
	}
	s.plain, s.p = text, copy(b, text)
	return s.p, nil
}

// record tells whether a whole record is there, and the length of its text.
func (s *sealed) record() (n int, whole bool, err error) {
	if s.w-s.r < recordHead {
		return 0, false, nil
	}
	n = int(binary.LittleEndian.Uint32(s.in[s.r:]))
	if n == 0 || n > recordText {
		return 0, false, fmt.Errorf("%w (a record of %d bytes)", errForged, n)
	}
	return n, s.w-s.r >= recordHead+n+recordTag, nil
}
