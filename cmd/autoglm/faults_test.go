package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/open-autoglm/autoglm/actors/actorstest"
	"github.com/open-autoglm/autoglm/runtime/journal"
)

// follow runs a build with --json and calls at for each event; it returns
// standard error and the exit code.
func follow(t *testing.T, dir string, at func(event, stage string, c *exec.Cmd), args ...string) (string, int) {
	t.Helper()
	c, out, stderr := start(t, dir, append(args, "--json")...)
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var e struct{ Event, Stage string }
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Errorf("%q: %v", lines.Text(), err)
		}
		at(e.Event, e.Stage, c)
	}
	_ = c.Wait()
	return stderr.String(), c.ProcessState.ExitCode()
}

// leftovers lists temporary files and half-made folders.
func leftovers(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if base := filepath.Base(path); strings.HasPrefix(base, ".") || strings.Contains(base, ".tmp") {
			out = append(out, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// goesOn resumes a build and holds what it leaves against the calm one's.
func goesOn(t *testing.T, dir string) {
	t.Helper()
	if _, stderr, code := autoglm(t, dir, "resume", "run"); code != 0 {
		t.Fatalf("resume: exit %d: %s", code, stderr)
	}
	if _, stderr, code := autoglm(t, dir, "build", "log.txt", "--job", "job.yaml", "--out", "calm"); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	got, want := made(t, filepath.Join(dir, "run")), made(t, filepath.Join(dir, "calm"))
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Errorf("the disturbed build differs from a calm one: …%.200q\nwant …%.200q", got[i:], want[i:])
			return
		}
	}
	if len(got) != len(want) {
		t.Errorf("the disturbed build left %d bytes, a calm one %d", len(got), len(want))
	}
}

// A disk that is full at any moment ends the build with a word of what to do, and
// costs nothing but the time: what resume leaves are the bytes of a calm build.
func TestDiskFull(t *testing.T) {
	for _, tc := range []struct {
		name, event, stage string
		nth                int
		leave              int64 // bytes
	}{
		{"data", "", "", 0, 64 << 10},
		{"tokens", "planned", "", 1, 0},
		{"checkpoint", "decided", "", 10, 0},
		{"final", "final_started", "", 1, 0},
		{"bundle", "stage_started", "evaluate", 1, 48 << 10},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=96m"); err != nil {
				t.Skipf("a small disk can't be mounted: %v (TestFileSizeLimit needs no rights)", err)
			}
			defer func() {
				if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			}()
			corpus(t, dir)
			ballast := filepath.Join(dir, "ballast")
			fill := func() {
				f, err := os.Create(ballast)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				for { // the build writes meanwhile
					var st unix.Statfs_t
					if err := unix.Statfs(dir, &st); err != nil {
						t.Fatal(err)
					}
					err := unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-tc.leave)
					if err == nil {
						return
					}
					if !errors.Is(err, unix.ENOSPC) {
						t.Fatal(err)
					}
				}
			}
			if tc.event == "" {
				fill()
			}
			attempt := func() (string, int) {
				n := tc.nth
				return follow(t, dir, func(event, stage string, _ *exec.Cmd) {
					if event == tc.event && (tc.stage == "" || stage == tc.stage) {
						if n--; n == 0 {
							fill()
						}
					}
				}, "build", "log.txt", "--job", "job.yaml", "--out", "run")
			}
			stderr, code := attempt()
			for range 9 {
				if code != 0 {
					break
				}
				// The build was through before the disk was full: once more.
				for _, path := range []string{ballast, filepath.Join(dir, "run")} {
					if err := os.RemoveAll(path); err != nil {
						t.Fatal(err)
					}
				}
				stderr, code = attempt()
			}
			if code != 1 || !strings.Contains(stderr, "no space left on device") || !strings.Contains(stderr, "autoglm resume run") {
				t.Errorf("exit %d: %s", code, stderr)
			}
			t.Log(strings.TrimSpace(stderr))
			if left := leftovers(t, filepath.Join(dir, "run")); len(left) > 0 {
				t.Errorf("half-written: %v", left)
			}
			if err := os.Remove(ballast); err != nil {
				t.Fatal(err)
			}
			goesOn(t, dir)
		})
	}
}

// A limit on the size of files is met like a full disk, whoever runs the build.
func TestFileSizeLimit(t *testing.T) {
	dir := t.TempDir()
	corpus(t, dir)
	c := exec.CommandContext(t.Context(), "sh", "-c", `ulimit -f 256 && exec "$0" build log.txt --job job.yaml --out run`, binary)
	c.Dir = dir
	out, err := c.CombinedOutput()
	if code := c.ProcessState.ExitCode(); err == nil || code != 1 || !strings.Contains(string(out), "file too large") || !strings.Contains(string(out), "autoglm resume run") {
		t.Fatalf("exit %d: %s", code, out)
	}
	if left := leftovers(t, filepath.Join(dir, "run")); len(left) > 0 {
		t.Errorf("half-written: %v", left)
	}
	goesOn(t, dir)
}

// A folder that another build holds is left alone.
func TestFolderInUse(t *testing.T) {
	dir := t.TempDir()
	corpus(t, dir)
	log, err := journal.OpenFile(filepath.Join(dir, "run", "journal"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	for _, args := range [][]string{{"build", "log.txt", "--out", "run"}, {"resume", "run"}} {
		_, stderr, code := autoglm(t, dir, args...)
		if code != 2 || !strings.Contains(stderr, "in use by another build") || !strings.Contains(stderr, "--out") {
			t.Errorf("%v: exit %d: %s", args, code, stderr)
		}
	}
	if entries, err := os.ReadDir(filepath.Join(dir, "run")); err != nil || len(entries) != 1 {
		t.Errorf("the folder holds %v, %v", entries, err)
	}
}

// A file that shrinks while it is read is refused by name; once it is whole the
// build goes on.
func TestDataShrinksWhileRead(t *testing.T) {
	dir := t.TempDir()
	corpus(t, dir)
	path := filepath.Join(dir, "log.txt")
	small, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, strings.Repeat(string(small), 400)) // enough that it is read for a while
	stderr, code := follow(t, dir, func(event, stage string, _ *exec.Cmd) {
		if event == "stage_started" && stage == "clean" {
			for read := false; !read; { // until rows of it have come through
				spools, _ := filepath.Glob(filepath.Join(dir, "run", "data", ".partial-*", "rows"))
				for _, f := range spools {
					info, err := os.Stat(f)
					read = read || err == nil && info.Size() > 0
				}
				if _, err := os.Stat(filepath.Join(dir, "run", "data", "report.json")); err == nil {
					t.Fatal("the data was read before it could be cut")
				}
			}
			if err := os.Truncate(path, 1000); err != nil {
				t.Error(err)
			}
		}
	}, "build", "log.txt", "--job", "job.yaml", "--out", "run")
	if code != 2 || !strings.Contains(stderr, path) || !strings.Contains(stderr, "shrank") && !strings.Contains(stderr, "changed") || !strings.Contains(stderr, "wait until its writer is done") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	for _, part := range []string{"train.part", "report.json"} {
		if _, err := os.Stat(filepath.Join(dir, "run", "data", part)); err == nil {
			t.Errorf("%s was left by a cleaning that failed", part)
		}
	}
	write(t, path, string(small))
	goesOn(t, dir)
}

// A data file that is gone before a build that was interrupted had read it is
// named; when it is back the build goes on.
func TestDataVanishes(t *testing.T) {
	dir := t.TempDir()
	corpus(t, dir)
	path := filepath.Join(dir, "log.txt")
	// A quick machine may have cleaned the data before it is killed: then again.
	for try := 1; ; try++ {
		stderr, code := follow(t, dir, func(event, stage string, c *exec.Cmd) {
			if event == "stage_started" && stage == "probe" {
				_ = c.Process.Signal(syscall.SIGKILL)
			}
		}, "build", "log.txt", "--job", "job.yaml", "--out", "run")
		if code != -1 {
			t.Fatalf("exit %d: %s", code, stderr)
		}
		if _, err := os.Stat(filepath.Join(dir, "run", "data", "report.json")); err != nil {
			break
		}
		if try == 9 {
			t.Fatal("the data was clean each time before the build could be killed")
		}
		if err := os.RemoveAll(filepath.Join(dir, "run")); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := autoglm(t, dir, "resume", "run"); code != 2 || !strings.Contains(stderr, path) {
		t.Errorf("exit %d: %s", code, stderr)
	}
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	goesOn(t, dir)
}

// A checkpoint that holds a NaN is refused by name and costs no trial its place;
// what is whole again, or gone, lets resume go on.
func TestNaNInCheckpoint(t *testing.T) {
	dir := t.TempDir()
	corpus(t, dir)
	n := 0
	stderr, code := follow(t, dir, func(event, _ string, c *exec.Cmd) {
		if event == "final_started" {
			_ = c.Process.Signal(syscall.SIGKILL)
			n++
		}
	}, "build", "log.txt", "--job", "job.yaml", "--out", "run")
	if n == 0 {
		t.Fatalf("no final training: exit %d: %s", code, stderr)
	}
	files, err := filepath.Glob(filepath.Join(dir, "run", "trials", "*", "checkpoint", "*.safetensors"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no checkpoints: %v", err)
	}
	old := map[string][]byte{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		old[f] = b
		bad := bytes.Clone(b)
		copy(bad[len(bad)-4:], "\x00\x00\xc0\x7f") // the last value is NaN
		write(t, f, string(bad))
	}
	_, stderr, code = autoglm(t, dir, "resume", "run")
	if code != 1 || !strings.Contains(stderr, "NaN") || !strings.Contains(stderr, filepath.Join("run", "trials")) || !strings.Contains(stderr, "autoglm resume run") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	t.Log(strings.TrimSpace(stderr))
	for f, b := range old {
		write(t, f, string(b))
	}
	goesOn(t, dir)
}

// However the ranks of the final training join, the build leaves the same bytes.
func TestBackendsGiveTheSameBytes(t *testing.T) {
	dir := t.TempDir()
	corpus(t, dir)
	job, err := os.ReadFile(filepath.Join(dir, "job.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	bundles := map[string]string{}
	for _, backend := range []string{"inproc", "shm", "unix", "tcp"} {
		write(t, filepath.Join(dir, backend+".yaml"), strings.Replace(string(job), "cpu-any", "cpu-2", 1)+"backend: "+backend+"\n")
		if _, stderr, code := autoglm(t, dir, "build", "log.txt", "--job", backend+".yaml", "--out", backend); code != 0 {
			t.Fatalf("%s: exit %d: %s", backend, code, stderr)
		}
		b, err := os.ReadFile(filepath.Join(dir, backend, "bundle", "model.safetensors"))
		if err != nil {
			t.Fatal(err)
		}
		bundles[backend] = string(b)
	}
	for backend, b := range bundles {
		if b != bundles["inproc"] {
			t.Errorf("%s gives another model than inproc", backend)
		}
	}
	write(t, filepath.Join(dir, "bad.yaml"), string(job)+"backend: udp\n")
	if _, stderr, code := autoglm(t, dir, "build", "log.txt", "--job", "bad.yaml", "--out", "bad"); code != 2 || !strings.Contains(stderr, "inproc, shm, unix, tcp") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	for backend, want := range map[string]string{"nccl": "build with -tags gpu", "mpi": "build with -tags gpu", "gloo": "autoglm libtorch fit"} {
		write(t, filepath.Join(dir, backend+".yaml"), string(job)+"backend: "+backend+"\n")
		if _, stderr, code := autoglm(t, dir, "build", "log.txt", "--job", backend+".yaml", "--out", backend); code != 2 || !strings.Contains(stderr, want) {
			t.Errorf("%s: exit %d: %s", backend, code, stderr)
		}
	}
	write(t, filepath.Join(dir, "torch.yaml"), string(job)+"engine: torch\n")
	if _, stderr, code := autoglm(t, dir, "build", "log.txt", "--job", "torch.yaml", "--out", "torch"); code != 2 || !strings.Contains(stderr, "autoglm libtorch fit") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

// What a job says of its ranks' gradients holds for every trial, and is recorded.
func TestRanksOptions(t *testing.T) {
	dir := t.TempDir()
	corpus(t, dir)
	job, err := os.ReadFile(filepath.Join(dir, "job.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	options := "backend: unix\ncompression: int8\nzero_stage: 1\ndynamic_batching: true\n"
	write(t, filepath.Join(dir, "ranks.yaml"), strings.Replace(string(job), "cpu-any", "cpu-2", 1)+options)
	if _, stderr, code := autoglm(t, dir, "build", "log.txt", "--job", "ranks.yaml", "--out", "run"); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	b, err := os.ReadFile(filepath.Join(dir, "run", "trials", "final", "metrics.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{`"compression":"int8 `, `"wire_bytes":`, `"sync_efficiency":`, `"peak_bytes":`} {
		if !strings.Contains(string(b), field) {
			t.Errorf("metrics.jsonl says no %s", field)
		}
	}
	for line, want := range map[string]string{"compression: zip\n": "powersgd", "zero_stage: 2\n": "0 or 1", "zero_stage: 1\nengine: torch\n": "native"} {
		write(t, filepath.Join(dir, "bad.yaml"), string(job)+line)
		if _, stderr, code := autoglm(t, dir, "build", "log.txt", "--job", "bad.yaml", "--out", "bad"); code != 2 || !strings.Contains(stderr, want) {
			t.Errorf("%q: exit %d: %s", line, code, stderr)
		}
	}
}

// Ctrl-C reaches a build's worker processes too, as a terminal sends it to the whole
// group; kill -9 reaches the build alone. Either way no worker is left, and resume
// ends with the bytes of a calm build in one process.
func TestWorkersEndWithTheBuild(t *testing.T) {
	for name, tc := range map[string]struct {
		hit  func(pid int) error
		code int
	}{
		"Ctrl-C": {func(pid int) error { return syscall.Kill(-pid, syscall.SIGINT) }, exitInterrupted},
		"kill":   {func(pid int) error { return syscall.Kill(pid, syscall.SIGKILL) }, -1},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			corpus(t, dir)
			job, err := os.ReadFile(filepath.Join(dir, "job.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir, "apart.yaml"), string(job)+"isolation: process\n")
			c := exec.CommandContext(t.Context(), binary, "build", "log.txt", "--job", "apart.yaml", "--out", "run", "--json")
			c.Dir, c.SysProcAttr = dir, &syscall.SysProcAttr{Setpgid: true}
			out, err := c.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			lines, decided := bufio.NewScanner(out), 0
			lines.Buffer(nil, 1<<24)
			var workers []int
			for lines.Scan() {
				var e struct{ Event string }
				if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
					t.Fatal(err)
				}
				if e.Event != "decided" {
					continue
				}
				if decided++; decided == 5 {
					workers = actorstest.Children(t, c.Process.Pid)
					if err := tc.hit(c.Process.Pid); err != nil {
						t.Fatal(err)
					}
				}
			}
			_ = c.Wait()
			if code := c.ProcessState.ExitCode(); code != tc.code {
				t.Errorf("exit %d, want %d", code, tc.code)
			}
			if len(workers) == 0 {
				t.Error("the build had no workers")
			}
			for _, pid := range workers {
				for end := time.Now().Add(10 * time.Second); actorstest.Lives(pid); {
					if time.Now().After(end) {
						t.Fatalf("worker %d outlives its build", pid)
					}
					time.Sleep(time.Millisecond)
				}
			}
			goesOn(t, dir)
		})
	}
}
