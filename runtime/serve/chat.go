package serve

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/data"
	"github.com/open-autoglm/autoglm/runtime/serve/template"
)

// Message is one turn of a conversation.
type Message struct{ Role, Content string }

// ErrNoChat refuses a conversation with a model that has no chat template.
var ErrNoChat = errors.New("the model has no chat template: it continues texts (/v1/completions)")

// ChatIDs is a conversation as the model's chat template renders it, with the start of
// the answer. Special tokens come from the template alone: what somebody wrote stays
// text, whatever it says. Of a template that isn't our own, bos_token and eos_token are the
// first that end or begin a text by generation_config.json; the error may be a
// *template.Error.
func ChatIDs(b *bundle.Bundle, messages []Message) ([]int32, error) {
	switch {
	case b.ChatTemplate == "":
		return nil, ErrNoChat
	case b.ChatTemplate != data.ChatTemplate():
		return renderedIDs(b, messages)
	}
	var ids []int32
	special := func(name string) error {
		id, ok := b.Tokenizer.SpecialID(name)
		if !ok {
			return fmt.Errorf("the chat template needs the token %s, which the tokenizer lacks", name)
		}
		ids = append(ids, id)
		return nil
	}
	if err := special(data.BOS); err != nil {
		return nil, err
	}
	for _, m := range messages {
		before, after := data.User, ""
		switch m.Role {
		case "system":
			before = data.System
		case "assistant":
			before, after = data.Assistant, data.EOS
		}
		if err := special(before); err != nil {
			return nil, err
		}
		ids = b.Tokenizer.Encode(ids, strings.TrimSpace(m.Content))
		if after != "" {
			if err := special(after); err != nil {
				return nil, err
			}
		}
	}
	return ids, special(data.Assistant)
}

// renderedIDs renders another maker's template. What was written is marked where it looks
// like a special token, so that it stays text.
func renderedIDs(b *bundle.Bundle, messages []Message) ([]int32, error) {
	t, err := templates.of(b.ChatTemplate)
	if err != nil {
		return nil, err
	}
	mark := markFor(b.ChatTemplate, messages)
	in := template.Input{Generate: true, Now: time.Now()}
	for _, m := range messages {
		in.Messages = append(in.Messages, template.Message{Role: m.Role, Content: b.Tokenizer.Mark(m.Content, mark)})
	}
	if b.Generation.BOS >= 0 {
		in.BOS = b.Tokenizer.Symbol(b.Generation.BOS)
	}
	if len(b.Generation.EOS) > 0 {
		in.EOS = b.Tokenizer.Symbol(b.Generation.EOS[0])
	}
	text, err := t.Render(in)
	if err != nil {
		return nil, err
	}
	return b.Tokenizer.EncodeMarked(nil, text, mark), nil
}

// markFor is a letter of private use that neither the template nor the messages have.
func markFor(source string, messages []Message) string {
	const first, last = '\ue000', '\uf8ff'
	for r := first; r < last; r++ {
		mark := string(r)
		if !strings.Contains(source, mark) && !slices.ContainsFunc(messages, func(m Message) bool { return strings.Contains(m.Content, mark) }) {
			return mark
		}
	}
	return string(last)
}

// Chats tells whether the bundle has a chat template that can be read.
func Chats(b *bundle.Bundle) bool {
	if b.ChatTemplate == "" || b.ChatTemplate == data.ChatTemplate() {
		return b.ChatTemplate != ""
	}
	_, err := templates.of(b.ChatTemplate)
	return err == nil
}

// templates keeps those of the models that are served.
var templates parsedTemplates

type parsedTemplates struct {
	mu  sync.Mutex
	all map[string]parsedTemplate
}

type parsedTemplate struct {
	t   *template.Template
	err error
}

// maxTemplates bounds what is kept: one for each model, and those that were.
const maxTemplates = 64

func (p *parsedTemplates) of(source string) (*template.Template, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	one, ok := p.all[source]
	if !ok {
		if p.all == nil || len(p.all) >= maxTemplates {
			p.all = map[string]parsedTemplate{}
		}
		one.t, one.err = template.Parse(source)
		p.all[source] = one
	}
	return one.t, one.err
}
