package telemetry

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"strconv"

	"github.com/open-autoglm/autoglm/runtime/train"
)

// number is written to JSON with five significant digits, and as null when it
// is not finite.
type number float64

// MarshalJSON implements json.Marshaler.
func (n number) MarshalJSON() ([]byte, error) {
	x := float64(n)
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return []byte("null"), nil
	}
	if math.Abs(x) >= 1e5 && math.Abs(x) < 1e15 {
		return strconv.AppendFloat(nil, x, 'f', 0, 64), nil
	}
	return strconv.AppendFloat(nil, x, 'g', 5, 64), nil
}

// point is one place of a curve.
type point struct {
	Step, Tokens, Seconds float64
	Y                     float64
}

// curve is what one trial's metrics.jsonl holds.
type curve struct {
	Loss  []point // training, nats a scored token
	Valid []point // validation sample, bits per byte
	Bad   int     // lines that are no records
	cost  cost
}

// maxLine is the longest line of metrics.jsonl that is read.
const maxLine = 1 << 16

// readCurve reads a metrics file; one that isn't there is an empty curve.
func readCurve(path string) (curve, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return curve{}, nil
	}
	if err != nil {
		return curve{}, err
	}
	defer f.Close()
	c, err := parseCurve(f)
	if err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

func parseCurve(r io.Reader) (curve, error) {
	var c curve
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 4096), maxLine)
	for sc.Scan() {
		if len(sc.Bytes()) == 0 {
			continue
		}
		var m train.StepMetrics
		if json.Unmarshal(sc.Bytes(), &m) != nil {
			c.Bad++
			continue
		}
		p := point{Step: float64(m.Step), Tokens: float64(m.Tokens), Seconds: m.Seconds}
		if m.Loss != 0 {
			p.Y = m.Loss
			c.Loss = append(c.Loss, p)
			c.cost.add(&m)
		}
		if m.Bits != 0 {
			p.Y = m.Bits
			c.Valid = append(c.Valid, p)
		}
	}
	if errors.Is(sc.Err(), bufio.ErrTooLong) {
		c.Bad++ // the rest is not read
		return c, nil
	}
	return c, sc.Err()
}

// thin leaves at most n points: the first and the last as they are, between them
// the means of runs whose ends are evenly spaced in the logarithm of the step at
// first and in the step later, so that the curve's steep beginning stays.
func thin(p []point, n int) []point {
	if len(p) <= n || n < 3 {
		return p
	}
	out := make([]point, 0, n)
	out = append(out, p[0])
	from := 1
	last := len(p) - 1
	for k := 1; k <= n-2; k++ {
		x := float64(k) / float64(n-2)
		linear := 1 + x*float64(last-1)
		logarithmic := math.Exp(x * math.Log(float64(last)))
		to := min(max(from+1, int(math.Round((linear+logarithmic)/2))), last)
		if from >= to {
			continue
		}
		m := p[to-1]
		m.Y = 0
		for _, q := range p[from:to] {
			m.Y += q.Y / float64(to-from)
		}
		out = append(out, m)
		from = to
	}
	return append(out, p[last])
}

// thinBest leaves at most n points, of each run the one with the lowest value.
func thinBest(p []point, n int) []point {
	if len(p) <= n {
		return p
	}
	out := make([]point, 0, n)
	for k := range n {
		best := p[k*len(p)/n]
		for _, q := range p[k*len(p)/n : (k+1)*len(p)/n] {
			if q.Y < best.Y {
				best = q
			}
		}
		out = append(out, best)
	}
	return out
}
