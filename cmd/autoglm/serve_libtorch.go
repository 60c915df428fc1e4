//go:build libtorch

package main

import (
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/torch"
	"github.com/open-autoglm/autoglm/gpu/glm"
)

func init() {
	gpuDecoders = &gpuEngine{
		count: torch.Devices,
		open: func(a glm.Arch, state engine.StateDict, seqs int) (engine.Decoder, error) {
			return torch.NewDecoder(a, state, torch.DecoderOptions{MaxSeqs: seqs, Precision: engine.Auto})
		},
	}
}
