package rest

import (
	"encoding/json"
	"net/http"

	"github.com/open-autoglm/autoglm/runtime/serve"
	"github.com/open-autoglm/autoglm/runtime/serve/grammar"
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

// anyObject is what json_object asks for.
const anyObject = `{"type":"object"}`

// grammar makes the grammar of each choice; nil is none.
func (f *responseFormat) grammar(m *serve.Model) (func() serve.Grammar, error) {
	if f == nil {
		return nil, nil
	}
	schema := []byte(anyObject)
	switch f.Type {
	case "text", "json_object":
		if f.JSONSchema != nil {
			return nil, invalid("response_format.json_schema", "response_format.json_schema is for the type json_schema")
		}
		if f.Type == "text" {
			return nil, nil
		}
	case "json_schema":
		if f.JSONSchema == nil || len(f.JSONSchema.Schema) == 0 {
			return nil, invalid("response_format.json_schema.schema", "give response_format.json_schema.schema")
		}
		schema = f.JSONSchema.Schema
	default:
		return nil, invalid("response_format.type", "response_format.type is %q; text, json_object and json_schema are known", clip(f.Type))
	}
	s, err := grammar.Compile(schema)
	if err != nil {
		return nil, newError(http.StatusBadRequest, badRequest, "unsupported_schema", "response_format.json_schema.schema", "%s", err.Error())
	}
	return func() serve.Grammar { return s.Match(m.Vocabulary()) }, nil
}
