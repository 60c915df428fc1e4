package main

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/device"
)

func TestDevicesSaysWhoHoldsThem(t *testing.T) {
	dir := t.TempDir()
	corpus(t, dir)
	t.Setenv("AUTOGLM_LOCKS", filepath.Join(dir, "locks"))
	m, err := device.Inventory()
	if err != nil {
		t.Fatal(err)
	}
	l, err := device.OpenLeases(os.Getenv("AUTOGLM_LOCKS"))
	if err != nil {
		t.Fatal(err)
	}
	_, held, err := l.Acquire(m, device.Request{Kind: device.CPU}, "a test", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Release()
	out, errs, code := autoglm(t, dir, "devices", "--json")
	var inv inventory
	if err := json.Unmarshal([]byte(out), &inv); err != nil || code != 0 {
		t.Fatalf("exit %d, %s: %v", code, errs, err)
	}
	if r := inv.Leases[m.Devices[0].ID]; r.PID != os.Getpid() || r.Owner != "a test" {
		t.Errorf("%s", out)
	}
	if out, _, _ := autoglm(t, dir, "devices"); !strings.Contains(out, `("a test", uid`) {
		t.Errorf("the table names no holder:\n%s", out)
	}
	_, errs, code = autoglm(t, dir, "build", "--job", "job.yaml", "--out", "run", "--wait", "0")
	if code != exitUsage || !strings.Contains(errs, `"a test"`) || !strings.Contains(errs, "--share") {
		t.Errorf("a build on leased processors: exit %d, %s", code, errs)
	}
}

func TestDevicesWatchEndsWithCtrlC(t *testing.T) {
	c, stdout, _ := start(t, t.TempDir(), "devices", "--watch", "--json", "--every", "10ms")
	r := bufio.NewReader(stdout)
	for range 3 {
		line, err := r.ReadBytes('\n')
		var inv inventory
		if err != nil || json.Unmarshal(line, &inv) != nil || inv.Count(device.CPU) == 0 {
			t.Fatalf("%s: %v", line, err)
		}
	}
	if err := c.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := r.ReadBytes('\n'); err != nil {
			break
		}
	}
	_ = c.Wait()
	if code := c.ProcessState.ExitCode(); code != exitInterrupted {
		t.Errorf("exit %d, want %d", code, exitInterrupted)
	}
}

// A machine without AVX2 is told so, and builds all the same, in the node's process
// and in workers'.
func TestMachineWithoutAVX2(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("AVX2 is amd64's")
	}
	dir := t.TempDir()
	corpus(t, dir)
	qemu, err := exec.LookPath("qemu-x86_64")
	if err != nil {
		if qemu, err = exec.LookPath("qemu-x86_64-static"); err != nil {
			if os.Getenv("AUTOGLM_REQUIRE") != "" {
				t.Fatal("qemu-x86_64 is not on PATH (apt-get install qemu-user)")
			}
			t.Skip("qemu-x86_64 is not on PATH (apt-get install qemu-user)")
		}
	}
	out, err := exec.CommandContext(t.Context(), qemu, "-cpu", "Nehalem", binary, "devices").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "kernels generic") || !strings.Contains(string(out), "no AVX2") {
		t.Errorf("devices on a CPU of 2008: %v: %s", err, out)
	}
	t.Setenv("AUTOGLM_SIMD", "generic")
	job, err := os.ReadFile(filepath.Join(dir, "job.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	small := strings.NewReplacer("60000", "10000", `"int(1, 2)"`, "1", "vocab: [320, 384]", "vocab: 320").Replace(string(job))
	bundles := map[string]string{}
	for _, isolation := range []string{"none", "process"} {
		write(t, filepath.Join(dir, isolation+".yaml"), small+"isolation: "+isolation+"\n")
		if _, stderr, code := autoglm(t, dir, "build", "log.txt", "--job", isolation+".yaml", "--out", isolation); code != 0 {
			t.Fatalf("%s: exit %d: %s", isolation, code, stderr)
		}
		b, err := os.ReadFile(filepath.Join(dir, isolation, "bundle", "model.safetensors"))
		if err != nil {
			t.Fatal(err)
		}
		bundles[isolation] = string(b)
	}
	if bundles["none"] != bundles["process"] {
		t.Error("ranks in processes of their own give another model")
	}
}

// The worker verb is the node's to start.
func TestWorkerByHand(t *testing.T) {
	_, stderr, code := autoglm(t, t.TempDir(), "worker")
	if code != exitFailed || !strings.Contains(stderr, "not for the command line") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}
