package actors

import (
	"github.com/vmihailenco/msgpack/v5"

	"github.com/open-autoglm/autoglm/cluster/remote"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// Kinds are the messages that travel between nodes. A number is a message's for ever.
func Kinds() *remote.Kinds {
	k := remote.NewKinds()
	remote.Register[Assign](k, 1)
	remote.Register[Release](k, 2)
	remote.Register[Progress](k, 3)
	remote.Register[RankEnded](k, 4)
	remote.Register[RingBroken](k, 5)
	remote.Register[RingCard](k, 6)
	remote.Register[RingCards](k, 7)
	remote.Register[Enlist](k, 8)
	remote.Register[Enlisted](k, 9)
	remote.Register[Credit](k, 10)
	remote.Register[Said](k, 11)
	return k
}

// Of the messages those between a Trial or a Supervisor and the workers of other nodes
// travel. Errors go as Failures; what only holds within a process stays behind, and
// what the other node works out for itself: see site.own in actors/node.

// assignOut is an Assign on its way.
type assignOut Assign

// EncodeMsgpack implements msgpack.CustomEncoder.
func (a *Assign) EncodeMsgpack(e *msgpack.Encoder) error {
	out := assignOut(*a)
	out.Task.ByteLens = nil // of each token: its node has the tokenizer
	return e.Encode(&out)
}

// DecodeMsgpack implements msgpack.CustomDecoder.
func (a *Assign) DecodeMsgpack(d *msgpack.Decoder) error {
	var in assignOut
	if err := d.Decode(&in); err != nil {
		return err
	}
	*a = Assign(in)
	return nil
}

type rankEndedOut struct {
	Epoch   uint64       `msgpack:"epoch"`
	Rank    int          `msgpack:"rank"`
	Report  train.Report `msgpack:"report"`
	Failure *Failure     `msgpack:"failure"`
	Lost    bool         `msgpack:"lost"`
}

// EncodeMsgpack implements msgpack.CustomEncoder.
func (m *RankEnded) EncodeMsgpack(e *msgpack.Encoder) error {
	return e.Encode(&rankEndedOut{m.Epoch, m.Rank, m.Report, FailureOf(m.Err), m.Lost})
}

// DecodeMsgpack implements msgpack.CustomDecoder.
func (m *RankEnded) DecodeMsgpack(d *msgpack.Decoder) error {
	var in rankEndedOut
	err := d.Decode(&in)
	*m = RankEnded{in.Epoch, in.Rank, in.Report, in.Failure.Err(), in.Lost}
	return err
}

type ringBrokenOut struct {
	Epoch   uint64   `msgpack:"epoch"`
	Rank    int      `msgpack:"rank"`
	Failure *Failure `msgpack:"failure"`
}

// EncodeMsgpack implements msgpack.CustomEncoder.
func (m *RingBroken) EncodeMsgpack(e *msgpack.Encoder) error {
	return e.Encode(&ringBrokenOut{m.Epoch, m.Rank, FailureOf(m.Err)})
}

// DecodeMsgpack implements msgpack.CustomDecoder.
func (m *RingBroken) DecodeMsgpack(d *msgpack.Decoder) error {
	var in ringBrokenOut
	err := d.Decode(&in)
	*m = RingBroken{in.Epoch, in.Rank, in.Failure.Err()}
	return err
}

type ringCardsOut struct {
	Epoch   uint64   `msgpack:"epoch"`
	At      int      `msgpack:"at"`
	Cards   [][]byte `msgpack:"cards"`
	Failure *Failure `msgpack:"failure"`
}

// EncodeMsgpack implements msgpack.CustomEncoder.
func (m *RingCards) EncodeMsgpack(e *msgpack.Encoder) error {
	return e.Encode(&ringCardsOut{m.Epoch, m.At, m.Cards, FailureOf(m.Err)})
}

// DecodeMsgpack implements msgpack.CustomDecoder.
func (m *RingCards) DecodeMsgpack(d *msgpack.Decoder) error {
	var in ringCardsOut
	err := d.Decode(&in)
	*m = RingCards{in.Epoch, in.At, in.Cards, in.Failure.Err()}
	return err
}
