package device

import (
	"errors"
	"strings"
	"testing"
)

func TestParseRequest(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want Request
		err  string
	}{
		{"auto", Request{Kind: Auto}, ""},
		{"", Request{Kind: Auto}, ""},
		{"cpu-2", Request{Kind: CPU, Count: 2}, ""},
		{"gpu-any", Request{Kind: GPU}, ""},
		{"GPU-4x-A100", Request{Kind: GPU, Count: 4, Model: "a100"}, ""},
		{"gpu-8", Request{Kind: GPU, Count: 8}, ""},
		{"tpu-4", Request{}, "no known hardware"},
		{"gpu", Request{}, "how many"},
		{"gpu-0", Request{}, "count"},
		{"gpu-4x-", Request{}, "model"},
		{"gpu--1", Request{}, "count"},
	} {
		got, err := ParseRequest(tc.in)
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%q: %v, want an error with %q", tc.in, err, tc.err)
			}
			continue
		}
		if err != nil || got != tc.want {
			t.Errorf("%q: %+v, %v; want %+v", tc.in, got, err, tc.want)
		}
		if again, err := ParseRequest(got.String()); err != nil || again != got {
			t.Errorf("%q prints as %q, which reads as %+v, %v", tc.in, got, again, err)
		}
	}
}

func TestMatch(t *testing.T) {
	m := Machine{Devices: []Device{{ID: "cpu:0", Kind: CPU, Model: "EPYC"}, {ID: "cpu:1", Kind: CPU, Model: "EPYC"}}}
	for in, want := range map[string]int{"auto": 2, "cpu-1": 1, "cpu-any": 2, "cpu-2x-epyc": 2, "cpu-3": -1, "gpu-any": -1, "gpu-4x-a100": -1, "cpu-1x-xeon": -1} {
		r, err := ParseRequest(in)
		if err != nil {
			t.Fatal(err)
		}
		got, err := m.Match(r)
		if want < 0 {
			if !errors.Is(err, ErrUnmet) || !strings.Contains(err.Error(), "2 CPU cores (EPYC)") {
				t.Errorf("%s: %v", in, err)
			}
			continue
		}
		if err != nil || len(got) != want {
			t.Errorf("%s: %v, %v", in, got, err)
		}
	}
}

func TestInventoryHasACore(t *testing.T) {
	m, err := Inventory()
	if err != nil {
		t.Fatal(err)
	}
	if m.Count(CPU) < 1 || m.MemoryBytes < 1<<20 {
		t.Fatalf("%+v", m)
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add("gpu-4x-a100")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRequest(s)
		if err == nil {
			if again, err := ParseRequest(r.String()); err != nil || again != r {
				t.Fatalf("%q: %+v prints as %s: %+v %v", s, r, r, again, err)
			}
		}
	})
}
