package journal

import (
	"encoding/json"
	"fmt"

	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// Kind of an event.
type Kind string

// Kinds, in the order in which a job meets them.
const (
	Created      Kind = "created"       // Spec, Past
	Resumed      Kind = "resumed"       //
	Tick         Kind = "tick"          // the job's clock, written now and then without sync
	StageStarted Kind = "stage_started" // Stage, Attempt
	StageDone    Kind = "stage_done"    // Stage
	StageFailed  Kind = "stage_failed"  // Stage, Attempt, Err, RetryIn
	Planned      Kind = "planned"       // Plan
	Decided      Kind = "decided"       // Decision
	Ordered      Kind = "ordered"       // Order of a user's, which the search has taken
	TrialRetried Kind = "trial_retried" // Trial report of an attempt that failed
	TrialEnded   Kind = "trial_ended"   // Trial report: the decision's outcome
	SearchClosed Kind = "search_closed" // no more decisions
	FinalStarted Kind = "final_started" // Trial names the winner, Sizing what it is trained as
	FinalEnded   Kind = "final_ended"   // Trial report of the final training
	Evaluated    Kind = "evaluated"     // Score, Placed
	Finished     Kind = "finished"
	Failed       Kind = "failed" // Err
)

// TrialReport is how one piece of a trial's training ended.
type TrialReport struct {
	Trial     string      `json:"trial"`
	Seq       int         `json:"seq"` // of the decision; −1 for the final training
	Attempt   int         `json:"attempt"`
	State     train.State `json:"state"`
	Bits      float64     `json:"bits_per_byte,omitempty"`
	Params    int64       `json:"params,omitempty"`
	PerSecond float64     `json:"tokens_per_s,omitempty"`
	Stopped   string      `json:"stopped,omitempty"` // why its rule or a user ended it; Bits is then the last of its curve, 0 where it has none
	Failed    bool        `json:"failed,omitempty"`
	Err       string      `json:"err,omitempty"`
	Cost      *train.Cost `json:"cost,omitempty"` // of generating with it, where the job asks
	// Of a final training: how the average of its parameters compares.
	Averaging *train.Comparison `json:"averaging,omitempty"`
	Soup      *train.Soup       `json:"soup,omitempty"` // and the mean of it and others'
}

// Placed says where work was done that may run on either kind of device.
type Placed struct {
	Device string `json:"device"` // ID of a GPU, or cpu
	Reason string `json:"reason"` // why there, in words
}

// Event is one record of a job's journal.
type Event struct {
	Kind     Kind             `json:"kind"`
	At       int64            `json:"at"`     // Unix milliseconds
	Active   float64          `json:"active"` // seconds that the job has worked
	Spec     *job.Spec        `json:"spec,omitempty"`
	Past     []search.Past    `json:"past,omitempty"` // of earlier searches, that this one starts warm from
	Stage    string           `json:"stage,omitempty"`
	Attempt  int              `json:"attempt,omitempty"`
	Plan     *search.Plan     `json:"plan,omitempty"`
	Decision *search.Decision `json:"decision,omitempty"`
	Order    *search.Order    `json:"order,omitempty"`
	Trial    *TrialReport     `json:"trial,omitempty"`
	Sizing   *search.Sizing   `json:"sizing,omitempty"`
	Score    *train.Score     `json:"score,omitempty"`
	Placed   *Placed          `json:"placed,omitempty"`
	RetryIn  float64          `json:"retry_in,omitempty"` // seconds until the next attempt
	Err      string           `json:"err,omitempty"`
}

// Encode is the event as a record.
func (e Event) Encode() ([]byte, error) { return json.Marshal(e) }

// Decode reads a record.
func Decode(record []byte) (Event, error) {
	var e Event
	if err := json.Unmarshal(record, &e); err != nil {
		return e, fmt.Errorf("journal: a record is not an event: %w", err)
	}
	return e, nil
}
