package native

import (
	"errors"
	"fmt"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// Options says how a model is held and trained.
type Options struct {
	Threads   int              // goroutines that compute; 0 is 1
	MaxBatch  int              // B: most sequences of one batch; 0 is 1
	MaxSeq    int              // T: most tokens of a sequence; 0 is the shape's context
	Dropout   float64          // probability, on the embedding's output and each branch's; 0 ≤ p < 1
	ZLoss     float64          // weight of mean log²Z in the gradient (PaLM's); 0 is none
	Optimizer engine.Optimizer // "" is AdamW
	Precision engine.Precision // of the products while training; "" is F32, Auto is BF16 where the CPU multiplies it
	Seed      uint64           // of the initial parameters
	BaseWidth int              // of the parametrisation, see glm.Width; 0 is the standard one
	Recompute bool             // keep each layer's input only and compute the rest again in the backward pass: less memory, a quarter more time, the same bits
	Inference bool             // no gradients and no moments: Logits, Eval, State and Load only
	CPUs      []int            // processors to pin the threads to, one each; nil leaves them to the kernel
}

// DefaultOptions is one thread, sixteen sequences, AdamW.
func DefaultOptions() Options {
	return Options{Threads: 1, MaxBatch: 16, Optimizer: engine.AdamW}
}

func (o Options) withDefaults(a glm.Arch) Options {
	if o.Threads == 0 {
		o.Threads = 1
	}
	if o.MaxBatch == 0 {
		o.MaxBatch = 1
	}
	if o.MaxSeq == 0 {
		o.MaxSeq = a.Context
	}
	if o.Optimizer == "" {
		o.Optimizer = engine.AdamW
	}
	switch {
	case o.Precision == "", o.Precision == engine.Auto && !kernel.FastBF16():
		o.Precision = engine.F32
	case o.Precision == engine.Auto:
		o.Precision = engine.BF16
	}
	return o
}

// Validate reports the first option that cannot be used.
func (o Options) Validate() error {
	switch {
	case o.Threads < 1:
		return fmt.Errorf("native: threads is %d, must be positive", o.Threads)
	case o.MaxBatch < 1:
		return fmt.Errorf("native: max batch is %d, must be positive", o.MaxBatch)
	case o.MaxSeq < 1:
		return fmt.Errorf("native: max sequence is %d, must be positive", o.MaxSeq)
	case o.CPUs != nil && len(o.CPUs) < o.Threads:
		return fmt.Errorf("native: %d processors to pin %d threads to", len(o.CPUs), o.Threads)
	}
	if err := engine.CheckTraining(o.Dropout, o.ZLoss, o.Precision, o.Optimizer); err != nil {
		return fmt.Errorf("native: %w", err)
	}
	return nil
}

// Model is one replica on the CPU. It implements engine.Model. It is owned by one
// goroutine; its own goroutines run only inside its calls and end with Close.
type Model struct {
	arch   glm.Arch
	opt    Options
	layout []glm.Param
	size   int // of the arenas

	params []float32      // [size]
	grads  []float32      // [size], nil for inference
	m, v   []float32      // [size], AdamW's moments; Muon's momentum is in m. Sharded: of own alone
	step   [1]float32     // updates taken
	rope   rotary         // of positions 0 … MaxSeq-1
	w      *tensors       // views of params
	forms  []float32      // of w's weights, packed
	packed bool           // forms are of the present parameters
	team   *team          // threads
	worker []*worker      // one a thread
	ranges []engine.Range // of the update, one a thread
	shard  *shard         // nil: the optimiser is not divided

	// What the task that runs now works on. Invariant: set before team.run,
	// constant until it returns.
	job struct {
		batch   engine.Batch
		mode    mode
		hyper   engine.Hyper
		clip    float64
		logits  []float32
		each    []float32       // the rows' losses, where they are asked for
		hidden  []float32       // the final norm's results, where they are
		teacher *engine.Teacher // of a Backward
		active  int             // workers that have sequences
	}
	over handOver // of the gradient that Backward computes
}

var _ engine.Model = (*Model)(nil)

// mode is what a pass over a batch is for.
type mode int

const (
	training mode = iota // loss and gradients
	scoring              // loss
	logits               // the logits themselves
)

// New makes a model with initial parameters drawn from o.Seed.
func New(a glm.Arch, o Options) (*Model, error) {
	if err := a.Validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults(a)
	if err := o.Validate(); err != nil {
		return nil, err
	}
	m := &Model{arch: a, opt: o}
	m.layout, m.size = a.Layout()
	m.params = newArena(m.size)
	a.Init(m.params, o.Seed, o.BaseWidth)
	m.w = view(a, m.layout, m.params)
	m.rope = newRotary(a, o.MaxSeq)
	if !o.Inference {
		m.grads = newArena(m.size)
		m.m = newArena(m.size)
		m.v = newArena(m.size)
		if o.Precision == engine.BF16 {
			m.forms = m.w.makeForms()
		}
	}
	for i := range o.Threads {
		m.worker = append(m.worker, newWorker(m, i))
		m.ranges = append(m.ranges, engine.Range{From: m.size * i / o.Threads &^ 15, To: m.size * (i + 1) / o.Threads &^ 15})
	}
	m.team = newTeam(o.Threads, o.CPUs, m.run)
	return m, nil
}

// Arch is the model's shape.
func (m *Model) Arch() glm.Arch { return m.arch }

// Params is the arena of parameters, laid out as glm.Arch.Layout says. It aliases
// the model's memory.
func (m *Model) Params() []float32 { return m.params }

// Grads is the arena of gradients, laid out like Params; nil for inference.
func (m *Model) Grads() []float32 { return m.grads }

// Close ends the model's goroutines. No other call may follow.
func (m *Model) Close() error {
	m.team.close()
	return nil
}

// Tasks of the team.
const (
	taskPass   task = iota // forward, and backward when training, of a worker's sequences
	taskReduce             // sum of the workers' gradients
	taskNorm               // squares of the gradient
	taskUpdate             // AdamW
	taskMuon               // Muon's matrices
	taskZero               // clears the gradient
	taskPack               // weights for the products
)

// run is worker i's part of a task.
func (m *Model) run(t task, i int) {
	w := m.worker[i]
	switch t {
	case taskPass:
		if i < m.job.active {
			w.pass()
		}
	case taskReduce:
		n := len(m.worker)
		m.reduce(engine.Range{From: m.over.from * i / n &^ 15, To: m.over.from * (i + 1) / n &^ 15})
	case taskNorm:
		w.squares = m.squares(i)
	case taskUpdate:
		m.adamwOf(i)
	case taskMuon:
		m.muon(i)
	case taskPack:
		m.packShare(i)
	case taskZero:
		clear(m.grads[m.ranges[i].From:m.ranges[i].To])
	}
}

var errInference = errors.New("native: model was made for inference and holds no gradients; make it without Options.Inference to train")

// Backward implements engine.Model. The loss is the negative log-likelihood alone;
// a z-loss acts on the gradient only. With a sync, each layer's gradient is summed
// over the threads and handed over while the layers before it are still computed:
// see handOver.
func (m *Model) Backward(b engine.Batch, sync engine.GradientSync) (float64, error) {
	if m.opt.Inference {
		return 0, errInference
	}
	if err := b.CheckNorm(); err != nil {
		return 0, fmt.Errorf("native: %w", err)
	}
	if err := m.packWeights(); err != nil {
		return 0, err
	}
	m.over.begin(m, sync)
	nll, _, err := m.passes(b, training)
	if err != nil {
		return 0, err
	}
	if m.job.active > 1 {
		if err := m.team.run(taskReduce); err != nil {
			return 0, err
		}
	}
	m.over.end()
	return nll / b.Norm, nil
}

// Eval implements engine.Model.
func (m *Model) Eval(b engine.Batch) (float64, int, error) { return m.passes(b, scoring) }

// EvalEach is Eval that leaves the negative log-likelihood of each scored target in nll,
// [B, T], and does not touch the others.
func (m *Model) EvalEach(b engine.Batch, nll []float32) (float64, int, error) {
	if len(nll) < b.B*b.T {
		return 0, 0, fmt.Errorf("native: %d places for the scores of %d tokens", len(nll), b.B*b.T)
	}
	m.job.each = nll
	defer func() { m.job.each = nil }()
	return m.passes(b, scoring)
}

// Logits is the forward pass alone, without dropout: [B, T, V] in new memory.
func (m *Model) Logits(b engine.Batch) ([]float32, error) {
	m.job.logits = make([]float32, b.B*b.T*m.arch.Vocab)
	defer func() { m.job.logits = nil }()
	_, _, err := m.passes(b, logits)
	return m.job.logits, err
}

// Outputs is Logits, and the final norm's results beside it: [B, T, C].
func (m *Model) Outputs(b engine.Batch) (logits, hidden []float32, err error) {
	m.job.hidden = make([]float32, b.B*b.T*m.arch.Dim)
	defer func() { m.job.hidden = nil }()
	logits, err = m.Logits(b)
	return logits, m.job.hidden, err
}

// passes shards a batch over the workers by sequences and sums their losses in
// the workers' order.
func (m *Model) passes(b engine.Batch, mode mode) (nll float64, tokens int, err error) {
	if err := b.Check(m.opt.MaxBatch, m.opt.MaxSeq, m.arch.Vocab, mode != logits); err != nil {
		return 0, 0, fmt.Errorf("native: %w", err)
	}
	m.job.batch, m.job.mode = b, mode
	m.job.active = min(m.opt.Threads, b.B)
	if err := m.team.run(taskPass); err != nil {
		return 0, 0, err
	}
	for _, w := range m.worker[:m.job.active] {
		nll += w.nll
		tokens += w.tokens
	}
	return nll, tokens, nil
}
