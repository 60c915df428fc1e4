package daemon

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/open-autoglm/autoglm/cluster/bucket"
	"github.com/open-autoglm/autoglm/cluster/files"
)

// depot is this node's use of the bucket. While the store answers, a file is there before
// who made it goes on; else it is put there later, and jobs go on without.
type depot struct {
	d      *Daemon
	b      *bucket.Bucket
	client *http.Client // fetches from the bucket

	mu      sync.Mutex
	late    map[string]files.Ref // to be put there by run
	trouble bool                 // the last request failed: it was said
	others  bool                 // the bucket is another cluster's: it was said
	wake    chan struct{}        // buffered, 1: late has grown
}

// Times of the depot.
const (
	depotPatience = 30 * time.Second // of who made a file, for its first megabytes
	depotRate     = 4 << 20          // bytes a second that further ones may take at least
	depotAgain    = time.Second      // after a failure, twice as long after the next
	depotAtMost   = time.Minute
)

func newDepot(d *Daemon, b *bucket.Bucket) *depot {
	t := &http.Transport{}
	t.RegisterProtocol("s3", b)
	return &depot{d: d, b: b, client: &http.Client{Transport: t}, late: map[string]files.Ref{}, wake: make(chan struct{}, 1)}
}

// fetch brings a file here from the bucket.
func (p *depot) fetch(ctx context.Context, ref files.Ref) error {
	return p.d.files.Fetch(ctx, p.client, ref, []string{p.b.Holder()})
}

// keep puts a file of this node there, now or later.
func (p *depot) keep(ctx context.Context, ref files.Ref) {
	p.mu.Lock()
	trouble := p.trouble
	p.mu.Unlock()
	if !trouble {
		ctx, cancel := context.WithTimeout(ctx, depotPatience+time.Duration(ref.Size/depotRate)*time.Second)
		defer cancel()
		if p.put(ctx, ref) == nil {
			return
		}
	}
	p.later(ref)
}

func (p *depot) later(ref files.Ref) {
	p.mu.Lock()
	p.late[ref.Hash] = ref
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// put puts a file there, and says when that begins to fail and when it no longer does.
func (p *depot) put(ctx context.Context, ref files.Ref) error {
	f, err := p.d.files.Open(ref)
	if err != nil {
		return nil // it was removed here meanwhile: no job needs it
	}
	defer f.Close()
	err = p.b.Put(ctx, ref, f)
	if !errors.Is(ctx.Err(), context.Canceled) {
		p.heard(err)
	}
	return err
}

func (p *depot) heard(err error) {
	p.mu.Lock()
	was := p.trouble
	p.trouble = err != nil
	n := len(p.late)
	p.mu.Unlock()
	switch {
	case err != nil && !was && p.d.ctx.Err() == nil:
		p.d.say("%v; jobs go on, their files are on nodes alone until it can be used again", err)
	case err == nil && was:
		p.d.say("%s can be used again; %d file(s) that it lacks are put there now", p.b, n)
	}
}

// run puts there what could not be when it was made.
func (p *depot) run() {
	if p.d.members.Ready(p.d.ctx) != nil {
		return
	}
	p.own(p.d.ctx)
	wait := depotAgain
	for {
		select {
		case <-p.wake:
		case <-p.d.ctx.Done():
			return
		}
		for ref, ok := p.next(); ok; ref, ok = p.next() {
			if p.put(p.d.ctx, ref) != nil {
				if !pause(p.d.ctx, wait) {
					return
				}
				wait = min(2*wait, depotAtMost)
				continue
			}
			wait = depotAgain
			p.mu.Lock()
			delete(p.late, ref.Hash)
			p.mu.Unlock()
		}
	}
}

func (p *depot) next() (files.Ref, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, ref := range p.late {
		return ref, true
	}
	return files.Ref{}, false
}

// tidy puts there what jobs need and this node has, and, on the node that leads, removes
// what no job needs.
func (p *depot) tidy(ctx context.Context, live map[string]bool, grace time.Duration) {
	there := map[string]bool{}
	var stray []string
	err := p.b.List(ctx, func(ref files.Ref, at time.Time) {
		there[ref.Hash] = true
		if !live[ref.Hash] && time.Since(at) >= grace {
			stray = append(stray, ref.Hash)
		}
	})
	if err != nil {
		p.heard(err)
		return
	}
	for _, ref := range p.d.files.List() {
		if live[ref.Hash] && !there[ref.Hash] {
			p.later(ref)
		}
	}
	if p.d.chiefNow() == nil || len(stray) == 0 || !p.own(ctx) {
		return
	}
	for _, hash := range stray {
		if err := p.b.Remove(ctx, hash); err != nil {
			p.heard(err)
			return
		}
	}
}

// own tells whether the bucket is this cluster's: what it does not know is another's.
func (p *depot) own(ctx context.Context) bool {
	own := p.d.members.Cluster()
	id, err := p.b.Owner(ctx, own)
	if err != nil {
		p.heard(err)
		return false
	}
	p.mu.Lock()
	said := p.others
	p.others = id != own
	p.mu.Unlock()
	if id != own && !said {
		p.d.say("%s was begun by the cluster %s, this one is %s: nothing is removed there. Give each cluster a prefix of its own, or, where that one is no more, remove the object \"cluster\" under the prefix", p.b, id, own)
	}
	return id == own
}
