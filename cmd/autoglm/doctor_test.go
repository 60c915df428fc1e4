package main

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
)

func TestDoctorLooksAtWhatANodeNeeds(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if got := checkPort(l.Addr().String()); !strings.Contains(got, "in use") {
		t.Errorf("a port that is taken: %s", got)
	}
	for _, bad := range []string{"here", "127.0.0.1:0", "127.0.0.1:x"} {
		if got := checkPort(bad); !strings.Contains(got, "HOST:PORT") {
			t.Errorf("%s: %s", bad, got)
		}
	}
	if got := checkDisk(filepath.Join(t.TempDir(), "not", "there")); !strings.Contains(got, "fsync takes") {
		t.Error(got)
	}
	for what, text := range map[string]string{"clock": checkClock(), "files": checkFiles(), "links": checkLinks()} {
		if text == "" {
			t.Errorf("nothing about %s", what)
		}
	}
}
