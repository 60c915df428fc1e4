package ring_test

import (
	"errors"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/open-autoglm/autoglm/gpu/ring"
	"github.com/open-autoglm/autoglm/gpu/ring/ringtest"
)

func TestMain(m *testing.M) {
	if ringtest.Child() {
		return
	}
	goleak.VerifyTestMain(m)
}

// Every collective over every transport gives what its definition says, bit for
// bit, on every rank.
func TestConformance(t *testing.T) {
	for _, transport := range ring.Transports {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			most := 5
			if testing.Short() {
				most = 3
			}
			for world := 2; world <= most; world++ {
				comms := ring.Formed(t, transport, world, nil)
				rapid.Check(t, func(rt *rapid.T) {
					k := ringtest.Case{
						DType: rapid.SampledFrom([]ring.DType{ring.F32, ring.F32, ring.BF16, ring.F16}).Draw(rt, "dtype"),
						Kind:  rapid.SampledFrom([]ring.Kind{ring.AllReduce, ring.AllReduce, ring.ReduceScatter, ring.AllGather, ring.Broadcast, ring.Barrier}).Draw(rt, "kind"),
						N:     rapid.OneOf(rapid.IntRange(0, 300), rapid.IntRange(0, 40_000), rapid.IntRange(0, 600_000)).Draw(rt, "n"),
						Root:  rapid.IntRange(0, world-1).Draw(rt, "root"),
						Seed:  rapid.Uint64().Draw(rt, "seed"),
					}
					if k.Kind == ring.Barrier {
						k.N = 0
					}
					errs := ring.OnAll(comms, func(c *ring.Comm) error {
						how := ringtest.How{}
						if transport == "registered" {
							how.Alloc = c.Alloc
						}
						return ringtest.Run(c, k, how)
					})
					if err := errors.Join(errs...); err != nil {
						rt.Fatal(err)
					}
				})
			}
		})
	}
}
