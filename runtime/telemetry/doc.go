// Package telemetry is what can be seen of a build: report.html, one file that
// needs no network, with the plots and tables of everything that was tried.
//
//	err := telemetry.WriteSamples(dir, []telemetry.Sample{{Prompt: "Call me", Completion: " Ishmael."}})
//	err = telemetry.WriteReport(dir, state) // writes dir/report.html
//
// WriteCSV, WriteParquet and WriteOptuna give the trials to other programs; ReadPast reads
// them, for a search that starts warm.
//
// Duties: the state is the journal's, and nobody applies events to it meanwhile.
// The folder may be in any condition that a build leaves behind: what is missing
// is left out of the report, what is damaged is named in it.
//
// Invariants: the page loads nothing and runs no script but its own two, which
// its content security policy names by their hashes. All text of data, configurations and
// errors goes through html/template or encoding/json. No number in it is NaN or
// infinite. Without JavaScript every figure but what the model of the scores expects
// over two parameters is still there as a table. It stays
// under MaxBytes, whatever the number of trials and the length of the training;
// what was left out for that is said in it.
//
// Vocabulary: a curve is one trial's records of training and validation;
// importance is how much worse a model of the scores predicts when one parameter
// is shuffled; alone and together (fANOVA) are the parts of that model's variance that
// parameters and pairs of them explain; the front holds the trials that no other beats in both cost and
// score; of several objectives the front of what holds the constraints is the journal's, its
// hypervolume the share of the box between the best and the worst that it dominates.
package telemetry
