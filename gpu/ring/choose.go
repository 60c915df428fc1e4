package ring

import (
	"fmt"
	"slices"
)

// choice is how all ranks of a ring join.
type choice struct {
	backend string
	gpus    bool   // of Hierarchical: buffers on GPUs are summed by NCCL inside each host
	why     string // for people
}

func (c choice) String() string {
	s := c.backend
	if c.gpus {
		s += " with " + NCCL + " inside each host"
	}
	return s + ": " + c.why
}

// choose settles how the ranks join: all see the same cards and so choose alike.
func choose(backend string, cards []card) (choice, error) {
	apart := hosts(cards)
	c := choice{backend, backend == Hierarchical && noNCCL(cards) == "", "as asked for"}
	if backend == Auto {
		c = pick(cards, apart)
	}
	backend = c.backend
	refuse := func(format string, a ...any) (choice, error) { return choice{}, fmt.Errorf(format, a...) }
	switch {
	case backend == SHM || backend == Unix:
		if len(apart) > 1 {
			return refuse("backend %s joins processes of one host, but rank %d is on another one than rank 0; choose %s or %s", backend, apart[1][0], TCP, Auto)
		}
	case plaintext(backend):
		for r := range cards {
			c := &cards[r]
			switch {
			case c.Lacks != "":
				return refuse("rank %d: %s", r, c.Lacks)
			case backend == NCCL && !c.GPU:
				return refuse("backend %s sums between GPUs, and rank %d has none; choose %s", NCCL, r, Auto)
			case c.Secured && !c.Plaintext:
				return refuse("backend %s neither encrypts nor authenticates, and rank %d's endpoint has TLS; choose %s, or allow it by the job's plaintext_collectives: true (--plaintext-collectives)", backend, r, Auto)
			}
		}
	}
	for r := range cards {
		for q := range cards {
			if q == r {
				continue
			}
			via := path(backend, &cards[q], &cards[r])
			if via == TCP && cards[r].TCP == "" || via == Unix && cards[r].Unix == "" {
				return refuse("backend %s: rank %d does not listen for it", backend, r)
			}
			if via == TCP && cards[q].Secured != cards[r].Secured {
				secured, plain := r, q
				if cards[q].Secured {
					secured, plain = q, r
				}
				return refuse("rank %d's endpoint has TLS and rank %d's has none; give both certificates, or neither", secured, plain)
			}
		}
	}
	return c, nil
}

// pick is what Auto means.
//
//	ranks                                  all may use NCCL         otherwise
//	all on one host                        nccl                     shm
//	one on each host                       nccl                     tcp
//	several next to each other on a host   nccl where RDMA joins    hierarchical
//	                                       the hosts; hierarchical
//	                                       with nccl inside
//	mixed up over hosts                    nccl                     tcp
//
// Without RDMA NCCL would cross between the hosts on sockets of its own, which
// nobody watches or encrypts; the hierarchy crosses on ours, and once for a host's
// ranks together.
func pick(cards []card, apart [][]int) choice {
	lacks := noNCCL(cards)
	all := func(is func(c *card) bool) bool {
		return !slices.ContainsFunc(cards, func(c card) bool { return !is(&c) })
	}
	c := choice{why: "all ranks are on one host"}
	oneHost, grouped := len(apart) == 1, len(apart) > 1 && len(apart) < len(cards)
	switch {
	case oneHost:
		c.backend = SHM
		if !sharing(cards, apart[0]) {
			c.backend, c.why = TCP, "not all ranks listen on unix sockets"
		}
	case !grouped:
		c.backend, c.why = TCP, "each rank is on a host of its own"
	default:
		c.backend, c.why = Hierarchical, "several ranks share a host"
		// Ranks of one host that lie apart would be summed in another order than over
		// tcp: the bits should not depend on who happens to be where.
		for _, ranks := range apart {
			if len(ranks) > 1 && !sharing(cards, ranks) || ranks[len(ranks)-1]-ranks[0] != len(ranks)-1 {
				c.backend, c.why = TCP, "ranks that share a host don't follow on each other, or don't listen on unix sockets"
			}
		}
	}
	switch {
	case lacks != "":
		if slices.ContainsFunc(cards, func(c card) bool { return c.GPU }) {
			c.why += "; no " + NCCL + ": " + lacks
		}
	case c.backend != Hierarchical:
		c.backend = NCCL
	case all(func(c *card) bool { return c.RDMA }):
		c.backend, c.why = NCCL, "RDMA joins the hosts"
	default:
		c.gpus, c.why = true, c.why+", and no RDMA joins the hosts"
	}
	return c
}

// noNCCL tells why NCCL can't sum between the ranks' GPUs; "" when it can.
func noNCCL(cards []card) string {
	for r := range cards {
		switch c := &cards[r]; {
		case !c.GPU:
			return fmt.Sprintf("rank %d has no GPU", r)
		case c.Lacks != "":
			return fmt.Sprintf("rank %d: %s", r, c.Lacks)
		case c.Secured && !c.Plaintext:
			return fmt.Sprintf("it neither encrypts nor authenticates, and rank %d's endpoint has TLS; plaintext_collectives: true allows it", r)
		}
	}
	return ""
}

// sharing tells whether ranks of one host can share memory.
func sharing(cards []card, ranks []int) bool {
	return !slices.ContainsFunc(ranks, func(r int) bool { return cards[r].Unix == "" })
}

// hosts groups the ranks by their hosts, in the order of each host's lowest rank.
func hosts(cards []card) [][]int {
	var out [][]int
	at := map[string]int{}
	for r, c := range cards {
		i, ok := at[c.Host]
		if !ok {
			i = len(out)
			at[c.Host] = i
			out = append(out, nil)
		}
		out[i] = append(out[i], r)
	}
	return out
}

// path is how one rank reaches another: over a unix socket where both are on one
// host and the backend doesn't say otherwise.
func path(backend string, from, to *card) string {
	switch {
	case backend == TCP:
		return TCP
	case backend == SHM || backend == Unix, from.Host == to.Host && from.Unix != "" && to.Unix != "":
		return Unix
	}
	return TCP
}

// secured tells whether the endpoint's TCP is encrypted.
func (e *Endpoint) secured() bool { return e.tcp != nil && (e.cfg.TLS != nil || e.cfg.Secured) }
