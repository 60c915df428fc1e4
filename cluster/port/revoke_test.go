package port

import (
	"context"
	"errors"
	"io"
	nethttp "net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/open-autoglm/autoglm/cluster/cert"
)

// Connections to who is revoked are closed, whoever dialled; new ones are refused, and
// who speaks HTTP is told why. All others stay.
func TestRevoked(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	if err := cert.InitCA(dir); err != nil {
		t.Fatal(err)
	}
	ca, err := cert.LoadCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	issue := func(r cert.Request) *cert.Identity {
		t.Helper()
		d := t.TempDir()
		if err := ca.Issue(r, d); err != nil {
			t.Fatal(err)
		}
		id, err := cert.Load(d)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	node := func(name string) *cert.Identity { return issue(cert.Request{Name: name, Hosts: []string{"127.0.0.1"}}) }
	own, good, bad, ada := node("own"), node("good"), node("bad"), issue(cert.Request{Name: "ada", Role: cert.Read})
	p, ref := start(t, Config{Identity: own})
	elsewhere, _ := start(t, Config{Identity: bad})
	dial := func(id *cert.Identity) (io.ReadWriteCloser, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		c, err := Dial(ctx, id, Call{Addr: p.Addr().String(), Protocol: "echo"})
		if err != nil {
			return nil, err
		}
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Write([]byte("x")); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			return nil, cert.Explain(err)
		}
		return c, nil
	}
	var open []io.ReadWriteCloser
	for _, id := range []*cert.Identity{good, bad} {
		c, err := dial(id)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open = append(open, c)
	}
	out, err := p.Dial(t.Context(), Call{Addr: elsewhere.Addr().String(), Protocol: "echo"})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	web := func(id *cert.Identity, body int) (string, error) {
		tr := &nethttp.Transport{TLSClientConfig: id.Client()}
		defer tr.CloseIdleConnections()
		res, err := (&nethttp.Client{Transport: tr}).Post("https://"+p.Addr().String()+"/", "text/plain", strings.NewReader(strings.Repeat("x", body)))
		if err != nil {
			return "", err
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		return res.Status + " " + string(b), err
	}
	if got, err := web(ada, 1); err != nil || !strings.HasPrefix(got, "200") {
		t.Fatal(got, err)
	}

	if _, err := ca.Revoke("bad", "ada"); err != nil {
		t.Fatal(err)
	}
	list, err := ca.List()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := own.Revoke(list); err != nil {
		t.Fatal(err)
	}
	if n := p.CloseRevoked(); n < 2 || n > 3 { // ada's may not have ended yet
		t.Errorf("%d connections were closed, one each way was open", n)
	}
	b := make([]byte, 1)
	if _, err := open[0].Write([]byte("y")); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(open[0], b); err != nil || b[0] != 'y' {
		t.Errorf("the good one's: %q, %v", b, err)
	}
	if _, err := open[1].Read(b); err == nil {
		t.Error("the revoked one's is still open")
	}
	if _, err := out.Read(b); err == nil {
		t.Error("the one to the revoked is still open")
	}
	if _, err := dial(bad); err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("the revoked one dials: %v", err)
	}
	if why := <-ref.ch; !strings.Contains(why, "of bad was revoked") {
		t.Error(why)
	}
	if _, err := p.Dial(t.Context(), Call{Addr: elsewhere.Addr().String(), Protocol: "echo"}); !errors.Is(err, cert.ErrRevoked) {
		t.Errorf("the revoked one is dialled: %v", err)
	}
	if got, err := web(ada, 300<<10); err != nil || !strings.HasPrefix(got, "403") || !strings.Contains(got, "the certificate of ada was revoked") {
		t.Errorf("a revoked person: %q, %v", got, err)
	}
	c, err := dial(good)
	if err != nil {
		t.Error(err)
	} else {
		c.Close()
	}
}
