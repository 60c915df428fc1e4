package fit

import (
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const wrappers = `void atg_one(tensor *out__, tensor self) {
  PROTECT(
    auto outputs__ = torch::one(*self);
    out__[0] = new torch::Tensor(outputs__);
  )
}

tensor *atg_two(tensor *tensors_data, int tensors_len) {
  PROTECT(
    return torch::two();
  )
  return nullptr;
}
int64_t atg_three(tensor self) {
  PROTECT(
    return torch::three(*self);
  )
  return 0;
}
`

func TestBlank(t *testing.T) {
	for _, c := range []struct {
		name  string
		lines []int
		want  []string // names
		err   string
	}{
		{name: "none"},
		{name: "void", lines: []int{3}, want: []string{"atg_one"}},
		{name: "pointer, twice", lines: []int{10, 9}, want: []string{"atg_two"}},
		{name: "all, out of order", lines: []int{16, 4, 10}, want: []string{"atg_one", "atg_two", "atg_three"}},
		{name: "the signature itself", lines: []int{14}, want: []string{"atg_three"}},
		{name: "between wrappers", lines: []int{7}, err: "in no wrapper"},
		{name: "outside", lines: []int{99}, err: "outside"},
	} {
		out, names, err := blank([]byte(wrappers), c.lines)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: error %v, want one with %q", c.name, err, c.err)
			}
			continue
		}
		if err != nil || !slices.Equal(names, c.want) {
			t.Errorf("%s: blanked %v, %v; want %v", c.name, names, err, c.want)
		}
		if bytes.Count(out, []byte("\n")) != strings.Count(wrappers, "\n") {
			t.Errorf("%s: lines moved", c.name)
		}
		for _, name := range []string{"one", "two", "three"} {
			kept := bytes.Contains(out, []byte("torch::"+name+"("))
			if blanked := slices.Contains(c.want, "atg_"+name); kept == blanked {
				t.Errorf("%s: body of %s kept %t, blanked %t", c.name, name, kept, blanked)
			}
		}
	}
}

func TestBlankGolden(t *testing.T) {
	out, _, err := blank([]byte(wrappers), []int{3, 10})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"{\n  PROTECT(throw std::runtime_error(\"atg_one is not in this libtorch\");)\n\n\n\n}\n",
		"{\n  PROTECT(throw std::runtime_error(\"atg_two is not in this libtorch\");) return 0;\n\n\n\n}\n",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func TestParseErrors(t *testing.T) {
	got := parseErrors("In file included from a.cpp:1:\n/x/torch_api_generated.cpp.h:12:3: error: ‘qr’ is not a member\n  12 | x\nb.h:7: fatal error: no such file\nc.h:3:1: note: here\nd.h:0:1: error: no\r\n")
	inside := "/usr/include/tuple: In instantiation of 'struct X':\nx/torch_api_generated.cpp.h:1458:3:   required from here\n/usr/include/tuple:1357:25: error: static assertion failed\n/usr/include/tuple:1359:13: error: no type\nx.cpp: In function 'int f()':\nx.cpp:3:1: error: no\n"
	wantInside := []compileError{{"x/torch_api_generated.cpp.h", 1458, "static assertion failed"}, {"x/torch_api_generated.cpp.h", 1458, "no type"}, {"x.cpp", 3, "no"}}
	if got := parseErrors(inside); !slices.Equal(got, wantInside) {
		t.Errorf("inside of a template: %v, want %v", got, wantInside)
	}
	want := []compileError{{"/x/torch_api_generated.cpp.h", 12, "‘qr’ is not a member"}, {"b.h", 7, "no such file"}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestParseVersion(t *testing.T) {
	for text, want := range map[string]string{
		"#define TORCH_VERSION_MAJOR 2\n/// x\n#define TORCH_VERSION_MINOR 15\n# define TORCH_VERSION_PATCH 3\n#define TORCH_VERSION \\\n": "2.15.3",
		"#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_PATCH 3\n":                                                                   "TORCH_VERSION_MINOR is not defined",
		"#define TORCH_VERSION_MAJOR 99999999999999999999\n":                                                                               "TORCH_VERSION_MAJOR is 99999999999999999999: not a number",
	} {
		v, err := parseVersion(text)
		got := v.String()
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

func TestABI(t *testing.T) {
	newer := "_ZN3c105ErrorC2ENSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEES6_PKv"
	older := "_ZN3c105ErrorC1ENS_14SourceLocationESs"
	if cxx11, symbol, err := abiOf("l", []string{"x", newer}); err != nil || !cxx11 || symbol != newer {
		t.Error(cxx11, symbol, err)
	}
	if cxx11, symbol, err := abiOf("l", []string{older}); err != nil || cxx11 || symbol != older {
		t.Error(cxx11, symbol, err)
	}
	if _, _, err := abiOf("l", []string{"memcpy"}); err == nil || !strings.Contains(err.Error(), "_ZN3c105ErrorC") {
		t.Errorf("no constructor: %v", err)
	}
}

// Libraries of both ABIs, of neither, and of another machine are told apart by
// their files.
func TestABIOfFiles(t *testing.T) {
	compiler, err := exec.LookPath("g++")
	if err != nil {
		if os.Getenv("AUTOGLM_REQUIRE") != "" {
			t.Fatal("g++ is not on PATH (apt-get install g++)")
		}
		t.Skip("g++ is not on PATH (apt-get install g++)")
	}
	dir := t.TempDir()
	const with = "#include <string>\nnamespace c10 { struct Error { Error(std::string); }; Error::Error(std::string) {} }\n"
	for name, tc := range map[string]struct {
		source, flag string
		cxx11        bool
		err          string
	}{
		"newer": {with, "-D_GLIBCXX_USE_CXX11_ABI=1", true, ""},
		"older": {with, "-D_GLIBCXX_USE_CXX11_ABI=0", false, ""},
		"none":  {"int f() { return 0; }\n", "-O1", false, "no constructor of c10::Error (_ZN3c105ErrorC…)"},
	} {
		source, lib := filepath.Join(dir, name+".cpp"), filepath.Join(dir, name+".so")
		if err := os.WriteFile(source, []byte(tc.source), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(compiler, "-shared", "-fPIC", tc.flag, "-o", lib, source).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		cxx11, symbol, err := abi(lib)
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil || cxx11 != tc.cxx11 || !strings.HasPrefix(symbol, "_ZN3c105ErrorC") {
			t.Errorf("%s: %t %s %v", name, cxx11, symbol, err)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "newer.so"))
	if err != nil {
		t.Fatal(err)
	}
	b[18], b[19] = byte(elf.EM_S390), 0 // e_machine
	other := filepath.Join(dir, "other.so")
	if err := os.WriteFile(other, b, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := abi(other); err == nil || !strings.Contains(err.Error(), "EM_S390") {
		t.Errorf("another machine's: %v", err)
	}
}

func TestLibGo(t *testing.T) {
	l := Libtorch{Include: "/t/include", Lib: "/t/lib", Version: Version{2, 1, 0}, Standard: "c++17"}
	got, err := l.libGo()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`-std=c++17 -O2 -w -D_GLIBCXX_USE_CXX11_ABI=0 "-I/t/include" "-I/t/include/torch/csrc/api/include"`, `"-L/t/lib"`, `"-Wl,-rpath,/t/lib"`, "package libtch\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in\n%s", want, got)
		}
	}
	l.CXX11, l.Standard = true, "c++20"
	if got, err = l.libGo(); err != nil || strings.Contains(got, "CXX11_ABI") {
		t.Errorf("%v\n%s", err, got)
	}
	l.Lib = "/t\"/lib"
	if _, err := l.libGo(); err == nil {
		t.Error("a path with a quote was taken")
	}
}

func TestLinkError(t *testing.T) {
	err := linkError("x.o: undefined reference to `c10::Error::Error(std::string)'\n", Libtorch{})
	if err == nil || !strings.Contains(err.Error(), "c10::Error::Error(std::string)") {
		t.Errorf("link error %v doesn't name the symbol", err)
	}
	if err := linkError("no space left", Libtorch{}); err != nil {
		t.Error(err)
	}
	err = linkError("./x: symbol lookup error: ./x: undefined symbol: _ZN3c105ErrorC1ESs, version V\n", Libtorch{})
	if err == nil || !strings.Contains(err.Error(), "lacks the symbol _ZN3c105ErrorC1ESs:") {
		t.Errorf("loader's error %v doesn't name the symbol", err)
	}
	err = linkError("./x: error while loading shared libraries: libcudnn.so.9: cannot open shared object file: No such file", Libtorch{})
	if err == nil || !strings.Contains(err.Error(), "libcudnn.so.9") {
		t.Errorf("loader's error %v doesn't name the library", err)
	}
}

func TestOpenErrors(t *testing.T) {
	if _, err := Open(t.TempDir()); err == nil || !strings.Contains(err.Error(), "lib/libtorch.so") {
		t.Errorf("empty folder: %v", err)
	}
	if _, err := sourceRoot(t.TempDir()); err == nil || !strings.Contains(err.Error(), "--source") {
		t.Errorf("no source: %v", err)
	}
}

func FuzzBlank(f *testing.F) {
	f.Add([]byte(wrappers), "torch_api_generated.cpp.h:3:1: error: no")
	f.Add([]byte("void atg_x() {\n}\n"), "a:1: error: b\na:2: error: c")
	f.Fuzz(func(t *testing.T, src []byte, output string) {
		var lines []int
		for _, e := range parseErrors(output) {
			lines = append(lines, e.Line)
		}
		out, names, err := blank(src, lines)
		if err != nil {
			return
		}
		if bytes.Count(out, []byte("\n")) != bytes.Count(src, []byte("\n")) {
			t.Error("lines moved")
		}
		if (len(names) == 0) != (len(lines) == 0) {
			t.Errorf("%d lines, %d wrappers", len(lines), len(names))
		}
	})
}

func FuzzParseVersion(f *testing.F) {
	f.Add("#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 15\n#define TORCH_VERSION_PATCH 0\n")
	f.Fuzz(func(t *testing.T, header string) {
		if v, err := parseVersion(header); err == nil && (v.Major < 0 || v.Minor < 0 || v.Patch < 0) {
			t.Errorf("version %v", v)
		}
	})
}

// Only the fused attention's mask becomes optional.
func TestMendMask(t *testing.T) {
	src := "  a(torch::scaled_dot_product_attention(*q, (attn_mask ? *attn_mask : torch::Tensor()), p));\n  b((attn_mask ? *attn_mask : torch::Tensor()));"
	want := "  a(torch::scaled_dot_product_attention(*q, (attn_mask ? c10::optional<torch::Tensor>(*attn_mask) : c10::optional<torch::Tensor>()), p));\n  b((attn_mask ? *attn_mask : torch::Tensor()));"
	if got := string(mendMask([]byte(src))); got != want {
		t.Errorf("%s", got)
	}
}
