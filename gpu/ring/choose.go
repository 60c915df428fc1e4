package ring

import (
	"fmt"
	"slices"
)

// choose settles the backend: all ranks see the same cards and so choose alike.
func choose(backend string, cards []card) (string, error) {
	apart := hosts(cards)
	if backend == Auto {
		backend = pick(cards, apart)
	}
	switch {
	case backend == SHM || backend == Unix:
		if len(apart) > 1 {
			return "", fmt.Errorf("backend %s joins processes of one host, but rank %d is on another one than rank 0; choose %s or %s", backend, apart[1][0], TCP, Auto)
		}
	case plaintext(backend):
		for r := range cards {
			c := &cards[r]
			switch {
			case c.Lacks != "":
				return "", fmt.Errorf("rank %d: %s", r, c.Lacks)
			case backend == NCCL && !c.GPU:
				return "", fmt.Errorf("backend %s sums between GPUs, and rank %d has none; choose %s", NCCL, r, Auto)
			case c.Secured && !c.Plaintext:
				return "", fmt.Errorf("backend %s neither encrypts nor authenticates, and rank %d's endpoint has TLS; choose %s, or allow it by the job's plaintext_collectives: true (--plaintext-collectives)", backend, r, Auto)
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
				return "", fmt.Errorf("backend %s: rank %d does not listen for it", backend, r)
			}
			if via == TCP && cards[q].Secured != cards[r].Secured {
				secured, plain := r, q
				if cards[q].Secured {
					secured, plain = q, r
				}
				return "", fmt.Errorf("rank %d's endpoint has TLS and rank %d's has none; give both certificates, or neither", secured, plain)
			}
		}
	}
	return backend, nil
}

// pick is what Auto means.
func pick(cards []card, apart [][]int) string {
	all := func(is func(c card) bool) bool {
		return !slices.ContainsFunc(cards, func(c card) bool { return !is(c) })
	}
	local := func(ranks []int) bool {
		return !slices.ContainsFunc(ranks, func(r int) bool { return cards[r].Unix == "" })
	}
	switch {
	case all(func(c card) bool { return c.GPU && c.Lacks == "" && (!c.Secured || c.Plaintext) }):
		return NCCL
	case len(apart) == 1 && local(apart[0]):
		return SHM
	case len(apart) > 1 && len(apart) < len(cards):
		// Ranks of one host that lie apart would be summed in another order than over
		// tcp: the bits should not depend on who happens to be where.
		for _, ranks := range apart {
			if len(ranks) > 1 && !local(ranks) || ranks[len(ranks)-1]-ranks[0] != len(ranks)-1 {
				return TCP
			}
		}
		return Hierarchical
	}
	return TCP
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
