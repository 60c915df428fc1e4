// Package space says what may be tried: named dimensions with their ranges, the
// conditions under which a dimension exists, one encoding of a configuration to
// a vector and back, and sampling, mutation and crossover.
//
//	s, err := space.New(
//		space.MustParse("lr", "log_uniform(1e-5, 1e-2)"),
//		space.MustParse("dim", "categorical([64, 128, 256])"),
//		space.MustParse("optimizer", "categorical([adamw, muon])"),
//		space.MustParse("muon_lr", "log_uniform(0.003, 0.05)").When("optimizer", "muon"),
//	)
//	c := s.Sample(rng)
//	v := s.Encode(c) // one coordinate a number, one-hot for a categorical
//
// A caller passes its own random source: the same source state gives the same
// configuration. Configs are maps; they are never changed after they are handed
// over.
//
// Invariants: Decode(Encode(c)) equals c for every c that the space produced;
// every config holds exactly the dimensions that are active in it.
//
// Vocabulary: a dimension is a parameter's name and range, a config one choice
// for each active dimension, a point the config's vector in the unit cube.
package space
