package node

import (
	"strings"
	"testing"
)

func FuzzReadConfig(f *testing.F) {
	f.Add([]byte(`{"layers": 1, "dim": 64, "heads": 2, "kv_heads": 2, "ffn_ratio": 2, "context": 32, "vocab": 320, "tied": true, "optimizer": "adamw", "lr": 0.004, "batch_tokens": 256, "dropout": 0.1, "weight_decay": 0.1, "warmup_steps": 2}`))
	f.Add([]byte(`{"arch": {"vocab": 320, "dim": 64, "layers": 1, "heads": 2, "kv_heads": 1, "ffn": 64, "context": 32, "tied": true}, "batch_tokens": 256, "optimizer": "muon", "lr": 0.01, "muon_lr": 0.02, "schedule": "wsd"}`))
	f.Add([]byte(`{"arch": 1}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ReadConfig("c.json", b, 1)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "c.json") {
				t.Errorf("an error does not name the file: %v", err)
			}
			return
		}
		if c.Arch.Validate() != nil || c.Sequences() < 1 || !(c.LR > 0) {
			t.Errorf("%+v was accepted", c)
		}
	})
}
