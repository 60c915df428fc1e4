package main

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/ring"
	"github.com/open-autoglm/autoglm/runtime/data"
	"github.com/open-autoglm/autoglm/runtime/token"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// rankEnv holds a rank's rankConfig, or "loop".
const rankEnv = "AUTOGLM_BENCH_DDP"

// rankConfig is what a rank's process is told; its place comes by RANK, WORLD_SIZE,
// MASTER_ADDR and MASTER_PORT.
type rankConfig struct {
	Dir         string
	Arch        glm.Arch
	Batch       int
	Precision   string
	LR          float64
	Backend     string
	Compression string
	Seconds     float64 // of training, behind the warm-up
	Steps       int     // 0: Seconds; otherwise as many, and metrics of each
	Target      float64 // 0: none; otherwise stop when the smoothed loss is there
	Namespaces  []string
	Addresses   []string // to listen on, by rank; nil is loopback
}

type oneText struct{ text string }

func (o *oneText) Next() (data.Example, error) {
	if o.text == "" {
		return data.Example{}, io.EOF
	}
	x := data.Example{Segments: []data.Segment{{Text: o.text, Scored: true}}}
	o.text = ""
	return x, nil
}

// corpus tokenises the text.
func (c *config) corpus(ctx context.Context) error {
	f, err := os.Open(c.text)
	if err != nil {
		return fmt.Errorf("-text: %w (start in the repository's root, or name a text)", err)
	}
	defer f.Close()
	var r io.Reader = f
	if strings.HasSuffix(c.text, ".gz") {
		if r, err = gzip.NewReader(f); err != nil {
			return fmt.Errorf("-text %s: %w", c.text, err)
		}
	}
	text, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("-text %s: %w", c.text, err)
	}
	tr, err := token.NewTrainer(token.TrainConfig{VocabSize: c.arch.Vocab, Threads: 2})
	if err != nil {
		return err
	}
	tr.Add(text)
	tok, err := tr.Train(ctx)
	if err != nil {
		return err
	}
	if tok.VocabSize() > c.arch.Vocab {
		return fmt.Errorf("-V %d: the text's tokenizer has %d tokens", c.arch.Vocab, tok.VocabSize())
	}
	return train.Tokenize(ctx, &oneText{string(text)}, tok, filepath.Join(c.dir, "train"), true)
}

var errReached = errors.New("the loss is reached")

// rankMain is one rank's process. Rank 0 prints.
func rankMain(spec string) error {
	if spec == "loop" {
		_, err := fmt.Println(loop())
		return err
	}
	var rc rankConfig
	if err := json.Unmarshal([]byte(spec), &rc); err != nil {
		return err
	}
	cfg, err := ring.FromEnv(os.Getenv)
	if err != nil {
		return err
	}
	cfg.Backend, cfg.Fingerprint, cfg.FormTimeout = rc.Backend, rc.Arch.String(), 30*time.Second
	if rc.Addresses != nil {
		ep, err := ring.NewEndpoint(ring.EndpointConfig{Address: rc.Addresses[cfg.Rank] + ":0"})
		if err != nil {
			return err
		}
		defer ep.Close()
		cfg.Endpoint = ep
	}
	corpus, err := train.OpenCorpus(filepath.Join(rc.Dir, "train"))
	if err != nil {
		return err
	}
	defer corpus.Close()
	m, err := native.New(rc.Arch, native.Options{Threads: 1, MaxBatch: rc.Batch, MaxSeq: rc.Arch.Context, Precision: engine.Precision(rc.Precision), Seed: 1})
	if err != nil {
		return err
	}
	defer m.Close()
	ctx := context.Background()
	comm, err := ring.Form(ctx, cfg)
	if err != nil {
		return err
	}
	defer comm.Close()
	start := time.Now()
	out := json.NewEncoder(os.Stdout)
	r := train.Run{
		Model: m, Train: corpus, Rank: cfg.Rank, World: cfg.World, Clock: func() time.Duration { return time.Since(start) }, Compression: rc.Compression,
		Config: train.Config{
			Arch: rc.Arch, BatchTokens: rc.Batch * cfg.World * rc.Arch.Context, Optimizer: engine.AdamW, LR: rc.LR, WeightDecay: 0.1, Warmup: 20, Schedule: "wsd", Seed: 1,
		},
	}
	if cfg.World > 1 {
		r.Ring = comm
	}
	end := func(err error) error { return errors.Join(err, r.Close(err)) }
	// The first steps warm up; then the run is timed.
	st, err := r.To(ctx, train.State{}, train.Segment{Steps: 2, DecayFrom: 2})
	if err != nil {
		return end(err)
	}
	var res result
	var compute, share, eff, n float64
	smooth, seen := 0.0, 0
	r.Events.Step = func(s train.StepMetrics) {
		n++
		compute, share, eff = compute+s.Compute, share+s.SyncShare, eff+s.SyncEff
		if rc.Steps > 0 {
			// A record is the mean of the steps since the last one.
			steps := float64(s.Step - seen)
			if seen == 0 {
				smooth, steps = s.Loss, 1
			}
			weight := math.Pow(0.95, steps)
			smooth, seen = weight*smooth+(1-weight)*s.Loss, s.Step
			s.Loss = smooth
			_ = out.Encode(map[string]any{"metrics": s})
			if rc.Target > 0 && smooth <= rc.Target {
				comm.Abort(errReached)
			}
		}
	}
	if rc.Steps > 0 {
		st, err = r.To(ctx, st, train.Segment{Steps: rc.Steps, DecayFrom: float64(rc.Steps)})
		if err != nil && !strings.Contains(err.Error(), errReached.Error()) { // rank 0's word to the others
			return end(err)
		}
		return end(nil)
	} else {
		from := st
		at := st.Seconds
		if st, err = r.To(ctx, st, train.Segment{ByTime: true, Seconds: at + rc.Seconds, DecayFrom: at + rc.Seconds}); err != nil {
			return end(err)
		}
		steps := float64(st.Step - from.Step)
		res.Rate, res.StepSeconds = float64(st.Tokens-from.Tokens)/(st.Seconds-at), (st.Seconds-at)/steps
		res.Exposed, res.Efficiency = share/max(n, 1), eff/max(n, 1)
	}
	if cfg.World > 1 {
		if res.Alone, err = alone(comm, m.Grads()); err != nil {
			return end(err)
		}
	}
	if err := end(nil); err != nil || cfg.Rank != 0 {
		return err
	}
	return out.Encode(res)
}

// alone times the sums of one step without training, ms: the median of nine.
func alone(comm *ring.Comm, grads []float32) (float64, error) {
	var ms []float64
	for range 9 {
		clear(grads)
		if err := comm.Barrier(); err != nil {
			return 0, err
		}
		begin := time.Now()
		engine.HandOver(grads, comm)
		if err := comm.Wait(); err != nil {
			return 0, err
		}
		ms = append(ms, float64(time.Since(begin).Microseconds())/1e3)
	}
	slices.Sort(ms)
	return ms[len(ms)/2], nil
}
