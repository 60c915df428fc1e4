package ring

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// futex(2), in its form for memory that processes share.
const (
	futexOpWait = 0
	futexOpWake = 1
)

// futexWait blocks while *w is v, at most limit.
func futexWait(w *uint32, v uint32, limit time.Duration) {
	ts := unix.NsecToTimespec(int64(limit))
	unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(w)), futexOpWait, uintptr(v), uintptr(unsafe.Pointer(&ts)), 0, 0)
}

// futexWake wakes all who wait for w.
func futexWake(w *uint32) {
	unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(w)), futexOpWake, 1<<30, 0, 0, 0)
}

// schedYield lets another thread have this core.
func schedYield() { unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }
