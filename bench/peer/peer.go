// Package peer runs other libraries' optimisers for the benches, by the program
// bench/peers/search.py: asked and told, one JSON object a line.
package peer

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// Python is the interpreter of a peer's environment, below $AUTOGLM_SEARCH_PEERS.
func Python(peer, env string) (string, error) {
	folder := os.Getenv("AUTOGLM_SEARCH_PEERS")
	if folder == "" {
		return "", fmt.Errorf("peer %s: AUTOGLM_SEARCH_PEERS is not set; export AUTOGLM_SEARCH_PEERS=$(.ci/search-peers)", peer)
	}
	path := filepath.Join(folder, env, "bin", "python")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("peer %s: %w; .ci/search-peers installs it", peer, err)
	}
	return path, nil
}

// Dim is a dimension as the driver reads it.
type Dim struct {
	Name    string   `json:"name"`
	Kind    string   `json:"kind"`
	Low     float64  `json:"low"`
	High    float64  `json:"high"`
	Log     bool     `json:"log"`
	Choices []string `json:"choices,omitempty"`
}

// Dims are dimensions as the driver reads them.
func Dims(dims []space.Dimension) []Dim {
	out := make([]Dim, len(dims))
	for i, d := range dims {
		p := Dim{Name: d.Name, Kind: "float", Low: d.Low, High: d.High, Log: d.Kind == space.LogUniform}
		switch {
		case d.Numeric() && d.Cells() > 0:
			p.Kind, p.Low, p.High = "int", 0, d.Cells()-1 // the place among the values
		case !d.Numeric():
			p.Kind = "categorical"
			for _, c := range d.Choices {
				p.Choices = append(p.Choices, c.String())
			}
		}
		out[i] = p
	}
	return out
}

// Config is the configuration that a driver asked for.
func Config(sp *space.Space, dims []space.Dimension, answer map[string]any) (space.Config, error) {
	c := space.Config{}
	for _, d := range dims {
		if !sp.Active(d, c) {
			continue
		}
		v := answer[d.Name]
		x, number := v.(float64)
		switch {
		case d.Numeric() && d.Cells() > 0 && number:
			c[d.Name] = d.Value((x + 0.5) / d.Cells())
		case d.Numeric() && number:
			c[d.Name] = space.Number(x)
		default:
			for _, choice := range d.Choices {
				if choice.String() == fmt.Sprint(v) {
					c[d.Name] = choice
				}
			}
		}
	}
	if err := sp.Check(c); err != nil {
		return nil, fmt.Errorf("it asked for %v: %w", answer, err)
	}
	return c, nil
}

// First is a configuration as the driver would have asked
// for it. What it leaves open the driver chooses.
func First(dims []space.Dimension, c space.Config) map[string]any {
	out := map[string]any{}
	for _, d := range dims {
		v, ok := c[d.Name]
		switch {
		case !ok:
		case d.Numeric() && d.Cells() > 0:
			out[d.Name] = min(math.Floor(d.Unit(v)*d.Cells()), d.Cells()-1)
		case d.Numeric():
			out[d.Name] = v.Num
		default:
			out[d.Name] = v.String()
		}
	}
	return out
}

// Script is the path of a program in bench/peers, from the repository's root or a folder in it.
func Script(name string) (string, error) {
	for dir := "."; ; dir = filepath.Join(dir, "..") {
		p := filepath.Join(dir, "bench", "peers", name)
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
		if abs, err := filepath.Abs(dir); err != nil || abs == filepath.Dir(abs) {
			return "", fmt.Errorf("bench/peers/%s not found; run inside the repository", name)
		}
	}
}

// Driver is a running program that answers a line for a line.
type Driver struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines *bufio.Scanner
	said  strings.Builder
	Took  time.Duration // waited for answers
}

// Answer is a line of a driver: of those fields that its question is about.
type Answer struct {
	Config   map[string]any `json:"config"`
	Trial    string         `json:"trial"`
	Decision string         `json:"decision"`
	Error    string         `json:"error"`
}

// Start starts the program.
func Start(cmd *exec.Cmd) (*Driver, error) {
	d := &Driver{cmd: cmd}
	// One thread each: searches run side by side.
	cmd.Env = append(os.Environ(), "OMP_NUM_THREADS=1", "MKL_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=1")
	cmd.Stderr = &d.said
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if d.in, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	d.lines = bufio.NewScanner(out)
	d.lines.Buffer(nil, 1<<20)
	return d, cmd.Start()
}

// Call asks a question and waits for its answer.
func (d *Driver) Call(question map[string]any) (Answer, error) {
	var a Answer
	if err := d.Ask(question, &a); err != nil {
		return a, err
	}
	if a.Error != "" {
		return a, fmt.Errorf("%s", a.Error)
	}
	return a, nil
}

// Ask writes a question, unless that is nil, and reads a line into answer.
func (d *Driver) Ask(question, answer any) error {
	begin := time.Now()
	if question != nil {
		b, err := json.Marshal(question)
		if err != nil {
			return err
		}
		if _, err := d.in.Write(append(b, '\n')); err != nil {
			return fmt.Errorf("%w: %s", err, last(d.said.String()))
		}
	}
	if !d.lines.Scan() {
		return fmt.Errorf("it ended: %s", last(d.said.String()))
	}
	d.Took += time.Since(begin)
	if err := json.Unmarshal(d.lines.Bytes(), answer); err != nil {
		return fmt.Errorf("its answer %q: %w", d.lines.Text(), err)
	}
	return nil
}

// Close lets the program end.
func (d *Driver) Close() error {
	d.in.Close()
	if err := d.cmd.Wait(); err != nil {
		return fmt.Errorf("%w: %s", err, last(d.said.String()))
	}
	return nil
}

// last is the end of what a program said.
func last(s string) string {
	s = strings.TrimSpace(s)
	if len(s) > 500 {
		s = "…" + s[len(s)-500:]
	}
	return s
}
