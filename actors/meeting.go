package actors

import (
	"context"
	"fmt"
	"sync"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/open-autoglm/autoglm/gpu/ring"
)

// Ranks on several nodes meet at their Trial: workers send it their cards, and it
// sends all cards back.

// cardsInMail is how many cards go in one message: a card is a few hundred bytes, and
// messages between nodes are small.
const cardsInMail = 32

// byMail is the Rendezvous of a rank whose Trial is on another node.
type byMail struct {
	mu    sync.Mutex
	send  func(*RingCard)
	epoch uint64
	cards [][]byte
	left  int
	err   error
	full  chan struct{} // closed when no card is missing, or with err
}

// via says how cards go to the Trial.
func (b *byMail) via(send func(*RingCard)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.send = send
}

// Join implements ring.Rendezvous.
func (b *byMail) Join(ctx context.Context, rank, world int, epoch uint64, card []byte) ([][]byte, error) {
	full := make(chan struct{})
	b.mu.Lock()
	b.epoch, b.cards, b.left, b.err, b.full = epoch, make([][]byte, world), world, nil, full
	send := b.send
	b.mu.Unlock()
	send(&RingCard{Epoch: epoch, Rank: rank, Card: card})
	select {
	case <-full:
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.cards, b.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// take takes a part of the answer.
func (b *byMail) take(m *RingCards) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.full == nil || m.Epoch != b.epoch || m.At < 0 || m.At+len(m.Cards) > len(b.cards) {
		return // of a ring that is over
	}
	for i, c := range m.Cards {
		if b.cards[m.At+i] == nil && c != nil {
			b.cards[m.At+i] = c
			b.left--
		}
	}
	if b.err = m.Err; b.err != nil || b.left == 0 {
		close(b.full)
		b.full = nil
	}
}

// meet has a rank of another node meet the others, and sends it their cards.
func meet(root *actor.RootContext, group *ring.Group, m *RingCard) {
	cards, err := group.Meet(context.Background(), m.Rank, m.Card) // an abort of the group ends it
	if err != nil {
		root.Send(m.From, &RingCards{Epoch: m.Epoch, Err: fmt.Errorf("rendezvous: %w", err)})
		return
	}
	for at := 0; at < len(cards); at += cardsInMail {
		root.Send(m.From, &RingCards{Epoch: m.Epoch, At: at, Cards: cards[at:min(at+cardsInMail, len(cards))]})
	}
}
