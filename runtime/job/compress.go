package job

// Compress asks for a smaller model beside the bundle, in OUT/compressed; see
// runtime/compress. At least one of Weights, Prune, Sparsity and Student is given.
type Compress struct {
	Weights      string   `json:"weights,omitempty"`       // bits of the weights, one of CompressedWeights
	Prune        float64  `json:"prune,omitempty"`         // share of the feed-forward channels to take away
	PruneHeads   float64  `json:"prune_heads,omitempty"`   // share of the attention's heads to take away
	Sparsity     float64  `json:"sparsity,omitempty"`      // share of each matrix's weights to set to 0
	Student      string   `json:"student,omitempty"`       // auto: a student with half the work for a token
	Teacher      string   `json:"teacher,omitempty"`       // whose logits are learnt from, one of Teachers
	Recover      Duration `json:"recover,omitempty"`       // how long to learn after those; on top of the budget
	RecoverSteps int      `json:"recover_steps,omitempty"` // or how many steps, which gives the same bytes each time
	Search       bool     `json:"search,omitempty"`        // trials are compared by the scores of their rounded weights
	MaxLoss      *float64 `json:"max_loss,omitempty"`      // how much worse the held-out score may get, a share of it
}

// CompressedWeights lists what compress.weights may say.
func CompressedWeights() []string { return []string{"int8", "int4"} }

// Teachers lists what compress.teacher may say: the model itself, or the build's ensemble,
// where a vote was better than the model alone.
func Teachers() []string { return []string{"bundle", "ensemble"} }

// Defaults of Compress.
const (
	DefaultMaxLoss       = 0.01
	DefaultRecoverySteps = 200
)

// Learns tells whether something is taken away that the model has to learn to do without.
func (c Compress) Learns() bool {
	return c.Prune != 0 || c.PruneHeads != 0 || c.Sparsity != 0 || c.Student != ""
}

// Steps are those of the recovery: without a time there is a number of them.
func (c Compress) Steps() int {
	if c.Learns() && c.Recover == 0 && c.RecoverSteps == 0 {
		return DefaultRecoverySteps
	}
	return c.RecoverSteps
}

// Loss is how much worse the score may get.
func (c Compress) Loss() float64 {
	if c.MaxLoss == nil {
		return DefaultMaxLoss
	}
	return *c.MaxLoss
}

func (c Compress) validate() error {
	switch {
	case c.Weights == "" && !c.Learns():
		return fieldError("compress", "asks for nothing; give weights, prune, prune_heads, sparsity or student")
	case c.Weights != "" && !contains(CompressedWeights(), c.Weights):
		return fieldError("compress.weights", "%q is not one of int8, int4%s", c.Weights, didYouMean(c.Weights, CompressedWeights()))
	case !(c.Prune >= 0 && c.Prune < 1):
		return fieldError("compress.prune", "%v is not 0 or more and less than 1", c.Prune)
	case !(c.PruneHeads >= 0 && c.PruneHeads < 1):
		return fieldError("compress.prune_heads", "%v is not 0 or more and less than 1", c.PruneHeads)
	case !(c.Sparsity >= 0 && c.Sparsity < 1):
		return fieldError("compress.sparsity", "%v is not 0 or more and less than 1", c.Sparsity)
	case c.Student != "" && c.Student != "auto":
		return fieldError("compress.student", "%q is not auto", c.Student)
	case c.Teacher != "" && !contains(Teachers(), c.Teacher):
		return fieldError("compress.teacher", "%q is not one of bundle, ensemble%s", c.Teacher, didYouMean(c.Teacher, Teachers()))
	case c.Teacher != "" && !c.Learns():
		return fieldError("compress.teacher", "has nobody to teach; give prune, prune_heads, sparsity or student")
	case c.Search && c.Weights == "":
		return fieldError("compress.search", "compares trials by their rounded weights; give weights")
	case c.RecoverSteps < 0:
		return fieldError("compress.recover_steps", "%d is negative", c.RecoverSteps)
	case !c.Learns() && (c.Recover != 0 || c.RecoverSteps != 0):
		return fieldError("compress", "has a recovery and nothing to recover from; give prune, prune_heads, sparsity or student")
	case !(c.Loss() >= 0):
		return fieldError("compress.max_loss", "%v is negative", c.Loss())
	}
	return nil
}

// stages are ours that the job has: those of every build, and compress where it asks for
// it.
func (s *Spec) stages() []Stage {
	all := Stages()
	if s.Compress != nil {
		all = append(all, Stage{Name: StageCompress, Needs: []string{StageBundle}})
	}
	return all
}

func (s *Spec) stageNames() []string {
	var out []string
	for _, st := range s.stages() {
		out = append(out, st.Name)
	}
	return out
}
