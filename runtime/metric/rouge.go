package metric

import (
	"strings"
	"unicode"
)

// Words folds a text to its words in small letters: letters, digits and their marks;
// Chinese and other characters that no space divides are words of their own. Of a text in
// ASCII they are rouge-score's tokens.
func Words(s string) []string {
	var out []string
	var cur strings.Builder
	flush := func() {
		if cur.Len() > 0 {
			out = append(out, cur.String())
			cur.Reset()
		}
	}
	for _, r := range strings.ToLower(s) {
		switch {
		case unicode.In(r, unicode.Han, unicode.Hiragana, unicode.Katakana, unicode.Thai):
			flush()
			out = append(out, string(r))
		case unicode.IsLetter(r) || unicode.IsDigit(r) || unicode.IsMark(r) && cur.Len() > 0:
			cur.WriteRune(r)
		default:
			flush()
		}
	}
	flush()
	return out
}

// tokenF1 is SQuAD's; of two texts without words it is 1.
func tokenF1(a Answer) float64 {
	got, want := Words(a.Got), Words(a.Want)
	if len(got) == 0 || len(want) == 0 {
		return hit(len(got) == len(want))
	}
	return overlap(got, want)
}

// rougeN is the F of the n-grams of words.
func rougeN(a Answer, n int) float64 { return overlap(grams(Words(a.Got), n), grams(Words(a.Want), n)) }

// overlap is the F of two bags.
func overlap(got, want []string) float64 {
	left := map[string]int{}
	for _, x := range want {
		left[x]++
	}
	same := 0
	for _, x := range got {
		if left[x] > 0 {
			left[x]--
			same++
		}
	}
	return fMeasure(same, len(got), len(want))
}

// grams are the n-grams of words, each as one text.
func grams(words []string, n int) []string {
	var out []string
	for i := 0; i+n <= len(words); i++ {
		out = append(out, strings.Join(words[i:i+n], "\x00"))
	}
	return out
}

// rougeL is the F of the longest common subsequence of words.
func rougeL(a Answer) float64 {
	got, want := Words(a.Got), Words(a.Want)
	row := make([]int, len(want)+1)
	for _, x := range got {
		prev := 0
		for j, y := range want {
			cur := row[j+1]
			if x == y {
				row[j+1] = prev + 1
			} else {
				row[j+1] = max(row[j+1], row[j])
			}
			prev = cur
		}
	}
	return fMeasure(row[len(want)], len(got), len(want))
}

func fMeasure(same, got, want int) float64 {
	if same == 0 {
		return 0
	}
	p, r := float64(same)/float64(got), float64(same)/float64(want)
	return 2 * p * r / (p + r)
}
