package job_test

import (
	"fmt"

	"github.com/open-autoglm/autoglm/runtime/job"
)

func ExampleParse() {
	s, err := job.Parse([]byte(`{ "task_type": "dialogue", "budget": {"wall_clock": "10m"} } // a job`), "job.json")
	fmt.Println(s.TaskType, s.Budget.WallClock, err)
	_, err = job.Parse([]byte("budgte:\n  trials: 3\n"), "job.yaml")
	fmt.Println(err)
	// Output:
	// dialogue 10m0s <nil>
	// job.yaml:1: budgte: unknown field (did you mean "budget"?)
}
