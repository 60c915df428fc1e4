package token

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func BenchmarkEncode(b *testing.B) {
	texts := map[string]string{"random": randomText(rand.New(rand.NewPCG(1, 2)), 1<<20)}
	if dir := os.Getenv("AUTOGLM_TESTDATA"); dir != "" {
		texts["chinese"] = strings.Join(jsonLines(b, filepath.Join(dir, "text/zh.classics.jsonl.gz")), "\n")
		texts["english"] = strings.Join(jsonLines(b, filepath.Join(dir, "text/sotu.jsonl.gz")), "\n")
	}
	for name, text := range texts {
		tok := trainOn(b, 4096, 2, 1, text)
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			var ids []int32
			for b.Loop() {
				ids = tok.Encode(ids[:0], text)
			}
			b.ReportMetric(float64(len(text))/float64(len(ids)), "bytes/token")
		})
	}
}

func BenchmarkSplit(b *testing.B) {
	text := proseText(rand.New(rand.NewPCG(1, 2)), 1<<20, "etaoinshrdlucmfwypvbgkqjxz", " ")
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		for p := 0; p < len(text); {
			p = nextLlama3(text, p)
		}
	}
}
