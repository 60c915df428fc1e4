package replica

import (
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// voters is how many of so many candidates vote: an odd number, since an even one
// bears no more losses than the odd one below it.
func voters(candidates int) int {
	switch {
	case candidates < 3:
		return 1
	case candidates < 5:
		return 3
	}
	return 5
}

// change is one step from who votes to who should.
type change struct {
	kind   changeKind
	server Candidate
}

type changeKind int

const (
	nothing changeKind = iota
	add
	remove
)

// next is the next change. Who is no longer there goes first, so that a majority is
// never counted over the dead for long; then the best candidates come in; then what
// is too much goes, the leader never.
func next(now []raft.Server, candidates []Candidate, self string) change {
	there := map[string]Candidate{}
	for _, c := range candidates {
		there[c.Server] = c
	}
	if _, ok := there[self]; !ok {
		return change{} // this node is on its way out: whoever leads next decides
	}
	votes := map[string]bool{}
	for _, v := range now {
		c, ok := there[string(v.ID)]
		switch {
		case !ok:
			return change{remove, Candidate{string(v.ID), string(v.Address)}}
		case c.Addr != string(v.Address) || v.Suffrage != raft.Voter:
			return change{add, c}
		}
		votes[string(v.ID)] = true
	}
	want := voters(len(candidates))
	if len(votes) < want {
		for _, c := range candidates {
			if !votes[c.Server] {
				return change{add, c}
			}
		}
	}
	if len(votes) > want {
		for _, c := range slices.Backward(candidates) {
			if votes[c.Server] && c.Server != self {
				return change{remove, c}
			}
		}
	}
	return change{}
}

// steer keeps the voters as they should be while this node leads.
func (s *Store) steer() {
	defer s.wg.Done()
	tick := time.NewTicker(s.cfg.Timing.Steer)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-s.stop:
			return
		}
		s.setMark()
		if s.Term() == 0 {
			if v := s.Voters(); len(v) > 0 {
				s.setAlone(len(v) == 1 && v[0].Server == s.server)
			}
			continue
		}
		for range 2 * voters(5) {
			if !s.change() {
				break
			}
		}
	}
}

// change makes one step; it tells whether another may follow.
func (s *Store) change() bool {
	f := s.raft.GetConfiguration()
	if f.Error() != nil {
		return false
	}
	now := f.Configuration().Servers
	s.setAlone(len(now) == 1 && string(now[0].ID) == s.server)
	c := next(now, s.cfg.Candidates(), s.server)
	var done raft.IndexFuture
	switch c.kind {
	case nothing:
		return false
	case add:
		done = s.raft.AddVoter(raft.ServerID(c.server.Server), raft.ServerAddress(c.server.Addr), f.Index(), s.cfg.Timing.Heartbeat)
	case remove:
		done = s.raft.RemoveServer(raft.ServerID(c.server.Server), f.Index(), s.cfg.Timing.Heartbeat)
	}
	return done.Error() == nil
}
