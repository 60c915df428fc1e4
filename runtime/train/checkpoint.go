package train

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/durable"
)

// A checkpoint is a folder of two files: step-N.safetensors, the model's state
// under Hugging Face's names with the optimiser's beside them, and
// checkpoint.json, which says how far the run was and which file is the whole
// one. checkpoint.json is replaced last, so that a crash leaves the older
// checkpoint or the newer one.
const checkpointIndex = "checkpoint.json"

type checkpoint struct {
	Version int    `json:"version"`
	Tensors string `json:"tensors"`
	State   State  `json:"state"`
}

// SaveCheckpoint writes a checkpoint into dir, and then removes the older one.
func SaveCheckpoint(dir string, tensors engine.StateDict, st State) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	name := fmt.Sprintf("step-%d.safetensors", st.Step)
	if err := durable.Write(filepath.Join(dir, name), func(w io.Writer) error { return bundle.WriteSafetensors(w, tensors) }); err != nil {
		return err
	}
	index, err := json.Marshal(checkpoint{Version: 1, Tensors: name, State: st})
	if err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(dir, checkpointIndex), append(index, '\n')); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if n := e.Name(); n != name && n != checkpointIndex {
			_ = os.Remove(filepath.Join(dir, n)) // an older checkpoint, or what a crash left
		}
	}
	return nil
}

// RungDir is where a trial's folder has the checkpoint of a rung, from which others fork.
// It is never written again once it is whole.
func RungDir(dir string, rung int) string { return filepath.Join(dir, fmt.Sprintf("rung-%d", rung)) }

// keepRung gives the trial's last checkpoint a second name, so that a later one does not
// replace it, and drops those of rungs before the last keep. checkpoint.json comes last.
func keepRung(dir string, rung, keep int) error {
	from, to := filepath.Join(dir, "checkpoint"), RungDir(dir, rung)
	if _, err := readIndex(to); err == nil {
		return DropRungs(dir, rung-keep)
	}
	c, err := readIndex(from)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(to); err != nil { // what a crash left
		return err
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	tensors := filepath.Join(to, c.Tensors)
	if err := os.Link(filepath.Join(from, c.Tensors), tensors); err != nil {
		// A file system without links.
		err = durable.Write(tensors, func(w io.Writer) error {
			f, err := os.Open(filepath.Join(from, c.Tensors))
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = io.Copy(w, f)
			return err
		})
		if err != nil {
			return err
		}
	}
	index, err := os.ReadFile(filepath.Join(from, checkpointIndex))
	if err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(to, checkpointIndex), index); err != nil {
		return err
	}
	return DropRungs(dir, rung-keep)
}

// DropRungs removes the checkpoints of rungs up to the given one that a trial's folder
// has for forks.
func DropRungs(dir string, upTo int) error {
	for ; upTo >= 0; upTo-- {
		if err := os.RemoveAll(RungDir(dir, upTo)); err != nil {
			return err
		}
	}
	return nil
}

func readIndex(dir string) (checkpoint, error) {
	var c checkpoint
	path := filepath.Join(dir, checkpointIndex)
	b, err := os.ReadFile(path)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("checkpoint %s: %w", path, err)
	}
	if c.Version != 1 {
		return c, fmt.Errorf("checkpoint %s has version %d, this autoglm reads 1", path, c.Version)
	}
	if c.Tensors != filepath.Base(c.Tensors) || !strings.HasSuffix(c.Tensors, ".safetensors") {
		return c, fmt.Errorf("checkpoint %s names the file %q", path, c.Tensors)
	}
	return c, nil
}

// CheckpointState reads how far a checkpoint is. The error is fs.ErrNotExist
// when there is none.
func CheckpointState(dir string) (State, error) {
	c, err := readIndex(dir)
	return c.State, err
}

// LoadCheckpoint reads a checkpoint. The error is fs.ErrNotExist when there is
// none.
func LoadCheckpoint(dir string) (engine.StateDict, State, error) {
	c, err := readIndex(dir)
	if err != nil {
		return nil, State{}, err
	}
	path := filepath.Join(dir, c.Tensors)
	f, err := os.Open(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, State{}, fmt.Errorf("checkpoint %s names %s, which is gone", dir, c.Tensors)
		}
		return nil, State{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, State{}, err
	}
	tensors, err := bundle.ReadSafetensors(f, info.Size())
	if err != nil {
		return nil, State{}, fmt.Errorf("checkpoint %s: %w", path, err)
	}
	return tensors, c.State, nil
}
