package fit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Find is the libtorch to use: dir when it is given, otherwise that of the
// Python that AUTOGLM_PYTHON names, of python3 on PATH, and Debian's, in this
// order.
func Find(ctx context.Context, dir string) (Libtorch, error) {
	if dir != "" {
		return Open(dir)
	}
	var tried []error
	for _, python := range []string{os.Getenv("AUTOGLM_PYTHON"), "python3"} {
		if python == "" {
			continue
		}
		wheel, err := wheel(ctx, python)
		if err == nil {
			var l Libtorch
			if l, err = Open(wheel); err == nil {
				return l, nil
			}
		}
		tried = append(tried, err)
	}
	l, err := Open("/usr")
	if err == nil {
		return l, nil
	}
	tried = append(tried, err)
	return Libtorch{}, fmt.Errorf("no libtorch found; install one (pip install torch, or apt-get install libtorch-dev) or name its folder with --libtorch:\n%w", errors.Join(tried...))
}

// wheel is the folder of Python's torch, found without importing it: that would
// take seconds.
func wheel(ctx context.Context, python string) (string, error) {
	out, err := exec.CommandContext(ctx, python, "-c", "import importlib.util as u; s = u.find_spec('torch'); print(s.origin if s else '')").Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w", python, err)
	}
	origin := strings.TrimSpace(string(out))
	if origin == "" {
		return "", fmt.Errorf("%s has no module torch", python)
	}
	return filepath.Dir(origin), nil
}
