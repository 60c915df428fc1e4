package fit

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
)

// GlooName is the file beside the binary that holds what gpu/ring/gloo calls of
// libtorch's c10d.
const GlooName = "libautoglm-gloo.so"

// gloo compiles it. A libtorch without Gloo, or a machine without gloo's headers,
// gives none: progress says why, and only the backend gloo is missing then.
func (r *Report) gloo(ctx context.Context, c Config, source string, progress func(string)) error {
	out, err := filepath.Abs(filepath.Join(filepath.Dir(c.Out), GlooName))
	if err != nil {
		return err
	}
	l := r.Libtorch
	tmp := out + ".tmp"
	defer os.Remove(tmp)
	args := append(l.cxxFlags(plain), "-shared", "-fPIC", "-DUSE_C10D_GLOO", filepath.Join(source, "gpu", "ring", "gloo", "c10d", "shim.cpp"), "-o", tmp,
		"-L"+l.Lib, "-Wl,--no-as-needed", "-ltorch_cpu", "-lc10", "-Wl,-rpath,"+l.Lib, "-Wl,--allow-shlib-undefined")
	progress("compiling the bindings of Gloo")
	text, err := exec.CommandContext(ctx, "g++", args...).CombinedOutput()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		progress("they don't compile; going on without the backend gloo (apt-get install libgloo-dev has gloo's headers): " + firstError(string(text)))
		return nil
	}
	r.Gloo = out
	return os.Rename(tmp, out)
}
