package metric

import "strings"

// Class is the class that a text names: in small letters, its words one space apart,
// without the full stop that a sentence ends in, where that leaves anything.
func Class(text string) string {
	s := strings.ToLower(strings.Join(strings.Fields(text), " "))
	if t := strings.TrimRight(s, ".!?。！？ "); t != "" {
		return t
	}
	return s
}

// counts are a class's answers: right ones, those that say it and those that should.
type counts struct{ right, said, due int }

// A ratio without a denominator is 0, as scikit-learn has it with zero_division=0.
func ratio(n, of int) float64 {
	if of == 0 {
		return 0
	}
	return float64(n) / float64(of)
}

func precision(c counts) float64 { return ratio(c.right, c.said) }
func recall(c counts) float64    { return ratio(c.right, c.due) }
func f1(c counts) float64        { return ratio(2*c.right, c.said+c.due) }

// classes is a score of the classes that were said or due: the mean over them, or that of
// all together.
func classes(score func(counts) float64, macro bool) func(Sample) (float64, error) {
	return answered(func(all []Answer) float64 {
		by := map[string]counts{}
		sum := counts{said: len(all), due: len(all)}
		for _, a := range all {
			got, want := Class(a.Got), Class(a.Want)
			g := by[got]
			g.said++
			by[got] = g
			w := by[want]
			w.due++
			if got == want {
				w.right++
				sum.right++
			}
			by[want] = w
		}
		if !macro {
			return score(sum)
		}
		total := 0.0
		for _, c := range by {
			total += score(c)
		}
		return total / float64(len(by))
	})
}
