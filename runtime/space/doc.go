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
//	s, err = s.Forbid("optimizer=muon dim>128")
//	c, err := s.Sample(rng)
//	v := s.Encode(c) // one coordinate a number, one-hot for a categorical
//	p := s.Point(c)  // one coordinate a dimension, NaN where it is not there
//
// A condition is on a choice or a whole number, and what depends on a dimension that
// is not there is not there either. PerLayer makes a choice of each layer's own:
//
//	dims := append(dims, space.PerLayer(space.MustParse("heads", "[2, 4]"), "layers", 12)...)
//
// A space can be narrowed to parts of its dimensions while it is searched. Coordinates stay,
// so that what was learnt outside keeps its place:
//
//	p, err := d.Part("1e-3..1e-2")
//	s = s.Narrow(p)
//
// A caller passes its own random source: the same source state gives the same
// configuration. Configs are maps; they are never changed after they are handed
// over.
//
// Invariants: Decode(Encode(c)) and Config(Point(c)) equal c for every c that the
// space produced;
// every config holds exactly the dimensions that are active in it.
//
// Vocabulary: a dimension is a parameter's name and range, a config one choice
// for each active dimension, a point the config's vector in the unit cube.
package space
