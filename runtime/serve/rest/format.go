package rest

import (
	"encoding/json"

	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/serve"
)

// responseFormat is what form a text must have.
type responseFormat struct {
	Type       string      `json:"type"`
	JSONSchema *jsonSchema `json:"json_schema"`
}

type jsonSchema struct {
	Name        string          `json:"name"`
	Description string          `json:"description"`
	Schema      json.RawMessage `json:"schema"`
	Strict      *bool           `json:"strict"`
}

// grammar makes the grammar of each choice; nil is none.
func (f *responseFormat) grammar(_ *bundle.Bundle) (func() serve.Grammar, error) {
	if f == nil || f.Type == "text" {
		return nil, nil
	}
	return nil, invalid("response_format", "response_format %q is not supported here", f.Type)
}
