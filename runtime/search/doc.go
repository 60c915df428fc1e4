// Package search decides what to try next, for how long, and when to stop. It
// holds no goroutine, no clock and no network: results go in, decisions come out,
// and the same seed and results give the same decisions.
//
//	strat, _ := search.NewStrategy("evolutionary", sp, search.Options{Seed: 1, Initial: []space.Config{defaults}, Architecture: arch})
//	sched, err := search.NewScheduler(plan)  // or search.NewHyperband(brackets)
//	s := search.New(strat, sched, slots)
//	for !s.Done() {
//		decisions, err := s.Next()     // up to slots unfinished ones at a time
//		// run each decision's trial up to decision.Resource, then
//		s.Report(decision.Seq, search.Outcome{Score: bitsPerByte})
//	}
//	best := s.Ranking()[0]
//
// # How evolution, TPE and Hyperband share a trial
//
// Under "evolutionary" a trial's configuration has two halves. The
// architecture (layers, width, heads, FFN, context, vocabulary, …) is a child of
// the population: the best of a random tournament, mutated in one or two
// dimensions or crossed with a second parent; the oldest leave (regularised
// evolution, Real et al. 2019). The other half (learning rate, batch, dropout,
// weight decay, warm-up, optimiser) is drawn by a multivariate TPE (Bergstra et
// al. 2011, Falkner et al. 2018) over all results so far. Hyperband (Li et al.
// 2018) then rations the trial: it runs to the lowest rung, and only the best
// third of a rung goes on, from its checkpoint, to three times the resource.
// Both halves learn from every report; a report from a higher rung outranks one
// from a lower rung, since it got there by being better.
//
// # Which strategy
//
// auto mixes gp, forest and tpe. These learn most from few trials of any kind of space;
// gp where scores are smooth, forest where they are not, tpe is the fastest (under a
// millisecond a proposal after a thousand results) and the one that others are measured
// by; cma-es, de, dehb and nsga2 need hundreds, cma-es mostly numbers, and dehb is de for
// schedulers with rungs; gp, nsga2, tpe and
// forest take several objectives. Where a job knows what to begin with (Options.Initial),
// auto's first trials stay near it, as those of evolutionary do and every other one of
// gp's, forest's and tpe's, and where it has few
// trials (Options.Trials) all are evolutionary's. All hold constraints known beforehand (space.Constraint),
// propose nothing twice, and rank what misses a measured constraint
// (Result.Violations) below what holds it.
//
// # Several objectives and constraints
//
// An Outcome may carry Scores of several objectives, the main one first, and Violations of
// measured constraints. Strategies learn of both, but for de and cma-es (see Several),
// which look at the main score. A rung promotes those that hold the constraints by
// non-dominated fronts, of a front its ends and then what lies farthest from others; those
// that miss one come last, the least missed first. Front, Knee and Hypervolume are for who
// looks at the result. A rule knows the main score alone, and passes over what misses a
// constraint.
//
// # Schedulers and rules
//
// A Scheduler divides training among trials: between rungs it starts, promotes and
// passes over. hyperband and sha wait for a rung to fill; asha promotes as soon as a
// third of what is there is beaten, so that paused trials may go on later; pasha is
// asha that opens a higher rung only while the two highest disagree; none takes every
// trial to the end. Under pbt, population-based training (Jaderberg et al. 2017), as many
// trials as began train to the end, in intervals: after each the worst fifth give their
// places to forks of the best, which go on from their checkpoints with other training
// parameters. What is found is a schedule of parameters, and a fork's line of parents is it.
//
// A Rule stops a trial inside its rung. While a trial trains, the score of a small,
// fixed sample is taken at a few places, with the rate still up: its curve. median
// compares it with the others' means, wilcoxon with the best trial's curve, and curve
// continues it by power laws: the trial stops where its chance to end among those that
// go on falls below 5 %. A stopped trial is not promoted; the strategy learns where it
// stood.
//
// Plan.Odds tells what a schedule is likely to find, by playing it through over trials
// drawn at random.
//
// # Order
//
// Results may arrive in any order, yet decisions do not depend on it: decision k
// is made from the results of exactly the decisions 0 … k−slots, and of later
// ones only as far as the scheduler must wait for them. This makes a search with a budget in
// trials or tokens reproducible on any machine and any number of restarts, and costs
// little where trials of one rung are given equal resources. The same holds of rules: a decision carries
// what its rule compares with, and the trial's own curve decides the rest, wherever it
// is trained.
//
// Under a budget of wall clock results are learnt as they arrive (Search.ByArrival), so that no
// slot waits behind a long trial: what a trial gets done hangs on the clock anyhow. Then,
// and where devices join and the search is made wider, a decision names what it was made from, and is
// repeated as it was.
//
// # Standing
//
// Trials that stopped at a small resource and trials that went on stand in one order, by what
// each would have reached at the most: scores are carried up, rung by rung, by lines that are
// fitted to the trials which have both. Strategies learn from that, so that a poor trial that was
// promoted early does not stand before all that were not.
//
// # A warm start
//
// A search may begin with what earlier ones know (Options.Past), of other texts and, within
// reason, other spaces (FitPast). The best few of them are tried, every other proposal, and
// each becomes a random forest over the ranks of its trials, whose word counts as much as its
// ranks have agreed with those of the new search's own trials: weights by rank correlation,
// in the place of RGPE's ranking loss (Feurer et al. 2018). gp and forest then model what the
// past did not expect; under the others the past picks among several proposals. An earlier
// search that misleads weighs nothing after a few results.
//
// # What the final training is of
//
// When the search is over, FitLaw fits a law of size and text to the scores of all rungs and
// to the curves before them, with a bootstrap whose draws disagree where the trials say
// nothing. Laws.Choose foretells by it what the winner ends at with what is left of the
// budget, and what larger models would that its weights can be grown into, which read less
// in the same time. A larger one is taken where at least 80 % of the draws have it end
// better, by more than the trials can tell apart.
//
// # Orders
//
// A user may steer a search while it runs: Search.Order checks an order and takes it. What
// is enqueued is the next trial to start; what is narrowed leaves results outside known and
// proposes inside alone (space.Space.Narrow); an extension adds brackets on the same rungs
// (Plan.Extend); a trial that is stopped is not promoted, and the next best of its rung goes
// on in its place. An order that was taken says before which decision it stands and how many
// results were told by then. Repeat carries it out there, so that a search that was steered
// is repeated as well as any.
//
// Vocabulary: a trial is one configuration, a resource the amount of training it
// has had (in the units of the plan), a rung a resource level at which trials are
// compared, a bracket one run of successive halving, a decision "start" or
// "promote", a fork a trial that goes on where another stood, a curve the scores of a
// trial inside its rungs, a rule what stops it there.
package search
