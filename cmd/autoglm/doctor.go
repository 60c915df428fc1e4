package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// What a node needs of its machine, each with a hint where it is lacking.

// enoughFiles that a node may have open: connections, the journal, files of jobs.
const enoughFiles = 4096

func doctorNode(listen, dir string) {
	fmt.Printf("port      %s\n", checkPort(listen))
	fmt.Printf("clock     %s\n", checkClock())
	fmt.Printf("files     %s\n", checkFiles())
	fmt.Printf("network   %s\n", checkLinks())
	fmt.Printf("disk      %s\n", checkDisk(dir))
}

// checkPort tells whether a node's port is free, of TCP and of UDP.
func checkPort(listen string) string {
	host, number, err := net.SplitHostPort(listen)
	if err != nil {
		return fmt.Sprintf("%v: give --listen HOST:PORT", err)
	}
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n == 0 {
		return fmt.Sprintf("%q is no port: give --listen HOST:PORT", number)
	}
	l, err := net.Listen("tcp", net.JoinHostPort(host, number))
	if err != nil {
		return fmt.Sprintf("%v: choose another with autoglm node --listen HOST:PORT, or stop who has it (ss -ltnp)", err)
	}
	l.Close()
	u, err := net.ListenPacket("udp", listen)
	if err != nil {
		return fmt.Sprintf("%v: choose another with autoglm node --listen HOST:PORT", err)
	}
	u.Close()
	return fmt.Sprintf("%d is free for a node; firewalls must pass its TCP and UDP between nodes", n)
}

// checkClock tells whether the kernel's clock is kept by a time service. Certificates
// and tokens go by it.
func checkClock() string {
	var t unix.Timex
	if _, err := unix.Adjtimex(&t); err != nil {
		return fmt.Sprintf("the kernel does not say whether it is synchronised: %v", err)
	}
	if t.Status&unix.STA_UNSYNC != 0 {
		return "not synchronised: certificates and tokens go by it; run chrony or systemd-timesyncd (timedatectl set-ntp true)"
	}
	return fmt.Sprintf("synchronised, within %d ms", t.Maxerror/1000)
}

func checkFiles() string {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return err.Error()
	}
	// Go raises the soft limit to the hard one by itself.
	if r.Max < enoughFiles {
		return fmt.Sprintf("at most %d may be open, a node wants %d: LimitNOFILE= of its unit, or ulimit -n", r.Max, enoughFiles)
	}
	return fmt.Sprintf("%d may be open", r.Max)
}

// smallestMTU that gossip's packets (1400 bytes and their headers) pass whole.
const smallestMTU = 1450

func checkLinks() string {
	links, err := net.Interfaces()
	if err != nil {
		return err.Error()
	}
	text := ""
	for _, l := range links {
		if l.Flags&net.FlagUp == 0 || l.Flags&net.FlagLoopback != 0 {
			continue
		}
		if text != "" {
			text += ", "
		}
		text += fmt.Sprintf("%s MTU %d", l.Name, l.MTU)
		if l.MTU < smallestMTU {
			text += " (small: gossip's packets are broken in two; see that fragments pass)"
		}
	}
	if text == "" {
		return "nothing but this machine: nodes on others can't be reached"
	}
	return text
}

const (
	syncs   = 5
	slowest = 50 * time.Millisecond // of a sync: a journal's commit waits for one on a majority
)

// checkDisk times what makes a record durable.
func checkDisk(dir string) string {
	dir, err := filepath.Abs(dir)
	for err == nil { // it need not be there yet: where it would be made
		if _, err := os.Stat(dir); err == nil || dir == "/" {
			break
		}
		dir = filepath.Dir(dir)
	}
	f, err := os.CreateTemp(dir, ".autoglm-doctor-*")
	if err != nil {
		return fmt.Sprintf("%s is not writable: %v", dir, err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	var took []time.Duration
	for range syncs {
		begin := time.Now()
		if _, err := f.Write(make([]byte, 4096)); err != nil {
			return fmt.Sprintf("%s cannot be written: %v", dir, err)
		}
		if err := f.Sync(); err != nil {
			return fmt.Sprintf("%s cannot be synced: %v", dir, err)
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	median := took[syncs/2]
	text := fmt.Sprintf("%s is writable, fsync takes %.1f ms", dir, median.Seconds()*1e3)
	if median > slowest {
		text += ": slow for a journal; choose a local disk with --data"
	}
	return text
}
