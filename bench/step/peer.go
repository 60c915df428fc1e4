package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"

	peers "github.com/open-autoglm/autoglm/bench/peer"
	"github.com/open-autoglm/autoglm/bench/stat"
)

// modes of PyTorch that can be compared with.
var modes = []string{"eager", "bf16", "compile", "compile-bf16"}

// peer is a PyTorch process of one mode. It has compiled and taken its loss steps
// when startPeer returns, and then sleeps but while it is timed.
type peer struct {
	mode   string
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Scanner
	loss   float64
	rates  []float64
	perCPU []float64
	ratios []float64
	cpu    []float64
}

// answer is one line of the peer's.
type answer struct {
	TokensPerS float64 `json:"tokens_per_s"`
	PerCPU     float64 `json:"tokens_per_cpu_s"`
	Loss       float64 `json:"loss_mean"`
}

// startPeer runs the other system on the same shape.
func (c *config) startPeer(mode string) (*peer, error) {
	python := os.Getenv("AUTOGLM_PYTHON")
	if python == "" {
		return nil, fmt.Errorf("-peers %s needs AUTOGLM_PYTHON, a Python interpreter with PyTorch (.ci/peers makes one); -peers none goes without", mode)
	}
	script, err := peers.Script("step_torch.py")
	if err != nil {
		return nil, err
	}
	a := c.arch
	if !a.Tied || c.optimizer != "adamw" {
		return nil, errors.New("PyTorch's script has the tied model and AdamW only; use -peers none")
	}
	args := []string{script, "-mode", mode, "-serve"}
	for _, f := range []struct {
		name  string
		value int
	}{{"d", a.Dim}, {"layers", a.Layers}, {"heads", a.Heads}, {"kv", a.KVHeads}, {"ffn", a.FFN}, {"T", a.Context}, {"B", c.batch}, {"V", a.Vocab}, {"threads", c.threads * c.ranks}, {"loss-steps", c.lossSteps}} {
		args = append(args, "-"+f.name, fmt.Sprint(f.value))
	}
	p := &peer{mode: mode, cmd: exec.Command(python, args...)}
	p.cmd.Stderr = os.Stderr
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = bufio.NewScanner(out)
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("peer %s: %w", mode, err)
	}
	ready, err := p.answer()
	if err != nil {
		p.close()
		return nil, err
	}
	p.loss = ready.Loss
	return p, nil
}

func (p *peer) answer() (a answer, err error) {
	if !p.out.Scan() {
		return a, fmt.Errorf("peer %s ended: %w", p.mode, errors.Join(p.out.Err(), p.cmd.Wait()))
	}
	if err := json.Unmarshal(p.out.Bytes(), &a); err != nil {
		return a, fmt.Errorf("peer %s: %w", p.mode, err)
	}
	return a, nil
}

// time lets the peer train for some seconds; ours is what we did just before.
func (p *peer) time(seconds float64, ours timing) error {
	if _, err := fmt.Fprintln(p.in, seconds); err != nil {
		return fmt.Errorf("peer %s: %w", p.mode, err)
	}
	a, err := p.answer()
	if err != nil {
		return err
	}
	p.rates, p.perCPU = append(p.rates, a.TokensPerS), append(p.perCPU, a.PerCPU)
	p.ratios, p.cpu = append(p.ratios, ours.rate/a.TokensPerS), append(p.cpu, ours.perCPU/a.PerCPU)
	return nil
}

func (p *peer) report() peerReport {
	return peerReport{
		Mode: p.mode, TokensPerS: stat.Median(p.rates), PerCPU: stat.Median(p.perCPU),
		Ratio: stat.Median(p.ratios), CPURatio: stat.Median(p.cpu), Rounds: p.ratios, Loss: p.loss,
	}
}

// close ends the process: its standard input is over.
func (p *peer) close() {
	p.in.Close()
	p.cmd.Wait() //nolint:errcheck // its answers are all read
}
