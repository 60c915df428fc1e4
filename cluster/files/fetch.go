package files

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// A file comes in chunks, from several holders at once. What has come is in
//
//	DIR/HASH.part   the chunks at their places
//	DIR/HASH.have   for each: u32 number, LE | u32 CRC-32C, LE
//
// so that another attempt, or another process, goes on with the chunks that are there.
const (
	chunkSize = 4 << 20
	atOnce    = 4 // holders that send at a time
	haveSize  = 8 // of an entry
)

// A chunk that takes longer than three of the others took, and at least so long, is
// asked for elsewhere too.
const (
	tooLong      = 200 * time.Millisecond
	tooLongFirst = 2 * time.Second // while none has come yet
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Fetch brings a file from the holders (addresses of files, up to the hash), chunks from
// several at once, going on where an earlier attempt stopped. The first of them are
// asked first; others take the place of those that fail. The content is checked: holders
// that send something else are left out.
func (s *Store) Fetch(ctx context.Context, client *http.Client, ref Ref, holders []string) error {
	if err := ref.Valid(); err != nil {
		return err
	}
	for {
		s.mu.Lock()
		if e, ok := s.files[ref.Hash]; ok {
			e.touch()
			s.mu.Unlock()
			return nil
		}
		other, ok := s.busy[ref.Hash]
		if !ok {
			err := s.room(ref.Size)
			if err == nil {
				s.coming += ref.Size
				s.busy[ref.Hash] = make(chan struct{})
			}
			s.mu.Unlock()
			if err != nil {
				return err
			}
			break
		}
		s.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	defer func() {
		s.mu.Lock()
		close(s.busy[ref.Hash])
		delete(s.busy, ref.Hash)
		s.mu.Unlock()
	}()
	n := chunks(ref.Size)
	f := &fetch{s: s, client: client, ref: ref, from: make([]string, n), sums: make([]uint32, n)}
	err := f.run(ctx, holders)
	s.mu.Lock()
	s.coming -= ref.Size
	if err == nil {
		err = s.keepLocked(ref, f.part.Name())
	}
	s.mu.Unlock()
	return errors.Join(err, f.close(err))
}

func chunks(size int64) int { return int((size + chunkSize - 1) / chunkSize) }

// fetch is one file that is coming. It belongs to the goroutine that runs it.
type fetch struct {
	s      *Store
	client *http.Client
	ref    Ref
	part   *os.File
	have   *os.File

	todo    []int             // chunks that nobody sends
	from    []string          // by chunk, who sent it; "" while it is not there
	sums    []uint32          // CRC-32C by chunk
	left    int               // chunks that are not there
	flights map[int][]*flight // by chunk
	errs    []error

	took  time.Duration // by all chunks that came
	came  int
	ended chan landing
}

// before is who sent the chunks that were there.
const before = "an earlier attempt"

// flight is a chunk on its way from a holder.
type flight struct {
	chunk  int
	holder string
	begun  time.Time
	cancel context.CancelFunc
}

// landing is a flight's end.
type landing struct {
	*flight
	data []byte
	err  error
}

func (f *fetch) run(ctx context.Context, holders []string) error {
	if err := f.open(); err != nil {
		return err
	}
	f.errs = []error{fmt.Errorf("%w %s", ErrNone, f.ref.Hash)}
	holders = slices.Clone(holders)
	for {
		if err := f.gather(ctx, holders); err != nil {
			return err
		}
		ok, err := f.whole()
		if ok || err != nil {
			return err
		}
		// Somebody sent something else. What came before is the first suspect; then each
		// that sent a part answers for all of it.
		suspects := f.senders()
		if slices.Contains(suspects, before) {
			f.drop(func(who string) bool { return who == before })
			continue
		}
		one := suspects[0]
		if len(suspects) > 1 {
			from, sums := slices.Clone(f.from), slices.Clone(f.sums)
			f.drop(func(who string) bool { return who != one })
			if err := f.gather(ctx, []string{one}); ctx.Err() != nil {
				return err
			} else if err != nil { // it is gone
				holders = slices.DeleteFunc(holders, func(h string) bool { return h == one })
				f.drop(func(string) bool { return true })
				continue
			}
			ok, err := f.whole()
			if err != nil {
				return err
			}
			if ok {
				f.tell(from, sums)
				return nil
			}
		}
		f.lied(one)
		holders = slices.DeleteFunc(holders, func(h string) bool { return h == one })
		f.drop(func(string) bool { return true })
	}
}

// tell says who sent other chunks than those of which the file came about.
func (f *fetch) tell(from []string, sums []uint32) {
	told := map[string]bool{}
	for i, who := range from {
		if sums[i] != f.sums[i] && !told[who] {
			told[who] = true
			f.lied(who)
		}
	}
}

func (f *fetch) lied(holder string) {
	f.errs = append(f.errs, fmt.Errorf("%s: sent other content", holder))
	if f.s.Liar != nil {
		f.s.Liar(holder, f.ref)
	}
}

// open finds what is there.
func (f *fetch) open() error {
	name := filepath.Join(f.s.dir, f.ref.Hash)
	var err error
	if f.part, err = os.OpenFile(name+".part", os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return err
	}
	if f.have, err = os.OpenFile(name+".have", os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600); err != nil {
		return err
	}
	list, err := io.ReadAll(io.LimitReader(f.have, int64(len(f.from))*haveSize*2))
	if err != nil {
		return err
	}
	buf := make([]byte, min(chunkSize, f.ref.Size))
	for ; len(list) >= haveSize; list = list[haveSize:] {
		i := int(binary.LittleEndian.Uint32(list))
		if i >= len(f.from) || f.from[i] != "" {
			continue
		}
		b := buf[:f.size(i)]
		if _, err := f.part.ReadAt(b, int64(i)*chunkSize); err == nil && crc32.Checksum(b, castagnoli) == binary.LittleEndian.Uint32(list[4:]) {
			f.from[i], f.sums[i] = before, crc32.Checksum(b, castagnoli)
		}
	}
	f.count()
	// All of its room at once: a disk that is full says so before anything is sent.
	err = unix.EINTR
	for err == unix.EINTR {
		err = unix.Fallocate(int(f.part.Fd()), 0, 0, max(1, f.ref.Size))
	}
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("%d bytes for a file: %w", f.ref.Size, err)
	}
	return f.part.Truncate(f.ref.Size)
}

// close leaves the chunks for another attempt, but not on a disk that is full.
func (f *fetch) close(err error) error {
	var errs []error
	for _, file := range []*os.File{f.part, f.have} {
		if file == nil {
			continue
		}
		errs = append(errs, file.Close())
		if err == nil && file == f.have || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, ErrQuota) {
			if gone := os.Remove(file.Name()); !errors.Is(gone, fs.ErrNotExist) {
				errs = append(errs, gone)
			}
		}
	}
	return errors.Join(errs...)
}

func (f *fetch) size(chunk int) int64 {
	return min(chunkSize, f.ref.Size-int64(chunk)*chunkSize)
}

// count lists what is not there.
func (f *fetch) count() {
	f.todo = f.todo[:0]
	for i, who := range f.from {
		if who == "" {
			f.todo = append(f.todo, i)
		}
	}
	f.left = len(f.todo)
}

// senders are those whose chunks are there, the one of most of them first.
func (f *fetch) senders() []string {
	n := map[string]int{}
	var out []string
	for _, who := range f.from {
		if n[who]++; n[who] == 1 {
			out = append(out, who)
		}
	}
	slices.SortStableFunc(out, func(a, b string) int { return cmp.Compare(n[b], n[a]) })
	return out
}

// drop forgets some senders' chunks.
func (f *fetch) drop(whose func(who string) bool) {
	for i, who := range f.from {
		if whose(who) {
			f.from[i] = ""
		}
	}
	f.count()
}

// whole tells whether all chunks together are the file.
func (f *fetch) whole() (bool, error) {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f.part, 0, f.ref.Size)); err != nil {
		return false, err
	}
	if hex.EncodeToString(h.Sum(nil)) == f.ref.Hash {
		return true, f.part.Sync()
	}
	if f.ref.Size == 0 {
		return false, fmt.Errorf("%s is not the name of an empty file", f.ref.Hash)
	}
	return false, f.have.Truncate(0) // what is kept of it is entered again when it is sent again
}

// gather brings all chunks that are not there.
func (f *fetch) gather(ctx context.Context, holders []string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.ended, f.flights = make(chan landing), map[int][]*flight{}
	idle := slices.Clone(holders)
	busy := 0
	defer func() { // nobody may write when this has returned
		cancel()
		for ; busy > 0; busy-- {
			<-f.ended
		}
	}()
	for f.left > 0 {
		for len(idle) > 0 && busy < atOnce {
			i, ok := f.next(idle[0])
			if !ok {
				break
			}
			f.send(ctx, i, idle[0])
			idle = idle[1:]
			busy++
		}
		if busy == 0 {
			return errors.Join(f.errs...)
		}
		select {
		case l := <-f.ended:
			busy--
			ok, err := f.land(l)
			if err != nil {
				return err
			}
			if ok {
				idle = append(idle, l.holder)
			}
		case <-time.After(tooLong / 4): // a chunk may take too long by now
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// next is the chunk that a holder is to send: one that nobody sends, or one that takes
// too long.
func (f *fetch) next(holder string) (int, bool) {
	if len(f.todo) > 0 {
		i := f.todo[0]
		f.todo = f.todo[1:]
		return i, true
	}
	bound := tooLongFirst
	if f.came > 0 {
		bound = max(tooLong, 3*f.took/time.Duration(f.came))
	}
	for i, fs := range f.flights {
		if len(fs) == 1 && fs[0].holder != holder && time.Since(fs[0].begun) > bound {
			return i, true
		}
	}
	return 0, false
}

// send begins a flight.
func (f *fetch) send(ctx context.Context, chunk int, holder string) {
	ctx, cancel := context.WithCancel(ctx)
	fl := &flight{chunk: chunk, holder: holder, begun: time.Now(), cancel: cancel}
	f.flights[chunk] = append(f.flights[chunk], fl)
	go func() {
		data, err := f.get(ctx, chunk, holder)
		f.ended <- landing{fl, data, err}
	}()
}

// land takes a flight's end; false where its holder is of no more use.
func (f *fetch) land(l landing) (bool, error) {
	l.cancel()
	rest := slices.DeleteFunc(f.flights[l.chunk], func(o *flight) bool { return o == l.flight })
	f.flights[l.chunk] = rest
	if len(rest) == 0 {
		delete(f.flights, l.chunk)
	}
	if f.from[l.chunk] != "" {
		return true, nil // another was quicker, and this one was told to stop
	}
	if l.err != nil {
		if len(rest) == 0 {
			f.todo = append([]int{l.chunk}, f.todo...)
		}
		f.errs = append(f.errs, fmt.Errorf("%s: %w", l.holder, l.err))
		return false, nil
	}
	if _, err := f.part.WriteAt(l.data, int64(l.chunk)*chunkSize); err != nil {
		return false, err
	}
	entry := binary.LittleEndian.AppendUint32(nil, uint32(l.chunk))
	sum := crc32.Checksum(l.data, castagnoli)
	entry = binary.LittleEndian.AppendUint32(entry, sum)
	if _, err := f.have.Write(entry); err != nil {
		return false, err
	}
	f.from[l.chunk], f.sums[l.chunk] = l.holder, sum
	f.left--
	f.took += time.Since(l.begun)
	f.came++
	for _, o := range rest {
		o.cancel()
	}
	return true, nil
}

// get asks a holder for a chunk.
func (f *fetch) get(ctx context.Context, chunk int, holder string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, holder+"/"+f.ref.Hash, nil)
	if err != nil {
		return nil, err
	}
	at, n := int64(chunk)*chunkSize, f.size(chunk)
	good := http.StatusOK
	if n < f.ref.Size {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", at, at+n-1))
		good = http.StatusPartialContent
	}
	res, err := f.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != good {
		return nil, errors.New(res.Status)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(res.Body, b); err != nil {
		return nil, err
	}
	if k, _ := io.ReadFull(res.Body, make([]byte, 1)); k > 0 {
		return nil, errors.New("sends more than it was asked for")
	}
	return b, nil
}
