// Package step runs a program of the user's own as a step of a job: in a process
// group or a container of its own, within limits, with its output in a log.
//
//	err := step.Run(ctx, step.Config{Job: "/runs/run1", Name: "fetch", Run: []string{"./fetch.sh"}, Memory: 1 << 30})
//
// The program works in JOB/steps/NAME, with nothing on its standard input and this
// environment, to which Config.Env adds:
//
//	PATH HOME LANG     as the node has them; a container has its image's
//	AUTOGLM_JOB_DIR    the job's folder
//	AUTOGLM_DATA_DIR   … and what it has of its data
//	AUTOGLM_STEP       the step's name
//	AUTOGLM_ATTEMPT    from 1
//
// What it writes to standard output and error goes to JOB/steps/NAME/log, of which
// the newest part is kept. Exit code 0 is success.
//
// # Limits
//
// Where the node has a cgroup (version 2) of its own to divide, memory and cpus are
// bounds of a cgroup that holds all of the step's processes. Elsewhere each process
// may allocate so much memory (RLIMIT_DATA), what all of them use is looked at ten
// times a second, and they run on so many processors.
//
// When the context ends, all processes of the step get SIGTERM, and those that are
// there after Config.Grace SIGKILL. When the program itself ends, what it left in the background is
// killed, and so is what an earlier attempt left whose node was killed: its
// processes are known by their cgroup, their group, and AUTOGLM_JOB_DIR and
// AUTOGLM_STEP in their environment.
//
// # Containers
//
// With an image the program runs in a container of podman or docker, whichever is in
// PATH, which sees the job's folder and has no network unless it asks for it. What is
// said to the runtime was tested with a stand-in that writes its arguments down; a
// real one has never been run.
//
// Invariants: when Run returns, no process of the step is left that the kernel lets
// us kill; the log is never larger than twice LogBytes.
//
// Vocabulary: step, attempt, grace, leftover.
package step

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Config of an attempt at a step.
type Config struct {
	Job     string            // the job's folder
	Name    string            // of the step
	Run     []string          // program and arguments
	Files   []string          // copied into the step's folder
	Env     map[string]string //
	Image   string            // of a container; "" is a plain process
	Network bool              // of a container
	CPUs    float64           // 0 is no bound
	Memory  int64             // bytes; 0 is no bound
	Attempt int               // from 1

	Grace    time.Duration // between SIGTERM and SIGKILL; 0 is 5 s
	LogBytes int64         // kept of the output, up to twice; 0 is 1 MiB
}

// ErrStart means that the program could not be started: another try meets the same.
var ErrStart = errors.New("can't be started")

// Run makes an attempt. It returns nil when the program ended well, the context's
// cause when that ended first, else why not, in a line, which those follow that the
// log ends with.
func Run(ctx context.Context, c Config) error {
	var err error
	if c.Job, err = filepath.Abs(c.Job); err != nil {
		return err
	}
	if c.Grace == 0 {
		c.Grace = 5 * time.Second
	}
	if c.LogBytes == 0 {
		c.LogBytes = 1 << 20
	}
	if err := c.lay(); err != nil {
		return err
	}
	log, err := openLog(filepath.Join(c.dir(), "log"), c.LogBytes)
	if err != nil {
		return err
	}
	defer log.close()
	if c.Attempt > 1 {
		fmt.Fprintf(log, "-- attempt %d\n", c.Attempt)
	}
	if c.Image != "" {
		return c.container(ctx, log)
	}
	sweep(c.marks()...)
	if _, err := look(c.dir(), c.Run[0]); err != nil {
		return fmt.Errorf("step %s %w: %w", c.Name, ErrStart, err)
	}
	g := newGroup(ownCgroup(), c.id(), c.Memory, c.CPUs)
	defer g.remove()
	err = c.plain(g).run(ctx, log)
	if g.dir != nil && errors.Is(err, ErrStart) { // a sandbox may forbid to start one in a cgroup
		err = c.plain(&group{}).run(ctx, log)
	}
	return err
}

// plain is a process of the machine's, with the bounds that its group does not set.
func (c *Config) plain(g *group) *process {
	p := &process{c: *c, group: g}
	args := c.Run
	if c.CPUs > 0 && !g.cpus {
		p.processors = int(c.CPUs + 0.999)
	}
	if c.Memory > 0 && !g.memory {
		p.watched = true
		args = append([]string{"sh", "-c", `ulimit -d "$0" && exec "$@"`, strconv.FormatInt(c.Memory>>10, 10)}, args...)
	}
	p.cmd = exec.Command(args[0], args[1:]...)
	p.cmd.Dir, p.cmd.Env = c.dir(), c.environment()
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if g.dir != nil {
		p.cmd.SysProcAttr.UseCgroupFD, p.cmd.SysProcAttr.CgroupFD = true, int(g.dir.Fd())
	}
	return p
}

func (c *Config) dir() string { return filepath.Join(c.Job, "steps", c.Name) }

// id names the step's cgroup or container: one for all its attempts, and for no step
// of another job.
func (c *Config) id() string {
	h := fnv.New64a()
	_, _ = h.Write([]byte(c.Job))
	return fmt.Sprintf("autoglm-%x-%s", h.Sum64(), c.Name)
}

// lay makes the step's folder and copies its files there.
func (c *Config) lay() error {
	for _, d := range []string{filepath.Join(c.Job, "data"), c.dir()} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	for _, f := range c.Files {
		if err := copyFile(f, filepath.Join(c.dir(), filepath.Base(f))); err != nil {
			if errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("step %s %w: %w", c.Name, ErrStart, err)
			}
			return err
		}
	}
	return nil
}

// copyFile replaces a file, whole. It may be run: what came over the network has lost
// that right.
func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	tmp := to + ".tmp"
	out, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err = errors.Join(err, out.Close()); err != nil {
		os.Remove(tmp)
		return err
	}
	return os.Rename(tmp, to)
}

// variables are those of ours, and the user's.
func (c *Config) variables() []string {
	env := []string{
		"AUTOGLM_JOB_DIR=" + c.Job, "AUTOGLM_DATA_DIR=" + filepath.Join(c.Job, "data"),
		"AUTOGLM_STEP=" + c.Name, fmt.Sprintf("AUTOGLM_ATTEMPT=%d", c.Attempt),
	}
	for k, v := range c.Env {
		env = append(env, k+"="+v)
	}
	slices.Sort(env[4:])
	return env
}

func (c *Config) environment() []string {
	var env []string
	for _, k := range []string{"PATH", "HOME", "LANG"} {
		if v, ok := os.LookupEnv(k); ok {
			env = append(env, k+"="+v)
		}
	}
	return append(env, c.variables()...)
}

// Clear ends what steps of jobs left whose node was killed: jobs is the folder of their
// folders, and no node may run any of them.
func Clear(jobs string) error {
	jobs, err := filepath.Abs(jobs)
	if err != nil {
		return err
	}
	all, err := fs.Glob(os.DirFS(jobs), "*/steps/*")
	if err != nil {
		return err
	}
	own := ownCgroup()
	for _, dir := range all {
		dir = filepath.Join(jobs, dir)
		c := Config{Job: filepath.Dir(filepath.Dir(dir)), Name: filepath.Base(dir)}
		if own != "" {
			clearGroup(filepath.Join(own, c.id()))
		}
		if runtime, err := os.ReadFile(filepath.Join(dir, containerMark)); err == nil {
			removeContainer(string(runtime), c.id())
			os.Remove(filepath.Join(dir, containerMark))
		}
	}
	sweep("AUTOGLM_JOB_DIR=" + jobs + "/")
	return nil
}

// look finds a program as the step would.
func look(dir, name string) (string, error) {
	if strings.Contains(name, "/") && !filepath.IsAbs(name) {
		name = filepath.Join(dir, name)
	}
	return exec.LookPath(name)
}
