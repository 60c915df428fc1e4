package ringtest

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// Host is a network namespace: to the ring a host of its own, since ranks in it
// share memory with each other alone.
type Host struct {
	Address string   // of its one interface
	Prefix  []string // a command that runs another one in it
	Port    string   // of the switch that it hangs on
	Hub     int      // process that holds the switch
	PID     int      // process that holds the host
}

// Hosts makes so many hosts on one switch. They vanish with the processes that hold
// them, which end with the test. Without the rights to make any the test is left
// out.
func Hosts(t testing.TB, n int) []Host {
	t.Helper()
	if testing.Short() {
		t.Skip("-short starts no processes")
	}
	hub, err := hold(t)
	if err == nil {
		err = in(hub, "ip link add hub type bridge", "ip link set hub up")
	}
	if err != nil {
		unable(t, err)
	}
	hosts := make([]Host, n)
	for i := range hosts {
		pid, err := hold(t)
		port := fmt.Sprint("port", i)
		addr := fmt.Sprintf("10.77.0.%d", i+1)
		if err == nil {
			err = in(hub, fmt.Sprintf("ip link add %s type veth peer name eth0 netns %d", port, pid), "ip link set "+port+" master hub", "ip link set "+port+" up")
		}
		if err == nil {
			err = in(pid, "ip link set lo up", "ip address add "+addr+"/24 dev eth0", "ip link set eth0 up")
		}
		if err != nil {
			unable(t, err)
		}
		hosts[i] = Host{Address: addr, Prefix: enter(pid), Port: port, Hub: hub, PID: pid}
	}
	return hosts
}

// Disconnect pulls the host's plug: nothing goes in or out, and nobody is told.
func (h Host) Disconnect(t testing.TB) {
	t.Helper()
	if err := in(h.Hub, "ip link set "+h.Port+" down"); err != nil {
		t.Fatal(err)
	}
}

// Connect puts the plug back.
func (h Host) Connect(t testing.TB) {
	t.Helper()
	if err := in(h.Hub, "ip link set "+h.Port+" up"); err != nil {
		t.Fatal(err)
	}
}

func unable(t testing.TB, err error) {
	t.Helper()
	text := fmt.Sprintf("network namespaces can't be made here (run as root, with iproute2 and util-linux): %v", err)
	if os.Getenv("AUTOGLM_REQUIRE") == "all" {
		t.Fatal(text)
	}
	t.Skip(text)
}

// hold starts a process that has a network of its own, and keeps it.
func hold(t testing.TB) (pid int, err error) {
	cmd := exec.Command("sleep", "infinity")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd.Process.Pid, nil
}

func enter(pid int) []string { return []string{"nsenter", "-t", fmt.Sprint(pid), "-n"} }

// in runs commands in the network of a process.
func in(pid int, commands ...string) error {
	for _, c := range commands {
		argv := append(enter(pid), strings.Fields(c)...)
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", c, err, out)
		}
	}
	return nil
}

// Limit bounds what leaves the host, in tc's words: 100mbit.
func (h Host) Limit(t testing.TB, rate string) {
	t.Helper()
	argv := append(append([]string{}, h.Prefix...), strings.Fields("tc qdisc add dev eth0 root tbf rate "+rate+" burst 64k latency 100ms")...)
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("tc: %v: %s", err, out)
	}
}

// Unlimit takes the bound back.
func (h Host) Unlimit(t testing.TB) {
	t.Helper()
	argv := append(append([]string{}, h.Prefix...), strings.Fields("tc qdisc del dev eth0 root")...)
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("tc: %v: %s", err, out)
	}
}

// Sent is how many bytes have left the host.
func (h Host) Sent(t testing.TB) int64 {
	t.Helper()
	argv := append(append([]string{}, h.Prefix...), "cat", "/proc/net/dev")
	out, err := exec.Command(argv[0], argv[1:]...).Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if name, rest, ok := strings.Cut(strings.TrimSpace(line), ":"); ok && name == "eth0" {
			if f := strings.Fields(rest); len(f) > 8 {
				n, err := strconv.ParseInt(f[8], 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
		}
	}
	t.Fatalf("no eth0 in %s", out)
	return 0
}
