package remote

import (
	"context"
	"testing"
	"time"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/open-autoglm/autoglm/cluster/cert"
)

// Both ends are in this process.
func BenchmarkSend(b *testing.B) {
	for name, secure := range map[string]bool{"plaintext": false, "TLS": true} {
		b.Run(name, func(b *testing.B) {
			x, y := pair(b, secure)
			n, all := 0, make(chan struct{})
			y.spawn(b, "count", func(c actor.Context) {
				if _, ok := c.Message().(*word); ok {
					if n++; n == b.N {
						close(all)
					}
				}
			})
			to, m := x.PID(y.Self(), "count"), &word{N: 1, Text: "a word or two"}
			b.ResetTimer()
			for range b.N {
				for x.Send(to, m) != nil { // as much waits as may
					time.Sleep(time.Millisecond)
				}
			}
			<-all
		})
	}
}

func BenchmarkAsk(b *testing.B) {
	for name, secure := range map[string]bool{"plaintext": false, "TLS": true} {
		b.Run(name, func(b *testing.B) {
			x, y := pair(b, secure)
			to := x.PID(y.Self(), "echo")
			for b.Loop() {
				if _, err := x.Ask(context.Background(), to, &question{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func pair(b *testing.B, secure bool) (x, y *site) {
	var id *cert.Identity
	if secure {
		id = issue(b)(cert.Request{Hosts: []string{"127.0.0.1"}})
	}
	return start(b, id, "", 1), start(b, id, "", 1)
}
