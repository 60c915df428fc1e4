package device

import (
	"fmt"
	"strconv"
	"strings"
)

// ParseRequest reads a hardware constraint: auto, cpu-2, cpu-any, gpu-8,
// gpu-any, gpu-4x-a100.
func ParseRequest(s string) (Request, error) {
	bad := func(why string) (Request, error) {
		return Request{}, fmt.Errorf("%q %s; write auto, cpu-2, gpu-any, gpu-8 or gpu-4x-a100", s, why)
	}
	t := strings.ToLower(strings.TrimSpace(s))
	if t == "auto" || t == "" {
		return Request{Kind: Auto}, nil
	}
	kind, rest, ok := strings.Cut(t, "-")
	if kind != "cpu" && kind != "gpu" {
		return bad("names no known hardware")
	}
	r := Request{Kind: Kind(kind)}
	if !ok {
		return bad("does not say how many")
	}
	if rest == "any" {
		return r, nil
	}
	count, model, hasModel := strings.Cut(rest, "x-")
	n, err := strconv.Atoi(count)
	if err != nil || n < 1 || n > 1<<16 {
		return bad("has no count of devices")
	}
	if hasModel && model == "" {
		return bad("ends where the model should stand")
	}
	r.Count, r.Model = n, model
	return r, nil
}
