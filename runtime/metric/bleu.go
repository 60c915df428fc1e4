package metric

import (
	"math"
	"regexp"
	"strings"
)

// order is BLEU's longest n-gram.
const order = 4

// bleu is sacrebleu's corpus BLEU with its defaults, one reference each: the geometric mean
// of the n-gram precisions up to 4, of which those that are 0 are smoothed by halves
// (Chen and Cherry 2014, method 3), times the brevity penalty.
func bleu(all []Answer) float64 {
	var right, total [order]int
	said, due := 0, 0
	for _, a := range all {
		got, want := tokens13a(a.Got), tokens13a(a.Want)
		said, due = said+len(got), due+len(want)
		for n := range order {
			left := map[string]int{}
			for _, g := range grams(want, n+1) {
				left[g]++
			}
			for _, g := range grams(got, n+1) {
				total[n]++
				if left[g] > 0 {
					left[g]--
					right[n]++
				}
			}
		}
	}
	if right == [order]int{} {
		return 0
	}
	sum, halves := 0.0, 1.0
	for n := range order {
		p := 0.0
		switch {
		case total[n] == 0: // answers shorter than n words alone
			return 0
		case right[n] == 0:
			halves *= 2
			p = 1 / (halves * float64(total[n]))
		default:
			p = float64(right[n]) / float64(total[n])
		}
		sum += math.Log(p)
	}
	penalty := 1.0
	if said < due {
		penalty = math.Exp(1 - float64(due)/float64(said))
	}
	return penalty * math.Exp(sum/order)
}

// What mteval-v13a does to punctuation.
var (
	marks13a  = regexp.MustCompile("([{-~\\[-` -&(-+:-@/])")
	before13a = regexp.MustCompile(`([^0-9])([.,])`)
	after13a  = regexp.MustCompile(`([.,])([^0-9])`)
	dash13a   = regexp.MustCompile(`([0-9])(-)`)
)

// tokens13a are the tokens of mteval-v13a, as sacrebleu makes them.
func tokens13a(s string) []string {
	s = strings.TrimRightFunc(s, space)
	s = strings.ReplaceAll(s, "<skipped>", "")
	s = strings.ReplaceAll(s, "-\n", "")
	s = strings.ReplaceAll(s, "\n", " ")
	for _, e := range [][2]string{{"&quot;", `"`}, {"&amp;", "&"}, {"&lt;", "<"}, {"&gt;", ">"}} { // one after the other
		s = strings.ReplaceAll(s, e[0], e[1])
	}
	s = marks13a.ReplaceAllString(" "+s+" ", " $1 ")
	s = before13a.ReplaceAllString(s, "$1 $2 ")
	s = after13a.ReplaceAllString(s, " $1 $2")
	s = dash13a.ReplaceAllString(s, "$1 $2 ")
	return strings.FieldsFunc(s, space)
}

// space is what Python's str.split divides at.
func space(r rune) bool { return 0x1c <= r && r <= 0x1f || strings.ContainsRune(spaces, r) }

const spaces = "\t\n\v\f\r \u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
