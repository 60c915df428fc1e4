package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/actors/driver"
	"github.com/open-autoglm/autoglm/actors/node"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// view shows a build, here or on a cluster: a live table on a terminal, plain lines
// elsewhere, JSON events when asked. Its methods are safe for concurrent use.
type view struct {
	dir  string // empty for a job of a cluster
	job  string // of a cluster: its id
	json bool
	live bool
	out  io.Writer

	mu     sync.Mutex
	start  time.Time
	base   float64 // active seconds at start
	rests  bool    // the job waits, or is over
	last   driver.Update
	stages map[string]job.Status     // as far as they have begun
	rates  map[int]train.StepMetrics // newest by decision
	trial  map[int]string
	lines  int // that the live block takes
	ticker *time.Ticker
	stop   chan struct{}
	closed bool
	shown  map[int]time.Time // plain mode: last line of each trial's progress
}

func newView(dir string, asJSON bool) *view {
	v := &view{dir: dir, json: asJSON, out: os.Stdout, rates: map[int]train.StepMetrics{}, trial: map[int]string{}, shown: map[int]time.Time{}, stages: map[string]job.Status{}, start: time.Now()}
	v.live = !asJSON && term.IsTerminal(int(os.Stdout.Fd())) && os.Getenv("TERM") != "dumb"
	return v
}

// begin is called once the folder is open.
func (v *view) begin(n *node.Node) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.start, v.base = time.Now(), n.State().Active
	for stage := range n.State().Done {
		v.stages[stage] = job.Done
	}
	if v.json {
		return
	}
	what := "Building in"
	if n.State().Events > 0 {
		what = "Going on in"
	}
	fmt.Fprintf(v.out, "%s %s on %d device(s): %s\n", what, v.dir, len(n.Devices()), n.Devices()[0].Model)
	v.animate()
}

// animate repaints the live block until close; the caller holds the lock.
func (v *view) animate() {
	if v.live {
		v.ticker, v.stop = time.NewTicker(250*time.Millisecond), make(chan struct{})
		go func() {
			for {
				select {
				case <-v.ticker.C:
					v.mu.Lock()
					v.draw()
					v.mu.Unlock()
				case <-v.stop:
					return
				}
			}
		}()
	}
}

// close ends the live block.
func (v *view) close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return
	}
	v.closed = true
	if v.ticker != nil {
		v.ticker.Stop()
		close(v.stop)
		v.draw()
	}
}

// Notice implements driver.View: what the build outlived, above the live block.
func (v *view) Notice(text string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.json {
		v.line(map[string]string{"event": "notice", "text": text})
		return
	}
	if v.live && v.lines > 0 {
		fmt.Fprintf(v.out, "\x1b[%dA\x1b[J", v.lines)
		v.lines = 0
	}
	fmt.Fprintln(os.Stderr, "autoglm:", text)
}

func (v *view) active() float64 {
	if v.rests {
		return v.base
	}
	return v.base + time.Since(v.start).Seconds()
}

// Update implements driver.View.
func (v *view) Update(u driver.Update) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.last = u
	e := u.Event
	if v.job != "" { // what was missed comes first: the clock is the job's
		v.base, v.start = e.Active, time.UnixMilli(min(e.At, time.Now().UnixMilli()))
	}
	switch e.Kind {
	case journal.StageStarted:
		v.stages[e.Stage] = job.Running
	case journal.StageDone:
		v.stages[e.Stage] = job.Done
	case journal.StageFailed:
		v.stages[e.Stage] = job.Failed
	case journal.Decided:
		v.trial[e.Decision.Seq] = e.Decision.Trial
	case journal.TrialEnded:
		delete(v.rates, e.Trial.Seq)
	case journal.FinalEnded:
		delete(v.rates, -1)
	}
	switch {
	case v.json:
		v.event(e)
	case !v.live:
		v.plain(u)
	}
}

// Progress implements driver.View.
func (v *view) Progress(p actors.Progress) {
	v.mu.Lock()
	defer v.mu.Unlock()
	m := p.Metrics
	if old, ok := v.rates[p.Seq]; ok && m.Loss == 0 {
		old.Bits = m.Bits
		m = old
	} else if ok && m.Bits == 0 {
		m.Bits = old.Bits
	}
	v.rates[p.Seq], v.trial[p.Seq] = m, p.Trial
	switch {
	case v.json:
		v.line(struct {
			Event string `json:"event"`
			Trial string `json:"trial"`
			train.StepMetrics
		}{"progress", p.Trial, p.Metrics})
	case !v.live && p.Trial == "final" && m.Loss > 0 && time.Since(v.shown[p.Seq]) > 5*time.Second:
		v.shown[p.Seq] = time.Now()
		fmt.Fprintf(v.out, "%6s  final     step %d, loss %.3f, %.0f tokens/s%s\n", clock(v.active()), m.Step, m.Loss, m.PerSecond, waited(m))
	}
}

func (v *view) line(x any) {
	if b, err := json.Marshal(x); err == nil {
		fmt.Fprintf(v.out, "%s\n", b)
	}
}

func (v *view) event(e journal.Event) {
	v.line(struct {
		Name string `json:"event"`
		Dir  string `json:"dir,omitempty"`
		Job  string `json:"job,omitempty"`
		journal.Event
	}{string(e.Kind), v.dir, v.job, e})
}

// plain prints a line for what a person wants to know.
func (v *view) plain(u driver.Update) {
	e := u.Event
	say := func(format string, a ...any) {
		fmt.Fprintf(v.out, "%6s  %s\n", clock(e.Active), fmt.Sprintf(format, a...))
	}
	switch e.Kind {
	case journal.StageStarted:
		again := ""
		if e.Attempt > 1 {
			again = fmt.Sprintf(" (attempt %d)", e.Attempt)
		}
		say("%s%s", e.Stage, again)
	case journal.StageFailed:
		again := ""
		if e.RetryIn > 0 {
			again = fmt.Sprintf("; again in %s", time.Duration(e.RetryIn*float64(time.Second)).Round(time.Millisecond))
		}
		say("%s failed: %s%s", e.Stage, firstLine(e.Err), again)
		if _, step := u.State.Spec.Step(e.Stage); step {
			for l := range strings.Lines(e.Err[len(firstLine(e.Err)):]) {
				if l = strings.TrimSpace(l); l != "" {
					fmt.Fprintf(v.out, "        %s\n", l)
				}
			}
		}
	case journal.Planned:
		for _, l := range planLines(&u.State.Spec, *e.Plan) {
			say("%s", l)
		}
	case journal.Decided:
		d := e.Decision
		how := string(d.Action)
		if d.Action == search.Fork {
			how = fmt.Sprintf("fork of %s in place of %s:", d.Inherit, d.Replaces)
		}
		why := ""
		if d.Reason == search.EnqueuedByUser || d.Reason == search.FromPast {
			why = "  (" + d.Reason + ")"
		}
		say("%-9s %s %s%s", d.Trial, how, summary(d.Config), why)
	case journal.Ordered:
		say("ordered   %s%s", ordered(*e.Order), after(", by ", e.Order.By))
		if p := u.State.Plan; e.Order.Kind == search.Extend && p != nil && p.Unit == search.Seconds {
			say("time: %s search, %s final training", clock(p.SearchSeconds), clock(p.FinalSeconds))
		}
	case journal.TrialEnded:
		if e.Trial.Failed {
			say("%-9s failed: %s", e.Trial.Trial, firstLine(e.Trial.Err))
			return
		}
		if e.Trial.Stopped != "" {
			say("%-9s stopped after %d steps: %s", e.Trial.Trial, e.Trial.State.Step, e.Trial.Stopped)
			return
		}
		say("%-9s %.4f bits per byte after %d steps, %.0f tokens/s%s; best %s", e.Trial.Trial, e.Trial.Bits, e.Trial.State.Step, e.Trial.PerSecond, costWords(&u.Board, e.Trial.Cost), bestOf(u.Board))
	case journal.TrialRetried:
		say("%-9s attempt %d failed: %s", e.Trial.Trial, e.Trial.Attempt, firstLine(e.Trial.Err))
	case journal.FinalStarted:
		say("final     trains %s to the end", e.Trial.Trial)
		if e.Sizing != nil {
			say("final     %s", e.Sizing.Why)
		}
	case journal.FinalEnded:
		how := ""
		if a := e.Trial.Averaging; a != nil {
			what := "its last parameters are kept"
			if a.Taken {
				what = "the average of its parameters is taken"
			}
			how = fmt.Sprintf("; %s: averaged %.4f bits per byte, without %.4f, noise %.4f", what, a.Bits, a.Against, a.Noise)
		}
		if p := e.Trial.Soup; p != nil && p.Taken {
			how += fmt.Sprintf("; the mean of %s is taken: %.4f bits per byte, without %.4f, noise %.4f", strings.Join(p.Of, ", "), p.Bits, p.Against, p.Noise)
		}
		say("final     trained, %d steps%s%s", e.Trial.State.Step, costWords(&u.Board, e.Trial.Cost), how)
	case journal.Evaluated:
		where := ""
		if p := e.Placed; p != nil {
			where = fmt.Sprintf(", scored on %s: %s", p.Device, p.Reason)
		}
		say("held-out  %.4f bits per byte on %d bytes%s", e.Score.BitsPerByte(), e.Score.Bytes, where)
	}
}

func firstLine(s string) string {
	if i := strings.IndexByte(s, '\n'); i >= 0 {
		return s[:i]
	}
	return s
}

func bestOf(b journal.Leaderboard) string {
	best := b.Choice()
	if best == nil {
		return "–"
	}
	s := fmt.Sprintf("%s %.4f", best.ID, *best.Bits)
	for _, c := range b.Columns() {
		s += ", " + amount(c, *best)
	}
	return strings.TrimRight(s+" "+best.Mark(), " ")
}

// summary is a configuration in a line.
func summary(c space.Config) string {
	a := space.Arch(c)
	rate := fmt.Sprintf("lr %.2g", c.Float(space.LR))
	if c.Word(space.Optimizer) == "muon" {
		rate += fmt.Sprintf(" muon %.2g", c.Float(space.MuonLR))
	}
	return fmt.Sprintf("%-6s d%d L%d h%d/%d ctx%d V%d %s b%d drop %.2f", size(a.Params()), a.Dim, a.Layers, a.Heads, a.KVHeads, a.Context, a.Vocab, rate, c.Int(space.Batch), c.Float(space.Dropout))
}

// size prints a number of parameters.
func size(n int64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.1fB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.1fM", float64(n)/1e6)
	}
	return fmt.Sprintf("%.0fk", float64(n)/1e3)
}

// planLines says what a plan will do.
func planLines(spec *job.Spec, p search.Plan) []string {
	var out []string
	unit := func(x float64) string {
		switch p.Unit {
		case search.Seconds:
			return fmt.Sprintf("%.1fs", x)
		case search.Tokens:
			return fmt.Sprintf("%.0f tokens", x)
		}
		return fmt.Sprintf("%.0f GFLOP", x)
	}
	if p.Rate > 0 {
		out = append(out, fmt.Sprintf("this machine trains such models at %.0f GFLOP/s a device; %d trials side by side", p.Rate/1e9, p.Slots))
	}
	out = append(out, fmt.Sprintf("strategy: %s: %s", spec.SearchStrategy, search.AboutStrategy(spec.SearchStrategy, p.SearchTrials)))
	if s := p.SchedulerFor(len(spec.Goals())); s != "" {
		out = append(out, fmt.Sprintf("scheduler: %s: %s", s, search.AboutScheduler(s)))
	}
	for _, b := range p.Brackets {
		var rungs []string
		for i, r := range b.Resources {
			rungs = append(rungs, fmt.Sprintf("%d × %s", b.Keep[i], unit(r)))
		}
		out = append(out, "search: "+strings.Join(rungs, " → ")+" of training each")
	}
	if p.Unit == search.Seconds {
		out = append(out, fmt.Sprintf("time: %s search, %s final training, %s evaluation and bundle", clock(p.SearchSeconds), clock(p.FinalSeconds), clock(p.Reserve)))
	} else {
		out = append(out, "final training: "+unit(p.FinalResource))
	}
	return append(out, fmt.Sprintf("models: about %s parameters, at most %s; the final training passes %.1f times over the data", size(p.Params), size(p.MaxParams), p.Epochs))
}

// draw repaints the live block; the caller holds the lock.
func (v *view) draw() {
	width, height, err := term.GetSize(int(os.Stdout.Fd()))
	if err != nil || width < 20 {
		width, height = 80, 24
	}
	var rows []string
	budget := v.last.State.Spec.Budget.WallClock.D().Seconds()
	left := ""
	if budget > 0 {
		left = ", " + clock(budget-v.active()) + " left"
	}
	graph := job.Stages()
	if v.last.State.Spec.Validate() == nil {
		graph = job.StagesOf(v.last.State.Spec)
	}
	var stages []string
	for _, s := range graph {
		mark, ok := map[job.Status]string{job.Running: "▶ ", job.Done: "✓ ", job.Failed: "✗ "}[v.stages[s.Name]]
		if !ok {
			mark = "· "
		}
		stages = append(stages, mark+s.Name)
	}
	rows = append(rows, strings.Join(stages, "  "), fmt.Sprintf("%s%s   best %s", clock(v.active()), left, bestOf(v.last.Board)))
	if p := v.last.State.Plan; p != nil {
		rows = append(rows, planLines(&v.last.State.Spec, *p)...)
	}
	if orders := v.last.State.Orders; len(orders) > 0 {
		rows = append(rows, fmt.Sprintf("ordered: %s", ordered(orders[len(orders)-1])))
	}
	if trials := v.last.Board.Trials; len(trials) > 0 {
		rows = append(rows, fmt.Sprintf("%-6s %-8s %4s %8s %9s %5s%s  configuration", "trial", "status", "rung", "bits/B", "tokens/s", "ETA", costHead(&v.last.Board)))
		room := max(3, height-len(rows)-3)
		for i, t := range trials {
			if i >= room {
				rows = append(rows, fmt.Sprintf("… %d more", len(trials)-i))
				break
			}
			rows = append(rows, v.row(t))
		}
	}
	if f := v.last.Board.Final; f != nil {
		rows = append(rows, v.row(*f))
	}
	var b strings.Builder
	if v.lines > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", v.lines)
	}
	for _, r := range rows {
		b.WriteString("\x1b[2K" + clip(r, width-1) + "\n")
	}
	for range v.lines - len(rows) {
		b.WriteString("\x1b[2K\n")
	}
	v.lines = max(v.lines, len(rows))
	fmt.Fprint(v.out, b.String())
}

// row is one trial of the live table.
func (v *view) row(t journal.Entry) string {
	bits, eta := "–", ""
	if t.Bits != nil {
		bits = fmt.Sprintf("%.4f", *t.Bits)
	}
	rate := t.PerSecond
	for seq, id := range v.trial {
		m, ok := v.rates[seq]
		if id != t.ID || !ok {
			continue
		}
		rate = m.PerSecond
		if t.Bits == nil && m.Bits > 0 {
			bits = fmt.Sprintf("%.3f?", m.Bits)
		} else if t.Bits == nil {
			bits = fmt.Sprintf("loss %.2f", m.Loss)
		}
		if p := v.last.State.Plan; p != nil && p.Unit == search.Seconds && seq >= 0 && seq < len(v.last.State.Decisions) {
			eta = clock(v.last.State.Decisions[seq].Resource - m.Seconds)
		} else if p != nil && p.Unit == search.Seconds {
			eta = clock(v.last.State.Spec.Budget.WallClock.D().Seconds() - v.active() - p.Reserve)
		}
	}
	return fmt.Sprintf("%-6s %-8s %4s %8s %9.0f %5s%s  %s", t.ID, t.Status, rung(t), bits, rate, eta, costRow(&v.last.Board, t), lineOf(t)+summary(t.Config))
}

// rung is a trial's; the final training is on none.
func rung(t journal.Entry) string {
	if t.ID == "final" {
		return "–"
	}
	return strconv.Itoa(max(t.Rung, 0))
}

// lineOf says of a fork whose.
func lineOf(t journal.Entry) string {
	if t.ForkedAt == 0 {
		return ""
	}
	return "from " + t.Parent + ": "
}

// clip cuts a line to a number of columns, each rune counted as one.
func clip(s string, width int) string {
	r := []rune(s)
	if len(r) > width {
		return string(r[:width])
	}
	return s
}

func (v *view) interrupted() {
	resume := "autoglm resume " + v.dir
	if len(v.last.State.Spec.Steps) > 0 {
		resume += " --allow-steps"
	}
	if v.json {
		v.line(map[string]string{"event": "interrupted", "dir": v.dir, "resume": resume})
	}
	fmt.Fprintf(os.Stderr, "Interrupted; everything is kept. Go on with:\n  %s\n", resume)
}

// waited says how much of the time a rank only waited for the others' gradients.
func waited(m train.StepMetrics) string {
	if m.SyncBytes == 0 {
		return ""
	}
	line := fmt.Sprintf(", %.1f%% waiting for the ring", 100*m.SyncShare)
	if m.Compression != "" {
		line += fmt.Sprintf(", gradients to %.0f%% (%s)", 100*float64(m.WireBytes)/float64(m.SyncBytes), m.Compression)
	}
	return line
}
