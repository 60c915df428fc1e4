package daemon

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"
)

// Each kind is said at once, then once a minute with its count; endless kinds are said as
// one.
func TestComplaints(t *testing.T) {
	var said []string
	c := newComplaints(func(format string, a ...any) { said = append(said, fmt.Sprintf(format, a...)) })
	now := time.Unix(1000, 0)
	c.now = func() time.Time { return now }
	for range 5 {
		c.add("a", "a: do this")
		c.add("b", "b: do that")
		now = now.Add(time.Second)
	}
	now = now.Add(time.Minute)
	c.add("a", "a: do this")
	if want := []string{"a: do this (1 such)", "b: do that (1 such)", "a: do this (5 such)"}; !slices.Equal(said, want) {
		t.Errorf("said %q", said)
	}
	said = nil
	for i := range 5000 {
		c.add(fmt.Sprint(i), fmt.Sprint(i))
	}
	if len(said) > maxKinds+1 || len(c.kinds) > maxKinds+1 {
		t.Errorf("%d lines, %d kinds kept", len(said), len(c.kinds))
	}
	now = now.Add(2 * time.Minute)
	c.add("new", "new")
	if said[len(said)-1] != "new (1 such)" || len(c.kinds) > 2 {
		t.Errorf("old kinds are never forgotten: %d", len(c.kinds))
	}
	// Addresses make no kinds.
	one := &net.OpError{Op: "read", Addr: &net.TCPAddr{Port: 1}, Err: errors.New("broken")}
	two := &net.OpError{Op: "read", Addr: &net.TCPAddr{Port: 2}, Err: errors.New("broken")}
	if reason(one) != reason(fmt.Errorf("x: %w", two)) {
		t.Errorf("%q and %q", reason(one), reason(two))
	}
}
