package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"
)

// TestMain lets the test binary be the busy neighbour too.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == busyArg {
		busy()
		return
	}
	os.Exit(m.Run())
}

func tiny(more ...string) []string {
	return append(strings.Fields("-d 32 -layers 1 -heads 2 -kv 2 -ffn 48 -T 16 -B 2 -V 64 -seconds 0.05 -rounds 1 -loss-steps 60"), more...)
}

func TestOurs(t *testing.T) {
	for _, more := range [][]string{{"-neighbour"}, {"-ranks", "2"}, {"-threads", "2", "-precision", "f32"}} {
		var out bytes.Buffer
		if err := run(tiny(append(more, "-peers", "none")...), &out); err != nil {
			t.Fatal(err)
		}
		var r report
		if err := json.Unmarshal(out.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		if r.TokensPerS <= 0 || r.PeakF32 <= 0 || r.PeakShare <= 0 || r.CopyGBs <= 0 || r.Loss <= 0 || r.Loss >= r.LossFirst {
			t.Errorf("%v: %+v", more, r)
		}
	}
}

func TestPeer(t *testing.T) {
	if os.Getenv("AUTOGLM_PYTHON") == "" {
		if os.Getenv("AUTOGLM_REQUIRE") == "all" {
			t.Fatal("AUTOGLM_PYTHON is not set; .ci/peers makes the interpreter")
		}
		t.Skip("needs PyTorch: export AUTOGLM_PYTHON=$(.ci/peers)")
	}
	if testing.Short() {
		t.Skip("-short starts no processes")
	}
	var out bytes.Buffer
	if err := run(tiny("-peers", "eager,bf16"), &out); err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Peers) != 2 || r.Peers[0].Ratio <= 0 || r.Peers[1].Loss <= 0 {
		t.Errorf("%+v", r)
	}
}

func TestBadFlags(t *testing.T) {
	t.Setenv("AUTOGLM_PYTHON", "/nowhere/python")
	for want, args := range map[string][]string{
		"is unknown":     {"-peers", "jax"},
		"/nowhere":       {"-peers", "eager"},
		"leave -threads": {"-ranks", "2", "-threads", "2", "-peers", "none"},
		"unexpected":     {"W1"},
		"-engine":        {"-engine", "cuda", "-peers", "none"},
		"positive":       {"-B", "0", "-peers", "none"},
	} {
		if err := run(tiny(args...), &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", args, err, want)
		}
	}
	t.Setenv("AUTOGLM_PYTHON", "")
	if err := run(tiny("-peers", "bf16"), &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "AUTOGLM_PYTHON") {
		t.Errorf("without an interpreter: %v", err)
	}
}
