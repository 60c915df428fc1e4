package serve

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/runtime/token"
)

// SchedulerConfig says how much a Scheduler takes on. Where the decoder's keys and values
// lie in pages a request waits, first come first served, until there are as many as its
// prompt and the most tokens that it may get could need.
type SchedulerConfig struct {
	Slots   int   // sequences that are generated together: as many as the decoder holds
	Queue   int   // requests that may wait for a slot
	Prefill int   // most tokens of a prompt computed between two tokens of the others
	Prefix  int64 // bytes of keys and values of earlier prompts to keep; 0 is none
	Events  Events
}

// DefaultSchedulerConfig is for one model on a few cores.
func DefaultSchedulerConfig() SchedulerConfig {
	return SchedulerConfig{Slots: 8, Queue: 64, Prefill: 64, Prefix: 64 << 20}
}

// Validate reports the first field that can't be.
func (c SchedulerConfig) Validate() error {
	switch {
	case c.Slots < 1:
		return fmt.Errorf("slots are %d, must be 1 or more", c.Slots)
	case c.Queue < 0:
		return fmt.Errorf("queue is %d, must be 0 or more", c.Queue)
	case c.Prefill < 1:
		return fmt.Errorf("prefill is %d tokens, must be 1 or more", c.Prefill)
	case c.Prefix < 0:
		return fmt.Errorf("prefix cache is %d bytes, must be 0 or more", c.Prefix)
	}
	return nil
}

// Events are told what a Scheduler does, from its own goroutine: they must not block.
type Events struct {
	First func(wait time.Duration)              // a request's first token was chosen, so long after it came
	Token func(gap time.Duration)               // a further one, so long after the one before
	Step  func(prompt, decoded int)             // tokens computed in one round
	Done  func(res Result, err error, t Timing) // a request has ended
}

// Timing is where a request's time went.
type Timing struct {
	Queue   time.Duration // until it had a slot
	Prefill time.Duration // until its first token
	Decode  time.Duration // until its last
}

// BusyError refuses a request because the queue is full.
type BusyError struct {
	Waiting int
	After   time.Duration // when it is worth trying again
}

func (e *BusyError) Error() string {
	return fmt.Sprintf("%d requests are waiting already; try again in %s", e.Waiting, e.After)
}

// ErrDraining refuses a request because the scheduler takes no more.
var ErrDraining = errors.New("the server is shutting down and takes no more requests")

// ErrNoEmbedding refuses an embedding where the engine gives no hidden states.
var ErrNoEmbedding = errors.New("the engine gives no embeddings")

// DecoderError ends a request because its decoder failed.
type DecoderError struct{ Err error }

func (e *DecoderError) Error() string { return "the decoder failed: " + e.Err.Error() }

// Unwrap gives the decoder's error.
func (e *DecoderError) Unwrap() error { return e.Err }

// ErrDrained ends a request that was not done when the grace period was over.
var ErrDrained = errors.New("the server shut down before the text was finished")

// Scheduler generates many texts at once on one decoder: continuous batching. Each
// round computes a piece of one prompt, and one token of every text that is past its
// prompt. A request joins and leaves between rounds.
//
// Its goroutine owns the decoder. All methods may be called from any goroutine.
type Scheduler struct {
	cfg    SchedulerConfig
	dec    engine.Decoder
	embed  engine.Embedder // the same; nil where it is none
	tok    *token.Tokenizer
	wake   chan struct{}
	ended  chan struct{}
	abort  atomic.Bool
	beat   atomic.Int64   // when the round that runs began, in nanoseconds since the epoch; 0 while nothing is to do
	slots  []*job         // of the goroutine: by sequence; nil is free
	kv     engine.KVCache // the decoder; nil where it has no pages
	page   int            // tokens of a page; 0 without pages
	pages  int            // that there are
	held   atomic.Int64   // pages that texts have
	prefix *prefixCache   // of the goroutine; nil is none

	mu struct {
		sync.Mutex
		waiting  []*job
		running  int
		pages    int // promised to those that run: as many as each may come to need
		draining bool
		after    time.Duration // what a slot's request takes, on average
	}
}

// job is one request on its way through a Scheduler.
type job struct {
	gen    *generation
	gone   atomic.Bool // nobody waits for it any more
	ready  chan struct{}
	came   time.Time
	slot   time.Time // when it got one; zero before
	first  time.Time // when its first token was chosen; zero before
	last   time.Time
	filled int // tokens of the prompt that are in the sequence
	pages  int // that it may come to need

	mu struct {
		sync.Mutex
		pieces []Piece
		res    Result
		err    error
		over   bool
	}
}

// NewScheduler starts a scheduler, which owns dec from now on and closes it at the end.
func NewScheduler(dec engine.Decoder, tok *token.Tokenizer, cfg SchedulerConfig) (*Scheduler, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("scheduler: %w", err)
	}
	s := &Scheduler{
		cfg: cfg, dec: dec, tok: tok, wake: make(chan struct{}, 1), ended: make(chan struct{}), slots: make([]*job, cfg.Slots),
	}
	s.embed, _ = dec.(engine.Embedder)
	if kv, ok := dec.(engine.KVCache); ok {
		at := kv.KV()
		s.kv, s.page, s.pages = kv, at.Tokens, at.Pages
		if cfg.Prefix > 0 {
			s.prefix = newPrefixCache(kv, cfg.Prefix)
		}
	}
	go s.run()
	return s, nil
}

// Generate continues a prompt. It returns when the text has ended, calling emit (which
// may be nil) meanwhile with each piece, from the calling goroutine; emit may block
// without holding up other texts, and its error ends this one. When ctx ends the
// request's slot is free after the round that runs.
//
// The text ends where the context is full: nothing is forgotten.
func (s *Scheduler) Generate(ctx context.Context, req Request, emit func(Piece) error) (Result, error) {
	j := &job{ready: make(chan struct{}, 1), came: time.Now()}
	gen, err := newGeneration(s.tok, req, j.put)
	if err != nil {
		return Result{}, fmt.Errorf("generate: %w", err)
	}
	j.gen = gen
	most := req.Context
	if s.page > 0 {
		most = min(most, s.pages*s.page)
	}
	if len(gen.seq) > most {
		return Result{}, fmt.Errorf("generate: %w", &ContextError{Prompt: len(gen.seq), Context: most})
	}
	room := most - len(gen.seq) + 1 // the last token is not fed back
	if gen.req.MaxTokens == 0 || gen.req.MaxTokens > room {
		gen.req.MaxTokens = room
	}
	if req.Embed {
		if s.embed == nil {
			return Result{}, ErrNoEmbedding
		}
		gen.res.Embedding = make([]float32, s.embed.Width())
	}
	j.pages = s.needs(gen)
	if err := s.enter(j); err != nil {
		return Result{}, err
	}
	defer func() {
		j.gone.Store(true)
		s.poke()
	}()
	for {
		select {
		case <-j.ready:
		case <-ctx.Done():
			return j.result(), fmt.Errorf("generate: %w", context.Cause(ctx))
		}
		j.mu.Lock()
		pieces, over, res, err := j.mu.pieces, j.mu.over, j.mu.res, j.mu.err
		j.mu.pieces = nil
		j.mu.Unlock()
		for _, p := range pieces {
			if emit == nil {
				break
			}
			if err := emit(p); err != nil {
				return j.result(), fmt.Errorf("generate: %w", err)
			}
		}
		if over {
			return res, err
		}
	}
}

// needs is how many pages a generation may come to hold.
func (s *Scheduler) needs(g *generation) int {
	if s.page == 0 {
		return 0
	}
	n := len(g.seq)
	if !g.req.Embed {
		n += g.req.MaxTokens - 1
	}
	return (n + s.page - 1) / s.page
}

// put hands a piece to whoever waits.
func (j *job) put(p Piece) error {
	j.mu.Lock()
	j.mu.pieces = append(j.mu.pieces, p)
	j.mu.Unlock()
	j.notify()
	return nil
}

func (j *job) notify() {
	select {
	case j.ready <- struct{}{}:
	default:
	}
}

func (j *job) result() Result {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.mu.res
}

// enter puts a job into the queue, or refuses it.
func (s *Scheduler) enter(j *job) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch n := len(s.mu.waiting); {
	case s.mu.draining:
		return ErrDraining
	case n+s.mu.running >= s.cfg.Slots+s.cfg.Queue:
		turns := time.Duration((n + s.cfg.Slots) / s.cfg.Slots)
		return &BusyError{Waiting: n, After: min(max(turns*s.mu.after, time.Second), time.Minute).Round(time.Second)}
	}
	s.mu.waiting = append(s.mu.waiting, j)
	s.poke()
	return nil
}

func (s *Scheduler) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Drain takes no more requests and returns when those it has are done. When ctx ends
// before that they get ErrDrained. The decoder is closed then.
func (s *Scheduler) Drain(ctx context.Context) {
	s.Refuse()
	select {
	case <-s.ended:
	case <-ctx.Done():
		s.abort.Store(true)
		s.poke()
		<-s.ended
	}
}

// Refuse takes no more requests; the goroutine ends when those that it has are done.
func (s *Scheduler) Refuse() {
	s.mu.Lock()
	s.mu.draining = true
	s.mu.Unlock()
	s.poke()
}

// Close is Drain without any grace.
func (s *Scheduler) Close() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	s.Drain(ctx)
}

// Status is how a Scheduler fares.
type Status struct {
	Running, Waiting int
	Slots, Queue     int
	// Stalled is for how long the round that runs has been running; 0 while there is
	// nothing to do.
	Stalled       time.Duration
	Draining      bool
	Pages         int            // of keys and values; 0 where the decoder has none
	PagesHeld     int            // by texts under way; each counts once, however many share it
	PrefixQueries int64          // tokens of prompts that were looked for among earlier ones
	PrefixHits    int64          // and found
	Devices       []DeviceStatus // where texts may begin on either of two
}

// Status tells how the scheduler fares. It never waits for the decoder.
func (s *Scheduler) Status() Status {
	s.mu.Lock()
	st := Status{Running: s.mu.running, Waiting: len(s.mu.waiting), Draining: s.mu.draining, Slots: s.cfg.Slots, Queue: s.cfg.Queue, Pages: s.pages, PagesHeld: int(s.held.Load())}
	s.mu.Unlock()
	if t := s.beat.Load(); t != 0 {
		st.Stalled = time.Since(time.Unix(0, t))
	}
	if s.prefix != nil {
		st.PrefixQueries, st.PrefixHits = s.prefix.queries.Load(), s.prefix.hits.Load()
	}
	return st
}

func (s *Scheduler) run() {
	defer close(s.ended)
	defer func() { _ = s.dec.Close() }()
	for {
		busy, over := s.admit()
		switch {
		case over:
			return
		case !busy:
			s.beat.Store(0)
			s.held.Store(0)
			<-s.wake
			continue
		}
		s.beat.Store(time.Now().UnixNano())
		prompt := s.fill()
		decoded := s.decode()
		if s.cfg.Events.Step != nil && prompt+decoded > 0 {
			s.cfg.Events.Step(prompt, decoded)
		}
		if s.kv != nil {
			s.held.Store(int64(s.kv.KV().Held))
		}
	}
}

// admit lets go of the jobs that nobody waits for and gives free slots to those that
// wait. It tells whether there is something to do, and whether there never will be.
func (s *Scheduler) admit() (busy, over bool) {
	for seq, j := range s.slots {
		switch {
		case j == nil:
		case s.abort.Load():
			s.end(seq, ErrDrained)
		case j.gone.Load():
			s.end(seq, context.Canceled)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	keep := s.mu.waiting[:0]
	for _, j := range s.mu.waiting {
		switch {
		case j.gone.Load():
			s.tell(j, context.Canceled)
		case s.abort.Load():
			s.tell(j, ErrDrained)
		default:
			keep = append(keep, j)
		}
	}
	clear(s.mu.waiting[len(keep):])
	s.mu.waiting = keep
	for seq := range s.slots {
		// Nobody overtakes one that waits for pages.
		if s.slots[seq] == nil && len(s.mu.waiting) > 0 && s.mu.pages+s.mu.waiting[0].pages <= s.pages {
			j := s.mu.waiting[0]
			s.mu.pages += j.pages
			s.mu.waiting = append(s.mu.waiting[:0], s.mu.waiting[1:]...)
			s.mu.running++
			j.slot, j.gen.req.Seq = time.Now(), seq
			s.slots[seq] = j
		}
	}
	return s.mu.running > 0, s.mu.draining && s.mu.running == 0
}

// fill computes a piece of the prompt of the job that has waited longest.
func (s *Scheduler) fill() (tokens int) {
	seq := -1
	for i, j := range s.slots {
		if j != nil && j.first.IsZero() && (seq < 0 || j.came.Before(s.slots[seq].came)) {
			seq = i
		}
	}
	if seq < 0 {
		return 0
	}
	j := s.slots[seq]
	if j.gen.req.Embed {
		return s.embedPart(seq)
	}
	if j.filled == 0 && s.prefix != nil {
		n, err := s.prefix.load(seq, j.gen.seq)
		if err != nil {
			s.end(seq, err)
			return 0
		}
		j.filled, j.gen.res.CachedTokens = n, n
	}
	// Pieces end where blocks do, so that whole blocks can be kept.
	n := min(j.filled-j.filled%s.cfg.Prefill+s.cfg.Prefill, len(j.gen.seq)) - j.filled
	s.room(s.newPages(j.filled, n) + 1) // one more where the page of the last token is an earlier text's
	logits, err := s.dec.Prefill(seq, j.gen.seq[j.filled:j.filled+n])
	if err != nil {
		s.end(seq, &DecoderError{err})
		return 0
	}
	j.filled += n
	if s.prefix != nil {
		if err := s.prefix.save(seq, j.gen.seq[:j.filled]); err != nil {
			s.end(seq, err)
			return n
		}
	}
	if j.filled == len(j.gen.seq) {
		s.choose(seq, logits)
	}
	return n
}

// embedPart is fill for a prompt of which the hidden states are wanted.
func (s *Scheduler) embedPart(seq int) (tokens int) {
	j := s.slots[seq]
	n := min(s.cfg.Prefill, len(j.gen.seq)-j.filled)
	mean := j.gen.res.Embedding
	s.room(s.newPages(j.filled, n))
	if err := s.embed.Embed(seq, j.gen.seq[j.filled:j.filled+n], mean); err != nil {
		s.end(seq, &DecoderError{err})
		return 0
	}
	if j.filled += n; j.filled == len(j.gen.seq) {
		norm := 0.0
		for _, v := range mean {
			norm += float64(v) * float64(v)
		}
		for i := range mean { // the mean's direction is the sum's
			mean[i] /= float32(math.Sqrt(max(norm, math.SmallestNonzeroFloat64)))
		}
		j.gen.res.Reason = ReasonStop
		s.end(seq, nil)
	}
	return n
}

// decode computes one token of each text that is past its prompt.
func (s *Scheduler) decode() (tokens int) {
	var seqs []int
	var ids []int32
	pages := 0
	for seq, j := range s.slots {
		if j != nil && j.filled < len(j.gen.seq) && !j.first.IsZero() {
			seqs, ids = append(seqs, seq), append(ids, j.gen.seq[len(j.gen.seq)-1])
			pages += s.newPages(j.filled, 1)
		}
	}
	if len(seqs) == 0 {
		return 0
	}
	s.room(pages)
	logits, err := s.dec.Decode(seqs, ids)
	vocab := len(logits) / len(seqs)
	for i, seq := range seqs {
		if err != nil {
			s.end(seq, &DecoderError{err})
			continue
		}
		s.slots[seq].filled++
		s.choose(seq, logits[i*vocab:(i+1)*vocab])
	}
	return len(seqs)
}

// newPages is how many pages a sequence of so many tokens takes for n more.
func (s *Scheduler) newPages(held, n int) int {
	if s.page == 0 {
		return 0
	}
	return (held+n+s.page-1)/s.page - (held+s.page-1)/s.page
}

// room lets earlier texts go until so many pages are free. There are as many as were
// promised, without them.
func (s *Scheduler) room(pages int) {
	if s.prefix != nil && pages > 0 {
		s.prefix.room(pages)
	}
}

// next is the generation's; a panic in it ends this request alone.
func (j *job) next(logits []float32) (over bool, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return j.gen.next(logits)
}

// choose lets a job choose its next token.
func (s *Scheduler) choose(seq int, logits []float32) {
	j := s.slots[seq]
	over, err := j.next(logits)
	now := time.Now()
	if j.first.IsZero() {
		j.first = now
		if s.cfg.Events.First != nil {
			s.cfg.Events.First(now.Sub(j.came))
		}
	} else if s.cfg.Events.Token != nil {
		s.cfg.Events.Token(now.Sub(j.last))
	}
	j.last = now
	if over || err != nil {
		s.end(seq, err)
	}
}

// end frees a slot and tells who waits.
func (s *Scheduler) end(seq int, err error) {
	j := s.slots[seq]
	if err == nil && s.prefix != nil { // the next turn of a conversation begins with this one
		err = s.prefix.save(seq, j.gen.seq[:j.filled])
	}
	s.slots[seq] = nil
	s.dec.Drop(seq)
	s.mu.Lock()
	s.mu.running--
	s.mu.pages -= j.pages
	took := time.Since(j.slot)
	if s.mu.after == 0 {
		s.mu.after = took
	}
	s.mu.after += (took - s.mu.after) / 8
	s.mu.Unlock()
	s.tell(j, err)
}

// tell hands a job its end.
func (s *Scheduler) tell(j *job, err error) {
	res := j.gen.res
	if err != nil {
		res.Reason = ""
		err = fmt.Errorf("generate: %w", err)
	}
	j.mu.Lock()
	j.mu.res, j.mu.err, j.mu.over = res, err, true
	j.mu.Unlock()
	j.notify()
	if s.cfg.Events.Done != nil {
		s.cfg.Events.Done(res, err, j.timing(time.Now()))
	}
}

func (j *job) timing(now time.Time) Timing {
	slot := j.slot
	if slot.IsZero() {
		slot = now
	}
	first := j.first
	if first.IsZero() {
		first = now
	}
	return Timing{Queue: slot.Sub(j.came), Prefill: first.Sub(slot), Decode: now.Sub(first)}
}
