package metric

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
)

// Answer is what was said, and what was to be said.
type Answer struct{ Got, Want string }

// Sample is what a model was measured on.
type Sample struct {
	Answers []Answer
	NLL     float64 // of a text, in nats, summed
	Bytes   int64   // of that text; 0 is none
}

// Metric measures a sample.
type Metric struct {
	Name  string // of small letters, digits and _
	About string // one line: what it is, and whose
	Loss  bool   // less is better
	// Of is the metric's value. It is called by any goroutine, changes nothing in the
	// sample, and returns ErrNoAnswers or ErrNoText where that lacks what it needs.
	Of func(Sample) (float64, error)
}

// Error is how far a value is from the best: 1 − v, or v itself of a loss.
func (m Metric) Error(v float64) float64 {
	if m.Loss {
		return v
	}
	return 1 - v
}

// What a sample may lack.
var (
	ErrNoAnswers = errors.New("there are no answers to compare")
	ErrNoText    = errors.New("no text was scored")
)

// Names of the metrics that are always there.
const (
	Accuracy       = "accuracy"
	PrecisionMacro = "precision_macro"
	PrecisionMicro = "precision_micro"
	RecallMacro    = "recall_macro"
	RecallMicro    = "recall_micro"
	F1Macro        = "f1_macro"
	F1Micro        = "f1_micro"
	ExactMatch     = "exact_match"
	TokenF1        = "token_f1"
	Rouge1         = "rouge_1"
	Rouge2         = "rouge_2"
	RougeL         = "rouge_l"
	BLEU           = "bleu"
	BitsPerByte    = "bits_per_byte"
)

var registry struct {
	sync.RWMutex
	byName map[string]Metric
}

// aliases are names that mean another's.
var aliases = map[string]string{"precision": PrecisionMacro, "recall": RecallMacro, "f1": F1Macro, "rouge1": Rouge1, "rouge2": Rouge2, "rougel": RougeL}

func init() {
	for _, m := range []Metric{
		{Name: Accuracy, About: "share of answers of the right class", Of: each(func(a Answer) float64 { return hit(Class(a.Got) == Class(a.Want)) })},
		{Name: PrecisionMacro, About: "mean precision of the classes", Of: classes(precision, true)},
		{Name: PrecisionMicro, About: "precision over all classes together", Of: classes(precision, false)},
		{Name: RecallMacro, About: "mean recall of the classes", Of: classes(recall, true)},
		{Name: RecallMicro, About: "recall over all classes together", Of: classes(recall, false)},
		{Name: F1Macro, About: "mean F1 of the classes", Of: classes(f1, true)},
		{Name: F1Micro, About: "F1 over all classes together", Of: classes(f1, false)},
		{Name: ExactMatch, About: "share of answers that are the right one, but for white space around it", Of: each(func(a Answer) float64 { return hit(strings.TrimSpace(a.Got) == strings.TrimSpace(a.Want)) })},
		{Name: TokenF1, About: "F1 of the words of an answer (Rajpurkar et al. 2016, articles kept)", Of: each(tokenF1)},
		{Name: Rouge1, About: "ROUGE-1 F (Lin 2004)", Of: each(func(a Answer) float64 { return rougeN(a, 1) })},
		{Name: Rouge2, About: "ROUGE-2 F (Lin 2004)", Of: each(func(a Answer) float64 { return rougeN(a, 2) })},
		{Name: RougeL, About: "ROUGE-L F (Lin 2004)", Of: each(rougeL)},
		{Name: BLEU, About: "BLEU of all answers together (Papineni et al. 2002; 13a, smoothing exp), 0 to 1", Of: answered(bleu)},
		{Name: BitsPerByte, About: "negative log-likelihood in bits over the bytes of the text", Loss: true, Of: bitsPerByte},
	} {
		Register(m)
	}
}

// Register adds a metric. It panics on a name that is taken, empty or not of small letters,
// digits and _: that is the program's own mistake. Call it before the registry is used,
// such as from an init.
func Register(m Metric) {
	registry.Lock()
	defer registry.Unlock()
	bad := m.Name == "" || m.Of == nil || strings.ContainsFunc(m.Name, func(r rune) bool { return r != '_' && (r < 'a' || r > 'z') && (r < '0' || r > '9') })
	if _, taken := registry.byName[m.Name]; bad || taken || aliases[m.Name] != "" {
		panic(fmt.Sprintf("metric: %q can't be registered: it is taken, or no name, or measures nothing", m.Name))
	}
	if registry.byName == nil {
		registry.byName = map[string]Metric{}
	}
	registry.byName[m.Name] = m
}

// Lookup finds a metric by its name, in which - is as good as _ and capitals are small.
func Lookup(name string) (Metric, bool) {
	name = strings.ReplaceAll(strings.ToLower(strings.TrimSpace(name)), "-", "_")
	registry.RLock()
	defer registry.RUnlock()
	m, ok := registry.byName[cmp.Or(aliases[name], name)]
	return m, ok
}

// Parse reads names with commas between.
func Parse(names string) ([]Metric, error) {
	var out []Metric
	for name := range strings.SplitSeq(names, ",") {
		m, ok := Lookup(name)
		if !ok {
			return nil, fmt.Errorf("there is no metric %q; there are %s", strings.TrimSpace(name), strings.Join(Names(), ", "))
		}
		if !slices.ContainsFunc(out, func(o Metric) bool { return o.Name == m.Name }) {
			out = append(out, m)
		}
	}
	return out, nil
}

// Names are all metrics', sorted.
func Names() []string {
	registry.RLock()
	defer registry.RUnlock()
	var out []string
	for name := range registry.byName {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

func bitsPerByte(s Sample) (float64, error) {
	if s.Bytes == 0 {
		return 0, ErrNoText
	}
	return s.NLL / (math.Ln2 * float64(s.Bytes)), nil
}

// answered is a metric of all answers together.
func answered(f func([]Answer) float64) func(Sample) (float64, error) {
	return func(s Sample) (float64, error) {
		if len(s.Answers) == 0 {
			return 0, ErrNoAnswers
		}
		return f(s.Answers), nil
	}
}

// each is the mean of a metric of one answer.
func each(f func(Answer) float64) func(Sample) (float64, error) {
	return answered(func(all []Answer) float64 {
		sum := 0.0
		for _, a := range all {
			sum += f(a)
		}
		return sum / float64(len(all))
	})
}

func hit(ok bool) float64 {
	if ok {
		return 1
	}
	return 0
}
