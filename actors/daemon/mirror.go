package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/open-autoglm/autoglm/cluster/files"
)

// mirror keeps a job's folder beyond this node: each file goes to the store under
// its content, to other nodes, and into the folder's stream. A node that takes the
// job over lays the folder out again from there.
type mirror struct {
	d     *Daemon
	id    string
	epoch uint64
	dir   string

	mu   sync.Mutex // one keeping at a time
	seen map[string]stamp
}

// stamp tells whether a file has changed.
type stamp struct {
	size int64
	mod  time.Time
	ref  files.Ref
}

const mirrorEvery = 10 * time.Second

// openMirror lays the folder out as the stream has it. What the folder holds beyond
// that was never acknowledged, and is kept where it does no harm: the stream's files
// win.
func (d *Daemon) openMirror(ctx context.Context, r *held, dir string) (*mirror, error) {
	m := &mirror{d: d, id: r.ID, epoch: r.Epoch, dir: dir, seen: map[string]stamp{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	var f folder
	if err := d.toLeader(ctx, http.MethodGet, fmt.Sprintf("/internal/jobs/%s/folder", r.ID), nil, &f); err != nil {
		return nil, err
	}
	for path, ref := range f {
		if err := m.lay(ctx, path, ref); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	return m, nil
}

func (m *mirror) lay(ctx context.Context, path string, ref files.Ref) error {
	if !filepath.IsLocal(path) {
		return errors.New("leads out of the folder")
	}
	if err := m.d.fetch(ctx, ref); err != nil {
		return err
	}
	to := filepath.Join(m.dir, path)
	if appended(path) {
		// Written in place: a file of its own.
		f, err := m.d.files.Open(ref)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		out, err := os.Create(to)
		if err != nil {
			return err
		}
		if _, err := f.WriteTo(out); err != nil {
			return errors.Join(err, out.Close())
		}
		if err := out.Close(); err != nil {
			return err
		}
	} else if err := m.d.files.Lay(ref, to); err != nil {
		return err
	}
	info, err := os.Stat(to)
	if err != nil {
		return err
	}
	m.seen[path] = stamp{info.Size(), info.ModTime(), ref}
	return nil
}

// appended names files that are written in place; all others are replaced whole.
func appended(path string) bool { return strings.HasSuffix(path, ".jsonl") }

// passing names what a folder holds that another node makes anew by itself.
func passing(path string) bool {
	base := filepath.Base(path)
	return strings.HasPrefix(base, ".") || strings.HasSuffix(base, ".tmp") || strings.HasSuffix(base, ".laying") ||
		strings.HasPrefix(path, "data/tokens/") || strings.HasPrefix(path, "sample/") || path == "devices.json"
}

// run keeps now and then, so that a checkpoint in the middle of a long training
// outlives the node.
func (m *mirror) run(ctx context.Context) {
	for pause(ctx, mirrorEvery) {
		if err := m.keep(ctx); err != nil && ctx.Err() == nil {
			m.d.say("job %s: its folder could not be kept: %v", m.id, err)
		}
	}
}

// keep brings what is new in the folder to safety. It returns once as many nodes as
// Config.Copies, or all there are, hold it and the stream says so.
func (m *mirror) keep(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	ch := change{Put: folder{}}
	here := map[string]bool{}
	fresh := map[string]stamp{}
	err := filepath.WalkDir(m.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // a checkpoint that another replaced meanwhile
			}
			return err
		}
		rel, err := filepath.Rel(m.dir, path)
		if err != nil {
			return err
		}
		if passing(rel) || !e.Type().IsRegular() {
			return nil
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		here[rel] = true
		if s, ok := m.seen[rel]; ok && s.size == info.Size() && s.mod.Equal(info.ModTime()) {
			return nil
		}
		var ref files.Ref
		if appended(rel) {
			ref, err = m.copied(path)
		} else {
			ref, err = m.d.files.PutFile(path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			delete(here, rel)
			return nil
		}
		if err != nil {
			return m.d.noRoom(err)
		}
		fresh[rel] = stamp{info.Size(), info.ModTime(), ref}
		if m.seen[rel].ref != ref {
			ch.Put[rel] = ref
		}
		return nil
	})
	if err != nil {
		return err
	}
	for rel := range m.seen {
		if !here[rel] {
			ch.Drop = append(ch.Drop, rel)
		}
	}
	for _, ref := range ch.Put {
		if err := m.d.spread(ctx, ref); err != nil {
			return err
		}
	}
	if len(ch.Put)+len(ch.Drop) > 0 {
		err := m.d.toLeader(ctx, http.MethodPost, fmt.Sprintf("/internal/jobs/%s/folder?epoch=%d", m.id, m.epoch), ch, nil)
		if err != nil {
			return err
		}
	}
	for rel, s := range fresh {
		m.seen[rel] = s
	}
	for _, rel := range ch.Drop {
		delete(m.seen, rel)
	}
	return nil
}

func (m *mirror) copied(path string) (files.Ref, error) {
	f, err := os.Open(path)
	if err != nil {
		return files.Ref{}, err
	}
	defer f.Close()
	return m.d.files.Put(f)
}

// holders are the addresses of all other nodes' files.
func (d *Daemon) holders() []string {
	var out []string
	for _, m := range d.members.Members() {
		if m.ID != d.members.Self().ID {
			out = append(out, "http://"+m.Addr+"/internal/files")
		}
	}
	return out
}

// fetch brings a file here from the nodes that have it, or else from the bucket.
func (d *Daemon) fetch(ctx context.Context, ref files.Ref) error {
	err := d.files.Fetch(ctx, d.client, ref, d.holders())
	if errors.Is(err, files.ErrNone) && d.depot != nil {
		err = d.depot.fetch(ctx, ref)
	}
	return d.noRoom(err)
}

// spread puts a file of this node into the bucket, and has other nodes fetch it until
// Config.Copies hold it, voters first, since one of them leads next. A node that dies meanwhile is replaced
// by another; where there are too few, the file is held by those that there are, and
// that is said.
func (d *Daemon) spread(ctx context.Context, ref files.Ref) error {
	if d.depot != nil {
		d.depot.keep(ctx, ref)
	}
	var err error
	for range spreadTries {
		if err = d.spreadOnce(ctx, ref); err == nil || !pause(ctx, spreadAgain) {
			return ctx.Err()
		}
	}
	d.say("%v: it goes on with fewer copies", err)
	return nil
}

const (
	spreadTries = 10
	spreadAgain = 500 * time.Millisecond
	wantTime    = 10 * time.Minute
)

func (d *Daemon) spreadOnce(ctx context.Context, ref files.Ref) error {
	copies := 1
	votes := map[string]bool{}
	for _, v := range d.store.Voters() {
		votes[v.Addr] = true
	}
	self := d.members.Self()
	var first, then []string
	for _, m := range d.members.Members() {
		switch {
		case m.ID == self.ID:
		case votes[m.Addr]:
			first = append(first, m.Addr)
		default:
			then = append(then, m.Addr)
		}
	}
	var errs []error
	for _, addr := range append(first, then...) {
		if copies >= d.cfg.Copies {
			return nil
		}
		want, cancel := context.WithTimeout(ctx, wantTime)
		err := call(want, d.client, http.MethodPost, "http://"+addr+"/internal/want", ref, nil)
		cancel()
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", addr, err))
			continue
		}
		copies++
	}
	if copies < d.cfg.Copies && len(errs) > 0 {
		return fmt.Errorf("file %s is on %d node(s), and should be on %d: %w", ref.Hash[:12], copies, d.cfg.Copies, errors.Join(errs...))
	}
	return nil
}
