package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// runPeer runs the other system's steps on the same shape.
func (c *config) runPeer() (r report, err error) {
	if c.peer != "torch" {
		return r, fmt.Errorf("-peer %q is unknown, use torch", c.peer)
	}
	python := os.Getenv("AUTOGLM_PYTHON")
	if python == "" {
		return r, errors.New("-peer torch needs AUTOGLM_PYTHON, a Python interpreter with PyTorch")
	}
	script, err := peerScript()
	if err != nil {
		return r, err
	}
	a := c.arch
	if !a.Tied || c.optimizer != "adamw" {
		return r, errors.New("-peer torch has the tied model and AdamW only")
	}
	args := []string{script}
	threads := max(c.threads, c.ranks)
	for _, f := range []struct {
		name  string
		value any
	}{{"d", a.Dim}, {"layers", a.Layers}, {"heads", a.Heads}, {"kv", a.KVHeads}, {"ffn", a.FFN}, {"T", a.Context}, {"B", c.batch}, {"V", a.Vocab}, {"threads", threads}, {"seconds", c.seconds}} {
		args = append(args, "-"+f.name, fmt.Sprint(f.value))
	}
	cmd := exec.Command(python, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return r, fmt.Errorf("%s %s: %w", python, script, err)
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return r, fmt.Errorf("output of %s: %w", script, err)
	}
	return r, nil
}

// peerScript finds the script from the repository's root or from a folder in it.
func peerScript() (string, error) {
	for dir := "."; ; dir = filepath.Join(dir, "..") {
		p := filepath.Join(dir, "bench", "peers", "step_torch.py")
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
		if abs, err := filepath.Abs(dir); err != nil || abs == filepath.Dir(abs) {
			return "", errors.New("bench/peers/step_torch.py not found; run inside the repository")
		}
	}
}
