package ringtest

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const lossEnv = "RINGTEST_LOSS" // the addresses, in the process of one end

// A lossy link drops a fifth of what is sent, each way, and TCP gets over it.
func TestLose(t *testing.T) {
	if addr := os.Getenv(lossEnv); addr != "" {
		echo(addr)
		return
	}
	hosts := Hosts(t, 2)
	l := hosts[0].Lose(t, 20)
	other := run(t, hosts[1], "listen "+hosts[1].Address+":7000")
	if line, err := other.line(); err != nil || line != "ready" {
		t.Fatalf("%q, %v", line, err)
	}
	ask := func() (got struct{ Sent, Back, Pieces int }) {
		t.Helper()
		line, err := run(t, hosts[0], "ask "+hosts[1].Address+":7000").line()
		if err == nil {
			err = json.Unmarshal([]byte(line), &got)
		}
		if err != nil {
			t.Fatal(err, line)
		}
		return got
	}
	got := ask()
	t.Logf("%d of %d packets came there and back; TCP: %d times %d bytes", got.Back, got.Sent, got.Pieces, tcpPiece)
	// 0.8² of 2000 is 1280, with a deviation of 21.
	if got.Sent != 2000 || got.Back < 1150 || got.Back > 1410 {
		t.Errorf("%d of %d packets came there and back, a loss of 20 %% each way leaves about 1280", got.Back, got.Sent)
	}
	if got.Pieces < tcpPieces {
		t.Errorf("TCP carried %d pieces of %d within %v", got.Pieces, tcpPieces, tcpTime)
	}
	l.End()
	calm := ask()
	t.Logf("without loss: %d of %d packets; TCP: %d times", calm.Back, calm.Sent, calm.Pieces)
	if calm.Back < 1990 { // a queue may still overflow
		t.Errorf("%d of %d packets came after the loss had ended", calm.Back, calm.Sent)
	}
}

type end struct{ r *io.PipeReader }

func (e end) line() (string, error) {
	var b strings.Builder
	var one [1]byte
	for {
		if _, err := e.r.Read(one[:]); err != nil {
			return b.String(), err
		}
		if one[0] == '\n' {
			return b.String(), nil
		}
		b.WriteByte(one[0])
	}
}

// run starts this binary on a host.
func run(t *testing.T, h Host, what string) end {
	t.Helper()
	argv := append(append([]string{}, h.Prefix...), os.Args[0], "-test.run=^TestLose$")
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), lossEnv+"="+what)
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
		w.Close()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		r.Close()
		<-ended
	})
	return end{r}
}

const (
	tcpTime   = time.Minute // at most: a busy machine's timers come late, and each loss waits for one
	tcpPieces = 20
	tcpPiece  = 4 << 10
)

// echo is one end's process.
func echo(what string) {
	do, addr, _ := strings.Cut(what, " ")
	if do == "listen" {
		u, err := net.ListenPacket("udp", addr)
		check(err)
		l, err := net.Listen("tcp", addr)
		check(err)
		fmt.Println("ready")
		go func() {
			b := make([]byte, 64)
			for {
				n, from, err := u.ReadFrom(b)
				check(err)
				_, _ = u.WriteTo(b[:n], from)
			}
		}()
		for {
			c, err := l.Accept()
			check(err)
			go func() {
				_, _ = io.Copy(c, c)
				c.Close()
			}()
		}
	}
	// Some connections begin late, their first packets having been lost.
	var asked atomic.Int64
	var wg sync.WaitGroup
	ctx, enough := context.WithTimeout(context.Background(), tcpTime)
	for range 8 {
		wg.Go(func() {
			c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
			if err != nil {
				return
			}
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			b := make([]byte, tcpPiece)
			for asked.Load() < tcpPieces {
				if _, err := c.Write(b); err != nil {
					return
				}
				if _, err := io.ReadFull(c, b); err != nil {
					return
				}
				asked.Add(1)
			}
			enough()
		})
	}
	wg.Wait()
	u, err := net.Dial("udp", addr)
	check(err)
	const sent = 2000
	back, done := map[uint32]bool{}, make(chan struct{})
	var heard atomic.Int64
	go func() {
		defer close(done)
		b := make([]byte, 64)
		for {
			n, err := u.Read(b)
			if err != nil {
				return
			}
			if n == 4 {
				back[binary.BigEndian.Uint32(b)] = true
				heard.Store(int64(len(back)))
			}
		}
	}()
	// The queue of a socket is short, and whoever empties it may have to wait for a
	// processor: more goes out when what went out is back, or lost.
	const few, lost = 20, 20 * time.Millisecond
	for i := range uint32(sent) {
		_, err := u.Write(binary.BigEndian.AppendUint32(nil, i))
		check(err)
		if i%few == few-1 {
			for late := time.Now().Add(lost); heard.Load() <= int64(i) && time.Now().Before(late); {
				time.Sleep(100 * time.Microsecond)
			}
		}
	}
	_ = u.SetReadDeadline(time.Now().Add(time.Second))
	<-done
	check(json.NewEncoder(os.Stdout).Encode(map[string]any{"Sent": sent, "Back": len(back), "Pieces": asked.Load()}))
	os.Exit(0)
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
