package fit

import (
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
)

// Version is libtorch's.
type Version struct{ Major, Minor, Patch int }

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch) }

// Libtorch is one that was found: where it lies and how code for it is compiled.
type Libtorch struct {
	Root     string // as given or found
	Include  string // holds torch/ and ATen/
	Lib      string // holds libtorch.so
	Version  Version
	CXX11    bool   // strings of the C++11 ABI; wheels before 2.6 have the older one
	Symbol   string // of libc10 that told the ABI
	Standard string // of C++ that its headers ask for: c++17 or c++20
	CUDA     bool   // holds libtorch_cuda
	Runtime  string // headers of CUDA's runtime, where a wheel of NVIDIA's holds them; "" is none
}

var versionLine = regexp.MustCompile(`(?m)^\s*#\s*define\s+TORCH_VERSION_(MAJOR|MINOR|PATCH)\s+(\d+)\s*$`)

// parseVersion reads the version out of torch/version.h.
func parseVersion(header string) (Version, error) {
	var v Version
	fields := map[string]*int{"MAJOR": &v.Major, "MINOR": &v.Minor, "PATCH": &v.Patch}
	for _, m := range versionLine.FindAllStringSubmatch(header, -1) {
		n, err := strconv.Atoi(m[2])
		if err != nil {
			return Version{}, fmt.Errorf("TORCH_VERSION_%s is %s: not a number", m[1], m[2])
		}
		if p := fields[m[1]]; p != nil {
			*p = n
			delete(fields, m[1])
		}
	}
	for _, name := range []string{"MAJOR", "MINOR", "PATCH"} {
		if fields[name] != nil {
			return Version{}, fmt.Errorf("TORCH_VERSION_%s is not defined", name)
		}
	}
	return v, nil
}

// standard is the C++ standard that ATen.h asks for.
func standard(aten string) string {
	if strings.Contains(aten, "202002L") || strings.Contains(aten, "C++20") {
		return "c++20"
	}
	return "c++17"
}

// Open reads the libtorch in dir: a torch wheel's folder, an unpacked libtorch,
// or a prefix such as /usr.
func Open(dir string) (Libtorch, error) {
	root, err := filepath.Abs(dir)
	if err != nil {
		return Libtorch{}, err
	}
	l := Libtorch{Root: root, Include: filepath.Join(root, "include")}
	libs, err := filepath.Glob(filepath.Join(root, "lib", "*", "libtorch.so"))
	if err != nil {
		return Libtorch{}, fmt.Errorf("libtorch %s: %w", root, err)
	}
	for _, path := range append([]string{filepath.Join(root, "lib", "libtorch.so")}, libs...) {
		if exists(path) {
			l.Lib = filepath.Dir(path)
			break
		}
	}
	if l.Lib == "" {
		return Libtorch{}, fmt.Errorf("libtorch %s: no lib/libtorch.so; name the folder that holds include and lib (of a torch wheel: site-packages/torch)", root)
	}
	aten, err := os.ReadFile(filepath.Join(l.Include, "ATen", "ATen.h"))
	if err != nil {
		return Libtorch{}, fmt.Errorf("libtorch %s has no headers: %w; install libtorch-dev, or a torch wheel, which holds them", root, err)
	}
	l.Standard = standard(string(aten))
	found := false
	var reason error
	for _, path := range []string{"torch/headeronly/version.h", "torch/csrc/api/include/torch/version.h"} {
		header, err := os.ReadFile(filepath.Join(l.Include, path))
		if err != nil {
			reason = err
			continue
		}
		if l.Version, reason = parseVersion(string(header)); reason == nil {
			found = true
			break
		}
	}
	if !found {
		return Libtorch{}, fmt.Errorf("libtorch %s: its version is unknown: %w", root, reason)
	}
	if l.CXX11, l.Symbol, err = abi(filepath.Join(l.Lib, "libc10.so")); err != nil {
		return Libtorch{}, fmt.Errorf("libtorch %s: %w", root, err)
	}
	l.CUDA = exists(filepath.Join(l.Lib, "libtorch_cuda.so"))
	if headers := filepath.Join(filepath.Dir(root), "nvidia", "cuda_runtime", "include"); l.CUDA && exists(filepath.Join(headers, "cuda_runtime_api.h")) {
		l.Runtime = headers
	}
	return l, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// abi says which strings libc10 was compiled with, and the symbol that tells.
func abi(path string) (cxx11 bool, symbol string, err error) {
	f, err := elf.Open(path)
	if err != nil {
		return false, "", fmt.Errorf("read symbols: %w", err)
	}
	defer f.Close()
	if want, ok := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[runtime.GOARCH]; ok && f.Machine != want {
		return false, "", fmt.Errorf("%s is for %s, and this machine is %s: install a libtorch for this platform", path, f.Machine, want)
	}
	symbols, err := f.DynamicSymbols()
	if err != nil {
		return false, "", fmt.Errorf("read symbols of %s: %w", path, err)
	}
	var names []string
	for _, s := range symbols {
		if s.Section != elf.SHN_UNDEF {
			names = append(names, s.Name)
		}
	}
	return abiOf(path, names)
}

// abiOf looks among a library's own symbols for a constructor of c10::Error,
// which takes a string: basic_string of namespace __cxx11, or the older Ss.
func abiOf(path string, names []string) (cxx11 bool, symbol string, err error) {
	for _, n := range names {
		if !strings.HasPrefix(n, "_ZN3c105ErrorC") {
			continue
		}
		switch {
		case strings.Contains(n, "NSt7__cxx1112basic_string"):
			return true, n, nil
		case strings.Contains(n, "Ss"):
			return false, n, nil
		}
	}
	return false, "", fmt.Errorf("%s has no constructor of c10::Error (_ZN3c105ErrorC…) that takes a std::string: its ABI is unknown; is it libtorch's for this platform?", path)
}

// libGo is gotch's lib.go for this libtorch: the flags of its compilation.
func (l Libtorch) libGo() (string, error) {
	for _, path := range []string{l.Include, l.Lib, l.Runtime} {
		if strings.ContainsAny(path, "\"'\\\n$,") {
			return "", fmt.Errorf("libtorch path %q holds a character that compiler flags can't carry; move it", path)
		}
	}
	cuda := ""
	if l.CUDA {
		cuda = " -lc10_cuda"
	}
	return fmt.Sprintf(`// Written for libtorch %s by autoglm libtorch fit.

package libtch

// #cgo CFLAGS: -I${SRCDIR} -O2 -w
// #cgo CXXFLAGS: %s
// #cgo LDFLAGS: "-L%s" -Wl,--no-as-needed -ltorch -ltorch_cpu -lc10%s -lstdc++ "-Wl,-rpath,%s" -Wl,--allow-shlib-undefined
import "C"
`, l.Version, `-I${SRCDIR} `+strings.Join(l.cxxFlags(quoted), " ")+" -I${SRCDIR}/"+standIns, l.Lib, cuda, l.Lib), nil
}

func quoted(flag string) string { return `"` + flag + `"` }
func plain(flag string) string  { return flag }

// cxxFlags compile code against this libtorch.
func (l Libtorch) cxxFlags(path func(string) string) []string {
	flags := []string{"-std=" + l.Standard, "-O2", "-w"}
	if !l.CXX11 {
		flags = append(flags, "-D_GLIBCXX_USE_CXX11_ABI=0")
	}
	if l.Runtime != "" {
		flags = append(flags, path("-I"+l.Runtime))
	}
	return append(flags, path("-I"+l.Include), path("-I"+filepath.Join(l.Include, "torch", "csrc", "api", "include")))
}
