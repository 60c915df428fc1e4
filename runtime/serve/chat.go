package serve

import (
	"errors"
	"fmt"
	"strings"

	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/data"
)

// Message is one turn of a conversation.
type Message struct{ Role, Content string }

// ErrNoChat refuses a conversation with a model that has no chat template known here.
var ErrNoChat = errors.New("the model has no chat template that is known here: it continues texts (/v1/completions)")

// ChatIDs is a conversation as the model's chat template renders it, with the start of
// the answer. Special tokens come from the template alone: what somebody wrote stays
// text, whatever it says.
func ChatIDs(b *bundle.Bundle, messages []Message) ([]int32, error) {
	if !Chats(b) {
		return nil, ErrNoChat
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

// Chats tells whether ChatIDs knows the bundle's chat template.
func Chats(b *bundle.Bundle) bool { return b.ChatTemplate == data.ChatTemplate() }
