package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/open-autoglm/autoglm/cluster"
	"github.com/open-autoglm/autoglm/cluster/files"
	"github.com/open-autoglm/autoglm/runtime/job"
)

// mirror keeps a job's folder beyond this node: each file goes to the store under
// its content, to other nodes, and into the folder's stream. A node that takes the
// job over, or lends it devices, lays the folder out again from there. It is the
// job's node.Folder.
//
// A trial's folder is written by the node of its first rank alone. Its changes carry
// the trial's epoch, and the leader refuses those of an earlier one: a node that was
// taken for lost can do no harm.
type mirror struct {
	d     *Daemon
	id    string
	epoch uint64
	dir   string
	guest bool // the folder but for trials is another node's

	mu   sync.Mutex // one keeping at a time, over the network; before claims.mu
	seen map[string]stamp

	claims struct {
		sync.Mutex                   // never held for long: a ring waits for Renew
		mine       map[string]*claim // by trial that is trained here
	}
}

// claim is this node's on a trial.
type claim struct {
	fence uint64 // of its epoch
	ranks int    // that train here
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
	m := &mirror{d: d, id: r.ID, epoch: r.Epoch, dir: dir, guest: r.Home != "", seen: map[string]stamp{}}
	m.claims.mine = map[string]*claim{}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if m.guest {
		return m, nil // what is needed comes with the work
	}
	return m, m.Pull(ctx)
}

// Pull implements node.Folder. A guest needs the data alone.
func (m *mirror) Pull(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pull(ctx, func(path string) bool {
		trial := trialOf(path)
		return m.claim(trial) == nil && (!m.guest || strings.HasPrefix(path, "data/"))
	})
}

// pull lays out what the stream has that this node has not; the lock is held.
func (m *mirror) pull(ctx context.Context, wanted func(path string) bool) error {
	var f folder
	if err := m.d.toLeader(ctx, http.MethodGet, fmt.Sprintf("/internal/jobs/%s/folder", m.id), nil, &f); err != nil {
		return err
	}
	for path, ref := range f {
		if m.seen[path].ref == ref || !wanted(path) {
			continue
		}
		if err := m.lay(ctx, path, ref); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// trialOf is the trial that a path of the folder belongs to, "" where it is none's. The
// score of the final training is a stage's.
func trialOf(path string) string {
	rest, ok := strings.CutPrefix(path, "trials/")
	trial, file, inside := strings.Cut(rest, "/")
	if !ok || !inside || file == "eval.json" {
		return ""
	}
	return trial
}

// claim is a copy of this node's on a trial, nil where it has none.
func (m *mirror) claim(trial string) *claim {
	m.claims.Lock()
	defer m.claims.Unlock()
	c := m.claims.mine[trial]
	if c == nil {
		return nil
	}
	return &claim{c.fence, c.ranks}
}

// fence orders a trial's epochs over all times that the job was given to a node.
func (m *mirror) fence(epoch uint64) uint64 { return m.epoch<<32 | epoch }

// Begin implements node.Folder.
func (m *mirror) Begin(ctx context.Context, trial string, epoch uint64, from []string) error {
	fence := m.fence(epoch)
	if len(from) > 0 {
		m.mu.Lock()
		defer m.mu.Unlock()
		if err := m.tell(ctx, change{Trial: trial, Fence: fence}); err != nil {
			return err
		}
		// What is trained here is newer than what the stream has.
		wanted := func(path string) bool {
			t := trialOf(path)
			return slices.Contains(from, t) && (t == trial || m.claim(t) == nil)
		}
		if err := m.pull(ctx, wanted); err != nil {
			return err
		}
	}
	m.claims.Lock()
	defer m.claims.Unlock()
	c := m.claims.mine[trial]
	if c == nil {
		c = &claim{}
		m.claims.mine[trial] = c
	}
	c.ranks++
	c.fence = max(c.fence, fence)
	return nil
}

// Renew implements node.Folder.
func (m *mirror) Renew(trial string, epoch uint64) {
	m.claims.Lock()
	defer m.claims.Unlock()
	if c := m.claims.mine[trial]; c != nil {
		c.fence = max(c.fence, m.fence(epoch))
	}
}

// End implements node.Folder.
func (m *mirror) End(ctx context.Context, trial string, keep bool) error {
	defer func() {
		m.claims.Lock()
		defer m.claims.Unlock()
		if c := m.claims.mine[trial]; c != nil {
			if c.ranks--; c.ranks <= 0 {
				delete(m.claims.mine, trial)
			}
		}
	}()
	if !keep {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.keepAll(ctx, []string{trial})
}

// Keep implements node.Folder: what is new in the folder comes to safety.
func (m *mirror) Keep(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.claims.Lock()
	trials := slices.Sorted(maps.Keys(m.claims.mine))
	m.claims.Unlock()
	return m.keepAll(ctx, append(trials, ""))
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
func appended(path string) bool {
	return strings.HasSuffix(path, ".jsonl") || strings.HasPrefix(path, job.StepsDir+"/")
}

// passing names what a folder holds that another node makes anew by itself.
func passing(path string) bool {
	base := filepath.Base(path)
	return strings.HasPrefix(base, ".") || strings.HasSuffix(base, ".tmp") || strings.HasSuffix(base, ".laying") ||
		strings.HasPrefix(path, "data/tokens/") || strings.HasPrefix(path, "sample/") || path == "devices.json"
}

// start keeps now and then until stop is called, which waits for it.
func (m *mirror) start(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.run(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

// run keeps now and then, so that a checkpoint in the middle of a long training
// outlives the node.
func (m *mirror) run(ctx context.Context) {
	for pause(ctx, mirrorEvery) {
		if err := m.Keep(ctx); err != nil && ctx.Err() == nil {
			m.d.say("job %s: its folder could not be kept: %v", m.id, err)
		}
	}
}

// keepAll brings what is new of some trials, and of what is no trial's ("") to safety.
// It returns once as many nodes as Config.Copies, or all there are, hold it and the
// stream says so. The lock is held.
func (m *mirror) keepAll(ctx context.Context, parts []string) error {
	for _, part := range parts {
		if part == "" && m.guest {
			continue
		}
		if err := m.keepPart(ctx, part); err != nil {
			return err
		}
	}
	return nil
}

func (m *mirror) keepPart(ctx context.Context, trial string) error {
	ch := change{Put: folder{}, Trial: trial}
	if c := m.claim(trial); c != nil {
		ch.Fence = c.fence
	}
	here := map[string]bool{}
	fresh := map[string]stamp{}
	root := m.dir
	if trial != "" {
		root = filepath.Join(m.dir, "trials", trial)
	}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
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
		if passing(rel) || !e.Type().IsRegular() || trialOf(rel) != trial {
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
		if !here[rel] && trialOf(rel) == trial {
			ch.Drop = append(ch.Drop, rel)
		}
	}
	for _, ref := range ch.Put {
		if err := m.d.spread(ctx, ref); err != nil {
			return err
		}
	}
	for _, part := range ch.parts() {
		err := m.d.toLeader(ctx, http.MethodPost, fmt.Sprintf("/internal/jobs/%s/folder?epoch=%d", m.id, m.epoch), part, nil)
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

// maxPart bounds the bytes of paths in one request: a step may leave any number of
// files.
const maxPart = 1 << 20

// parts are a change in pieces that a request and a record hold.
func (c change) parts() []change {
	var out []change
	size := maxPart
	room := func(path string) *change {
		if size += len(path) + 120; size > maxPart { // with the names of a file's content
			out, size = append(out, change{Put: folder{}}), 0
		}
		return &out[len(out)-1]
	}
	for path, ref := range c.Put {
		room(path).Put[path] = ref
	}
	for _, path := range c.Drop {
		p := room(path)
		p.Drop = append(p.Drop, path)
	}
	return out
}

// tell has the leader record a change.
func (m *mirror) tell(ctx context.Context, ch change) error {
	return m.d.toLeader(ctx, http.MethodPost, fmt.Sprintf("/internal/jobs/%s/folder?epoch=%d", m.id, m.epoch), ch, nil)
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
		if err = d.spreadOnce(ctx, ref); errors.Is(err, errAllFull) {
			break // in a moment they still are
		}
		if err == nil || !pause(ctx, spreadAgain) {
			return ctx.Err()
		}
	}
	d.complaints.add("copies", fmt.Sprintf("%v: it goes on with fewer copies", err))
	return nil
}

// errAllFull says that all nodes have answered, and that those which should hold a copy
// have no room.
var errAllFull = errors.New("no node has room for it")

const (
	spreadTries = 10
	spreadAgain = 500 * time.Millisecond
	wantTime    = 10 * time.Minute
)

// whileMember is ctx until a node is none of the cluster, or for wantTime: one that
// hangs keeps its connections.
func (d *Daemon) whileMember(ctx context.Context, id string) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, wantTime)
	go func() {
		defer cancel()
		for pause(ctx, leaderAgain) {
			if _, ok := d.members.Member(id); !ok {
				return
			}
		}
	}()
	return ctx, cancel
}

func (d *Daemon) spreadOnce(ctx context.Context, ref files.Ref) error {
	copies := 1
	votes := map[string]bool{}
	for _, v := range d.store.Voters() {
		votes[v.Addr] = true
	}
	self := d.members.Self()
	var first, then []cluster.Member
	for _, m := range d.members.Members() {
		switch {
		case m.ID == self.ID:
		case votes[m.Addr]:
			first = append(first, m)
		default:
			then = append(then, m)
		}
	}
	var errs []error
	full := true
	for _, m := range append(first, then...) {
		if copies >= d.cfg.Copies {
			return nil
		}
		want, cancel := d.whileMember(ctx, m.ID)
		err := call(want, d.client, http.MethodPost, "http://"+m.Addr+"/internal/want", ref, nil)
		cancel()
		if err != nil {
			var s *StatusError
			full = full && errors.As(err, &s) && s.Code == http.StatusInsufficientStorage
			errs = append(errs, fmt.Errorf("%s: %w", m.Addr, err))
			continue
		}
		copies++
	}
	if copies < d.cfg.Copies && len(errs) > 0 {
		if full {
			errs = append(errs, errAllFull)
		}
		return fmt.Errorf("file %s is on %d node(s), and should be on %d: %w", ref.Hash[:12], copies, d.cfg.Copies, errors.Join(errs...))
	}
	return nil
}
