package cmd_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/open-autoglm/autoglm/"

// storey of a package: imports go down or stay within the rules below.
func storey(pkg string) int {
	switch top, _, _ := strings.Cut(pkg, "/"); top {
	case "gpu":
		return 1
	case "runtime", "cluster":
		return 2
	case "actors":
		return 3
	case "cmd":
		return 4
	case "bench":
		return 5
	}
	return 0
}

// forbidden says why from may not import to; "" when it may.
func forbidden(from, to string) string {
	if from == to || strings.HasPrefix(from, "bench/") {
		return ""
	}
	if strings.HasPrefix(to, "bench/") {
		return "nothing imports bench; move what is shared into a room"
	}
	if storey(to) > storey(from) {
		return "an import climbs the layers; declare an interface where it is used and join the two in actors/node"
	}
	if to == "runtime/durable" {
		return "" // a leaf: how files are written
	}
	if strings.HasPrefix(from, "runtime/") && strings.HasPrefix(to, "cluster") || strings.HasPrefix(from, "cluster") && strings.HasPrefix(to, "runtime/") {
		return "runtime and cluster don't know each other; join them in actors/node"
	}
	if strings.HasPrefix(from, "runtime/") {
		room := strings.Split(from, "/")[1]
		if strings.HasPrefix(to, "gpu/engine/") {
			return "engines are handed in by actors/node; import the contract gpu/engine"
		}
		if to == "gpu/engine" && room != "train" && room != "compress" && room != "serve" && room != "bundle" && room != "gguf" {
			return "only train, compress, serve, bundle and gguf (which hold an engine's state) import gpu/engine"
		}
		if to == "gpu/ring" && room != "train" {
			return "rooms know rings through interfaces; only train names gpu/ring's Buffer in one"
		}
	}
	if from == "actors" && strings.HasPrefix(to, "actors/") {
		return "actors don't know their wiring"
	}
	return ""
}

func TestImportsGoDown(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", module+"...").Output()
	if err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(strings.NewReader(string(out)))
	n := 0
	for {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		n++
		from := strings.TrimPrefix(p.ImportPath, module)
		for _, imp := range p.Imports {
			if to, ours := strings.CutPrefix(imp, module); ours {
				if why := forbidden(from, to); why != "" {
					t.Errorf("%s imports %s: %s", from, to, why)
				}
			}
		}
	}
	if n < 10 {
		t.Fatalf("go list found %d packages", n)
	}
}

// The rules themselves must refuse what they are for.
func TestRulesRefuse(t *testing.T) {
	for _, c := range [][2]string{
		{"gpu/ring", "runtime/job"},
		{"runtime/job", "actors"},
		{"runtime/search", "gpu/engine"},
		{"runtime/train", "gpu/engine/native"},
		{"cluster", "runtime/job"},
		{"actors", "actors/node"},
		{"cmd/autoglm", "bench/step"},
		{"actors", "cmd/autoglm"},
	} {
		if forbidden(c[0], c[1]) == "" {
			t.Errorf("%s may import %s", c[0], c[1])
		}
	}
	for _, c := range [][2]string{{"cmd/autoglm", "gpu/kernel"}, {"actors/node", "gpu/engine/native"}, {"runtime/train", "gpu/engine"}, {"bench/step", "actors/node"}} {
		if why := forbidden(c[0], c[1]); why != "" {
			t.Errorf("%s may not import %s: %s", c[0], c[1], why)
		}
	}
}
