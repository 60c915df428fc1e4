package job

import (
	"encoding/json"
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/open-autoglm/autoglm/gpu/ddp"
	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
)

// Spec is a job as its user writes it; every field has a default.
type Spec struct {
	TaskType           string            `json:"task_type"`            // one of TaskTypes
	MaxSeqLength       int               `json:"max_seq_length"`       // the final model's context, tokens; 0 is searched
	HardwareConstraint string            `json:"hardware_constraint"`  // see device.ParseRequest
	SearchStrategy     string            `json:"search_strategy"`      // one of search.Names
	Inherit            string            `json:"inherit"`              // whether trials begin from the weights of their parents, one of Inherits
	Averaging          string            `json:"averaging"`            // of the final training's parameters, one of Averagings
	Ensemble           string            `json:"ensemble"`             // of the final model and trials, one of Ensembles
	GrowFinal          string            `json:"grow_final"`           // whether the final training may be of a larger model, one of GrowFinals
	Scheduler          string            `json:"scheduler"`            // how trials are rationed, one of search.Schedulers
	Seed               uint64            `json:"seed"`                 // of everything random
	Budget             Budget            `json:"budget"`               //
	Data               Data              `json:"data"`                 //
	Space              map[string]Expr   `json:"space,omitempty"`      // dimension to range, see space.Parse
	Forbidden          []string          `json:"forbidden,omitempty"`  // combinations of values, see space.ParseForbidden
	WarmStart          []string          `json:"warm_start,omitempty"` // earlier builds, or files of their trials, see telemetry.ReadPast
	Objective          string            `json:"objective"`            // the main score: bits_per_byte
	Objectives         []string          `json:"objectives"`           // the main score and what else is to be small, of Objectives
	Metric             string            `json:"metric"`               // of answers: auto is the task's own, see metric.Names
	ServesOn           string            `json:"serves_on"`            // what the finished model generates on: cpu-1, cpu-4
	Precision          string            `json:"precision"`            // of the products while training, one of Precisions
	Engine             string            `json:"engine"`               // what computes, one of Engines
	Backend            string            `json:"backend"`              // how the ranks of a training join, one of Backends
	Compression        string            `json:"compression"`          // of gradients between ranks, one of Compressions
	ZeroStage          int               `json:"zero_stage"`           // 1 divides AdamW's moments over the ranks (ZeRO-1); 0 is none
	DynamicBatching    bool              `json:"dynamic_batching"`     // ranks get as many of a step's sequences as their speed is worth
	Isolation          string            `json:"isolation"`            // whether ranks compute in processes of their own, one of Isolations
	Pinning            string            `json:"pinning"`              // of engine native's threads to processors, one of Pinnings
	Placement          Placement         `json:"placement"`            // of work that may run on either kind of device
	Constraints        Constraints       `json:"constraints"`          //
	Priority           int               `json:"priority"`             // on a cluster: the higher goes first and may have lower ones stopped; ±MaxPriority
	Retries            int               `json:"retries"`              // of a trial that failed, 0 … 10
	Stages             map[string]Limits `json:"stages,omitempty"`     // overrides by stage name
	Steps              []Step            `json:"steps,omitempty"`      // the user's own programs, in the same graph
	Compress           *Compress         `json:"compress,omitempty"`   // a smaller model beside the bundle; nil is none
	Licence            string            `json:"licence,omitempty"`    // of the model, for its card (SPDX)
	Name               string            `json:"name,omitempty"`       // of the model, for its card

	// PlaintextCollectives lets nccl, mpi and gloo, which neither encrypt nor authenticate,
	// join ranks that have certificates. Without it auto picks none of them there, and a
	// backend that names one is refused.
	PlaintextCollectives bool `json:"plaintext_collectives"`
}

// Budget says when to stop: exactly one of its fields.
type Budget struct {
	WallClock Duration `json:"wall_clock,omitempty"` // active time of the whole job
	Trials    int      `json:"trials,omitempty"`     // trials to search, then the final training of a fixed size
	Tokens    int64    `json:"tokens,omitempty"`     // training tokens of search and final training together
}

// Data says what to learn from.
type Data struct {
	Files          []string          `json:"files,omitempty"`
	URLs           []string          `json:"urls,omitempty"`
	Plugin         []string          `json:"plugin,omitempty"`  // executables that speak the line protocol: sources and cleaning steps
	Config         map[string]string `json:"config,omitempty"`  // handed to the plugins
	Columns        map[string]string `json:"columns,omitempty"` // role (text, question, answer, …) to column
	Valid          []string          `json:"valid,omitempty"`   // the user's own validation part
	NearDuplicates *bool             `json:"near_duplicates,omitempty"`
	MaxLength      int               `json:"max_length,omitempty"` // longest example, characters
}

// Constraints bound the models that are tried. Those on parameters, memory and size are
// known before a trial; latency is foretold, and measured after it. 0 is no bound.
type Constraints struct {
	MaxParams          int64    `json:"max_params,omitempty"`
	MaxMemoryMB        int64    `json:"max_memory_mb,omitempty"`         // to train in, MiB
	MaxServingMemoryMB float64  `json:"max_serving_memory_mb,omitempty"` // to generate in, 10^6 bytes
	MaxSizeMB          float64  `json:"max_size_mb,omitempty"`           // of the bundle's weights and tokenizer, 10^6 bytes
	MaxLatency         Duration `json:"max_latency,omitempty"`           // of a generated token, see ServesOn
}

// Placement says when a job that may compute on either kind of device goes to
// the GPUs: to those whose load is under gpu_load; work that went to the CPU comes
// back once it is lower by the hysteresis. See device.LoadPolicy. The finished
// model of a job on GPUs is scored by the same rule.
type Placement struct {
	GPULoad    float64 `json:"gpu_load"`   // 0 to 1
	Hysteresis float64 `json:"hysteresis"` //
}

// Policy is the device room's word for it; the zero value is the default.
func (p Placement) Policy() device.LoadPolicy {
	if p == (Placement{}) {
		return device.DefaultLoadPolicy()
	}
	return device.LoadPolicy{Threshold: p.GPULoad, Hysteresis: p.Hysteresis}
}

// Limits override a stage's own.
type Limits struct {
	Timeout Duration `json:"timeout,omitempty"`
	Retries *int     `json:"retries,omitempty"`
	Backoff Duration `json:"backoff,omitempty"`
}

// Expr is an entry of `space:` as text: a range, a value, or a list.
type Expr string

// Duration reads and writes as "3m" or a number of seconds.
type Duration time.Duration

// D is the duration as the standard library has it.
func (d Duration) D() time.Duration { return time.Duration(d) }

func (d Duration) String() string { return time.Duration(d).String() }

// MarshalJSON writes "3m0s".
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalText reads what ParseDuration reads, or a plain number of seconds.
func (d *Duration) UnmarshalText(b []byte) error {
	s := string(b)
	v, err := time.ParseDuration(s)
	if err != nil {
		v, err = time.ParseDuration(s + "s")
	}
	if err != nil {
		return fmt.Errorf("%q is no duration; write 90s, 3m or 1h30m", s)
	}
	if v < 0 {
		return fmt.Errorf("%q is negative", s)
	}
	*d = Duration(v)
	return nil
}

// UnmarshalJSON reads MarshalJSON's form.
func (d *Duration) UnmarshalJSON(b []byte) error {
	return d.UnmarshalText([]byte(strings.Trim(string(b), `"`)))
}

// TaskTypes lists what task_type may say.
func TaskTypes() []string {
	return []string{"auto", "text-generation", "question-answering", "summarization", "dialogue", "classification"}
}

// Precisions lists what precision may say: auto multiplies in bf16 where the
// hardware does and in f32 elsewhere.
func Precisions() []string { return []string{"auto", "f32", "bf16"} }

// Engines lists what engine may say: native is part of every build, torch of one
// with libtorch; auto is native.
func Engines() []string { return []string{"auto", "native", "torch"} }

// Backends lists what backend may say: auto picks by where the ranks are, so in
// one process inproc. All up to tcp give the same bits. nccl and mpi are in builds
// with the tag gpu, gloo in those with libtorch, each where the machine has it; the
// node that trains says what is missing.
func Backends() []string {
	return []string{"auto", "inproc", "shm", "unix", "tcp", "nccl", "mpi", "gloo"}
}

// Compressions lists what compression may say: none sums in float32; bf16, int8 and
// powersgd send fewer bytes and lose something; auto chooses for each piece of the
// gradient, where that pays.
func Compressions() []string { return ddp.Modes() }

// Isolations lists what isolation may say: process lets each rank compute in a
// process of its own, whose crash costs that rank alone; none lets all compute in
// the node's. auto is process for GPUs and for engine torch, none for native.
func Isolations() []string { return []string{"auto", "process", "none"} }

// Pinnings lists what pinning may say: always keeps each thread of engine native on
// one of the job's processors, never leaves them to the kernel; auto pins where the
// process has its processors for itself, by its cgroup (see device.Exclusive). A
// thread that is pinned beside others' work waits for it while other processors
// are idle.
func Pinnings() []string { return []string{"auto", "never", "always"} }

// Inherits lists what inherit may say: auto lets the children of evolution begin from
// their parents' checkpoints where their models can be grown from those (see
// glm.Growth), and pay for their own training alone; off starts each trial from its
// beginning.
func Inherits() []string { return []string{"auto", "off"} }

// Inheriting tells whether trials begin from the weights of their parents. Those of
// older journals, which do not say, do not.
func (s *Spec) Inheriting() bool { return s.Inherit == "auto" }

// Averagings lists what averaging may say: auto averages the parameters of the final
// training's last part (engine native), and makes that the model where it is better on
// text kept for choosing, by more than noise; off does not.
func Averagings() []string { return []string{"auto", "off"} }

// Ensembles lists what ensemble may say: auto votes among the final model and the trials
// that come near it, where that is better; off does not.
func Ensembles() []string { return []string{"auto", "off"} }

// GrowFinals lists what grow_final may say: auto grows the winner into a larger model
// where a law that is fitted to the trials foretells that it ends better (see
// search.Sizing); off trains it as it is.
func GrowFinals() []string { return []string{"auto", "off"} }

// GrowsFinal tells whether the final training may be of a larger model. Of several
// objectives it is not: what a larger model costs was weighed against its score.
func (s *Spec) GrowsFinal() bool { return s.GrowFinal == "auto" && len(s.Goals()) < 2 }

// Default is the job of a build without a file.
func Default() Spec {
	policy := device.DefaultLoadPolicy()
	return Spec{
		TaskType: "auto", HardwareConstraint: "auto", SearchStrategy: "auto", Scheduler: "auto", Inherit: "auto", Averaging: "auto", Ensemble: "auto", GrowFinal: "auto", Metric: "auto", Seed: 1,
		Objective: BitsPerByte, Objectives: []string{BitsPerByte}, ServesOn: "cpu-1", Precision: "auto", Engine: "auto", Backend: "auto", Compression: "none", Isolation: "auto", Pinning: "auto", Retries: 1,
		Placement: Placement{GPULoad: policy.Threshold, Hysteresis: policy.Hysteresis},
	}
}

// DefaultWallClock is the budget of a job that names none.
const DefaultWallClock = Duration(3 * time.Minute)

// MaxPriority bounds a job's priority, both ways.
const MaxPriority = 100

// MinWallClock is the least wall clock in which anything sensible can be made.
const MinWallClock = Duration(10 * time.Second)

// Validate reports the first field that makes no sense. Where a field was read
// from a file, Load's error names its line; here the field's path stands alone.
func (s *Spec) Validate() error {
	if !contains(TaskTypes(), s.TaskType) {
		return fieldError("task_type", "%q is not one of %s%s", s.TaskType, strings.Join(TaskTypes(), ", "), didYouMean(s.TaskType, TaskTypes()))
	}
	if !contains(search.Names(), s.SearchStrategy) {
		return fieldError("search_strategy", "%q is not one of %s%s", s.SearchStrategy, strings.Join(search.Names(), ", "), didYouMean(s.SearchStrategy, search.Names()))
	}
	if s.Scheduler != "" && !contains(search.Schedulers(), s.Scheduler) { // jobs of older journals have none
		return fieldError("scheduler", "%q is not one of %s%s", s.Scheduler, strings.Join(search.Schedulers(), ", "), didYouMean(s.Scheduler, search.Schedulers()))
	}
	if _, err := device.ParseRequest(s.HardwareConstraint); err != nil {
		return fieldError("hardware_constraint", "%v", err)
	}
	if s.MaxSeqLength != 0 && (s.MaxSeqLength < 16 || s.MaxSeqLength > 1<<17) {
		return fieldError("max_seq_length", "%d is outside 16 … 131072", s.MaxSeqLength)
	}
	if err := s.validateObjectives(); err != nil {
		return err
	}
	if !contains(Engines(), s.Engine) {
		return fieldError("engine", "%q is not one of %s%s", s.Engine, strings.Join(Engines(), ", "), didYouMean(s.Engine, Engines()))
	}
	if !contains(Backends(), s.Backend) {
		return fieldError("backend", "%q is not one of %s%s", s.Backend, strings.Join(Backends(), ", "), didYouMean(s.Backend, Backends()))
	}
	if s.Compression != "" && !contains(Compressions(), s.Compression) { // jobs of older journals have none
		return fieldError("compression", "%q is not one of %s%s", s.Compression, strings.Join(Compressions(), ", "), didYouMean(s.Compression, Compressions()))
	}
	if s.ZeroStage < 0 || s.ZeroStage > 1 {
		return fieldError("zero_stage", "%d is not 0 or 1; stages 2 and 3 are not built", s.ZeroStage)
	}
	if s.ZeroStage > 0 && s.Engine == "torch" {
		return fieldError("zero_stage", "engine torch does not divide its optimiser; choose engine: native, or zero_stage: 0")
	}
	// Jobs of older journals have none.
	if s.Inherit != "" && !contains(Inherits(), s.Inherit) {
		return fieldError("inherit", "%q is not one of %s%s", s.Inherit, strings.Join(Inherits(), ", "), didYouMean(s.Inherit, Inherits()))
	}
	if s.Averaging != "" && !contains(Averagings(), s.Averaging) {
		return fieldError("averaging", "%q is not one of %s%s", s.Averaging, strings.Join(Averagings(), ", "), didYouMean(s.Averaging, Averagings()))
	}
	if s.Ensemble != "" && !contains(Ensembles(), s.Ensemble) {
		return fieldError("ensemble", "%q is not one of %s%s", s.Ensemble, strings.Join(Ensembles(), ", "), didYouMean(s.Ensemble, Ensembles()))
	}
	if s.GrowFinal != "" && !contains(GrowFinals(), s.GrowFinal) {
		return fieldError("grow_final", "%q is not one of %s%s", s.GrowFinal, strings.Join(GrowFinals(), ", "), didYouMean(s.GrowFinal, GrowFinals()))
	}
	if s.Compress != nil {
		if err := s.Compress.validate(); err != nil {
			return err
		}
	}
	if s.Isolation != "" && !contains(Isolations(), s.Isolation) {
		return fieldError("isolation", "%q is not one of %s%s", s.Isolation, strings.Join(Isolations(), ", "), didYouMean(s.Isolation, Isolations()))
	}
	if s.Pinning != "" && !contains(Pinnings(), s.Pinning) {
		return fieldError("pinning", "%q is not one of %s%s", s.Pinning, strings.Join(Pinnings(), ", "), didYouMean(s.Pinning, Pinnings()))
	}
	if s.Isolation == "process" && s.Backend == "inproc" {
		return fieldError("backend", "inproc joins ranks of one process, and isolation is process; choose auto, shm, unix or tcp")
	}
	switch p := s.Placement.Policy(); {
	case !(p.Threshold > 0 && p.Threshold <= 1):
		return fieldError("placement.gpu_load", "%v is not above 0 and at most 1", p.Threshold)
	case p.Validate() != nil:
		return fieldError("placement.hysteresis", "%v is not between 0 and gpu_load %v", p.Hysteresis, p.Threshold)
	}
	if !contains(Precisions(), s.Precision) {
		return fieldError("precision", "%q is not one of %s%s", s.Precision, strings.Join(Precisions(), ", "), didYouMean(s.Precision, Precisions()))
	}
	if s.Priority < -MaxPriority || s.Priority > MaxPriority {
		return fieldError("priority", "%d is outside -%d … %d", s.Priority, MaxPriority, MaxPriority)
	}
	if s.Retries < 0 || s.Retries > 10 {
		return fieldError("retries", "%d is outside 0 … 10", s.Retries)
	}
	b := s.Budget
	given := 0
	for _, on := range []bool{b.WallClock > 0, b.Trials != 0, b.Tokens != 0} {
		if on {
			given++
		}
	}
	switch {
	case given > 1:
		return fieldError("budget", "give one of wall_clock, trials and tokens, not several")
	case b.WallClock > 0 && b.WallClock < MinWallClock:
		return fieldError("budget.wall_clock", "%s is too short to train anything; give at least %s", b.WallClock, MinWallClock)
	case b.Trials < 0 || b.Trials > 100000:
		return fieldError("budget.trials", "%d is outside 1 … 100000", b.Trials)
	case b.Tokens < 0 || b.Tokens > 0 && b.Tokens < 10000:
		return fieldError("budget.tokens", "%d is too few to train anything; give at least 10000", b.Tokens)
	}
	if s.Data.MaxLength < 0 {
		return fieldError("data.max_length", "is negative")
	}
	names := make([]string, 0, len(s.Space))
	for n := range s.Space {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		if !contains(space.Names(), n) {
			return fieldError("space."+n, "is no dimension; there are %s%s", strings.Join(space.Names(), ", "), didYouMean(n, space.Names()))
		}
		if err := space.CheckOverride(n, string(s.Space[n])); err != nil {
			return fieldError("space."+n, "%s", strings.TrimPrefix(err.Error(), n+": "))
		}
	}
	for i, text := range s.Forbidden {
		f, err := space.ParseForbidden(text)
		if err == nil {
			err = f.Known(space.Names())
		}
		if err != nil {
			return fieldError(fmt.Sprintf("forbidden[%d]", i), "%v", err)
		}
	}
	if c, ok := s.Space[space.Context]; ok && s.MaxSeqLength != 0 {
		return fieldError("space.context", "%s is given beside max_seq_length %d; give one of them", c, s.MaxSeqLength)
	}
	for n, l := range s.Stages {
		if !contains(s.stageNames(), n) {
			return fieldError("stages."+n, "is no stage; there are %s%s", strings.Join(s.stageNames(), ", "), didYouMean(n, s.stageNames()))
		}
		if l.Retries != nil && (*l.Retries < 0 || *l.Retries > 10) {
			return fieldError("stages."+n+".retries", "%d is outside 0 … 10", *l.Retries)
		}
		if l.Backoff.D() > MaxBackoff {
			return fieldError("stages."+n+".backoff", "%s is more than %s", l.Backoff, MaxBackoff)
		}
	}
	return s.validateSteps()
}

// Resolve fills what is left to defaults after files and flags were read.
func (s *Spec) Resolve() {
	if s.Budget == (Budget{}) {
		s.Budget.WallClock = DefaultWallClock
	}
}

// FieldError names the field of a job that is wrong.
type FieldError struct {
	File string // "" when the job came from flags
	Line int    // 0 when it is not known
	Path string // "budget.wall_clock"
	Msg  string
}

func (e *FieldError) Error() string {
	s := e.Path
	if e.Path != "" {
		s += ": "
	}
	s += e.Msg
	switch {
	case e.File != "" && e.Line > 0:
		return fmt.Sprintf("%s:%d: %s", e.File, e.Line, s)
	case e.File != "":
		return e.File + ": " + s
	}
	return "job: " + s
}

func fieldError(path, format string, a ...any) error {
	return &FieldError{Path: path, Msg: fmt.Sprintf(format, a...)}
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}
