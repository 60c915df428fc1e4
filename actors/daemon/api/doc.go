// Package api is the control API's protobuf definition, control.proto, and what is
// generated from it. The node's side is in actors/daemon.
//
//	c := api.NewControlClient(conn)
//	jobs, err := c.Jobs(ctx, &api.JobsRequest{})
package api

//go:generate go run ./generate
