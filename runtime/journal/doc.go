// Package journal is what may not be lost: the events of a job, in the order in
// which they were committed, and their replay to the job's state.
//
//	log, err := journal.OpenFile(dir)          // locks the folder, cuts a torn tail
//	state := journal.NewState()
//	err = log.Replay(func(rec []byte) error { … state.Apply(event) })
//	err = log.Append(rec, true)                // on disk when it returns
//
// Log is opaque: it stores records, it does not know what they say. On one
// machine it is a file; other implementations may replicate it.
//
// Duties: one goroutine appends. Whatever must survive a crash is appended with
// sync before anybody acts on it.
//
// Invariants: Replay gives exactly the records whose Append returned nil (those
// without sync may be missing from the end after a crash of the machine), in
// order; a record is never half there.
//
// # File format
//
//	events.log
//	+----------------+
//	| "AGLMJRN" 0x01 |  magic and version, 8 bytes
//	+-----------+-----------+------------------+
//	| u32 LE    | u32 LE    | length bytes     |  repeated
//	| length    | CRC-32C   | record (JSON)    |
//	+-----------+-----------+------------------+
//
// The checksum covers the length's four bytes and the record. A record that is
// cut off, or whose checksum is wrong with nothing valid behind it, is a torn
// tail and is cut; damage in the middle is an error.
package journal
