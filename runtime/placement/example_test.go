package placement_test

import (
	"fmt"
	"time"

	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/runtime/placement"
)

func ExampleDecide() {
	two := device.Machine{Devices: []device.Device{{ID: "gpu:0", Kind: device.GPU}, {ID: "gpu:1", Kind: device.GPU}}}
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	v := placement.View{
		Nodes: []placement.Node{{ID: "a", Machine: two}},
		Waiting: []placement.Item{
			{ID: "small", Owner: "ada", Need: device.Request{Kind: device.GPU, Count: 1}, Submitted: now},
			{ID: "gang", Owner: "bob", Need: device.Request{Kind: device.GPU, Count: 2}, Submitted: now, Priority: 1},
		},
	}
	for _, a := range placement.Decide(v, now, placement.DefaultConfig()) {
		fmt.Printf("%s %s %v%s\n", a.Do, a.Item, a.On, a.Why)
	}
	// Output:
	// start gang [{a [gpu:0 gpu:1]}]
	// wait small []gpu-1 does not fit: a: 0 free of 2 (gang has 2)
}
