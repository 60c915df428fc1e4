package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// peers and the environments, below $AUTOGLM_SEARCH_PEERS, that they live in.
var peers = [][2]string{
	{"optuna-tpe", "optuna"},
	{"optuna-gp", "optuna"},
	{"optuna-cmaes", "optuna"},
	{"optuna-nsga2", "optuna"},
	{"optuna-random", "optuna"},
	{"smac", "smac"},
	{"hebo", "hebo"},
	{"syne-bore", "syne"},
	{"syne-cqr", "syne"},
	{"syne-tpe", "syne"},
	{"syne-rea", "syne"},
	{"syne-botorch", "syne"},
}

func peerNames() []string {
	var out []string
	for _, p := range peers {
		out = append(out, p[0])
	}
	return out
}

func isPeer(name string) bool { return slices.Contains(peerNames(), name) }

// peer is another library's optimiser, driven by bench/peers/search.py.
func peer(name, script string) (searcher, error) {
	i := slices.Index(peerNames(), name)
	if i < 0 {
		return searcher{}, fmt.Errorf("there is no peer %s; there are %s", name, strings.Join(peerNames(), ", "))
	}
	folder := os.Getenv("AUTOGLM_SEARCH_PEERS")
	if folder == "" {
		return searcher{}, fmt.Errorf("peer %s: AUTOGLM_SEARCH_PEERS is not set; export AUTOGLM_SEARCH_PEERS=$(.ci/search-peers)", name)
	}
	python := filepath.Join(folder, peers[i][1], "bin", "python")
	if _, err := os.Stat(python); err != nil {
		return searcher{}, fmt.Errorf("peer %s: %w; .ci/search-peers installs it", name, err)
	}
	return searcher{name: name, search: func(ctx context.Context, t task, seed, trials, pending int) ([]float64, time.Duration, error) {
		return t.drive(ctx, exec.CommandContext(ctx, python, script), name, seed, trials, pending)
	}}, nil
}

// peerDim is a dimension as the driver reads it.
type peerDim struct {
	Name    string   `json:"name"`
	Kind    string   `json:"kind"`
	Low     float64  `json:"low"`
	High    float64  `json:"high"`
	Log     bool     `json:"log"`
	Choices []string `json:"choices,omitempty"`
}

// drive searches a task with a program that is asked and told. Dimensions that depend on
// others are always given to it, as its users do; what is not active is left out here.
func (t task) drive(ctx context.Context, cmd *exec.Cmd, name string, seed, trials, pending int) (line []float64, asked time.Duration, err error) {
	if pending != 1 {
		return nil, 0, fmt.Errorf("peers take one trial at a time; leave -pending at 1")
	}
	// One thread each: searches run side by side.
	cmd.Env = append(os.Environ(), "OMP_NUM_THREADS=1", "MKL_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=1")
	var said strings.Builder
	cmd.Stderr = &said
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, 0, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, 0, err
	}
	if err := cmd.Start(); err != nil {
		return nil, 0, err
	}
	defer func() {
		in.Close()
		if e := cmd.Wait(); e != nil && err == nil {
			err = fmt.Errorf("%w: %s", e, last(said.String()))
		}
	}()
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	var answer struct {
		Config map[string]any `json:"config"`
		Error  string         `json:"error"`
	}
	call := func(m any) error {
		b, err := json.Marshal(m)
		if err != nil {
			return err
		}
		begin := time.Now()
		if _, err := in.Write(append(b, '\n')); err != nil {
			return fmt.Errorf("%w: %s", err, last(said.String()))
		}
		answer.Config, answer.Error = nil, ""
		if !lines.Scan() {
			return fmt.Errorf("it ended: %s", last(said.String()))
		}
		asked += time.Since(begin)
		if err := json.Unmarshal(lines.Bytes(), &answer); err != nil {
			return fmt.Errorf("its answer %q: %w", lines.Text(), err)
		}
		if answer.Error != "" {
			return fmt.Errorf("%s", answer.Error)
		}
		return nil
	}
	dims := make([]peerDim, len(t.dims))
	for i, d := range t.dims {
		p := peerDim{Name: d.Name, Kind: "float", Low: d.Low, High: d.High}
		switch {
		case d.Numeric() && d.Cells() > 0:
			p.Kind, p.Low, p.High = "int", 0, d.Cells()-1 // the place among the values
		case !d.Numeric():
			p.Kind = "categorical"
			for _, c := range d.Choices {
				p.Choices = append(p.Choices, c.String())
			}
		}
		dims[i] = p
	}
	constraints, objectives := 0, 1
	if t.constrained {
		constraints = 1
	}
	if t.reference != nil {
		objectives = len(t.reference)
	}
	if err := call(map[string]any{"peer": name, "space": dims, "seed": seed, "trials": trials, "constraints": constraints, "objectives": objectives}); err != nil {
		return nil, 0, err
	}
	asked = 0
	sp, err := t.space()
	if err != nil {
		return nil, 0, err
	}
	p := newProgress(t)
	for range trials {
		if err := call(map[string]any{"ask": true}); err != nil {
			return nil, 0, err
		}
		c := space.Config{}
		for _, d := range t.dims {
			if !sp.Active(d, c) {
				continue
			}
			v := answer.Config[d.Name]
			x, number := v.(float64)
			switch {
			case d.Numeric() && d.Cells() > 0 && number:
				c[d.Name] = d.Value((x + 0.5) / d.Cells())
			case d.Numeric() && number:
				c[d.Name] = space.Number(x)
			default:
				for _, choice := range d.Choices {
					if choice.String() == fmt.Sprint(v) {
						c[d.Name] = choice
					}
				}
			}
		}
		if err := sp.Check(c); err != nil {
			return nil, 0, fmt.Errorf("it asked for %v: %w", answer.Config, err)
		}
		scores, violation := t.eval(c)
		p.add(scores, violation)
		tell := map[string]any{"tell": scores[0]}
		if objectives > 1 {
			tell["tell"] = scores
		} else if math.IsInf(scores[0], 0) {
			tell["tell"] = 1e9 // not every peer takes a failure
		}
		if t.constrained {
			tell["violations"] = []float64{violation}
		}
		if err := call(tell); err != nil {
			return nil, 0, err
		}
	}
	return p.line, asked, nil
}

// last is the end of what a program said.
func last(s string) string {
	s = strings.TrimSpace(s)
	if len(s) > 500 {
		s = "…" + s[len(s)-500:]
	}
	return s
}
