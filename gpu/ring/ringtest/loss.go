package ringtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Lossy is a host's link while it loses packets.
type Lossy struct{ links []int }

// Lose has the host's link drop so many percent of the packets, each by a throw of the
// kernel's dice, on their way in and on their way out, of all protocols alike: a
// program of six instructions stands at either end of the link, before the kernel
// looks at a packet (XDP). Tc's netem, which is made for it, is in few kernels.
func (h Host) Lose(t testing.TB, percent int) *Lossy {
	t.Helper()
	l, err := h.lose(percent)
	if err != nil {
		unable(t, err)
	}
	return l
}

// End has the link carry all packets again.
func (l *Lossy) End() {
	for _, fd := range l.links {
		_ = unix.Close(fd)
	}
	l.links = nil
}

func (h Host) lose(percent int) (*Lossy, error) {
	prog, err := dropper(percent)
	if err != nil {
		return nil, err
	}
	defer unix.Close(prog)
	l := &Lossy{}
	for _, end := range []struct {
		pid  int
		name string
	}{{h.PID, "eth0"}, {h.Hub, h.Port}} {
		fd, err := attach(prog, end.pid, end.name)
		if err != nil {
			l.End()
			return nil, err
		}
		l.links = append(l.links, fd)
	}
	return l, nil
}

// dropper loads the program:
//
//	call get_prandom_u32; if r0 < percent of 2³² goto drop
//	pass: return XDP_PASS
//	drop: return XDP_DROP
func dropper(percent int) (int, error) {
	const xdpDrop, xdpPass = 1, 2
	insn := func(b []byte, op byte, off int16, imm uint32) []byte {
		b = append(b, op, 0) // registers: all is about r0
		b = binary.NativeEndian.AppendUint16(b, uint16(off))
		return binary.NativeEndian.AppendUint32(b, imm)
	}
	var code []byte
	code = insn(code, unix.BPF_JMP|0x80, 0, 7)                                             // call 7
	code = insn(code, unix.BPF_JMP32|unix.BPF_JLT, 2, uint32(uint64(percent)*(1<<32)/100)) // on the lower half
	code = insn(code, unix.BPF_ALU64|unix.BPF_MOV, 0, xdpPass)
	code = insn(code, unix.BPF_JMP|unix.BPF_EXIT, 0, 0)
	code = insn(code, unix.BPF_ALU64|unix.BPF_MOV, 0, xdpDrop)
	code = insn(code, unix.BPF_JMP|unix.BPF_EXIT, 0, 0)
	license := []byte("Apache-2.0\x00")
	attr := struct {
		kind, count    uint32
		code, license  uint64
		level, size    uint32
		log            uint64
		version, flags uint32
		name           [16]byte
		index, attach  uint32
	}{
		kind: unix.BPF_PROG_TYPE_XDP, count: uint32(len(code) / 8), code: uint64(uintptr(unsafe.Pointer(&code[0]))),
		license: uint64(uintptr(unsafe.Pointer(&license[0]))), attach: unix.BPF_XDP,
	}
	fd, _, no := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(code)
	runtime.KeepAlive(license)
	if no != 0 {
		return 0, fmt.Errorf("bpf: %w", no)
	}
	return int(fd), nil
}

// attach puts a program before an interface of another process's network, until the
// descriptor is closed.
func attach(prog, pid int, name string) (fd int, err error) {
	// The thread must not end in between: processes that it started end with it.
	runtime.LockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return 0, err
	}
	defer own.Close()
	defer func() {
		if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
			err = errors.Join(err, back) // the thread stays this goroutine's
			return
		}
		runtime.UnlockOSThread()
	}()
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return 0, err
	}
	link, err := net.InterfaceByName(name)
	if err != nil {
		return 0, err
	}
	attr := struct{ prog, index, attach, flags uint32 }{uint32(prog), uint32(link.Index), unix.BPF_XDP, 0}
	n, _, no := unix.Syscall(unix.SYS_BPF, unix.BPF_LINK_CREATE, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if no != 0 {
		return 0, fmt.Errorf("bpf: %s: %w", name, no)
	}
	return int(n), nil
}
