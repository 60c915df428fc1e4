package job

import (
	"fmt"
	"slices"
	"strings"

	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/runtime/metric"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// Objectives; less is better of each. All but the first are of a model that generates,
// one text at a time, on the job's ServesOn: see train.Cost.
const (
	BitsPerByte = "bits_per_byte" // of the validation sample
	Latency     = "latency"       // seconds of a generated token
	Memory      = "memory"        // bytes resident
	Size        = "size"          // bytes of the bundle's weights and tokenizer
	Energy      = "energy"        // joules of a generated token
	TaskError   = "task_error"    // 1 − the metric of answers: the task's accuracy, token F1 or ROUGE-L, or the one that Spec.Metric names
)

// Objectives lists what objectives may say.
func Objectives() []string { return []string{BitsPerByte, Latency, Memory, Size, Energy, TaskError} }

// Goals are the job's objectives, the main score first.
func (s *Spec) Goals() []string {
	if len(s.Objectives) == 0 { // of an older journal
		return []string{BitsPerByte}
	}
	return s.Objectives
}

// Costed tells whether trials are scored, or refused, by what serving their models costs.
func (s *Spec) Costed() bool {
	c := s.Constraints
	return len(s.Goals()) > 1 || c.MaxLatency > 0 || c.MaxSizeMB > 0 || c.MaxServingMemoryMB > 0
}

// Timed tells whether tokens are timed for that.
func (s *Spec) Timed() bool {
	return s.Constraints.MaxLatency > 0 || slices.Contains(s.Goals(), Latency) || slices.Contains(s.Goals(), Energy)
}

// Answered tells whether models answer the validation part's prompts for that.
func (s *Spec) Answered() bool { return slices.Contains(s.Goals(), TaskError) }

// NamesMetric tells whether answers are measured by another metric than the task's own.
func (s *Spec) NamesMetric() bool { return s.Metric != "" && s.Metric != "auto" }

// ServingThreads is how many threads the finished model has to generate with.
func (s *Spec) ServingThreads() int {
	r, err := device.ParseRequest(s.ServesOn)
	if err != nil || r.Count == 0 {
		return 1
	}
	return r.Count
}

// Megabyte is the unit of max_size_mb and max_serving_memory_mb.
const Megabyte = 1e6

// Bound is a constraint on what serving a model costs.
type Bound struct {
	Field     string // of Constraints, as a job file has it
	Objective string // that it bounds
	Limit     float64
}

// Bounds lists those that the job has.
func (s *Spec) Bounds() []Bound {
	c := s.Constraints
	all := []Bound{
		{"max_latency", Latency, c.MaxLatency.D().Seconds()},
		{"max_serving_memory_mb", Memory, c.MaxServingMemoryMB * Megabyte},
		{"max_size_mb", Size, c.MaxSizeMB * Megabyte},
	}
	return slices.DeleteFunc(all, func(b Bound) bool { return b.Limit == 0 })
}

// Value of an objective, of a model that scored so many bits per byte.
func Value(objective string, bits float64, c train.Cost) float64 {
	switch objective {
	case Latency:
		return c.Latency
	case Memory:
		return float64(c.Memory)
	case Size:
		return float64(c.Size)
	case Energy:
		return c.Energy
	case TaskError:
		if c.Error == nil {
			return 0 // before there is a model
		}
		return *c.Error
	}
	return bits
}

// Amount is an objective's value in words.
func Amount(objective string, v float64) string {
	switch objective {
	case Latency:
		return scaled(v, "s")
	case Energy:
		return scaled(v, "J")
	case Memory, Size:
		return fmt.Sprintf("%.2f MB", v/Megabyte)
	}
	return fmt.Sprintf("%.4f", v)
}

// scaled prints seconds and joules, which are small.
func scaled(v float64, unit string) string {
	switch {
	case v >= 1:
		return fmt.Sprintf("%.3g %s", v, unit)
	case v >= 1e-3:
		return fmt.Sprintf("%.3g m%s", 1e3*v, unit)
	}
	return fmt.Sprintf("%.3g µ%s", 1e6*v, unit)
}

// Over is by what share a cost exceeds the bound, at most 0 where it holds.
func (b Bound) Over(c train.Cost) float64 { return Value(b.Objective, 0, c)/b.Limit - 1 }

// Miss says how a cost misses the bound.
func (b Bound) Miss(c train.Cost) string {
	return fmt.Sprintf("%s %s is over %s %s", b.Objective, Amount(b.Objective, Value(b.Objective, 0, c)), b.Field, Amount(b.Objective, b.Limit))
}

// validateObjectives reports what is wrong with the objectives and with the constraints
// on what serving costs.
func (s *Spec) validateObjectives() error {
	if s.Objective != BitsPerByte {
		return fieldError("objective", "%q is not %s, the main score; others stand in objectives: [%s, %s]", s.Objective, BitsPerByte, BitsPerByte, Latency)
	}
	for i, o := range s.Objectives {
		path := fmt.Sprintf("objectives[%d]", i)
		switch {
		case !contains(Objectives(), o):
			return fieldError(path, "%q is not one of %s%s", o, strings.Join(Objectives(), ", "), didYouMean(o, Objectives()))
		case contains(s.Objectives[:i], o):
			return fieldError(path, "%q stands twice", o)
		case i == 0 && o != BitsPerByte:
			return fieldError(path, "%q can't come first: that is the main score, %s", o, BitsPerByte)
		}
	}
	if n := len(s.Goals()); n > 1 {
		if !search.Several(s.SearchStrategy) {
			return fieldError("search_strategy", "%s looks at one objective, and there are %d; choose auto, gp, tpe, forest, nsga2, evolutionary, evolution, bohb, random or sobol", s.SearchStrategy, n)
		}
		switch s.Scheduler {
		case "median", "wilcoxon", "curve":
			return fieldError("scheduler", "%s stops trials by %s alone, and there are %d objectives; choose auto, asha, hyperband, sha or none", s.Scheduler, BitsPerByte, n)
		}
	}
	if s.NamesMetric() {
		m, ok := metric.Lookup(s.Metric)
		switch {
		case !ok:
			return fieldError("metric", "%q is not one of auto, %s%s", s.Metric, strings.Join(metric.Names(), ", "), didYouMean(s.Metric, metric.Names()))
		case m.Name == metric.BitsPerByte:
			return fieldError("metric", "%s is the main score already; name one of answers, or auto", s.Metric)
		}
	}
	c := s.Constraints
	for _, x := range []struct {
		field string
		v     float64
	}{{"max_params", float64(c.MaxParams)}, {"max_memory_mb", float64(c.MaxMemoryMB)}, {"max_serving_memory_mb", c.MaxServingMemoryMB}, {"max_size_mb", c.MaxSizeMB}} {
		if !(x.v >= 0) {
			return fieldError("constraints."+x.field, "is negative")
		}
	}
	if s.ServesOn == "" {
		return nil
	}
	r, err := device.ParseRequest(s.ServesOn)
	switch {
	case err != nil:
		return fieldError("serves_on", "%v", err)
	case r.Kind != device.CPU || r.Count == 0 || r.Count > 1024:
		return fieldError("serves_on", "%q names no processors, on which models generate; write cpu-1 or cpu-4", s.ServesOn)
	}
	return nil
}
