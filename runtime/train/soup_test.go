package train

import (
	"path/filepath"
	"slices"
	"testing"
)

// The mean of a final training and a sibling that went on from the same checkpoint, both
// at a rate that stays up, is better than either and becomes the model; what began
// elsewhere is left out, as is what isn't there or is of another shape.
func TestSoup(t *testing.T) {
	dir, tok := corpora(t, 3)
	task := tinyTask(dir, tok)
	task.Config.LR, task.Config.BatchTokens, task.Config.Dropout = 1e-2, 64, 0
	train := func(name string, change func(*Task)) (Task, Report) {
		t.Helper()
		c := task
		c.Dir, c.Keep, c.Segment = filepath.Join(dir, name), true, Segment{Steps: 120, DecayFrom: 120}
		change(&c)
		rep, err := Execute(t.Context(), c, env())
		if err != nil {
			t.Fatal(err)
		}
		return c, rep
	}
	parent, _ := train("parent", func(c *Task) { c.Segment = Segment{Steps: 60, DecayFrom: 60} })
	from := filepath.Join(parent.Dir, "checkpoint")
	sibling, _ := train("sibling", func(c *Task) { c.From, c.Config.Seed = from, 77 })
	stranger, _ := train("stranger", func(c *Task) { c.Config.Seed = 5 })
	wide, _ := train("wide", func(c *Task) { c.Config.Arch.FFN, c.Segment = 96, Segment{Steps: 2, DecayFrom: 2} })
	final := func(name string, soup ...string) (Task, Report) {
		return train(name, func(c *Task) { c.From, c.Final, c.Soup = from, true, soup })
	}
	plain, alone := final("plain")
	if alone.Soup != nil {
		t.Errorf("of nothing a soup was made: %+v", alone.Soup)
	}
	mixed, rep := final("mixed", wide.Dir, filepath.Join(dir, "nowhere"), sibling.Dir, stranger.Dir)
	s := rep.Soup
	if s == nil || !s.Taken || !slices.Equal(s.Of, []string{"final", "sibling"}) || s.Bits >= s.Against || rep.Bits != s.Bits {
		t.Fatalf("%+v, soup %+v", rep, s)
	}
	before, _, err := LoadCheckpoint(BestDir(plain.Dir))
	if err != nil {
		t.Fatal(err)
	}
	other, err := Weights(sibling.Dir)
	if err != nil {
		t.Fatal(err)
	}
	after, st, err := LoadCheckpoint(BestDir(mixed.Dir))
	if err != nil || st.BestBits != s.Bits {
		t.Fatalf("the best checkpoint has %v bits: %v", st.BestBits, err)
	}
	for i, p := range after {
		for j, x := range p.Data {
			if want := before[i].Data[j] + (other[i].Data[j]-before[i].Data[j])/2; x != want {
				t.Fatalf("%s[%d] is %g, the mean is %g", p.Name, j, x, want)
			}
		}
	}
	if _, worse := final("worse", stranger.Dir); worse.Soup == nil || worse.Soup.Taken || !slices.Equal(worse.Soup.Of, []string{"final"}) || worse.Bits != alone.Bits {
		t.Errorf("%+v, soup %+v, alone %v", worse, worse.Soup, alone.Bits)
	}
}
