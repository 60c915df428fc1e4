package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/open-autoglm/autoglm/cluster/port"
)

// Others are reached by HTTP over their port.

// newClient dials through a port's identity.
func newClient(dial func(ctx context.Context, to port.Call) (net.Conn, error)) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return dial(ctx, port.Call{Addr: addr, Protocol: "http/1.1"})
		},
		MaxIdleConnsPerHost: 8, IdleConnTimeout: time.Minute,
	}}
}

// newH2 is for calls over gRPC.
func newH2(dial func(ctx context.Context, to port.Call) (net.Conn, error)) *http.Transport {
	h2 := func(ctx context.Context, _, addr string) (net.Conn, error) {
		return dial(ctx, port.Call{Addr: addr, Protocol: "h2"})
	}
	var p http.Protocols
	p.SetHTTP2(true)
	p.SetUnencryptedHTTP2(true)
	return &http.Transport{DialContext: h2, DialTLSContext: h2, Protocols: &p, IdleConnTimeout: time.Minute}
}

// StatusError is an answer other than a good one.
type StatusError struct {
	Code int
	Text string
}

func (e *StatusError) Error() string { return e.Text }

// final tells whether asking again gives the same answer: not where another node
// leads by now, or the leader has trouble of its own.
func (e *StatusError) final() bool { return e.Code != codeNotLeader && e.Code < 500 }

// call sends a request and decodes the answer into out, which may be nil, or a
// func(io.Reader) error that reads it. The body is JSON of in, or in itself when it
// is bytes.
func call(ctx context.Context, c *http.Client, method, url string, in, out any) error {
	var body io.Reader
	switch b := in.(type) {
	case nil:
	case []byte:
		body = bytes.NewReader(b)
	default:
		enc, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(enc)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return err
	}
	res, err := c.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode/100 != 2 {
		return ReadError(res)
	}
	switch read := out.(type) {
	case nil:
		_, err := io.Copy(io.Discard, res.Body)
		return err
	case func(io.Reader) error:
		return read(res.Body)
	}
	return json.NewDecoder(res.Body).Decode(out)
}

// ReadError is the error that an answer carries, a *StatusError.
func ReadError(res *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(res.Body, 4096))
	text := strings.TrimSpace(string(b))
	var e struct{ Error string }
	if json.Unmarshal(b, &e) == nil && e.Error != "" {
		text = e.Error
	}
	if text == "" {
		text = res.Status
	}
	return &StatusError{res.StatusCode, text}
}

// Answers that say "another node", or "not yet".
const (
	codeNotLeader = http.StatusMisdirectedRequest
	codeStale     = http.StatusConflict
)

// errNoLeader means that nobody leads for now: fewer than a majority of the voters
// are there, or an election is under way.
var errNoLeader = errors.New("no node leads for now: an election is under way, or fewer than a majority of the voters are there")

const leaderAgain = 100 * time.Millisecond

// toLeader calls the leader, looking for the next one while ctx lasts. Only what may
// be done twice may be sent, and out may be called more than once. Where a job is
// another node's by now the error is errTaken.
func (d *Daemon) toLeader(ctx context.Context, method, path string, in, out any) error {
	last := errNoLeader
	for {
		if addr := d.leaderAddr(); addr != "" {
			held, cancel := d.whileLeads(ctx, addr)
			err := call(held, d.client, method, "http://"+addr+path, in, out)
			cancel()
			var s *StatusError
			switch {
			case errors.As(err, &s) && s.Code == codeStale:
				return errTaken
			case err == nil, s != nil && s.final():
				return err
			}
			last = fmt.Errorf("%s: %w", addr, err)
		}
		if !pause(ctx, leaderAgain) {
			return errors.Join(ctx.Err(), last)
		}
	}
}

// whileLeads is ctx until another node leads than the one at addr: a leader that was
// paused keeps its connections, and would answer when it wakes up.
func (d *Daemon) whileLeads(ctx context.Context, addr string) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		for pause(ctx, leaderAgain) {
			if now := d.leaderAddr(); now != "" && now != addr {
				return
			}
		}
	}()
	return ctx, cancel
}

// leaderAddr is where the leader is, "" when this node does not know.
func (d *Daemon) leaderAddr() string {
	if _, addr := d.store.Leader(); addr != "" {
		return addr
	}
	// A node that has no copy hears of the leader by its news.
	var best news
	for _, b := range d.members.News() {
		if n, err := decodeNews(b); err == nil && n.Term > best.Term {
			best = n
		}
	}
	if best.Term == 0 {
		return ""
	}
	if m, ok := d.members.Member(best.Leader); ok {
		return m.Addr
	}
	return ""
}
