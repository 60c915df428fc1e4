package fit

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// gotchModule is the binding; newer versions are not on the module proxy.
const (
	gotchModule  = "github.com/sugarme/gotch"
	gotchVersion = "v0.9.1"
	ourModule    = "github.com/open-autoglm/autoglm"
)

// passes is the most syntax passes of one fit: a pass that still finds errors
// after that many will not end.
const passes = 6

// What the copy has beside gotch's own files, in libtch.
var (
	//go:embed bindings.go.txt
	bindings []byte
	//go:embed bindings.cpp.txt
	bindingsCPP []byte
	//go:embed host_defines.h.txt
	hostDefines []byte
)

// Config says what to fit and where the result goes.
type Config struct {
	Libtorch string // folder of a libtorch; "" finds one
	Source   string // folder inside autoglm's source
	Cache    string // folder of the patched copies; "" is autoglm/libtorch in the user's cache folder
	Out      string // the binary
	GPU      bool   // build with NVML too, where it builds
}

// Report is what a fit did.
type Report struct {
	Libtorch Libtorch
	Gotch    string   // folder of the patched copy
	ModFile  string   // for go build -modfile
	Blanked  []string // wrappers whose functions this libtorch lacks
	Reused   bool     // the patched copy was there already
	Tags     string
	Gloo     string // the bindings of Gloo; "" is none
	Check    string // what the built binary's self-check said
}

// Run fits gotch to a libtorch, builds autoglm for it and checks the binary.
// progress gets a line before each thing that takes time. The outputs are
// replaced only when they are whole.
func Run(ctx context.Context, c Config, progress func(string)) (Report, error) {
	var r Report
	source, err := sourceRoot(c.Source)
	if err != nil {
		return r, err
	}
	for tool, install := range map[string]string{"go": "Go from https://go.dev/dl", "g++": "g++ (apt-get install g++)"} {
		if _, err := exec.LookPath(tool); err != nil {
			return r, fmt.Errorf("%s is not on PATH; install %s", tool, install)
		}
	}
	if r.Libtorch, err = Find(ctx, c.Libtorch); err != nil {
		return r, err
	}
	l := r.Libtorch
	abi := "the C++11 ABI"
	if !l.CXX11 {
		abi = "the ABI before C++11"
	}
	progress(fmt.Sprintf("libtorch %s in %s: %s, %s (by %s), CUDA %t", l.Version, l.Root, l.Standard, abi, l.Symbol, l.CUDA))
	if err := r.prepare(ctx, c, source, progress); err != nil {
		return r, err
	}
	if err := r.build(ctx, c, source, progress); err != nil {
		return r, err
	}
	return r, r.gloo(ctx, c, source, progress)
}

// sourceRoot is the folder of autoglm's go.mod at or above dir.
func sourceRoot(dir string) (string, error) {
	start, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for at := start; ; at = filepath.Dir(at) {
		mod, err := os.ReadFile(filepath.Join(at, "go.mod"))
		if err == nil && bytes.HasPrefix(bytes.TrimSpace(mod), []byte("module "+ourModule+"\n")) {
			return at, nil
		}
		if at == filepath.Dir(at) {
			return "", fmt.Errorf("no source of autoglm (go.mod of %s) at or above %s; run inside a clone of it or name one with --source", ourModule, start)
		}
	}
}

// prepare makes the patched copy of gotch, unless a whole one is there, and the
// mod file that points at it.
func (r *Report) prepare(ctx context.Context, c Config, source string, progress func(string)) error {
	cache := c.Cache
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return fmt.Errorf("no cache folder: %w; set XDG_CACHE_HOME", err)
		}
		cache = filepath.Join(user, "autoglm", "libtorch")
	}
	cache, err := filepath.Abs(cache)
	if err != nil {
		return err
	}
	libGo, err := r.Libtorch.libGo()
	if err != nil {
		return err
	}
	// The folder's name tells what the copy was made from and for.
	key := sha256.Sum256([]byte(gotchVersion + " mended\n" + libGo))
	dir := filepath.Join(cache, fmt.Sprintf("%s-%x", r.Libtorch.Version, key[:6]))
	r.Gotch, r.ModFile = filepath.Join(dir, "gotch"), filepath.Join(dir, "go.mod")
	record := filepath.Join(dir, "blanked.json")
	if data, err := os.ReadFile(record); err == nil && json.Unmarshal(data, &r.Blanked) == nil {
		r.Reused = true
		progress("patched gotch is there: " + r.Gotch)
	} else if err := r.patch(ctx, cache, dir, libGo, source, progress); err != nil {
		return err
	}
	if err := r.add(ctx, progress); err != nil {
		return err
	}
	return r.writeModFile(ctx, source)
}

// add writes what the copy has beside gotch's own files, where it has changed.
func (r *Report) add(ctx context.Context, progress func(string)) error {
	dir := filepath.Join(r.Gotch, "libtch")
	changed := false
	put := func(name string, text []byte) error {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, text) {
			return nil
		}
		changed = true
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path+".tmp", text, 0o644); err != nil {
			return err
		}
		return os.Rename(path+".tmp", path)
	}
	for name, text := range map[string][]byte{"autoglm.go": bindings, "autoglm_bindings.cpp": bindingsCPP, standIns + "/crt/host_defines.h": hostDefines} {
		if err := put(name, text); err != nil {
			return err
		}
	}
	if !changed && exists(filepath.Join(dir, "autoglm_stats.h")) {
		return nil
	}
	how := 0
	if r.Libtorch.CUDA {
		progress("looking for the statistics of its allocator")
		for n := 2; n > 0 && how == 0; n-- {
			args := append(r.Libtorch.cxxFlags(plain), "-I"+filepath.Join(dir, standIns), fmt.Sprintf("-DAUTOGLM_STATS=%d", n), "-fsyntax-only", filepath.Join(dir, "autoglm_bindings.cpp"))
			if exec.CommandContext(ctx, "g++", args...).Run() == nil {
				how = n
			}
		}
		if how == 0 {
			progress("its allocator tells no statistics that can be read; going on without the peak memory of GPUs")
		}
	}
	return put("autoglm_stats.h", fmt.Appendf(nil, "#define AUTOGLM_STATS %d\n", how))
}

// standIns is the folder, in libtch, of headers that stand in for missing ones.
const standIns = "standins"

// patch makes the copy beside its place and moves it there when it is whole.
func (r *Report) patch(ctx context.Context, cache, dir, libGo, source string, progress func(string)) error {
	progress("copying gotch " + gotchVersion)
	from, err := download(ctx, source)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(cache, ".fit-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	gotch := filepath.Join(tmp, "gotch")
	// The binding's C layer alone is used; the rest, and its dependencies, stay out.
	if err := os.CopyFS(filepath.Join(gotch, "libtch"), os.DirFS(filepath.Join(from, "libtch"))); err != nil {
		return fmt.Errorf("copy gotch: %w", err)
	}
	for name, data := range map[string]string{"go.mod": "module " + gotchModule + "\n\ngo 1.20\n", "libtch/lib.go": libGo} {
		if err := os.WriteFile(filepath.Join(gotch, name), []byte(data), 0o644); err != nil {
			return err
		}
	}
	wrappers := filepath.Join(gotch, "libtch", wrapperFile)
	src, err := os.ReadFile(wrappers)
	if err == nil {
		err = os.WriteFile(wrappers, mendMask(src), 0o644)
	}
	if err != nil {
		return fmt.Errorf("mend gotch: %w", err)
	}
	if r.Blanked, err = blankUntilClean(ctx, filepath.Join(gotch, "libtch"), r.Libtorch, progress); err != nil {
		return err
	}
	data, err := json.Marshal(r.Blanked)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tmp, "blanked.json"), append(data, '\n'), 0o644); err != nil {
		return err
	}
	// What lies there has no record, so it isn't whole.
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	return os.Rename(tmp, dir)
}

// download is gotch's folder in the module cache.
func download(ctx context.Context, source string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", gotchModule+"@"+gotchVersion)
	cmd.Dir = source
	out, err := cmd.Output()
	var m struct{ Dir, Error string }
	if jsonErr := json.Unmarshal(out, &m); jsonErr != nil || err != nil || m.Error != "" {
		return "", fmt.Errorf("go mod download %s@%s: %s; it needs a module proxy (GOPROXY) once", gotchModule, gotchVersion, reason(m.Error, err))
	}
	return m.Dir, nil
}

func reason(text string, err error) string {
	var exit *exec.ExitError
	switch {
	case text != "":
		return text
	case errors.As(err, &exit) && len(exit.Stderr) > 0:
		return strings.TrimSpace(string(exit.Stderr))
	case err != nil:
		return err.Error()
	}
	return "unreadable answer"
}

// blankUntilClean runs syntax passes over gotch's wrappers in dir and blanks
// those that don't compile.
func blankUntilClean(ctx context.Context, dir string, l Libtorch, progress func(string)) ([]string, error) {
	path := filepath.Join(dir, wrapperFile)
	all := []string{}
	for pass := range passes {
		progress(fmt.Sprintf("syntax pass %d over gotch's wrappers (about a minute)", pass+1))
		args := append(l.cxxFlags(plain), "-I"+dir, "-fsyntax-only", "-fmax-errors=0", "-fdiagnostics-color=never", filepath.Join(dir, "torch_api.cpp"))
		cmd := exec.CommandContext(ctx, "g++", args...)
		cmd.Env = append(os.Environ(), "LC_ALL=C")
		out, err := cmd.CombinedOutput()
		if err == nil {
			return all, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		errs := parseErrors(string(out))
		if len(errs) == 0 {
			return nil, fmt.Errorf("g++ %s: %w\n%s", strings.Join(args, " "), err, tail(string(out)))
		}
		var lines []int
		for _, e := range errs {
			if filepath.Base(e.File) != wrapperFile {
				return nil, fmt.Errorf("%s:%d: %s; gotch can't be fitted to libtorch %s here: is the compiler (g++ --version) recent enough for %s?", e.File, e.Line, e.Text, l.Version, l.Standard)
			}
			lines = append(lines, e.Line)
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		src, names, err := blank(src, lines)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if err := os.WriteFile(path, src, 0o644); err != nil {
			return nil, err
		}
		all = append(all, names...)
		progress(fmt.Sprintf("blanked %d wrappers that this libtorch lacks: %s", len(names), shortList(names)))
	}
	return nil, fmt.Errorf("gotch's wrappers still don't compile after %d passes against libtorch %s", passes, l.Version)
}

func shortList(names []string) string {
	if len(names) > 12 {
		return strings.Join(names[:12], ", ") + ", …"
	}
	return strings.Join(names, ", ")
}

// firstError is the first line of go build's output that is no heading.
func firstError(out string) string {
	for line := range strings.Lines(out) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			return line
		}
	}
	return "no reason given"
}

// tail is the end of a long output.
func tail(out string) string {
	const most = 2000
	out = strings.TrimSpace(out)
	if len(out) > most {
		out = "…" + out[len(out)-most:]
	}
	return out
}

// writeModFile writes the module's go.mod with gotch required and replaced, and
// its go.sum beside it.
func (r *Report) writeModFile(ctx context.Context, source string) error {
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(source, name))
		if err != nil {
			return err
		}
		to := filepath.Join(filepath.Dir(r.ModFile), name)
		if err := os.WriteFile(to+".tmp", data, 0o644); err != nil {
			return err
		}
		if name == "go.mod" {
			cmd := exec.CommandContext(ctx, "go", "mod", "edit", "-require="+gotchModule+"@"+gotchVersion, "-replace="+gotchModule+"="+r.Gotch, to+".tmp")
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("go mod edit: %w\n%s", err, tail(string(out)))
			}
		}
		if err := os.Rename(to+".tmp", to); err != nil {
			return err
		}
	}
	return nil
}

var (
	undefined = regexp.MustCompile("undefined reference to [`']([^']+)'")
	unloaded  = regexp.MustCompile(`undefined symbol: ([^\s,]+)`)
	noLibrary = regexp.MustCompile(`error while loading shared libraries: ([^:\s]+)`)
)

// linkError names the symbol that the linker, or the loader, missed; nil where
// the output names none.
func linkError(out string, l Libtorch) error {
	if m := noLibrary.FindStringSubmatch(out); m != nil {
		return fmt.Errorf("libtorch %s in %s needs the library %s, which is not there: install what it came with whole (a torch wheel brings CUDA's in the wheels nvidia-*), or add its folder to LD_LIBRARY_PATH", l.Version, l.Lib, m[1])
	}
	m := undefined.FindStringSubmatch(out)
	if m == nil {
		m = unloaded.FindStringSubmatch(out)
	}
	if m == nil {
		return nil
	}
	return fmt.Errorf("libtorch %s in %s lacks the symbol %s: its libraries are not of its headers or of another C++ ABI; install one libtorch whole and name its folder with --libtorch", l.Version, l.Lib, m[1])
}

// build builds the binary beside its place, runs its self-check and moves it
// there.
func (r *Report) build(ctx context.Context, c Config, source string, progress func(string)) error {
	out, err := filepath.Abs(c.Out)
	if err != nil {
		return err
	}
	tmp := filepath.Join(filepath.Dir(out), "."+filepath.Base(out)+".tmp")
	defer os.Remove(tmp)
	tags := []string{"libtorch"}
	if c.GPU {
		tags = []string{"gpu,libtorch", "libtorch"}
	}
	for i, tag := range tags {
		progress("building with tags " + tag + " (about three minutes the first time)")
		cmd := exec.CommandContext(ctx, "go", "build", "-modfile="+r.ModFile, "-mod=mod", "-tags="+tag, "-o", tmp, "./cmd/autoglm")
		cmd.Dir = source
		cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
		text, err := cmd.CombinedOutput()
		if err == nil {
			r.Tags = tag
			break
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := linkError(string(text), r.Libtorch); err != nil {
			return err
		}
		if i == len(tags)-1 {
			return fmt.Errorf("go build: %w\n%s", err, tail(string(text)))
		}
		progress("with NVML (tag gpu) it does not build here; going on without: " + firstError(string(text)))
	}
	progress("self-check")
	text, err := exec.CommandContext(ctx, tmp, "libtorch", "check").CombinedOutput()
	r.Check = strings.TrimSpace(string(text))
	if err != nil {
		if err := linkError(string(text), r.Libtorch); err != nil {
			return err
		}
		return fmt.Errorf("the built binary's self-check: %w\n%s", err, tail(r.Check))
	}
	return os.Rename(tmp, out)
}
