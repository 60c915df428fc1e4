package step

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// A program of these tests is this one, started again, where a shell's won't do.
const role = "STEP_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case "node": // runs a step until it is killed
		err := Run(context.Background(), Config{Job: os.Args[1], Name: "s", Attempt: 1, Run: []string{"sh", "-c", "setsid env -i sleep 600 & echo $! > hidden; sleep 600 & echo $! > child; sleep 600"}})
		fmt.Println(err)
		return
	}
	goleak.VerifyTestMain(m)
}

func script(t *testing.T, job, text string) Config {
	t.Helper()
	return Config{Job: job, Name: "s", Attempt: 1, Run: []string{"sh", "-c", text}}
}

func read(t *testing.T, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestEndings(t *testing.T) {
	for _, tc := range []struct {
		name string
		run  []string
		want string // of the error; "" is none
	}{
		{"well", []string{"sh", "-c", "echo hello"}, ""},
		{"badly", []string{"sh", "-c", "echo one; echo two >&2; exit 3"}, "step s ended with exit code 3\none\ntwo"},
		{"silent", []string{"false"}, "step s ended with exit code 1"},
		{"killed", []string{"sh", "-c", "kill -11 $$"}, "was killed by signal 11"},
		{"missing", []string{"./no-such-program"}, "can't be started"},
		{"reads", []string{"sh", "-c", "test -z \"$(cat)\""}, ""}, // nothing comes
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := Config{Job: t.TempDir(), Name: "s", Attempt: 1, Run: tc.run}
			err := Run(t.Context(), c)
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if errors.Is(err, ErrStart) != (tc.name == "missing") {
				t.Errorf("%v: can't be started?", err)
			}
		})
	}
}

func TestFolderAndEnvironment(t *testing.T) {
	job := t.TempDir()
	file := filepath.Join(t.TempDir(), "tell.sh")
	if err := os.WriteFile(file, []byte("#!/bin/sh\npwd; env | sort\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SECRET", "of the node")
	c := Config{Job: job, Name: "tell", Run: []string{"./tell.sh"}, Files: []string{file}, Env: map[string]string{"MINE": "a b"}, Attempt: 2}
	if err := Run(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	got := read(t, job, "steps", "tell", "log")
	for _, want := range []string{
		"-- attempt 2\n", filepath.Join(job, "steps", "tell") + "\n", "AUTOGLM_JOB_DIR=" + job + "\n", "AUTOGLM_DATA_DIR=" + job + "/data\n",
		"AUTOGLM_STEP=tell\n", "AUTOGLM_ATTEMPT=2\n", "MINE=a b\n", "PATH=",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
	if strings.Contains(got, "SECRET") {
		t.Error("the node's environment is the step's")
	}
}

// gone waits until a process that a step's child wrote down has ended.
func gone(t *testing.T, file string) {
	t.Helper()
	pid, err := strconv.Atoi(strings.TrimSpace(read(t, file)))
	if err != nil {
		t.Fatal(err)
	}
	for late := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		if time.Now().After(late) {
			t.Fatalf("process %d still runs: %s", pid, stat)
		}
	}
}

func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for late := time.Now().Add(10 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(late) {
			t.Fatal("never: " + what)
		}
	}
}

func exists(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Size() > 0
}

// The end of the context ends the children of a step's children as well: those that
// listen to SIGTERM, those that don't, and those that left the group.
func TestContextEndsAllProcesses(t *testing.T) {
	job := t.TempDir()
	dir := filepath.Join(job, "steps", "s")
	c := script(t, job, `
		sh -c 'trap "sleep 0.2; echo asked; exit" TERM; echo $$ > polite; while :; do sleep 0.05; done' &
		sh -c 'trap "" TERM; echo $$ > deaf; while :; do sleep 0.05; done' &
		setsid sh -c 'trap "" TERM; echo $$ > away; while :; do sleep 0.05; done' &
		while :; do sleep 0.05; done`)
	c.Grace = time.Second
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("took too long")
	go func() {
		for late := time.Now().Add(10 * time.Second); time.Now().Before(late); time.Sleep(5 * time.Millisecond) {
			if exists(filepath.Join(dir, "polite")) && exists(filepath.Join(dir, "deaf")) && exists(filepath.Join(dir, "away")) {
				break
			}
		}
		cancel(why)
	}()
	if err := Run(ctx, c); !errors.Is(err, why) {
		t.Fatal(err)
	}
	for _, name := range []string{"polite", "deaf", "away"} {
		gone(t, filepath.Join(dir, name))
	}
	if log := read(t, dir, "log"); !strings.Contains(log, "asked") {
		t.Errorf("nobody was asked to end: %q", log)
	}
}

// What a program leaves behind in the background ends with it.
func TestNothingIsLeft(t *testing.T) {
	job := t.TempDir()
	c := script(t, job, "sleep 600 & echo $! > one; setsid sleep 600 & echo $! > two; until test -s two; do :; done")
	if err := Run(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	gone(t, filepath.Join(job, "steps", "s", "one"))
	gone(t, filepath.Join(job, "steps", "s", "two"))
}

// A node that was killed leaves a step's grandchildren; the next attempt ends them, or
// the next node.
func TestNodeKilled(t *testing.T) {
	t.Run("attempt", func(t *testing.T) {
		nodeKilled(t, func(t *testing.T, job string) {
			c := script(t, job, "true")
			c.Attempt = 2
			if err := Run(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		})
	})
	t.Run("node", func(t *testing.T) {
		nodeKilled(t, func(t *testing.T, job string) {
			if err := Clear(filepath.Dir(job)); err != nil {
				t.Fatal(err)
			}
		})
	})
}

func nodeKilled(t *testing.T, again func(t *testing.T, job string)) {
	job := filepath.Join(t.TempDir(), "j1")
	child := filepath.Join(job, "steps", "s", "child")
	// A cgroup, where there is one, finds those that hide as well.
	hides := newGroup(ownCgroup(), fmt.Sprint("autoglm-test-", os.Getpid()), 0, 0)
	hides.remove()
	node := exec.Command(os.Args[0], job)
	node.Env = append(os.Environ(), role+"=node")
	if err := node.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, "the step begins", func() bool { return exists(child) })
	if err := node.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = node.Wait()
	again(t, job)
	gone(t, child)
	if hides.dir != nil {
		gone(t, filepath.Join(job, "steps", "s", "hidden"))
	}
}

// A program that takes more memory than it may is ended, and that is said.
func TestMemory(t *testing.T) {
	t.Run("together", func(t *testing.T) { // of the two, none takes more than its own bound
		c := script(t, t.TempDir(), "yes | tail -c 100M > /dev/null & yes | tail -c 100M > /dev/null & wait")
		c.Memory = 160 << 20
		err := Run(t.Context(), c)
		if err == nil || !strings.Contains(err.Error(), "memory") || !strings.Contains(err.Error(), "160 MiB") {
			t.Errorf("got %v\n%s", err, read(t, c.Job, "steps", "s", "log"))
		}
	})
	t.Run("at once", func(t *testing.T) {
		g := newGroup(ownCgroup(), fmt.Sprint("autoglm-test-", os.Getpid()), 1<<30, 0)
		g.remove()
		if g.memory {
			t.Skip("a cgroup bounds it")
		}
		c := script(t, t.TempDir(), "dd if=/dev/zero of=/dev/null bs=300M count=1")
		c.Memory = 100 << 20
		err := Run(t.Context(), c)
		if err == nil || !strings.Contains(err.Error(), "(its processes may allocate 100 MiB each)\n") {
			t.Error(err)
		}
	})
	t.Run("enough", func(t *testing.T) {
		c := script(t, t.TempDir(), "true")
		c.Memory = 100 << 20
		if err := Run(t.Context(), c); err != nil {
			t.Error(err)
		}
	})
}

func TestProcessors(t *testing.T) {
	g := newGroup(ownCgroup(), fmt.Sprint("autoglm-test-", os.Getpid()), 0, 1)
	g.remove()
	if g.cpus {
		t.Skip("a cgroup bounds them")
	}
	c := script(t, t.TempDir(), "nproc")
	c.CPUs = 0.5
	if err := Run(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(read(t, c.Job, "steps", "s", "log")); got != "1" {
		t.Errorf("it may run on %s processors", got)
	}
}

// However much a program prints, its log stays small and ends with the newest.
func TestLogIsBounded(t *testing.T) {
	c := script(t, t.TempDir(), "seq 1 200000; echo the end; exit 1")
	c.LogBytes = 64 << 10
	err := Run(t.Context(), c)
	if err == nil || !strings.HasSuffix(err.Error(), "199999\n200000\nthe end") {
		t.Fatal(err)
	}
	for range 2 { // the next attempt goes on
		newest, before := read(t, c.Job, "steps", "s", "log"), read(t, c.Job, "steps", "s", "log.1")
		if len(newest) > 64<<10 || len(before) != 64<<10 || !strings.HasSuffix(before+newest, "200000\nthe end\n") {
			t.Errorf("%d and %d bytes", len(before), len(newest))
		}
		_ = Run(t.Context(), c)
	}
}

func TestLastLines(t *testing.T) {
	l, err := openLog(filepath.Join(t.TempDir(), "log"), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(l, strings.Repeat("x", 3000), "\n\x1b[31mred\xff\nlast\n\n")
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	if got := l.last(); len(got) > lastBytes+10 || !strings.HasSuffix(got, "\n�[31mred�\nlast") {
		t.Errorf("%q", got[max(0, len(got)-40):])
	}
}

// A disk that is full is told as what it is, and the program does not wait for it.
func TestLogOnAFullDisk(t *testing.T) {
	c := script(t, t.TempDir(), "seq 1 100000")
	if err := os.MkdirAll(c.dir(), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/full", filepath.Join(c.dir(), "log")); err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), c); !errors.Is(err, syscall.ENOSPC) {
		t.Error(err)
	}
}

func TestCgroupAt(t *testing.T) {
	const unified = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
	for _, tc := range []struct{ self, mounts, want string }{
		{"0::/system.slice/autoglm.service\n", unified, "/sys/fs/cgroup/system.slice/autoglm.service"},
		{"4:memory:/x\n0::/\n", "1 2 0:1 / / rw - ext4 /dev/vda rw\n" + strings.Replace(unified, "/sys/fs/cgroup ", "/sys/fs/cgroup/unified ", 1), "/sys/fs/cgroup/unified"},
		{"0::/docker/abc/in\n", strings.Replace(unified, " / /sys", " /docker/abc /sys", 1), "/sys/fs/cgroup/in"},
		{"0::/elsewhere\n", strings.Replace(unified, " / /sys", " /docker/abc /sys", 1), ""},
		{"4:memory:/x\n", unified, ""},
		{"0::/\n", "", ""},
	} {
		if got := cgroupAt(tc.self, tc.mounts); got != tc.want {
			t.Errorf("%q, %q: %q, want %q", tc.self, tc.mounts, got, tc.want)
		}
	}
}

// Where the kernel refuses to start a process in a cgroup, it starts outside.
func TestNoStartInACgroup(t *testing.T) {
	c := script(t, t.TempDir(), "echo hello")
	c.Grace, c.LogBytes = time.Second, 1<<20
	if err := c.lay(); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		group *group
		fails bool
	}{{&group{path: "/nowhere", dir: os.Stdin}, true}, {&group{}, false}} {
		l, err := openLog(filepath.Join(c.dir(), "log"), c.LogBytes)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.plain(tc.group).run(t.Context(), l); errors.Is(err, ErrStart) != tc.fails {
			t.Errorf("%+v: %v", tc, err)
		}
		if err := l.close(); err != nil {
			t.Error(err)
		}
	}
}

func TestDivided(t *testing.T) {
	handed := func(path string) bool { return path == "/c/autoglm.service" }
	for own, want := range map[string]string{
		"/c/autoglm.service/node": "/c/autoglm.service", "/c/autoglm.service": "/c/autoglm.service", "/c/session.scope": "/c/session.scope", "": "",
	} {
		if got := divided(own, handed); got != want {
			t.Errorf("%q: %q, want %q", own, got, want)
		}
	}
	if delegated(t.TempDir()) || delegated("/nowhere") {
		t.Error("a folder was delegated")
	}
}

// The files of a cgroup are the kernel's; here they are a folder's, which shows what
// is written to them.
func TestCgroupBounds(t *testing.T) {
	parent := t.TempDir()
	if g := newGroup(parent, "s", 0, 0); g.dir == nil || g.memory || g.cpus {
		t.Errorf("%+v", g)
	}
	if g := newGroup(parent, "s", 1<<30, 1); g.dir == nil || g.memory || g.cpus {
		t.Errorf("after a node that was killed: %+v", g)
	}
	if g := newGroup(filepath.Join(parent, "nowhere"), "s", 1<<30, 1); g.dir != nil || g.oom() {
		t.Errorf("%+v", g)
	}
	for _, f := range []string{"memory.max", "memory.swap.max", "memory.oom.group", "cpu.max", "memory.events"} {
		if err := os.WriteFile(filepath.Join(parent, f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	g := &group{path: parent, dir: os.Stdin}
	g.bound(1<<30, 1.5)
	if !g.memory || !g.cpus || read(t, parent, "memory.max") != "1073741824" || read(t, parent, "cpu.max") != "150000 100000" || read(t, parent, "memory.swap.max") != "0" {
		t.Errorf("%+v", g)
	}
	if g.oom() {
		t.Error("nobody was killed")
	}
	if err := put(parent, "memory.events", "low 0\noom 1\noom_kill 1\n"); err != nil || !g.oom() {
		t.Errorf("somebody was killed; %v", err)
	}
}

// In a real cgroup a step ends with all that it started.
func TestCgroupKill(t *testing.T) {
	g := newGroup(ownCgroup(), fmt.Sprint("autoglm-test-", os.Getpid()), 0, 0)
	if g.dir == nil {
		t.Skip("no cgroup of version 2 that may be divided")
	}
	defer g.remove()
	file := filepath.Join(t.TempDir(), "pid")
	cmd := exec.Command("sh", "-c", "setsid env -i sleep 600 & echo $! > "+file+"; sleep 600")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(g.dir.Fd())}
	if err := cmd.Start(); err != nil {
		t.Skipf("a process can't be started there: %v", err)
	}
	until(t, "the child", func() bool { return exists(file) })
	waited := make(chan error, 1)
	go func() { waited <- cmd.Wait() }()
	g.kill()
	<-waited
	gone(t, file)
}

// A container's runtime is a stand-in here that writes its arguments down.
func TestContainer(t *testing.T) {
	bin := t.TempDir()
	t.Setenv("PATH", bin)
	c := script(t, t.TempDir(), "echo hi")
	c.Image, c.Memory, c.CPUs, c.Env = "python:3.12", 1<<30, 1.5, map[string]string{"MINE": "x"}
	if err := Run(t.Context(), c); !errors.Is(err, ErrStart) || !strings.Contains(err.Error(), "podman, docker") {
		t.Errorf("without a runtime: %v", err)
	}
	const stand = "#!/bin/sh\nfor a; do echo \"$a\"; done >> $0.args; test $1 = run && echo said\nexit ${STAND_IN_EXIT:-0}\n"
	for _, r := range []string{"docker", "podman"} { // podman goes first once it is there
		path := filepath.Join(bin, r)
		if err := os.WriteFile(path, []byte(stand), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := Run(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		name := c.id()
		args := strings.Split(strings.TrimSpace(read(t, path+".args")), "\n")
		rm := []string{"rm", "-f", name}
		if !slices.Equal(args[:3], rm) || !slices.Equal(args[len(args)-3:], rm) {
			t.Errorf("%s: it is removed neither before nor after: %q", r, args)
		}
		run := args[3 : len(args)-3]
		for _, want := range []string{"--rm", "--network=none", "--memory=1073741824", "--cpus=1.5", "type=bind,source=" + c.Job + ",target=" + c.Job, c.dir(), "AUTOGLM_JOB_DIR=" + c.Job, "AUTOGLM_STEP=s", "MINE=x"} {
			if !slices.Contains(run, want) {
				t.Errorf("%s: %s is not in %q", r, want, run)
			}
		}
		if run[0] != "run" || slices.Contains(run, "--user") != (r == "docker") || !slices.Equal(run[len(run)-4:], []string{"python:3.12", "sh", "-c", "echo hi"}) {
			t.Errorf("%s: %q", r, run)
		}
		if log := read(t, c.dir(), "log"); !strings.Contains(log, "said") {
			t.Errorf("%s: the log is %q", r, log)
		}
	}
	if err := os.WriteFile(filepath.Join(c.dir(), containerMark), []byte(filepath.Join(bin, "podman")), 0o600); err != nil { // as a node that was killed leaves it
		t.Fatal(err)
	}
	if err := Clear(filepath.Dir(c.Job)); err != nil {
		t.Fatal(err)
	}
	if args := read(t, filepath.Join(bin, "podman.args")); strings.Count(args, "rm\n-f\n"+c.id()) != 3 {
		t.Errorf("%q", args)
	}
	t.Setenv("STAND_IN_EXIT", "137")
	if err := Run(t.Context(), c); err == nil || !strings.Contains(err.Error(), "137 (killed: for its memory, as a rule)") {
		t.Error(err)
	}
	c.Network = true
	if args := c.containerArgs("podman", "x"); slices.Contains(args, "--network=none") {
		t.Errorf("%q", args)
	}
}
