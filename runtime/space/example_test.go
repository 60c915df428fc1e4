package space_test

import (
	"fmt"
	"math/rand/v2"

	"github.com/open-autoglm/autoglm/runtime/space"
)

func Example() {
	s, err := space.New(
		space.MustParse("lr", "log_uniform(1e-5, 1e-2)"),
		space.MustParse("optimizer", "categorical([adamw, muon])"),
		space.MustParse("muon_lr", "log_uniform(0.003, 0.05)").When("optimizer", "muon"),
	)
	if err != nil {
		fmt.Println(err)
		return
	}
	c, err := s.Sample(rand.New(rand.NewPCG(1, 2)))
	if err != nil {
		fmt.Println(err)
		return
	}
	back, err := s.Decode(s.Encode(c))
	fmt.Println(back.Key() == c.Key(), err)
	fmt.Println(s.Check(space.Config{"lr": space.Number(1), "optimizer": space.Word("adamw")}))
	// Output:
	// true <nil>
	// lr is 1, outside log_uniform(1e-05, 0.01)
}
