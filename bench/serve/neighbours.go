package main

import (
	"context"
	"os/exec"

	"github.com/open-autoglm/autoglm/gpu/glm"
)

// busy is how many processes compute beside the contestants.
const busy = 4

// startBusy starts processes that only take processor time, and returns what ends them.
func startBusy(ctx context.Context) (end func(), err error) {
	var all []*exec.Cmd
	end = func() {
		for _, c := range all {
			_ = c.Process.Kill()
			_ = c.Wait() // it was killed
		}
	}
	for range busy {
		c := exec.CommandContext(ctx, "sh", "-c", "while :; do :; done")
		if err := c.Start(); err != nil {
			end()
			return nil, err
		}
		all = append(all, c)
	}
	return end, nil
}

// neighbours measures what is left of everybody's speed beside busy processes: ours with
// one thread, as serve takes by itself on two processors, the peers with two.
func (s *session) neighbours(ctx context.Context) ([]row, error) {
	if err := s.startPeers(ctx); err != nil {
		return nil, err
	}
	q := question{Texts: 1, Prompt: promptLen, Tokens: s.o.tokens, Threads: 1}
	contestants := func(tokens int) (ours, llama, hf *contestant, err error) {
		if ours, err = s.mine(ctx, glm.F32Weights, q); err != nil {
			return nil, nil, nil, err
		}
		q := q
		q.Threads, q.Tokens, q.Type = 2, tokens, "F32"
		return ours, asks(s.llama, "llama.cpp F32", q), asks(s.hf, "transformers", q), nil
	}
	idle, _, _, err := contestants(0)
	if err != nil {
		return nil, err
	}
	if err := compete(ctx, s.o.rounds, []*contestant{idle}); err != nil {
		return nil, err
	}
	// Few tokens of the peers: each of theirs may take most of a second.
	ours, llama, hf, err := contestants(8)
	if err != nil {
		return nil, err
	}
	end, err := startBusy(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	if err := compete(ctx, s.o.rounds, []*contestant{ours, llama, hf}); err != nil {
		return nil, err
	}
	idle.name = "idle"
	return []row{
		against("decode beside four, f32", false, 0.4, ours, idle),
		against("decode beside four, f32, others with two threads", false, 5, ours, llama, hf),
	}, nil
}
