package search

import (
	_ "embed"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/runtime/space"
)

//go:embed testdata/sobol.txt
var sobolOfSciPy string

func TestSobolEqualsSciPy(t *testing.T) {
	next := grayCode(256)
	points := 0
	for line := range strings.Lines(sobolOfSciPy) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		var got []string
		for _, x := range next() {
			if x<<6 != 0 {
				t.Fatalf("point %d has a coordinate %x off the grid of 64", points, x)
			}
			got = append(got, fmt.Sprint(x>>26))
		}
		if strings.Join(got, " ") != strings.TrimSpace(line) {
			t.Fatalf("point %d is %v, want %s", points, got, line)
		}
		points++
	}
	if points != 64 {
		t.Fatalf("%d points", points)
	}
}

// Scrambled points stay a net: of the first 2^k, as many lie in each box of the halves.
func TestScrambledSobolIsEven(t *testing.T) {
	for seed := range uint64(20) {
		next := sobol(300, seed)
		const n = 256
		points := make([][]float64, n)
		for i := range points {
			points[i] = next()
		}
		for d := range 256 {
			var cell [n]int
			for _, p := range points {
				cell[int(p[d]*n)]++
			}
			for c, k := range cell {
				if k != 1 {
					t.Fatalf("seed %d: %d points in cell %d of dimension %d", seed, k, c, d)
				}
			}
		}
		for a := 0; a <= 8; a++ { // dimensions 0 and 1 are a net with t = 0
			boxes := map[[2]int]int{}
			for _, p := range points {
				boxes[[2]int{int(p[0] * float64(int(1)<<a)), int(p[1] * float64(int(1)<<(8-a)))}]++
			}
			if len(boxes) != n {
				t.Fatalf("seed %d: %d of %d boxes of 2^-%d by 2^-%d hold a point", seed, len(boxes), n, a, 8-a)
			}
		}
		mean := 0.0
		for _, p := range points {
			mean += p[299] / n
		}
		if math.Abs(mean-0.5) > 0.1 {
			t.Fatalf("seed %d: past the table the mean is %.3f", seed, mean)
		}
	}
	if a, b := sobol(2, 1)(), sobol(2, 2)(); a[0] == b[0] && a[1] == b[1] {
		t.Fatal("two seeds give the same point")
	}
}

// Each choice and each half of a range is met equally often, within the branches also.
func TestDesignIsEven(t *testing.T) {
	st, err := NewStrategy("sobol", bowl(t), Options{Seed: 5})
	if err != nil {
		t.Fatal(err)
	}
	cs, err := st.Ask(96)
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, c := range cs {
		count[c.Word("k")]++
		count[fmt.Sprint("x", c.Float("x") > 0)]++
		count[fmt.Sprint("y", c.Float("y") > 0.01)]++
		if _, ok := c["z"]; ok != (c.Word("k") == "b") {
			t.Fatalf("%s: z is there though k is not b", c.Key())
		}
	}
	for k, want := range map[string]int{"a": 32, "b": 32, "c": 32, "xtrue": 48, "ytrue": 48} {
		if d := count[k] - want; d < -2 || d > 2 {
			t.Errorf("%s was drawn %d times of 96, want %d", k, count[k], want)
		}
	}
}

func TestDesignHoldsConstraints(t *testing.T) {
	sp := bowl(t).Constrain(func(c space.Config) error {
		if c.Float("x") > -4.99 {
			return fmt.Errorf("x is too large")
		}
		return nil
	})
	st, err := NewStrategy("sobol", sp, Options{Seed: 5})
	if err != nil {
		t.Fatal(err)
	}
	cs, err := st.Ask(8)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cs {
		if err := sp.Check(c); err != nil {
			t.Error(err)
		}
	}
}
