package remote

import (
	"fmt"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/asynkron/protoactor-go/remote"
	"google.golang.org/protobuf/proto"
)

// typ of a letter's data. The zero value is a registered message.
type typ int32

const (
	typeEnvelope typ = iota
	typeWatch
	typeUnwatch
	typeTerminated
	typeDead // DeadLetterResponse: what was asked reached nobody
)

// typeNames are those of the frame, by typ.
var typeNames = []string{"autoglm.Envelope", "actor.Watch", "actor.Unwatch", "actor.Terminated", "actor.DeadLetterResponse"}

// letter is a message on its way out.
type letter struct {
	to, sender *actor.PID
	header     map[string]string
	message    any // as it was sent; nil for a word of the library's
	typ        typ
	data       []byte
}

// seal encodes the message.
func (l *letter) seal(k *Kinds) (err error) {
	if m, ok := l.message.(*actor.DeadLetterResponse); ok {
		l.typ, l.message = typeDead, nil
		return l.proto(m)
	}
	if l.data, err = k.Encode(l.message); err != nil {
		return err
	}
	n := 0
	for k, v := range l.header {
		n += len(k) + len(v)
	}
	if n > 1<<10 {
		return fmt.Errorf("%T: its headers take more than 1 KiB", l.message)
	}
	return nil
}

// proto encodes a word of the library's.
func (l *letter) proto(m proto.Message) (err error) {
	l.data, err = proto.Marshal(m)
	return err
}

// frame makes letters to one life into a batch.
func frame(letters []letter, self string) *remote.RemoteMessage {
	b := &remote.MessageBatch{TypeNames: typeNames, Envelopes: make([]*remote.MessageEnvelope, 0, len(letters))}
	targets, senders := map[string]int32{}, map[string]int32{}
	for _, l := range letters {
		e := &remote.MessageEnvelope{TypeId: int32(l.typ), MessageData: l.data}
		i, ok := targets[l.to.Id]
		if !ok {
			i = int32(len(b.Targets))
			targets[l.to.Id] = i
			b.Targets = append(b.Targets, &actor.PID{Address: l.to.Address, Id: l.to.Id})
		}
		e.Target = i
		if l.sender != nil { // 0 is none
			if e.Sender, ok = senders[l.sender.Id]; !ok {
				b.Senders = append(b.Senders, &actor.PID{Address: self, Id: l.sender.Id})
				e.Sender = int32(len(b.Senders))
				senders[l.sender.Id] = e.Sender
			}
		}
		if len(l.header) > 0 {
			e.MessageHeader = &remote.MessageHeader{HeaderData: l.header}
		}
		b.Envelopes = append(b.Envelopes, e)
	}
	return &remote.RemoteMessage{MessageType: &remote.RemoteMessage_MessageBatch{MessageBatch: b}}
}
