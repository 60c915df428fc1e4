// Command law says how well a law that is fitted to the trials of small searches foretells
// larger models and longer trainings, over the table of real learning curves (see
// bench/lmcurves). It prints one JSON object a line.
//
//	go run ./bench/law                          # all texts of bench/testdata/lmcurves.csv.gz
//	go run ./bench/law -searches 40 -dim 96
//
// A search has 24 trials drawn at random from the shapes up to -dim wide, whatever the
// settings of their training, a third of which goes on at three times the tokens, and a
// third of those again. From it the score at the table's end is foretold
//
//   - of each wider shape, under the settings that are best for it: what "error" is the
//     median distance to, in bits per byte, of the law and of baselines: the best score
//     that was seen ("last"), and the laws of Hoffmann et al. (2022) and of Besiroglu et
//     al. (2024) as they were published, scaled to that score;
//   - of the search's winner and of larger shapes with the winner's settings, after as many
//     tokens or as much arithmetic: "said" are those that search.Laws.Choose would take,
//     "right" those of them that are better in the table, "better" those of the others.
//
// Scores before the table's end were taken while the rate was still high; all methods see
// the same.
package main

import (
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"slices"

	"github.com/open-autoglm/autoglm/bench/curves"
	"github.com/open-autoglm/autoglm/bench/stat"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/search"
)

func main() {
	table := flag.String("curves", "bench/testdata/lmcurves.csv.gz", "the table")
	searches := flag.Int("searches", 40, "searches of each kind")
	dim := flag.Int("dim", 64, "widest shape that a search sees")
	flag.Parse()
	if err := run(*table, *searches, *dim); err != nil {
		fmt.Fprintln(os.Stderr, "law:", err)
		os.Exit(1)
	}
}

func run(table string, searches, dim int) error {
	rows, err := curves.Read(table)
	if err != nil {
		return err
	}
	texts := map[string][]curves.Row{}
	for _, r := range rows {
		texts[r.Text] = append(texts[r.Text], r)
	}
	out := json.NewEncoder(os.Stdout)
	for _, text := range slices.Sorted(maps.Keys(texts)) {
		for _, top := range []int{2, 6, 20} {
			if err := out.Encode(foretold(text, texts[text], top, dim, searches)); err != nil {
				return err
			}
		}
		for _, top := range []int{4, 10} {
			for _, equal := range []string{"tokens", "arithmetic"} {
				if err := out.Encode(decided(text, texts[text], equal, top, dim, searches)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// played is a search.
type played struct {
	laws   search.Laws
	points []search.LawPoint
	winner curves.Row
	best   float64 // its score at the top
}

// play searches among the shapes up to dim wide, to the top-th score.
func play(rows []curves.Row, top, dim int, seed uint64) played {
	r := rand.New(rand.NewPCG(seed, 7))
	var keep []curves.Row
	for _, x := range rows {
		if x.Config.Arch.Dim <= dim {
			keep = append(keep, x)
		}
	}
	r.Shuffle(len(keep), func(i, j int) { keep[i], keep[j] = keep[j], keep[i] })
	keep = keep[:min(24, len(keep))]
	var p played
	for _, k := range []int{max(1, top/9), max(1, top/3), top} {
		for _, x := range keep {
			p.points = append(p.points, search.LawPoint{Trial: fmt.Sprint(x.Config.Arch, x.Settings()), Params: size(x), Text: float64(k * curves.Tokens), Score: score(x, k)})
		}
		slices.SortStableFunc(keep, func(a, b curves.Row) int { return cmp.Compare(score(a, k), score(b, k)) })
		p.winner, p.best = keep[0], score(keep[0], k)
		keep = keep[:max(1, len(keep)/3)]
	}
	p.laws, _ = search.FitLaw(p.points, seed)
	return p
}

// score is the k-th of a row, +Inf where it had diverged.
func score(r curves.Row, k int) float64 {
	if k > len(r.Bits) {
		return math.Inf(1)
	}
	return r.Bits[k-1]
}

func size(r curves.Row) float64 { return float64(r.Config.Arch.MatrixParams()) }

// published are laws in nats a token, fitted to models from 44 million parameters on.
var published = map[string]search.Law{
	"hoffmann":  {E: 1.69, A: 406.4, B: 410.7, Alpha: 0.34, Beta: 0.28, N0: 1, D0: 1},
	"besiroglu": {E: 1.8172, A: 482.01, B: 2085.43, Alpha: 0.3478, Beta: 0.3658, N0: 1, D0: 1},
}

type prediction struct {
	Text  string             `json:"text"`
	Dim   int                `json:"dim"`
	Top   int                `json:"top"` // the last of 20 scores that a search sees
	Error map[string]float64 `json:"error"`
	Bias  map[string]float64 `json:"bias"` // the median of what was foretold, less what is
}

func foretold(text string, rows []curves.Row, top, dim, searches int) prediction {
	best := map[glm.Arch]float64{}
	for _, r := range rows {
		if a := r.Config.Arch; a.Dim > dim {
			best[a] = min(cmp.Or(best[a], math.Inf(1)), score(r, 20))
		}
	}
	off := map[string][]float64{}
	for seed := range uint64(searches) {
		p := play(rows, top, dim, seed)
		read := float64(top * curves.Tokens)
		for a, is := range best {
			n, d := float64(a.MatrixParams()), 20.*curves.Tokens
			add := func(name string, l search.Law) {
				off[name] = append(off[name], p.best*l.Score(n, d)/l.Score(size(p.winner), read)-is)
			}
			add("law", p.laws.Law)
			for name, l := range published {
				add(name, l)
			}
			off["last"] = append(off["last"], p.best-is)
		}
	}
	out := prediction{Text: text, Dim: dim, Top: top, Error: map[string]float64{}, Bias: map[string]float64{}}
	for name, x := range off {
		out.Bias[name] = round(stat.Median(x))
		for i := range x {
			x[i] = math.Abs(x[i])
		}
		out.Error[name] = round(stat.Median(x))
	}
	return out
}

type decision struct {
	Text     string  `json:"text"`
	Dim      int     `json:"dim"`
	Top      int     `json:"top"`
	Equal    string  `json:"equal"`
	Said     int     `json:"said"`
	Right    int     `json:"right"`
	Unsaid   int     `json:"unsaid"`
	Better   int     `json:"better"`
	Ratio    float64 `json:"ratio"`          // of the larger's score over the winner's, the mean
	Foretold float64 `json:"ratio_foretold"` //
}

func decided(text string, rows []curves.Row, equal string, top, dim, searches int) decision {
	out := decision{Text: text, Dim: dim, Top: top, Equal: equal}
	n := 0.0
	for seed := range uint64(searches) {
		p := play(rows, top, dim, seed)
		w := p.winner
		heirs := []search.Heir{{Params: int64(size(w)), Text: 20 * curves.Tokens}}
		is := map[[2]float64]float64{} // by parameters and text
		for _, x := range rows {
			if x.Settings() != w.Settings() || size(x) <= size(w) || size(x) > 4.5*size(w) {
				continue
			}
			k := 20
			if equal == "arithmetic" {
				k = max(1, int(20*w.Config.Arch.FLOPsPerToken(curves.Context)/x.Config.Arch.FLOPsPerToken(curves.Context)))
			}
			if s := score(x, k); !math.IsInf(s, 1) {
				read := float64(k * curves.Tokens)
				heirs = append(heirs, search.Heir{Params: int64(size(x)), Text: read})
				is[[2]float64{size(x), read}] = s
			}
		}
		z := p.laws.Choose(search.Standing{Score: p.best, Scored: float64(top * curves.Tokens), Read: 1, Unique: math.Inf(1)}, heirs)
		for _, h := range z.Heirs[1:] {
			s := is[[2]float64{float64(h.Params), h.Text}]
			better := s < score(w, 20)
			switch {
			case h.Better >= 0.8 && better:
				out.Said, out.Right = out.Said+1, out.Right+1
			case h.Better >= 0.8:
				out.Said++
			case better:
				out.Unsaid, out.Better = out.Unsaid+1, out.Better+1
			default:
				out.Unsaid++
			}
			out.Ratio += s / score(w, 20)
			out.Foretold += h.Score / z.Heirs[0].Score
			n++
		}
	}
	out.Ratio, out.Foretold = round(out.Ratio/n), round(out.Foretold/n)
	return out
}

func round(x float64) float64 { return math.Round(x*1e4) / 1e4 }
