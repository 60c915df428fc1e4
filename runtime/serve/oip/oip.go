// Package oip answers the Open Inference Protocol over gRPC, with health and reflection;
// package rest answers the same over HTTP.
//
//	g := oip.New(oip.Config{Rest: handler, Hub: hub, MaxMessage: 4 << 20})
//	go g.Serve(listener)
//	defer g.Stop(ctx)
//
// Requests come with typed contents or raw ones; answers have the form of their request.
// What a policy decided stands in their parameters, autoglm_outcome and others.
// A call that its client ends leaves no work behind. Where there are API keys, calls
// carry one as metadata: authorization: Bearer KEY; health and reflection need none.
package oip

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/open-autoglm/autoglm/runtime/serve"
	"github.com/open-autoglm/autoglm/runtime/serve/oip/api"
	"github.com/open-autoglm/autoglm/runtime/serve/rest"
)

// Config says what a Server serves.
type Config struct {
	Rest       *rest.Server // which carries the requests out
	Hub        *serve.Hub
	MaxMessage int // bytes of a request
	Version    string
	TLS        credentials.TransportCredentials // nil is plain text
}

// Server is a gRPC server.
type Server struct {
	api.UnimplementedGRPCInferenceServiceServer
	cfg    Config
	grpc   *grpc.Server
	health *health.Server
}

// New is a Server that is yet to be given a listener.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, health: health.NewServer()}
	opts := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(cfg.MaxMessage), grpc.UnaryInterceptor(s.unary), grpc.StreamInterceptor(s.stream), grpc.MaxConcurrentStreams(1024),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}
	if cfg.TLS != nil {
		opts = append(opts, grpc.Creds(cfg.TLS))
	}
	s.grpc = grpc.NewServer(opts...)
	api.RegisterGRPCInferenceServiceServer(s.grpc, s)
	grpc_health_v1.RegisterHealthServer(s.grpc, s.health)
	reflection.Register(s.grpc)
	s.health.SetServingStatus(api.GRPCInferenceService_ServiceDesc.ServiceName, grpc_health_v1.HealthCheckResponse_SERVING)
	return s
}

// Serve answers until Stop.
func (s *Server) Serve(ln net.Listener) error { return s.grpc.Serve(ln) }

// Refuse tells health checks that no more requests are taken.
func (s *Server) Refuse() { s.health.Shutdown() }

// Stop ends the server once its calls are done; when ctx ends before that they are cut
// off.
func (s *Server) Stop(ctx context.Context) {
	defer context.AfterFunc(ctx, s.grpc.Stop)()
	s.grpc.GracefulStop()
}

// open are the methods that need no key.
func open(method string) bool {
	return strings.HasPrefix(method, "/grpc.health.") || strings.HasPrefix(method, "/grpc.reflection.") ||
		method == api.GRPCInferenceService_ServerLive_FullMethodName || method == api.GRPCInferenceService_ServerReady_FullMethodName
}

func (s *Server) admit(ctx context.Context, method string) error {
	if open(method) {
		return nil
	}
	md, _ := metadata.FromIncomingContext(ctx)
	key := ""
	if v := md.Get("authorization"); len(v) > 0 {
		key = rest.Bearer(v[0])
	}
	return statusOf(s.cfg.Rest.Admit(key))
}

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := s.admit(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func (s *Server) stream(srv any, st grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := s.admit(st.Context(), info.FullMethod); err != nil {
		return err
	}
	return next(srv, st)
}

// statusOf is an error as gRPC tells it.
func statusOf(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) {
		return status.Error(codes.Canceled, "the call was cancelled")
	}
	code, message, after := rest.Status(err)
	kind := codes.Internal
	switch code {
	case http.StatusBadRequest:
		kind = codes.InvalidArgument
	case http.StatusUnauthorized:
		kind = codes.Unauthenticated
	case http.StatusNotFound:
		kind = codes.NotFound
	case http.StatusTooManyRequests:
		kind = codes.ResourceExhausted
	case http.StatusServiceUnavailable:
		kind = codes.Unavailable
	case http.StatusGatewayTimeout:
		kind = codes.DeadlineExceeded
	}
	st := status.New(kind, message)
	if after > 0 {
		if with, err := st.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(after)}); err == nil {
			st = with
		}
	}
	return st.Err()
}

// ServerLive implements the service.
func (s *Server) ServerLive(context.Context, *api.ServerLiveRequest) (*api.ServerLiveResponse, error) {
	return &api.ServerLiveResponse{Live: true}, nil
}

// ServerReady implements the service.
func (s *Server) ServerReady(context.Context, *api.ServerReadyRequest) (*api.ServerReadyResponse, error) {
	return &api.ServerReadyResponse{Ready: s.ready()}, nil
}

func (s *Server) ready() bool { return !s.cfg.Hub.Draining() && len(s.cfg.Hub.Names()) > 0 }

// ModelReady implements the service.
func (s *Server) ModelReady(_ context.Context, in *api.ModelReadyRequest) (*api.ModelReadyResponse, error) {
	_, err := s.cfg.Rest.Versions(in.Name, in.Version)
	return &api.ModelReadyResponse{Ready: err == nil && s.ready()}, nil
}

// ServerMetadata implements the service.
func (s *Server) ServerMetadata(context.Context, *api.ServerMetadataRequest) (*api.ServerMetadataResponse, error) {
	return &api.ServerMetadataResponse{Name: "autoglm", Version: s.cfg.Version, Extensions: rest.Extensions}, nil
}

// ModelMetadata implements the service.
func (s *Server) ModelMetadata(_ context.Context, in *api.ModelMetadataRequest) (*api.ModelMetadataResponse, error) {
	versions, err := s.cfg.Rest.Versions(in.Name, in.Version)
	if err != nil {
		return nil, statusOf(err)
	}
	list := func(in []rest.TensorInfo) (out []*api.ModelMetadataResponse_TensorMetadata) {
		for _, t := range in {
			out = append(out, &api.ModelMetadataResponse_TensorMetadata{Name: t.Name, Datatype: t.Datatype, Shape: t.Shape})
		}
		return out
	}
	return &api.ModelMetadataResponse{Name: in.Name, Versions: versions, Platform: "autoglm", Inputs: list(rest.Inputs), Outputs: list(rest.Outputs)}, nil
}

// RepositoryIndex implements the service.
func (s *Server) RepositoryIndex(context.Context, *api.RepositoryIndexRequest) (*api.RepositoryIndexResponse, error) {
	out := &api.RepositoryIndexResponse{}
	for _, m := range s.cfg.Rest.Served() {
		out.Models = append(out.Models, &api.RepositoryIndexResponse_ModelIndex{Name: m[0], Version: m[1], State: "READY"})
	}
	return out, nil
}

// RepositoryModelLoad implements the service.
func (s *Server) RepositoryModelLoad(_ context.Context, in *api.RepositoryModelLoadRequest) (*api.RepositoryModelLoadResponse, error) {
	if len(in.Parameters) > 0 {
		return nil, status.Error(codes.InvalidArgument, "parameters are not supported: a model is loaded from where it came from")
	}
	if err := s.cfg.Rest.Reload(in.ModelName); err != nil {
		return nil, statusOf(err)
	}
	return &api.RepositoryModelLoadResponse{}, nil
}

// ModelInfer implements the service.
func (s *Server) ModelInfer(ctx context.Context, in *api.ModelInferRequest) (*api.ModelInferResponse, error) {
	req, err := decode(in)
	if err != nil {
		return nil, statusOf(err)
	}
	who, out, err := s.cfg.Rest.Infer(ctx, req, nil)
	if err != nil {
		return nil, statusOf(err)
	}
	return encode(in, who, out), nil
}

// ModelStreamInfer implements the service. An error of one request does not end the
// stream.
func (s *Server) ModelStreamInfer(st grpc.BidiStreamingServer[api.ModelInferRequest, api.ModelStreamInferResponse]) error {
	for {
		in, err := st.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		final := func(r *api.ModelInferResponse, is bool) *api.ModelInferResponse {
			if r.Parameters == nil {
				r.Parameters = map[string]*api.InferParameter{}
			}
			r.Parameters["triton_final_response"] = &api.InferParameter{ParameterChoice: &api.InferParameter_BoolParam{BoolParam: is}}
			return r
		}
		req, err := decode(in)
		var who rest.Answered
		var out []rest.Tensor
		if err == nil {
			who, out, err = s.cfg.Rest.Infer(st.Context(), req, func(who rest.Answered, out []rest.Tensor) error {
				return st.Send(&api.ModelStreamInferResponse{InferResponse: final(encode(in, who, out), false)})
			})
		}
		answer := &api.ModelStreamInferResponse{InferResponse: final(encode(in, who, out), true)}
		switch {
		case st.Context().Err() != nil:
			return status.FromContextError(st.Context().Err()).Err()
		case err != nil:
			answer.ErrorMessage = status.Convert(statusOf(err)).Message()
		}
		if err := st.Send(answer); err != nil {
			return err
		}
	}
}

// argument is a request that can't be read.
func argument(format string, args ...any) error {
	return &rest.BadRequest{Message: fmt.Sprintf(format, args...)}
}

// decode reads a request, its tensors typed or raw.
func decode(in *api.ModelInferRequest) (rest.Inference, error) {
	out := rest.Inference{Model: in.ModelName, Version: in.ModelVersion, Params: map[string]any{}}
	for k, p := range in.Parameters {
		switch v := p.GetParameterChoice().(type) {
		case *api.InferParameter_BoolParam:
			out.Params[k] = v.BoolParam
		case *api.InferParameter_Int64Param:
			out.Params[k] = v.Int64Param
		case *api.InferParameter_Uint64Param:
			out.Params[k] = v.Uint64Param
		case *api.InferParameter_DoubleParam:
			out.Params[k] = v.DoubleParam
		case *api.InferParameter_StringParam:
			out.Params[k] = v.StringParam
		default:
			return out, argument("the parameter %q has no value", k)
		}
	}
	raw := in.RawInputContents
	if len(raw) > 0 && len(raw) != len(in.Inputs) {
		return out, argument("%d inputs, but raw contents of %d", len(in.Inputs), len(raw))
	}
	for i, t := range in.Inputs {
		n, err := rest.Count(t.Name, t.Shape)
		if err != nil {
			return out, err
		}
		v := rest.Tensor{Name: t.Name, Datatype: t.Datatype, Shape: t.Shape}
		if len(raw) > 0 {
			if t.Contents != nil {
				return out, argument("the input %q has contents both typed and raw", t.Name)
			}
			err = parseRaw(&v, n, raw[i])
		} else {
			err = parseTyped(&v, t.Contents)
		}
		if err != nil {
			return out, err
		}
		if got := len(v.Texts) + len(v.Ints) + len(v.Values) + len(v.Bools); got != n {
			return out, argument("the input %q has %d elements, its shape %v says %d", t.Name, got, t.Shape, n)
		}
		out.Inputs = append(out.Inputs, v)
	}
	for _, o := range in.Outputs {
		out.Outputs = append(out.Outputs, o.Name)
	}
	return out, nil
}

func parseTyped(v *rest.Tensor, c *api.InferTensorContents) error {
	switch v.Datatype {
	case "BYTES":
		for _, b := range c.GetBytesContents() {
			v.Texts = append(v.Texts, string(b))
		}
	case "BOOL":
		v.Bools = c.GetBoolContents()
	case "INT8", "INT16", "INT32":
		for _, x := range c.GetIntContents() {
			v.Ints = append(v.Ints, int64(x))
		}
	case "INT64":
		v.Ints = c.GetInt64Contents()
	case "UINT8", "UINT16", "UINT32":
		for _, x := range c.GetUintContents() {
			v.Ints = append(v.Ints, int64(x))
		}
	case "UINT64":
		for _, x := range c.GetUint64Contents() {
			if x > math.MaxInt64 {
				return argument("the input %q holds %d, which is too large", v.Name, x)
			}
			v.Ints = append(v.Ints, int64(x))
		}
	case "FP32":
		for _, x := range c.GetFp32Contents() {
			v.Values = append(v.Values, float64(x))
		}
	case "FP64":
		v.Values = c.GetFp64Contents()
	default:
		return argument("the input %q has datatype %q, which is not known here", v.Name, v.Datatype)
	}
	return nil
}

// parseRaw reads n elements, little-endian; each of BYTES has its length before it.
func parseRaw(v *rest.Tensor, n int, b []byte) error {
	if v.Datatype == "BYTES" {
		for len(b) > 0 {
			if len(b) < 4 || uint64(binary.LittleEndian.Uint32(b)) > uint64(len(b)-4) {
				return argument("the raw contents of %q end in the middle of an element", v.Name)
			}
			end := 4 + int(binary.LittleEndian.Uint32(b))
			v.Texts = append(v.Texts, string(b[4:end]))
			b = b[end:]
		}
		return nil
	}
	size := map[string]int{"BOOL": 1, "INT8": 1, "UINT8": 1, "INT16": 2, "UINT16": 2, "INT32": 4, "UINT32": 4, "FP32": 4, "INT64": 8, "UINT64": 8, "FP64": 8}[v.Datatype]
	if size == 0 {
		return argument("the input %q has datatype %q, which is not known here", v.Name, v.Datatype)
	}
	if len(b) != n*size {
		return argument("the raw contents of %q are %d bytes, %d elements of %s are %d", v.Name, len(b), n, v.Datatype, n*size)
	}
	for ; len(b) > 0; b = b[size:] {
		var word [8]byte
		copy(word[:], b[:size])
		u := binary.LittleEndian.Uint64(word[:])
		shift := 64 - 8*size
		switch v.Datatype {
		case "BOOL":
			v.Bools = append(v.Bools, u != 0)
		case "FP32":
			v.Values = append(v.Values, float64(math.Float32frombits(uint32(u))))
		case "FP64":
			v.Values = append(v.Values, math.Float64frombits(u))
		case "UINT64":
			if u > math.MaxInt64 {
				return argument("the input %q holds %d, which is too large", v.Name, u)
			}
			v.Ints = append(v.Ints, int64(u))
		case "UINT8", "UINT16", "UINT32":
			v.Ints = append(v.Ints, int64(u))
		default:
			v.Ints = append(v.Ints, int64(u<<shift)>>shift)
		}
	}
	return nil
}

// parameters are what a policy decided; nil is nothing.
func parameters(who rest.Answered) map[string]*api.InferParameter {
	if who.Verdict == nil {
		return nil
	}
	out := map[string]*api.InferParameter{}
	for name, v := range who.Verdict.Parameters() {
		p := &api.InferParameter{}
		switch v := v.(type) {
		case string:
			p.ParameterChoice = &api.InferParameter_StringParam{StringParam: v}
		case int64:
			p.ParameterChoice = &api.InferParameter_Int64Param{Int64Param: v}
		case float64:
			p.ParameterChoice = &api.InferParameter_DoubleParam{DoubleParam: v}
		}
		out[name] = p
	}
	return out
}

// encode writes an answer: raw where the request was.
func encode(in *api.ModelInferRequest, who rest.Answered, tensors []rest.Tensor) *api.ModelInferResponse {
	out := &api.ModelInferResponse{ModelName: who.Model, ModelVersion: who.Version, Id: in.Id, Parameters: parameters(who)}
	raw := len(in.RawInputContents) > 0
	for _, t := range tensors {
		o := &api.ModelInferResponse_InferOutputTensor{Name: t.Name, Datatype: t.Datatype, Shape: t.Shape}
		out.Outputs = append(out.Outputs, o)
		if !raw {
			o.Contents = &api.InferTensorContents{Int64Contents: t.Ints}
			for _, s := range t.Texts {
				o.Contents.BytesContents = append(o.Contents.BytesContents, []byte(s))
			}
			continue
		}
		b := []byte{}
		for _, s := range t.Texts {
			b = append(binary.LittleEndian.AppendUint32(b, uint32(len(s))), s...)
		}
		for _, n := range t.Ints {
			b = binary.LittleEndian.AppendUint64(b, uint64(n))
		}
		out.RawOutputContents = append(out.RawOutputContents, b)
	}
	return out
}
