package daemon

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// complaints says of trouble that comes from outside, again and again, once a minute for
// each kind, with how often it came: nobody can fill the log.
type complaints struct {
	say func(format string, a ...any)
	now func() time.Time

	mu    sync.Mutex
	kinds map[string]*complaint
}

type complaint struct {
	said  time.Time
	count int // since then
}

const (
	complainEvery = time.Minute
	maxKinds      = 1000
	otherKinds    = "others" // of what comes beyond maxKinds
)

func newComplaints(say func(format string, a ...any)) *complaints {
	return &complaints{say: say, now: time.Now, kinds: map[string]*complaint{}}
}

// add counts trouble of a kind. Text says what it is and what to do.
func (c *complaints) add(kind, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	k := c.kinds[kind]
	if k == nil && len(c.kinds) >= maxKinds {
		for name, old := range c.kinds {
			if now.Sub(old.said) >= complainEvery {
				delete(c.kinds, name)
			}
		}
		if len(c.kinds) >= maxKinds {
			kind = otherKinds
			k = c.kinds[kind]
		}
	}
	if k == nil {
		k = &complaint{}
		c.kinds[kind] = k
	}
	k.count++
	if now.Sub(k.said) < complainEvery {
		return
	}
	c.say("%s (%d such)", text, k.count)
	k.said, k.count = now, 0
}

// complain tells of trouble with somebody.
func (d *Daemon) complain(about string, err error) {
	d.complaints.add(about+reason(err), about+": "+err.Error())
}

// refused tells of a connection that was turned away.
func (d *Daemon) refused(from net.Addr, why error) {
	d.complaints.add(reason(why), fmt.Sprintf("refused %v: %v", from, why))
}

// reason is an error without the addresses, which differ each time.
func reason(err error) string {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err.Error()
	}
	return err.Error()
}
