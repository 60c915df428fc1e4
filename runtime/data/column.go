package data

import (
	"bytes"

	"github.com/cespare/xxhash/v2"
)

// column is what the sample shows of a column.
type column struct {
	name      string
	n         int // rows that have it
	kinds     [6]int
	bytes     int
	questions int
	spaces    int
	numbers   int
	chat      int // arrays of {role, content} or {from, value}
	distinct  map[uint64]struct{}
	order     int
}

func (c *column) mean() float64 {
	if s := c.kinds[String]; s > 0 {
		return float64(c.bytes) / float64(s)
	}
	return 0
}

func (c *column) mostly(k Kind) bool { return c.kinds[k]*2 > c.n && c.n > 0 }

func (c *column) words() bool { // running text rather than codes or numbers
	return c.mostly(String) && c.numbers*2 < c.kinds[String]
}

func (c *column) see(f *Field) {
	c.n++
	c.kinds[f.Kind]++
	if f.Kind == Array && isChat(f.Val) {
		c.chat++
	}
	if f.Kind != String {
		if f.Kind == Number || f.Kind == Bool {
			c.distinct[xxhash.Sum64(f.Val)] = struct{}{}
		}
		return
	}
	v := bytes.TrimSpace(f.Val)
	c.bytes += len(v)
	c.distinct[xxhash.Sum64(v)] = struct{}{}
	if len(v) > 0 {
		if v[len(v)-1] == '?' || bytes.HasSuffix(v, []byte("？")) {
			c.questions++
		}
		if bytes.IndexByte(v, ' ') > 0 || len(v) > 0 && v[0] >= 0x80 {
			c.spaces++
		}
	}
	if len(v) == 0 || isNumber(string(v)) || string(v) == "NA" {
		c.numbers++
	}
}

// isChat tells an array whose first element is a turn of a dialogue.
func isChat(raw []byte) bool {
	first, who, what := true, false, false
	elements(raw, func(v []byte, k Kind) {
		if !first || k != Object {
			first = false
			return
		}
		first = false
		members(v, func(key string, _ []byte, k Kind) {
			switch key {
			case "role", "from", "speaker":
				who = true
			case "content", "value", "text":
				what = true
			}
		})
	})
	return who && what
}
