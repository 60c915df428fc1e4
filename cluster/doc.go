// Package cluster is who is there: nodes that find each other by gossip, agree who
// belongs, and are known to all within a second.
//
//	p, err := port.Listen(port.Config{Listen: "10.0.0.2:7400", Identity: id})
//	m, err := cluster.Start(ctx, cluster.Config{Dir: dir, Port: p, Seeds: []string{"10.0.0.1:7400"}})
//	go p.Serve()
//	err = m.Ready(ctx)       // it has joined, or made a cluster of its own
//	for _, n := range m.Members() { … }
//	err = m.Leave(ctx)
//
// # How one becomes a member
//
// Gossip (memberlist) only hints. Whom it names is dialled and greeted: over the
// port's TLS the two exchange who they are, and each refuses the other where
// cluster, version, name or identity don't fit. Only who was greeted is a member.
// The greeting also hands out the gossip's keys.
//
// A node has an id, kept in its folder, and a boot number that grows with each
// start: a restarted node is a newcomer under an old id, and whatever was meant for
// its former life is refused by the number.
//
// Only a node that was started without seeds and without state makes a cluster,
// and gives it its id. Nodes of two ids refuse each other.
//
// # How one is missed
//
// Gossip declares a silent node dead after about 4 s. Whoever had a connection to
// it that broke calls Suspect: the node is greeted at once, and a refused
// connection is a death that nobody need wait for. A node that was given up and
// lives is admitted again by the next greeting. What it did meanwhile is for the
// epochs of those above to fence; gossip is available, not consistent.
//
// Every node dials the seeds and the members it last knew (kept on disk) as long as
// it does not see them, so that a partition that heals becomes one cluster again by
// itself.
//
// # On the wire
//
//	TCP, "autoglm-hello/1"     greetings and their answers: frames of msgpack
//	TCP, "autoglm-gossip/1"    memberlist's push/pull and pings
//	TCP, "autoglm-join/1"      a token and a certificate request, answered by a node with the authority's key
//	UDP, the same number       memberlist's packets, AES-256-GCM
//
//	frame: u32 length of the body, LE | body
package cluster
