package ringtest

import (
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
	t.Logf("%d of %d packets came there and back; TCP: %d times %d bytes in %v", got.Back, got.Sent, got.Pieces, tcpPiece, tcpTime)
	// 0.8² of 2000 is 1280, with a deviation of 21.
	if got.Sent != 2000 || got.Back < 1150 || got.Back > 1410 {
		t.Errorf("%d of %d packets came there and back, a loss of 20 %% each way leaves about 1280", got.Back, got.Sent)
	}
	if got.Pieces == 0 {
		t.Error("TCP carried nothing")
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
	tcpTime  = 1500 * time.Millisecond
	tcpPiece = 4 << 10
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
	late := time.Now().Add(tcpTime)
	for range 8 {
		wg.Go(func() {
			c, err := (&net.Dialer{Deadline: late}).Dial("tcp", addr)
			if err != nil {
				return
			}
			defer c.Close()
			_ = c.SetDeadline(late)
			b := make([]byte, tcpPiece)
			for {
				if _, err := c.Write(b); err != nil {
					return
				}
				if _, err := io.ReadFull(c, b); err != nil {
					return
				}
				asked.Add(1)
			}
		})
	}
	wg.Wait()
	u, err := net.Dial("udp", addr)
	check(err)
	const sent = 2000
	back, done := map[uint32]bool{}, make(chan struct{})
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
			}
		}
	}()
	for i := range uint32(sent) {
		_, err := u.Write(binary.BigEndian.AppendUint32(nil, i))
		check(err)
		if i%20 == 19 {
			time.Sleep(time.Millisecond) // the queue of a socket is short
		}
	}
	_ = u.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
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
