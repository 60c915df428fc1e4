package daemon

import (
	"os"
	"strconv"
	"strings"

	"github.com/open-autoglm/autoglm/actors"
)

// Memory is the most that a job was seen to hold, bytes: of one host, and of one GPU.
// Zero is not known.
type Memory struct {
	Host int64 `json:"host_bytes,omitempty"`
	GPU  int64 `json:"gpu_bytes,omitempty"`
}

// most is the larger of each.
func (m Memory) most(o Memory) Memory { return Memory{max(m.Host, o.Host), max(m.GPU, o.GPU)} }

// measure looks at what the jobs in hand hold now. A job's own processes are its own.
// What this process has grown by, since it had none in hand, is shared out among the
// jobs by their devices: nobody can tell whose a goroutine's memory is.
func (h *hands) measure() {
	h.mu.Lock()
	defer h.mu.Unlock()
	here := resident("self")
	devices := 0
	for r := range h.all() {
		devices += max(1, len(r.Devices))
	}
	if devices == 0 {
		if h.idle == 0 || here < h.idle {
			h.idle = here
		}
		return
	}
	grown := max(0, here-h.idle)
	for r := range h.all() {
		n := grown * int64(max(1, len(r.Devices))) / int64(devices)
		if r.processes != nil {
			for _, pid := range r.processes() {
				n += resident(strconv.Itoa(pid))
			}
		}
		r.Memory = r.Memory.most(Memory{Host: n})
	}
}

// saw notes what a rank's engine counted of a GPU's memory.
func (h *hands) saw(r *held, m *actors.Progress) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r.Memory = r.Memory.most(Memory{GPU: m.Metrics.PeakBytes})
}

// resident is the memory of a process in bytes, 0 where the kernel does not say: it is
// gone.
func resident(pid string) int64 {
	b, err := os.ReadFile("/proc/" + pid + "/statm")
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(f[1], 10, 64)
	return pages * int64(os.Getpagesize())
}

// leaves is what the reserve leaves of a number of bytes, never none, which is not known.
func (d *Daemon) leaves(bytes int64) int64 { return max(1, bytes-d.cfg.Reserve) }

// steadily is a number of bytes as it is published: the last one while it is near, so
// that an idle machine has no news.
func steadily(last, now, total int64) int64 {
	step := max(64<<20, total/64)
	if d := now - last; last > 0 && d < step && d > -step {
		return last
	}
	return now
}
