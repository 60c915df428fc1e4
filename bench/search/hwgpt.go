package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"strings"

	"gonum.org/v1/gonum/mat"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// The HW-GPT-Bench tasks: decoders of 10 to 12 layers whose perplexity a published
// network predicts and whose latency on an A100 a linear fit over the published
// measurements gives. "hwgpt/LIMIT" is the best perplexity within LIMIT milliseconds,
// "hwgptmo" both at once.

// optima are the lowest perplexities known within a limit: by local searches that begin at
// the smallest decoder of each width, depth and bias. Genetic searches of 0.2 to 0.3
// million evaluations that begin anywhere agree on 40.2570, 30.7550, 30.0739 and 24.1465: within 12 and
// 20 ms they never meet the few decoders of the next width.
var optima = map[string]float64{"12": 33.8563, "16": 30.7550, "20": 26.7607, "24": 24.0323}

var limits = []string{"12", "16", "20", "24"}

type decoder struct {
	embed, layers int
	heads, mlp    [12]int
	bias          bool
}

func hwgpt(dir, name string) ([]task, error) {
	ppl, err := perplexity(filepath.Join(dir, "hwgpt_ppl_mlp_s.json.gz"))
	if err != nil {
		return nil, err
	}
	lat, err := latency(filepath.Join(dir, "hwgpt_s.csv.gz"))
	if err != nil {
		return nil, err
	}
	dims := []space.Dimension{
		space.MustParse("embed", "int(0, 2)"),
		space.MustParse("layers", "[10, 11, 12]"),
	}
	for i := range 12 {
		h, m := space.MustParse(fmt.Sprintf("heads%d", i), "int(4, 12, 4)"), space.MustParse(fmt.Sprintf("mlp%d", i), "int(2, 4)")
		switch i {
		case 10:
			h, m = h.When("layers", "11", "12"), m.When("layers", "11", "12")
		case 11:
			h, m = h.When("layers", "12"), m.When("layers", "12")
		}
		dims = append(dims, h, m)
	}
	dims = append(dims, space.MustParse("bias", "[false, true]"))
	read := func(c space.Config) decoder {
		d := decoder{embed: []int{192, 384, 768}[c.Int("embed")], layers: c.Int("layers"), bias: c.Word("bias") == "true"}
		for i := range d.layers {
			d.heads[i], d.mlp[i] = c.Int(fmt.Sprintf("heads%d", i)), c.Int(fmt.Sprintf("mlp%d", i))
		}
		return d
	}
	if name == "hwgptmo" {
		return []task{{
			name: name, suite: name, dims: dims, reference: []float64{42, 30},
			eval: func(c space.Config) ([]float64, float64) {
				d := read(c)
				return []float64{ppl(d), lat(d)}, 0
			},
		}}, nil
	}
	var out []task
	for _, l := range limits {
		if name != "hwgpt" && name != "hwgpt/"+l {
			continue
		}
		limit, err := strconv.ParseFloat(l, 64)
		if err != nil {
			return nil, err
		}
		best := optima[l]
		out = append(out, task{
			name: "hwgpt/" + l, suite: "hwgpt", dims: dims, constrained: true,
			eval: func(c space.Config) ([]float64, float64) {
				d := read(c)
				return []float64{ppl(d)}, lat(d) - limit
			},
			regret: func(v float64) float64 { return v - best },
		})
	}
	if out == nil {
		return nil, fmt.Errorf("%s: there are the limits %s", name, strings.Join(limits, ", "))
	}
	return out, nil
}

// perplexity reads the network: 80 inputs, four hidden layers of 128 with ReLU.
func perplexity(path string) (func(decoder) float64, error) {
	b, err := unpacked(path)
	if err != nil {
		return nil, err
	}
	raw := map[string]json.RawMessage{}
	if err := json.Unmarshal(b, &raw); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	var weights [5][][]float64
	var biases [5][]float64
	for i := range weights {
		if err := json.Unmarshal(raw[fmt.Sprintf("fc%d.weight", i+1)], &weights[i]); err != nil {
			return nil, fmt.Errorf("%s: fc%d.weight: %w", path, i+1, err)
		}
		if err := json.Unmarshal(raw[fmt.Sprintf("fc%d.bias", i+1)], &biases[i]); err != nil {
			return nil, fmt.Errorf("%s: fc%d.bias: %w", path, i+1, err)
		}
	}
	return func(d decoder) float64 {
		x := make([]float64, 80)
		x[d.embed/384] = 1 // 192, 384, 768
		x[3+d.layers-10] = 1
		for i := range d.layers {
			x[6+3*i+d.mlp[i]-2] = 1
			x[42+3*i+d.heads[i]/4-1] = 1
		}
		if d.bias {
			x[78] = 1
		} else {
			x[79] = 1
		}
		for l := range weights {
			y := make([]float64, len(weights[l]))
			for i, row := range weights[l] {
				s := biases[l][i]
				for j, w := range row {
					s += w * x[j]
				}
				if l < 4 {
					s = max(s, 0)
				}
				y[i] = s
			}
			x = y
		}
		return x[0]
	}, nil
}

// features of the latency: embedding e in units of 768, layers L, sums over layers of
// the MLP ratio m and the heads h, bias b.
func (d decoder) features() []float64 {
	e, l := float64(d.embed)/768, float64(d.layers)
	var m, h, b float64
	for i := range d.layers {
		m += float64(d.mlp[i])
		h += float64(d.heads[i])
	}
	if d.bias {
		b = 1
	}
	return []float64{1, l, e * l, e * e * l, e * m, e * e * m, h, e * h, b * l, b * e * l}
}

// latency fits the measured milliseconds by least squares of the relative error.
func latency(path string) (func(decoder) float64, error) {
	b, err := unpacked(path)
	if err != nil {
		return nil, err
	}
	rows, err := csv.NewReader(bytes.NewReader(b)).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	column := map[string]int{}
	for i, n := range rows[0] {
		column[n] = i
	}
	for _, n := range []string{"embed", "layers", "heads", "mlp", "bias", "lat_a100"} {
		if _, ok := column[n]; !ok {
			return nil, fmt.Errorf("%s: there is no column %s", path, n)
		}
	}
	var a, ones []float64
	for i, row := range rows[1:] {
		d := decoder{bias: row[column["bias"]] == "1"}
		y, err := strconv.ParseFloat(row[column["lat_a100"]], 64)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: lat_a100: %w", path, i+2, err)
		}
		if d.embed, err = strconv.Atoi(row[column["embed"]]); err != nil {
			return nil, fmt.Errorf("%s:%d: embed: %w", path, i+2, err)
		}
		if d.layers, err = strconv.Atoi(row[column["layers"]]); err != nil || d.layers > 12 {
			return nil, fmt.Errorf("%s:%d: layers: %q", path, i+2, row[column["layers"]])
		}
		for name, to := range map[string]*[12]int{"heads": &d.heads, "mlp": &d.mlp} {
			parts := strings.Split(row[column[name]], "-")
			if len(parts) != d.layers {
				return nil, fmt.Errorf("%s:%d: %s has %d numbers for %d layers", path, i+2, name, len(parts), d.layers)
			}
			for k, p := range parts {
				if to[k], err = strconv.Atoi(p); err != nil {
					return nil, fmt.Errorf("%s:%d: %s: %w", path, i+2, name, err)
				}
			}
		}
		for _, x := range d.features() {
			a = append(a, x/y)
		}
		ones = append(ones, 1)
	}
	n := len(ones)
	var w mat.VecDense
	if err := w.SolveVec(mat.NewDense(n, len(a)/n, a), mat.NewVecDense(n, ones)); err != nil {
		return nil, fmt.Errorf("%s: fitting the latency: %w", path, err)
	}
	return func(d decoder) float64 {
		s := 0.0
		for i, x := range d.features() {
			s += w.AtVec(i) * x
		}
		if math.IsNaN(s) {
			return math.Inf(1)
		}
		return s
	}, nil
}
