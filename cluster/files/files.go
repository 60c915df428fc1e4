// Package files keeps files by their content, and fetches those of other nodes.
//
//	s, err := files.New(dir, 50<<30)
//	ref, err := s.Put(r)                       // or PutFile, which links where it can
//	mux.Handle("GET /files/{hash}", s)         // to other nodes
//	err = s.Fetch(ctx, client, ref, holders)   // resumes; chunks come from several holders at once
//	f, err := s.Open(ref)
//	err = s.Lay(ref, path)                     // the file at a place of its own
//
// A file's name is the SHA-256 of its content: a fetched one is checked before it
// is there, and the same content is kept and sent once.
//
// The store stays within a quota: files that are not in use go when room is needed,
// those unused longest first. Which are in use the caller says now and then (Sweep);
// what came since is held to be.
//
//	DIR/ab/abcdef…            a file
//	DIR/abcdef….part, .have   one that is coming
package files

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/open-autoglm/autoglm/runtime/durable"
)

// Ref names a file by its content.
type Ref struct {
	Hash string `json:"hash" msgpack:"hash"` // SHA-256, hex
	Size int64  `json:"size" msgpack:"size"` // bytes
}

// Valid refuses what can't name a file.
func (r Ref) Valid() error {
	b, err := hex.DecodeString(r.Hash)
	if err != nil || len(b) != sha256.Size || strings.ToLower(r.Hash) != r.Hash || r.Size < 0 {
		return fmt.Errorf("%q (%d bytes) is no file's name", r.Hash, r.Size)
	}
	return nil
}

// Of names what a reader gives; the zero Ref where it fails.
func Of(r io.Reader) Ref {
	h := sha256.New()
	n, err := io.Copy(h, r)
	if err != nil {
		return Ref{}
	}
	return Ref{hex.EncodeToString(h.Sum(nil)), n}
}

// Errors that a caller tells apart.
var (
	ErrNone  = errors.New("no node has the file")
	ErrQuota = fmt.Errorf("the store is full of files that are in use; raise its quota, or cancel or fetch jobs: %w", syscall.EDQUOT)
)

// Store is a folder of files. All methods may be called from any goroutine.
type Store struct {
	// Liar is told of a holder that sent other content than a file's name says. Calls
	// overlap. May be nil; set before the first Fetch.
	Liar func(holder string, ref Ref)

	dir   string
	quota int64 // bytes, 0 is no bound

	mu     sync.Mutex
	files  map[string]*entry
	used   int64
	coming int64                    // bytes that fetches under way will take
	busy   map[string]chan struct{} // fetches under way
}

type entry struct {
	size int64
	used time.Time
	idle bool // said to be by the last Sweep, and not used since
}

// New opens a folder, made when missing.
func New(dir string, quota int64) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	s := &Store{dir: dir, quota: quota, files: map[string]*entry{}, busy: map[string]chan struct{}{}}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name := d.Name()
		if strings.HasPrefix(name, ".") {
			return os.Remove(path) // a file that was coming in when the process ended
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if (Ref{Hash: name}).Valid() == nil {
			s.files[name] = &entry{size: info.Size(), used: info.ModTime()}
			s.used += info.Size()
		}
		return nil
	})
	return s, err
}

func (s *Store) path(hash string) string { return filepath.Join(s.dir, hash[:2], hash) }

// Put keeps what a reader gives.
func (s *Store) Put(r io.Reader) (Ref, error) {
	f, err := os.CreateTemp(s.dir, ".in.*")
	if err != nil {
		return Ref{}, err
	}
	defer os.Remove(f.Name()) // gone already where it was kept
	h := sha256.New()
	if s.quota > 0 {
		r = io.LimitReader(r, s.quota+1)
	}
	n, err := io.Copy(io.MultiWriter(f, h), r)
	if s.quota > 0 && n > s.quota {
		err = ErrQuota
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return Ref{}, err
	}
	ref := Ref{hex.EncodeToString(h.Sum(nil)), n}
	return ref, s.keep(ref, f.Name())
}

// PutFile keeps the content of a file that is never written in place: it is linked
// where both are on one disk.
func (s *Store) PutFile(path string) (Ref, error) {
	f, err := os.Open(path)
	if err != nil {
		return Ref{}, err
	}
	defer f.Close()
	link := filepath.Join(s.dir, ".link."+strconv.FormatInt(time.Now().UnixNano(), 36)+"."+filepath.Base(path))
	if err := os.Link(path, link); err != nil {
		return s.Put(f)
	}
	defer os.Remove(link)
	// What the link names is hashed, not what the path names by now.
	l, err := os.Open(link)
	if err != nil {
		return Ref{}, err
	}
	defer l.Close()
	h := sha256.New()
	n, err := io.Copy(h, l)
	if err != nil {
		return Ref{}, err
	}
	ref := Ref{hex.EncodeToString(h.Sum(nil)), n}
	return ref, s.keep(ref, link)
}

// keep moves a whole file in.
func (s *Store) keep(ref Ref, from string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keepLocked(ref, from)
}

func (s *Store) keepLocked(ref Ref, from string) error {
	if e, ok := s.files[ref.Hash]; ok {
		e.touch()
		return nil
	}
	if err := s.room(ref.Size); err != nil {
		return err
	}
	to := s.path(ref.Hash)
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	if err := durable.SyncDir(filepath.Dir(to)); err != nil {
		return err
	}
	s.files[ref.Hash] = &entry{size: ref.Size, used: time.Now()}
	s.used += ref.Size
	return nil
}

func (e *entry) touch() { e.used, e.idle = time.Now(), false }

// room evicts until so many bytes fit, beside those that are coming; the lock is held.
func (s *Store) room(n int64) error {
	n += s.coming
	if s.quota == 0 || s.used+n <= s.quota {
		return nil
	}
	var idle []string
	for hash, e := range s.files {
		if e.idle {
			idle = append(idle, hash)
		}
	}
	slices.SortFunc(idle, func(a, b string) int {
		return cmp.Or(s.files[a].used.Compare(s.files[b].used), strings.Compare(a, b))
	})
	for _, hash := range idle {
		if s.used+n <= s.quota {
			break
		}
		if err := s.evict(hash); err != nil {
			return err
		}
	}
	if s.used+n > s.quota {
		return ErrQuota
	}
	return nil
}

// Has tells whether the file is here.
func (s *Store) Has(ref Ref) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.files[ref.Hash]
	return ok
}

// List is all files that are here.
func (s *Store) List() []Ref {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Ref, 0, len(s.files))
	for hash, e := range s.files {
		out = append(out, Ref{hash, e.size})
	}
	return out
}

// Used is how many bytes the store takes.
func (s *Store) Used() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

// Sweep says which files are in use, by hash. Of the others quotas may evict those that
// were not used for evict, and those that were not used for remove are removed: what
// came a short while ago may be in use by what the caller has not heard of yet.
func (s *Store) Sweep(live map[string]bool, evict, remove time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for hash, e := range s.files {
		unused := time.Since(e.used)
		e.idle = !live[hash] && unused >= evict
		if !live[hash] && unused >= remove {
			errs = append(errs, s.evict(hash))
		}
	}
	return errors.Join(append(errs, s.sweepParts(remove))...)
}

// sweepParts removes what came of files that nobody fetches any more; the lock is held.
func (s *Store) sweepParts(unused time.Duration) error {
	parts, err := filepath.Glob(filepath.Join(s.dir, "*.part"))
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range parts {
		name := strings.TrimSuffix(p, ".part")
		info, err := os.Stat(p)
		if err != nil || s.busy[filepath.Base(name)] != nil || time.Since(info.ModTime()) < unused {
			continue
		}
		errs = append(errs, os.Remove(p))
		if err := os.Remove(name + ".have"); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// evict removes a file; the lock is held.
func (s *Store) evict(hash string) error {
	if err := os.Remove(s.path(hash)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s.used -= s.files[hash].size
	delete(s.files, hash)
	return nil
}

// Open reads a file that is here.
func (s *Store) Open(ref Ref) (*os.File, error) {
	if err := ref.Valid(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	if e, ok := s.files[ref.Hash]; ok {
		e.touch()
	}
	s.mu.Unlock()
	return os.Open(s.path(ref.Hash))
}

// Lay puts the file at a path, linked where it can be, whole or not at all. The
// file must be here, and nobody may write to the path in place.
func (s *Store) Lay(ref Ref, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	s.mu.Lock()
	if e, ok := s.files[ref.Hash]; ok {
		e.touch()
	}
	s.mu.Unlock()
	tmp := path + ".laying"
	_ = os.Remove(tmp)
	if err := os.Link(s.path(ref.Hash), tmp); err == nil {
		return errors.Join(os.Rename(tmp, path), durable.SyncDir(filepath.Dir(path)))
	}
	f, err := s.Open(ref)
	if err != nil {
		return err
	}
	defer f.Close()
	return durable.Write(path, func(w io.Writer) error {
		_, err := io.Copy(w, f)
		return err
	})
}

// ServeHTTP sends a file, or a range of it: GET …/{hash}.
func (s *Store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f, err := s.Open(Ref{Hash: r.PathValue("hash")})
	if err != nil {
		http.Error(w, "no such file", http.StatusNotFound)
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, f)
}
