// Package metric says how good answers are, by one registry for training and evaluation,
// and how far a model's probabilities may be believed. Policies of served models compare
// answers by its classes and words.
//
//	m, err := metric.Parse("rouge-l, bleu, exact-match")
//	value, err := m[0].Of(metric.Sample{Answers: []metric.Answer{{Got: "a cat", Want: "the cat"}}})
//
// Register adds one of your own, which a job's metric and eval --metrics then know by its
// name:
//
//	metric.Register(metric.Metric{Name: "length", About: "characters of answers", Of: func(s metric.Sample) (float64, error) { … }})
//
// All values are shares of 1 but for bits_per_byte: BLEU is sacrebleu's divided by 100.
// Answers are classes for accuracy, precision, recall and F1: see Class. Words are those
// of Words for ROUGE and token F1, sacrebleu's 13a for BLEU.
//
// Temperature fits the one number that makes a model's probabilities mean what they say,
// and CalibrationError tells how far they are from that.
package metric
