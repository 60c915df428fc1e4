package step

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// runtimes of containers, the first that is there.
var runtimes = []string{"podman", "docker"}

// container runs the program in a container.
func (c *Config) container(ctx context.Context, log *log) error {
	var path string
	for _, r := range runtimes {
		if p, err := exec.LookPath(r); err == nil {
			path = p
			break
		}
	}
	if path == "" {
		return fmt.Errorf("step %s %w: its image %s needs one of %s in PATH, and this machine has none", c.Name, ErrStart, c.Image, strings.Join(runtimes, ", "))
	}
	name := c.id()
	remove := func() { removeContainer(path, name) }
	remove() // of an attempt whose node was killed
	mark := filepath.Join(c.dir(), containerMark)
	if err := os.WriteFile(mark, []byte(path), 0o600); err != nil {
		return err
	}
	defer os.Remove(mark)
	p := &process{c: *c, group: &group{}, end: remove}
	p.cmd = exec.Command(path, c.containerArgs(filepath.Base(path), name)...)
	p.cmd.Dir, p.cmd.Env = c.dir(), os.Environ() // the runtime's own; the program has what is named
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	return p.run(ctx, log)
}

// containerMark is a file in a step's folder while its container may run: it names the
// runtime.
const containerMark = ".container"

func removeContainer(runtime, name string) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	_ = exec.CommandContext(ctx, runtime, "rm", "-f", name).Run() // it is gone as a rule
}

func (c *Config) containerArgs(runtime, name string) []string {
	args := []string{"run", "--rm", "--name", name}
	if runtime == "docker" { // podman's root is the user who runs it
		args = append(args, "--user", fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid()))
	}
	if !c.Network {
		args = append(args, "--network=none")
	}
	if c.Memory > 0 {
		m := strconv.FormatInt(c.Memory, 10)
		args = append(args, "--memory="+m, "--memory-swap="+m)
	}
	if c.CPUs > 0 {
		args = append(args, "--cpus="+strconv.FormatFloat(c.CPUs, 'f', -1, 64))
	}
	args = append(args, "--mount", "type=bind,source="+c.Job+",target="+c.Job, "--workdir", c.dir())
	for _, v := range c.variables() {
		args = append(args, "--env", v)
	}
	return append(append(args, c.Image), c.Run...)
}
