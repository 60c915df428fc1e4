package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/open-autoglm/autoglm/actors/node"
	"github.com/open-autoglm/autoglm/cluster/cert"
	"github.com/open-autoglm/autoglm/cluster/files"
	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/runtime/data"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
)

// Bounds of requests, bytes.
const (
	maxJobFile = 4 << 20
	maxAsk     = 64 << 10
)

// userHeader carries who asked when a node passes a person's request on.
const userHeader = "X-Autoglm-User"

// route is one request of the control API, and the calls over gRPC that have its
// role, its leader and its function.
type route struct {
	pattern string
	calls   []string
}

// routes is the control API, and what nodes ask of each other.
//
//	who may   request
//	read      GET  /v1/jobs /v1/jobs/{id} /v1/jobs/{id}/events?from=N&follow=1 /v1/jobs/{id}/folder /v1/files/{hash} /v1/nodes
//	submit    PUT  /v1/files          the body is a file; the answer its name
//	submit    POST /v1/jobs           {"name", "spec", "files": [{"name", "ref", "valid", "step", "warm"}]}
//	submit    POST /v1/jobs/{id}/cancel     DELETE /v1/jobs/{id}
//	submit    POST /v1/jobs/{id}/steer      {"kind": "narrow", "ranges": {"lr": "1e-3..1e-2"}}, see search.Order
//	admin     POST /v1/nodes/{id}/drain     POST /v1/keys/rotate     GET /v1/backup
//	admin     POST /v1/crl            the body is the list of revoked certificates, PEM
//	node      all of /internal
//
// Any node takes any request; what only the leader knows is passed on to it.
// Answers are JSON; errors are {"error": "what to do"}. The same over gRPC is
// api/control.proto.
func (d *Daemon) routes() http.Handler {
	h, _ := d.handlers()
	return d.notBrowsers(h)
}

func (d *Daemon) handlers() (http.Handler, []route) {
	mux := http.NewServeMux()
	var all []route
	calls := d.grpcServer()
	serve := func(pattern string, need cert.Role, leader bool, f func(http.ResponseWriter, *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			name, role := d.who(r)
			if !role.May(need) {
				err := &StatusError{http.StatusForbidden, fmt.Sprintf("this needs the role %s, the certificate has %q; ask for another with: autoglm ca issue --role %s", need, role, need)}
				d.complaints.add("request"+err.Text, fmt.Sprintf("refused a request of %q from %s: %v", name, r.RemoteAddr, err))
				refuse(w, r, err)
				return
			}
			if role == cert.Node && r.Header.Get(userHeader) != "" {
				name = r.Header.Get(userHeader)
			}
			r.Header.Set(userHeader, name)
			if leader && !strings.HasPrefix(r.URL.Path, "/internal/") {
				addr, err := d.awaitLeader(r.Context())
				if err != nil {
					refuse(w, r, err)
					return
				}
				if addr != "" {
					d.passOn(w, r, addr)
					return
				}
			}
			if err := f(w, r); err != nil {
				var large *http.MaxBytesError
				if errors.As(err, &large) {
					d.complaints.add("large request", fmt.Sprintf("refused a request of %q from %s: it is larger than %d MB; data goes in by PUT /v1/files", name, r.RemoteAddr, large.Limit>>20))
				}
				refuse(w, r, err)
			}
		})
	}
	enter := func(pattern string, need cert.Role, leader bool, names []string, f func(http.ResponseWriter, *http.Request) error) {
		serve(pattern, need, leader, f)
		for _, name := range names {
			serve("POST "+callPath(name), need, leader, func(w http.ResponseWriter, r *http.Request) error { return takeCall(calls, w, r) })
		}
		all = append(all, route{pattern, names})
	}
	at := func(pattern string, need cert.Role, f func(http.ResponseWriter, *http.Request) error, calls ...string) {
		enter(pattern, need, false, calls, f)
	}
	// led is at for what the leader alone knows.
	led := func(pattern string, need cert.Role, f func(*chief, http.ResponseWriter, *http.Request) error, calls ...string) {
		enter(pattern, need, true, calls, func(w http.ResponseWriter, r *http.Request) error {
			c, err := d.leading()
			if err != nil {
				return err
			}
			return f(c, w, r)
		})
	}
	led("GET /v1/jobs", cert.Read, d.getJobs, "Jobs")
	led("POST /v1/jobs", cert.Submit, d.postJob, "Submit")
	led("GET /v1/jobs/{id}", cert.Read, d.getJob, "Job")
	led("GET /v1/jobs/{id}/events", cert.Read, d.getEvents, "Watch", "Logs")
	led("GET /v1/jobs/{id}/folder", cert.Read, d.getFolder, "Folder")
	led("POST /v1/jobs/{id}/cancel", cert.Submit, d.cancelJob, "Cancel")
	led("POST /v1/jobs/{id}/steer", cert.Submit, d.steerJob, "Steer")
	led("DELETE /v1/jobs/{id}", cert.Submit, d.deleteJob, "Remove")
	at("PUT /v1/files", cert.Submit, d.putFile)
	at("GET /v1/files/{hash}", cert.Read, d.getFile)
	at("GET /v1/nodes", cert.Read, d.getNodes, "Nodes")
	at("POST /v1/nodes/{id}/drain", cert.Admin, d.postDrain, "Drain")
	at("POST /v1/keys/rotate", cert.Admin, func(w http.ResponseWriter, r *http.Request) error {
		if err := d.members.RotateKeys(r.Context()); err != nil {
			return err
		}
		return answer(w, http.StatusOK, struct{}{})
	}, "RotateKeys")
	at("POST /v1/crl", cert.Admin, d.postList, "Revoke")
	led("GET /v1/backup", cert.Admin, func(_ *chief, w http.ResponseWriter, _ *http.Request) error {
		w.Header().Set("Content-Type", "application/octet-stream")
		if err := d.store.Backup(w); err != nil {
			panic(http.ErrAbortHandler) // what was sent is not all
		}
		return nil
	}, "Backup")

	led("GET /internal/jobs/{id}/log", cert.Node, d.getLog)
	led("POST /internal/jobs/{id}/log", cert.Node, d.postLog)
	led("GET /internal/jobs/{id}/folder", cert.Node, d.getFolder)
	led("POST /internal/jobs/{id}/folder", cert.Node, d.postFolder)
	led("POST /internal/jobs/{id}/progress", cert.Node, d.postProgress)
	led("POST /internal/jobs/{id}/notices", cert.Node, d.postNotices)
	led("POST /internal/jobs/{id}/end", cert.Node, d.postEnd)
	led("POST /internal/jobs/{id}/left", cert.Node, d.postLeft)
	led("GET /internal/uses", cert.Node, d.getUses)
	at("POST /internal/run", cert.Node, func(w http.ResponseWriter, r *http.Request) error {
		var a assignment
		if err := body(r, &a, maxJobFile); err != nil {
			return err
		}
		if err := d.hands.take(a); err != nil {
			return &StatusError{codeStale, err.Error()}
		}
		return answer(w, http.StatusAccepted, struct{}{})
	})
	at("POST /internal/stop", cert.Node, func(w http.ResponseWriter, r *http.Request) error {
		var a assignment
		if err := body(r, &a, maxAsk); err != nil {
			return err
		}
		why := errCancelled
		if a.Why != errCancelled.Error() {
			why = errors.New(a.Why)
		}
		d.hands.stop(a, why)
		return answer(w, http.StatusOK, struct{}{})
	})
	at("POST /internal/steer", cert.Node, func(w http.ResponseWriter, r *http.Request) error {
		var q steering
		if err := body(r, &q, maxAsk); err != nil {
			return err
		}
		o, err := d.hands.steer(q)
		if err != nil {
			return err
		}
		return answer(w, http.StatusOK, o)
	})
	at("GET /internal/running", cert.Node, func(w http.ResponseWriter, _ *http.Request) error {
		return answer(w, http.StatusOK, d.hands.list())
	})
	at("POST /internal/fit", cert.Node, func(w http.ResponseWriter, r *http.Request) error {
		var a assignment
		if err := body(r, &a, maxJobFile); err != nil {
			return err
		}
		return answer(w, http.StatusOK, d.fits(a))
	})
	at("POST /internal/drain", cert.Node, func(w http.ResponseWriter, _ *http.Request) error {
		d.Drain()
		return answer(w, http.StatusAccepted, struct{}{})
	})
	at("POST /internal/crl", cert.Node, func(w http.ResponseWriter, r *http.Request) error {
		list, err := readList(r)
		if err == nil {
			err = d.adopt(r.Context(), list)
		}
		if err != nil {
			return err
		}
		return answer(w, http.StatusOK, struct{}{})
	})
	at("GET /internal/crl", cert.Node, func(w http.ResponseWriter, _ *http.Request) error {
		if d.id != nil {
			list, _ := d.id.Revocations()
			_, _ = w.Write(list)
		}
		return nil
	})
	at("POST /internal/want", cert.Node, func(w http.ResponseWriter, r *http.Request) error {
		var ref files.Ref
		if err := body(r, &ref, maxAsk); err != nil {
			return err
		}
		if err := d.fetch(r.Context(), ref); err != nil {
			return err
		}
		return answer(w, http.StatusOK, struct{}{})
	})
	at("GET /internal/files/{hash}", cert.Node, func(w http.ResponseWriter, r *http.Request) error {
		d.files.ServeHTTP(w, r)
		return nil
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	// What there is to call, for grpcurl and its like.
	for _, version := range []string{"v1", "v1alpha"} {
		serve("POST /grpc.reflection."+version+".ServerReflection/ServerReflectionInfo", cert.Read, false, func(w http.ResponseWriter, r *http.Request) error {
			calls.ServeHTTP(w, r)
			return nil
		})
	}
	mux.HandleFunc("POST "+callPath("{call}"), func(w http.ResponseWriter, r *http.Request) {
		refuse(w, r, &StatusError{http.StatusNotImplemented, "no such call: " + r.PathValue("call")})
	})
	return mux, all
}

// leading is the chief of the node that leads.
func (d *Daemon) leading() (*chief, error) {
	if c := d.chiefNow(); c != nil {
		return c, nil
	}
	return nil, &StatusError{codeNotLeader, "another node leads"}
}

// notBrowsers turns away what a web page could make its reader's browser send: to a
// node on loopback without certificates that would be as good as the reader's own
// request. Pages of other origins are refused, and names that are not the node's,
// which a page's owner could point at it.
func (d *Daemon) notBrowsers(next http.Handler) http.Handler {
	next = http.NewCrossOriginProtection().Handler(next)
	own, _, _ := net.SplitHostPort(d.members.Self().Addr)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		if !d.port.Secure() && host != own && host != "localhost" && net.ParseIP(strings.Trim(host, "[]")) == nil {
			refuse(w, r, &StatusError{http.StatusForbidden, fmt.Sprintf("this node is not called %q; use its address, or --advertise that name", host)})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// who is at the other end; without certificates everybody may do everything.
func (d *Daemon) who(r *http.Request) (string, cert.Role) {
	if !d.port.Secure() {
		return "", cert.Node
	}
	if r.TLS == nil {
		return "", ""
	}
	return cert.PeerOf(*r.TLS)
}

// leaderPatience is how long a request waits for an election to end.
const leaderPatience = 5 * time.Second

// awaitLeader is where the leader is, "" when this node leads.
func (d *Daemon) awaitLeader(ctx context.Context) (string, error) {
	for late := time.Now().Add(leaderPatience); ; {
		if d.chiefNow() != nil {
			return "", nil
		}
		if addr := d.leaderAddr(); addr != "" && addr != d.members.Self().Addr {
			return addr, nil
		}
		if time.Now().After(late) || !pause(ctx, leaderAgain) {
			return "", &StatusError{http.StatusServiceUnavailable, errNoLeader.Error()}
		}
	}
}

// passOn sends a request on to the leader.
func (d *Daemon) passOn(w http.ResponseWriter, r *http.Request, addr string) {
	p := httputil.ReverseProxy{
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.SetURL(&url.URL{Scheme: "http", Host: addr})
		},
		Transport:     d.client.Transport,
		FlushInterval: -1,
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			// It may have done what was asked, or not.
			refuse(w, r, &StatusError{http.StatusBadGateway, fmt.Sprintf("the leader at %s does not answer: %v", addr, err)})
		},
	}
	if isCall(r) {
		p.Transport = d.h2
		if d.port.Secure() {
			p.Rewrite = func(pr *httputil.ProxyRequest) { pr.SetURL(&url.URL{Scheme: "https", Host: addr}) }
		}
	}
	held, cancel := d.whileLeads(r.Context(), addr)
	defer cancel()
	p.ServeHTTP(w, r.WithContext(held))
}

// refuse answers with an error. A body that has begun is cut off, so that the other
// side sees that it is not whole.
func refuse(w http.ResponseWriter, r *http.Request, err error) {
	s := statusOf(err)
	if isCall(r) {
		refuseCall(w, s)
		return
	}
	_ = answer(w, s.Code, map[string]string{"error": s.Text})
}

// statusOf is the answer that an error makes.
func statusOf(err error) *StatusError {
	code := http.StatusInternalServerError
	var s *StatusError
	var field *job.FieldError
	var input *data.InputError
	var large *http.MaxBytesError
	var refusal *node.Refusal
	switch {
	case errors.As(err, &refusal):
		code = http.StatusConflict
	case errors.As(err, &s):
		code = s.Code
	case errors.As(err, &field), errors.As(err, &input):
		code = http.StatusBadRequest
	case errors.As(err, &large):
		code = http.StatusRequestEntityTooLarge
		err = fmt.Errorf("the request is larger than %d MB; a job file is small: its data goes in by PUT /v1/files", large.Limit>>20)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, files.ErrQuota):
		code = http.StatusInsufficientStorage
		err = fmt.Errorf("the node's disk is full: %w; free some space there, or send it to another node", err)
	case errors.Is(err, errNoJob):
		code = http.StatusNotFound
	case errors.Is(err, errTaken):
		code = codeStale
	case errors.Is(err, replicaStale):
		code = codeNotLeader
	}
	return &StatusError{code, err.Error()}
}

func answer(w http.ResponseWriter, code int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	return json.NewEncoder(w).Encode(v)
}

// body reads a request's JSON.
func body(r *http.Request, v any, limit int64) error {
	return decode(http.MaxBytesReader(nil, r.Body, limit), v)
}

func decode(r io.Reader, v any) error {
	dec := json.NewDecoder(r)
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return err
		}
		return &StatusError{http.StatusBadRequest, "the request's JSON: " + err.Error()}
	}
	return nil
}

// number reads a parameter, 0 when it is not there.
func number(r *http.Request, name string) (uint64, error) {
	s := r.URL.Query().Get(name)
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		return 0, &StatusError{http.StatusBadRequest, fmt.Sprintf("%s=%q is no number", name, s)}
	}
	return n, nil
}

func (d *Daemon) getJobs(c *chief, w http.ResponseWriter, _ *http.Request) error {
	return answer(w, http.StatusOK, c.jobs())
}

// Submission is what POST /v1/jobs takes.
type Submission struct {
	Name  string   `json:"name,omitempty"`
	Spec  job.Spec `json:"spec"`
	Files []Upload `json:"files,omitempty"`
}

func (d *Daemon) postJob(c *chief, w http.ResponseWriter, r *http.Request) error {
	j, err := d.submit(r.Context(), c, r.Header.Get(userHeader), http.MaxBytesReader(nil, r.Body, maxJobFile))
	if err != nil {
		return err
	}
	return answer(w, http.StatusCreated, map[string]string{"job": j.ID})
}

// submit enters a job, a Submission in JSON.
func (d *Daemon) submit(ctx context.Context, c *chief, by string, from io.Reader) (Job, error) {
	s := Submission{Spec: job.Default()}
	if err := decode(from, &s); err != nil {
		return Job{}, err
	}
	if err := d.check(ctx, &s); err != nil {
		return Job{}, err
	}
	return c.submit(Job{Name: s.Name, By: by, Spec: s.Spec, Files: s.Files})
}

// check refuses a job that can't be, and brings its files here.
func (d *Daemon) check(ctx context.Context, s *Submission) error {
	s.Spec.Resolve()
	if err := s.Spec.Validate(); err != nil {
		return err
	}
	made := func(p string) bool {
		_, ok := s.Spec.StepFile(p)
		return ok
	}
	steps := slices.ContainsFunc(s.Spec.Data.Files, made)
	if slices.ContainsFunc(append(slices.Clone(s.Spec.Data.Files), s.Spec.Data.Valid...), func(p string) bool { return !made(p) }) {
		return &job.FieldError{Path: "data.files", Msg: "names files of the machine that submits; upload them with PUT /v1/files and name them in \"files\""}
	}
	if len(s.Spec.Data.Plugin) > 0 {
		return &job.FieldError{Path: "data.plugin", Msg: "would run a program of the submitter's choice on a node; prepare the data where you are and submit the result"}
	}
	for i, t := range s.Spec.Steps {
		if len(t.Files) > 0 {
			return &job.FieldError{Path: fmt.Sprintf("steps[%d].files", i), Msg: "names files of the machine that submits; upload them with PUT /v1/files and name them in \"files\", each with its \"step\""}
		}
	}
	if len(s.Spec.WarmStart) > 0 {
		return &job.FieldError{Path: "warm_start", Msg: "names files of the machine that submits; upload them with PUT /v1/files and name them in \"files\", each with \"warm\": true"}
	}
	learn := slices.ContainsFunc(s.Files, func(u Upload) bool { return u.Step == "" && !u.Valid && !u.Warm })
	if !learn && !steps && len(s.Spec.Data.URLs) == 0 {
		return &job.FieldError{Path: "data", Msg: "the job has nothing to learn from"}
	}
	for _, u := range s.Files {
		if err := u.Ref.Valid(); err != nil {
			return &job.FieldError{Path: "files", Msg: err.Error()}
		}
		if _, ok := s.Spec.Step(u.Step); u.Step != "" && !ok {
			return &job.FieldError{Path: "files", Msg: fmt.Sprintf("%s: the job has no step %q", u.Name, u.Step)}
		}
		if err := d.fetch(ctx, u.Ref); err != nil {
			return &StatusError{http.StatusBadRequest, fmt.Sprintf("%s: %v; upload it again", u.Name, err)}
		}
		if err := d.spread(ctx, u.Ref); err != nil {
			return err
		}
	}
	return nil
}

// Detail is a job with its leaderboard.
type Detail struct {
	Job
	Board journal.Leaderboard `json:"leaderboard"`
	Graph []journal.Node      `json:"graph,omitempty"` // its stages and steps, once it has begun
}

func (d *Daemon) getJob(c *chief, w http.ResponseWriter, r *http.Request) error {
	out, err := c.detail(r.PathValue("id"))
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, out)
}

func (c *chief) detail(id string) (Detail, error) {
	st := journal.NewState()
	err := c.read(id, 0, func(rec []byte) error {
		e, err := journal.Decode(rec)
		if err == nil {
			st.Apply(e)
		}
		return err
	})
	if err != nil {
		return Detail{}, err
	}
	for _, j := range c.jobs() {
		if j.ID == id {
			return Detail{j, st.Leaderboard(id), st.Graph()}, nil
		}
	}
	return Detail{}, fmt.Errorf("%s: %w", id, errNoJob)
}

// Line is one line of a job's events: what was committed, what a trial measured, what
// its nodes say of it, or how the job stands, which is the last one when it is over.
type Line struct {
	N        int             `json:"n,omitempty"` // of the event: from=N asks for what follows it
	Event    json.RawMessage `json:"event,omitempty"`
	Progress json.RawMessage `json:"progress,omitempty"`
	Notice   *Notice         `json:"notice,omitempty"`
	Job      *Job            `json:"job,omitempty"`
}

// Notice is what a job outlived, as a device that turned sick. The leader keeps the
// newest of each job while it leads, and each stream of events begins with these.
type Notice struct {
	At   int64  `json:"at"` // ms since 1970, by the node's clock
	Text string `json:"text"`
}

// maxNotices are kept of a job.
const maxNotices = 64

func newest(list []Notice) []Notice { return list[max(0, len(list)-maxNotices):] }

func (d *Daemon) getEvents(c *chief, w http.ResponseWriter, r *http.Request) error {
	from, err := number(r, "from")
	if err != nil {
		return err
	}
	enc := json.NewEncoder(w)
	return c.lines(r.Context(), watch{r.PathValue("id"), int(from), r.URL.Query().Get("follow") != ""}, func(l Line) error {
		if w.Header().Get("Content-Type") == "" {
			w.Header().Set("Content-Type", "application/x-ndjson")
		}
		return enc.Encode(l)
	}, func() { _ = http.NewResponseController(w).Flush() })
}

// watch asks for a job's events from a number on, and, following, for those to come.
type watch struct {
	id     string
	from   int
	follow bool
}

// lines emits what is asked for until the job is over, nobody listens, or this node
// does not lead any longer; flush is called where more may be long in coming. An
// error comes before any line.
func (c *chief) lines(ctx context.Context, q watch, emit func(Line) error, flush func()) error {
	if _, _, _, _, err := c.follow(q.id); err != nil {
		return err
	}
	n := q.from
	shown := map[int]string{}
	told := 0
	var last string
	for {
		j, events, progress, changed, err := c.follow(q.id)
		if err != nil {
			return nil // the job was removed: the stream ends
		}
		for _, m := range c.notices(q.id, &told) {
			if emit(Line{Notice: &m}) != nil {
				return nil
			}
		}
		if events > n {
			err := c.read(q.id, n, func(rec []byte) error {
				n++
				return emit(Line{N: n, Event: rec})
			})
			if err != nil {
				return nil
			}
		}
		for _, seq := range slices.Sorted(maps.Keys(progress)) {
			if line := progress[seq]; shown[seq] != string(line) {
				shown[seq] = string(line)
				if emit(Line{Progress: line}) != nil {
					return nil
				}
			}
		}
		if s := fmt.Sprint(j.State, j.Epoch, j.Why, j.Cancel); s != last {
			last = s
			if emit(Line{Job: &j}) != nil {
				return nil
			}
		}
		flush()
		if !q.follow || changed == nil || j.State.Over() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

func (d *Daemon) getFolder(c *chief, w http.ResponseWriter, r *http.Request) error {
	f, err := c.folderOf(r.PathValue("id"))
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, f)
}

func (d *Daemon) postFolder(c *chief, w http.ResponseWriter, r *http.Request) error {
	epoch, err := number(r, "epoch")
	if err != nil {
		return err
	}
	var ch change
	if err := body(r, &ch, maxJobFile); err != nil {
		return err
	}
	if err := c.lay(r.PathValue("id"), epoch, ch); err != nil {
		return err
	}
	return answer(w, http.StatusOK, struct{}{})
}

func (d *Daemon) cancelJob(c *chief, w http.ResponseWriter, r *http.Request) error {
	j, err := c.stop(r.PathValue("id"))
	if err != nil {
		return err
	}
	return answer(w, http.StatusAccepted, j)
}

func (d *Daemon) deleteJob(c *chief, w http.ResponseWriter, r *http.Request) error {
	if err := c.remove(r.PathValue("id")); err != nil {
		return err
	}
	return answer(w, http.StatusOK, struct{}{})
}

func (d *Daemon) getLog(c *chief, w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Content-Type", "application/octet-stream")
	var frame []byte
	began := false
	err := c.read(r.PathValue("id"), 0, func(rec []byte) error {
		began = true
		frame = appendFrame(frame[:0], rec)
		_, err := w.Write(frame)
		return err
	})
	if err != nil && began {
		panic(http.ErrAbortHandler) // what was sent is not all
	}
	return err
}

func (d *Daemon) postLog(c *chief, w http.ResponseWriter, r *http.Request) error {
	epoch, err := number(r, "epoch")
	if err != nil {
		return err
	}
	seq, err := number(r, "seq")
	if err != nil {
		return err
	}
	if err := c.append(r.PathValue("id"), epoch, seq, http.MaxBytesReader(nil, r.Body, maxBatch+1<<20)); err != nil {
		return err
	}
	return answer(w, http.StatusOK, struct{}{})
}

func (d *Daemon) postProgress(c *chief, w http.ResponseWriter, r *http.Request) error {
	epoch, err := number(r, "epoch")
	if err != nil {
		return err
	}
	seq, err := strconv.Atoi(r.URL.Query().Get("seq"))
	if err != nil {
		return &StatusError{http.StatusBadRequest, "seq is no number"}
	}
	b, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxAsk))
	if err != nil {
		return err
	}
	if !json.Valid(b) {
		return &StatusError{http.StatusBadRequest, "not JSON"}
	}
	c.progress(r.PathValue("id"), epoch, seq, b)
	return answer(w, http.StatusOK, struct{}{})
}

func (d *Daemon) postNotices(c *chief, w http.ResponseWriter, r *http.Request) error {
	epoch, err := number(r, "epoch")
	if err != nil {
		return err
	}
	var list []Notice
	if err := body(r, &list, maxJobFile); err != nil {
		return err
	}
	c.notice(r.PathValue("id"), epoch, list)
	return answer(w, http.StatusOK, struct{}{})
}

func (d *Daemon) postEnd(c *chief, w http.ResponseWriter, r *http.Request) error {
	var e endReport
	if err := body(r, &e, maxAsk); err != nil {
		return err
	}
	if err := c.end(r.PathValue("id"), e); err != nil {
		return err
	}
	return answer(w, http.StatusOK, struct{}{})
}

func (d *Daemon) postLeft(c *chief, w http.ResponseWriter, r *http.Request) error {
	var l leftReport
	if err := body(r, &l, maxAsk); err != nil {
		return err
	}
	if err := c.left(r.PathValue("id"), l); err != nil {
		return err
	}
	return answer(w, http.StatusOK, struct{}{})
}

func (d *Daemon) putFile(w http.ResponseWriter, r *http.Request) error {
	ref, err := d.files.Put(r.Body)
	if err != nil {
		return d.noRoom(err)
	}
	return answer(w, http.StatusCreated, ref)
}

func (d *Daemon) getFile(w http.ResponseWriter, r *http.Request) error {
	size, err := number(r, "size")
	if err != nil {
		return err
	}
	ref := files.Ref{Hash: r.PathValue("hash"), Size: int64(size)}
	if err := ref.Valid(); err != nil {
		return &StatusError{http.StatusBadRequest, err.Error()}
	}
	if err := d.fetch(r.Context(), ref); err != nil {
		return &StatusError{http.StatusNotFound, err.Error()}
	}
	d.files.ServeHTTP(w, r)
	return nil
}

// NodeInfo is a node as GET /v1/nodes shows it.
type NodeInfo struct {
	ID        string            `json:"id"`
	Name      string            `json:"name"`
	Addr      string            `json:"addr"`
	Since     time.Time         `json:"since"`
	Software  string            `json:"version"`
	Labels    map[string]string `json:"labels,omitempty"`
	Leader    bool              `json:"leader,omitempty"`
	Voter     bool              `json:"voter,omitempty"`
	Draining  bool              `json:"draining,omitempty"`
	Steps     bool              `json:"allow_steps,omitempty"` // it runs steps of jobs
	Jobs      int               `json:"jobs"`
	Load      float64           `json:"load"` // runnable processes per processor, one minute
	Devices   []string          `json:"devices"`
	Free      int               `json:"free"`                 // devices that nobody holds
	FreeBytes int64             `json:"free_bytes,omitempty"` // of the host's memory
	Note      string            `json:"note,omitempty"`
}

// Nodes is GET /v1/nodes.
type Nodes struct {
	Cluster string     `json:"cluster"`
	Voters  int        `json:"voters"`
	Note    string     `json:"note,omitempty"`
	Nodes   []NodeInfo `json:"nodes"`
}

func (d *Daemon) getNodes(w http.ResponseWriter, r *http.Request) error {
	return answer(w, http.StatusOK, d.nodes(r.Context()))
}

func (d *Daemon) nodes(ctx context.Context) Nodes {
	out := Nodes{Cluster: d.members.Cluster(), Nodes: []NodeInfo{}}
	votes := map[string]bool{}
	voters := d.store.Voters()
	out.Voters = len(voters)
	for _, v := range voters {
		votes[v.Addr] = true
	}
	leader := d.leaderAddr()
	if leader == "" {
		out.Note = errNoLeader.Error()
	} else if len(voters) == 1 {
		out.Note = "one node keeps the journal: its loss stops all jobs until it is back; three nodes bear the loss of one"
	}
	news := d.members.News()
	for _, m := range d.members.Members() {
		n := NodeInfo{
			ID: m.ID, Name: m.Name, Addr: m.Addr, Since: m.Since, Software: m.Software, Labels: m.Labels,
			Leader: m.Addr == leader, Voter: votes[m.Addr], Devices: []string{},
		}
		if x, err := decodeNews(news[m.ID]); err == nil {
			n.Load, n.Jobs, n.Draining, n.Free, n.FreeBytes, n.Steps = x.Load, x.Jobs, x.Draining, x.Free, x.Memory, x.Steps
		}
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		b, err := d.members.Card(ctx, m.ID)
		cancel()
		if err == nil {
			var card device.Machine
			err = json.Unmarshal(b, &card)
			for _, v := range card.Devices {
				n.Devices = append(n.Devices, v.ID+" "+v.Model)
			}
		}
		if err != nil {
			n.Note = "does not answer: " + err.Error()
		}
		out.Nodes = append(out.Nodes, n)
	}
	return out
}

func (d *Daemon) postDrain(w http.ResponseWriter, r *http.Request) error {
	if err := d.drainNode(r.Context(), r.PathValue("id")); err != nil {
		return err
	}
	return answer(w, http.StatusAccepted, struct{}{})
}

func (d *Daemon) drainNode(ctx context.Context, want string) error {
	for _, m := range d.members.Members() {
		if m.ID == want || m.Name == want {
			return d.ask(ctx, m.Addr, "/internal/drain", struct{}{}, nil)
		}
	}
	return &StatusError{http.StatusNotFound, fmt.Sprintf("no node %s; autoglm nodes lists them", want)}
}
