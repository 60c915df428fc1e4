package train

// Cost is what it takes to generate with a model, one text at a time. It is a matter of
// the shape alone, whatever the weights.
type Cost struct {
	Latency float64 `json:"latency_s" msgpack:"latency_s"`       // seconds of a generated token, the median; 0 was not measured
	Memory  int64   `json:"memory_bytes" msgpack:"memory_bytes"` // resident, the cache of a full context included
	Size    int64   `json:"size_bytes" msgpack:"size_bytes"`     // of the bundle's weights and tokenizer
	Energy  float64 `json:"energy_j" msgpack:"energy_j"`         // joules of a generated token; 0 was not measured
	// EnergyBy says where Energy is from: the counter that was read, or what was assumed.
	EnergyBy string `json:"energy_by,omitempty" msgpack:"energy_by"`
	Threads  int    `json:"threads" msgpack:"threads"` // that generated
	// Error is 1 − the task's metric, the mean over so many Answers that were generated; nil
	// where the job does not ask.
	Error   *float64 `json:"task_error,omitempty" msgpack:"task_error"`
	Answers int      `json:"answers,omitempty" msgpack:"answers"`
}

// Serving is how a trial's cost is found once it has trained.
type Serving struct {
	Threads int   `msgpack:"threads"` // to generate with; 0 asks for no cost
	Timed   bool  `msgpack:"timed"`   // tokens are timed
	Answers bool  `msgpack:"answers"` // answers are generated, for Cost.Error
	Known   *Cost `msgpack:"known"`   // of the same shape, measured before: it is not measured again
}
