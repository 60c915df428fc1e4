package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/open-autoglm/autoglm/actors/node"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// scoreLine is what trial prints for an evaluation.
type scoreLine struct {
	Step    int     `json:"step"`
	Tokens  int64   `json:"tokens"`
	Seconds float64 `json:"seconds"`
	Bits    float64 `json:"bits_per_byte"`
	Loss    float64 `json:"loss"`
}

func scoreLines(t *testing.T, out string) []scoreLine {
	t.Helper()
	var all []scoreLine
	for line := range strings.Lines(out) {
		var s scoreLine
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if !(s.Bits > 0 && s.Loss > 0 && s.Seconds > 0 && s.Tokens == int64(s.Step)*256) {
			t.Errorf("%q makes no sense", line)
		}
		s.Seconds = 0
		all = append(all, s)
	}
	return all
}

const trialConfig = `{"layers": 1, "dim": 64, "heads": 2, "kv_heads": 2, "ffn_ratio": 2, "context": 32, "vocab": 320, "tied": true,
"optimizer": "adamw", "lr": 0.004, "batch_tokens": 256, "dropout": 0.1, "weight_decay": 0.1, "warmup_steps": 2}`

func TestTrial(t *testing.T) {
	dir := t.TempDir()
	corpus(t, dir)
	write(t, filepath.Join(dir, "c.json"), trialConfig)
	if _, stderr, code := autoglm(t, dir, "build", "log.txt", "--job", "job.yaml", "--out", "run"); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	trial := func(folder string, args ...string) []scoreLine {
		t.Helper()
		stdout, stderr, code := autoglm(t, dir, append([]string{"trial", "--data", "run", "--json", "--resume", folder}, args...)...)
		if code != 0 {
			t.Fatalf("%v: exit %d: %s", args, code, stderr)
		}
		return scoreLines(t, stdout)
	}
	weights := func(folder string) string {
		t.Helper()
		m, err := filepath.Glob(filepath.Join(dir, folder, "checkpoint", "*.safetensors"))
		if err != nil || len(m) != 1 {
			t.Fatal(m, err)
		}
		b, err := os.ReadFile(m[0])
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}

	t.Run("in pieces as at once", func(t *testing.T) {
		once := trial("once", "--config", "c.json", "--until", "400", "--eval-every", "100")
		if len(once) != 4 || once[0].Step != 100 || once[3].Step != 400 {
			t.Fatalf("%+v", once)
		}
		trial("pieces", "--config", "c.json", "--until", "60")
		pieces := trial("pieces", "--until", "400", "--eval-every", "100")
		if pieces[len(pieces)-1] != once[3] || weights("pieces") != weights("once") {
			t.Errorf("in pieces %+v, at once %+v", pieces[len(pieces)-1], once[3])
		}

		// Interrupted at each score but the last. (What follows the fall of the rate is
		// done again.)
		interrupts, at := 0, map[int]bool{}
		for last := (scoreLine{}); last != once[3]; {
			c, stdout, stderr := start(t, dir, "trial", "--data", "run", "--json", "--resume", "cut", "--config", "c.json", "--until", "400", "--eval-every", "100")
			lines := bufio.NewScanner(stdout)
			for lines.Scan() {
				last = scoreLines(t, lines.Text())[0]
				if last.Step < 400 && !at[last.Step] {
					at[last.Step] = true
					if err := c.Process.Signal(syscall.SIGINT); err != nil {
						t.Fatal(err)
					}
				}
			}
			_ = c.Wait()
			switch code := c.ProcessState.ExitCode(); {
			case code == exitInterrupted:
				if interrupts++; !strings.Contains(stderr.String(), "goes on") {
					t.Errorf("an interrupted trial says %q", stderr)
				}
			case code != 0:
				t.Fatalf("exit %d: %s", code, stderr)
			case last != once[3]:
				t.Fatalf("after %d interruptions %+v, want %+v", interrupts, last, once[3])
			}
		}
	})

	t.Run("scores are the build's", func(t *testing.T) {
		stdout, stderr, code := autoglm(t, dir, "trials", "run", "--json")
		if code != 0 {
			t.Fatal(stderr)
		}
		var b journal.Leaderboard
		if err := json.Unmarshal([]byte(stdout), &b); err != nil {
			t.Fatal(err)
		}
		again := 0
		for _, e := range b.Trials {
			if e.Parent != "" || again == 2 {
				continue // its weights were not its own to begin with
			}
			again++
			got := trial("again-"+e.ID, "--config", filepath.Join("run", "trials", e.ID, "config.json"), "--until", strconv.Itoa(e.Steps))
			if got[0].Bits != *e.Bits {
				t.Errorf("trial %s scores %v, in the build %v", e.ID, got[0].Bits, *e.Bits)
			}
		}
		if again < 2 {
			t.Error("the build has too few trials that began from nothing")
		}
	})

	t.Run("by the clock, as a last training", func(t *testing.T) {
		lines := trial("last", "--config", "c.json", "--for", "3s", "--final", "--decay", "0.5")
		kept := filepath.Join(dir, "last", "best")
		st, err := train.CheckpointState(kept)
		if err != nil {
			t.Fatal(err)
		}
		best := slices.MinFunc(lines, func(a, b scoreLine) int { return cmp.Compare(a.Bits, b.Bits) })
		if len(lines) < 2 || st.Step != best.Step {
			t.Errorf("it scored %+v and kept step %d", lines, st.Step)
		}
		sc, err := node.HeldOut(t.Context(), filepath.Join(dir, "run"), glm.Arch{Vocab: 320, Dim: 64, Layers: 1, Heads: 2, KVHeads: 2, FFN: 128, Context: 32, Tied: true}.WithDefaults(), kept, 1)
		if err != nil || !(sc.BitsPerByte() > 0 && sc.BitsPerByte() < 9) {
			t.Errorf("held out it scores %v, %v", sc.BitsPerByte(), err)
		}
	})

	t.Run("refused", func(t *testing.T) {
		write(t, filepath.Join(dir, "wide.json"), strings.Replace(trialConfig, `"vocab": 320`, `"vocab": 9000`, 1))
		write(t, filepath.Join(dir, "odd.json"), strings.Replace(trialConfig, `"heads": 2`, `"heads": 3`, 1))
		write(t, filepath.Join(dir, "less.json"), strings.Replace(trialConfig, `"lr": 0.004, `, "", 1))
		write(t, filepath.Join(dir, "more.json"), strings.Replace(trialConfig, `"lr": 0.004, `, `"lr": 0.004, "momentum": 0.9, `, 1))
		write(t, filepath.Join(dir, "other.json"), strings.Replace(trialConfig, `"lr": 0.004`, `"lr": 0.005`, 1))
		for _, tt := range []struct {
			name, want string
			args       []string
		}{
			{"no data", "--data", []string{"--resume", "x", "--until", "9"}},
			{"no folder", "--resume", []string{"--data", "run", "--until", "9"}},
			{"no step", "--until", []string{"--data", "run", "--resume", "x"}},
			{"two ends", "--for", []string{"--data", "run", "--resume", "x", "--until", "9", "--for", "1s"}},
			{"scores by steps on a clock", "--eval-every", []string{"--data", "run", "--resume", "x", "--for", "1s", "--eval-every", "9"}},
			{"data of no build", "autoglm build", []string{"--data", "nowhere", "--resume", "x", "--until", "9", "--config", "c.json"}},
			{"no configuration", "config.json", []string{"--data", "run", "--resume", "x", "--until", "9"}},
			{"a vocabulary that the text has not", "vocab", []string{"--data", "run", "--resume", "x1", "--until", "9", "--config", "wide.json"}},
			{"a shape that can't be", "odd.json: arch: ", []string{"--data", "run", "--resume", "x", "--until", "9", "--config", "odd.json"}},
			{"too little said", "less.json: lr: is missing", []string{"--data", "run", "--resume", "x", "--until", "9", "--config", "less.json"}},
			{"too much said", "more.json: momentum: ", []string{"--data", "run", "--resume", "x", "--until", "9", "--config", "more.json"}},
			{"another configuration", "another configuration", []string{"--data", "run", "--resume", "once", "--until", "9", "--config", "other.json"}},
		} {
			stdout, stderr, code := autoglm(t, dir, append([]string{"trial"}, tt.args...)...)
			if code != exitUsage || stdout != "" || !strings.Contains(stderr, tt.want) {
				t.Errorf("%s: exit %d, %s%s", tt.name, code, stdout, stderr)
			}
		}
		f, err := os.Open(filepath.Join(dir, "once", ".lock"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		if _, stderr, code := autoglm(t, dir, "trial", "--data", "run", "--resume", "once", "--until", "500"); code != exitFailed || !strings.Contains(stderr, "another process") {
			t.Errorf("a folder in use: exit %d, %s", code, stderr)
		}
	})
}
