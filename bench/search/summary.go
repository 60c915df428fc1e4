package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"slices"

	"github.com/open-autoglm/autoglm/bench/stat"
)

// at are the trials at which searches are compared.
var at = []int{20, 50, 100, 250, 500}

// floor of a task's mean regret in geometric means.
const floor = 1e-3

func readCurves(path string) ([]curve, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var out []curve
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		var c curve
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil || len(c.Best) == 0 {
			return nil, fmt.Errorf("%s:%d: is no line of -json: %v", path, n, err)
		}
		out = append(out, c)
	}
	return out, lines.Err()
}

// group of searches: one tool on one task, by seed.
type group map[string]map[string][]curve // strategy, task

func summarise(w io.Writer, ts []task, curves []curve) {
	g := group{}
	var names []string
	known := map[string]bool{}
	for _, t := range ts {
		known[t.name] = true
	}
	longest := 0
	for _, c := range curves {
		if !known[c.Task] {
			continue
		}
		if g[c.Strategy] == nil {
			g[c.Strategy] = map[string][]curve{}
			names = append(names, c.Strategy)
		}
		g[c.Strategy][c.Task] = append(g[c.Strategy][c.Task], c)
		longest = max(longest, len(c.Best))
	}
	points := slices.DeleteFunc(slices.Clone(at), func(n int) bool { return n > longest })
	if len(points) == 0 {
		points = []int{longest}
	}
	fmt.Fprintf(w, "%-28s", "mean regret")
	for _, s := range names {
		fmt.Fprintf(w, " %24s", s)
	}
	fmt.Fprintln(w)
	for _, t := range ts {
		fmt.Fprintf(w, "%-28s", t.name)
		for _, s := range names {
			text := ""
			for _, n := range points {
				text += fmt.Sprintf(" %.3g", mean(g[s][t.name], n))
			}
			fmt.Fprintf(w, " %24s", text)
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintf(w, "%-28s", "ask and tell, ms")
	for _, s := range names {
		sum, n := 0.0, 0
		for _, cs := range g[s] {
			for _, c := range cs {
				sum += c.AskMS
				n++
			}
		}
		fmt.Fprintf(w, " %24s", fmt.Sprintf("%.2f", sum/float64(max(n, 1))))
	}
	fmt.Fprintln(w)
	ranks(w, ts, names, g, points)
	for _, base := range names[:max(0, len(names)-1)] {
		if base != names[0] && !isPeer(base) {
			continue
		}
		for _, s := range names {
			if s == base || isPeer(s) {
				continue
			}
			ratios(w, ts, base, s, g, points)
		}
	}
}

// mean of a tool's searches of one task after n trials.
func mean(cs []curve, n int) float64 {
	if len(cs) == 0 {
		return math.NaN()
	}
	s := 0.0
	for _, c := range cs {
		s += c.Best[min(n, len(c.Best))-1]
	}
	return s / float64(len(cs))
}

// ranks prints the mean rank over tasks, 1 is the best.
func ranks(w io.Writer, ts []task, names []string, g group, points []int) {
	fmt.Fprintf(w, "%-28s", "mean rank")
	texts := make([]string, len(names))
	for _, n := range points {
		sum := make([]float64, len(names))
		for _, t := range ts {
			for i, s := range names {
				rank := 1.0
				mine := rankable(t, g[s][t.name], n)
				for j, o := range names {
					if theirs := rankable(t, g[o][t.name], n); j != i && theirs < mine {
						rank++
					} else if j != i && theirs == mine {
						rank += 0.5
					}
				}
				sum[i] += rank
			}
		}
		for i := range names {
			texts[i] += fmt.Sprintf(" %.2f", sum[i]/float64(len(ts)))
		}
	}
	for _, text := range texts {
		fmt.Fprintf(w, " %24s", text)
	}
	fmt.Fprintln(w)
}

// rankable is small where a tool did well.
func rankable(t task, cs []curve, n int) float64 {
	if t.reference != nil {
		return -mean(cs, n)
	}
	return max(mean(cs, n), floor)
}

// ratios prints the geometric mean over tasks of one tool's mean regret by another's.
func ratios(w io.Writer, ts []task, base, s string, g group, points []int) {
	rng := rand.New(rand.NewPCG(1, 2))
	again := func(cs []curve) []curve { return stat.Resample(rng, cs) }
	for _, n := range points {
		geo := func(pick func([]curve) []curve, only string) float64 {
			sum, k := 0.0, 0
			for _, t := range ts {
				a, b := g[s][t.name], g[base][t.name]
				if len(a) == 0 || len(b) == 0 || only != "" && t.name != only || t.reference != nil {
					continue
				}
				sum += math.Log(max(mean(pick(a), n), floor) / max(mean(pick(b), n), floor))
				k++
			}
			return math.Exp(sum / float64(max(k, 1)))
		}
		same := func(cs []curve) []curve { return cs }
		lo, hi := stat.Interval(func() float64 { return geo(again, "") })
		worst, at := 0.0, ""
		for _, t := range ts {
			if len(g[s][t.name]) == 0 || len(g[base][t.name]) == 0 || t.reference != nil {
				continue
			}
			if r := geo(same, t.name); cmp.Compare(r, worst) > 0 {
				worst, at = r, t.name
			}
		}
		wlo, whi := stat.Interval(func() float64 { return geo(again, at) })
		fmt.Fprintf(w, "%s by %s at %d: %.3f [%.3f, %.3f]; worst %.2f [%.2f, %.2f] on %s\n", s, base, n, geo(same, ""), lo, hi, worst, wlo, whi, at)
	}
}
