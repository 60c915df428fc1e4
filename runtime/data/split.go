package data

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// Parts in the order of their files.
const (
	partTrain = iota
	partValid
	partTest
	partCount
)

var partNames = [partCount]string{"train", "valid", "test"}

const (
	// minPart is the least that a held-out part must hold to score anything.
	minPart = 200
	// minTotal is the least text that can be split.
	minTotal = 2000
	// maxGroups bounds the groups whose sizes are remembered; with more of them the
	// plain share of hashes is close enough.
	maxGroups = 1 << 18
	// fewFiles is the count of plain text files from which each is a document to
	// be put wholly into one part.
	fewFiles = 20
)

// splitter assigns groups of rows (equal question, context or text) to parts by
// the hash of their content and the seed, so that no group straddles two parts.
type splitter struct {
	seed  uint64
	sizes map[uint64]int64 // by key; nil once there were too many
	total int64
	part  map[uint64]uint8
	valid float64
	test  float64
}

func newSplitter(seed int64, valid, test float64) *splitter {
	return &splitter{seed: mix(uint64(seed) + prime), sizes: map[uint64]int64{}, valid: valid, test: test}
}

func (s *splitter) key(group uint64) uint64 { return mix(group ^ s.seed) }

func (s *splitter) add(group uint64, bytes int64) {
	s.total += bytes
	if s.sizes == nil {
		return
	}
	s.sizes[group] += bytes
	if len(s.sizes) > maxGroups {
		s.sizes = nil
	}
}

// few tells that there are fewer groups than parts.
func (s *splitter) few() bool { return s.sizes != nil && len(s.sizes) < s.wanted() }

func (s *splitter) wanted() int {
	if s.test == 0 {
		return 2
	}
	return 3
}

// target is the bytes that a part of a share should have.
func target(total int64, share float64) int64 {
	return max(int64(math.Ceil(share*float64(total))), minPart)
}

// decide fixes the parts: in the order of their keys, groups go to valid until it
// has its share of the bytes, then to test, and the rest to train. A group of more
// than twice the share is passed over, so that one giant does not become a part.
func (s *splitter) decide() {
	if s.sizes == nil {
		return
	}
	type g struct {
		group, key uint64
		bytes      int64
	}
	all := make([]g, 0, len(s.sizes))
	for k, n := range s.sizes {
		all = append(all, g{k, s.key(k), n})
	}
	slices.SortFunc(all, func(a, b g) int {
		if c := cmp.Compare(a.key, b.key); c != 0 {
			return c
		}
		return cmp.Compare(a.group, b.group)
	})
	s.part = make(map[uint64]uint8)
	left := len(all)
	for _, p := range []struct {
		part  uint8
		share float64
	}{{partValid, s.valid}, {partTest, s.test}} {
		if p.share == 0 {
			continue
		}
		want, have, got := target(s.total, p.share), int64(0), 0
		keep := 1 // groups that must be left for the parts after this
		if p.part == partValid && s.test > 0 {
			keep = 2
		}
		for _, x := range all {
			if have >= want || left <= keep {
				break
			}
			if _, taken := s.part[x.group]; taken || x.bytes > 2*want {
				continue
			}
			s.part[x.group] = p.part
			have += x.bytes
			got++
			left--
		}
		if got == 0 { // every group is a giant: the smallest one
			best := -1
			for i, x := range all {
				if _, taken := s.part[x.group]; !taken && (best < 0 || x.bytes < all[best].bytes) {
					best = i
				}
			}
			if best >= 0 {
				s.part[all[best].group] = p.part
				left--
			}
		}
	}
}

// of gives the part of a group.
func (s *splitter) of(group uint64) int {
	if s.sizes != nil {
		return int(s.part[group])
	}
	k := float64(s.key(group)) / (1 << 64)
	switch {
	case k < s.valid:
		return partValid
	case k < s.valid+s.test:
		return partTest
	}
	return partTrain
}

// tail is the split of one long text: train, then valid, then test, contiguous.
type tail struct {
	total int64
	seen  int64
	ends  [partCount]int64
	last  int // part that takes the rest: the held-out one, or valid where the user gave his own
}

func newTail(total int64, valid, test float64) *tail {
	v, h := target(total, valid), int64(0)
	if test > 0 {
		h = target(total, test)
	}
	last := partCount - 1
	if test <= 0 {
		last = partValid
	}
	return &tail{total: total, ends: [partCount]int64{total - v - h, total - h, total}, last: last}
}

func (t *tail) part() int {
	for p := range partCount {
		if t.seen < t.ends[p] {
			return p
		}
	}
	return t.last
}

func tooSmall(file string, bytes int64) error {
	return &InputError{File: file, Field: "data", Msg: fmt.Sprintf("after cleaning %d bytes of text are left, which is too little to train on and hold some out", bytes), Hint: fmt.Sprintf("give at least %d bytes", minTotal)}
}
