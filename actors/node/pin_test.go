package node

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/open-autoglm/autoglm/actors/actorstest"
	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/runtime/job"
)

// Each worker's threads get processors of their own among those that the job has.
func TestCrewPins(t *testing.T) {
	for _, tc := range []struct {
		processors int
		pinning    string
		want       string
	}{
		{2, "always", "[0] [1]"},
		{20, "always", "[0 1] [2 3] [4 5] [6 7] [8 9] [10 11] [12 13] [14 15]"},
		{2, "never", "[] []"},
	} {
		var ds []device.Device
		for n := range tc.processors {
			ds = append(ds, device.Device{ID: fmt.Sprintf("cpu:%d", n), Kind: device.CPU})
		}
		spec := job.Default()
		spec.Pinning = tc.pinning
		c, err := newCrew(spec, device.Machine{Devices: ds}, ds, Options{})
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for i := range c.devices {
			got += fmt.Sprint(c.at(i).CPUs) + " "
		}
		if got != tc.want+" " {
			t.Errorf("%d processors, %s: %s, want %s", tc.processors, tc.pinning, got, tc.want)
		}
	}
}

// Pinned threads compute the same bytes.
func TestPinnedBuildGivesTheSameBytes(t *testing.T) {
	spec := tinySpec(actorstest.Corpus(t, t.TempDir()))
	want := ""
	for _, pinning := range []string{"never", "always"} {
		spec.Pinning = pinning
		dir := filepath.Join(t.TempDir(), pinning)
		if err := build(t, Options{Dir: dir, Spec: spec}); err != nil {
			t.Fatal(err)
		}
		got := outcome(t, dir)
		if want == "" {
			want = got
		}
		if got != want {
			t.Errorf("the outcome of pinned threads differs")
		}
	}
}
