package device

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Errors that a caller tells apart.
var (
	ErrBusy    = errors.New("devices are leased")
	ErrExpired = errors.New("lease expired")
)

// Record is what a lease's file says of its holder. It informs; the lock on the
// file decides.
type Record struct {
	Device  string    `json:"device"` // ID
	UUID    string    `json:"uuid"`
	Owner   string    `json:"owner"` // in words: "build run1"
	PID     int       `json:"pid"`
	UID     int       `json:"uid"`
	Since   time.Time `json:"since"`
	Expires time.Time `json:"expires"` // zero: with its process
	Epoch   uint64    `json:"epoch"`   // counts the leases of the device, from 1
}

func (r Record) String() string {
	if r.PID == 0 {
		return "a process that has not said who it is"
	}
	s := fmt.Sprintf("pid %d (%q, uid %d) since %s", r.PID, r.Owner, r.UID, r.Since.Local().Format("2006-01-02 15:04:05"))
	if !r.Expires.IsZero() && time.Now().After(r.Expires) {
		s += ", expired but not let go: its process is stopped"
	}
	return s
}

// maxRecord bounds what is read of a file that any user may write.
const maxRecord = 4096

// ParseRecord reads a lease's file. Unknown fields are another version's.
func ParseRecord(b []byte) (Record, error) {
	var r Record
	if len(b) > maxRecord {
		return r, fmt.Errorf("a lease's record of %d bytes: at most %d", len(b), maxRecord)
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return Record{}, fmt.Errorf("a lease's record: %w", err)
	}
	return r, nil
}

// LockDir is the folder of the host's leases: $AUTOGLM_LOCKS, or the first of
// /run/lock/autoglm, /tmp/autoglm-locks and one in $TMPDIR that is there or can be
// made. One that is there and can't be used is taken all the same, for its error:
// who passes it over shares devices with those who don't. All users of the host,
// and containers that shall exclude each other, must share it.
func LockDir() string {
	if d := os.Getenv("AUTOGLM_LOCKS"); d != "" {
		return d
	}
	dirs := []string{"/run/lock/autoglm", "/tmp/autoglm-locks"}
	for _, d := range dirs {
		if _, err := os.Lstat(d); err == nil || shared(d) == nil {
			return d
		}
	}
	return filepath.Join(os.TempDir(), "autoglm-locks")
}

// shared makes the folder for all users, or checks the one that is there.
func shared(dir string) error {
	if err := os.Mkdir(dir, 0o777); err == nil {
		// The mask of this process must not keep others out.
		return os.Chmod(dir, 0o777|os.ModeSticky)
	} else if !errors.Is(err, os.ErrExist) {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a folder: move it away", dir)
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return fmt.Errorf("%w for uid %d: it is uid %d's with mode %04o; they or root mend it with: chmod 1777 %s", err, os.Getuid(), owner(info), mode(info), dir)
	}
	return nil
}

// owner is the user whose file it is.
func owner(info os.FileInfo) uint32 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Uid
	}
	return 0
}

// mode is what chmod takes.
func mode(info os.FileInfo) os.FileMode {
	m := info.Mode().Perm()
	if info.Mode()&os.ModeSticky != 0 {
		m |= 0o1000
	}
	return m
}

// denied says whose lock file it is that this user can't open, and what mends it.
func denied(path string, err error) error {
	if !errors.Is(err, os.ErrPermission) {
		return err
	}
	info, serr := os.Lstat(path)
	if serr != nil {
		return err
	}
	return fmt.Errorf("%w for uid %d: it is uid %d's with mode %04o; they or root mend it with: chmod 666 %s", err, os.Getuid(), owner(info), mode(info), path)
}

// Leases hands out devices of one host, one lock file each:
//
//	DIR/UUID.lock   flock'd exclusively by the holder; holds a Record as JSON
//
// Files stay when a lease ends: removing one would let two processes lock two
// files of one name. Its methods may be called at once.
type Leases struct{ dir string }

// OpenLeases uses, or makes, the folder.
func OpenLeases(dir string) (*Leases, error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, fmt.Errorf("folder of leases: %w", err)
	}
	if err := shared(dir); err != nil {
		return nil, fmt.Errorf("folder of leases %s: %w; name another with AUTOGLM_LOCKS", dir, err)
	}
	return &Leases{dir: dir}, nil
}

func (l *Leases) path(d Device) (string, error) {
	name := d.UUID
	if name == "" || len(name) > 128 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:") != "" || name[0] == '.' {
		return "", fmt.Errorf("%s has no UUID to lease it by (%q)", d.ID, name)
	}
	return filepath.Join(l.dir, name+".lock"), nil
}

// open opens a lock file that another user may own. With fs.protected_regular
// O_CREAT refuses such a file in a sticky folder, so it is tried only where
// there is none.
func (l *Leases) open(path string) (*os.File, error) {
	const flags = os.O_RDWR | unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NONBLOCK
	for range 8 {
		f, err := os.OpenFile(path, flags, 0)
		if err == nil {
			info, err := f.Stat()
			if err == nil && !info.Mode().IsRegular() {
				err = fmt.Errorf("%s is not a file: move it away", path)
			}
			if err != nil {
				f.Close()
				return nil, err
			}
			return f, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return nil, denied(path, err)
		}
		f, err = os.OpenFile(path, flags|os.O_CREATE|os.O_EXCL, 0o666)
		if err == nil {
			if err = f.Chmod(0o666); err != nil {
				f.Close()
				return nil, err
			}
			return f, nil
		}
		if !errors.Is(err, os.ErrExist) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%s comes and goes: who removes it?", path)
}

// flock takes the lock at once or says EWOULDBLOCK. A probe of Holders keeps a
// lock for an instant; a few tries see past it.
func flock(f *os.File, how int) error {
	var err error
	for range 10 {
		if err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return err
		}
		time.Sleep(500 * time.Microsecond)
	}
	return err
}

func read(f *os.File) Record {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, maxRecord+1))
	if err != nil {
		return Record{}
	}
	r, err := ParseRecord(b)
	if err != nil {
		return Record{} // being written just now, or by a hand that isn't ours
	}
	return r
}

// Holders says who holds which of the devices, by ID.
func (l *Leases) Holders(ds []Device) (map[string]Record, error) {
	out := map[string]Record{}
	for _, d := range ds {
		path, err := l.path(d)
		if err != nil {
			continue
		}
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("lease of %s: %w", d.ID, denied(path, err))
		}
		// One try: a probe that others' probes hold up is no holder, since those
		// share the lock.
		err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			out[d.ID], err = read(f), nil
		}
		f.Close() // lets the probe's lock go
		if err != nil {
			return nil, fmt.Errorf("lease of %s: %w", d.ID, err)
		}
	}
	return out, nil
}

// Held is a group of leases. Its methods may be called at once.
type Held struct {
	ttl time.Duration
	mu  struct {
		sync.Mutex
		files   []*os.File // Invariant: one a record, or none once it has ended
		records []Record
		timer   *time.Timer
		err     error // why it ended
	}
}

// errTaken means that one device of the group went to another meanwhile.
var errTaken = errors.New("taken meanwhile")

// Acquire matches the request with what nobody holds, and leases it, all or
// nothing. With ttl 0 the leases end with Release or with the process; otherwise
// also when Renew hasn't been called for so long. Errors: ErrUnmet when the
// machine lacks what is asked for, ErrBusy when others hold it (the text says
// who), or what the folder says. It doesn't wait.
func (l *Leases) Acquire(m Machine, r Request, owner string, ttl time.Duration) ([]Device, *Held, error) {
	for range 16 {
		holders, err := l.Holders(m.Devices)
		if err != nil {
			return nil, nil, err
		}
		taken := map[string]string{}
		for id, rec := range holders {
			taken[id] = rec.String()
		}
		ds, err := m.MatchFree(r, taken)
		if err != nil {
			return nil, nil, err
		}
		h, err := l.Lease(ds, owner, ttl)
		if errors.Is(err, ErrBusy) {
			continue
		}
		return ds, h, err
	}
	return nil, nil, fmt.Errorf("%w: %s, and others take them faster than this process can; try again", ErrBusy, r)
}

// Lease leases these devices, all or nothing.
func (l *Leases) Lease(ds []Device, owner string, ttl time.Duration) (*Held, error) {
	h := &Held{ttl: ttl}
	now := time.Now()
	for _, d := range ds {
		f, rec, err := l.lock(d, owner, now, ttl)
		if err != nil {
			h.Release()
			if errors.Is(err, errTaken) {
				return nil, fmt.Errorf("%w: %s is leased by %s", ErrBusy, d.ID, rec)
			}
			return nil, fmt.Errorf("lease of %s: %w", d.ID, err)
		}
		h.mu.files, h.mu.records = append(h.mu.files, f), append(h.mu.records, rec)
	}
	if ttl > 0 {
		h.mu.Lock()
		h.mu.timer = time.AfterFunc(ttl, func() { h.end(fmt.Errorf("%w after %v", ErrExpired, ttl)) })
		h.mu.Unlock()
	}
	return h, nil
}

func (l *Leases) lock(d Device, owner string, now time.Time, ttl time.Duration) (f *os.File, rec Record, err error) {
	path, err := l.path(d)
	if err != nil {
		return nil, rec, err
	}
	if f, err = l.open(path); err != nil {
		return nil, rec, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if err = flock(f, unix.LOCK_EX); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, read(f), errTaken
		}
		return nil, rec, err
	}
	// Somebody may have removed the file between open and lock.
	mine, err := f.Stat()
	if err != nil {
		return nil, rec, err
	}
	if there, serr := os.Lstat(path); serr != nil || !os.SameFile(mine, there) {
		return nil, rec, errTaken
	}
	rec = Record{Device: d.ID, UUID: d.UUID, Owner: clip(owner, 200), PID: os.Getpid(), UID: os.Getuid(), Since: now, Epoch: read(f).Epoch + 1}
	if ttl > 0 {
		rec.Expires = now.Add(ttl)
	}
	return f, rec, write(f, rec)
}

func clip(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "?")
}

func write(f *os.File, r Record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	b = append(b, '\n')
	// A full disk must not cost the lease: the lock holds without its record.
	if _, err := f.WriteAt(b, 0); err != nil && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return err
	}
	return f.Truncate(int64(len(b)))
}

// Records are the leases, in the order of the devices.
func (h *Held) Records() []Record {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]Record(nil), h.mu.records...)
}

// Check is nil while the leases hold, else why they ended. A process that was
// stopped asks before it touches the device again.
func (h *Held) Check() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.err == nil && h.ttl > 0 && time.Now().After(h.mu.records[0].Expires) {
		h.ended(fmt.Errorf("%w after %v", ErrExpired, h.ttl))
	}
	return h.mu.err
}

// Renew lets leases with a ttl begin anew; it returns what Check does.
func (h *Held) Renew() error {
	if err := h.Check(); err != nil || h.ttl == 0 {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.err != nil || !h.mu.timer.Reset(h.ttl) {
		if h.mu.err == nil {
			h.ended(fmt.Errorf("%w after %v", ErrExpired, h.ttl))
		}
		return h.mu.err
	}
	for i := range h.mu.records {
		h.mu.records[i].Expires = time.Now().Add(h.ttl)
		if err := write(h.mu.files[i], h.mu.records[i]); err != nil {
			return err
		}
	}
	return nil
}

// ErrReleased is what Check returns after Release.
var ErrReleased = errors.New("lease was released")

// Release lets the devices go. A nil Held holds none; twice is as once.
func (h *Held) Release() {
	if h != nil {
		h.end(ErrReleased)
	}
}

func (h *Held) end(why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ended(why)
}

// ended closes the files; h.mu is held.
func (h *Held) ended(why error) {
	if h.mu.err != nil {
		return
	}
	h.mu.err = why
	if h.mu.timer != nil {
		h.mu.timer.Stop()
	}
	for _, f := range h.mu.files {
		f.Close()
	}
	h.mu.files = nil
}
