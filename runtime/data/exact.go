package data

// exactIndex finds rows of equal hash. Up to limit hashes are kept in a table in
// memory, so that most duplicates are known at once; hashes that come after that
// go to a markTable and are resolved at the end. A false match needs two of n
// different rows with one 64-bit hash: n²/2^65, that is 3 in 100,000 for 3·10^7.
type exactIndex struct {
	keys []uint64 // open addressing; 0 is free
	ords []uint32
	used int
	max  int
	late *markTable
}

func newExactIndex(dir string, limit, spill int) *exactIndex {
	return &exactIndex{keys: make([]uint64, 1<<12), ords: make([]uint32, 1<<12), max: limit, late: newMarkTable(dir, "exact", spill)}
}

// add tells whether the hash was seen, and by which row first. With late set the
// answer comes from resolve instead.
func (x *exactIndex) add(h, ord uint64) (of uint64, seen bool, err error) {
	if h == 0 {
		h = 1
	}
	mask := uint64(len(x.keys) - 1)
	i := h & mask
	for x.keys[i] != 0 {
		if x.keys[i] == h {
			return uint64(x.ords[i]), true, nil
		}
		i = (i + 1) & mask
	}
	if x.used >= x.max || ord >= 1<<32 {
		return 0, false, x.late.add(h, ord)
	}
	x.keys[i], x.ords[i] = h, uint32(ord)
	if x.used++; x.used*2 > len(x.keys) {
		x.grow()
	}
	return 0, false, nil
}

func (x *exactIndex) grow() {
	keys, ords := x.keys, x.ords
	x.keys, x.ords = make([]uint64, 2*len(keys)), make([]uint32, 2*len(keys))
	mask := uint64(len(x.keys) - 1)
	for k, h := range keys {
		if h != 0 {
			i := h & mask
			for x.keys[i] != 0 {
				i = (i + 1) & mask
			}
			x.keys[i], x.ords[i] = h, ords[k]
		}
	}
}

// resolve reports the duplicates among the late hashes.
func (x *exactIndex) resolve(drop func(ord, of uint64)) error {
	return x.late.groups(func(m []mark) error {
		for _, d := range m[1:] {
			drop(d.ord, m[0].ord)
		}
		return nil
	})
}

func (x *exactIndex) Close() { x.late.Close() }
