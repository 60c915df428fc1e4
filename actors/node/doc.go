// Package node wires a node: devices, workers, the journal and the Supervisor
// of a job, in one process. GPUs and engine torch are computed on in processes of
// their own (package worker), native ranks where the job's isolation says so.
//
//	n, err := node.Open(node.Options{Dir: "run1", Spec: spec})   // or a folder that a build left
//	err = n.Run(ctx)                                              // to the end, or to ctx's
//
// A job on GPUs scores its finished model on one that is quiet enough, else on
// processors; what is work for processors alone (cleaning, the tokenizer, token
// files, answers that are generated for the task's metric) takes those that nobody
// keeps busy: place.go. How long training takes is foretold by the measured time of
// a step: forecast.go. What it takes to generate with a model is foretold in the same way,
// and measured once for each shape by whoever runs rank 0 of its training: serving.go.
//
// CUDA in a worker process has never run: what runs here are the same requests,
// leases and processes with an engine of the processor in CUDA's place.
//
// Open locks the folder: two builds never share one. Run may be called once.
//
// Invariants: a cancelled ctx ends Run with ErrInterrupted and everything kept;
// what Open finds in a journal is never done again.
package node
