package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/cluster/bucket/buckettest"
)

// Doctor and config check try the store, and leave nothing there.
func TestStoreIsTried(t *testing.T) {
	s := buckettest.New(t, "models")
	dir := t.TempDir()
	node := filepath.Join(dir, "node.yaml")
	for _, tc := range []struct {
		url, endpoint, want string
		doctor, check       int
	}{
		{"s3://models/a", s.URL, "s3://models/a at " + s.URL + " can be written, listed, read and deleted", 0, 0},
		{"s3://nothing", s.URL, "make the bucket", 0, exitFailed},
		{"models", s.URL, "s3://BUCKET/PREFIX", exitUsage, exitUsage},
		{"", s.URL, "about --store", exitUsage, exitUsage},
	} {
		out, errs, code := autoglm(t, dir, "doctor", "--store", tc.url, "--store-endpoint", tc.endpoint)
		if code != tc.doctor || !strings.Contains(out+errs, tc.want) {
			t.Errorf("doctor, %q: exit %d, want %q in %s%s", tc.url, code, tc.want, out, errs)
		}
		write(t, node, "listen: 127.0.0.1:7400\nstore: \""+tc.url+"\"\nstore-endpoint: "+tc.endpoint+"\n")
		out, errs, code = autoglm(t, dir, "config", "check", node)
		if code != tc.check || !strings.Contains(out+errs, tc.want) {
			t.Errorf("config check, %q: exit %d, want %q in %s%s", tc.url, code, tc.want, out, errs)
		}
	}
	if left := s.Keys(); len(left) > 0 {
		t.Errorf("left in the bucket: %v", left)
	}
}
