// Package rest answers over HTTP: OpenAI's API for completions, chats, models and
// embeddings with server-sent events, the Open Inference Protocol's JSON form, health,
// metrics, and a page to try a model.
//
//	s, err := rest.New(rest.Config{Hub: hub, Metrics: m, MaxBody: 1 << 20})
//	err = (&http.Server{Handler: s}).Serve(listener)
//
// Requests are read strictly: a field that is not known, or that would change the
// answer and is not supported here, is an error that names it. Nothing is cut or left
// out silently. Errors have OpenAI's form; once a stream has begun an error is an event
// of it, and the stream ends without [DONE].
//
// Where Config.Policy decides on a name, its answers are held back until all is decided,
// say what was (autoglm, in each choice), and are one piece in a stream. An answer that is
// withheld ends by content_filter. Votes on whole answers are names beside the hub's.
//
// Bodies must be application/json, so that a page on another site can't make a browser
// send one without asking first; that is answered only for Config.Origins.
package rest
