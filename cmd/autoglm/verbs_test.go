package main

import (
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// The README shows every command, and no other.
func TestReadmeListsEveryVerb(t *testing.T) {
	raw, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	root := newRoot()
	shown := map[string]bool{}
	for _, line := range strings.Split(string(raw), "\n") {
		line = strings.Replace(line, "go run ./cmd/autoglm", "./autoglm", 1)
		args, ok := strings.CutPrefix(line, "./autoglm ")
		if !ok {
			continue
		}
		args, _, _ = strings.Cut(args, "#")
		c, _, err := root.Find(strings.Fields(args))
		if err != nil {
			t.Errorf("README: %q: %v", line, err)
			continue
		}
		shown[c.CommandPath()] = true
	}
	var all func(c *cobra.Command)
	all = func(c *cobra.Command) {
		if c.Runnable() && !c.Hidden && !shown[c.CommandPath()] {
			t.Errorf("README doesn't show %s", c.CommandPath())
		}
		for _, s := range c.Commands() {
			all(s)
		}
	}
	all(root)
}
