package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/open-autoglm/autoglm/cluster/cert"
	"github.com/open-autoglm/autoglm/cluster/port"
)

const joinProtocol = "autoglm-join/1"

type (
	joinRequest struct {
		Token string
		CSR   []byte
	}
	joinAnswer struct {
		Refusal   string
		Cert      []byte // PEM
		Authority []byte // PEM
	}
)

// ServeJoin lets machines that hold a token ask this node for a certificate, which
// the authority signs. Each answer is told; refusals too. Call it before p.Serve.
func ServeJoin(p *port.Port, ca *cert.CA, told func(from net.Addr, err error)) {
	p.Handle(joinProtocol, "", func(c net.Conn) {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(helloTime))
		var r joinRequest
		if err := readFrame(c, &r); err != nil {
			told(c.RemoteAddr(), fmt.Errorf("join: %w", err))
			return
		}
		var a joinAnswer
		var err error
		if a.Cert, a.Authority, err = ca.Redeem(r.Token, r.CSR); err != nil {
			a = joinAnswer{Refusal: err.Error()}
		}
		told(c.RemoteAddr(), err)
		_ = writeFrame(c, a)
	})
}

// ErrNoAuthority is the answer of nodes that can't sign.
var ErrNoAuthority = errors.New("signs no certificates; name the node that was started with --ca")

// Ask redeems a token at the first address that takes it, and writes the
// certificate, good for these hosts, to dir.
func Ask(ctx context.Context, addrs []string, token string, hosts []string, dir string) error {
	ask, err := cert.Ask(token, hosts)
	if err != nil {
		return err
	}
	var errs []error
	for _, addr := range addrs {
		a, err := askOne(ctx, ask, addr)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if a.Refusal != "" {
			return fmt.Errorf("%s: %s", addr, a.Refusal)
		}
		return ask.Write(dir, a.Cert, a.Authority)
	}
	return errors.Join(errs...)
}

func askOne(ctx context.Context, ask *cert.Asking, addr string) (joinAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, helloTime)
	defer cancel()
	var a joinAnswer
	c, err := port.DialTLS(ctx, ask.TLS(), port.Call{Addr: addr, Protocol: joinProtocol})
	if errors.Is(err, port.ErrProtocol) {
		return a, fmt.Errorf("%s %w", addr, ErrNoAuthority)
	}
	if err != nil {
		return a, err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	_ = c.SetDeadline(deadline)
	if err := writeFrame(c, joinRequest{ask.Token(), ask.CSR}); err != nil {
		return a, fmt.Errorf("%s: %w", addr, err)
	}
	if err := readFrame(c, &a); err != nil {
		return a, fmt.Errorf("%s: %w", addr, err)
	}
	return a, nil
}
