package actors

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
	"github.com/open-autoglm/autoglm/runtime/train"
)

var rewrite = flag.Bool("rewrite", false, "write the conversations of testdata anew")

// Each file of testdata is a script, a line of dashes, and the conversation that
// the actors had: every message as its receiver met it, and every event that the
// Supervisor committed, with the second at which it happened. All actors run on
// the test's goroutine, one mailbox after the other, and their work takes the
// bubble's time, so the order is always the same.
//
//	workers N              devices, and trials side by side (default 1)
//	trials N               of the first rung; half of them go on to the second (default 2)
//	population N           members of pbt, which has three intervals, instead of trials
//	clock S                a plan in seconds whose search may take S (default: in tokens)
//	fail WHAT HOW…         the runs of a trial or stage end so, one after the other: nan, panic, error, full, damaged, stop, hang, ok
//	panic WHO MESSAGE N    the actor panics in place of its Nth such message
//	full KIND N            the journal can't be written at the Nth event of that kind
//	interrupt KIND N       Ctrl-C after that event
//	sick KIND N            the first device that is left turns sick after that event
//	join KIND N            another node's worker enlists after that event, once more where the
//	                       Supervisor starts anew, and is gone after GONE's
//	gone KIND N
//	order KIND N WORDS…    a user steers the search so after that event
//	speeds N…              tokens a second of the final training on 1, 2, … workers, which takes 8 s then
//	step NAME WORD=VALUE…  a step of the user's: needs, before, timeout, retries, backoff, takes (its time)
//	costs LIMIT MS…        latency is an objective, and at most LIMIT ms: of the 1st, 2nd, … trial it is MS
//	resume                 once it has ended, go on
func TestConversations(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no conversations in testdata: %v", err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			head, want, _ := strings.Cut(string(raw), "----\n")
			s, err := parseScript(head)
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			got := s.play(t)
			if *rewrite {
				if err := os.WriteFile(path, []byte(head+"----\n"+got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != want {
				t.Errorf("%s: the conversation differs at %s\nif it should, run: go test ./actors -run TestConversations -rewrite", path, firstDifference(got, want))
			}
		})
	}
}

func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range g {
		if i >= len(w) || g[i] != w[i] {
			return fmt.Sprintf("line %d after the dashes:\n got  %s\n want %s", i+1, g[i], strings.Join(w[min(i, len(w)):min(i+1, len(w))], ""))
		}
	}
	return fmt.Sprintf("its end: %d more lines were wanted", len(w)-len(g))
}

// nth picks the nth thing of a name.
type nth struct {
	who, what string
	n         int
}

func (x *nth) hit(who, what string) bool {
	if x.n > 0 && x.who == who && x.what == what {
		x.n--
		return x.n == 0
	}
	return false
}

type script struct {
	workers, trials  int
	population       int
	clock            float64
	fail             map[string][]string
	panics           []*nth
	full, interrupts []*nth
	sick             []*nth
	joins, leaves    []*nth
	orders           []*nth
	given            [][]string // by orders
	speeds           []float64
	costs            []float64 // the limit, and of each trial
	resume           bool
	steps            []job.Step
	takes            map[string]time.Duration // by step
}

func parseScript(text string) (*script, error) {
	s := &script{workers: 1, trials: 2, fail: map[string][]string{}, takes: map[string]time.Duration{}}
	for i, line := range strings.Split(text, "\n") {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] == "#" {
			continue
		}
		last, err := strconv.Atoi(f[len(f)-1])
		switch {
		case f[0] == "resume":
			s.resume, err = true, nil
		case f[0] == "fail" && len(f) > 2:
			s.fail[f[1]], err = f[2:], nil
		case f[0] == "step" && len(f) > 1:
			err = s.parseStep(f[1], f[2:])
		case f[0] == "order" && len(f) > 3:
			var n int
			n, err = strconv.Atoi(f[2])
			s.orders, s.given = append(s.orders, &nth{"", f[1], n}), append(s.given, f[3:])
		case f[0] == "workers":
			s.workers = last
		case f[0] == "trials":
			s.trials = last
		case f[0] == "population":
			s.population = last
		case f[0] == "clock":
			s.clock = float64(last)
		case f[0] == "panic" && len(f) == 4:
			s.panics = append(s.panics, &nth{f[1], f[2], last})
		case f[0] == "full" && len(f) == 3:
			s.full = append(s.full, &nth{"", f[1], last})
		case f[0] == "interrupt" && len(f) == 3:
			s.interrupts = append(s.interrupts, &nth{"", f[1], last})
		case f[0] == "join" && len(f) == 3:
			s.joins = append(s.joins, &nth{"", f[1], last})
		case f[0] == "gone" && len(f) == 3:
			s.leaves = append(s.leaves, &nth{"", f[1], last})
		case f[0] == "speeds" || f[0] == "costs":
			list := map[string]*[]float64{"speeds": &s.speeds, "costs": &s.costs}[f[0]]
			for _, x := range f[1:] {
				n, err := strconv.ParseFloat(x, 64)
				if err != nil {
					return nil, err
				}
				*list = append(*list, n)
			}
		case f[0] == "sick" && len(f) == 3:
			s.sick = append(s.sick, &nth{"", f[1], last})
		default:
			err = errors.New("no such line")
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %q: %w", i+1, line, err)
		}
	}
	return s, nil
}

func (s *script) parseStep(name string, words []string) error {
	t := job.Step{Name: name, Run: job.Command{"true"}}
	for _, w := range words {
		k, v, _ := strings.Cut(w, "=")
		var err error
		switch k {
		case "needs":
			t.Needs = strings.Split(v, ",")
		case "before":
			t.Before = strings.Split(v, ",")
		case "timeout":
			err = t.Timeout.UnmarshalText([]byte(v))
		case "backoff":
			err = t.Backoff.UnmarshalText([]byte(v))
		case "retries":
			t.Retries, err = strconv.Atoi(v)
		case "takes":
			s.takes[name], err = time.ParseDuration(v)
		default:
			err = errors.New(w + "?")
		}
		if err != nil {
			return err
		}
	}
	s.steps = append(s.steps, t)
	return nil
}

// stage is where a script is played: the actors' Work, Executor, Log and clock.
type stage struct {
	*script
	out   strings.Builder
	begun time.Time
	log   [][]byte
	end   bool
	send  func(message any) // to the Supervisor
	harm  func()            // makes the next device sick
	join  func()            // another node's worker
	leave func()
	again func() // guests say so once more
	user  *actor.PID

	mu    sync.Mutex
	queue []func()
	wake  chan struct{}
}

// Schedule and Throughput implement actor.Dispatcher: mailboxes wait for play.
func (g *stage) Schedule(run func()) {
	g.mu.Lock()
	g.queue = append(g.queue, run)
	g.mu.Unlock()
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

func (g *stage) Throughput() int { return 1 << 20 }

// settle runs mailboxes until all are empty and all work waits for its time.
func (g *stage) settle() {
	for {
		synctest.Wait()
		g.mu.Lock()
		if len(g.queue) == 0 {
			g.mu.Unlock()
			return
		}
		run := g.queue[0]
		g.queue = g.queue[1:]
		g.mu.Unlock()
		run()
	}
}

func (s *script) play(t *testing.T) string {
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	// The system's own goroutines live outside of the bubble, as long as the process.
	system := actor.NewActorSystem(actor.WithLoggerFactory(func(*actor.ActorSystem) *slog.Logger { return quiet }), actor.WithDeadLetterRequestLogging(false))
	defer system.Shutdown()
	g := &stage{script: s}
	synctest.Test(t, func(t *testing.T) {
		g.begun, g.wake = time.Now(), make(chan struct{}, 1)
		strategy := actor.WithGuardian(actor.NewOneForOneStrategy(10, time.Minute, actor.DefaultDecider))
		here := actor.WithDispatcher(g)
		children := actor.WithSpawnMiddleware(func(next actor.SpawnFunc) actor.SpawnFunc {
			return func(sys *actor.ActorSystem, id string, props *actor.Props, parent actor.SpawnerContext) (*actor.PID, error) {
				return next(sys, id, props.Configure(here), parent)
			}
		})
		hooks := Hooks{Receive: g.heard}
		var workers []*actor.PID
		for i := range s.workers {
			d := device.Device{ID: fmt.Sprintf("cpu:%d", i)}
			workers = append(workers, system.Root.Spawn(WorkerProps(d, g.execute, nil, hooks, strategy, here)))
		}
		hurt := 0
		g.harm = func() {
			if hurt < len(workers) {
				system.Root.Send(workers[hurt], &Sick{Why: "XID 79"})
			}
			hurt++
		}
		var guests []*actor.PID
		g.join = func() {
			w := system.Root.Spawn(WorkerProps(device.Device{ID: fmt.Sprintf("guest:%d", len(guests))}, g.execute, nil, hooks, strategy, here))
			guests = append(guests, w)
			for range 2 { // it says so again and again
				g.send(&Enlist{Workers: []*actor.PID{w}})
			}
		}
		g.again = func() {
			for _, w := range guests {
				g.send(&Enlist{Workers: []*actor.PID{w}})
			}
		}
		g.leave = func() { system.Root.Stop(guests[0]) }
		g.user = system.Root.Spawn(actor.PropsFromFunc(func(ctx actor.Context) {
			if m, ok := ctx.Message().(*Steered); ok {
				g.note("supervisor → user  Steered %s", cmp.Or(reason(m.Err), m.Order.String()))
			}
		}, here))
		epoch := uint64(0)
		spec := job.Default()
		spec.Steps, spec.Budget = s.steps, job.Budget{Tokens: 20000}
		if s.costs != nil {
			spec.Objectives = []string{job.BitsPerByte, job.Latency}
			spec.Constraints.MaxLatency = job.Duration(s.costs[0] * float64(time.Millisecond))
		}
		if err := spec.Validate(); err != nil {
			t.Fatal(err)
		}
		cfg := SupervisorConfig{
			Spec: spec, Log: g, Work: g, Workers: workers,
			TrialConfig: TrialConfig{Epochs: func() uint64 { epoch++; return epoch }, Hooks: hooks},
			Clock:       func() time.Duration { return time.Since(g.begun) }, Now: time.Now, Tick: time.Second,
			Events: Events{
				Journal: func(e journal.Event, _ *journal.State) { g.committed(e) },
				Notice: func(text string) {
					if s.costs != nil {
						g.note("notice: %s", text)
					}
				},
				End: func(err error, interrupted bool) {
					g.end = true
					g.note("the job ends: %s", cmp.Or(reason(err), "done"))
				},
			},
		}
		for runs := 0; runs == 0 || s.resume && runs == 1; runs++ {
			if runs > 0 {
				g.note("resume")
			}
			g.end = false
			supervisor := system.Root.Spawn(SupervisorProps(cfg, strategy, here, children))
			g.send = func(m any) { system.Root.Send(supervisor, m) }
			g.settle()
			for !g.end {
				<-g.wake // all wait: time goes on
				g.settle()
				if time.Since(g.begun) > time.Hour {
					t.Fatalf("no end after an hour:\n%s", g.out.String())
				}
			}
			system.Root.Stop(supervisor)
			g.settle()
			time.Sleep(time.Second) // work that was cancelled ends
			g.settle()
		}
		for _, w := range append(append(workers, guests...), g.user) {
			system.Root.Stop(w)
		}
		g.settle()
		time.Sleep(2 * time.Second) // the library counts letters to the dead for a second
	})
	return g.out.String()
}

func (g *stage) note(format string, args ...any) {
	fmt.Fprintf(&g.out, "%7.3f  %s\n", time.Since(g.begun).Seconds(), fmt.Sprintf(format, args...))
}

func reason(err error) string {
	if err == nil {
		return ""
	}
	first, _, _ := strings.Cut(err.Error(), "\n") // without a stack
	return first
}

// heard writes a message down, and panics where the script says so.
func (g *stage) heard(who string, message any) {
	name, line := describe(message)
	if name == "" {
		return
	}
	if who == "supervisor" && name == "SearchEnded" && line == "" {
		line = "done"
	}
	from := map[string]string{
		"AgentReady": "agent", "History": "supervisor", "Decide": "agent", "Outcome": "supervisor", "CloseSearch": "supervisor", "Steer": "user", "Ordered": "agent", "StopTrial": "supervisor",
		"SearchEnded": "agent", "Widen": "supervisor", "Enlist": "node", "Grow": "supervisor", "Returned": "trial", "Assign": "trial", "Release": "trial", "RankEnded": "worker", "Sick": "node", "TrialEnded": "trial", "Interrupt": "driver",
	}[name]
	if name == "Steer" && who == "searchagent" {
		from = "supervisor"
	}
	if name == "Progress" {
		if from = "worker"; who == "supervisor" {
			from = "trial"
		}
	}
	to := map[string]string{"searchagent": "agent", "gpuworker": "worker"}[who]
	if to = cmp.Or(to, who); from != "" {
		from += " → "
	}
	g.note("%s", strings.TrimSpace(from+to+"  "+name+" "+line))
	for _, p := range g.panics {
		if p.hit(to, name) {
			g.note("%s panics", to)
			panic("as the script says")
		}
	}
}

// describe names a message and what matters in it; no name for those that are
// left out.
func describe(message any) (name, line string) {
	name = strings.TrimPrefix(fmt.Sprintf("%T", message), "*actors.")
	switch m := message.(type) {
	case *actor.Started:
		return "Started", ""
	case *actor.Restarting:
		return "Restarting", ""
	case *AgentReady, *CloseSearch, *Interrupt:
	case *History:
		line = fmt.Sprintf("%d decisions, %d outcomes", len(m.Decisions), len(m.Outcomes))
		if m.Closed {
			line += ", closed"
		}
	case *Decide:
		line = fmt.Sprintf("#%d %s %s rung %d", m.Decision.Seq, m.Decision.Action, m.Decision.Trial, m.Decision.Rung)
	case *Outcome:
		line = fmt.Sprintf("#%d score %g", m.Seq, m.Outcome.Score)
		if m.Outcome.Scores != nil {
			line += fmt.Sprintf(" of %g, misses by %.2g", m.Outcome.Scores, m.Outcome.Violations)
		}
		if m.Outcome.Failed {
			line = fmt.Sprintf("#%d failed", m.Seq)
		}
	case *Steer:
		line = m.Order.String()
	case *Ordered:
		line = cmp.Or(reason(m.Err), fmt.Sprintf("%s, before #%d", m.Order, m.Order.Before))
	case *StopTrial:
		line = m.Why
	case *SearchEnded:
		line = reason(m.Err)
	case *Assign:
		line = fmt.Sprintf("%s rank %d of %d, epoch %d", m.Task.Trial, m.Rank, m.World, m.Epoch)
	case *Release:
		line = fmt.Sprintf("epoch %d", m.Epoch)
	case *Progress:
		line = fmt.Sprintf("%s step %d", m.Trial, m.Metrics.Step)
	case *Sick:
		line = m.Why
	case *Widen:
		line = fmt.Sprintf("%d slots", m.Slots)
	case *Enlist:
		line = fmt.Sprintf("%d workers", len(m.Workers))
	case *Grow:
		line = fmt.Sprintf("%d workers", len(m.Workers))
	case *Returned:
		line = fmt.Sprintf("%d workers", len(m.Workers))
	case *RankEnded:
		line = fmt.Sprintf("rank %d, epoch %d: %s", m.Rank, m.Epoch, cmp.Or(reason(m.Err), "ok"))
		if m.Lost {
			line += " (lost)"
		}
	case *TrialEnded:
		line = fmt.Sprintf("#%d: %s", m.Seq, cmp.Or(reason(m.Err), fmt.Sprintf("%g bits", m.Report.Bits)))
	default:
		return "", "" // an actor's word to itself, or its library's
	}
	return name, line
}

func (g *stage) committed(e journal.Event) {
	if e.Kind != journal.Tick {
		g.write(e)
	}
	if e.Kind == journal.Resumed {
		g.again()
	}
	for i, x := range g.orders {
		if x.hit("", string(e.Kind)) {
			o, err := search.ParseOrder(g.given[i])
			if err != nil {
				panic(err)
			}
			g.send(&Steer{Order: o, From: g.user})
		}
	}
	for _, on := range []struct {
		events []*nth
		do     func()
	}{{g.sick, g.harm}, {g.joins, g.join}, {g.leaves, g.leave}, {g.interrupts, func() { g.send(&Interrupt{}) }}} {
		for _, x := range on.events {
			if x.hit("", string(e.Kind)) {
				on.do()
			}
		}
	}
}

// write notes an event.
func (g *stage) write(e journal.Event) {
	line := string(e.Kind)
	if e.Stage != "" {
		line += " " + e.Stage
	}
	if e.Decision != nil {
		line += fmt.Sprintf(" #%d %s", e.Decision.Seq, e.Decision.Trial)
		if d := e.Decision; d.Action == search.Fork {
			line += fmt.Sprintf(" from %s at %g in place of %s", d.Inherit, d.From, d.Replaces)
		}
	}
	if e.Order != nil {
		line += fmt.Sprintf(" %d: %s", e.Order.Seq, e.Order)
	}
	if r := e.Trial; r != nil {
		line += fmt.Sprintf(" %s #%d", r.Trial, r.Seq)
		if r.Attempt > 0 {
			line += fmt.Sprintf(" attempt %d", r.Attempt)
		}
		if r.Stopped != "" {
			line += ": stopped: " + r.Stopped
		}
		if r.Failed {
			line += ": " + reason(errors.New(r.Err))
		}
	}
	if e.Err != "" {
		line += ": " + reason(errors.New(e.Err))
	}
	if e.RetryIn > 0 {
		line += fmt.Sprintf(", again in %gs", e.RetryIn)
	}
	g.note("    journal  %s", line)
}

// Append implements journal.Log.
func (g *stage) Append(record []byte, _ bool) error {
	e, err := journal.Decode(record)
	if err != nil {
		return err
	}
	for _, x := range g.full {
		if x.hit("", string(e.Kind)) {
			return fmt.Errorf("journal: %w", syscall.ENOSPC)
		}
	}
	g.log = append(g.log, record)
	return nil
}

// Replay implements journal.Log.
func (g *stage) Replay(f func([]byte) error) error {
	for _, rec := range g.log {
		if err := f(rec); err != nil {
			return err
		}
	}
	return nil
}

// Close implements journal.Log.
func (g *stage) Close() error { return nil }

// work takes its time and ends as the script says. What is cancelled needs a
// moment to end, each rank its own.
func (g *stage) work(ctx context.Context, name string, took, moment time.Duration) error {
	select {
	case <-time.After(took):
	case <-ctx.Done():
		time.Sleep(moment)
		return context.Cause(ctx)
	}
	g.mu.Lock()
	how := "ok"
	if left := g.fail[name]; len(left) > 0 {
		how, g.fail[name] = left[0], left[1:]
	}
	g.mu.Unlock()
	switch how {
	case "hang":
		<-ctx.Done()
		time.Sleep(moment)
		return context.Cause(ctx)
	case "nan":
		return fmt.Errorf("%w at step 7: loss is NaN", train.ErrDiverged)
	case "panic":
		panic("index out of range")
	case "error":
		return errors.New("out of luck")
	case "stop":
		return errStop
	case "damaged":
		return fmt.Errorf("%w: t/checkpoint", train.ErrCheckpoint)
	case "full":
		return &os.PathError{Op: "write", Path: name, Err: syscall.ENOSPC}
	}
	return nil
}

// execute is the workers' Executor. Runs of two trials never end at once.
func (g *stage) execute(ctx context.Context, a *Assign, progress func(train.StepMetrics)) (train.Report, error) {
	n := 9
	if id, ok := strings.CutPrefix(a.Task.Trial, "t"); ok {
		n, _ = strconv.Atoi(id)
	}
	if a.Task.Trial == "final" && g.speeds != nil {
		return g.elastic(ctx, a, progress)
	}
	took := time.Duration(1000+100*n+10*a.Rank+int(a.Epoch)) * time.Millisecond
	what := a.Task.Trial
	if a.Rank > 0 {
		what += "/" + strconv.Itoa(a.Rank)
	}
	stopped := ""
	if err := g.work(ctx, what, took, time.Duration(a.Rank+1)*time.Millisecond); errors.Is(err, errStop) {
		stopped = "its curve is too high"
	} else if err != nil {
		return train.Report{}, err
	}
	if a.Rank == 0 {
		progress(train.StepMetrics{Step: a.Task.Segment.Steps})
	}
	rep := train.Report{State: train.State{Step: a.Task.Segment.Steps}, Bits: 3 - 0.25*float64(n), Stopped: stopped}
	if n < len(g.costs) {
		rep.Cost = &train.Cost{Latency: g.costs[n] / 1e3}
	}
	return rep, nil
}

// errStop ends a trial as its rule would.
var errStop = errors.New("stop")

// elastic is a final training that goes on in the ring that follows.
func (g *stage) elastic(ctx context.Context, a *Assign, progress func(train.StepMetrics)) (train.Report, error) {
	next := a.Next
	for time.Since(g.begun) < 12*time.Second {
		select {
		case a = <-next:
		case <-ctx.Done():
			return train.Report{}, context.Cause(ctx)
		case <-time.After(250*time.Millisecond + time.Duration(a.Rank)*time.Millisecond):
			if a.Rank == 0 {
				progress(train.StepMetrics{Step: 1, PerSecond: g.speeds[min(a.World, len(g.speeds))-1]})
			}
		}
	}
	return train.Report{State: train.State{Step: 40}, Bits: 0.75}, nil
}

// Stage implements Work.
func (g *stage) Stage(ctx context.Context, name string, _ journal.State) error {
	return g.work(ctx, name, cmp.Or(g.takes[name], 500*time.Microsecond), 2*time.Millisecond)
}

// Plan implements Work: two rungs, of which half of the trials reach the second.
func (g *stage) Plan(ctx context.Context, _ float64) (search.Plan, error) {
	p := search.Plan{Unit: search.Tokens, Slots: g.workers, Brackets: []search.Bracket{{
		Trials: g.trials, Keep: []int{g.trials, max(1, g.trials/2)}, Resources: []float64{10, 20},
	}}}
	if n := g.population; n > 0 {
		p.Scheduler, p.Brackets = "pbt", []search.Bracket{{Trials: n, Keep: []int{n, n, n}, Resources: []float64{10, 20, 30}}}
	}
	if g.clock > 0 {
		p.Unit, p.SearchSeconds = search.Seconds, g.clock
	}
	return p, g.work(ctx, "plan", 500*time.Microsecond, time.Millisecond)
}

// Search implements Work.
func (g *stage) Search(p search.Plan, slots int) (*search.Search, error) {
	sched, err := search.NewScheduler(p)
	return search.New(&counting{}, sched, slots), err
}

// counting proposes configurations that differ in their learning rate.
type counting struct{ asked int }

func (c *counting) Ask(n int) ([]space.Config, error) {
	var out []space.Config
	for range n {
		c.asked++
		out = append(out, space.Config{
			space.Dim: space.Number(64), space.Layers: space.Number(1), space.Heads: space.Number(2), space.KVHeads: space.Number(2), space.FFNRatio: space.Number(2),
			space.Vocab: space.Number(320), space.Context: space.Number(32), space.Tied: space.Word("true"), space.LR: space.Number(float64(c.asked) / 1024),
		})
	}
	return out, nil
}

func (c *counting) Tell(search.Result) {}

// Space, Narrow, Adopt and Fill implement search.Steerable.
func (c *counting) Space() *space.Space {
	s, err := space.New(space.MustParse(space.LR, "uniform(0, 1)"))
	if err != nil {
		panic(err)
	}
	return s
}

func (c *counting) Narrow([]space.Dimension) {}

func (c *counting) Adopt(space.Config) {}

func (c *counting) Fill(given space.Config) (space.Config, error) {
	d, _ := c.Space().Dimension(space.LR)
	if v := given[space.LR]; !d.Has(v) {
		return nil, fmt.Errorf("lr is %s, outside %s", v, d)
	}
	out, err := (&counting{}).Ask(1)
	out[0][space.LR] = given[space.LR]
	return out[0], err
}

// Size implements Work.
func (g *stage) Size(context.Context, journal.State, string) (*search.Sizing, error) { return nil, nil }

// Task implements Work.
func (g *stage) Task(_ journal.State, d *search.Decision) (train.Task, error) {
	if d == nil {
		return train.Task{Trial: "final", Final: true, Segment: train.Segment{Steps: 40}}, nil
	}
	return train.Task{Trial: d.Trial, Segment: train.Segment{Steps: int(d.Resource)}}, nil
}

// Evaluate implements Work.
func (g *stage) Evaluate(ctx context.Context, _ journal.State) (train.Score, *journal.Placed, error) {
	return train.Score{NLL: 100, Tokens: 50, Bytes: 100}, nil, g.work(ctx, job.StageEvaluate, 500*time.Microsecond, time.Millisecond)
}
