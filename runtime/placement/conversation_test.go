package placement

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/open-autoglm/autoglm/gpu/device"
)

var rewrite = flag.Bool("rewrite", false, "write the conversations of testdata anew")

// Each file of testdata is a script, a line of dashes, and what was decided:
//
//	node ID gpu N [model=NAME] [gb=N] [pairs] [cores=N] [load=F] [label=K:V] [held=DEVICE,…] [drain] [sick=DEVICE,…]
//	node ID cpu N [mb=N] …
//	gone ID
//	item ID NEED [owner=NAME] [priority=N] [mb=N] [near=NODE] [spread] [fixed] [label=K:V] [refused=NODE]
//	done ID           it has ended
//	back ID           it was stopped, and waits again
//	fail ID           it waits again, for ten seconds at first
//	after D           time goes on
//	share OWNER F
//	decide
func TestConversations(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no conversations in testdata: %v", err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			head, want, _ := strings.Cut(string(raw), "----\n")
			got, err := play(head)
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			if *rewrite {
				if err := os.WriteFile(path, []byte(head+"----\n"+got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != want {
				t.Errorf("%s: decided\n%s\nwant\n%s\nif it should, run: go test ./runtime/placement -run TestConversations -rewrite", path, got, want)
			}
		})
	}
}

// epoch is when conversations begin.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func play(script string) (string, error) {
	cfg := DefaultConfig()
	cfg.Shares = map[string]float64{}
	s := New(cfg)
	now := epoch
	var out strings.Builder
	for n, line := range strings.Split(script, "\n") {
		w := strings.Fields(line)
		if len(w) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		err := errors.New("unknown")
		switch {
		case w[0] == "node" && len(w) > 3:
			var node Node
			if node, err = parseNode(w[1:]); err == nil {
				s.SetNode(node)
			}
		case w[0] == "item" && len(w) > 2:
			var i Item
			if i, err = parseItem(w[1:]); err == nil {
				i.Submitted = now.Add(time.Duration(n) * time.Millisecond)
				s.Wait(i)
			}
		case w[0] == "gone":
			err = nil
			s.Gone(w[1])
		case w[0] == "done":
			err = nil
			s.Done(w[1])
		case w[0] == "back", w[0] == "fail":
			if e := s.items[w[1]]; e != nil {
				err = nil
				i := e.Item
				if w[0] == "fail" {
					i.NotBefore = now.Add(10 * time.Second)
				}
				s.Wait(i)
			}
		case w[0] == "after":
			var d time.Duration
			d, err = time.ParseDuration(w[1])
			now = now.Add(d)
		case w[0] == "share":
			cfg.Shares[w[1]], err = strconv.ParseFloat(w[2], 64)
		case w[0] == "decide":
			err = nil
			fmt.Fprintf(&out, "at %v\n", now.Sub(epoch))
			for _, a := range Decide(s.View(now), now, cfg) {
				fmt.Fprintf(&out, "  %s\n", a)
			}
			s.Decide(now)
		}
		if err != nil {
			return "", fmt.Errorf("line %d: %q: %w", n+1, line, err)
		}
	}
	return out.String(), nil
}

func (a Action) String() string {
	s := fmt.Sprintf("%s %s", a.Do, a.Item)
	for _, sh := range a.On {
		s += fmt.Sprintf(" on %s: %s", sh.Node, strings.Join(sh.Devices, " "))
	}
	if a.For != "" {
		s += " for " + a.For
	}
	if a.Why != "" {
		s += ": " + a.Why
	}
	return s
}

func parseNode(w []string) (Node, error) {
	n := Node{ID: w[0], Held: map[string]string{}}
	count, err := strconv.Atoi(w[2])
	if err != nil {
		return n, err
	}
	opt := options(w[3:])
	kind := device.Kind(w[1])
	n.Machine = machine(kind, count, opt["model"], number(opt["gb"])<<30)
	if _, ok := opt["pairs"]; ok {
		for i := 0; i+1 < count; i += 2 {
			n.Machine.Links = append(n.Machine.Links, device.Link{A: fmt.Sprintf("gpu:%d", i), B: fmt.Sprintf("gpu:%d", i+1), Level: device.NVLink})
		}
	}
	n.Machine.Devices = append(n.Machine.Devices, machine(device.CPU, int(number(opt["cores"])), "", 0).Devices...)
	n.Machine.MemoryBytes = number(opt["mb"]) << 20
	n.Load, _ = strconv.ParseFloat(opt["load"], 64)
	_, n.Draining = opt["drain"]
	n.Labels = pair(opt["label"])
	for i := range n.Machine.Devices {
		d := &n.Machine.Devices[i]
		if slices.Contains(strings.Split(opt["held"], ","), d.ID) {
			n.Held[d.ID] = "a stranger"
		}
		if slices.Contains(strings.Split(opt["sick"], ","), d.ID) {
			d.Sick = "ECC errors"
		}
	}
	return n, nil
}

// machine of so many devices of one kind; GPUs are all far apart.
func machine(kind device.Kind, n int, model string, bytes int64) device.Machine {
	var m device.Machine
	if model == "" {
		model = map[device.Kind]string{device.GPU: "A100", device.CPU: "EPYC"}[kind]
	}
	for i := range n {
		m.Devices = append(m.Devices, device.Device{ID: fmt.Sprintf("%s:%d", kind, i), Kind: kind, Model: model, MemoryBytes: bytes, NUMA: -1, Core: -1, Load: -1})
	}
	return m
}

func parseItem(w []string) (Item, error) {
	need, err := device.ParseRequest(w[1])
	opt := options(w[2:])
	i := Item{ID: w[0], Owner: opt["owner"], Need: need, Priority: int(number(opt["priority"])), Memory: number(opt["mb"]) << 20, Labels: pair(opt["label"])}
	_, i.Spread = opt["spread"]
	_, fixed := opt["fixed"]
	i.Preemptible = !fixed
	if opt["near"] != "" {
		i.Near = []string{opt["near"]}
	}
	if opt["refused"] != "" {
		i.Refused = []Refusal{{Node: opt["refused"], Until: epoch.Add(5 * time.Second), Why: "no disk"}}
	}
	return i, err
}

func options(w []string) map[string]string {
	out := map[string]string{}
	for _, x := range w {
		k, v, _ := strings.Cut(x, "=")
		out[k] = v
	}
	return out
}

func number(s string) int64 {
	n, _ := strconv.ParseInt(s, 10, 64)
	return n
}

func pair(s string) map[string]string {
	k, v, ok := strings.Cut(s, ":")
	if !ok {
		return nil
	}
	return map[string]string{k: v}
}

// The order of what comes in does not change what is decided.
func TestViewInAnyOrder(t *testing.T) {
	v := View{Usage: map[string]float64{"b": 1}}
	for i := range 4 {
		v.Nodes = append(v.Nodes, Node{ID: fmt.Sprint("n", i), Machine: machine(device.GPU, 4, "a100", 0)})
	}
	for i := range 20 {
		v.Waiting = append(v.Waiting, Item{ID: fmt.Sprint("i", i), Owner: string(rune('a' + i%3)), Priority: i % 2, Need: device.Request{Kind: device.GPU, Count: 1 + i%3}, Preemptible: i%4 == 0})
	}
	want := fmt.Sprint(Decide(v, epoch, DefaultConfig()))
	slices.Reverse(v.Nodes)
	slices.Reverse(v.Waiting)
	v.Usage = maps.Clone(v.Usage)
	if got := fmt.Sprint(Decide(v, epoch, DefaultConfig())); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{}, "window"},
		{Config{Window: time.Hour, Protect: -1}, "protect"},
		{Config{Window: time.Hour, Shares: map[string]float64{"ada": 0}}, "ada"},
	} {
		if err := c.cfg.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c.cfg, err)
		}
	}
	if err := DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
}
