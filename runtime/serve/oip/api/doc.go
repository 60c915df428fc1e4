// Package api is the Open Inference Protocol's protobuf definition, inference.proto,
// and what is generated from it. The server's side is in runtime/serve/oip.
//
//	c := api.NewGRPCInferenceServiceClient(conn)
//	res, err := c.ModelInfer(ctx, &api.ModelInferRequest{ModelName: "tiny", Inputs: inputs})
package api

//go:generate go run github.com/open-autoglm/autoglm/actors/daemon/api/generate -file inference.proto
