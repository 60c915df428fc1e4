// Package actors holds the four actors that carry a job out. They are mailboxes:
// each message becomes one call on a plain value of a room below (the stage
// machine, the search, the journal, a run), and the answer becomes messages.
//
// Node wiring is in actors/node, and what attaches to a node in actors/driver.
//
// # Messages
//
//	message       from → to              precondition, effect                        if it is lost
//	Interrupt     driver → Supervisor    stop work, keep state, end interrupted      the driver sends it again
//	AgentReady    SearchAgent → Supervisor  it was (re)started and needs the history  its restart sends it again
//	History       Supervisor → SearchAgent  decisions and outcomes so far: replay     AgentReady asks again
//	Decide        SearchAgent → Supervisor  a decision to commit and carry out        replay sends it again
//	Outcome       Supervisor → SearchAgent  a committed end of a decision             History carries it
//	CloseSearch   Supervisor → SearchAgent  no more decisions                         History carries it
//	Steer         user → Supervisor → SearchAgent  an order of a user's, to be taken or refused   the user hears nothing, and says it again
//	Ordered       SearchAgent → Supervisor  the order, with its place among the decisions, to commit, or why it is refused   the same; History carries what was committed
//	Steered       Supervisor → user      it was committed, or why not                  the same
//	StopTrial     Supervisor → Trial     release the workers, report as stopped        the trial goes on to its end, and is recorded as stopped
//	SearchEnded   SearchAgent → Supervisor  nothing runs and nothing follows          replay sends it again
//	Assign        Trial → GPUWorker      run one rank of a task under an epoch        the Trial's restart forms a new ring
//	Release       Trial → GPUWorker      give up what runs under that epoch           a newer Assign has the same effect
//	Progress      GPUWorker → Trial → Supervisor  metrics, never journalled; on credit the next one says more
//	Said          lending node → Supervisor  what its user wants to know; on credit    the node's own log has it
//	Credit        Supervisor → GPUWorker, lending node  all reports up to that one are dealt with: more may come  the next one stands for it; without any the sender tries again after 2 s
//	RingBroken    GPUWorker → Trial      a rank's ring ended and no worker was lost: form the next   RankEnded, when the ranks have waited in vain
//	Sick          node → GPUWorker       the device is taken out: give up what runs, and stop        the node's next look sends it again
//	RankEnded     GPUWorker → Trial      a rank's task ended, or its worker restarted sent again by nobody: local mail is not lost while both live
//	Enlist        lending node → Supervisor  workers of another node: trials that wait start there    comes again every half second
//	Enlisted      Supervisor → lending node  the answer; Lost: they ran out of its sight, and are let go  asked for again
//	Widen         Supervisor → SearchAgent  more trials side by side, from the next decision on     the SearchAgent's restart is given the number
//	Grow          Supervisor → Trial     workers to take into the ring, if it is faster with them   local mail is not lost
//	Returned      Trial → Supervisor     it is not: they are free again               local mail is not lost
//	RingCard      GPUWorker → Trial      of another node: a rank's card for the ring  the ring is not formed in time, and RankEnded says so
//	RingCards     Trial → GPUWorker      … all cards, 32 a message                    the same
//	TrialEnded    Trial → Supervisor     all ranks ended; epoch fences old ones       the Supervisor's restart starts the Trial anew
//
// Between nodes these go by cluster/remote (travel.go): at most once, and where they
// may have been lost the other node is Terminated, and its workers' tasks with it.
//
// Every report of a rank carries the epoch of the ring that it belongs to; a
// Trial drops those of older epochs in one place.
//
// # Supervision
//
//	who fails     what happens
//	GPUWorker     restarted; its running rank is cancelled and waited for, and the Trial is told (Lost): the
//	              Trial aborts the ring, waits for the other ranks and forms a new one from the last checkpoint
//	              one whose device turned sick is stopped; its trials go on on the others, or anew on another one
//	Trial         restarted; releases its workers and forms a new ring from the last checkpoint
//	SearchAgent   restarted; replays decisions and outcomes and goes on where it was
//	a stage       or a step of the user's: an error, a panic or its time ends the attempt; the next one follows
//	              once that has ended, after the stage's backoff, which the journal keeps. After the last one the
//	              job fails, and what ran beside it is stopped
//	Supervisor    restarted; its children are stopped, the journal is replayed, what was running resumes from
//	              its last checkpoint
//	a task        a panic or an error ends the attempt with a reason; the Supervisor retries as the job says,
//	              then records the trial as failed. Divergence and memory by estimate would come again, since
//	              runs repeat exactly: they are recorded at once
//	the disk      an error of it (full, quota, read-only), met by the journal, a stage or a task, ends the job
//	              with its state kept; nothing is recorded against the trial, and resume goes on with it.
//	              So does a checkpoint that was damaged since it was written
//
// The conversations in testdata show each of these, message by message.
//
// A trial that was disturbed in any of these ways ends with the numbers of one
// that was not, since a run continues exactly from its checkpoint.
package actors
