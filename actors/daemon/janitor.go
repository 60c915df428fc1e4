package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/open-autoglm/autoglm/cluster/files"
)

// uses is what the cluster still needs: the jobs that there are, where each is, and
// the files of their folders and uploads.
type uses struct {
	Jobs  map[string]string `json:"jobs"` // the node that has it, "" when it is over
	Files map[string]bool   `json:"files"`
}

func (d *Daemon) getUses(c *chief, w http.ResponseWriter, _ *http.Request) error {
	u, err := c.uses()
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, u)
}

func (c *chief) uses() (uses, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	u := uses{Jobs: map[string]string{}, Files: map[string]bool{}}
	for _, j := range c.reg.list() {
		u.Jobs[j.ID] = j.Node
		if j.State.Over() {
			u.Jobs[j.ID] = ""
		}
		for _, f := range j.Files {
			u.Files[f.Ref.Hash] = true
		}
		f, err := c.folder(j.ID)
		if err != nil {
			return u, err
		}
		for _, ref := range f.files {
			u.Files[ref.Hash] = true
		}
	}
	return u, nil
}

// Times of the janitor.
const (
	tidyEvery  = 10 * time.Minute
	tidyGrace  = time.Hour        // of a file that no job names yet: its job may be on the way
	evictGrace = 10 * time.Minute // … where its room is needed
)

// tidy keeps the disk bounded: files that no job needs go, and the folders of jobs
// that are over, gone, or another node's. So do files of the bucket.
func (d *Daemon) tidy() {
	for {
		select {
		case <-time.After(tidyEvery):
		case <-d.full:
		case <-d.ctx.Done():
			return
		}
		if err := d.tidyOnce(d.ctx, tidyGrace); err != nil && d.ctx.Err() == nil {
			d.say("tidying up: %v", err)
		}
	}
}

// noRoom has the janitor come at once where the store of files was full; it passes err on.
func (d *Daemon) noRoom(err error) error {
	if errors.Is(err, files.ErrQuota) {
		select {
		case d.full <- struct{}{}:
		default:
		}
	}
	return err
}

func (d *Daemon) tidyOnce(ctx context.Context, grace time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var u uses
	if err := d.toLeader(ctx, http.MethodGet, "/internal/uses", nil, &u); err != nil {
		return err
	}
	errs := []error{d.files.Sweep(u.Files, min(grace, evictGrace), grace)}
	if d.depot != nil {
		d.depot.tidy(ctx, u.Files, grace)
	}
	self := d.members.Self().ID
	for _, kind := range []string{"jobs", "uploads"} {
		dirs, err := os.ReadDir(filepath.Join(d.cfg.Dir, kind))
		if err != nil {
			continue // no job has been here yet
		}
		for _, e := range dirs {
			if at, ok := u.Jobs[e.Name()]; d.hands.busy(e.Name()) || ok && at == self {
				continue
			}
			if err := os.RemoveAll(filepath.Join(d.cfg.Dir, kind, e.Name())); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", e.Name(), err))
			}
		}
	}
	return errors.Join(errs...)
}
