package space

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
)

// Kind is how a dimension's values are drawn.
type Kind uint8

// Kinds of dimensions.
const (
	Uniform     Kind = iota + 1 // a real in [Low, High]; where Step is given, Low, Low+Step, …, High
	LogUniform                  // a real in [Low, High], even in its logarithm
	Int                         // Low, Low+Step, …, High
	LogInt                      // an integer in [Low, High], even in its logarithm
	Categorical                 // one of Choices
	Fixed                       // always Choices[0]
	Ordinal                     // one of Choices, which stand in an order
)

// Dimension is one parameter's range.
type Dimension struct {
	Name    string
	Kind    Kind
	Low     float64
	High    float64
	Step    float64 // of Int, 1 unless given; of Uniform, 0 where every real counts
	Choices []Value // Categorical, Ordinal and Fixed; numbers in ascending order count as ordered for mutation

	Parent  string   // exists only under a value of Parent's; "" is always
	On      []string // texts of those values
	AtLeast float64  // or, where On is nil, the least of them

	// Prior is a value that the user believes to be near a good one. Half of the
	// samples are drawn around it, half from the whole range.
	Prior    float64
	HasPrior bool
}

// When makes the dimension conditional on another one's value.
func (d Dimension) When(parent string, values ...string) Dimension {
	d.Parent, d.On, d.AtLeast = parent, values, 0
	return d
}

// WhenAtLeast makes the dimension conditional on a number that another one must reach.
func (d Dimension) WhenAtLeast(parent string, n float64) Dimension {
	d.Parent, d.On, d.AtLeast = parent, nil, n
	return d
}

// PerLayer makes one dimension for each of most layers, d's name with _0, _1, …
// behind it. The i-th exists when the dimension named by layers is above i.
func PerLayer(d Dimension, layers string, most int) []Dimension {
	out := make([]Dimension, most)
	for i := range out {
		out[i] = d.WhenAtLeast(layers, float64(i+1))
		out[i].Name = fmt.Sprintf("%s_%d", d.Name, i)
	}
	return out
}

// Condition says in words when the dimension exists; "" is always.
func (d Dimension) Condition() string {
	switch {
	case d.Parent == "":
		return ""
	case d.On == nil:
		return fmt.Sprintf("when %s is at least %g", d.Parent, d.AtLeast)
	}
	return "when " + d.Parent + " is " + strings.Join(d.On, " or ")
}

// under tells whether the dimension exists when its parent has that value.
func (d Dimension) under(v Value) bool {
	if d.On == nil {
		return !v.IsWord() && v.Num >= d.AtLeast
	}
	return slices.Contains(d.On, v.String())
}

// MustParse is Parse for expressions in code; it panics on a bad one.
func MustParse(name, expr string) Dimension {
	d, err := Parse(name, expr)
	if err != nil {
		panic(err)
	}
	return d
}

// Parse reads the field's own notation:
//
//	log_uniform(1e-5, 1e-2)   uniform(0.1, 0.5)   int(2, 8)   int(64, 512, 64)
//	log_int(16, 1024)         categorical([32, 64, 128])      0.003 | adamw | true
//	uniform(0, 1, 0.05)       ordinal([16, 32, 64])           log_uniform(1e-5, 1e-2) ~ 3e-3
//
// A bare value fixes the dimension. "[a, b]" is short for categorical([a, b]). What
// stands behind "~" is a value that is believed to be near a good one.
func Parse(name, expr string) (Dimension, error) {
	i := strings.LastIndexByte(expr, '~')
	if i < 0 {
		return parseRange(name, expr)
	}
	d, err := parseRange(name, expr[:i])
	if err != nil {
		return d, err
	}
	fail := func(format string, a ...any) (Dimension, error) {
		return Dimension{}, fmt.Errorf("%s: %q: %s", name, expr, fmt.Sprintf(format, a...))
	}
	v, err := parseValue(strings.TrimSpace(expr[i+1:]))
	switch {
	case err != nil:
		return fail("%v", err)
	case v.IsWord():
		return fail("what is believed must be a number, is %s", v)
	case d.Kind == Categorical:
		return fail("a belief needs an order; write ordinal instead of categorical")
	case len(d.Choices) > 0 && d.Index(v) < 0, d.Numeric() && d.Kind != Ordinal && (v.Num < d.Low || v.Num > d.High):
		return fail("the believed value %s is outside %s", v, d)
	case d.Kind != Fixed:
		d.Prior, d.HasPrior = v.Num, true
	}
	return d, nil
}

// parseRange is Parse without the belief.
func parseRange(name, expr string) (Dimension, error) {
	fail := func(format string, a ...any) (Dimension, error) {
		return Dimension{}, fmt.Errorf("%s: %q: %s", name, expr, fmt.Sprintf(format, a...))
	}
	d := Dimension{Name: name}
	e := strings.TrimSpace(expr)
	if e == "" {
		return fail("empty; give a value or a range such as log_uniform(1e-5, 1e-2)")
	}
	fn, args := "", e
	if i := strings.IndexByte(e, '('); i > 0 {
		if !strings.HasSuffix(e, ")") {
			return fail("the closing parenthesis is missing")
		}
		fn, args = strings.ToLower(strings.TrimSpace(e[:i])), e[i+1:len(e)-1]
	} else if strings.HasPrefix(e, "[") {
		fn = "categorical"
	}
	switch fn {
	case "":
		v, err := parseValue(e)
		if err != nil {
			return fail("%v", err)
		}
		d.Kind, d.Choices = Fixed, []Value{v}
		return d, nil
	case "categorical", "choice", "ordinal":
		body := strings.TrimSpace(args)
		if !strings.HasPrefix(body, "[") || !strings.HasSuffix(body, "]") {
			return fail("%s takes a list: %s([32, 64, 128])", fn, fn)
		}
		seen := map[string]bool{}
		for _, part := range strings.Split(body[1:len(body)-1], ",") {
			v, err := parseValue(strings.TrimSpace(part))
			if err != nil {
				return fail("%v", err)
			}
			if seen[v.String()] {
				return fail("%s stands twice", v)
			}
			seen[v.String()] = true
			d.Choices = append(d.Choices, v)
		}
		d.Kind = Categorical
		if fn == "ordinal" {
			d.Kind = Ordinal
		}
		if len(d.Choices) == 1 {
			d.Kind = Fixed
		}
		return d, nil
	case "uniform", "log_uniform", "loguniform", "int", "randint", "log_int":
	default:
		return fail("unknown range %q; there are uniform, log_uniform, int, log_int, categorical and ordinal", fn)
	}
	var nums []float64
	for _, part := range strings.Split(args, ",") {
		x, err := strconv.ParseFloat(strings.TrimSpace(part), 64)
		if err != nil || math.IsNaN(x) || math.IsInf(x, 0) {
			return fail("%q is not a number", strings.TrimSpace(part))
		}
		nums = append(nums, x)
	}
	integer := fn == "int" || fn == "randint" || fn == "log_int"
	if len(nums) != 2 && !(len(nums) == 3 && (fn == "uniform" || fn == "int" || fn == "randint")) {
		return fail("takes a lowest and a highest value")
	}
	d.Low, d.High, d.Step = nums[0], nums[1], 1
	if len(nums) == 3 {
		d.Step = nums[2]
	}
	switch {
	case d.Low > d.High:
		return fail("the lowest value %g is above the highest %g", d.Low, d.High)
	case integer && (d.Low != math.Trunc(d.Low) || d.High != math.Trunc(d.High) || d.Step != math.Trunc(d.Step)):
		return fail("an integer range needs whole numbers")
	case d.Step <= 0:
		return fail("the step must be positive")
	case math.IsInf(d.High-d.Low, 0):
		return fail("the range is too wide")
	case len(nums) == 3 && fn == "uniform" && (d.High-d.Low > maxSteps*d.Step || math.Max(math.Abs(d.Low), math.Abs(d.High)) > 1e9*d.Step):
		return fail("the step is too small; leave it out for every real")
	case strings.HasPrefix(fn, "log") && d.Low <= 0:
		return fail("a logarithmic range starts above 0")
	}
	switch fn {
	case "uniform":
		d.Kind = Uniform
		if len(nums) == 2 {
			d.Step = 0
		} else {
			d.Low = round(d.Low, gridDigits)
			d.High = d.grid(math.Floor((d.High-d.Low)/d.Step + 1e-9))
		}
	case "log_uniform", "loguniform":
		d.Kind, d.Step = LogUniform, 0
	case "int", "randint":
		d.Kind = Int
		d.High = d.Low + math.Floor((d.High-d.Low)/d.Step)*d.Step
	case "log_int":
		d.Kind = LogInt
	}
	if d.Low == d.High {
		d = Dimension{Name: name, Kind: Fixed, Choices: []Value{Number(d.Low)}}
	}
	return d, nil
}

// ParseValue reads a number or a word.
func ParseValue(s string) (Value, error) { return parseValue(strings.TrimSpace(s)) }

func parseValue(s string) (Value, error) {
	s = strings.Trim(s, `"'`)
	if s == "" {
		return Value{}, fmt.Errorf("a value is empty")
	}
	if x, err := strconv.ParseFloat(s, 64); err == nil {
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return Value{}, fmt.Errorf("%s is not a finite number", s)
		}
		return Number(x), nil
	}
	for _, r := range s {
		if r != '_' && r != '-' && r != '.' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') {
			return Value{}, fmt.Errorf("%q is neither a number nor a word", s)
		}
	}
	return Word(s), nil
}

// gridDigits are the significant digits of a real range's steps, maxSteps how many
// there are at most.
const (
	gridDigits = 12
	maxSteps   = 1e6
)

// grid is the k-th value of a real range with a step.
func (d Dimension) grid(k float64) float64 { return round(d.Low+k*d.Step, gridDigits) }

func (d Dimension) String() string {
	s := d.rangeText()
	if d.HasPrior {
		s += " ~ " + Number(d.Prior).String()
	}
	return s
}

func (d Dimension) rangeText() string {
	g := func(x float64) string { return strconv.FormatFloat(x, 'g', -1, 64) }
	switch d.Kind {
	case Uniform:
		if d.Step != 0 {
			return "uniform(" + g(d.Low) + ", " + g(d.High) + ", " + g(d.Step) + ")"
		}
		return "uniform(" + g(d.Low) + ", " + g(d.High) + ")"
	case LogUniform:
		return "log_uniform(" + g(d.Low) + ", " + g(d.High) + ")"
	case Int:
		if d.Step != 1 {
			return "int(" + g(d.Low) + ", " + g(d.High) + ", " + g(d.Step) + ")"
		}
		return "int(" + g(d.Low) + ", " + g(d.High) + ")"
	case LogInt:
		return "log_int(" + g(d.Low) + ", " + g(d.High) + ")"
	case Fixed:
		return d.Choices[0].String()
	}
	s := make([]string, len(d.Choices))
	for i, c := range d.Choices {
		s[i] = c.String()
	}
	name := "categorical"
	if d.Kind == Ordinal {
		name = "ordinal"
	}
	return name + "([" + strings.Join(s, ", ") + "])"
}

// Numeric tells whether the values are points on a line (one coordinate in the
// encoding) rather than names (one-hot).
func (d Dimension) Numeric() bool { return d.Kind != Categorical && d.Kind != Fixed }

// Width is the number of coordinates in the encoding.
func (d Dimension) Width() int {
	switch d.Kind {
	case Fixed:
		return 0
	case Categorical:
		return len(d.Choices)
	}
	return 1
}

// Coordinate is c's place on the dimension: a number's by Unit, a categorical's the
// index of its choice, NaN where the dimension is not there.
func (d Dimension) Coordinate(c Config) float64 {
	switch v, ok := c[d.Name]; {
	case !ok:
		return math.NaN()
	case d.Numeric():
		return d.Unit(v)
	default:
		return float64(d.Index(v))
	}
}

// Cells is the number of values, 0 where they are reals.
func (d Dimension) Cells() float64 {
	switch d.Kind {
	case Categorical, Fixed, Ordinal:
		return float64(len(d.Choices))
	case LogInt:
		return d.High - d.Low + 1
	}
	if d.Step == 0 {
		return 0
	}
	return math.Round((d.High-d.Low)/d.Step) + 1
}

// cell is the k-th value of those that Cells counts.
func (d Dimension) cell(k float64) Value {
	switch d.Kind {
	case Categorical, Fixed, Ordinal:
		return d.Choices[int(k)]
	case Uniform:
		return Number(d.grid(k))
	case LogInt:
		return Number(d.Low + k)
	}
	return Number(d.Low + d.Step*k)
}

// Unit maps a numeric value to [0, 1]: integers, steps and ordinals to the middle of
// their cell.
func (d Dimension) Unit(v Value) float64 {
	switch d.Kind {
	case Ordinal:
		return clamp01((float64(d.Index(v)) + 0.5) / d.Cells())
	case Uniform:
		if d.Step != 0 {
			return clamp01((math.Round((v.Num-d.Low)/d.Step) + 0.5) / d.Cells())
		}
		return clamp01((v.Num - d.Low) / (d.High - d.Low))
	case LogUniform:
		return clamp01((math.Log(v.Num) - math.Log(d.Low)) / (math.Log(d.High) - math.Log(d.Low)))
	case Int:
		n := (d.High-d.Low)/d.Step + 1
		return clamp01(((v.Num-d.Low)/d.Step + 0.5) / n)
	case LogInt:
		lo, hi := math.Log(d.Low-0.5), math.Log(d.High+0.5)
		return clamp01((math.Log(v.Num) - lo) / (hi - lo))
	}
	return 0
}

// Value is Unit's inverse; reals are rounded to six significant digits, so that
// a configuration survives being written down.
func (d Dimension) Value(u float64) Value {
	u = clamp01(u)
	switch d.Kind {
	case Ordinal:
		return d.cell(min(math.Floor(u*d.Cells()), d.Cells()-1))
	case Uniform:
		if d.Step != 0 {
			return d.cell(min(math.Floor(u*d.Cells()), d.Cells()-1))
		}
		// Near zero six digits of the value are finer than what the coordinate keeps.
		fine := math.Pow(10, math.Floor(math.Log10(d.High-d.Low))-12)
		x := d.Low + u*(d.High-d.Low)
		if math.Abs(x) < 1e6*fine {
			x = math.Round(x/fine) * fine
		}
		return Number(min(max(round6(x), d.Low), d.High))
	case LogUniform:
		return Number(min(max(round6(math.Exp(math.Log(d.Low)+u*(math.Log(d.High)-math.Log(d.Low)))), d.Low), d.High))
	case Int:
		n := (d.High-d.Low)/d.Step + 1
		return Number(d.Low + d.Step*min(math.Floor(u*n), n-1))
	case LogInt:
		lo, hi := math.Log(d.Low-0.5), math.Log(d.High+0.5)
		return Number(min(max(math.Round(math.Exp(lo+u*(hi-lo))), d.Low), d.High))
	}
	return d.Choices[0]
}

// Index is the position of v among the choices, -1 when it isn't one.
func (d Dimension) Index(v Value) int {
	for i, c := range d.Choices {
		if c == v {
			return i
		}
	}
	return -1
}

// Has tells whether v is a value of the dimension.
func (d Dimension) Has(v Value) bool {
	switch d.Kind {
	case Categorical, Fixed, Ordinal:
		return d.Index(v) >= 0
	}
	if v.IsWord() || v.Num < d.Low || v.Num > d.High {
		return false
	}
	if d.Kind == Uniform && d.Step != 0 {
		return v.Num == d.grid(math.Round((v.Num-d.Low)/d.Step))
	}
	if d.Kind == Int {
		k := (v.Num - d.Low) / d.Step
		return k == math.Trunc(k)
	}
	return d.Kind != LogInt || v.Num == math.Trunc(v.Num)
}

// beliefWidth is the deviation of samples around a believed value, as a share of
// the range (of its logarithm where the range is logarithmic).
const beliefWidth = 0.1

// Sample draws a value: evenly, or half of the time around the believed one.
func (d Dimension) Sample(rng *rand.Rand) Value {
	switch d.Kind {
	case Fixed:
		return d.Choices[0]
	case Categorical:
		return d.Choices[rng.IntN(len(d.Choices))]
	}
	if d.HasPrior && rng.IntN(2) == 0 {
		at := d.Unit(Number(d.Prior))
		for {
			if u := at + beliefWidth*rng.NormFloat64(); u >= 0 && u <= 1 {
				return d.Value(u)
			}
		}
	}
	return d.Value(rng.Float64())
}

// Mutate draws a value other than v, near it where the values have an order:
// a normal step of a fifth of the range, or the neighbour in a list of numbers.
func (d Dimension) Mutate(v Value, rng *rand.Rand) Value {
	switch d.Kind {
	case Fixed:
		return d.Choices[0]
	case Categorical, Ordinal:
		i := d.Index(v)
		if (d.Kind == Ordinal || d.ordered()) && i >= 0 {
			step := 1
			if rng.Float64() < 0.2 {
				step = 2
			}
			if rng.IntN(2) == 0 {
				step = -step
			}
			j := min(max(i+step, 0), len(d.Choices)-1)
			if j == i {
				j = min(max(i-step, 0), len(d.Choices)-1)
			}
			return d.Choices[j]
		}
		j := rng.IntN(len(d.Choices) - 1)
		if j >= i && i >= 0 {
			j++
		}
		return d.Choices[j]
	}
	for range 64 {
		u := d.Unit(v) + 0.2*rng.NormFloat64()
		if u < 0 {
			u = -u
		}
		if u > 1 {
			u = 2 - u
		}
		if w := d.Value(u); w != v {
			return w
		}
	}
	return d.Sample(rng)
}

// ordered tells whether the choices are numbers in ascending order.
func (d Dimension) ordered() bool {
	for i, c := range d.Choices {
		if c.IsWord() || i > 0 && c.Num <= d.Choices[i-1].Num {
			return false
		}
	}
	return true
}

func clamp01(u float64) float64 { return min(max(u, 0), 1) }

func round6(x float64) float64 { return round(x, 6) }

// round keeps so many significant digits.
func round(x float64, digits int) float64 {
	y, _ := strconv.ParseFloat(strconv.FormatFloat(x, 'g', digits, 64), 64)
	return y
}

// nearest is the dimension's value closest to v, or its middle when v is no number.
func (d Dimension) nearest(v Value, number bool) Value {
	if d.Numeric() && !number {
		return d.Value(0.5)
	}
	if d.Numeric() && d.Kind != Ordinal {
		return d.Value(d.Unit(Number(min(max(v.Num, d.Low), d.High))))
	}
	best := d.Choices[0]
	if number {
		for _, c := range d.Choices {
			if !c.IsWord() && (best.IsWord() || math.Abs(c.Num-v.Num) < math.Abs(best.Num-v.Num)) {
				best = c
			}
		}
	}
	return best
}
