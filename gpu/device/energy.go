package device

import (
	"fmt"
	"io/fs"
	"path"
	"strconv"
)

// Energy counts the joules that the processors' packages use, cores and memory
// controllers of all processes together, by the kernel's powercap counters (RAPL).
type Energy struct {
	root  fs.FS
	zones []energyZone
}

// energyZone is a package's counter, in microjoules, which wraps around.
type energyZone struct {
	file        string
	begin, wrap float64
}

// StartEnergy begins to count; the error says why it can't be told here. The counters
// wrap around after minutes of full load.
func StartEnergy(root fs.FS) (*Energy, error) {
	files, _ := fs.Glob(root, "sys/class/powercap/intel-rapl:[0-9]*/energy_uj") // only a bad pattern fails
	e := &Energy{root: root}
	for _, f := range files {
		dir := path.Dir(f)
		if sub, _ := path.Match("*:*:*", path.Base(dir)); sub {
			continue // a part of a package
		}
		z := energyZone{file: f}
		var err error
		if z.begin, err = readNumber(root, f); err != nil {
			return nil, err
		}
		if z.wrap, err = readNumber(root, path.Join(dir, "max_energy_range_uj")); err != nil {
			return nil, err
		}
		e.zones = append(e.zones, z)
	}
	if len(e.zones) == 0 {
		return nil, fmt.Errorf("/sys/class/powercap has no intel-rapl counter: the kernel, or this virtual machine, counts no energy")
	}
	return e, nil
}

// Joules are those since the beginning.
func (e *Energy) Joules() (float64, error) {
	sum := 0.0
	for _, z := range e.zones {
		now, err := readNumber(e.root, z.file)
		if err != nil {
			return 0, err
		}
		if now < z.begin {
			now += z.wrap
		}
		sum += now - z.begin
	}
	return sum / 1e6, nil
}

func readNumber(root fs.FS, name string) (float64, error) {
	text := readText(root, name)
	if text == "" {
		_, err := fs.ReadFile(root, name)
		return 0, fmt.Errorf("/%s can't be read (root alone may, by default): %v", name, err)
	}
	v, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return 0, fmt.Errorf("/%s: %w", name, err)
	}
	return v, nil
}
