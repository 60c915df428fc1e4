package daemon

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"time"

	"github.com/open-autoglm/autoglm/cluster/port"
)

// Each node keeps a connection to the leader that says nothing. When one of the two
// processes dies its kernel ends the connection, and the other looks at once, where
// gossip would take seconds.
//
//	from the node: u8 length of its id | id | u64 boot, LE

const (
	watchProtocol = "autoglm-watch/1"
	watchAgain    = 50 * time.Millisecond
)

// watched holds a node's connection until it breaks.
func (d *Daemon) watched(c net.Conn) {
	defer c.Close()
	defer closeWith(d.ctx, c)()
	_ = c.SetReadDeadline(time.Now().Add(askTime))
	var n [1]byte
	if _, err := io.ReadFull(c, n[:]); err != nil {
		return
	}
	b := make([]byte, int(n[0])+8)
	if _, err := io.ReadFull(c, b); err != nil {
		return
	}
	id, boot := string(b[:n[0]]), binary.LittleEndian.Uint64(b[n[0]:])
	_ = c.SetReadDeadline(time.Time{})
	_, _ = c.Read(n[:])
	if m, ok := d.members.Member(id); ok && m.Boot == boot && d.ctx.Err() == nil {
		d.members.Suspect(id)
	}
}

// watch holds this node's connection to whoever leads.
func (d *Daemon) watch() {
	self := d.members.Self()
	hello := append([]byte{byte(len(self.ID))}, self.ID...)
	hello = binary.LittleEndian.AppendUint64(hello, self.Boot)
	for pause(d.ctx, watchAgain) {
		addr := d.leaderAddr()
		if addr == "" || addr == self.Addr {
			continue
		}
		d.watchLeader(addr, hello)
	}
}

func (d *Daemon) watchLeader(addr string, hello []byte) {
	held, cancel := d.whileLeads(d.ctx, addr)
	defer cancel()
	c, err := d.port.Dial(held, port.Call{Addr: addr, Protocol: watchProtocol})
	if err != nil {
		return
	}
	defer c.Close()
	defer closeWith(held, c)()
	if _, err := c.Write(hello); err != nil {
		return
	}
	var b [1]byte
	_, _ = c.Read(b[:])
	if held.Err() != nil {
		return // another leads
	}
	for _, m := range d.members.Members() {
		if m.Addr == addr {
			d.members.Suspect(m.ID)
		}
	}
}

// closeWith closes a connection when ctx ends, until stop is called.
func closeWith(ctx context.Context, c net.Conn) (stop func()) {
	off := context.AfterFunc(ctx, func() { c.Close() })
	return func() { off() }
}
