package data

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// BenchmarkPrepare reports MB/s of reading, cleaning, deduplicating and writing.
func BenchmarkPrepare(b *testing.B) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var s strings.Builder
	for i := 0; s.Len() < 20<<20; i++ {
		fmt.Fprintf(&s, `{"id":"%d","text":"`, i)
		for range 20 + rnd.IntN(250) {
			fmt.Fprintf(&s, "%s ", []string{"the", "sea", "was", "café", "grey", "and", "nobody's", "ship\\n", "sailed", "from", "a", "harbour", "without", "its", "captain."}[rnd.IntN(15)]+string(rune('a'+rnd.IntN(26))))
		}
		s.WriteString("\"}\n")
	}
	p := put(b, "a.jsonl", s.String())
	for _, near := range []bool{false, true} {
		b.Run(fmt.Sprintf("near=%v", near), func(b *testing.B) {
			b.SetBytes(int64(s.Len()))
			for b.Loop() {
				c := config(p)
				c.Near = near
				if _, err := Prepare(context.Background(), c, b.TempDir(), Events{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
