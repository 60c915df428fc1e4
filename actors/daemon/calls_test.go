package daemon_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/open-autoglm/autoglm/actors/actorstest"
	"github.com/open-autoglm/autoglm/actors/daemon"
	"github.com/open-autoglm/autoglm/actors/daemon/api"
	"github.com/open-autoglm/autoglm/cluster/cert"
	"github.com/open-autoglm/autoglm/cluster/files"
)

// call is a client of a node's, under an identity where there is one.
func call(t *testing.T, addr string, id *cert.Identity) api.ControlClient {
	t.Helper()
	how := insecure.NewCredentials()
	if id != nil {
		how = credentials.NewTLS(id.Client())
	}
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(how))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return api.NewControlClient(conn)
}

// refusedAs fails unless a call was refused with a code and a text.
func refusedAs(t *testing.T, err error, code codes.Code, text string) {
	t.Helper()
	if s := status.Convert(err); s.Code() != code || !strings.Contains(s.Message(), text) {
		t.Errorf("got %v: %q, want %v: %q", s.Code(), s.Message(), code, text)
	}
}

// tinyCall is a job as tinySpec's, of a file that was uploaded.
func tinyCall(ref files.Ref, tokens int64) *api.SubmitRequest {
	return &api.SubmitRequest{
		Name: proto.String("whales"), Files: []*api.Upload{{Name: proto.String("log.txt"), Ref: &api.Ref{Hash: &ref.Hash, Size: &ref.Size}}},
		Spec: &api.Spec{
			Budget: &api.Budget{Tokens: proto.Int64(tokens)}, HardwareConstraint: proto.String("cpu-2"), Seed: proto.Uint64(1 << 63),
			Space: map[string]string{"dim": "64", "layers": "1", "context": "32", "vocab": "320", "batch_tokens": "256", "warmup_steps": "2"},
		},
	}
}

// The same state is the same JSON over HTTP and over gRPC, at the leader and at a node
// that passes on to it.
func TestCallsAndRequestsAgree(t *testing.T) {
	tn := newTown(t)
	a := tn.start("a")
	b := tn.start("b")
	c := tn.client(a)
	tn.settle(c, 2, 1)
	ref, err := c.Upload(t.Context(), actorstest.Corpus(t, t.TempDir()), nil)
	if err != nil {
		t.Fatal(err)
	}
	in := tinyCall(ref, 24000)
	for i, p := range []*process{a, b} {
		g := call(t, p.addr, nil)
		sub, err := g.Submit(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			refusedAs(t, second(g.Remove(t.Context(), &api.JobRequest{Id: sub.GetJob()})), codes.FailedPrecondition, "cancel it first")
		}
		stream, err := g.Watch(t.Context(), &api.WatchRequest{Id: sub.GetJob()})
		if err != nil {
			t.Fatal(err)
		}
		last, kinds := &api.Line{}, map[string]int{}
		for {
			l, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			last = l
			if l.Event != nil {
				kinds[l.Event.Fields["kind"].GetStringValue()]++
			}
		}
		if last.Job.GetState() != "done" || kinds["created"] != 1 || kinds["finished"] != 1 || kinds["trial_ended"] == 0 {
			t.Fatalf("the watch ends with %v after %v", last, kinds)
		}
		request := func(path string) []byte {
			res, err := http.Get("http://" + p.addr + path)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			if err != nil || res.StatusCode != http.StatusOK {
				t.Fatalf("%s: %s: %s, %v", path, res.Status, body, err)
			}
			return body
		}
		text := func(m proto.Message, err error) []byte {
			if err != nil {
				t.Fatal(err)
			}
			b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		id := sub.GetJob()
		job, err := g.Job(t.Context(), &api.JobRequest{Id: id})
		daemon.SameJSON(t, text(job, err), request("/v1/jobs/"+id))
		if job.Spec.GetSeed() != 1<<63 || job.Spec.GetSearchStrategy() != "auto" || len(job.Leaderboard.GetTrials()) == 0 || len(job.Graph) != 7 {
			t.Errorf("%v", job)
		}
		jobs, err := g.Jobs(t.Context(), &api.JobsRequest{})
		daemon.SameJSON(t, text(jobs, err), append(append([]byte(`{"jobs":`), request("/v1/jobs")...), '}'))
		folder, err := g.Folder(t.Context(), &api.JobRequest{Id: id})
		daemon.SameJSON(t, text(folder, err), append(append([]byte(`{"files":`), request("/v1/jobs/"+id+"/folder")...), '}'))
		nodes, err := g.Nodes(t.Context(), &api.NodesRequest{})
		if err != nil || len(nodes.Nodes) != 2 {
			t.Errorf("%v, %v", nodes, err)
		}
		logs, err := g.Logs(t.Context(), &api.WatchRequest{Id: id, From: 3})
		if err != nil {
			t.Fatal(err)
		}
		dec := json.NewDecoder(strings.NewReader(string(request("/v1/jobs/" + id + "/events?from=3"))))
		for n := 0; ; n++ {
			l, err := logs.Recv()
			var want json.RawMessage
			if e := dec.Decode(&want); errors.Is(err, io.EOF) || errors.Is(e, io.EOF) {
				if n < 10 || !errors.Is(err, io.EOF) || !errors.Is(e, io.EOF) {
					t.Errorf("%d lines; then %v and %v", n, err, e)
				}
				break
			}
			daemon.SameJSON(t, text(l, err), want)
		}
		if _, err := g.Remove(t.Context(), &api.JobRequest{Id: id}); err != nil {
			t.Error(err)
		}
		refusedAs(t, second(g.Job(t.Context(), &api.JobRequest{Id: id})), codes.NotFound, id+": no such job; autoglm jobs lists them")
		refusedAs(t, second(g.Drain(t.Context(), &api.DrainRequest{Id: "nobody"})), codes.NotFound, "no node nobody")
		bad := proto.Clone(in).(*api.SubmitRequest)
		bad.Spec.SearchStrategy = proto.String("magic")
		refusedAs(t, second(g.Submit(t.Context(), bad)), codes.InvalidArgument, "search_strategy")
		large := &api.SubmitRequest{Name: proto.String(strings.Repeat("x", 5<<20))}
		refusedAs(t, second(g.Submit(t.Context(), large)), codes.ResourceExhausted, "larger than 4 MB; a job file is small: its data goes in by PUT /v1/files")
	}
}

func second[T any](_ T, err error) error { return err }

// Who may not make a request may not make its call; a stream ends when who watches
// leaves, and the node goes on.
func TestCallsUnderCertificates(t *testing.T) {
	tn := newTown(t)
	ca := tn.authority()
	a := tn.start("a")
	b := tn.start("b")
	tn.settle(tn.client(a), 2, 1)
	person := func(role cert.Role) api.ControlClient {
		dir := filepath.Join(tn.dir, string(role))
		if err := ca.Issue(cert.Request{Name: "ada", Role: role}, dir); err != nil {
			t.Fatal(err)
		}
		id, err := cert.Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		return call(t, b.addr, id) // not the leader: it passes on
	}
	reader, submitter, admin := person(cert.Read), person(cert.Submit), person(cert.Admin)
	ref, err := tn.client(a).Upload(t.Context(), actorstest.Corpus(t, t.TempDir()), nil)
	if err != nil {
		t.Fatal(err)
	}
	in := tinyCall(ref, 50_000_000)
	refusedAs(t, second(reader.Submit(t.Context(), in)), codes.PermissionDenied, "needs the role submit")
	sub, err := submitter.Submit(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	id := sub.GetJob()
	if j, err := reader.Job(t.Context(), &api.JobRequest{Id: id}); err != nil || j.GetBy() != "ada" {
		t.Errorf("%v, %v", j, err)
	}
	// An order goes to the job's node, and who gave it is written down.
	steer := func(c api.ControlClient, o *api.Order) (*api.Order, error) {
		return c.Steer(t.Context(), &api.SteerRequest{Id: id, Order: o})
	}
	stop := &api.Order{Kind: proto.String("stop"), Trial: proto.String("t001"), By: proto.String("eve")}
	refusedAs(t, second(steer(reader, stop)), codes.PermissionDenied, "needs the role submit")
	var taken *api.Order
	waitFor(t, func() bool {
		taken, err = steer(submitter, stop)
		return err == nil
	})
	if taken.GetBy() != "ada" || taken.GetTrial() != "t001" || taken.GetBefore() == 0 {
		t.Errorf("%v", taken)
	}
	refusedAs(t, second(steer(submitter, stop)), codes.FailedPrecondition, "trial t001 was stopped before")
	refusedAs(t, second(steer(submitter, &api.Order{Kind: proto.String("narrow"), Ranges: map[string]string{"lr": "5..6"}})), codes.FailedPrecondition, "is not within")
	if o, err := steer(submitter, &api.Order{Kind: proto.String("extend"), Amount: proto.Float64(5e7), Unit: proto.String("tokens")}); err != nil || len(o.GetBrackets()) == 0 {
		t.Errorf("%v, %v", o, err)
	}
	if o, err := steer(admin, &api.Order{Kind: proto.String("enqueue"), Config: map[string]*structpb.Value{"dropout": structpb.NewNumberValue(0.05), "tied": structpb.NewBoolValue(true)}}); err != nil || o.GetConfig()["dropout"].GetNumberValue() != 0.05 || !o.GetConfig()["tied"].GetBoolValue() {
		t.Errorf("%v, %v", o, err)
	}
	refusedAs(t, second(reader.Cancel(t.Context(), &api.JobRequest{Id: id})), codes.PermissionDenied, "needs the role submit")
	refusedAs(t, second(submitter.Drain(t.Context(), &api.DrainRequest{Id: "b"})), codes.PermissionDenied, "needs the role admin")
	if _, err := admin.RotateKeys(t.Context(), &api.RotateKeysRequest{}); err != nil {
		t.Error(err)
	}
	backup, err := admin.Backup(t.Context(), &api.BackupRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if first, err := backup.Recv(); err != nil || len(first.GetData()) == 0 {
		t.Errorf("%d bytes, %v", len(first.GetData()), err)
	}
	for err == nil {
		_, err = backup.Recv()
	}
	if !errors.Is(err, io.EOF) {
		t.Error(err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	stream, err := reader.Watch(ctx, &api.WatchRequest{Id: id})
	if err != nil {
		t.Fatal(err)
	}
	for running := false; !running; {
		l, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		running = l.Job.GetState() == "running"
	}
	cancel()
	for err == nil {
		_, err = stream.Recv()
	}
	refusedAs(t, err, codes.Canceled, "")
	// A second watch sees the end.
	stream, err = reader.Watch(t.Context(), &api.WatchRequest{Id: id})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := submitter.Cancel(t.Context(), &api.JobRequest{Id: id}); err != nil {
		t.Fatal(err)
	}
	last := &api.Line{}
	for {
		l, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		last = l
	}
	if last.Job.GetState() != "cancelled" {
		t.Errorf("the watch ends with %v", last)
	}

	ctx, cancel = context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	refusedAs(t, second(call(t, a.addr, nil).Jobs(ctx, &api.JobsRequest{})), codes.Unavailable, "")
	refusedAs(t, second(callAs(t, a.addr, &tls.Config{InsecureSkipVerify: true}).Jobs(ctx, &api.JobsRequest{})), codes.PermissionDenied, `the certificate has ""`)
}

// A stream ends on the node as soon as who watches has left.
func TestStreamEndsWithItsClient(t *testing.T) {
	d, err := daemon.Start(t.Context(), daemon.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0", Name: "a", Locks: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	g := call(t, d.Addr(), nil)
	sub, err := g.Submit(t.Context(), &api.SubmitRequest{Spec: &api.Spec{HardwareConstraint: proto.String("gpu-64x-a100"), Data: &api.Data{Urls: []string{"http://127.0.0.1:1/x.txt"}}}})
	if err != nil {
		t.Fatal(err)
	}
	streams := func() int {
		b := make([]byte, 4<<20)
		return strings.Count(string(b[:runtime.Stack(b, true)]), "(*control).Watch(")
	}
	ctx, cancel := context.WithCancel(t.Context())
	for range 10 {
		s, err := g.Watch(ctx, &api.WatchRequest{Id: sub.GetJob()})
		if err != nil {
			t.Fatal(err)
		}
		if l, err := s.Recv(); err != nil || l.Job.GetState() != "queued" {
			t.Fatalf("%v, %v", l, err)
		}
	}
	waitFor(t, func() bool { return streams() == 10 })
	cancel()
	waitFor(t, func() bool { return streams() == 0 })
}

// A message of two gigabytes is refused once its length is known, by the leader and by
// who passes on to it; a request that is no call is told so.
func TestHostileCalls(t *testing.T) {
	tn := newTown(t)
	a := tn.start("a")
	b := tn.start("b")
	tn.settle(tn.client(a), 2, 1)
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	h2 := &http.Client{Transport: &http.Transport{Protocols: &p}, Timeout: 20 * time.Second}
	defer h2.CloseIdleConnections()
	for _, tc := range []struct {
		name string
		body io.Reader
		code codes.Code
		text string
	}{
		{"2 GB", io.MultiReader(strings.NewReader("\x00\x7f\xff\xff\xff"), &endless{begun: true}), codes.ResourceExhausted, "larger than 4 MB"},
		{"nothing", strings.NewReader(""), codes.Internal, ""},
		{"cut off", strings.NewReader("\x00\x00\x00\x01\x00abc"), codes.Internal, ""},
		{"no message", strings.NewReader("\x00\x00\x00\x00\x03abc"), codes.Internal, ""},
		{"an unknown compression", strings.NewReader("\x01\x00\x00\x00\x03abc"), codes.Internal, ""},
	} {
		for _, node := range []*process{a, b} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+node.addr+"/autoglm.v1.Control/Submit", tc.body)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/grpc")
			req.Header.Set("Te", "trailers")
			res, err := h2.Do(req)
			if err != nil {
				t.Errorf("%s: %v", tc.name, err)
				continue
			}
			_, _ = io.Copy(io.Discard, res.Body)
			res.Body.Close()
			for k, v := range res.Trailer {
				res.Header[k] = v
			}
			message, err := url.PathUnescape(res.Header.Get("Grpc-Message"))
			got, _ := strconv.Atoi(res.Header.Get("Grpc-Status"))
			if err != nil || codes.Code(got) != tc.code && codes.Code(got) != codes.Unimplemented || !strings.Contains(message, tc.text) {
				t.Errorf("%s at %s: %v: %q", tc.name, node.name, codes.Code(got), message)
			}
			if tc.name == "2 GB" {
				tc.body = io.MultiReader(strings.NewReader("\x00\x7f\xff\xff\xff"), &endless{begun: true})
			}
		}
	}
	for _, path := range []string{"Submit", "NoSuchCall"} {
		res, err := http.Post("http://"+a.addr+"/autoglm.v1.Control/"+path, "application/json", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != map[string]int{"Submit": http.StatusUnsupportedMediaType, "NoSuchCall": http.StatusNotImplemented}[path] || !strings.Contains(string(body), `"error"`) {
			t.Errorf("%s as JSON: %s: %s", path, res.Status, body)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	if _, err := call(t, a.addr, nil).Nodes(t.Context(), &api.NodesRequest{}); err != nil {
		t.Error(err)
	}
}

func callAs(t *testing.T, addr string, conf *tls.Config) api.ControlClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(credentials.NewTLS(conf)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return api.NewControlClient(conn)
}
