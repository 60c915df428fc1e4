package peer

import (
	"encoding/json"
	"math/rand/v2"
	"testing"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// What a driver is told to begin with is what it asks for then.
func TestFirst(t *testing.T) {
	sp, err := space.New(
		space.MustParse("layers", "int(2, 12, 2)"), space.MustParse("lr", "log_uniform(1e-5, 1e-2)"), space.MustParse("warmup", "log_int(10, 400)"),
		space.MustParse("ratio", "uniform(2, 4)"), space.MustParse("drop", "uniform(0, 0.4, 0.1)"), space.MustParse("vocab", "categorical([320, 512])"),
		space.MustParse("context", "ordinal([64, 128, 256])"), space.MustParse("optimizer", "categorical([adamw, muon])"),
		space.MustParse("muon_lr", "log_uniform(0.002, 0.1)").When("optimizer", "muon"), space.MustParse("schedule", "wsd"),
	)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		c, err := sp.Sample(rng)
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(First(sp.Dimensions(), c))
		if err != nil {
			t.Fatal(err)
		}
		var answer map[string]any
		if err := json.Unmarshal(b, &answer); err != nil {
			t.Fatal(err)
		}
		got, err := Config(sp, sp.Dimensions(), answer)
		if err != nil {
			t.Fatal(err)
		}
		want, back := c.Clone(), got.Clone()
		delete(want, "warmup") // whose places hold several values each at the low end
		delete(back, "warmup")
		if want.Key() != back.Key() {
			t.Fatalf("%v comes back as %v", c, got)
		}
	}
	for _, d := range Dims(sp.Dimensions()) {
		if d.Log != (d.Name == "lr" || d.Name == "muon_lr") {
			t.Errorf("%s: logarithmic: %v", d.Name, d.Log)
		}
	}
}
