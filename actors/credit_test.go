package actors

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/open-autoglm/autoglm/gpu/ddp"
	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// A reporter has no more than the window under way, and makes one report of those that
// had no credit.
func TestReporter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type sent struct {
			epoch, n uint64
			m        train.StepMetrics
		}
		var got []sent
		r := &reporter{send: func(epoch, n uint64, m train.StepMetrics) { got = append(got, sent{epoch, n, m}) }}
		r.begins(3)
		for i := range window + 10 {
			m := train.StepMetrics{Step: i + 1}
			if i == window+2 {
				m.Ring, m.Bits, m.Changes = "tcp", 2.5, []ddp.Decision{{Bucket: 1}}
			}
			if i == window+5 {
				m.Changes = []ddp.Decision{{Bucket: 2}}
			}
			r.report(m)
		}
		if len(got) != window || got[window-1].n != window {
			t.Fatalf("%d sent, the last %+v", len(got), got[len(got)-1])
		}
		r.credit(&Credit{Epoch: 2, N: 16}) // of another ring
		r.credit(&Credit{Epoch: 3, N: window + 1})
		if len(got) != window {
			t.Error("credit that nobody could have given was taken")
		}
		r.credit(&Credit{Epoch: 3, N: 16})
		if len(got) != window+1 {
			t.Fatal("no credit was taken")
		}
		if last := got[window]; last.n != window+1 || last.m.Step != window+10 || last.m.Ring != "tcp" || last.m.Bits != 2.5 || len(last.m.Changes) != 2 {
			t.Errorf("%+v is sent for eleven", last)
		}
		for i := range 30 { // fifteen have credit
			r.report(train.StepMetrics{Step: 1000 + i})
		}
		if len(got) != window+16 {
			t.Errorf("%d sent", len(got))
		}
		time.Sleep(lostAfter)
		r.report(train.StepMetrics{Step: 2000})
		if last := got[len(got)-1]; len(got) != window+17 || last.m.Step != 2000 {
			t.Error("the sender waits for ever for credit that was lost")
		}
		r.begins(4)
		r.report(train.StepMetrics{Step: 7})
		if last := got[len(got)-1]; last.n != 1 || last.epoch != 4 || last.m.Step != 7 {
			t.Errorf("another epoch begins with %+v", last)
		}
	})
}

// Words that have no credit wait, in their order, and those that found no room are
// counted.
func TestWords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w words
		var got []string
		drain := func() {
			for {
				n, text, ok := w.next(time.Now())
				if !ok {
					return
				}
				if got = append(got, text); n != uint64(len(got)) {
					t.Fatalf("%d is %q", n, text)
				}
			}
		}
		for range window + maxWords + 5 {
			w.say("x")
			drain()
		}
		if len(got) != window {
			t.Fatalf("%d went without credit", len(got))
		}
		w.credit(window)
		drain()
		if n := len(got); n != 2*window {
			t.Fatalf("%d went", n)
		}
		w.credit(2 * window)
		drain()
		if last := got[len(got)-1]; len(got) != 2*window+1 || !strings.HasPrefix(last, "5 more messages") {
			t.Errorf("the last of %d is %q", len(got), last)
		}
	})
}

// A worker that reports without a pause fills nobody's mailbox: nothing more comes than
// there was credit for, and the newest comes with the next.
func TestReportsOnCredit(t *testing.T) {
	start := time.Now()
	system := actor.NewActorSystem()
	got := make(chan *Progress, 10*window)
	began, end := make(chan struct{}), make(chan struct{})
	owner := system.Root.Spawn(actor.PropsFromFunc(func(ctx actor.Context) {
		if m, ok := ctx.Message().(*Progress); ok {
			got <- m
		}
	}))
	worker := system.Root.Spawn(WorkerProps(device.Device{ID: "cpu:0"}, func(_ context.Context, _ *Assign, progress func(train.StepMetrics)) (train.Report, error) {
		for i := range 100_000 {
			progress(train.StepMetrics{Step: i})
		}
		close(began)
		<-end
		return train.Report{}, nil
	}, nil, Hooks{}))
	system.Root.Send(worker, &Assign{Epoch: 1, World: 1, Owner: owner})
	<-began
	for range window {
		<-got
	}
	system.Root.Send(worker, &Credit{Epoch: 1, N: window})
	n := window + 1
	for m := <-got; m.Metrics.Step < 99_999; m = <-got {
		n++
	}
	if most := window + 1 + int(time.Since(start)/lostAfter); n > most {
		t.Errorf("%d reports came, of 100,000; there was credit for %d", n, most)
	}
	close(end)
	_ = system.Root.StopFuture(worker).Wait()
	_ = system.Root.StopFuture(owner).Wait()
}
