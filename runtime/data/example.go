package data

import (
	"bytes"
)

// Special tokens. Their names are fixed: the tokenizer, the chat template and the
// trainer use the same.
const (
	BOS       = "<|bos|>"
	EOS       = "<|endoftext|>"
	System    = "<|system|>"
	User      = "<|user|>"
	Assistant = "<|assistant|>"
)

// Specials lists the special tokens in the order of their ids.
func Specials() []string { return []string{EOS, BOS, System, User, Assistant} }

// Segment is a piece of an example's text. Text is never parsed for special
// tokens: "<|user|>" in a user's words stays text.
type Segment struct {
	Role   string // "" for plain text, else System, User or Assistant: the token that stands before Text
	Text   string // UTF-8
	Scored bool   // counts in the loss, and so does the EOS after it
}

// Example is a document, a question with its answer, or a dialogue.
//
// Its token sequence is BOS; then for each segment its Role token, its Text, and
// EOS after an Assistant segment; and EOS at the end of a plain text. A long plain
// text comes as several examples: all but the first have Continued (no BOS before
// them), all but the last have More (no EOS after them).
type Example struct {
	ID        string // the row's own id, else file:line
	Segments  []Segment
	Continued bool
	More      bool
}

// Bytes counts the UTF-8 bytes of all texts and of the scored ones.
func (e *Example) Bytes() (all, scored int64) {
	for _, s := range e.Segments {
		all += int64(len(s.Text))
		if s.Scored {
			scored += int64(len(s.Text))
		}
	}
	return all, scored
}

// Render writes the sequence with the special tokens by name, as the chat
// template does.
func (e *Example) Render() string {
	var b bytes.Buffer
	if !e.Continued {
		b.WriteString(BOS)
	}
	plain := false
	for _, s := range e.Segments {
		b.WriteString(s.Role)
		b.WriteString(s.Text)
		if s.Role == Assistant {
			b.WriteString(EOS)
		}
		plain = s.Role == ""
	}
	if plain && !e.More {
		b.WriteString(EOS)
	}
	return b.String()
}

// ChatTemplate is the Jinja template that renders messages the way examples are
// rendered, for chat_template.jinja of a Hugging Face folder.
func ChatTemplate() string {
	return `{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] == 'system' %}
{{- '<|system|>' + message['content'] | trim }}
{%- elif message['role'] == 'assistant' %}
{{- '<|assistant|>' + message['content'] | trim + eos_token }}
{%- else %}
{{- '<|user|>' + message['content'] | trim }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>' }}
{%- endif %}`
}
