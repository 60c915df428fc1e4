// Package placement decides which work runs on which devices of a cluster, and what
// waits, and why. It has no goroutine, no clock and no I/O: the same view, time and
// configuration give the same actions.
//
//	for _, a := range placement.Decide(view, now, placement.DefaultConfig()) {
//		switch a.Do {
//		case placement.Start: // a.Item on a.On
//		case placement.Preempt: // stop a.Item, so that a.For can run
//		case placement.Keep: // a.On is a.Item's from now on, as its Keeps
//		case placement.Wait: // a.Item, because of a.Why
//		}
//	}
//
// A Scheduler decides the same and keeps its indices between decisions: for thousands
// of devices and tens of thousands of items.
//
// # What an item needs
//
// A gang: so many devices of a kind and model, of one node, or of several where the
// item allows it; all of them or none. Nodes that drain, lack a label or lately refused
// the item, devices that are sick, cut up, too small or held by anybody are out.
//
// # Who comes first
//
// The higher priority, always: priorities are strict, and a stream of work of a higher
// one starves the lower ones. Within a priority the owner whose devices over the last
// window, and now, are fewest for their share; within an owner the oldest item.
//
// # Where it goes
//
// To a node that holds its data; then where nothing is kept for others, which is not
// overloaded, whose devices have the least memory that suffices, where the fewest
// fitting devices are left over, and whose load is least. An item that takes as many
// devices as there are goes where most are. Which devices of the node: device.Machine
// says, the best connected as a ring.
//
// # Who waits, and what is kept for them
//
// The first gang that does not fit, of each kind and model, keeps the free devices of
// the node that lacks fewest: others pass it on other devices, and on those that are
// kept only if the gang could pre-empt them, by priority. Apart from that nothing waits
// while a device idles that it could have.
//
// # Pre-emption
//
// An item that fits nowhere has items of strictly lower priority stopped that allow it:
// the fewest that make room on one node, of these the lowest, of these the youngest.
// Their devices and the free ones beside them are kept for the item until it starts, there
// or where it fits sooner; only a higher priority takes them. An item that
// was stopped is not stopped again within Config.Protect for work of the same owner, so
// each owner costs it a start at most so often. For a host's memory alone nothing is
// stopped.
//
// # The caller's duties
//
// Carry out each Start and Preempt and say what became of it; a node may refuse, which
// is an item's Refusal. Give a view's items back the Keeps that they were given last, as a
// Scheduler does by itself. A pre-empted item counts as running, Stopping, until its node has
// given it back.
package placement
