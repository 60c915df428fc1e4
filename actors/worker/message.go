package worker

import (
	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// On says what computes: an engine, on the processor or on the one CUDA device
// that the child sees.
type On struct {
	Engine string `msgpack:"engine"` // one of job.Engines; auto is the child's to choose
	CUDA   bool   `msgpack:"cuda"`
	CPUs   []int  `msgpack:"cpus"` // processors to pin the threads of engine native to; nil pins none
}

// Timing asks for the speed of whole training steps.
type Timing struct {
	On        On               `msgpack:"on"`
	Threads   int              `msgpack:"threads"`
	Precision engine.Precision `msgpack:"precision"`
	Seconds   float64          `msgpack:"seconds"` // to measure for
}

// Scoring asks for the score of a checkpoint on a corpus, see train.Sliding.
type Scoring struct {
	On      On           `msgpack:"on"`
	Threads int          `msgpack:"threads"`
	Config  train.Config `msgpack:"config"`  // of the model's training
	Params  string       `msgpack:"params"`  // the checkpoint's folder
	Corpus  string       `msgpack:"corpus"`  // a token file
	Windows int          `msgpack:"windows"` // of one Eval, at most
}

// Facts are what a child can compute with.
type Facts struct {
	Torch string `msgpack:"torch"` // whether there is an engine torch, in words; "" is none
	CUDA  int    `msgpack:"cuda"`  // devices that it sees
}

// The messages; doc.go has the table.
type (
	helloMsg struct {
		PID int `msgpack:"pid"`
	}
	pingMsg  struct{}
	pongMsg  struct{}
	trainMsg struct {
		Task  train.Task `msgpack:"task"`
		On    On         `msgpack:"on"`
		Rank  int        `msgpack:"rank"`
		World int        `msgpack:"world"`
		Epoch uint64     `msgpack:"epoch"`
		Relay RelayAt    `msgpack:"relay"`
	}
	// nextMsg answers rejoinMsg; with Failure there is no next ring.
	nextMsg struct {
		Rank    int             `msgpack:"rank"`
		World   int             `msgpack:"world"`
		Epoch   uint64          `msgpack:"epoch"`
		Failure *actors.Failure `msgpack:"failure"`
	}
	cardMsg struct {
		Rank  int    `msgpack:"rank"`
		World int    `msgpack:"world"`
		Epoch uint64 `msgpack:"epoch"`
		Card  []byte `msgpack:"card"`
	}
	cardsMsg struct {
		Epoch   uint64          `msgpack:"epoch"`
		Cards   [][]byte        `msgpack:"cards"`
		Failure *actors.Failure `msgpack:"failure"`
	}
	abortMsg struct {
		Epoch   uint64          `msgpack:"epoch"`
		Failure *actors.Failure `msgpack:"failure"`
	}
	stopMsg struct {
		Failure *actors.Failure `msgpack:"failure"`
	}
	rejoinMsg struct {
		Epoch   uint64          `msgpack:"epoch"`
		Failure *actors.Failure `msgpack:"failure"`
	}
	progressMsg struct {
		Metrics train.StepMetrics `msgpack:"metrics"`
	}
	endedMsg struct {
		Report  train.Report    `msgpack:"report"`
		Failure *actors.Failure `msgpack:"failure"`
	}
	timeMsg struct {
		Timing Timing `msgpack:"timing"`
	}
	timedMsg struct {
		Rates   glm.Rates       `msgpack:"rates"`
		Failure *actors.Failure `msgpack:"failure"`
	}
	scoreMsg struct {
		Scoring Scoring `msgpack:"scoring"`
	}
	scoredMsg struct {
		Score   train.Score     `msgpack:"score"`
		Failure *actors.Failure `msgpack:"failure"`
	}
	lookMsg struct{}
	seenMsg struct {
		Machine device.Machine  `msgpack:"machine"`
		Failure *actors.Failure `msgpack:"failure"`
	}
	askMsg   struct{}
	factsMsg struct {
		Facts   Facts           `msgpack:"facts"`
		Failure *actors.Failure `msgpack:"failure"`
	}
)

// kinds makes an empty message of each kind.
var kinds = map[kind]func() message{}

func (*helloMsg) kind() kind    { return 1 }
func (*pingMsg) kind() kind     { return 2 }
func (*pongMsg) kind() kind     { return 3 }
func (*trainMsg) kind() kind    { return 4 }
func (*nextMsg) kind() kind     { return 5 }
func (*cardMsg) kind() kind     { return 6 }
func (*cardsMsg) kind() kind    { return 7 }
func (*abortMsg) kind() kind    { return 8 }
func (*stopMsg) kind() kind     { return 9 }
func (*rejoinMsg) kind() kind   { return 10 }
func (*progressMsg) kind() kind { return 11 }
func (*endedMsg) kind() kind    { return 12 }
func (*timeMsg) kind() kind     { return 13 }
func (*timedMsg) kind() kind    { return 14 }
func (*lookMsg) kind() kind     { return 15 }
func (*seenMsg) kind() kind     { return 16 }
func (*askMsg) kind() kind      { return 17 }
func (*factsMsg) kind() kind    { return 18 }
func (*scoreMsg) kind() kind    { return 19 }
func (*scoredMsg) kind() kind   { return 20 }

func init() {
	for _, make := range []func() message{
		func() message { return new(helloMsg) }, func() message { return new(pingMsg) }, func() message { return new(pongMsg) },
		func() message { return new(trainMsg) }, func() message { return new(nextMsg) }, func() message { return new(cardMsg) },
		func() message { return new(cardsMsg) }, func() message { return new(abortMsg) }, func() message { return new(stopMsg) },
		func() message { return new(rejoinMsg) }, func() message { return new(progressMsg) }, func() message { return new(endedMsg) },
		func() message { return new(timeMsg) }, func() message { return new(timedMsg) }, func() message { return new(lookMsg) },
		func() message { return new(seenMsg) }, func() message { return new(askMsg) }, func() message { return new(factsMsg) },
		func() message { return new(scoreMsg) }, func() message { return new(scoredMsg) },
	} {
		kinds[make().kind()] = make
	}
}
