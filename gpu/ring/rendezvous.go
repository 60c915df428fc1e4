package ring

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Rendezvous is where the ranks of a ring find each other. Join hands this rank's
// card in and returns all cards by rank, when all are there. It ends with ctx, with
// an error that names who is missing; two ranks of one number are an error to
// both.
type Rendezvous interface {
	Join(ctx context.Context, rank, world int, epoch uint64, card []byte) ([][]byte, error)
}

// Meeting is a Rendezvous inside one process.
type Meeting struct {
	mu    sync.Mutex
	rooms map[uint64]*room // by epoch
}

type room struct {
	cards [][]byte
	left  int
	full  chan struct{}
	err   error
}

// Join implements Rendezvous.
func (m *Meeting) Join(ctx context.Context, rank, world int, epoch uint64, card []byte) ([][]byte, error) {
	m.mu.Lock()
	if m.rooms == nil {
		m.rooms = map[uint64]*room{}
	}
	r := m.rooms[epoch]
	if r == nil {
		r = &room{cards: make([][]byte, world), left: world, full: make(chan struct{})}
		m.rooms[epoch] = r
	}
	var err error
	switch {
	case world != len(r.cards):
		err = fmt.Errorf("rank %d was started for a world of %d, another rank for %d", rank, world, len(r.cards))
	case r.cards[rank] != nil:
		err = fmt.Errorf("two ranks came as rank %d", rank)
	default:
		r.cards[rank] = card
		if r.left--; r.left == 0 {
			close(r.full)
		}
	}
	if err != nil && r.left > 0 && r.err == nil {
		r.err = err
		close(r.full)
	}
	m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	select {
	case <-r.full:
		return r.cards, r.err
	case <-ctx.Done():
		m.mu.Lock()
		defer m.mu.Unlock()
		return nil, fmt.Errorf("%s did not come: %w", absent(r.cards), context.Cause(ctx))
	}
}

func absent(cards [][]byte) string {
	return ranksThat(len(cards), func(r int) bool { return cards[r] == nil })
}

// ranksThat names ranks: "rank 2", or "ranks 1, 2".
func ranksThat(world int, is func(r int) bool) string {
	var names []string
	for r := range world {
		if is(r) {
			names = append(names, strconv.Itoa(r))
		}
	}
	if len(names) == 1 {
		return "rank " + names[0]
	}
	return "ranks " + strings.Join(names, ", ")
}

// Master is the Rendezvous at a TCP address where rank 0 listens and the others
// dial, as torchrun, mpirun, Slurm and Kubernetes describe one by MASTER_ADDR and
// MASTER_PORT.
//
//	to rank 0:   hello (purpose 0) | 4 length | card
//	from rank 0: answer | 4 number | for each rank: 4 length | card
type Master struct {
	Address string
	// Listen and Dial make the connections; nil is plain TCP.
	Listen func(addr string) (net.Listener, error)
	Dial   func(ctx context.Context, addr string) (net.Conn, error)
}

const maxCard = 64 << 10

// Join implements Rendezvous.
func (m *Master) Join(ctx context.Context, rank, world int, epoch uint64, card []byte) ([][]byte, error) {
	if rank == 0 {
		return m.host(ctx, world, epoch, card)
	}
	pause := 5 * time.Millisecond
	for {
		cards, err := m.visit(ctx, rank, world, epoch, card)
		var refused *RefusedError
		if err == nil || errors.As(err, &refused) {
			return cards, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("rank 0 at %s: %w (%w)", m.Address, err, context.Cause(ctx))
		case <-time.After(pause):
			pause = min(2*pause, 200*time.Millisecond)
		}
	}
}

func (m *Master) visit(ctx context.Context, rank, world int, epoch uint64, card []byte) ([][]byte, error) {
	dial := m.Dial
	if dial == nil {
		dial = func(ctx context.Context, addr string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", addr)
		}
	}
	c, err := dial(ctx, m.Address)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := (hello{rank: rank, world: world, epoch: epoch}).write(c); err != nil {
		return nil, err
	}
	if err := writeCard(c, card); err != nil {
		return nil, err
	}
	if err := readAnswer(c); err != nil {
		return nil, err
	}
	return readCards(c, world)
}

// host is rank 0's part.
func (m *Master) host(ctx context.Context, world int, epoch uint64, card []byte) ([][]byte, error) {
	listen := m.Listen
	if listen == nil {
		listen = func(addr string) (net.Listener, error) { return net.Listen("tcp", addr) }
	}
	l, err := listen(m.Address)
	if err != nil {
		return nil, fmt.Errorf("%w; another job may use this MASTER_PORT, or two processes were started as rank 0", err)
	}
	defer l.Close()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	cards := make([][]byte, world)
	cards[0] = card
	guests := make([]net.Conn, world)
	defer func() {
		for _, c := range guests {
			if c != nil {
				c.Close()
			}
		}
	}()
	// Who comes is heard one after the other, so each has little time to speak.
	for left := world - 1; left > 0; {
		c, err := l.Accept()
		if err != nil {
			return nil, fmt.Errorf("%s did not come to %s: %w", absent(cards), m.Address, context.Cause(ctx))
		}
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		h, err := readHello(c)
		var theirs []byte
		if err == nil {
			theirs, err = readCard(c)
		}
		why := ""
		switch {
		case err != nil:
			why = err.Error()
		case h.world != world:
			why = fmt.Sprintf("WORLD_SIZE %d does not fit: rank 0 was started for %d", h.world, world)
		case h.rank <= 0 || h.rank >= world:
			why = fmt.Sprintf("RANK %d does not fit a world of %d", h.rank, world)
		case h.epoch != epoch:
			why = fmt.Sprintf("rank 0 forms epoch %d, not %d", epoch, h.epoch)
		case cards[h.rank] != nil && !gone(guests[h.rank]):
			why = fmt.Sprintf("rank %d is there already: two processes were started with RANK %d", h.rank, h.rank)
		}
		if why != "" {
			_ = writeAnswer(c, why) // whoever it was may be gone
			c.Close()
			continue
		}
		if guests[h.rank] != nil { // it broke off and came again
			guests[h.rank].Close()
			left++
		}
		guests[h.rank], cards[h.rank] = c, theirs
		left--
	}
	for r, c := range guests {
		if c == nil {
			continue
		}
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		if err := writeCards(c, cards); err != nil {
			return nil, fmt.Errorf("rank %d broke off: %w", r, err)
		}
	}
	return cards, nil
}

// gone tells whether the other side has hung up.
func gone(c net.Conn) bool {
	_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
	var b [1]byte
	_, err := c.Read(b[:])
	return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

// writeCards welcomes a rank and gives it all cards.
func writeCards(w io.Writer, cards [][]byte) error {
	if err := writeAnswer(w, ""); err != nil {
		return err
	}
	if _, err := w.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(cards)))); err != nil {
		return err
	}
	for _, k := range cards {
		if err := writeCard(w, k); err != nil {
			return err
		}
	}
	return nil
}

// readCards reads what follows the answer: at most so many cards.
func readCards(r io.Reader, most int) ([][]byte, error) {
	var n [4]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, err
	}
	count := binary.LittleEndian.Uint32(n[:])
	if count > uint32(most) {
		return nil, fmt.Errorf("%d cards of %d ranks", count, most)
	}
	cards := make([][]byte, count)
	for i := range cards {
		var err error
		if cards[i], err = readCard(r); err != nil {
			return nil, err
		}
	}
	return cards, nil
}

func writeCard(w io.Writer, card []byte) error {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(card)))
	_, err := w.Write(append(b, card...))
	return err
}

func readCard(r io.Reader) ([]byte, error) {
	var n [4]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, err
	}
	size := binary.LittleEndian.Uint32(n[:])
	if size > maxCard {
		return nil, fmt.Errorf("a card of %d bytes, at most %d travel", size, maxCard)
	}
	b := make([]byte, size)
	_, err := io.ReadFull(r, b)
	return b, err
}

// FromEnv reads a rank's place from the environment that launchers set: RANK and
// WORLD_SIZE (torchrun, Kubernetes), OMPI_COMM_WORLD_RANK and _SIZE or PMI_RANK
// and _SIZE (mpirun), SLURM_PROCID and SLURM_NTASKS (srun); MASTER_ADDR and
// MASTER_PORT, of which mpirun and Slurm set none: 127.0.0.1 and 29500 then. Where
// torchrun's agent holds the port itself (TORCHELASTIC_USE_AGENT_STORE), the next
// one is taken. get is os.Getenv.
func FromEnv(get func(string) string) (Config, error) {
	var c Config
	var err error
	for _, names := range [][2]string{
		{"RANK", "WORLD_SIZE"}, {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"}, {"PMI_RANK", "PMI_SIZE"}, {"SLURM_PROCID", "SLURM_NTASKS"},
	} {
		rank, world := get(names[0]), get(names[1])
		if rank == "" && world == "" {
			continue
		}
		if rank == "" || world == "" {
			return c, fmt.Errorf("%s=%q and %s=%q: set both", names[0], rank, names[1], world)
		}
		if c.Rank, err = strconv.Atoi(rank); err != nil {
			return c, fmt.Errorf("%s=%q is no number", names[0], rank)
		}
		if c.World, err = strconv.Atoi(world); err != nil {
			return c, fmt.Errorf("%s=%q is no number", names[1], world)
		}
		if c.World < 1 || c.Rank < 0 || c.Rank >= c.World {
			return c, fmt.Errorf("%s=%d and %s=%d: ranks count from 0 to %d", names[0], c.Rank, names[1], c.World, c.World-1)
		}
		break
	}
	if c.World == 0 {
		return c, errors.New("no rank in the environment: set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, or start under torchrun, mpirun or srun")
	}
	addr, port := get("MASTER_ADDR"), get("MASTER_PORT")
	if addr == "" {
		if addr = get("SLURM_LAUNCH_NODE_IPADDR"); addr == "" {
			addr = "127.0.0.1"
		}
	}
	n := 29500
	if port != "" {
		if n, err = strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return c, fmt.Errorf("MASTER_PORT=%q is no port", port)
		}
	}
	if strings.EqualFold(get("TORCHELASTIC_USE_AGENT_STORE"), "true") {
		n++
	}
	c.Rendezvous = &Master{Address: net.JoinHostPort(addr, strconv.Itoa(n))}
	return c, nil
}
