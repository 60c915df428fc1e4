package ring

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// Whatever comes in, a greeting is refused or is what its bytes say.
func FuzzHello(f *testing.F) {
	var b bytes.Buffer
	if err := (hello{purpose: forData, stream: 1, rank: 2, world: 3, epoch: 4, fingerprint: "d64"}).write(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte(wireMagic))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		h, err := readHello(r)
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := h.write(&out); err != nil {
			t.Fatal(err)
		}
		if read := in[:len(in)-r.Len()]; !bytes.Equal(out.Bytes(), read) {
			t.Fatalf("%x read as %+v, written as %x", read, h, out.Bytes())
		}
	})
}

// Cards from outside never make a ring of ranks that disagree.
func FuzzCards(f *testing.F) {
	f.Add([]byte(`{"version":1,"rank":0,"world":2,"epoch":1}`), []byte(`{"version":1,"rank":1,"world":2,"epoch":1}`))
	f.Add([]byte(`{}`), []byte(`[`))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		cards, err := parseCards([][]byte{a, b}, &card{Version: wireVersion, World: 2, Epoch: 1})
		if err == nil && (cards[1].Rank != 1 || cards[0].World != cards[1].World || cards[0].Fingerprint != cards[1].Fingerprint) {
			t.Fatalf("%+v", cards)
		}
	})
}

// memory is a stream that gives what was put into it.
type memory struct{ in []byte }

func (m *memory) read(b []byte) (int, error) {
	n := copy(b, m.in)
	if m.in = m.in[n:]; n == 0 {
		return 0, io.EOF
	}
	return n, nil
}
func (m *memory) write(b []byte) (int, error) { return len(b), nil }
func (m *memory) fd() int                     { return -1 }
func (m *memory) events(e int16) int16        { return e }
func (m *memory) close() error                { return nil }

// A hostile rank's bytes end an operation with an error or complete it; they never
// reach beyond its buffer.
func FuzzMessages(f *testing.F) {
	encode := func(m message, payload int) []byte {
		b := make([]byte, messageSize+payload)
		m.put(b)
		return b
	}
	small := encode(message{what: whole, kind: AllReduce, seq: 1, bytes: 64, length: 64}, 64)
	f.Add(small, 16)
	f.Add(encode(message{what: contribution, kind: AllReduce, seq: 1, bytes: 4096, length: 1024}, 1024), 1024)
	f.Add(encode(message{what: result, kind: Broadcast, seq: 2, root: 1, bytes: 9}, 9), 2000)
	f.Fuzz(func(t *testing.T, in []byte, n int) {
		if n < 0 || n > 1<<14 {
			return
		}
		stop := newStopper()
		cfg := &Config{Rank: 0, World: 2, Timeout: time.Millisecond, Heartbeat: time.Hour, Suspect: time.Hour}
		m := &mesh{stop: stop, peers: make([]*control, 2)}
		tr := newSockets(m, [][]stream{nil, {&memory{}}}, [][]stream{nil, {&memory{in: in}}}, stop, cfg)
		tr.inline, tr.piece = 256, 1024 // so that short inputs reach all of it
		mem := make([]float32, n+64)
		for i := n; i < len(mem); i++ {
			mem[i] = 42
		}
		err := tr.Do(&Op{Kind: AllReduce, Seq: 1, Data: Buffer{Data: mem[:n]}.bytes()})
		if err != nil && !errors.Is(err, ErrLost) && !errors.Is(err, ErrOutOfStep) && !errors.Is(err, ErrTimeout) {
			t.Fatal(err)
		}
		for _, x := range mem[n:] {
			if x != 42 {
				t.Fatal("it wrote beyond the buffer")
			}
		}
	})
}

// wire is a connection that gives what was put into it and takes everything.
type wire struct{ bytes.Reader }

func (w *wire) Write(b []byte) (int, error)      { return len(b), nil }
func (w *wire) Close() error                     { return nil }
func (w *wire) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (w *wire) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (w *wire) SetDeadline(time.Time) error      { return nil }
func (w *wire) SetReadDeadline(time.Time) error  { return nil }
func (w *wire) SetWriteDeadline(time.Time) error { return nil }

// A hostile host's bytes end a sum with an error or complete it; they never reach
// beyond its buffer.
func FuzzRelay(f *testing.F) {
	head := make([]byte, messageSize)
	(&message{what: contribution, kind: AllReduce, dtype: BF16, seq: 1, bytes: 32, length: 64}).put(head)
	f.Add(append(head, make([]byte, 64)...), 16, byte(AllReduce), byte(BF16))
	(&message{what: contribution, kind: Broadcast, seq: 1, bytes: 64, length: 64}).put(head)
	f.Add(append(head, make([]byte, 64)...), 16, byte(Broadcast), byte(F32))
	f.Fuzz(func(t *testing.T, in []byte, n int, kind, dt byte) {
		if n < 0 || n > 1<<12 || kind < byte(AllReduce) || kind > byte(Barrier) || dt > byte(F16) {
			return
		}
		stop := newStopper()
		m := &mesh{stop: stop, rank: 1, peers: make([]*control, 2), quit: make(chan struct{})}
		l := &links{relay: relay{up: 0, down: -1, toUp: &wire{*bytes.NewReader(in)}}}
		h, err := newHierarchy(t.Context(), m, [][]int{{0}, {1}}, false, l, stop, &Config{Rank: 1, World: 2, Timeout: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		h.piece = 512 // so that short inputs reach all of it
		m.peers[0] = &control{conn: &wire{}, file: make(chan file), ops: make(chan opHead), note: make(chan []byte)}
		m.peers[0].left.Store(true) // no need to wait for the reason of an end
		close(m.peers[0].file)
		mem := make([]float32, n+64)
		for i := n; i < len(mem); i++ {
			mem[i] = 42
		}
		data := Buffer{Data: mem[:n]}.bytes()
		if dt := DType(dt); dt != F32 {
			data = data[:len(data)/4*4/2]
		}
		err = h.Do(&Op{Kind: Kind(kind), DType: DType(dt), Seq: 1, Data: data})
		if err != nil && !errors.Is(err, ErrLost) && !errors.Is(err, ErrOutOfStep) && !errors.Is(err, ErrTimeout) {
			t.Fatal(err)
		}
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		for _, x := range mem[n:] {
			if x != 42 {
				t.Fatal("it wrote beyond the buffer")
			}
		}
	})
}

// Whatever a rank announces is refused or is what its bytes say.
func FuzzOpHead(f *testing.F) {
	o := Op{Kind: Broadcast, DType: F16, Root: 2, Bucket: 7, Data: make([]byte, 10)}
	f.Add(uint64(3), o.head())
	f.Fuzz(func(t *testing.T, seq uint64, text string) {
		h, err := parseOpHead(seq, text)
		if err != nil {
			return
		}
		o := Op{Kind: h.kind, DType: h.dtype, Root: h.root, Bucket: h.bucket, Device: 1, DeviceBytes: int(h.bytes)}
		if uint64(h.seq) != seq || o.head() != text[:2]+"\x00\x00"+text[4:] {
			t.Fatalf("%x read as %+v", text, h)
		}
		o.Data = nil
		_ = (&Op{Kind: AllReduce}).differ(0, 1, h.kind, h.dtype, h.root, h.bucket, h.bytes)
	})
}
