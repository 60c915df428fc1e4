package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/runtime/search"
)

// Refusal is why a job that runs does not take an order.
type Refusal struct{ Why string }

func (r *Refusal) Error() string { return r.Why }

// steerTime bounds how long an order may take to be committed.
const steerTime = 30 * time.Second

// Steer has the search of the running job take an order; it is committed when this
// returns nil. Any goroutine may call it. The error is a *Refusal where the order makes
// no sense, or not now.
func (n *Node) Steer(o search.Order) (search.Order, error) {
	to := n.supervisor.Load()
	if to == nil {
		return o, &Refusal{"the job is not being carried out"}
	}
	answer, err := to.root.RequestFuture(to.pid, &actors.Steer{Order: o}, steerTime).Result()
	if err != nil {
		return o, fmt.Errorf("no word within %s whether the order was taken: %w; the journal says", steerTime, err)
	}
	m, ok := answer.(*actors.Steered)
	if !ok {
		return o, fmt.Errorf("the supervisor answers %T", answer)
	}
	if m.Err != nil {
		return o, &Refusal{m.Err.Error()}
	}
	return m.Order, nil
}

// While a build runs its folder holds a socket that its user alone may write to: an
// order in JSON each way, one a connection.
//
//	→ {"kind": "stop", "trial": "t003"}
//	← {"order": {"kind": "stop", "trial": "t003", "before": 7}}   or {"error": "…"}

// SteerSocket is the socket's name.
const SteerSocket = "steer.sock"

// maxOrder bounds an order, bytes.
const maxOrder = 64 << 10

// maxAnswer bounds an answer: an order to extend comes back with its brackets.
const maxAnswer = 16 << 20

type steerAnswer struct {
	Order   *search.Order `json:"order,omitempty"`
	Error   string        `json:"error,omitempty"`
	Refused bool          `json:"refused,omitempty"` // the error is the user's to mend
}

// socketIn is an address of the socket in a folder. Those of the kernel are short, and
// paths need not be: the folder is named by its descriptor.
func socketIn(dir string) (addr string, f *os.File, err error) {
	if f, err = os.Open(dir); err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), SteerSocket), f, nil
}

// listen serves orders until the function that it returns is called.
func (n *Node) listen() (done func(), err error) {
	addr, dir, err := socketIn(n.opts.Dir)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(n.opts.Dir, SteerSocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) { // of a build that was killed: the folder is locked
		dir.Close()
		return nil, err
	}
	private := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		// The mode of a socket is that of its file from the first moment on.
		return errors.Join(c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }), err)
	}}
	l, err := private.Listen(context.Background(), "unix", addr)
	if err != nil {
		dir.Close()
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				n.answer(c)
			})
		}
	})
	return func() {
		_ = os.Remove(path)
		l.Close()
		wg.Wait()
		dir.Close()
	}, nil
}

// answer takes one order from a connection.
func (n *Node) answer(c net.Conn) {
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	var o search.Order
	var a steerAnswer
	d := json.NewDecoder(io.LimitReader(c, maxOrder))
	d.DisallowUnknownFields()
	if err := d.Decode(&o); err != nil {
		a = steerAnswer{Error: fmt.Sprintf("the order's JSON: %v", err), Refused: true}
	} else if o, err := n.Steer(o); err != nil {
		var refusal *Refusal
		a = steerAnswer{Error: err.Error(), Refused: errors.As(err, &refusal)}
	} else {
		a.Order = &o
	}
	_ = c.SetWriteDeadline(time.Now().Add(5 * time.Second))
	_ = json.NewEncoder(c).Encode(a) // who asked may have left
}

// SteerFolder has the build that runs in a folder take an order, as Node.Steer does.
func SteerFolder(ctx context.Context, dir string, o search.Order) (search.Order, error) {
	addr, f, err := socketIn(dir)
	if err != nil {
		return o, err
	}
	defer f.Close()
	c, err := new(net.Dialer).DialContext(ctx, "unix", addr)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return o, &Refusal{fmt.Sprintf("no build runs in %s; resume %s goes on with one that was cut off", dir, dir)}
	case errors.Is(err, fs.ErrPermission):
		return o, &Refusal{fmt.Sprintf("%s is another user's: who started the build may steer it", filepath.Join(dir, SteerSocket))}
	case err != nil:
		return o, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if err := json.NewEncoder(c).Encode(o); err != nil {
		return o, err
	}
	var a steerAnswer
	if err := json.NewDecoder(io.LimitReader(c, maxAnswer)).Decode(&a); err != nil {
		return o, fmt.Errorf("the build in %s ended before it answered: %w", dir, err)
	}
	switch {
	case a.Error != "" && a.Refused:
		return o, &Refusal{a.Error}
	case a.Error != "":
		return o, errors.New(a.Error)
	case a.Order == nil:
		return o, errors.New("the build's answer holds no order")
	}
	return *a.Order, nil
}
