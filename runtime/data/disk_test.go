package data

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// fullDisk fails once a given count of bytes was written.
type fullDisk struct {
	f    io.WriteCloser
	left *int
}

func (d fullDisk) Write(b []byte) (int, error) {
	if *d.left -= len(b); *d.left < 0 {
		return 0, &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}
	}
	return d.f.Write(b)
}

func (d fullDisk) Close() error { return d.f.Close() }

func TestDiskFull(t *testing.T) {
	src := put(t, "a.jsonl", sentences(5000))
	for _, room := range []int{0, 10_000, 300_000, 900_000} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "keep"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		c := config(src)
		c.Near = false
		left := room
		c.create = func(p string) (io.WriteCloser, error) {
			f, err := createFile(p)
			return fullDisk{f, &left}, err
		}
		_, err := Prepare(context.Background(), c, dir, Events{})
		if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "the disk is full: free some space") {
			t.Fatalf("%d bytes: %v", room, err)
		}
		if files, _ := os.ReadDir(dir); len(files) != 1 {
			t.Errorf("%d bytes: left behind %v", room, files)
		}
	}
}

// smallDisk prepares what lies in dir into dir/out, on a disk of limit KiB of its
// own ("disk:…") or with files of at most limit KiB ("file:…"). It runs in a child
// process and prints the error and what it left.
func smallDisk(dir, limit string) int {
	kind, size, _ := strings.Cut(limit, ":")
	kib, err := strconv.ParseUint(size, 10, 64)
	if err != nil {
		fmt.Println(err)
		return 2
	}
	out := filepath.Join(dir, "out")
	if kind == "disk" {
		if err := syscall.Mount("tmpfs", out, "tmpfs", 0, "size="+size+"k"); err != nil {
			fmt.Println("no mount:", err)
			return 3
		}
	} else {
		signal.Ignore(syscall.SIGXFSZ) // as a program does that wants the error
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: kib << 10, Max: kib << 10}); err != nil {
			fmt.Println(err)
			return 2
		}
	}
	c := config(filepath.Join(dir, "a.jsonl"))
	c.Memory = 1 << 20 // so that all indexes spill
	_, err = Prepare(context.Background(), c, out, Events{})
	fmt.Println("error:", err)
	files, _ := os.ReadDir(out)
	fmt.Println("left:", len(files))
	return 0
}

// A disk that is really full, at every stage: rows, the indexes of duplicates,
// their signatures, the parts.
func TestDiskReallyFull(t *testing.T) {
	dir := t.TempDir()
	if err := os.Rename(stored(t, "jsonl", 20000), filepath.Join(dir, "a.jsonl")); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	try := func(limit, want string) (done, allowed bool) {
		out := filepath.Join(dir, "out")
		if err := errors.Join(os.RemoveAll(out), os.Mkdir(out, 0o755)); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), self)
		cmd.Env = append(os.Environ(), "AUTOGLM_DATA_SMALL_DISK="+dir, "AUTOGLM_DATA_LIMIT="+limit)
		if strings.HasPrefix(limit, "disk") { // in a namespace of its own, where it may mount
			cmd.SysProcAttr = &syscall.SysProcAttr{
				Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
				UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
				GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
			}
		}
		b, err := cmd.CombinedOutput()
		text := string(b)
		if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) || strings.HasPrefix(text, "no mount") {
			t.Logf("%s: may not mount here: %v %s", limit, err, text)
			return false, false
		}
		if err != nil {
			t.Fatalf("%s: %v\n%s", limit, err, text)
		}
		if strings.HasPrefix(text, "error: <nil>") {
			return true, true
		}
		_, file, named := strings.Cut(text, "/.partial-")
		if !named || !strings.Contains(text, want) || !strings.Contains(text, "left: 0") {
			t.Errorf("%s: %s", limit, text)
			return false, true
		}
		file, _, _ = strings.Cut(file[strings.IndexByte(file, '/')+1:], ":")
		file, _, _ = strings.Cut(file, ".")
		seen[file] = true
		return false, true
	}
	for _, limit := range []string{"file:16", "file:600"} {
		if done, _ := try(limit, "may not grow further"); done {
			t.Errorf("%s was not reached", limit)
		}
	}
	clear(seen)
	for kib := 64; ; kib += 1400 {
		done, allowed := try(fmt.Sprintf("disk:%d", kib), "the disk is full")
		if !allowed {
			t.Skip("a disk of the test's own needs user namespaces")
		}
		if done {
			break
		}
		if kib > 64<<10 {
			t.Fatalf("not done with %d KiB", kib)
		}
	}
	for _, file := range []string{"rows", "bands", "exact"} {
		if !seen[file] {
			t.Errorf("no disk was full at %s, only at %v", file, seen)
		}
	}
}
