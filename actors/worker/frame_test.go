package worker

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/gpu/device/devicetest"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// messages is one of each kind, with something in it.
func messages(t testing.TB) []message {
	m, err := devicetest.New(3).Scan()
	if err != nil {
		t.Fatal(err)
	}
	m.Notes = []string{"a note"}
	rank := 3
	fail := &actors.Failure{Text: "why", Is: []string{"lost"}, Lost: &rank, Errno: 28}
	task := train.Task{
		Trial: "t1", Dir: "d", Config: train.Config{Arch: glm.Arch{Vocab: 7, Dim: 8}, Optimizer: engine.Muon, LR: 0.1, Seed: 1 << 63},
		Segment: train.Segment{Steps: 3, ByTime: true}, ByteLens: []int{1, 2, 300}, CheckpointEvery: 5e9, Final: true, Balance: true,
	}
	return []message{
		&helloMsg{PID: 7},
		&pingMsg{},
		&pongMsg{},
		&trainMsg{Task: task, On: On{Engine: "torch", CUDA: true}, Rank: 1, World: 2, Epoch: 1 << 40},
		&nextMsg{Rank: 1, World: 2, Epoch: 9, Failure: fail},
		&cardMsg{Rank: 1, World: 2, Epoch: 3, Card: []byte("card")},
		&cardsMsg{Epoch: 3, Cards: [][]byte{[]byte("a"), []byte("b")}},
		&abortMsg{Epoch: 3, Failure: fail},
		&stopMsg{Failure: fail},
		&rejoinMsg{Epoch: 3, Failure: fail},
		&progressMsg{Metrics: train.StepMetrics{Step: 4, Loss: 2.5, PeakBytes: 1 << 33}},
		&endedMsg{Report: train.Report{Bits: 1.5, State: train.State{Step: 9}}, Failure: fail},
		&timeMsg{Timing: Timing{On: On{Engine: "native", CPUs: []int{0, 2}}, Threads: 2, Precision: engine.BF16, Seconds: 0.5}},
		&timedMsg{Rates: glm.Rates{Product: 1e-11}},
		&lookMsg{},
		&seenMsg{Machine: m},
		&askMsg{},
		&scoreMsg{Scoring: Scoring{On: On{Engine: "torch", CUDA: true}, Threads: 1, Config: task.Config, Params: "p", Corpus: "c", Windows: 8}},
		&scoredMsg{Score: train.Score{NLL: 1.5, Tokens: 3, Bytes: 9}, Failure: fail},
		&factsMsg{Facts: Facts{Torch: "2", CUDA: 1}},
	}
}

func TestFrames(t *testing.T) {
	seen := map[kind]bool{}
	var stream bytes.Buffer
	all := messages(t)
	for _, m := range all {
		b, err := encode(m)
		if err != nil {
			t.Fatal(err)
		}
		stream.Write(b)
		seen[m.kind()] = true
	}
	if len(seen) != len(kinds) {
		t.Errorf("%d of %d kinds are tried", len(seen), len(kinds))
	}
	for _, want := range all {
		got, err := readFrame(&stream)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v, %v\nwant %+v", got, err, want)
		}
	}
	if _, err := readFrame(&stream); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	for frame, want := range map[string]string{
		"\x01\x00\x00\x00\x01":                         "a frame of 1 bytes",
		"\xff\xff\xff\xff":                             "a frame of 4294967295 bytes",
		"\x02\x00\x00\x00\x09\x02":                     "version 9",
		"\x02\x00\x00\x00\x01\xc8":                     "unknown kind 200",
		"\x06\x00\x00\x00\x01\x04":                     "unexpected EOF",
		"\x07\x00\x00\x00\x01\x06\xdd\xff\xff\xff\xff": "decode",
	} {
		if _, err := readFrame(strings.NewReader(frame)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", frame, err, want)
		}
	}
}

func FuzzFrame(f *testing.F) {
	for _, m := range messages(f) {
		b, err := encode(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[4:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decode(b)
		if err != nil {
			return
		}
		again, err := encode(m)
		if err != nil {
			t.Fatalf("%+v was read and can't be written: %v", m, err)
		}
		if _, err := decode(again[4:]); err != nil {
			t.Fatal(err)
		}
	})
}

var _ device.Source = (*Source)(nil)
