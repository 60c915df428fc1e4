package telemetry

import (
	"cmp"
	"fmt"
	"html/template"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
)

// fact is a value with its name.
type fact struct{ Name, Value, Note string }

// table is a figure in words.
type table struct {
	Head []string
	Rows [][]string
}

// boardRow is a trial of the leaderboard.
type boardRow struct {
	Place, ID, Status, Bits, Params, Rung, Steps, Tokens, Seconds, Rate, Config, Reason string
	Final                                                                               bool
	Costs                                                                               []costCell
	// Values to sort by.
	BitsKey, ParamsKey, StepsKey, TokensKey, SecondsKey, RateKey float64
}

// costCell is an objective's value.
type costCell struct {
	Text string
	Key  float64
}

// page is what the template lays out.
type page struct {
	Title, Name, Status, StatusNote string
	Failed                          string // why the job failed
	Headline                        []fact
	Warnings                        []string

	Curves     table
	CurvesLeft int
	Convert    bool // training losses are shown in bits per byte

	Axes      int // parameters that differ between trials
	Board     []boardRow
	BoardLeft int
	Constant  []fact // parameters that all trials share
	Importance
	EffectTable table
	Anova       table    // effects alone and together
	Contours    []string // pairs of parameters
	AxisNames   []string

	Lineage      table // of a population
	Schedule     table // of its best
	Distribution table // of the scores of each rung
	Timeline     table
	Orders       table // what users asked of the search
	Front        table
	NoScore      int // trials without a score
	Unfair       bool

	// Of several objectives, or constraints on what generating costs:
	Several   bool
	Misses    string   // what the final model misses
	Bounds    []string // the constraints in words
	GoalNames []string // beside the score
	Goals     table
	Volume    table
	EnergyBy  string

	Data       []fact
	Reasons    []string
	Files      table
	Rules      table
	PII        table
	Parts      table
	DataNotes  []string
	Steps      table // where a step's time and bytes went
	Stages     table
	StagesNote string

	Plan      []string
	PlanTable table
	Samples   []Sample
	Winner    string
	Choices   []string // between the winner and what was made of it
	Law       string   // of size and text
	Heirs     table    // what the final training could have been of
	LawPoints table
	Config    table
	Links     []link
	ECharts   string

	plots  plots
	Lib    template.JS
	Script template.JS
	Plots  template.JS
	Style  template.CSS
	Policy string
}

type link struct{ Path, What string }

// value prints a parameter with at most six significant digits, as the space rounds them.
func value(v space.Value) string {
	if v.IsWord() || v.Num == math.Trunc(v.Num) {
		return v.String()
	}
	return strconv.FormatFloat(v.Num, 'g', 6, 64)
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

func newPage(f *folder, l limits) *page {
	p := &page{Name: f.name, ECharts: EChartsVersion}
	if f.spec.Name != "" {
		p.Name = f.spec.Name
	}
	p.Title = "autoglm report: " + p.Name
	st := f.state
	switch {
	case st.Finished:
		p.Status = "finished"
	case st.Failed != "":
		p.Status, p.Failed = "failed", st.Failed
	case st.Events > 0:
		p.Status, p.StatusNote = "not finished", "The build has not come to its end: this is what there is so far."
	default:
		p.Status, p.StatusNote = "unknown", "The journal was not read: times and decisions are left out."
	}

	entries := f.board.Trials
	all := entries
	if f.board.Final != nil {
		all = append([]journal.Entry{*f.board.Final}, entries...)
	}
	shown := entries[:min(len(entries), l.rows)]
	p.BoardLeft = len(entries) - len(shown)
	p.curves(f, all, l)
	p.trials(f, shown)
	p.Importance = MeasureImportance(comparable(st, f.board), f.spec.Seed)
	p.plots.Effects = slices.Clone(p.Effects)
	p.EffectTable.Head = []string{"parameter", "importance", "level of chance", ""}
	for i, e := range p.Effects {
		p.plots.Effects[i].Name = words(e.Name)
		mark := ""
		if e.Above {
			mark = "above chance"
		}
		p.EffectTable.Rows = append(p.EffectTable.Rows, []string{words(e.Name), fmt.Sprintf("%.3f", e.Share), fmt.Sprintf("%.3f", e.Chance), mark})
	}
	p.together()
	p.lineage(entries, st.Plan, l.rows)
	p.distribution(entries)
	p.timeline(st, shown)
	p.orders(st)
	p.fronts(entries)
	p.goals(f, shown)
	p.cleaning(f)
	p.stages(st)
	p.plan(&st.Spec, st.Plan)
	p.warm(st.Past)
	p.Samples = f.samples[:min(len(f.samples), 3)]
	for i, s := range p.Samples {
		p.Samples[i] = Sample{clip(s.Prompt, 2000), clip(s.Completion, 4000)}
	}
	p.winner(f)
	p.links(f)
	p.headline(f, all)
	p.Warnings = f.warnings
	return p
}

func (p *page) headline(f *folder, all []journal.Entry) {
	st := f.state
	score := fact{Name: "held-out bits per byte", Value: none, Note: "not measured yet"}
	p.plots.HeldOut = number(math.NaN())
	switch {
	case f.eval != nil:
		p.plots.HeldOut = number(f.eval.BitsPerByte)
		score.Value, score.Note = bits(f.eval.BitsPerByte), fmt.Sprintf("on %s that the model has not seen; lower is better", byteSize(f.eval.Bytes))
	case st.Score != nil:
		p.plots.HeldOut = number(st.Score.BitsPerByte())
		score.Value, score.Note = bits(st.Score.BitsPerByte()), fmt.Sprintf("on %s that the model has not seen; lower is better", byteSize(st.Score.Bytes))
	default:
		for _, e := range all {
			if e.Bits != nil {
				score = fact{Name: "bits per byte so far", Value: bits(*e.Bits), Note: "of trial " + e.ID + ", on a sample of the validation part"}
				break
			}
		}
	}
	p.Headline = append(p.Headline, score)
	if f.eval != nil && f.eval.Metric != "" {
		p.Headline = append(p.Headline, fact{words(f.eval.Metric), fmt.Sprintf("%.3f", f.eval.Value), count(f.eval.Examples, "held-out example", "held-out examples")})
	}
	if len(all) > 0 {
		p.Headline = append(p.Headline, fact{"parameters", size(all[0].Params), "of the model that did best"})
	}
	failed := 0
	for _, e := range f.board.Trials {
		if e.Status == "failed" {
			failed++
		}
	}
	note := "none failed"
	if failed > 0 {
		note = fmt.Sprintf("%d failed", failed)
	}
	p.Headline = append(p.Headline, fact{"trials", fmt.Sprint(len(f.board.Trials)), note})
	if st.Events > 0 {
		note = "of work"
		b := st.Spec.Budget
		switch {
		case b.WallClock > 0:
			note = "of a budget of " + seconds(b.WallClock.D().Seconds())
		case b.Trials > 0:
			note = "for a budget of " + count(b.Trials, "trial", "trials")
		case b.Tokens > 0:
			note = "for a budget of " + size(b.Tokens) + " tokens"
		}
		p.Headline = append(p.Headline, fact{"time", seconds(st.Active), note})
	}
	if f.data != nil {
		p.Headline = append(p.Headline, fact{"training text", byteSize(f.data.Parts["train"].Bytes), fmt.Sprintf("%s of %s rows kept; %s", size(f.data.Kept), size(f.data.Rows), f.data.Task)})
	}
}

func (p *page) curves(f *folder, all []journal.Entry, l limits) {
	p.plots.Curves, p.CurvesLeft = plotCurves(f, all, l)
	p.plots.X = "tokens"
	if f.state.Plan != nil && f.state.Plan.Unit == search.Seconds {
		p.plots.X = "seconds"
	}
	p.Curves.Head = []string{"trial", "status", "steps", "tokens", "time", "first loss", "last loss", "best validation"}
	p.Steps.Head = costHead()
	for _, c := range p.plots.Curves {
		row := []string{c.ID, c.Status, none, none, none, none, none, none}
		if n := len(c.Loss); n > 0 {
			row[2], row[3], row[4] = size(int64(c.Steps[n-1])), size(int64(c.Tokens[n-1])), seconds(float64(c.Seconds[n-1]))
			row[5], row[6] = short(float64(c.Loss[0])), short(float64(c.Loss[n-1]))
			if x := float64(c.Bits[n-1]); !math.IsInf(x, 0) && !math.IsNaN(x) {
				p.plots.Bits = true
			}
		}
		if len(c.Valid) > 0 {
			row[7] = bits(float64(slices.Min(c.Valid)))
		}
		p.Curves.Rows = append(p.Curves.Rows, row)
		p.Steps.Rows = append(p.Steps.Rows, c.cost.row(c.ID))
	}
	p.Convert = p.plots.Bits
}

func (p *page) trials(f *folder, shown []journal.Entry) {
	winner := f.state.Winner
	if f.board.Final != nil {
		winner = f.board.Final.Parent
	}
	p.plots.Axes = axes(shown)
	p.Axes = len(p.plots.Axes)
	differs := map[string]bool{}
	for _, a := range p.plots.Axes {
		p.AxisNames = append(p.AxisNames, a.Name)
		differs[a.column] = true
	}
	if f.board.Final != nil {
		t := plotOf(*f.board.Final, p.plots.Axes, true)
		p.plots.Final = &t
		row := boardRowOf(*f.board.Final, differs)
		row.Costs = costCells(&f.board, *f.board.Final)
		row.Final, row.Place = true, ""
		p.Board = append(p.Board, row)
	}
	rungs := map[int]bool{}
	for i, e := range shown {
		row := boardRowOf(e, differs)
		row.Costs = costCells(&f.board, e)
		row.Place = fmt.Sprint(i + 1)
		p.Board = append(p.Board, row)
		p.plots.Trials = append(p.plots.Trials, plotOf(e, p.plots.Axes, e.ID == winner))
		if e.Bits == nil {
			p.NoScore++
		} else {
			rungs[e.Rung] = true
		}
	}
	p.Unfair = len(rungs) > 1
	if len(shown) > 0 {
		for _, n := range sortedKeys(shown[0].Config) {
			if !differs[n] {
				p.Constant = append(p.Constant, fact{Name: words(n), Value: value(shown[0].Config[n])})
			}
		}
	}
}

func boardRowOf(e journal.Entry, differs map[string]bool) boardRow {
	r := boardRow{
		ID: e.ID, Status: e.Status, Bits: bits(bitsOf(e)), Params: size(e.Params), Rung: fmt.Sprint(e.Rung), Steps: size(int64(e.Steps)), Tokens: size(e.Tokens),
		Seconds: seconds(e.Seconds), Rate: size(int64(e.PerSecond)), Reason: clip(e.Reason, 400),
		BitsKey: bitsOf(e), ParamsKey: float64(e.Params), StepsKey: float64(e.Steps), TokensKey: float64(e.Tokens), SecondsKey: e.Seconds, RateKey: e.PerSecond,
	}
	if math.IsNaN(r.BitsKey) {
		r.BitsKey = 1e300
	}
	if e.Rung < 0 || e.ID == finalID {
		r.Rung = none
	}
	var parts []string
	for _, n := range sortedKeys(e.Config) {
		if differs[n] {
			parts = append(parts, n+"="+value(e.Config[n]))
		}
	}
	r.Config = strings.Join(parts, " ")
	return r
}

// costCells are the board's columns of an entry.
func costCells(b *journal.Leaderboard, e journal.Entry) []costCell {
	var out []costCell
	for _, c := range b.Columns() {
		cell := costCell{none, 1e300}
		if e.Cost != nil {
			cell.Key = job.Value(c, 0, *e.Cost)
			cell.Text = job.Amount(c, cell.Key)
		}
		out = append(out, cell)
	}
	return out
}

func (p *page) fronts(entries []journal.Entry) {
	var params, secs []costed
	byID := map[string]journal.Entry{}
	for _, e := range entries {
		if e.Bits != nil && !math.IsNaN(*e.Bits) && !math.IsInf(*e.Bits, 0) {
			byID[e.ID] = e
			params = append(params, costed{e.ID, float64(e.Params), *e.Bits})
			secs = append(secs, costed{e.ID, e.Seconds, *e.Bits})
		}
	}
	ids := func(cs []costed) []string {
		out := []string{}
		for _, c := range cs {
			out = append(out, c.ID)
		}
		return out
	}
	p.plots.Fronts = plotFronts{Params: ids(front(params)), Seconds: ids(front(secs))}
	p.Front.Head = []string{"trial", "parameters", "training time", "bits per byte", "best for its"}
	for _, e := range entries {
		var of []string
		if slices.Contains(p.plots.Fronts.Params, e.ID) {
			of = append(of, "parameters")
		}
		if slices.Contains(p.plots.Fronts.Seconds, e.ID) {
			of = append(of, "time")
		}
		if len(of) > 0 {
			p.Front.Rows = append(p.Front.Rows, []string{e.ID, size(e.Params), seconds(e.Seconds), bits(bitsOf(e)), strings.Join(of, ", ")})
		}
	}
}

func (p *page) cleaning(f *folder) {
	r := f.data
	if r == nil {
		return
	}
	p.Data = []fact{
		{"task", string(r.Task), fmt.Sprintf("confidence %.2f", r.Confidence)},
		{"rows read", size(r.Rows), ""},
		{"rows kept", size(r.Kept), ""},
		{"rows dropped", size(r.Dropped), "each listed in data/dropped.jsonl"},
		{"split", r.Split, ""},
	}
	p.Reasons = r.Reasons
	p.Files.Head = []string{"file", "format", "encoding", "size", "rows", "kept", "columns used"}
	for _, x := range r.Files {
		enc := x.Encoding
		if x.Compression != "" {
			enc = strings.TrimPrefix(enc+", "+x.Compression, ", ")
		}
		if enc == "" {
			enc = none
		}
		var roles []string
		for _, k := range sortedKeys(x.Roles) {
			roles = append(roles, k+" = "+x.Roles[k])
		}
		name := filepath.Base(x.File)
		if x.HeldOut {
			name += " (held out)"
		}
		p.Files.Rows = append(p.Files.Rows, []string{clip(name, 120), x.Format, enc, byteSize(x.Bytes), size(x.Rows), size(x.Kept), clip(strings.Join(roles, ", "), 200)})
	}
	if more := len(p.Files.Rows) - 100; more > 0 {
		p.Files.Rows = p.Files.Rows[:100]
		p.DataNotes = append(p.DataNotes, fmt.Sprintf("%d more files: see data/report.json.", more))
	}
	p.Rules.Head = []string{"rule", "rows dropped", "rows repaired"}
	for _, k := range sortedKeys(r.Rules) {
		n := r.Rules[k]
		if n == nil || n.Dropped+n.Repaired == 0 {
			continue
		}
		p.plots.Rules = append(p.plots.Rules, namedCounts{words(string(k)), n.Dropped, n.Repaired})
	}
	slices.SortStableFunc(p.plots.Rules, func(a, b namedCounts) int { return int(b.Dropped+b.Repaired) - int(a.Dropped+a.Repaired) })
	for _, n := range p.plots.Rules {
		p.Rules.Rows = append(p.Rules.Rows, []string{n.Name, fmt.Sprint(n.Dropped), fmt.Sprint(n.Repaired)})
	}
	p.PII = table{Head: []string{"seen, and left as it is", "rows"}}
	for _, x := range []struct {
		name string
		n    int64
	}{{"e-mail address", r.PII.Email}, {"phone number", r.PII.Phone}, {"payment card number", r.PII.Card}, {"IP address", r.PII.IP}} {
		p.PII.Rows = append(p.PII.Rows, []string{x.name, fmt.Sprint(x.n)})
	}
	p.Parts.Head = []string{"part", "examples", "documents", "text", "scored text"}
	for _, n := range []string{"train", "valid", "test"} {
		c, ok := r.Parts[n]
		if !ok {
			continue
		}
		p.Parts.Rows = append(p.Parts.Rows, []string{n, size(c.Examples), size(c.Documents), byteSize(c.Bytes), byteSize(c.ScoredBytes)})
		p.plots.Parts = append(p.plots.Parts, namedValue{n, number(c.Bytes), byteSize(c.Bytes)})
	}
	if r.HeldOut.Given {
		p.DataNotes = append(p.DataNotes, "The held-out part is the user's own.")
	}
	for _, w := range r.Warnings[:min(len(r.Warnings), 20)] {
		p.DataNotes = append(p.DataNotes, clip(w, 400))
	}
}

func (p *page) stages(st *journal.State) {
	var order []string
	for _, s := range job.Stages() {
		order = append(order, s.Name)
	}
	for _, n := range sortedKeys(st.StageSeconds) {
		if !slices.Contains(order, n) {
			order = append(order, n)
		}
	}
	p.Stages.Head = []string{"stage", "time", "share"}
	sum := 0.0
	for _, n := range order {
		sum += st.StageSeconds[n]
	}
	add := func(name string, s float64) {
		p.plots.Stages = append(p.plots.Stages, namedValue{name, number(s), seconds(s)})
		p.Stages.Rows = append(p.Stages.Rows, []string{name, seconds(s), fmt.Sprintf("%.1f %%", 100*s/max(st.Active, sum, 1e-9))})
	}
	for _, n := range order {
		if s, ok := st.StageSeconds[n]; ok {
			add(n, s)
		}
	}
	if rest := st.Active - sum; rest > 0.005*st.Active && st.Active > 0 {
		add("elsewhere", rest)
		p.StagesNote = "Elsewhere is the time of stages that have not ended and of the steps between stages."
	}
}

// resource in the plan's unit.
func resource(pl *search.Plan, x float64) string {
	switch pl.Unit {
	case search.Seconds:
		return seconds(x)
	case search.Tokens:
		return size(int64(x)) + " tokens"
	}
	return size(int64(x)) + " GFLOP"
}

func (p *page) plan(spec *job.Spec, pl *search.Plan) {
	if pl == nil {
		return
	}
	unit := func(x float64) string { return resource(pl, x) }
	if pl.Rate > 0 {
		p.Plan = append(p.Plan, fmt.Sprintf("The machine trained at %s GFLOP/s a device; %s side by side.", short(pl.Rate/1e9), count(pl.Slots, "trial", "trials")))
	}
	if pl.Unit == search.Seconds {
		p.Plan = append(p.Plan, fmt.Sprintf("Of the budget, %s for the search, %s for the final training, %s kept for evaluation and bundle.", seconds(pl.SearchSeconds), seconds(pl.FinalSeconds), seconds(pl.Reserve)))
	} else {
		p.Plan = append(p.Plan, fmt.Sprintf("%s for the final training.", unit(pl.FinalResource)))
	}
	p.Plan = append(p.Plan, fmt.Sprintf("Models of about %s parameters, at most %s; the final training passes %.1f times over the data.", size(pl.Params), size(pl.MaxParams), pl.Epochs))
	p.Plan = append(p.Plan, fmt.Sprintf("Strategy %s: %s.", spec.SearchStrategy, search.AboutStrategy(spec.SearchStrategy, pl.SearchTrials)))
	if s := pl.SchedulerFor(len(spec.Goals())); s != "" {
		p.Plan = append(p.Plan, fmt.Sprintf("Scheduler %s: %s.", s, search.AboutScheduler(s)))
	}
	p.PlanTable.Head = []string{"bracket", "rung", "trials", "training of each"}
	for i, b := range pl.Brackets {
		for k, r := range b.Resources {
			keep := none
			if k < len(b.Keep) {
				keep = fmt.Sprint(b.Keep[k])
			}
			p.PlanTable.Rows = append(p.PlanTable.Rows, []string{fmt.Sprint(i + 1), fmt.Sprint(k), keep, unit(r)})
		}
	}
}

// warm tells what the search began from.
func (p *page) warm(past []search.Past) {
	n := map[string]int{}
	for _, t := range past {
		n[filepath.Base(t.Source)]++
	}
	var from []string
	for _, source := range sortedKeys(n) {
		from = append(from, fmt.Sprintf("%s of %s", count(n[source], "trial", "trials"), clip(source, 100)))
	}
	if len(from) > 0 {
		p.Plan = append(p.Plan, fmt.Sprintf("Started warm from %s.", strings.Join(from[:min(len(from), 20)], ", ")))
	}
}

// choices says what became of the average of the winner's parameters, and of a vote.
func (p *page) choices(f *folder) {
	if r := f.state.Final; r != nil && r.Averaging != nil {
		a, what := r.Averaging, "The parameters are those of the training itself"
		if a.Taken {
			what = "The parameters are a moving average of the training's"
		}
		p.Choices = append(p.Choices, fmt.Sprintf("%s: on text kept for choosing the average has %s bits per byte and they have %s; the difference's standard error is %s, and the average is taken where it is better by twice that.", what, bits(a.Bits), bits(a.Against), bits(a.Noise)))
	}
	if r := f.state.Final; r != nil && r.Soup != nil {
		s, what := r.Soup, "No mean of the model's parameters and others of its line of parents was better by more than noise"
		if s.Taken {
			what = fmt.Sprintf("The parameters are the mean of those of %s", clip(strings.Join(s.Of, ", "), 200))
		}
		p.Choices = append(p.Choices, fmt.Sprintf("%s: on text kept for choosing the best mean has %s bits per byte and the model alone %s; the difference's standard error is %s.", what, bits(s.Bits), bits(s.Against), bits(s.Noise)))
	}
	e := f.ensemble
	if e == nil {
		return
	}
	if len(e.Members) == 0 {
		p.Choices = append(p.Choices, fmt.Sprintf("No vote of %s was better than the final model by more than noise.", count(e.Candidates, "model", "models")))
		return
	}
	var names []string
	for _, m := range e.Members {
		names = append(names, fmt.Sprintf("%.2f %s", m.Weight, clip(m.Model, 40)))
	}
	text := fmt.Sprintf("A vote is better than the final model alone (ensemble/): %s. On text kept for choosing it has %s bits per byte, the final model %s", strings.Join(names, " + "), bits(e.Valid.Bits), bits(e.Valid.Against))
	if h := e.HeldOut; h != nil {
		text += fmt.Sprintf("; on the held-out part %s and %s, with a standard error of %s", bits(h.Bits), bits(h.Against), bits(h.Noise))
	}
	p.Choices = append(p.Choices, text+". The bundle is the final model.")
}

func (p *page) winner(f *folder) {
	p.sizing(f.state.Sizing)
	p.choices(f)
	var e *journal.Entry
	switch {
	case f.board.Final != nil:
		e = f.board.Final
		p.Winner = "Trial " + e.Parent + ", trained to the end"
	case len(f.board.Trials) > 0 && f.board.Trials[0].Bits != nil:
		e = &f.board.Trials[0]
		p.Winner = "Trial " + e.ID + ", the best so far"
	default:
		return
	}
	p.Config.Head = []string{"parameter", "value"}
	for _, n := range sortedKeys(e.Config) {
		p.Config.Rows = append(p.Config.Rows, []string{words(n), value(e.Config[n])})
	}
}

func (p *page) links(f *folder) {
	for _, l := range []link{
		{"bundle/", "the model: transformers, vLLM and autoglm load it"},
		{"bundle/README.md", "model card"},
		{"bundle/eval.json", "held-out score"},
		{"leaderboard.json", "all trials"},
		{"job.json", "the job with all defaults"},
		{"data/report.json", "what the cleaning did"},
		{"data/dropped.jsonl", "each dropped row and why"},
		{"trials/", "configuration and metrics of each trial"},
	} {
		if _, err := os.Stat(filepath.Join(f.dir, filepath.FromSlash(l.Path))); err == nil {
			p.Links = append(p.Links, l)
		}
	}
}
