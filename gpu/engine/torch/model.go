//go:build libtorch

package torch

import (
	"fmt"
	"math"
	"runtime"
	"strings"
	"unsafe"

	lib "github.com/sugarme/gotch/libtch"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
)

// Options says how a model is held and trained.
type Options struct {
	Device    int              // CPU, or a CUDA device from 0 on
	Threads   int              // of libtorch's operations on a CPU, for the whole process; 0 is 1
	MaxBatch  int              // B: most sequences of one batch; 0 is 1
	MaxSeq    int              // T: most tokens of a sequence; 0 is the shape's context
	Dropout   float64          // probability, on the embedding's output and each branch's; 0 ≤ p < 1
	ZLoss     float64          // weight of mean log²Z in the gradient (PaLM's); 0 is none
	Optimizer engine.Optimizer // "" is AdamW
	Precision engine.Precision // of the products while training; "" is F32, Auto is BF16 on CUDA
	Seed      uint64           // of the initial parameters
	BaseWidth int              // of the parametrisation, see glm.Width; 0 is the standard one
}

// CPU is Options.Device of the processor.
const CPU = cpu

// DefaultOptions is the CPU, one thread, sixteen sequences, AdamW.
func DefaultOptions() Options {
	return Options{Device: CPU, Threads: 1, MaxBatch: 16, Optimizer: engine.AdamW}
}

func (o Options) withDefaults(a glm.Arch) Options {
	o.Threads = max(o.Threads, 1)
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
	case o.Precision == "", o.Precision == engine.Auto && o.Device == CPU:
		o.Precision = engine.F32
	case o.Precision == engine.Auto:
		o.Precision = engine.BF16
	}
	return o
}

// Validate reports the first option that cannot be used.
func (o Options) Validate() error {
	switch {
	case o.Device < CPU:
		return fmt.Errorf("torch: device is %d, must be %d (the CPU) or a CUDA device's number", o.Device, CPU)
	case o.MaxBatch < 1:
		return fmt.Errorf("torch: max batch is %d, must be positive", o.MaxBatch)
	case o.MaxSeq < 1:
		return fmt.Errorf("torch: max sequence is %d, must be positive", o.MaxSeq)
	}
	if err := engine.CheckTraining(o.Dropout, o.ZLoss, o.Precision, o.Optimizer); err != nil {
		return fmt.Errorf("torch: %w", err)
	}
	return nil
}

// arena is a flat tensor of all parameters, gradients or moments, laid out as
// glm.Arch.Layout says.
type arena struct {
	flat  tensor    // [size] on the device
	host  []float32 // a copy of it where the model is apart, its memory otherwise
	views []tensor  // of each parameter, in its shape
}

// Model is one replica. It implements engine.Model and is owned by one goroutine.
type Model struct {
	arch   glm.Arch
	opt    Options
	layout []glm.Param
	size   int

	own                   scope // the tensors below; freed by Close
	params, grads, m1, m2 arena
	leaves                map[string]tensor // parameters that autograd sees, over params' memory
	order                 []tensor          // leaves in the layout's order
	parts                 []int             // where the model's parts begin in it: embedding, layers, final norm with an untied head; and its end
	cos, sin              tensor            // [MaxSeq, D] of the rotary embedding
	step                  [1]float32        // updates taken

	fused  bool // libtorch has scaled_dot_product_attention
	micro  int  // sequences that fit the device at once; falls when memory is short
	apart  bool // the arenas are in a device's memory, not the host's (a test's are said to be)
	staged bool // grads.host was given away for summing and isn't on the device yet
	// refuse stands in for a device's refusal of memory, in tests: before the forward
	// pass, of which part is -1, and before each part's backward pass.
	refuse func(sequences, part int) bool
}

var _ engine.Model = (*Model)(nil)

// New makes a model with initial parameters drawn from o.Seed, those that engine
// native draws.
func New(a glm.Arch, o Options) (*Model, error) {
	if err := a.Validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults(a)
	if err := o.Validate(); err != nil {
		return nil, err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := checkDevice(o.Device); err != nil {
		return nil, err
	}
	lib.SetThreads(o.Threads)
	m := &Model{arch: a, opt: o, micro: o.MaxBatch, apart: o.Device != CPU, leaves: map[string]tensor{}}
	m.layout, m.size = a.Layout()
	for _, to := range []*arena{&m.params, &m.grads, &m.m1, &m.m2} {
		*to = m.newArena()
	}
	s := &m.own
	for i, p := range m.layout {
		leaf := s.leaf(m.params.views[i])
		m.leaves[p.Name] = leaf
		m.order = append(m.order, leaf)
		if i == 0 || strings.HasSuffix(p.Name, ".input_layernorm.weight") || p.Name == "model.norm.weight" {
			m.parts = append(m.parts, i)
		}
	}
	m.parts = append(m.parts, len(m.layout))
	m.cos, m.sin = s.rotary(a, o.MaxSeq, o.Device)
	m.probeAttention()
	if s.err == nil {
		a.Init(m.params.host, o.Seed, o.BaseWidth)
		m.upload(s, &m.params)
	}
	if s.err != nil {
		err := fmt.Errorf("torch: %w", s.err)
		s.free()
		return nil, err
	}
	return m, nil
}

// checkDevice tells whether libtorch has a device.
func checkDevice(device int) error {
	if n := Devices(); device >= n {
		return fmt.Errorf("torch: device %d, but libtorch sees %d CUDA devices; see nvidia-smi and that this libtorch is CUDA's", device, n)
	}
	return nil
}

func (m *Model) newArena() arena {
	s := &m.own
	a := arena{flat: s.zeros(m.opt.Device, int64(m.size))}
	if s.err != nil {
		return a
	}
	if m.apart {
		a.host = make([]float32, m.size)
	} else {
		a.host = unsafe.Slice((*float32)(lib.AtDataPtr(a.flat)), m.size)
	}
	for _, p := range m.layout {
		a.views = append(a.views, s.view(s.narrow(a.flat, 0, p.Offset, p.Elems), dims(p.Shape)...))
	}
	return a
}

func dims(shape []int) []int64 {
	d := make([]int64, len(shape))
	for i, n := range shape {
		d[i] = int64(n)
	}
	return d
}

// upload and download move an arena between its host copy and the device; on a
// CPU they are one.
func (m *Model) upload(s *scope, a *arena) {
	if m.apart {
		s.copyInto(a.flat, s.blob(a.host, int64(m.size)))
	}
}

func (m *Model) download(s *scope, a *arena) {
	if m.apart {
		s.copyInto(s.blob(a.host, int64(m.size)), a.flat)
	}
}

// blob is a tensor over x, which stays in its place: the caller keeps x alive
// until the scope's end.
func (s *scope) blob(x []float32, shape ...int64) tensor {
	return s.op(func(o *tensor) { *o = lib.TensorOfBlob(unsafe.Pointer(&x[0]), shape, kindFloat32, cpu) })
}

// rotary makes the tables of cosines and sines of T positions, [T, D] each on the device,
// in float32 as Hugging Face does.
func (s *scope) rotary(a glm.Arch, T, device int) (cosines, sines tensor) {
	D := a.HeadDim()
	cos, sin := make([]float32, T*D), make([]float32, T*D)
	for i := range D {
		freq := float32(1 / math.Pow(a.RopeTheta, float64(2*(i%(D/2)))/float64(D)))
		for t := range T {
			angle := float64(float32(t) * freq)
			cos[t*D+i], sin[t*D+i] = float32(math.Cos(angle)), float32(math.Sin(angle))
		}
	}
	var views scope // of Go's memory
	defer views.free()
	table := func(from []float32) tensor {
		to := s.zeros(device, int64(T), int64(D))
		if s.err == nil {
			views.copyInto(to, views.blob(from, int64(T), int64(D)))
			s.err = views.err
		}
		return to
	}
	return table(cos), table(sin)
}

// Arch implements engine.Model.
func (m *Model) Arch() glm.Arch { return m.arch }

// PeakBytes is the most memory of its device that libtorch's caching allocator
// has held, 0 on a CPU.
func (m *Model) PeakBytes() int64 {
	if m.opt.Device == CPU {
		return 0
	}
	return lib.PeakBytes(m.opt.Device)
}

// Close frees the model's tensors. No other call may follow, and no tensor of
// State may be read.
func (m *Model) Close() error {
	m.own.free()
	return nil
}

// Backward implements engine.Model. When the device is out of memory, the batch
// is halved until it fits, and later batches are cut so from the start.
func (m *Model) Backward(b engine.Batch, sync engine.GradientSync) (float64, error) {
	if err := b.CheckNorm(); err != nil {
		return 0, fmt.Errorf("torch: %w", err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	nll, err := m.passes(b, training, m.newHandOver(sync))
	if err != nil {
		return 0, err
	}
	return nll / b.Norm, nil
}

// ZeroGrad implements engine.Model.
func (m *Model) ZeroGrad() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var s scope
	defer s.free()
	s.zero(m.grads.flat)
	m.staged = false
}

// Eval implements engine.Model.
func (m *Model) Eval(b engine.Batch) (nll float64, tokens int, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if nll, err = m.passes(b, scoring, nil); err != nil {
		return 0, 0, err
	}
	for _, t := range b.Targets {
		if t != engine.Ignore {
			tokens++
		}
	}
	return nll, tokens, nil
}
