package gguf

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"testing"
)

type peerFile struct {
	KVs     map[string]any `json:"kvs"`
	Tensors []struct {
		Name  string `json:"name"`
		Type  string `json:"type"`
		Shape []int  `json:"shape"` // as stored, the contiguous dimension first
		Same  bool   `json:"same"`  // whether the peer makes the same bytes of the same values
	} `json:"tensors"`
}

// ggml's own Python package reads what we write, and rounds values to the same bytes.
func TestPackageGGUF(t *testing.T) {
	python := os.Getenv("AUTOGLM_PYTHON")
	if python == "" {
		const why = "AUTOGLM_PYTHON is unset: no Python with the package gguf to compare with"
		if os.Getenv("AUTOGLM_REQUIRE") != "" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	dir := t.TempDir()
	b := tiny(t, untied)
	type job struct {
		Path string `json:"path"`
		F32  string `json:"f32"` // the same weights, not rounded
	}
	var jobs []job
	for _, typ := range Types() {
		f, _, err := FromBundle(b, Options{Type: typ, Name: "Tiny"})
		if err != nil {
			t.Fatal(err)
		}
		j := job{filepath.Join(dir, typ.String()+".gguf"), filepath.Join(dir, "F32.gguf")}
		if err := Write(j.Path, f); err != nil {
			t.Fatal(err)
		}
		jobs = append(jobs, j)
	}
	in, err := json.Marshal(jobs)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), python, "../../bench/peers/gguf_read.py")
	cmd.Stdin = bytes.NewReader(in)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("gguf_read.py: %v\n%s", err, stderr.String())
	}
	var files []peerFile
	if err := json.Unmarshal(out, &files); err != nil {
		t.Fatal(err)
	}
	for i, typ := range Types() {
		want, _, err := FromBundle(b, Options{Type: typ, Name: "Tiny"})
		if err != nil {
			t.Fatal(err)
		}
		for _, kv := range want.KVs {
			raw, err := json.Marshal(kv.Value)
			if err != nil {
				t.Fatal(err)
			}
			var v any
			if err := json.Unmarshal(raw, &v); err != nil {
				t.Fatal(err)
			}
			if f, ok := kv.Value.(float32); ok {
				v = float64(f)
			}
			if got := files[i].KVs[kv.Key]; !reflect.DeepEqual(got, v) {
				t.Errorf("%s: %s is %v, wrote %v", typ, kv.Key, got, v)
			}
		}
		if len(files[i].Tensors) != len(want.Tensors) {
			t.Fatalf("%s: %d tensors of %d", typ, len(files[i].Tensors), len(want.Tensors))
		}
		for j, got := range files[i].Tensors {
			w := want.Tensors[j]
			shape := make([]int, len(w.Shape))
			for k, d := range w.Shape {
				shape[len(shape)-1-k] = d
			}
			if got.Name != w.Name || got.Type != w.Type.String() || !reflect.DeepEqual(got.Shape, shape) || !got.Same {
				t.Errorf("%s: %+v, wrote %s %s %v", typ, got, w.Name, w.Type, shape)
			}
		}
	}
}
