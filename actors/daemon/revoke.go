package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/open-autoglm/autoglm/cluster"
	"github.com/open-autoglm/autoglm/cluster/cert"
	"github.com/open-autoglm/autoglm/runtime/durable"
)

// The list of revoked certificates comes to one node, from an admin or the authority's
// folder; that node gives it to all others, and one that was away sees in the others' news
// that theirs is newer, and asks for it.

const (
	listFile  = "crl.pem"
	maxList   = 4 << 20 // bytes
	pullEvery = time.Second
)

// loadList takes the list that this node kept, and the authority's where it has that.
func (d *Daemon) loadList() error {
	if d.id == nil {
		return nil
	}
	path := filepath.Join(d.cfg.Dir, listFile)
	b, err := os.ReadFile(path)
	if err == nil {
		if _, err := d.id.Revoke(b); err != nil {
			return fmt.Errorf("%s: %w; remove it, and the other nodes give this one theirs", path, err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if d.cfg.CA != "" {
		ca, err := cert.LoadCA(d.cfg.CA)
		if err != nil {
			return err
		}
		list, err := ca.List()
		if err != nil || list == nil {
			return err
		}
		if _, err := d.id.Revoke(list); err != nil && !errors.Is(err, cert.ErrListOld) {
			return fmt.Errorf("%s: %w", d.cfg.CA, err)
		}
		if err := d.keepList(); err != nil {
			return err
		}
	}
	if err := d.id.Refuses(nil); err != nil {
		d.say("%v: no other node will speak with this one", err)
	}
	return nil
}

func (d *Daemon) keepList() error {
	list, _ := d.id.Revocations()
	return durable.WriteFile(filepath.Join(d.cfg.Dir, listFile), list)
}

// adopt goes by a list from now on: connections of who is on it are closed, and members
// among them are taken out.
func (d *Daemon) adopt(ctx context.Context, list []byte) error {
	if d.id == nil {
		return &StatusError{http.StatusConflict, "this node runs without certificates: there is nothing to revoke"}
	}
	fresh, err := d.id.Revoke(list)
	if err != nil {
		return &StatusError{http.StatusConflict, err.Error()}
	}
	if !fresh {
		return nil
	}
	err = d.keepList() // a node that can't keep it goes by it all the same
	_, n := d.id.Revocations()
	d.say("list %d of revoked certificates: %d connection(s) closed", n, d.port.CloseRevoked())
	if own := d.id.Refuses(nil); own != nil {
		d.say("%v: no other node will speak with this one", own)
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	d.members.Expel(ctx)
	d.change()
	d.nudge()
	return err
}

// Spread is the answer to a list: which nodes have it, and which could not be given it.
type Spread struct {
	Number  uint64   `json:"number"`
	Nodes   []string `json:"nodes"`
	Missing []string `json:"missing,omitempty"`
}

// postList takes a list from an admin, gives it to all nodes, and replaces the key of
// gossip, which a revoked node still knows.
func (d *Daemon) postList(w http.ResponseWriter, r *http.Request) error {
	list, err := readList(r)
	if err != nil {
		return err
	}
	if err := d.adopt(r.Context(), list); err != nil {
		return err
	}
	if err := d.id.Refuses(nil); err != nil {
		return &StatusError{http.StatusConflict, "this node is one of those that were revoked; give the list to another"}
	}
	_, n := d.id.Revocations()
	out := Spread{Number: n, Nodes: []string{d.members.Self().Name}}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, m := range d.members.Members() {
		if m.ID == d.members.Self().ID {
			continue
		}
		wg.Go(func() {
			err := d.giveList(r.Context(), m, list)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				out.Missing = append(out.Missing, fmt.Sprintf("%s: %v", m.Name, err))
				return
			}
			out.Nodes = append(out.Nodes, m.Name)
		})
	}
	wg.Wait()
	if err := d.members.RotateKeys(r.Context()); err != nil {
		out.Missing = append(out.Missing, fmt.Sprintf("%v; then: autoglm keys rotate", err))
	}
	return answer(w, http.StatusOK, out)
}

func readList(r *http.Request) ([]byte, error) {
	return io.ReadAll(http.MaxBytesReader(nil, r.Body, maxList))
}

func (d *Daemon) giveList(ctx context.Context, m cluster.Member, list []byte) error {
	ctx, cancel := context.WithTimeout(ctx, 2*askTime)
	defer cancel()
	return call(ctx, d.client, http.MethodPost, "http://"+m.Addr+"/internal/crl", list, nil)
}

// pullLists asks whoever has a newer list for it.
func (d *Daemon) pullLists() {
	if d.id == nil {
		return
	}
	for pause(d.ctx, pullEvery) {
		_, own := d.id.Revocations()
		news := d.members.News()
		for _, m := range d.members.Members() {
			n, err := decodeNews(news[m.ID])
			if err != nil || n.Revoked <= own {
				continue
			}
			var list []byte
			ctx, cancel := context.WithTimeout(d.ctx, askTime)
			err = call(ctx, d.client, http.MethodGet, "http://"+m.Addr+"/internal/crl", nil, func(r io.Reader) (err error) {
				list, err = io.ReadAll(io.LimitReader(r, maxList))
				return err
			})
			cancel()
			if err == nil {
				err = d.adopt(d.ctx, list)
			}
			if err == nil {
				break
			}
			d.complain("list of revoked certificates of node "+m.Name, err)
		}
	}
}
