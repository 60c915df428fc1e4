package driver

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/actors/daemon"
	"github.com/open-autoglm/autoglm/cluster/cert"
	"github.com/open-autoglm/autoglm/cluster/files"
	"github.com/open-autoglm/autoglm/cluster/port"
	"github.com/open-autoglm/autoglm/runtime/durable"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/telemetry"
)

// Client attaches to a cluster through any of its nodes. It may be shared.
type Client struct {
	addr string // as it was given
	host string // of the requests
	http *http.Client

	plain bool        // without a certificate
	spoke atomic.Bool // a node has answered: it is not the certificates
}

// NewClient speaks to the node at host:port, or to the first of a comma's list that
// answers, under an identity where the cluster has certificates; nil is plaintext.
func NewClient(addr string, id *cert.Identity) *Client {
	addrs := strings.Split(addr, ",")
	dial := func(ctx context.Context, to string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, dialTime)
		defer cancel()
		if id == nil {
			return new(net.Dialer).DialContext(ctx, "tcp", to)
		}
		return port.Dial(ctx, id, port.Call{Addr: to, Protocol: "http/1.1"})
	}
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (c net.Conn, err error) {
			for _, to := range addrs {
				if c, err = dial(ctx, to); err == nil {
					break
				}
			}
			return c, err
		},
		IdleConnTimeout: time.Minute,
	}
	host := addrs[0]
	if len(addrs) > 1 {
		host = "localhost" // which any of them answers to
	}
	return &Client{addr: addr, host: host, http: &http.Client{Transport: t}, plain: id == nil}
}

const dialTime = 10 * time.Second

// Close lets its connections go.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// do sends a request; the caller closes the body. A bad answer is a
// *daemon.StatusError.
func (c *Client) do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+c.host+path, body)
	if err != nil {
		return nil, err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(err)
	}
	c.spoke.Store(true)
	if res.StatusCode/100 != 2 {
		defer res.Body.Close()
		return nil, daemon.ReadError(res)
	}
	return res, nil
}

// Why a node can't be spoken to.
var (
	ErrNobody   = errors.New("no node listens")
	ErrGone     = errors.New("try another of the cluster's nodes")
	ErrNeedsTLS = errors.New("it has certificates and this command has none; give --tls DIR (autoglm ca issue --role submit NAME)")
)

// explain says what may be wrong with a node that can't be reached.
func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		first, _, _ := strings.Cut(c.addr, ",")
		return fmt.Errorf("%w at %s; start one with: autoglm node --listen %s", ErrNobody, c.addr, first)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), strings.Contains(err.Error(), "malformed HTTP response"):
		if c.plain && !c.spoke.Load() {
			return fmt.Errorf("the node at %s hung up: %w", c.addr, ErrNeedsTLS)
		}
		return fmt.Errorf("the node at %s hung up: it stops, or was lost: %w", c.addr, ErrGone)
	}
	return cert.Explain(err)
}

func (c *Client) json(ctx context.Context, method, path string, in, out any) error {
	var b []byte
	if in != nil {
		var err error
		if b, err = json.Marshal(in); err != nil {
			return err
		}
	}
	var res *http.Response
	for late := time.Now().Add(electionPatience); ; {
		var err error
		if res, err = c.do(ctx, method, path, bytes.NewReader(b)); err == nil {
			break
		}
		// Nobody has done it: it may be asked again.
		var s *daemon.StatusError
		if !errors.As(err, &s) || s.Code != http.StatusServiceUnavailable && s.Code != http.StatusMisdirectedRequest || time.Now().After(late) {
			return err
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	defer res.Body.Close()
	if out == nil {
		_, err := io.Copy(io.Discard, res.Body)
		return err
	}
	return json.NewDecoder(res.Body).Decode(out)
}

// electionPatience is how long a request is asked again while nobody leads.
const electionPatience = 15 * time.Second

// Upload sends a file. Sent is told how many bytes have gone; it may be nil.
func (c *Client) Upload(ctx context.Context, path string, sent func(n int64)) (files.Ref, error) {
	var ref files.Ref
	f, err := os.Open(path)
	if err != nil {
		return ref, err
	}
	defer f.Close()
	res, err := c.do(ctx, http.MethodPut, "/v1/files", &counting{r: f, told: sent})
	if err != nil {
		return ref, fmt.Errorf("%s: %w", path, err)
	}
	defer res.Body.Close()
	return ref, json.NewDecoder(res.Body).Decode(&ref)
}

type counting struct {
	r    io.Reader
	n    int64
	told func(int64)
}

func (c *counting) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	if c.told != nil {
		c.told(c.n)
	}
	return n, err
}

// Submit uploads the files that a spec names and enters the job. It returns the
// job's id.
func (c *Client) Submit(ctx context.Context, name string, spec job.Spec, sent func(path string, n int64)) (string, error) {
	in := daemon.Submission{Name: name}
	type list struct {
		paths []string
		as    daemon.Upload
	}
	lists := []list{{spec.Data.Files, daemon.Upload{}}, {spec.Data.Valid, daemon.Upload{Valid: true}}}
	made := func(p string) bool {
		_, ok := spec.StepFile(p)
		return ok
	}
	here := func(p string) bool { return !made(p) }
	spec.Data.Files, spec.Data.Valid = slices.DeleteFunc(slices.Clone(spec.Data.Files), here), slices.DeleteFunc(slices.Clone(spec.Data.Valid), here)
	spec.Steps = slices.Clone(spec.Steps)
	for i := range spec.Steps {
		t := &spec.Steps[i]
		lists = append(lists, list{t.Files, daemon.Upload{Step: t.Name}})
		t.Files = nil
	}
	for _, list := range lists {
		for _, p := range list.paths {
			if list.as.Step == "" && made(p) {
				continue
			}
			paths, err := filepath.Glob(p)
			if err != nil || len(paths) == 0 {
				paths = []string{p} // its error will name it
			}
			for _, path := range paths {
				ref, err := c.Upload(ctx, path, func(n int64) {
					if sent != nil {
						sent(path, n)
					}
				})
				if err != nil {
					return "", err
				}
				up := list.as
				up.Name, up.Ref = filepath.Base(path), ref
				in.Files = append(in.Files, up)
			}
		}
	}
	if len(spec.WarmStart) > 0 {
		ref, err := c.uploadPast(ctx, spec.WarmStart)
		if err != nil {
			return "", err
		}
		in.Files = append(in.Files, daemon.Upload{Name: "warm.json", Ref: ref, Warm: true})
		spec.WarmStart = nil
	}
	in.Spec = spec
	var out struct{ Job string }
	err := c.json(ctx, http.MethodPost, "/v1/jobs", in, &out)
	return out.Job, err
}

// uploadPast reads the trials of earlier searches here and sends them as one file.
func (c *Client) uploadPast(ctx context.Context, paths []string) (files.Ref, error) {
	past, err := telemetry.ReadPast(paths)
	if err != nil {
		return files.Ref{}, err
	}
	f, err := os.CreateTemp("", "autoglm-warm-*.json")
	if err != nil {
		return files.Ref{}, err
	}
	defer os.Remove(f.Name())
	if err := errors.Join(telemetry.WritePast(f, past), f.Close()); err != nil {
		return files.Ref{}, err
	}
	return c.Upload(ctx, f.Name(), nil)
}

// Jobs lists all jobs, the oldest first.
func (c *Client) Jobs(ctx context.Context) ([]daemon.Job, error) {
	var out []daemon.Job
	err := c.json(ctx, http.MethodGet, "/v1/jobs", nil, &out)
	return out, err
}

// Job is one of them with its leaderboard.
func (c *Client) Job(ctx context.Context, id string) (daemon.Detail, error) {
	var out daemon.Detail
	err := c.json(ctx, http.MethodGet, "/v1/jobs/"+id, nil, &out)
	return out, err
}

// Cancel stops a job.
func (c *Client) Cancel(ctx context.Context, id string) error {
	return c.json(ctx, http.MethodPost, "/v1/jobs/"+id+"/cancel", nil, nil)
}

// Steer has the search of a job that runs take an order, which is committed when this
// returns nil.
func (c *Client) Steer(ctx context.Context, id string, o search.Order) (search.Order, error) {
	var out search.Order
	err := c.json(ctx, http.MethodPost, "/v1/jobs/"+id+"/steer", o, &out)
	return out, err
}

// Remove forgets a job that is over, with all that the cluster keeps of it.
func (c *Client) Remove(ctx context.Context, id string) error {
	return c.json(ctx, http.MethodDelete, "/v1/jobs/"+id, nil, nil)
}

// Nodes lists the cluster's nodes.
func (c *Client) Nodes(ctx context.Context) (daemon.Nodes, error) {
	var out daemon.Nodes
	err := c.json(ctx, http.MethodGet, "/v1/nodes", nil, &out)
	return out, err
}

// Drain has a node, by name or id, give its jobs back and leave.
func (c *Client) Drain(ctx context.Context, node string) error {
	return c.json(ctx, http.MethodPost, "/v1/nodes/"+node+"/drain", struct{}{}, nil)
}

// RotateKeys replaces the key that seals gossip.
func (c *Client) RotateKeys(ctx context.Context) error {
	return c.json(ctx, http.MethodPost, "/v1/keys/rotate", struct{}{}, nil)
}

// Revoke gives a list of revoked certificates to all nodes.
func (c *Client) Revoke(ctx context.Context, list []byte) (daemon.Spread, error) {
	var out daemon.Spread
	res, err := c.do(ctx, http.MethodPost, "/v1/crl", bytes.NewReader(list))
	if err != nil {
		return out, err
	}
	defer res.Body.Close()
	return out, json.NewDecoder(res.Body).Decode(&out)
}

// Backup writes a snapshot of all journals.
func (c *Client) Backup(ctx context.Context, w io.Writer) error {
	res, err := c.do(ctx, http.MethodGet, "/v1/backup", nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, err = io.Copy(w, res.Body)
	return err
}

// Fetch lays a job's folder out in dir, whole files only; those that are there with
// the right content are left. Told is called before each file; it may be nil.
func (c *Client) Fetch(ctx context.Context, id, dir string, told func(path string, size int64)) error {
	var f map[string]files.Ref
	if err := c.json(ctx, http.MethodGet, "/v1/jobs/"+id+"/folder", nil, &f); err != nil {
		return err
	}
	if len(f) == 0 {
		return fmt.Errorf("%s has left nothing yet", id)
	}
	paths := make([]string, 0, len(f))
	for p := range f {
		if !filepath.IsLocal(p) {
			return fmt.Errorf("%s names the file %q, which leads out of its folder", id, p)
		}
		paths = append(paths, p)
	}
	slices.Sort(paths)
	tmp, err := os.MkdirTemp(filepath.Dir(filepath.Clean(dir)), ".fetch-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	store, err := files.New(tmp, 0)
	if err != nil {
		return err
	}
	for _, p := range paths {
		ref := f[p]
		if told != nil {
			told(p, ref.Size)
		}
		to := filepath.Join(dir, p)
		if same(to, ref) {
			continue
		}
		if err := store.Fetch(ctx, c.sized(ref), ref, []string{"http://" + c.host + "/v1/files"}); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		if err := lay(store, ref, to); err != nil {
			return err
		}
	}
	return nil
}

// sized asks for a file with its size, which a node that must fetch it needs.
func (c *Client) sized(ref files.Ref) *http.Client {
	return &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		r = r.Clone(r.Context())
		r.URL.RawQuery = fmt.Sprintf("size=%d", ref.Size)
		return c.http.Transport.RoundTrip(r)
	})}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func same(path string, ref files.Ref) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return files.Of(f) == ref
}

// lay copies a file out of a store: the folder is the user's to write in.
func lay(store *files.Store, ref files.Ref, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	f, err := store.Open(ref)
	if err != nil {
		return err
	}
	defer f.Close()
	return durable.Write(to, func(w io.Writer) error {
		_, err := io.Copy(w, f)
		return err
	})
}

// Followed is a job as one who follows it sees it.
type Followed struct {
	Job   daemon.Job
	State *journal.State
}

// Follow shows a job until it is over, through the loss of nodes, and says how it
// ended. Jobs is called with each change of the job's own state, may be nil.
func (c *Client) Follow(ctx context.Context, id string, v View, jobs func(daemon.Job)) (Followed, error) {
	out := Followed{State: journal.NewState()}
	n := 0
	told := map[daemon.Notice]bool{} // a stream that begins anew says them again
	lost := time.Time{}
	for {
		err := c.Events(ctx, id, n, true, func(l daemon.Line) error {
			lost = time.Time{}
			switch {
			case l.Event != nil:
				e, err := journal.Decode(l.Event)
				if err != nil {
					return err
				}
				n = l.N
				out.State.Apply(e)
				if v != nil && e.Kind != journal.Tick {
					v.Update(Update{Event: e, Board: out.State.Leaderboard(id), State: *out.State})
				}
			case l.Progress != nil:
				var p actors.Progress
				if err := json.Unmarshal(l.Progress, &p); err != nil {
					return err
				}
				if v != nil {
					v.Progress(p)
				}
			case l.Notice != nil:
				if v != nil && !told[*l.Notice] {
					told[*l.Notice] = true
					v.Notice(l.Notice.Text)
				}
			case l.Job != nil:
				out.Job = *l.Job
				if jobs != nil {
					jobs(out.Job)
				}
			}
			return nil
		})
		var s *daemon.StatusError
		switch {
		case ctx.Err() != nil:
			return out, ctx.Err()
		case out.Job.State.Over():
			return out, nil
		case errors.As(err, &s) && s.Code/100 == 4 && s.Code != http.StatusMisdirectedRequest:
			return out, err
		}
		// The node or the leader was lost: the job goes on, and so does the view.
		if lost.IsZero() {
			lost = time.Now()
		}
		if err != nil && time.Since(lost) > followPatience {
			return out, err
		}
		select {
		case <-time.After(300 * time.Millisecond):
		case <-ctx.Done():
			return out, ctx.Err()
		}
	}
}

// followPatience is how long a node may be away while a job is followed.
const followPatience = 30 * time.Second

// Events calls line with a job's events from a number on, what its trials measure and
// how it stands: those up to now, or, following, until the job is over or a
// connection breaks.
func (c *Client) Events(ctx context.Context, id string, from int, follow bool, line func(daemon.Line) error) error {
	path := fmt.Sprintf("/v1/jobs/%s/events?from=%d", id, from)
	if follow {
		path += "&follow=1"
	}
	res, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	dec := json.NewDecoder(bufio.NewReaderSize(res.Body, 64<<10))
	for {
		var l daemon.Line
		if err := dec.Decode(&l); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := line(l); err != nil {
			return err
		}
	}
}
