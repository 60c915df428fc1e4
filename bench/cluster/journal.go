package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/open-autoglm/autoglm/cluster/port"
	"github.com/open-autoglm/autoglm/cluster/replica"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
	"github.com/open-autoglm/autoglm/runtime/train"
)

const trials = 10_000

// measured is what the process of a journal says.
type measured struct {
	Seconds  float64 // to append all, synced two events a trial
	Resident float64 // MB at its end
	Again    float64 // seconds from a start to leading with all of it
	Bytes    int64   // of the records
}

// journal has another process keep a journal of so many trials on one node: what the
// leader of a cluster of one does.
func (t *town) journal(show func(result)) error {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), logEnv+"="+filepath.Join(t.dir, "log"))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return err
	}
	var m measured
	if err := json.Unmarshal(out, &m); err != nil {
		return err
	}
	show(of("memory of a journal of 10,000 trials", 1, "MB", "200", []float64{m.Resident}))
	show(of("trials committed, two synced events each", 1, "/s", "2000", []float64{trials / m.Seconds}))
	show(of("its leader ready after a restart", 1, "s", "3", []float64{m.Again}))
	return nil
}

// journals is that process.
func journals(dir string) error {
	open := func() (*replica.Store, *port.Port, uint64, error) {
		p, err := port.Listen(port.Config{Listen: "127.0.0.1:0"})
		if err != nil {
			return nil, nil, 0, err
		}
		leads := make(chan uint64, 8)
		var s *replica.Store
		s, err = replica.Open(replica.Config{
			Dir: dir, Port: p, Node: "n", Addr: p.Addr().String(), Found: true,
			Candidates: func() []replica.Candidate { return nil },
			Events:     replica.Events{Leading: func(term uint64) { leads <- term }},
		})
		if err != nil {
			return nil, nil, 0, err
		}
		go p.Serve()
		select {
		case term := <-leads:
			return s, p, term, nil
		case <-time.After(20 * time.Second):
			return nil, nil, 0, fmt.Errorf("nobody leads after 20 s")
		}
	}
	s, p, term, err := open()
	if err != nil {
		return err
	}
	var m measured
	log := s.Log("job/j1", term)
	begin := time.Now()
	for i := range trials {
		id := fmt.Sprintf("t%05d", i)
		for _, e := range []journal.Event{
			{Kind: journal.Decided, At: begin.UnixMilli(), Decision: &search.Decision{Seq: i, Trial: id, Action: search.Start, Resource: 12, Config: space.Config{
				"dim": space.Number(256), "layers": space.Number(6), "context": space.Number(256), "vocab": space.Number(2048), "heads": space.Number(4),
				"lr": space.Number(0.00123), "weight_decay": space.Number(0.05), "warmup_steps": space.Number(20), "batch_tokens": space.Number(4096),
			}}},
			{Kind: journal.TrialEnded, At: begin.UnixMilli(), Trial: &journal.TrialReport{Trial: id, Seq: i, State: train.State{Step: 120, Tokens: 491520}, Bits: 2.1, Params: 4_200_000, PerSecond: 11_000}},
		} {
			b, err := e.Encode()
			if err != nil {
				return err
			}
			m.Bytes += int64(len(b))
			if err := log.Append(b, true); err != nil {
				return err
			}
		}
	}
	m.Seconds = time.Since(begin).Seconds()
	r, err := resident(os.Getpid())
	if err != nil {
		return err
	}
	m.Resident = r
	if err := s.Close(); err != nil {
		return err
	}
	if err := p.Close(); err != nil {
		return err
	}
	begin = time.Now()
	s, p, _, err = open()
	if err != nil {
		return err
	}
	n := 0
	if err := s.Replay("job/j1", func([]byte) error { n++; return nil }); err != nil {
		return err
	}
	if n != 2*trials {
		return fmt.Errorf("%d records after a restart, %d were appended", n, 2*trials)
	}
	m.Again = time.Since(begin).Seconds()
	if err := s.Close(); err != nil {
		return err
	}
	if err := p.Close(); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(m)
}
