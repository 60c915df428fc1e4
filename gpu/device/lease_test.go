package device_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/gpu/device/devicetest"
)

// TestMain is also the child that holds a lease until it is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("AUTOGLM_TEST_HOLD"); dir != "" {
		syscall.Umask(0o077) // a user's mask must keep no other out
		fake, err := devicetest.New(8).Scan()
		if err != nil {
			panic(err)
		}
		leases, err := device.OpenLeases(dir)
		if err != nil {
			panic(err)
		}
		ds, _, err := leases.Acquire(fake, device.Request{Kind: device.GPU, Count: 3}, "a child", 0)
		fmt.Println(len(ds), strings.ReplaceAll(fmt.Sprint(err), "\n", " "))
		if err != nil {
			os.Exit(0)
		}
		time.Sleep(time.Hour) // it is killed
	}
	os.Exit(m.Run())
}

func open(t testing.TB) (*device.Leases, device.Machine) {
	t.Helper()
	m, err := devicetest.New(8).Scan()
	if err != nil {
		t.Fatal(err)
	}
	l, err := device.OpenLeases(filepath.Join(t.TempDir(), "locks"))
	if err != nil {
		t.Fatal(err)
	}
	return l, m
}

func TestConformanceOfTheFake(t *testing.T) { devicetest.Conform(t, devicetest.New(8)) }

func TestConformanceOfThisMachine(t *testing.T) {
	for _, s := range device.Sources() {
		t.Run(s.Name(), func(t *testing.T) {
			defer s.Close()
			devicetest.Conform(t, s)
		})
	}
}

func TestKilledHolderFreesItsDevices(t *testing.T) {
	if testing.Short() {
		t.Skip("-short starts no processes")
	}
	dir := filepath.Join(t.TempDir(), "locks")
	leases, err := device.OpenLeases(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := devicetest.New(8).Scan()
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		c := exec.CommandContext(t.Context(), exe)
		c.Env = append(os.Environ(), "AUTOGLM_TEST_HOLD="+dir)
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil || line != "3 <nil>\n" {
			t.Fatalf("the child says %q, %v", line, err)
		}
		_, _, err = leases.Acquire(m, device.Request{Kind: device.GPU, Count: 6}, "test", 0)
		if !errors.Is(err, device.ErrBusy) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d (\"a child\"", c.Process.Pid)) {
			t.Fatalf("six of eight while a child holds three: %v", err)
		}
		if err := c.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = c.Wait()
		ds, held, err := leases.Acquire(m, device.Request{Kind: device.GPU, Count: 8}, "test", 0)
		if err != nil || len(ds) != 8 {
			t.Fatalf("after kill -9: %d devices, %v", len(ds), err)
		}
		if e := held.Records()[0].Epoch; e < uint64(round+1) {
			t.Fatalf("epoch %d in round %d", e, round)
		}
		held.Release()
	}
}

func TestLeaseEnds(t *testing.T) {
	l, m := open(t)
	one := device.Request{Kind: device.GPU, Count: 8}
	_, held, err := l.Acquire(m, one, "a", 20*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	var next *device.Held
	for next == nil {
		if _, next, err = l.Acquire(m, one, "b", 0); err != nil && !errors.Is(err, device.ErrBusy) {
			t.Fatal(err)
		}
	}
	if err := held.Check(); !errors.Is(err, device.ErrExpired) {
		t.Errorf("after its time the first holder's Check says %v", err)
	}
	if err := held.Renew(); !errors.Is(err, device.ErrExpired) {
		t.Errorf("Renew of what expired: %v", err)
	}
	if err := next.Check(); err != nil {
		t.Error(err)
	}
	if a, b := held.Records()[0].Epoch, next.Records()[0].Epoch; b <= a {
		t.Errorf("epochs %d, then %d", a, b)
	}
	next.Release()
	next.Release()
	if !errors.Is(next.Check(), device.ErrReleased) {
		t.Error(next.Check())
	}
}

func TestNoDeviceIsLeasedTwice(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		l, m := open(t)
		wants := rapid.SliceOfN(rapid.IntRange(1, 5), 2, 8).Draw(rt, "wants")
		var mu sync.Mutex
		owner := map[string]int{}
		var group sync.WaitGroup
		for i, n := range wants {
			group.Go(func() {
				for range 3 {
					ds, held, err := l.Acquire(m, device.Request{Kind: device.GPU, Count: n}, fmt.Sprint(i), 0)
					if err != nil {
						if !errors.Is(err, device.ErrBusy) {
							t.Error(err)
						}
						continue
					}
					mu.Lock()
					for _, d := range ds {
						if o, ok := owner[d.ID]; ok {
							t.Errorf("%s is held by %d and %d", d.ID, o, i)
						}
						owner[d.ID] = i
					}
					mu.Unlock()
					mu.Lock()
					for _, d := range ds {
						delete(owner, d.ID)
					}
					mu.Unlock()
					held.Release()
				}
			})
		}
		group.Wait()
		if _, held, err := l.Acquire(m, device.Request{Kind: device.GPU, Count: 8}, "last", 0); err != nil {
			t.Errorf("after all: %v", err)
		} else {
			held.Release()
		}
	})
}

func TestLockFileThatIsALink(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "locks")
	l, err := device.OpenLeases(dir)
	if err != nil {
		t.Fatal(err)
	}
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, filepath.Join(dir, "GPU-1.lock")); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Lease([]device.Device{{ID: "gpu:0", UUID: "GPU-1"}}, "x", 0); err == nil {
		t.Error("a lock was taken through a symbolic link")
	}
	if b, _ := os.ReadFile(victim); string(b) != "mine" {
		t.Errorf("the link's target now reads %q", b)
	}
	for _, uuid := range []string{"", "../x", ".x", "a/b", strings.Repeat("x", 200)} {
		if _, err := l.Lease([]device.Device{{ID: "gpu:0", UUID: uuid}}, "x", 0); err == nil {
			t.Errorf("UUID %q was leased", uuid)
		}
	}
}

// Two users of one host exclude each other, whoever made the files, and one that
// locks the other out gets told how it is mended.
func TestLeasesOfTwoUsers(t *testing.T) {
	if testing.Short() {
		t.Skip("-short starts no processes")
	}
	if os.Getuid() != 0 {
		t.Skip("only root can start a process of another user")
	}
	const nobody = 65534
	// Not t.TempDir: others can't enter that.
	top, err := os.MkdirTemp("/tmp", "autoglm-two-users-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(top)
	if err := os.Chmod(top, 0o777); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(top, "locks")
	// theirs is what another user's process says; stop ends it.
	theirs := func() (says string, stop func()) {
		t.Helper()
		c := exec.CommandContext(t.Context(), "/proc/self/exe") // a path that anybody may go
		c.Env = append(os.Environ(), "AUTOGLM_TEST_HOLD="+dir)
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		c.Stderr = os.Stderr
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return line, func() {
			_ = c.Process.Kill() // it may have ended by itself
			_ = c.Wait()
		}
	}
	defer syscall.Umask(syscall.Umask(0o077))
	six := device.Request{Kind: device.GPU, Count: 6}
	m, err := devicetest.New(8).Scan()
	if err != nil {
		t.Fatal(err)
	}
	says, stop := theirs() // makes the folder and three files
	if says != "3 <nil>\n" {
		t.Fatalf("the other user: %s", says)
	}
	leases, err := device.OpenLeases(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := leases.Acquire(m, six, "root", 0); !errors.Is(err, device.ErrBusy) || !strings.Contains(err.Error(), fmt.Sprintf("uid %d", nobody)) {
		t.Errorf("six of eight while another user holds three: %v", err)
	}
	stop()
	_, held, err := leases.Acquire(m, six, "root", 0) // in files of both users
	if err != nil {
		t.Fatal(err)
	}
	if says, stop = theirs(); !strings.Contains(says, "leased by pid") || !strings.Contains(says, "uid 0") {
		t.Errorf("the other user, of three while root holds six of eight: %s", says)
	}
	stop()
	held.Release()
	if says, stop = theirs(); says != "3 <nil>\n" {
		t.Errorf("the other user, after root: %s", says)
	}
	stop()
	file := filepath.Join(dir, m.Devices[5].UUID+".lock")
	if err := errors.Join(os.Chown(file, 0, 0), os.Chmod(file, 0o600)); err != nil {
		t.Fatal(err)
	}
	if says, stop = theirs(); !strings.Contains(says, "uid 0's with mode 0600") || !strings.Contains(says, "chmod 666 "+file) {
		t.Errorf("a file that is closed to the other user: %s", says)
	}
	stop()
	if err := errors.Join(os.Chown(dir, 0, 0), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), "/proc/self/exe")
	c.Env = append(os.Environ(), "AUTOGLM_TEST_HOLD="+dir)
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if out, _ := c.CombinedOutput(); !strings.Contains(string(out), "chmod 1777 "+dir) {
		t.Errorf("a folder that is closed to the other user: %s", out)
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(`{"device":"gpu:0","pid":1,"epoch":3}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := device.ParseRecord(b); err == nil {
			_ = r.String()
		}
	})
}
