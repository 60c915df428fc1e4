package train

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// Every token of the sources is on exactly one side, in order, marked as it was;
// short documents stay whole; the guard is spread over the text and small.
func TestCarve(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tmp, err := os.MkdirTemp("", "carve")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(tmp)
		docs := rapid.SliceOfN(rapid.IntRange(1, 9000), 1, 12).Draw(t, "docs")
		long := rapid.Bool().Draw(t, "long")
		if long {
			docs = append(docs, 120_000)
		}
		// Each token has an id of its own, so that its way can be followed.
		var lens []int
		var ends []int
		var from []string
		half := rapid.IntRange(0, len(docs)).Draw(t, "half")
		scored := func(id int) bool { return id%3 > 0 }
		for part, mine := range [][]int{docs[:half], docs[half:]} {
			path := filepath.Join(tmp, []string{"a", "b"}[part])
			from = append(from, path)
			w, err := CreateCorpus(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range mine {
				w.Begin()
				for range n {
					id := len(lens)
					lens = append(lens, id%5)
					if err := w.Add([]int32{int32(id)}, scored(id), lens[id]); err != nil {
						t.Fatal(err)
					}
				}
				ends = append(ends, len(lens))
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
		}
		rest, guard := filepath.Join(tmp, "rest"), filepath.Join(tmp, "guard")
		if err := Carve(t.Context(), from, rest, guard, lens); err != nil {
			t.Fatal(err)
		}
		few := len(lens) < 20*minStretch
		side := make([]int, len(lens)) // 1 rest, 2 guard
		for k, path := range []string{rest, guard} {
			c, err := OpenCorpus(path)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			last, bytes := -1, int64(0)
			for d := range c.Docs() {
				lo, hi := c.doc(d)
				for i := lo; i < hi; i++ {
					id := int(c.tokens[i] &^ scoredBit)
					if id <= last || i > lo && id != last+1 {
						t.Fatalf("token %d follows %d in %s", id, last, path)
					}
					if scored(id) != (c.tokens[i]&scoredBit != 0) {
						t.Fatalf("token %d lost its mark", id)
					}
					if scored(id) {
						bytes += int64(lens[id])
					}
					side[id] += k + 1
					last = id
				}
			}
			if c.Bytes() != bytes {
				t.Fatalf("%s says %d bytes of scored text, it has %d", path, c.Bytes(), bytes)
			}
		}
		if i := slices.IndexFunc(side, func(s int) bool { return few != (s == 3) || s == 0 }); i >= 0 {
			t.Fatalf("token %d is on both sides or on neither, or should be on both", i)
		}
		begin := 0
		for _, end := range ends {
			if n := end - begin; n < 2*minStretch && slices.Contains(side[begin:end], 1) && slices.Contains(side[begin:end], 2) {
				t.Fatalf("a document of %d tokens was cut", n)
			}
			begin = end
		}
		if !long {
			return
		}
		text := side[len(side)-120_000:]
		for k := range 4 { // a quarter of the long text each
			held := 0
			for _, s := range text[k*30_000 : (k+1)*30_000] {
				held += s - 1
			}
			if held < 500 || held > 3000 {
				t.Fatalf("quarter %d of the long text gives %d of 30000 tokens to the guard", k, held)
			}
		}
	})
}
