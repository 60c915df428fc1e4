package device

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
)

const onlineFile = "sys/devices/system/cpu/online"

// cpuHealth is what a source of processors remembers between its looks: only a
// change is a fault. A machine that boots with a processor off is no sick one.
type cpuHealth struct {
	seen   []Device         // processors, as they were when they were well
	errors map[string]int64 // by memory controller: uncorrected errors at the first look
}

// look adds those of the processors seen before that have gone offline since, sick,
// and takes all out once a memory controller (EDAC) counts an error that it could not
// correct: whose memory that was isn't told.
func (h *cpuHealth) look(root fs.FS, now []Device) []Device {
	online, err := ParseList(readText(root, onlineFile))
	for _, d := range h.seen {
		there := slices.ContainsFunc(now, func(n Device) bool { return n.ID == d.ID })
		if n := d.number(); err == nil && !there && len(online) > 0 && !slices.Contains(online, n) {
			d.Sick = fmt.Sprintf("it went offline; echo 1 > /%s/cpu%d/online brings it back", path.Dir(onlineFile), n)
			now = append(now, d)
		}
	}
	slices.SortFunc(now, byNumber)
	h.seen = slices.Clone(now)
	for i := range h.seen {
		h.seen[i].Sick = ""
	}
	if why := h.memory(root); why != "" {
		for i := range now {
			if now[i].Sick == "" {
				now[i].Sick = why
			}
		}
	}
	return now
}

// memory tells which controller has lost data since the first look; "" is none.
func (h *cpuHealth) memory(root fs.FS) (why string) {
	if h.errors == nil {
		h.errors = map[string]int64{}
	}
	files, _ := fs.Glob(root, "sys/devices/system/edac/mc/mc*/ue_count") // only a bad pattern fails
	for _, f := range files {
		n, err := strconv.ParseInt(readText(root, f), 10, 64)
		if err != nil {
			continue
		}
		mc := path.Base(path.Dir(f))
		before, known := h.errors[mc]
		if !known {
			h.errors[mc] = n
		} else if n > before {
			why = fmt.Sprintf("ECC: memory controller %s has counted %d uncorrected errors since this process looked first", mc, n-before)
		}
	}
	return why
}

// number is a processor's, of "cpu:7".
func (d *Device) number() int {
	n, _ := strconv.Atoi(d.ID[len("cpu:"):])
	return n
}
