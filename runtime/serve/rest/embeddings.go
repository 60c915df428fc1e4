package rest

import (
	"encoding/base64"
	"encoding/binary"
	"math"
	"net/http"

	"github.com/open-autoglm/autoglm/runtime/serve"
)

type embeddingRequest struct {
	Model      string  `json:"model"`
	Input      prompts `json:"input"`
	Encoding   string  `json:"encoding_format"`
	Dimensions *int    `json:"dimensions"`
	User       string  `json:"user"`
}

type embedding struct {
	Object string `json:"object"`
	Index  int    `json:"index"`
	Vector any    `json:"embedding"` // []float32, or base64 of them in little-endian
}

func (s *Server) embeddings(w http.ResponseWriter, r *http.Request) error {
	var in embeddingRequest
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	q, err := s.ask(in.Model)
	if err != nil {
		return err
	}
	defer q.release()
	m := q.Model
	if m.Name != q.name {
		return invalid("model", "%s is a vote, which has no embeddings; ask %s", q.name, m.Name)
	}
	q.served = nil // a policy is of texts
	switch {
	case in.Encoding != "" && in.Encoding != "float" && in.Encoding != "base64":
		return invalid("encoding_format", "encoding_format is %q; float and base64 are known", clip(in.Encoding))
	case in.Dimensions != nil && *in.Dimensions != m.Bundle.Arch.Dim:
		return invalid("dimensions", "dimensions is %d, this model's vectors have %d", *in.Dimensions, m.Bundle.Arch.Dim)
	}
	reqs, _, err := in.Input.requests("input", m, serve.Request{Context: m.Bundle.Arch.Context, Embed: true})
	if err != nil {
		return err
	}
	answers, err := s.whole(r, q, reqs)
	if err != nil {
		return err
	}
	data := []embedding{}
	for i, res := range answers {
		var v any = res.Embedding
		if in.Encoding == "base64" {
			var b []byte
			for _, x := range res.Embedding {
				b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
			}
			v = base64.StdEncoding.EncodeToString(b)
		}
		data = append(data, embedding{"embedding", i, v})
	}
	u := usageOf(answers, 1)
	writeJSON(w, http.StatusOK, map[string]any{"object": "list", "data": data, "model": m.Name, "usage": map[string]int{"prompt_tokens": u.Prompt, "total_tokens": u.Total}})
	return nil
}
