package worker

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/open-autoglm/autoglm/gpu/ring"
)

// plainRings reaches ranks by TCP.
type plainRings struct{ t *testing.T }

func (p plainRings) Listen() (net.Listener, string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		p.t.Fatal(err)
	}
	return l, l.Addr().String()
}

func (p plainRings) Dial(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr)
}

func (p plainRings) Secured() bool { return false }

func relays(t *testing.T) *Relay {
	t.Helper()
	y, err := NewRelay(plainRings{t})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := y.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	return y
}

// Ranks behind two nodes' relays sum, and one that leaves is missed at once.
func TestRelayedRing(t *testing.T) {
	nodes := []*Relay{relays(t), relays(t)}
	group := ring.NewGroupAcross(ring.GroupConfig{World: 2, Epoch: 1})
	summed := make(chan struct{})
	var wg sync.WaitGroup
	for r, y := range nodes {
		wg.Go(func() {
			c, err := y.At().form(t.Context(), ring.Config{Rank: r, World: 2, Epoch: 1, Backend: ring.TCP, Rendezvous: meeting{group}})
			if err != nil {
				t.Error(err)
				return
			}
			data := make([]float32, 1<<16)
			for i := range data {
				data[i] = float32(r + 1)
			}
			c.Reduce(0, ring.Buffer{Data: data})
			if err := c.Wait(); err != nil || data[0] != 3 || data[len(data)-1] != 3 {
				t.Errorf("rank %d: %v, %v", r, data[0], err)
			}
			if r == 0 {
				<-summed
				if err := nodes[0].Close(); err != nil { // the node dies
					t.Error(err)
				}
				_ = c.Close()
				return
			}
			close(summed)
			begun := time.Now()
			c.Reduce(1, ring.Buffer{Data: data})
			if err := c.Wait(); !errors.Is(err, ring.ErrLost) || time.Since(begun) > 10*time.Second {
				t.Errorf("after %v: %v", time.Since(begun), err)
			}
			_ = c.Close()
		})
	}
	wg.Wait()
}

type meeting struct{ *ring.Group }

func (m meeting) Join(ctx context.Context, rank, _ int, _ uint64, card []byte) ([][]byte, error) {
	return m.Meet(ctx, rank, card)
}

func TestRelayRefuses(t *testing.T) {
	at := relays(t).At()
	for what, want := range map[byte]string{'X': "nothing is called", relayDial: "missing port"} {
		if _, _, err := at.ask(what, "nowhere"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", what, err)
		}
	}
	c, err := net.Dial("unix", at.Socket) // and a word that is cut off harms nobody
	if err != nil {
		t.Fatal(err)
	}
	_, _ = c.Write([]byte{relayDial, 200})
	c.Close()
	if _, _, err := at.ask('X', ""); err == nil {
		t.Error("no answer")
	}
}
