package bundle

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
)

// What is mapped is what is read.
func TestUse(t *testing.T) {
	half := tinyBundle(t, true)
	half.DType = BFloat16
	for name, b := range map[string]*Bundle{"tied": tinyBundle(t, true), "untied": tinyBundle(t, false), "16 bits": half, "int8": compressed(t, true, glm.Int8), "int4": compressed(t, false, glm.Int4)} {
		dir := filepath.Join(t.TempDir(), "bundle")
		if err := Write(dir, b); err != nil {
			t.Fatal(err)
		}
		want, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Use(dir, func(b *Bundle) error {
			if !Equal(b, want) {
				t.Errorf("%s: it holds other weights than what Open reads", name)
			}
			return nil
		})
		if err != nil || got.Params != nil || got.Arch != want.Arch {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUseRefuses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bundle")
	path := filepath.Join(dir, WeightsFile)
	sum := func(s engine.StateDict) (sum float32) {
		for _, t := range s {
			for _, v := range t.Data {
				sum += v
			}
		}
		return sum
	}
	for _, c := range []struct {
		name, want string
		f          func(*Bundle) error
	}{
		{"an error of the caller's", "no", func(*Bundle) error { return errors.New("no") }},
		{"written in place", "was written", func(b *Bundle) error {
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				return err
			}
			_, err = f.Write([]byte("more"))
			return errors.Join(err, f.Close())
		}},
		{"cut short", "was written", func(b *Bundle) error {
			if err := os.Truncate(path, 100); err != nil {
				return err
			}
			if sum(b.Params) == 0 {
				return errors.New("there is nothing")
			}
			return nil
		}},
		{"no longer there, but renamed over", "", func(b *Bundle) error {
			before := sum(b.Params)
			if err := Write(dir, tinyBundle(t, true)); err != nil {
				return err
			}
			if sum(b.Params) != before {
				t.Error("another bundle's weights came into it")
			}
			return nil
		}},
	} {
		b := tinyBundle(t, true)
		b.Arch.Vocab, b.Arch.Dim = 640, 64
		b.Params = randomParams(b.Arch, 4)
		if err := errors.Join(os.RemoveAll(dir), Write(dir, b)); err != nil {
			t.Fatal(err)
		}
		_, err := Use(dir, c.f)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Use(dir, func(*Bundle) error { return nil }); err == nil || !strings.Contains(err.Error(), "empty") {
		t.Errorf("an empty file: %v", err)
	}
	defer func() {
		if p := recover(); p != "the caller's" {
			t.Errorf("a panic of the caller's became %v", p)
		}
	}()
	if err := errors.Join(os.RemoveAll(dir), Write(dir, tinyBundle(t, true))); err != nil {
		t.Fatal(err)
	}
	_, _ = Use(dir, func(*Bundle) error { panic("the caller's") })
}

// Floats that don't lie as the machine's do are copied.
func TestFloatsAt(t *testing.T) {
	b := make([]byte, 12)
	for i := range b {
		b[i] = byte(i)
	}
	if x := floatsAt(b[:8]); len(x) != 2 {
		t.Errorf("%d floats in 8 bytes", len(x))
	}
	if slices.Equal(floatsAt(b[1:9]), floatsAt(b[:8])) || floatsAt(b[1:9]) != nil {
		t.Error("floats at an odd address")
	}
}
