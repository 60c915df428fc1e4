package chaos

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A slow disk is one whose syncs take long. The node's process has the kernel hold up
// each fsync and fdatasync of its own until a listener lets it go on (seccomp's user
// notification); the listener's descriptor is fetched by the test's process, which waits
// a while first when the disk is to be slow. The node's code knows nothing of it.

// holdSyncs begins that in a node's process, and is the listener's descriptor.
func holdSyncs() (int, error) {
	code := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the call's number
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: unix.SYS_FSYNC},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_FDATASYNC},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	const flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH |
		unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV // or signals of the scheduler would have calls begin again
	fd, _, no := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	if no != 0 {
		return 0, fmt.Errorf("seccomp: %w", no)
	}
	return int(fd), nil
}

// disk lets a node's syncs go on, at once or late.
type disk struct {
	fd   int
	wg   sync.WaitGroup
	done chan struct{} // closed by end
	slow atomic.Bool
	last atomic.Int64  // Unix nanoseconds of the last sync
	mine atomic.Int64  // syncs that were held up
	held *atomic.Int64 // … of all disks
}

// A slow disk's sync takes between these.
const (
	syncAtLeast = 50 * time.Millisecond
	syncAtMost  = 500 * time.Millisecond
)

// diskOf takes the listener of a process over.
func diskOf(pid, fd int, held *atomic.Int64) (*disk, error) {
	p, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(p)
	d := &disk{done: make(chan struct{}), held: held}
	if d.fd, err = unix.PidfdGetfd(p, fd, 0); err != nil {
		return nil, os.NewSyscallError("pidfd_getfd", err)
	}
	d.wg.Go(d.listen)
	return d, nil
}

// end is called when the process is gone, or may be.
func (d *disk) end() {
	close(d.done)
	d.wg.Wait()
	_ = unix.Close(d.fd)
}

// slowDown makes a disk slow that is in use now, until mend, which waits for a sync that
// was held up.
func (d *disk) slowDown() (mend func(), ok bool) {
	if time.Since(time.Unix(0, d.last.Load())) > time.Second {
		return nil, false
	}
	before := d.mine.Load()
	d.slow.Store(true)
	return func() {
		for late := time.Now().Add(5 * time.Second); d.mine.Load() == before && time.Now().Before(late); {
			time.Sleep(10 * time.Millisecond)
		}
		d.slow.Store(false)
	}, true
}

// Of <linux/seccomp.h>.
type notification struct {
	ID         uint64
	PID, Flags uint32
	Call       struct {
		Number, Arch uint32
		IP           uint64
		Args         [6]uint64
	}
}

type response struct {
	ID           uint64
	Value        int64
	Error, Flags uint32
}

func (d *disk) listen() {
	for {
		select {
		case <-d.done:
			return
		default:
		}
		ready := []unix.PollFd{{Fd: int32(d.fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(ready, 100); err == unix.EINTR || n == 0 {
			continue
		}
		if ready[0].Revents&unix.POLLIN == 0 {
			return // the process is gone
		}
		var n notification
		if _, _, no := unix.Syscall(unix.SYS_IOCTL, uintptr(d.fd), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n))); no != 0 {
			continue // who called is gone
		}
		d.last.Store(time.Now().UnixNano())
		if !d.slow.Load() {
			d.goOn(n.ID)
			continue
		}
		d.mine.Add(1)
		d.held.Add(1)
		d.wg.Go(func() {
			select {
			case <-time.After(syncAtLeast + rand.N(syncAtMost-syncAtLeast)):
			case <-d.done:
			}
			d.goOn(n.ID)
		})
	}
}

func (d *disk) goOn(id uint64) {
	r := response{ID: id, Flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(d.fd), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&r)))
}
