package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/bundle"
)

// edgeMemory is what the overlay for one small machine allows.
const edgeMemory = 256 << 20

// memoryCgroups is where version 1 keeps the groups of memory.
const memoryCgroups = "/sys/fs/cgroup/memory"

// A model of 12 million parameters answers eight requests at a time within 256 MB, in a
// container that the kernel holds to that, and without swap to hide in.
func TestEdge(t *testing.T) {
	if testing.Short() {
		t.Skip("exports and serves an image")
	}
	var programs [2]string
	for i, name := range []string{"umoci", "runc"} {
		path, err := exec.LookPath(name)
		if err != nil {
			why := name + " is not installed: apt-get install umoci runc"
			if os.Getenv("AUTOGLM_REQUIRE") != "" {
				t.Fatal(why)
			}
			t.Skip(why)
		}
		programs[i] = path
	}
	umoci, runc := programs[0], programs[1]
	if os.Getuid() != 0 {
		t.Skip("a container's bounds want root")
	}
	probe := filepath.Join(memoryCgroups, fmt.Sprintf("autoglm-probe-%d", os.Getpid()))
	if err := os.Mkdir(probe, 0o700); err != nil {
		t.Skip("no group of memory (cgroup, version 1) can be made here: ", err)
	}
	_ = os.Remove(probe)
	dir := t.TempDir()
	ok, _ := verbs(t, dir)
	large := glm.Arch{Vocab: 4096, Dim: 384, Layers: 6, Heads: 6, KVHeads: 6, FFN: 1024, Context: 512, Tied: true}.WithDefaults()
	shapedBundle(t, filepath.Join(dir, "f32"), bundle.Card{Name: "Edge", Seed: 1}, 0.02, large)
	write(t, filepath.Join(dir, "held.txt"), strings.Repeat("The quick brown fox jumps over the lazy dog.\n", 20))
	ok("compress", "f32", "--int8", "--data", "held.txt", "--max-loss", "50%", "--out", "int8")
	ok("export", "f32", "--format", "oci", "--out", "image")
	unpack := exec.CommandContext(t.Context(), umoci, "unpack", "--image", filepath.Join(dir, "image")+":edge:latest", filepath.Join(dir, "box"))
	if out, err := unpack.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, model := range []string{"f32", "int8"} {
		t.Run(model, func(t *testing.T) { servesWithin(t, runc, filepath.Join(dir, "box"), filepath.Join(dir, model)) })
	}
}

// servesWithin runs the container with another model mounted, and asks it.
func servesWithin(t *testing.T, runc, box, model string) {
	id := fmt.Sprintf("autoglm-edge-%d-%s", os.Getpid(), filepath.Base(model))
	addr := freePort(t)
	boxed(t, filepath.Join(box, "config.json"), model, id, addr)
	state := t.TempDir()
	c := exec.Command(runc, "--root", state, "run", "--bundle", box, id)
	var log bytes.Buffer
	c.Stdout, c.Stderr = &log, &log
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	t.Cleanup(func() { _ = exec.Command(runc, "--root", state, "delete", "--force", id).Run() })
	base := "http://" + addr
	for up := false; !up; {
		select {
		case err := <-ended:
			t.Fatalf("the container ended: %v\n%s", err, log.String())
		case <-time.After(20 * time.Millisecond): // asks again; what it waits for is the answer
			_, _, code := autoglm(t, t.TempDir(), "health", base, "--ready")
			up = code == 0
		}
	}
	group := filepath.Join(memoryCgroups, id)
	idle := number(t, filepath.Join(group, "memory.usage_in_bytes"))
	began := time.Now()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			body := fmt.Sprintf(`{"model":"model","prompt":%q,"max_tokens":64,"temperature":1,"seed":%d}`, strings.Repeat(fmt.Sprintf("fox %d ", i), 40), i)
			a, err := http.Post(base+"/v1/completions", "application/json", strings.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = a.Body.Close() }()
			text, err := io.ReadAll(a.Body)
			if err != nil || a.StatusCode != http.StatusOK {
				t.Errorf("%d %s: %v", a.StatusCode, text, err)
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	peak, limit := number(t, filepath.Join(group, "memory.max_usage_in_bytes")), number(t, filepath.Join(group, "memory.limit_in_bytes"))
	failed := number(t, filepath.Join(group, "memory.failcnt"))
	t.Logf("%s: %.1f MB ready, %.1f MB at most of %d, limit met %d times; eight texts in %v", filepath.Base(model), float64(idle)/1e6, float64(peak)/1e6, limit, failed, took.Round(time.Millisecond))
	if limit != edgeMemory {
		t.Errorf("the limit is %d", limit)
	}
	if out, err := exec.Command(runc, "--root", state, "kill", id, "TERM").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := <-ended; err != nil {
		t.Errorf("it ended by %v\n%s", err, log.String())
	}
}

// boxed writes a container's configuration: the host's network, another model, the limit.
func boxed(t *testing.T, path, model, id, addr string) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var spec map[string]any
	if err := json.Unmarshal(raw, &spec); err != nil {
		t.Fatal(err)
	}
	process, linux := spec["process"].(map[string]any), spec["linux"].(map[string]any)
	process["terminal"] = false
	process["args"] = []string{"/autoglm", "serve", "model=/model", "--listen", addr, "--grpc", "", "--prefix-cache", "16MiB", "--queue", "16", "--threads", "1"}
	process["env"] = append(process["env"].([]any), "GOMEMLIMIT=200MiB")
	spec["root"].(map[string]any)["readonly"] = true
	var mounts []any
	for _, m := range spec["mounts"].([]any) {
		if m.(map[string]any)["destination"] != "/model" {
			mounts = append(mounts, m)
		}
	}
	spec["mounts"] = append(mounts, map[string]any{"destination": "/model", "type": "bind", "source": model, "options": []string{"bind", "ro"}})
	var spaces []any
	for _, n := range linux["namespaces"].([]any) {
		if n.(map[string]any)["type"] != "network" {
			spaces = append(spaces, n)
		}
	}
	linux["namespaces"], linux["cgroupsPath"] = spaces, "/"+id
	linux["resources"] = map[string]any{"memory": map[string]any{"limit": edgeMemory}}
	if raw, err = json.Marshal(spec); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func number(t *testing.T, path string) int64 {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
