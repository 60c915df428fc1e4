package main

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/open-autoglm/autoglm/bench/peer"
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

// theirSearch is another library's optimiser, driven by bench/peers/search.py.
func theirSearch(name, script string) (searcher, error) {
	i := slices.Index(peerNames(), name)
	if i < 0 {
		return searcher{}, fmt.Errorf("there is no peer %s; there are %s", name, strings.Join(peerNames(), ", "))
	}
	python, err := peer.Python(name, peers[i][1])
	if err != nil {
		return searcher{}, err
	}
	return searcher{name: name, search: func(ctx context.Context, t task, seed, trials, pending int) ([]float64, time.Duration, error) {
		return t.drive(ctx, exec.CommandContext(ctx, python, script), name, seed, trials, pending)
	}}, nil
}

// drive searches a task with a program that is asked and told. Dimensions that depend on
// others are always given to it, as its users do; what is not active is left out here.
func (t task) drive(ctx context.Context, cmd *exec.Cmd, name string, seed, trials, pending int) (line []float64, took time.Duration, err error) {
	if pending != 1 {
		return nil, 0, fmt.Errorf("peers take one trial at a time; leave -pending at 1")
	}
	d, err := peer.Start(cmd)
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = cmp.Or(err, d.Close()) }()
	constraints, objectives := 0, 1
	if t.constrained {
		constraints = 1
	}
	if t.reference != nil {
		objectives = len(t.reference)
	}
	if _, err := d.Call(map[string]any{"peer": name, "space": peer.Dims(t.dims), "seed": seed, "trials": trials, "constraints": constraints, "objectives": objectives}); err != nil {
		return nil, 0, err
	}
	d.Took = 0
	sp, err := t.space()
	if err != nil {
		return nil, 0, err
	}
	p := newProgress(t)
	for range trials {
		a, err := d.Call(map[string]any{"ask": true})
		if err != nil {
			return nil, 0, err
		}
		c, err := peer.Config(sp, t.dims, a.Config)
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
		if _, err := d.Call(tell); err != nil {
			return nil, 0, err
		}
	}
	return p.line, d.Took, nil
}
