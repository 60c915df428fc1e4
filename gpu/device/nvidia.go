package device

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
)

// Driver is the source of GPUs that needs no library: /proc/driver/nvidia and
// /dev/nvidia*. It knows models and bus ids, not memory, load or health.
type Driver struct {
	root fs.FS
	open func(name string) error // nil skips the check of permissions
	hint string                  // what shows more
}

// NewDriver reads a root folder, this machine's or a recorded one. Open tries a
// device file ("/dev/nvidia0") for reading and writing; nil tries none.
func NewDriver(root fs.FS, open func(name string) error) *Driver {
	return &Driver{root: root, open: open, hint: "autoglm sees these GPUs but not their memory, links, load or temperature: nvidia-smi shows those"}
}

func openDevice(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// Name implements Source.
func (*Driver) Name() string { return "nvidia-procfs" }

// Close implements Source.
func (*Driver) Close() error { return nil }

// Scan implements Source. A GPU whose device file can't be opened is sick.
func (s *Driver) Scan() (Machine, error) {
	var m Machine
	files, _ := fs.Glob(s.root, "proc/driver/nvidia/gpus/*/information") // only a bad pattern fails
	nodes, _ := fs.Glob(s.root, "dev/nvidia[0-9]*")
	if len(files) == 0 {
		if len(nodes) > 0 {
			m.Notes = append(m.Notes, fmt.Sprintf("/%s is there but no driver answers in /proc/driver/nvidia: load it (modprobe nvidia), or mount /proc/driver/nvidia into this container", nodes[0]))
		}
		return m, nil
	}
	for i, name := range files {
		d := Device{ID: fmt.Sprintf("gpu:%d", i), Kind: GPU, Model: "NVIDIA GPU", NUMA: -1, Core: -1, Load: -1, Bus: path.Base(path.Dir(name))}
		b, err := fs.ReadFile(s.root, name)
		minor := i
		switch {
		case errors.Is(err, fs.ErrPermission):
			d.Sick = fmt.Sprintf("no permission to read /%s", name)
		case err != nil:
			d.Sick = fmt.Sprintf("the driver lost it: %v", err)
		default:
			if model := field(string(b), "Model"); model != "" {
				d.Model = model
			}
			if uuid := field(string(b), "GPU UUID"); strings.HasPrefix(uuid, "GPU-") && !strings.Contains(uuid, "?") {
				d.UUID = uuid
			}
			if n, err := strconv.ParseUint(field(string(b), "Device Minor"), 10, 16); err == nil {
				minor = int(n)
			}
		}
		if d.UUID == "" {
			d.UUID = "GPU-" + d.Bus
		}
		if n, err := strconv.Atoi(readText(s.root, "sys/bus/pci/devices/"+strings.ToLower(d.Bus)+"/numa_node")); err == nil {
			d.NUMA = n
		}
		if s.open != nil && d.Sick == "" {
			dev := fmt.Sprintf("/dev/nvidia%d", minor)
			switch err := s.open(dev); {
			case errors.Is(err, fs.ErrPermission):
				d.Sick = fmt.Sprintf("no permission to open %s: join the group that owns it, or start the container with --gpus", dev)
			case errors.Is(err, fs.ErrNotExist):
				d.Sick = fmt.Sprintf("%s is missing: start the container with --gpus, or run nvidia-modprobe", dev)
			case err != nil:
				d.Sick = fmt.Sprintf("the driver doesn't open %s: %v", dev, err)
			}
		}
		m.Devices = append(m.Devices, d)
	}
	if s.hint != "" {
		m.Notes = append(m.Notes, s.hint)
	}
	return m, nil
}
