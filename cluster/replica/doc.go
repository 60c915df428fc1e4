// Package replica keeps streams of opaque records on one, three or five nodes, so
// that no single node's loss loses one, and lets one node at a time lead.
//
//	s, err := replica.Open(replica.Config{Dir: dir, Port: p, Node: id, Addr: addr, Found: first, Candidates: alive, Events: ev})
//	// when ev.Leading(term) was called:
//	log := s.Log("job-7", term)
//	err = log.Append(record, true)      // on the disks of a majority when it returns
//	err = log.Replay(func(rec []byte) error { … })
//	err = s.Backup(w)          // and, when all copies are lost:
//	err = replica.Restore(dir, backup)
//
// Underneath is hashicorp/raft. The leader chooses who votes among the candidates:
// one of fewer than three, three of fewer than five, else five; who is no longer a
// candidate is replaced at once. All others need not take part.
//
// # Terms
//
// A Log belongs to one term of this node's leadership. A record that was appended
// under another term than the one that raft gives it is refused where it lands, on
// all nodes alike, so that nothing a former leader still does gets through: ErrStale.
//
// # What is where
//
//	DIR/id             this copy's server id: the node's id and a generation
//	DIR/log/           raft's log (raft-wal), synced before anything is acknowledged
//	DIR/snapshots/     of all streams, two kept
//	DIR/mark           how far the log once reached: one that ends before it is damaged
//	DIR/alone          there while this copy is the only voter
//	DIR/streams/       a file a stream, made anew from the two above at each start
//
// A copy that finds its log damaged sets it aside and begins as an empty one under a
// new generation, since one that forgot how it voted must not vote under its old
// name; the leader replaces the old by the new and sends it everything. The only
// copy there is can't be rebuilt: that is an error.
//
// # Formats
//
//	command:  u8 op | u64 term, LE | u8 length of the stream's name | name | record
//	stream:   repeated: u32 length, LE | u32 CRC-32C of the record, LE | record
//	snapshot: "AGLSNAP" 0x01 | repeated: u8 length of the name | name | u64 size, LE | that much of the stream's file
package replica
