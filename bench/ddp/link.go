package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// reached is one line of training over a link.
type reached struct {
	Compression string   `json:"compression"`
	Link        string   `json:"link"`
	Target      float64  `json:"target_loss"` // smoothed, nats a token
	Loss        float64  `json:"loss"`
	Steps       int      `json:"steps"`
	Seconds     float64  `json:"seconds"`
	StepSeconds float64  `json:"step_s"`
	WireMB      float64  `json:"wire_mb_a_step"` // that a rank's gradient was encoded to
	Levels      string   `json:"levels,omitempty"`
	Changes     []string `json:"changes,omitempty"` // of levels
	Faster      float64  `json:"times_none,omitempty"`
}

// overLink trains over a slow link at each level of compression until the loss
// that the plain training ends with.
func (c *config) overLink(ctx context.Context) error {
	if c.compress[0] != "none" {
		return fmt.Errorf("-compress begins with none, whose loss the others must reach, not with %s", c.compress[0])
	}
	n, err := newNetwork(ctx, c.link)
	if err != nil {
		return err
	}
	defer n.close()
	out := json.NewEncoder(os.Stdout)
	var target, plain float64
	for _, mode := range c.compress {
		rc := rankConfig{Backend: "tcp", Compression: mode, Steps: c.steps, Target: target, Namespaces: n.names[:], Addresses: n.addrs[:]}
		if target > 0 {
			rc.Steps = 4 * c.steps
		}
		r, err := c.ours(ctx, 2, rc)
		if err != nil {
			return fmt.Errorf("%s: %w", mode, err)
		}
		if len(r.steps) < 2 {
			return fmt.Errorf("%s: %d steps were reported", mode, len(r.steps))
		}
		first, last := r.steps[0], r.steps[len(r.steps)-1]
		line := reached{Compression: mode, Link: c.link, Loss: last.Loss, Steps: last.Step, Seconds: last.Seconds, WireMB: float64(last.SyncBytes) / 1e6, Levels: last.Compression}
		line.StepSeconds = (last.Seconds - first.Seconds) / float64(last.Step-first.Step)
		if last.WireBytes > 0 {
			line.WireMB = float64(last.WireBytes) / 1e6
		}
		for _, s := range r.steps {
			for _, d := range s.Changes {
				line.Changes = append(line.Changes, fmt.Sprintf("step %d: bucket %d %s to %s, %s (exposed %.0f ms, code %.1f ms, error %.3f)", d.Step, d.Bucket, d.From, d.To, d.Reason, 1e3*d.Exposed, 1e3*d.Code, d.Error))
			}
		}
		if target == 0 {
			target, plain = last.Loss, last.Seconds
		} else if last.Loss <= target {
			line.Faster = plain / last.Seconds
		}
		line.Target = target
		if err := out.Encode(line); err != nil {
			return err
		}
	}
	return nil
}

// network is two network namespaces joined by a link of a limited rate, one for
// each rank.
type network struct{ names, addrs [2]string }

func newNetwork(ctx context.Context, rate string) (n *network, err error) {
	n = &network{addrs: [2]string{"10.231.77.1", "10.231.77.2"}}
	defer func() {
		if err != nil {
			n.close()
			err = fmt.Errorf("a link of %s needs root, ip and tc (apt-get install iproute2): %w", rate, err)
		}
	}()
	id := os.Getpid()
	for i := range n.names {
		n.names[i] = fmt.Sprintf("autoglm-ddp-%d-%d", id, i)
		if err := command(ctx, "ip", "netns", "add", n.names[i]); err != nil {
			return n, err
		}
	}
	if err := command(ctx, "ip", "-n", n.names[0], "link", "add", "ddp0", "type", "veth", "peer", "name", "ddp1", "netns", n.names[1]); err != nil {
		return n, err
	}
	for i, name := range n.names {
		dev := fmt.Sprint("ddp", i)
		for _, args := range [][]string{
			{"ip", "-n", name, "addr", "add", n.addrs[i] + "/24", "dev", dev},
			{"ip", "-n", name, "link", "set", dev, "up"},
			{"ip", "-n", name, "link", "set", "lo", "up"},
			{"tc", "-n", name, "qdisc", "add", "dev", dev, "root", "tbf", "rate", rate, "burst", "64kb", "latency", "200ms"},
		} {
			if err := command(ctx, args...); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

func (n *network) close() {
	for _, name := range n.names {
		if name != "" {
			_ = command(context.Background(), "ip", "netns", "del", name) // the link goes with it
		}
	}
}

func command(ctx context.Context, args ...string) error {
	b, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(b)))
	}
	return nil
}
