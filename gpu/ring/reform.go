package ring

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ErrMinority means that too few ranks are left to go on by themselves.
var ErrMinority = errors.New("too few ranks are left")

// forReform is the purpose of a survivor's connection.
const forReform = 3

// Reform forms the ring anew, one epoch later, with the ranks that are left, after
// an operation has failed. Every survivor calls it. It closes this ring; buffers
// that Alloc gave are gone, so what they hold is copied out before. Survivors keep
// their order and are numbered from 0.
//
// They meet at the lowest rank that is left. Who has not come there within
// Suspect counts as lost. To go on, more than half of the old ranks are needed, or
// half of them with the lowest one among them: two halves of a cut network must
// not both go on. Otherwise the error is ErrMinority.
//
// Committed of the new ring is the last step that any survivor has committed: who
// has not applied it applies it now, from the sums that it holds (see Commit).
func (c *Comm) Reform(ctx context.Context) (*Comm, error) {
	if c.cfg == nil {
		return nil, errors.New("reform: this ring has no addresses; whoever made it makes the next one")
	}
	cfg := *c.cfg
	cfg.Epoch++
	cfg.Committed = c.committed
	reason := c.stop.reason()
	if reason == nil {
		return nil, fmt.Errorf("reform: the ring of epoch %d has not ended", c.epoch)
	}
	if l, ok := library(c.backend); ok && !l.Mends {
		return nil, errors.Join(fmt.Errorf("reform ring of epoch %d over %s, after: %w: %w; end this process and start the ranks anew from the last checkpoint", c.epoch, c.backend, reason, ErrUnmendable), c.Close())
	}
	// The endpoint goes on to the new ring.
	c.onClose = nil
	guests := cfg.Endpoint.expect(cfg.Epoch)
	met := false
	defer func() {
		if !met {
			cfg.Endpoint.unexpect(cfg.Epoch)
		}
	}()
	if err := c.Close(); err != nil {
		return nil, fmt.Errorf("reform: close epoch %d: %w", c.epoch, err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, cfg.FormTimeout, fmt.Errorf("%w: the survivors did not meet within %s", ErrTimeout, cfg.FormTimeout))
	defer cancel()
	mine := c.cards[c.rank]
	mine.Epoch, mine.Committed = cfg.Epoch, cfg.Committed
	cards, err := c.gather(ctx, &cfg, mine, reason, guests)
	if err == nil {
		err = enough(cards, c.world)
	}
	if err != nil {
		if cfg.OwnEndpoint {
			_ = cfg.Endpoint.Close()
		}
		return nil, fmt.Errorf("reform ring to epoch %d, rank %d of %d, after: %w: %w", cfg.Epoch, c.rank, c.world, reason, err)
	}
	cfg.World = len(cards)
	for r := range cards {
		if cards[r].Rank == c.rank {
			cfg.Rank = r
		}
		cards[r].Rank, cards[r].World = r, cfg.World
	}
	raw, err := marshalCards(cards)
	if err != nil {
		return nil, err
	}
	cfg.Rendezvous = known(raw)
	if cfg.World == 1 {
		stop := newStopper()
		next := newComm(0, 1, cfg.Epoch, &alone{stop}, stop, false)
		next.committed = cfg.Committed
		if cfg.OwnEndpoint {
			next.onClose = append(next.onClose, cfg.Endpoint.Close)
		}
		return next, nil
	}
	met = true // Form goes on to expect those who are quicker
	return formWithin(ctx, cfg, newStopper())
}

// known is a Rendezvous whose cards are all there.
type known [][]byte

// Join implements Rendezvous.
func (k known) Join(context.Context, int, int, uint64, []byte) ([][]byte, error) { return k, nil }

func marshalCards(cards []card) ([][]byte, error) {
	raw := make([][]byte, len(cards))
	for i := range cards {
		var err error
		if raw[i], err = json.Marshal(cards[i]); err != nil {
			return nil, err
		}
	}
	return raw, nil
}

func enough(cards []card, world int) error {
	if 2*len(cards) > world || 2*len(cards) == world && cards[0].Rank == 0 {
		return nil
	}
	return fmt.Errorf("%w: %d of %d", ErrMinority, len(cards), world)
}

// gather meets the other survivors: at the lowest rank that answers.
func (c *Comm) gather(ctx context.Context, cfg *Config, mine card, reason error, guests <-chan guest) ([]card, error) {
	var lost *LostError
	errors.As(reason, &lost)
	for leader := range c.world {
		if lost != nil && lost.Rank == leader && leader != c.rank {
			continue
		}
		if leader == c.rank {
			return c.lead(ctx, cfg, mine, lost, guests)
		}
		cards, err := c.follow(ctx, cfg, mine, leader)
		var refused *RefusedError
		if err == nil || errors.As(err, &refused) {
			return cards, err
		}
		if cause := context.Cause(ctx); cause != nil {
			return nil, fmt.Errorf("rank %d: %w (%w)", leader, err, cause)
		}
	}
	return nil, errors.New("nobody is left") // not reached: this rank leads itself
}

// lead is the part of the lowest survivor.
func (c *Comm) lead(ctx context.Context, cfg *Config, mine card, lost *LostError, guests <-chan guest) ([]card, error) {
	come := map[int]guest{}
	cards := map[int]card{c.rank: mine}
	defer func() {
		for _, g := range come {
			g.conn.Close()
		}
	}()
	expected := c.world
	if lost != nil && lost.Rank != c.rank {
		expected--
	}
	// Ranks notice the loss at different times, at most Suspect apart.
	patience := time.NewTimer(cfg.Suspect + cfg.Suspect/2)
	defer patience.Stop()
wait:
	for len(cards) < expected {
		select {
		case g := <-guests:
			if g.hello.purpose != forReform {
				// A survivor that is through with meeting already can't be: this rank is
				// still at it.
				_ = writeAnswer(g.conn, "the survivors have not met yet")
				g.conn.Close()
				continue
			}
			_ = g.conn.SetDeadline(time.Now().Add(time.Second))
			var k card
			b, err := readCard(g.conn)
			if err == nil {
				err = json.Unmarshal(b, &k)
			}
			r := g.hello.rank
			why := ""
			switch {
			case err != nil:
				why = err.Error()
			case g.hello.world != c.world || r >= c.world || k.Rank != r || k.Epoch != cfg.Epoch:
				why = fmt.Sprintf("rank %d of %d at epoch %d is not of this ring", r, g.hello.world, k.Epoch)
			}
			if why != "" {
				_ = writeAnswer(g.conn, why)
				g.conn.Close()
				continue
			}
			if old, ok := come[r]; ok {
				old.conn.Close()
			}
			come[r], cards[r] = g, k
			if lost != nil && r == lost.Rank {
				expected++ // it lives after all
			}
		case <-patience.C:
			break wait
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	out := make([]card, 0, len(cards))
	for _, k := range cards {
		out = append(out, k)
	}
	slices.SortFunc(out, func(a, b card) int { return a.Rank - b.Rank })
	if err := enough(out, c.world); err != nil {
		for _, g := range come {
			_ = writeAnswer(g.conn, err.Error())
		}
		return nil, err
	}
	raw, err := marshalCards(out)
	if err != nil {
		return nil, err
	}
	for _, g := range come {
		_ = g.conn.SetDeadline(time.Now().Add(time.Second))
		_ = writeCards(g.conn, raw) // who died meanwhile is named by the ring's forming
	}
	return out, nil
}

// follow reports to a leader. Without an answer the error says why; a leader that
// is gone refuses the connection or never answers.
func (c *Comm) follow(ctx context.Context, cfg *Config, mine card, leader int) ([]card, error) {
	// The leader waits for stragglers before it answers.
	ctx, cancel := context.WithTimeout(ctx, 4*cfg.Suspect)
	defer cancel()
	backend := TCP
	if c.cards[leader].Host == mine.Host && c.cards[leader].Unix != "" && mine.Unix != "" {
		backend = Unix
	}
	conn, err := cfg.Endpoint.dialOnce(ctx, backend, c.cards[leader])
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	h := hello{purpose: forReform, rank: c.rank, world: c.world, epoch: cfg.Epoch, fingerprint: cfg.Fingerprint}
	if err := h.write(conn); err != nil {
		return nil, err
	}
	b, err := json.Marshal(mine)
	if err == nil {
		err = writeCard(conn, b)
	}
	if err == nil {
		err = readAnswer(conn)
	}
	if err != nil {
		return nil, err
	}
	raw, err := readCards(conn, c.world)
	if err != nil {
		return nil, err
	}
	cards := make([]card, len(raw))
	for i, b := range raw {
		if err := json.Unmarshal(b, &cards[i]); err != nil {
			return nil, err
		}
	}
	return cards, nil
}
