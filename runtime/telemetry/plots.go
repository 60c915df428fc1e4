package telemetry

import (
	"cmp"
	"math"
	"slices"

	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/space"
)

// plots is what the page's script draws, as JSON.
type plots struct {
	Curves   []plotCurve   `json:"curves"`
	X        string        `json:"x"`       // first choice of the curves' x axis
	Bits     bool          `json:"bits"`    // training losses are known in bits per byte
	Axes     []plotAxis    `json:"axes"`    // parameters that differ
	Trials   []plotTrial   `json:"trials"`  // best first
	Effects  []Effect      `json:"effects"` // largest first
	Anova    []plotPair    `json:"anova"`
	Contours []plotContour `json:"contours"` // what explains most first
	Spans    []plotSpan    `json:"spans"`
	Fronts   plotFronts    `json:"fronts"`   //
	Goals    *plotGoals    `json:"goals"`    // null with one objective and no constraint on the cost
	Final    *plotTrial    `json:"final"`    //
	Rules    []namedCounts `json:"rules"`    //
	Parts    []namedValue  `json:"parts"`    // bytes
	Stages   []namedValue  `json:"stages"`   // seconds
	HeldOut  number        `json:"held_out"` // bits per byte; null when not measured
}

type namedValue struct {
	Name  string `json:"name"`
	Value number `json:"value"`
	Text  string `json:"text"`
}

type namedCounts struct {
	Name     string `json:"name"`
	Dropped  int64  `json:"dropped"`
	Repaired int64  `json:"repaired"`
}

type plotCurve struct {
	ID      string   `json:"id"`
	Status  string   `json:"status"`
	Score   number   `json:"score"`
	Steps   []number `json:"step"`
	Tokens  []number `json:"tokens"`
	Seconds []number `json:"seconds"`
	Loss    []number `json:"loss"`
	Bits    []number `json:"bpb"` // Loss in bits per byte; null where it is not known
	VSteps  []number `json:"vstep"`
	VTokens []number `json:"vtokens"`
	VSecs   []number `json:"vseconds"`
	Valid   []number `json:"vbits"`
	cost    cost
}

type plotAxis struct {
	Name   string   `json:"name"`
	Log    bool     `json:"log"`
	Words  []string `json:"words"` // categories, and whole numbers of which there are few; null for a range
	Low    number   `json:"low"`
	High   number   `json:"high"`
	column string
}

type plotTrial struct {
	ID      string `json:"id"`
	Status  string `json:"status"`
	Bits    number `json:"bits"`
	Params  number `json:"params"`
	Seconds number `json:"seconds"`
	Rung    int    `json:"rung"`
	Winner  bool   `json:"winner"`
	Values  []any  `json:"values"` // by axis: number, word or null
}

type plotFronts struct {
	Params  []string `json:"params"` // trials
	Seconds []string `json:"seconds"`
}

// fewNumbers is how many different whole numbers an axis shows one by one.
const fewNumbers = 6

// finalID names the final training among the trials.
const finalID = "final"

func bitsOf(e journal.Entry) float64 {
	if e.Bits == nil {
		return math.NaN()
	}
	return *e.Bits
}

// axes are the parameters that differ between trials, architecture first.
func axes(entries []journal.Entry) []plotAxis {
	configs := make([]space.Config, len(entries))
	for i, e := range entries {
		configs[i] = e.Config
	}
	names := varying(configs)
	slices.SortStableFunc(names, func(a, b string) int {
		rank := func(n string) int {
			if space.IsArchitecture(n) {
				return 0
			}
			return 1
		}
		return cmp.Compare(rank(a), rank(b))
	})
	var out []plotAxis
	for _, n := range names {
		a := plotAxis{Name: words(n), column: n}
		low, high := math.Inf(1), math.Inf(-1)
		seen, nums := map[string]bool{}, map[float64]bool{}
		for _, c := range configs {
			v, ok := c[n]
			switch {
			case !ok:
			case v.IsWord():
				if !seen[v.String()] {
					seen[v.String()] = true
					a.Words = append(a.Words, v.String())
				}
			default:
				low, high = min(low, v.Num), max(high, v.Num)
				nums[v.Num] = true
			}
		}
		slices.Sort(a.Words)
		if len(nums) <= fewNumbers && whole(nums) {
			for _, x := range sortedKeys(nums) {
				a.Words = append(a.Words, value(space.Number(x)))
			}
		}
		a.Low, a.High = number(low), number(high)
		a.Log = low > 0 && high/low >= 8
		out = append(out, a)
	}
	return out
}

func whole(nums map[float64]bool) bool {
	for x := range nums {
		if x != math.Trunc(x) {
			return false
		}
	}
	return true
}

func plotOf(e journal.Entry, axes []plotAxis, winner bool) plotTrial {
	t := plotTrial{ID: e.ID, Status: e.Status, Bits: number(bitsOf(e)), Params: number(e.Params), Seconds: number(e.Seconds), Rung: e.Rung, Winner: winner, Values: []any{}}
	for _, a := range axes {
		v, ok := e.Config[a.column]
		switch {
		case !ok:
			t.Values = append(t.Values, nil)
		case a.Words != nil:
			t.Values = append(t.Values, value(v))
		default:
			t.Values = append(t.Values, number(v.Num))
		}
	}
	return t
}

// plotCurves draws the final training and at most limit trials, the best first.
func plotCurves(f *folder, entries []journal.Entry, l limits) (out []plotCurve, left int) {
	perToken := map[int]float64{}
	for _, e := range entries {
		if len(out) >= l.curves {
			left++
			continue
		}
		c := f.curve(e.ID)
		if len(c.Loss)+len(c.Valid) == 0 {
			continue
		}
		points := l.points
		if e.ID == finalID {
			points *= 3
		}
		vocab := e.Config.Int(space.Vocab)
		if _, known := perToken[vocab]; !known {
			perToken[vocab] = f.bytesPerToken(vocab)
		}
		p := plotCurve{ID: e.ID, Status: e.Status, Score: number(bitsOf(e)), cost: c.cost}
		for _, q := range thin(c.Loss, points) {
			p.Steps, p.Tokens, p.Seconds = append(p.Steps, number(q.Step)), append(p.Tokens, number(q.Tokens)), append(p.Seconds, number(q.Seconds))
			p.Loss = append(p.Loss, number(q.Y))
			p.Bits = append(p.Bits, number(q.Y/math.Ln2/perToken[vocab])) // ±Inf, thus null, when it is not known
		}
		for _, q := range thinBest(c.Valid, points/2) {
			p.VSteps, p.VTokens, p.VSecs = append(p.VSteps, number(q.Step)), append(p.VTokens, number(q.Tokens)), append(p.VSecs, number(q.Seconds))
			p.Valid = append(p.Valid, number(q.Y))
		}
		out = append(out, p)
	}
	return out, left
}
