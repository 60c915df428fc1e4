//go:build libtorch

package node

import (
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/actors/actorstest"
	"github.com/open-autoglm/autoglm/gpu/device/devicetest"
)

// Engine torch computes in worker processes; one that is aborted in the final
// training changes nothing.
func TestTorchInAProcess(t *testing.T) {
	spec := tinySpec(actorstest.Corpus(t, t.TempDir()))
	spec.Engine, spec.HardwareConstraint = "torch", "cpu-2"
	calm := filepath.Join(t.TempDir(), "calm")
	if err := build(t, Options{Dir: calm, Spec: spec, Worker: processOf("cpu")}); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	o := Options{Dir: filepath.Join(t.TempDir(), "run"), Spec: spec, Worker: processOf("cpu")}
	o.Hooks.Receive = func(who string, message any) {
		if m, ok := message.(*actors.Progress); ok && who == "trial" && m.Trial == "final" {
			once.Do(func() {
				if err := syscall.Kill(children(t)[0], syscall.SIGABRT); err != nil {
					t.Error(err)
				}
			})
		}
	}
	if err := build(t, o); err != nil {
		t.Fatal(err)
	}
	if outcome(t, o.Dir) != outcome(t, calm) {
		t.Error("the outcome differs from the undisturbed run's")
	}
}

// This build's own processes say what they see of CUDA: nothing here, and so the
// request is refused before anything is trained.
func TestTorchSeesNoGPU(t *testing.T) {
	f, err := torchFacts()
	if err != nil || f.Torch == "" {
		t.Fatalf("%+v, %v", f, err)
	}
	if f.CUDA > 0 {
		t.Skip("this machine has CUDA devices")
	}
	n, err := Open(Options{Dir: filepath.Join(t.TempDir(), "run"), Spec: gpuSpec(t, "gpu-1"), Sources: one(devicetest.New(1)), Worker: processOf("cpu")})
	if err == nil {
		n.Close()
		t.Fatal("a GPU that is not there was taken")
	}
	t.Log(err)
}
