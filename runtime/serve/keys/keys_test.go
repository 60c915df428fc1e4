package keys

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestRing(t *testing.T) {
	ada, line1, err := New("ada", 2)
	if err != nil {
		t.Fatal(err)
	}
	bob, line2, err := New("bob", 0)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "keys")
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("# who may ask\n\n" + line1 + line2)
	if strings.Contains(line1+line2, ada) {
		t.Error("the file holds a key")
	}
	now := time.Unix(1000, 0)
	r, err := load(path, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if name, err := r.Check(ada); name != "ada" || err != nil {
			t.Errorf("%q, %v", name, err)
		}
	}
	var rate *RateError
	if name, err := r.Check(ada); name != "ada" || !errors.As(err, &rate) || rate.After != 30*time.Second {
		t.Errorf("a third request: %q, %v", name, err)
	}
	if err := r.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Check(ada); err == nil {
		t.Error("reading the file anew gives a new minute")
	}
	now = now.Add(31 * time.Second)
	if _, err := r.Check(ada); err != nil {
		t.Errorf("half a minute later: %v", err)
	}
	for range 100 {
		if name, err := r.Check(bob); name != "bob" || err != nil {
			t.Fatalf("%q, %v", name, err)
		}
	}
	for _, k := range []string{"", "ag-", ada + "x", ada[:10]} {
		if _, err := r.Check(k); !errors.Is(err, ErrUnknown) {
			t.Errorf("%q: %v", k, err)
		}
	}
	write(line2)
	if err := r.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Check(ada); !errors.Is(err, ErrUnknown) {
		t.Errorf("a key that was taken out: %v", err)
	}
	for want, bad := range map[string]string{":1: there is no key": "# none\n", ":1: give NAME": "ada\n", ":1: the second word": "ada xyz\n", ":1: \"0\"": strings.TrimSpace(line2) + " 0\n", ":2: bob has": line2 + line2} {
		write(bad)
		if err := r.Reload(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := r.Check(bob); err != nil {
		t.Errorf("a file that is wrong changed the keys: %v", err)
	}
	for _, name := range []string{"", "a b", "#x"} {
		if _, _, err := New(name, 1); err == nil {
			t.Errorf("%q is a name", name)
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a file that is not there is read")
	}
}

func FuzzParse(f *testing.F) {
	f.Add("ada 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 60\n#x\n\n")
	f.Fuzz(func(t *testing.T, s string) {
		if keys, err := parse([]byte(s)); err == nil && len(keys) == 0 {
			t.Error("no keys and no error")
		}
	})
}
