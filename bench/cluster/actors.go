package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/actors/node"
	"github.com/open-autoglm/autoglm/cluster/port"
	"github.com/open-autoglm/autoglm/cluster/remote"
	"github.com/open-autoglm/autoglm/gpu/device"
)

// Actors over processes without a daemon: how soon trials are placed and placed
// anew, and what passes through Supervisor, SearchAgent, Trial and GPUWorker.

// place asks a process for a trial's actor, placed names it.
type (
	place struct {
		Trial int
		From  *actor.PID
	}
	placed struct {
		Trial int
		Actor *actor.PID
	}
)

func actorKinds() *remote.Kinds {
	k := actors.Kinds()
	remote.Register[place](k, 1000)
	remote.Register[placed](k, 1001)
	return k
}

// site is a process' part in the actors.
type site struct {
	*remote.Remote
	system *actor.ActorSystem
	port   *port.Port
}

func newSite() (*site, error) {
	p, err := port.Listen(port.Config{Listen: "127.0.0.1:0"})
	if err != nil {
		return nil, err
	}
	s := &site{system: node.NewSystem(nil), port: p}
	if s.Remote, err = remote.Start(s.system, remote.Config{Port: p, Boot: uint64(os.Getpid()), Kinds: actorKinds()}); err != nil {
		return nil, err
	}
	go p.Serve()
	return s, nil
}

func (s *site) end() {
	s.Close()
	s.port.Close()
}

// hostConfig is what a process hosts beside trials.
type hostConfig struct {
	Workers int
	Report  time.Duration // of each task
	Dir     string        // where tasks write their trial's config.json; nowhere when empty
}

// host is the process of a site, until its standard input ends.
func host(conf string) error {
	var cfg hostConfig
	if err := json.Unmarshal([]byte(conf), &cfg); err != nil {
		return err
	}
	s, err := newSite()
	if err != nil {
		return err
	}
	_, err = s.system.Root.SpawnNamed(actor.PropsFromFunc(func(ctx actor.Context) {
		if m, ok := ctx.Message().(*place); ok {
			who := ctx.Spawn(actor.PropsFromFunc(func(actor.Context) {}))
			ctx.Send(m.From, &placed{Trial: m.Trial, Actor: who})
		}
	}), "host")
	if err != nil {
		return err
	}
	for i := range cfg.Workers {
		d := device.Device{ID: fmt.Sprintf("cpu:%d", i)}
		if _, err := s.system.Root.SpawnNamed(actors.WorkerProps(d, idle(cfg.Report, cfg.Dir), nil, actors.Hooks{}), worker(i)); err != nil {
			return err
		}
	}
	fmt.Println(s.Self())
	_, _ = io.Copy(io.Discard, os.Stdin)
	s.end()
	return nil
}

func worker(i int) string { return fmt.Sprintf("worker-%d", i) }

// hosted is a host as this program holds it.
type hosted struct {
	cmd  *exec.Cmd
	life string
}

func startHost(cfg hostConfig) (*hosted, error) {
	conf, err := json.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	h := &hosted{cmd: exec.Command("/proc/self/exe")}
	h.cmd.Env = append(os.Environ(), hostEnv+"="+string(conf))
	h.cmd.Stderr = os.Stderr
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if _, err := h.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := h.cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		h.kill()
		return nil, fmt.Errorf("a host's process ended: %w", err)
	}
	h.life = strings.TrimSpace(line)
	return h, nil
}

func (h *hosted) kill() {
	_ = h.cmd.Process.Kill()
	_ = h.cmd.Wait()
}

// placer places trials round robin over lives, watches them, and places those anew
// whose process is gone. State belongs to its mailbox.
type placer struct {
	lives []string
	next  int
	at    map[string]int // trial, by its actor
	open  map[int]bool   // asked for, not placed yet
	done  chan time.Time // all are placed
}

type placeAll struct{ n int }

// Receive implements actor.Actor.
func (p *placer) Receive(ctx actor.Context) {
	switch m := ctx.Message().(type) {
	case *placeAll:
		for i := range m.n {
			p.place(ctx, i)
		}
	case *placed:
		if !p.open[m.Trial] {
			return
		}
		delete(p.open, m.Trial)
		p.at[m.Actor.Address+"/"+m.Actor.Id] = m.Trial
		ctx.Watch(m.Actor)
		if len(p.open) == 0 {
			p.done <- time.Now()
		}
	case *actor.Terminated:
		trial, ok := p.at[m.Who.Address+"/"+m.Who.Id]
		if !ok {
			return
		}
		delete(p.at, m.Who.Address+"/"+m.Who.Id)
		for i, l := range p.lives {
			if l == m.Who.Address {
				p.lives = append(p.lives[:i:i], p.lives[i+1:]...)
				break
			}
		}
		p.place(ctx, trial)
	}
}

func (p *placer) place(ctx actor.Context, trial int) {
	p.open[trial] = true
	life := p.lives[p.next%len(p.lives)]
	p.next++
	ctx.Send(actor.NewPID(life, "host"), &place{Trial: trial, From: ctx.Self()})
}

const (
	watchHosts  = 4
	watchTrials = 200
)

// watches measures placement on processes that were never spoken to, and after one
// of them was killed.
func watches(rounds int, show func(result)) error {
	var first, again []float64
	for range rounds {
		a, b, err := watchRound()
		if err != nil {
			return err
		}
		first, again = append(first, a.Seconds()*1e3), append(again, b.Seconds()*1e3)
	}
	show(of(fmt.Sprintf("%d watched trials placed", watchTrials), watchHosts, "ms", "50", first))
	show(of(fmt.Sprintf("kill -9 to the %d of it placed elsewhere", watchTrials/watchHosts), watchHosts, "ms", "20", again))
	return nil
}

func watchRound() (first, again time.Duration, err error) {
	s, err := newSite()
	if err != nil {
		return 0, 0, err
	}
	defer s.end()
	p := &placer{at: map[string]int{}, open: map[int]bool{}, done: make(chan time.Time, 1)}
	var hosts []*hosted
	defer func() {
		for _, h := range hosts {
			h.kill()
		}
	}()
	for range watchHosts {
		h, err := startHost(hostConfig{})
		if err != nil {
			return 0, 0, err
		}
		hosts = append(hosts, h)
		p.lives = append(p.lives, h.life)
	}
	pid := s.system.Root.Spawn(actor.PropsFromProducer(func() actor.Actor { return p }))
	wait := func(since time.Time) (time.Duration, error) {
		select {
		case at := <-p.done:
			return at.Sub(since), nil
		case <-time.After(20 * time.Second):
			return 0, errors.New("not all trials were placed after 20 s")
		}
	}
	begin := time.Now()
	s.system.Root.Send(pid, &placeAll{watchTrials})
	if first, err = wait(begin); err != nil {
		return 0, 0, err
	}
	time.Sleep(100 * time.Millisecond) // the watches reach them
	begin = time.Now()
	if err := hosts[0].cmd.Process.Kill(); err != nil {
		return 0, 0, err
	}
	again, err = wait(begin)
	return first, again, err
}
