package daemon

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/open-autoglm/autoglm/actors/daemon/api"
	"github.com/open-autoglm/autoglm/runtime/search"
)

// The control API over gRPC. Calls come in as requests of the HTTP server (h2, or h2c
// without certificates), through the same roles and the same passing on to the leader:
// see routes. What they carry is the JSON of the HTTP API in api's messages.

// callPath is the path of a call's requests.
func callPath(name string) string { return "/" + api.Control_ServiceDesc.ServiceName + "/" + name }

// isCall tells whether a request is one of gRPC.
func isCall(r *http.Request) bool {
	return r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc")
}

// takeCall hands a request to the gRPC server, but for a message that is too large: its
// sender is told before it has sent it.
func takeCall(s *grpc.Server, w http.ResponseWriter, r *http.Request) error {
	if !isCall(r) {
		return &StatusError{http.StatusUnsupportedMediaType, "this is a call over gRPC: HTTP/2, with the content type application/grpc"}
	}
	var head [5]byte // u8 compressed | u32 length, BE
	n, err := io.ReadFull(r.Body, head[:])
	if size := int64(binary.BigEndian.Uint32(head[1:])); err == nil && size > maxJobFile {
		return &http.MaxBytesError{Limit: maxJobFile}
	}
	r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(head[:n]), r.Body), r.Body}
	s.ServeHTTP(w, r)
	return nil
}

// refuseCall answers a call that did not get through to the gRPC server. The status
// goes into trailers: in headers it counts only where nothing at all follows them,
// which a node that passes the answer on can't promise.
func refuseCall(w http.ResponseWriter, s *StatusError) {
	h := w.Header()
	h.Set("Content-Type", "application/grpc")
	h.Set("Trailer", "Grpc-Status, Grpc-Message")
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush() // who has left is told nothing
	h.Set("Grpc-Status", strconv.Itoa(int(codeOf(s.Code))))
	h.Set("Grpc-Message", url.PathEscape(s.Text))
}

// codeOf is gRPC's word for an answer of HTTP.
func codeOf(answer int) codes.Code {
	switch answer {
	case http.StatusBadRequest:
		return codes.InvalidArgument
	case http.StatusForbidden:
		return codes.PermissionDenied
	case http.StatusNotFound:
		return codes.NotFound
	case http.StatusConflict:
		return codes.FailedPrecondition
	case http.StatusRequestEntityTooLarge, http.StatusInsufficientStorage:
		return codes.ResourceExhausted
	case http.StatusNotImplemented:
		return codes.Unimplemented
	case codeNotLeader, http.StatusServiceUnavailable, http.StatusBadGateway:
		return codes.Unavailable
	}
	return codes.Internal
}

// callError is an error as gRPC tells it.
func callError(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	s := statusOf(err)
	return status.Error(codeOf(s.Code), s.Text)
}

// grpcServer serves calls; its ServeHTTP alone is used.
func (d *Daemon) grpcServer() *grpc.Server {
	s := grpc.NewServer(
		grpc.MaxRecvMsgSize(maxJobFile),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (res any, err error) {
			defer d.guard(&err)
			res, err = next(ctx, req)
			return res, err
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
			defer d.guard(&err)
			return next(srv, stream)
		}),
	)
	api.RegisterControlServer(s, &control{d: d})
	reflection.Register(s)
	return s
}

// guard makes a call's error gRPC's, and one of a panic.
func (d *Daemon) guard(err *error) {
	if p := recover(); p != nil {
		d.say("a call panicked: %v\n%s", p, debug.Stack())
		*err = fmt.Errorf("panic: %v", p)
	}
	*err = callError(*err)
}

// control implements the calls.
type control struct {
	api.UnimplementedControlServer
	d *Daemon
}

func (s *control) Submit(ctx context.Context, in *api.SubmitRequest) (*api.SubmitReply, error) {
	c, err := s.d.leading()
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(plain(in.ProtoReflect()))
	if err != nil {
		return nil, err
	}
	j, err := s.d.submit(ctx, c, caller(ctx), bytes.NewReader(b))
	return &api.SubmitReply{Job: &j.ID}, err
}

// caller is who makes a call, as their certificate names them.
func caller(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	return strings.Join(md.Get(userHeader), "")
}

func (s *control) Jobs(context.Context, *api.JobsRequest) (*api.JobsReply, error) {
	c, err := s.d.leading()
	if err != nil {
		return nil, err
	}
	return reply(map[string]any{"jobs": c.jobs()}, &api.JobsReply{})
}

func (s *control) Job(_ context.Context, in *api.JobRequest) (*api.Job, error) {
	c, err := s.d.leading()
	if err != nil {
		return nil, err
	}
	out, err := c.detail(in.GetId())
	if err != nil {
		return nil, err
	}
	return reply(out, &api.Job{})
}

func (s *control) Watch(in *api.WatchRequest, out grpc.ServerStreamingServer[api.Line]) error {
	return s.lines(watch{in.GetId(), int(in.GetFrom()), true}, out)
}

func (s *control) Logs(in *api.WatchRequest, out grpc.ServerStreamingServer[api.Line]) error {
	return s.lines(watch{in.GetId(), int(in.GetFrom()), false}, out)
}

func (s *control) lines(q watch, out grpc.ServerStreamingServer[api.Line]) error {
	c, err := s.d.leading()
	if err != nil {
		return err
	}
	return c.lines(out.Context(), q, func(l Line) error {
		m, err := reply(l, &api.Line{})
		if err != nil {
			return err
		}
		return out.Send(m)
	}, func() {})
}

func (s *control) Folder(_ context.Context, in *api.JobRequest) (*api.FolderReply, error) {
	c, err := s.d.leading()
	if err != nil {
		return nil, err
	}
	f, err := c.folderOf(in.GetId())
	if err != nil {
		return nil, err
	}
	return reply(map[string]any{"files": f}, &api.FolderReply{})
}

func (s *control) Cancel(_ context.Context, in *api.JobRequest) (*api.Job, error) {
	c, err := s.d.leading()
	if err != nil {
		return nil, err
	}
	j, err := c.stop(in.GetId())
	if err != nil {
		return nil, err
	}
	return reply(j, &api.Job{})
}

func (s *control) Steer(ctx context.Context, in *api.SteerRequest) (*api.Order, error) {
	c, err := s.d.leading()
	if err != nil {
		return nil, err
	}
	b, err := protojson.Marshal(in.GetOrder())
	if err != nil {
		return nil, err
	}
	var o search.Order
	if err := decode(bytes.NewReader(b), &o); err != nil {
		return nil, err
	}
	o.By = caller(ctx)
	if o, err = c.steer(ctx, in.GetId(), o); err != nil {
		return nil, err
	}
	return reply(o, &api.Order{})
}

func (s *control) Remove(_ context.Context, in *api.JobRequest) (*api.Empty, error) {
	c, err := s.d.leading()
	if err != nil {
		return nil, err
	}
	return &api.Empty{}, c.remove(in.GetId())
}

func (s *control) Nodes(ctx context.Context, _ *api.NodesRequest) (*api.NodesReply, error) {
	return reply(s.d.nodes(ctx), &api.NodesReply{})
}

func (s *control) Drain(ctx context.Context, in *api.DrainRequest) (*api.Empty, error) {
	return &api.Empty{}, s.d.drainNode(ctx, in.GetId())
}

func (s *control) RotateKeys(ctx context.Context, _ *api.RotateKeysRequest) (*api.Empty, error) {
	return &api.Empty{}, s.d.members.RotateKeys(ctx)
}

func (s *control) Revoke(ctx context.Context, in *api.RevokeRequest) (*api.RevokeReply, error) {
	if len(in.GetList()) > maxList {
		return nil, &StatusError{http.StatusRequestEntityTooLarge, fmt.Sprintf("a list of %d bytes; at most %d are taken", len(in.GetList()), maxList)}
	}
	spread, err := s.d.revoke(ctx, in.GetList())
	if err != nil {
		return nil, err
	}
	return reply(spread, &api.RevokeReply{})
}

func (s *control) Backup(_ *api.BackupRequest, out grpc.ServerStreamingServer[api.Chunk]) error {
	return s.d.store.Backup(chunks{out})
}

// chunks is a stream that is written to.
type chunks struct {
	out grpc.ServerStreamingServer[api.Chunk]
}

const chunkBytes = 64 << 10

// Write implements io.Writer.
func (c chunks) Write(b []byte) (int, error) {
	for part := range slices.Chunk(b, chunkBytes) {
		if err := c.out.Send(&api.Chunk{Data: part}); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// reply puts an answer of the HTTP API into a message: both have the same names, and a
// field that the message lacks is an error.
func reply[M proto.Message](v any, m M) (M, error) {
	b, err := json.Marshal(v)
	if err == nil {
		err = protojson.Unmarshal(b, m)
	}
	if err != nil {
		err = fmt.Errorf("the answer as %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	return m, err
}

// plain is what is set of a message, for encoding/json: protojson writes numbers of 64
// bits as text.
func plain(m protoreflect.Message) map[string]any {
	out := map[string]any{}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		one := func(fd protoreflect.FieldDescriptor, v protoreflect.Value) any {
			if fd.Message() != nil {
				return plain(v.Message())
			}
			return v.Interface()
		}
		name := string(fd.Name())
		switch {
		case fd.IsMap():
			all := map[string]any{}
			v.Map().Range(func(k protoreflect.MapKey, e protoreflect.Value) bool {
				all[k.String()] = one(fd.MapValue(), e)
				return true
			})
			out[name] = all
		case fd.IsList():
			all := []any{}
			for i := range v.List().Len() {
				all = append(all, one(fd, v.List().Get(i)))
			}
			out[name] = all
		default:
			out[name] = one(fd, v)
		}
		return true
	})
	return out
}
