// Package remote carries messages between the actors of different nodes.
//
//	kinds := remote.NewKinds()
//	remote.Register[Assign](kinds, 1)                  // from then on *Assign travels
//	r, err := remote.Start(system, remote.Config{Port: p, Addr: self.Addr, Boot: self.Boot, Kinds: kinds})
//	go p.Serve()                                       // after Start
//	far := r.PID(remote.At(m.Addr, m.Boot), "worker/0")
//	ctx.Watch(far)
//	ctx.Send(far, &Assign{…})                          // or err := r.Send(far, &Assign{…})
//	answer, err := r.Ask(ctx, far, &Question{})        // there: ctx.Respond(&Answer{})
//	r.Lost(remote.At(m.Addr, m.Boot))                  // the cluster says that it is gone
//
// It is protoactor's actor system and the service and frames of its remote; their
// two ends, which protoactor would also bring, are this package's own. They ride on
// the node's one port.
//
// # Lives
//
// An address of a PID names a life of a node: where it listens, and its boot
// number, as in "10.0.0.2:7400#17". A restarted node is another address. So nothing
// that was meant for its predecessor reaches it, no late answer of the predecessor
// is taken for its own, and watches of the predecessor end when it is gone.
//
// # What holds
//
//   - A message arrives at most once, and messages of one actor to another in the
//     order in which they were sent, until their connection breaks.
//   - A message is encoded by who sends it, before Send returns: it may be changed
//     afterwards. One that is not registered, or is larger than MaxMessage, is
//     refused there: Send returns the error, and a context's Send makes it a dead
//     letter with a log line.
//   - What could not be written is a dead letter, with its sender told so by a
//     DeadLetterResponse: never dropped without a word. What was written just before
//     a connection broke may have arrived or not.
//   - Terminated comes for everything watched on a node when its connection breaks,
//     when Lost is called, and when it can't be reached; once for each watch.
//   - A peer speaks for the addresses of its certificate alone, to actors alone, in
//     registered kinds alone. Anything else it sends is refused and told to
//     Config.Refused; it never ends more than its own connection.
//
// # The caller's duties
//
// Start comes before the port's Serve and before any actor is spawned whose PID is
// to travel. Messages are pointers to structs that msgpack can encode: exported
// fields, no interfaces, no errors, no channels; *actor.PID fields travel as they
// are. Senders bound their own rate: nothing here pushes back, so that what may come
// often goes on credit that its receiver gives (in package actors, metrics and words),
// and what waits for a node that reads slowly is bounded in bytes (maxQueue), beyond
// which sends fail. An actor can't be stopped from another node: send it a message.
//
// # On the wire
//
// gRPC, remote.Remoting/Receive, one stream each way on a connection of its own,
// over the port's "autoglm-actors/1".
//
//	→ ConnectRequest{ServerConnection{SystemId, Address: the caller's life}}
//	← ConnectResponse{MemberId: the life that was reached}
//	→ MessageBatch of at most 64, of types
//	  autoglm.Envelope, and actor.Watch, Unwatch, Terminated, DeadLetterResponse
//
//	message Envelope { uint32 version = 1; uint32 kind = 2; bytes data = 3; } // data: msgpack
package remote
