package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/runtime/data"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/step"
)

// room is what steps that run beside each other may take of a machine.
func room(m device.Machine) job.Resources {
	return job.Resources{CPUs: float64(m.Count(device.CPU)), Memory: job.Bytes(m.MemoryBytes)}
}

// checkSteps refuses a job whose steps this machine does not run.
func checkSteps(spec job.Spec, allowed bool, has job.Resources) error {
	if len(spec.Steps) > 0 && !allowed {
		return &job.FieldError{Path: "steps", Msg: "name programs, which are run only where that is allowed: autoglm build --allow-steps (and resume), or autoglm node --allow-steps on nodes that are to take such jobs"}
	}
	for i, t := range spec.Steps {
		path := fmt.Sprintf("steps[%d].resources", i)
		if t.Resources.CPUs > has.CPUs {
			return &job.FieldError{Path: path + ".cpus", Msg: fmt.Sprintf("%v are asked for, and this machine has %v", t.Resources.CPUs, has.CPUs)}
		}
		if has.Memory > 0 && t.Resources.Memory > has.Memory {
			return &job.FieldError{Path: path + ".memory", Msg: fmt.Sprintf("%s are asked for, and this machine has %d MiB", t.Resources.Memory, has.Memory>>20)}
		}
	}
	return nil
}

// step makes an attempt at a step of the user's.
func (s *site) step(ctx context.Context, t job.Step, st journal.State) error {
	err := step.Run(ctx, step.Config{
		Job: s.dir, Name: t.Name, Run: t.Run, Files: t.Files, Env: t.Env, Image: t.Image, Network: t.Network,
		CPUs: t.Resources.CPUs, Memory: int64(t.Resources.Memory), Attempt: st.Running[t.Name],
	})
	if errors.Is(err, step.ErrStart) {
		return actors.Final{Err: err}
	}
	return err
}

// dataConfig is DataConfig with the files that steps made where they are.
func (s *site) dataConfig() data.Config {
	spec := s.spec
	at := func(paths []string) []string {
		var out []string
		for _, p := range paths {
			if _, made := spec.StepFile(p); made {
				p = filepath.Join(s.dir, p)
			}
			out = append(out, p)
		}
		return out
	}
	spec.Data.Files, spec.Data.Valid = at(spec.Data.Files), at(spec.Data.Valid)
	return DataConfig(spec)
}
