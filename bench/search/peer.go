package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
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
	python, err := python(name, peers[i][1])
	if err != nil {
		return searcher{}, err
	}
	return searcher{name: name, search: func(ctx context.Context, t task, seed, trials, pending int) ([]float64, time.Duration, error) {
		return t.drive(ctx, exec.CommandContext(ctx, python, script), name, seed, trials, pending)
	}}, nil
}

// python is the interpreter of a peer's environment.
func python(peer, env string) (string, error) {
	folder := os.Getenv("AUTOGLM_SEARCH_PEERS")
	if folder == "" {
		return "", fmt.Errorf("peer %s: AUTOGLM_SEARCH_PEERS is not set; export AUTOGLM_SEARCH_PEERS=$(.ci/search-peers)", peer)
	}
	path := filepath.Join(folder, env, "bin", "python")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("peer %s: %w; .ci/search-peers installs it", peer, err)
	}
	return path, nil
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

// peerDims are dimensions as the driver reads them.
func peerDims(dims []space.Dimension) []peerDim {
	out := make([]peerDim, len(dims))
	for i, d := range dims {
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
		out[i] = p
	}
	return out
}

// asked is a configuration that a driver asked for.
func asked(sp *space.Space, dims []space.Dimension, answer map[string]any) (space.Config, error) {
	c := space.Config{}
	for _, d := range dims {
		if !sp.Active(d, c) {
			continue
		}
		v := answer[d.Name]
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
		return nil, fmt.Errorf("it asked for %v: %w", answer, err)
	}
	return c, nil
}

// driver is a running program that answers a line for a line.
type driver struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines *bufio.Scanner
	said  strings.Builder
	took  time.Duration // waited for answers
}

// answer is a line of a driver: of those fields that its question is about.
type answer struct {
	Config   map[string]any `json:"config"`
	Trial    string         `json:"trial"`
	Decision string         `json:"decision"`
	Error    string         `json:"error"`
}

func start(cmd *exec.Cmd) (*driver, error) {
	d := &driver{cmd: cmd}
	// One thread each: searches run side by side.
	cmd.Env = append(os.Environ(), "OMP_NUM_THREADS=1", "MKL_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=1")
	cmd.Stderr = &d.said
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if d.in, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	d.lines = bufio.NewScanner(out)
	d.lines.Buffer(nil, 1<<20)
	return d, cmd.Start()
}

func (d *driver) call(question map[string]any) (answer, error) {
	var a answer
	b, err := json.Marshal(question)
	if err != nil {
		return a, err
	}
	begin := time.Now()
	if _, err := d.in.Write(append(b, '\n')); err != nil {
		return a, fmt.Errorf("%w: %s", err, last(d.said.String()))
	}
	if !d.lines.Scan() {
		return a, fmt.Errorf("it ended: %s", last(d.said.String()))
	}
	d.took += time.Since(begin)
	if err := json.Unmarshal(d.lines.Bytes(), &a); err != nil {
		return a, fmt.Errorf("its answer %q: %w", d.lines.Text(), err)
	}
	if a.Error != "" {
		return a, fmt.Errorf("%s", a.Error)
	}
	return a, nil
}

// close lets the program end.
func (d *driver) close() error {
	d.in.Close()
	if err := d.cmd.Wait(); err != nil {
		return fmt.Errorf("%w: %s", err, last(d.said.String()))
	}
	return nil
}

// drive searches a task with a program that is asked and told. Dimensions that depend on
// others are always given to it, as its users do; what is not active is left out here.
func (t task) drive(ctx context.Context, cmd *exec.Cmd, name string, seed, trials, pending int) (line []float64, took time.Duration, err error) {
	if pending != 1 {
		return nil, 0, fmt.Errorf("peers take one trial at a time; leave -pending at 1")
	}
	d, err := start(cmd)
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = cmp.Or(err, d.close()) }()
	constraints, objectives := 0, 1
	if t.constrained {
		constraints = 1
	}
	if t.reference != nil {
		objectives = len(t.reference)
	}
	if _, err := d.call(map[string]any{"peer": name, "space": peerDims(t.dims), "seed": seed, "trials": trials, "constraints": constraints, "objectives": objectives}); err != nil {
		return nil, 0, err
	}
	d.took = 0
	sp, err := t.space()
	if err != nil {
		return nil, 0, err
	}
	p := newProgress(t)
	for range trials {
		a, err := d.call(map[string]any{"ask": true})
		if err != nil {
			return nil, 0, err
		}
		c, err := asked(sp, t.dims, a.Config)
		if err != nil {
			return nil, 0, err
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
		if _, err := d.call(tell); err != nil {
			return nil, 0, err
		}
	}
	return p.line, d.took, nil
}

// last is the end of what a program said.
func last(s string) string {
	s = strings.TrimSpace(s)
	if len(s) > 500 {
		s = "…" + s[len(s)-500:]
	}
	return s
}
