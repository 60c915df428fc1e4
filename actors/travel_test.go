package actors

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/open-autoglm/autoglm/cluster/remote"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/ring"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// travellers are one message of each kind, with all that goes with it.
func travellers() []any {
	pid := actor.NewPID("10.0.0.2:7400#17", "worker/0")
	return []any{
		&Assign{
			Epoch: 1 << 40, Rank: 3, World: 8, Resumes: 7, Owner: pid,
			Task: train.Task{
				Trial: "t001", Dir: "/d", Config: train.Config{Arch: glm.Arch{Dim: 64, Layers: 2}, LR: 0.001, Seed: 1<<64 - 1, Recompute: true},
				Segment: train.Segment{Seconds: 1.5, ByTime: true}, EvalTokens: 4096, CheckpointEvery: 10 * time.Second, Final: true, MaxBytes: 1 << 33,
			},
		},
		&Release{Epoch: 5},
		&Progress{Epoch: 5, Seq: -1, Trial: "final", Metrics: train.StepMetrics{Step: 9, Loss: 2.5, Ring: "TCP"}},
		&RankEnded{Epoch: 5, Rank: 2, Report: train.Report{State: train.State{Step: 120}, Bits: 2.25}, Err: fmt.Errorf("at step 7: %w", train.ErrDiverged), Lost: true},
		&RankEnded{Epoch: 5},
		&RingBroken{Epoch: 5, Rank: 1, Err: &ring.LostError{Rank: 1, Why: "gone"}},
		&RingCard{Epoch: 5, Rank: 1, Card: []byte{1, 2, 3}, From: pid},
		&RingCards{Epoch: 5, At: 32, Cards: [][]byte{{1}, {2, 3}}, Err: ring.ErrTimeout},
		&Enlist{Workers: []*actor.PID{pid, actor.NewPID("h:1#2", "a/b/c")}, From: pid},
		&Enlisted{Lost: true},
	}
}

// told is a message with its error as text, which is what arrives of most errors.
func told(message any) string {
	v := reflect.Indirect(reflect.ValueOf(message))
	text := ""
	if f := v.FieldByName("Err"); f.IsValid() && !f.IsNil() {
		text = f.Interface().(error).Error()
	}
	var fields []string
	for i := range v.NumField() {
		if v.Type().Field(i).Name != "Err" {
			fields = append(fields, fmt.Sprintf("%s:%+v", v.Type().Field(i).Name, v.Field(i).Interface()))
		}
	}
	return fmt.Sprintf("%T %s err:%s", message, strings.Join(fields, " "), text)
}

func TestMessagesTravel(t *testing.T) {
	k := Kinds()
	for _, m := range travellers() {
		b, err := k.Encode(m)
		if err != nil {
			t.Errorf("%T: %v", m, err)
			continue
		}
		got, err := k.Decode(b)
		if err != nil {
			t.Errorf("%T: %v", m, err)
			continue
		}
		if told(got) != told(m) {
			t.Errorf("sent %s\n got %s", told(m), told(got))
		}
	}
	// The longest error, and the task of the largest vocabulary.
	big := &RankEnded{Err: fmt.Errorf("panic: %s", strings.Repeat("x", 1<<20))}
	if b, err := k.Encode(big); err != nil || len(b) > remote.MaxMessage {
		t.Errorf("an error with a long stack: %d bytes, %v", len(b), err)
	}
	if _, err := k.Encode(&Assign{Task: train.Task{ByteLens: make([]int, 1<<18)}}); err != nil {
		t.Errorf("a task of a large vocabulary: %v", err)
	}
}

// Whatever another node sends, reading it ends, and what was read can be sent on.
func FuzzMessages(f *testing.F) {
	k := Kinds()
	for _, m := range travellers() {
		b, err := k.Encode(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := k.Decode(b)
		if err != nil {
			return
		}
		_ = told(m)
		if again, err := k.Encode(m); err == nil {
			if _, err := k.Decode(again); err != nil {
				t.Fatalf("%x was read, and not what was written of it: %v", b, err)
			}
		}
	})
}
