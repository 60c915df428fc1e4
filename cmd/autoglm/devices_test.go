package main

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
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
