package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/open-autoglm/autoglm/bench/stat"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/kernel"
	"github.com/open-autoglm/autoglm/runtime/bundle"
)

// readyWithin is what is wanted, milliseconds.
const readyWithin = 300

// start measures how long the program takes from its start until /readyz is 200, with
// bundles of each kind, and what it holds in memory then.
func (s *session) start(ctx context.Context) (rows []row, err error) {
	program := filepath.Join(s.dir, "autoglm")
	build := exec.CommandContext(ctx, "go", "build", "-o", program, "github.com/open-autoglm/autoglm/cmd/autoglm")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, said)
	}
	plain, err := s.bundleDir()
	if err != nil {
		return nil, err
	}
	packed, err := s.packedDir()
	if err != nil {
		return nil, err
	}
	for _, b := range []struct{ name, dir string }{{"f32", plain}, {"int8", packed}} {
		var times []float64
		var held residence
		for range s.o.rounds {
			took, r, err := ready(ctx, program, b.dir)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", b.name, err)
			}
			times, held = append(times, ms(took)), r
		}
		t := stat.Median(times)
		rows = append(rows, row{
			Name: "ready after the start, " + b.name, Unit: "ms", Ours: figure{Value: t}, Ratio: t, Wanted: readyWithin, AtMost: true,
			Others: map[string]figure{"resident MB": {Value: held.all}, "of which not the files'": {Value: held.own}},
		}.judged())
	}
	return rows, nil
}

// packedDir writes the bundle with weights of 8 bits.
func (s *session) packedDir() (string, error) {
	b := *s.b
	b.Params = nil
	layout, _ := b.Arch.Layout()
	for i, t := range s.b.Params {
		if role := layout[i].Role; role != glm.Norm && role != glm.Embedding {
			q, err := kernel.RoundBlocks(8, kernel.BlockLen, t.Shape[0], t.Shape[1], t.Data)
			if err != nil {
				return "", err
			}
			t = engine.Tensor{Name: t.Name, Shape: t.Shape, Blocks: q}
		}
		b.Params = append(b.Params, t)
	}
	dir := filepath.Join(s.dir, "packed")
	return dir, bundle.Write(dir, &b)
}

// ready starts the program, waits until it is ready and ends it.
func ready(ctx context.Context, program, dir string) (time.Duration, residence, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, residence{}, err
	}
	addr := ln.Addr().String()
	if err := ln.Close(); err != nil {
		return 0, residence{}, err
	}
	cmd := exec.CommandContext(ctx, program, "serve", "m="+dir, "--listen", addr, "--grpc", "")
	var said strings.Builder
	cmd.Stderr = &said
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, residence{}, err
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // its answers are read
	}()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Second}
	for time.Since(begin) < time.Minute {
		if err := ctx.Err(); err != nil {
			return 0, residence{}, err
		}
		res, err := client.Get("http://" + addr + "/readyz")
		if err == nil {
			_ = res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return time.Since(begin), resident(cmd.Process.Pid), nil
			}
		}
		time.Sleep(time.Millisecond)
	}
	return 0, residence{}, errors.New("it is not ready after a minute: " + said.String())
}

// residence is what a process has in memory, MB.
type residence struct {
	all float64
	own float64 // without pages of files, which the kernel may drop
}

func resident(pid int) (r residence) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return r
	}
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(line, ":")
		kb, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
		if err != nil {
			continue
		}
		switch name {
		case "VmRSS":
			r.all = kb * 1024 / 1e6
		case "RssAnon":
			r.own = kb * 1024 / 1e6
		}
	}
	return r
}
