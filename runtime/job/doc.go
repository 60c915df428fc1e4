// Package job is the job: what its user asks for (Spec), how that is read from a
// file, and how the stages of its making follow from each other (Machine).
//
//	spec, err := job.Load("job.json")      // YAML, or JSON with // comments
//	spec.Budget.WallClock = job.Duration(10 * time.Minute)
//	err = spec.Validate()
//	m := job.NewMachine(job.StagesOf(spec), job.Resources{CPUs: 8})
//	for _, a := range m.Step(job.Event{Kind: job.Begin}) { … }
//
// A job has one objective or several (Spec.Goals), and constraints; those on what it costs
// to generate with a model are Spec.Bounds.
//
// Duties: a Machine's owner carries every Action out and reports its end as an
// Event; the Machine itself holds no clock and starts nothing.
//
// Invariants: a stage starts only when all that it needs are done; it is started
// at most Retries+1 times; after the job failed or finished nothing starts; stages
// that run take no more than there is, unless one alone does.
//
// Vocabulary: spec, stage, step (a stage that is the user's own program), need,
// attempt, backoff, event, action.
package job
