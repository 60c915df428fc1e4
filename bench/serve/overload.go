package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"
)

const (
	clients    = 64
	loadTokens = 32 // of each request's text
	loadSlots  = 8  // requests that are answered together, and as many may wait
)

// loads is what clients saw.
type loads struct {
	answered, other, silent int       // silent: refused without Retry-After
	refusals                []float64 // milliseconds
	err                     error     // of the last that failed
}

func (l *loads) add(o loads) {
	l.answered, l.other, l.silent = l.answered+o.answered, l.other+o.other, l.silent+o.silent
	l.refusals = append(l.refusals, o.refusals...)
	l.err = cmp.Or(o.err, l.err)
}

// memory is what the process holds, MB.
type memory struct{ live, resident float64 }

// load lets clients ask, each every so often (or at once again, where every is 0), until
// ctx ends.
func (m *bench) load(ctx context.Context, n int, every time.Duration) loads {
	var out loads
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			next := time.Now().Add(every * time.Duration(i) / time.Duration(n))
			for {
				select {
				case <-ctx.Done():
					return
				case <-time.After(time.Until(next)):
				}
				// One that was late is not made up for.
				next = time.Now().Add(every)
				begin := time.Now()
				res, err := m.ask(context.Background(), make([]int32, 16), loadTokens, func() {})
				took := ms(time.Since(begin))
				mu.Lock()
				switch {
				case err == nil && res.StatusCode == http.StatusOK:
					out.answered++
				case err == nil && res.StatusCode == http.StatusTooManyRequests:
					out.refusals = append(out.refusals, took)
					if res.Header.Get("Retry-After") == "" {
						out.silent++
					}
				case err != nil:
					out.other, out.err = out.other+1, err
				default:
					out.other, out.err = out.other+1, fmt.Errorf("%s", res.Status)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return out
}

// overload first finds how many requests a second are answered, and then sends twice as
// many.
func (s *session) overload(ctx context.Context) ([]row, error) {
	m, err := newBench(s.b, s.o.threads, loadSlots, loadSlots)
	if err != nil {
		return nil, err
	}
	defer m.close()
	calm, stop := context.WithTimeout(ctx, min(5*time.Second, s.o.load))
	begin := time.Now()
	got := m.load(calm, loadSlots, 0)
	stop()
	if got.err != nil {
		return nil, got.err
	}
	capacity := float64(got.answered) / time.Since(begin).Seconds()
	if capacity == 0 {
		return nil, fmt.Errorf("not one request was answered in %s", s.o.load)
	}

	// The first quarter is until all is as large as it gets.
	var all loads
	var healths []float64
	var before, after memory
	every := time.Duration(clients / (2 * capacity) * float64(time.Second))
	for _, part := range []struct {
		long time.Duration
		then *memory
	}{{s.o.load / 4, &before}, {s.o.load * 3 / 4, &after}} {
		loaded, end := context.WithTimeout(ctx, part.long)
		var got loads
		var wg sync.WaitGroup
		wg.Go(func() { got = m.load(loaded, clients, every) })
		took, err := m.healths(loaded)
		wg.Wait()
		end()
		if err = cmp.Or(err, ctx.Err()); err != nil {
			return nil, err
		}
		all.add(got)
		healths = append(healths, took...)
		*part.then = m.memory()
	}
	fmt.Fprintf(os.Stderr, "%.1f requests a second are answered; of twice that in %s %d were answered, %d refused, %d neither (%v)\n",
		capacity, s.o.load, all.answered, len(all.refusals), all.other, all.err)
	most := func(name, unit string, value, wanted float64) row {
		return row{Name: "overload, " + name, Unit: unit, Ours: figure{Value: value}, Ratio: value, Wanted: wanted, AtMost: true}.judged()
	}
	return []row{
		most("answers that are neither", "requests", float64(all.other), 0),
		most("refusals without Retry-After", "requests", float64(all.silent), 0),
		most("refusal, p99", "ms", p99(all.refusals), 20),
		most("health meanwhile, p99", "ms", p99(healths), 50),
		most("live memory, after to before", "MB of MB", after.live/before.live, 1.02),
		most("resident memory, after to before", "MB of MB", after.resident/before.resident, 1.1),
	}, nil
}

// healths asks for the server's health until ctx ends.
func (m *bench) healths(ctx context.Context) (took []float64, err error) {
	for ctx.Err() == nil {
		begin := time.Now()
		res, err := m.http.Get(m.url + "/healthz")
		if err != nil {
			return nil, err
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		took = append(took, ms(time.Since(begin)))
		time.Sleep(20 * time.Millisecond)
	}
	return took, nil
}

// memory is measured after a collection.
func (m *bench) memory() memory { return memory{live(), resident(os.Getpid()).all} }

// live is what the heap holds after a collection, in MB.
func live() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / 1e6
}

func p99(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	return v[int(math.Ceil(float64(len(v))*0.99))-1]
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
