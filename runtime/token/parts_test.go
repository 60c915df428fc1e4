package token

import (
	"bytes"
	"strings"
	"testing"
)

func TestParts(t *testing.T) {
	tr, err := NewTrainer(TrainConfig{VocabSize: 300, MinFrequency: 1, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	tr.Add([]byte("the fox and the dog and the other fox, naïve 世界"))
	tok, err := tr.Train(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	again, err := FromParts(tok.Parts())
	if err != nil {
		t.Fatal(err)
	}
	want, err := tok.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	got, err := again.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("taken apart and put together, it is another tokenizer")
	}
	for name, c := range map[string]struct {
		spoil func(*Parts)
		want  string
	}{
		"byte":  {func(p *Parts) { p.Pieces[numSpecials].Kind = Unused }, "lacks byte"},
		"bos":   {func(p *Parts) { p.BOS = 1 << 20 }, "id 1048576"},
		"merge": {func(p *Parts) { p.Merges[0][0] = "zzz" }, "zzz"},
		"twice": {func(p *Parts) { p.Pieces[1].Text = p.Pieces[0].Text }, "both"},
		"text":  {func(p *Parts) { p.Pieces[len(p.Pieces)-1].Text = "a b" }, "alphabet"},
	} {
		p := tok.Parts()
		c.spoil(&p)
		if _, err := FromParts(p); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
