// Package template renders conversations by chat templates, as transformers' apply_chat_template
// does (https://huggingface.co/docs/transformers/chat_templating): Jinja with trim_blocks and
// lstrip_blocks, raise_exception, tojson and strftime_now.
//
//	t, err := template.Parse(source)            // names the line that is wrong
//	text, err := t.Render(template.Input{Messages: messages, BOS: "<s>", EOS: "</s>", Generate: true, Now: time.Now()})
//
// A template comes with a model, from somebody else. It reads no files and no environment;
// its text is bounded, and so are its ranges and the time that Render waits. It can still
// waste memory while it runs, such as by repeating a text: serve models of makers you know.
package template

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/nikolalohinski/gonja/v2/builtins"
	"github.com/nikolalohinski/gonja/v2/config"
	"github.com/nikolalohinski/gonja/v2/exec"
	"github.com/nikolalohinski/gonja/v2/loaders"
)

// Limits of a template and of what it renders.
const (
	maxSource = 64 << 10
	maxText   = 16 << 20
	maxRange  = 10_000 // steps of all ranges together
	maxTime   = time.Second
)

// Template is a parsed one. It doesn't change; any goroutine may use it.
type Template struct{ t *exec.Template }

// Message is one turn of a conversation.
type Message struct{ Role, Content string }

// Input is what a template is told.
type Input struct {
	Messages []Message
	BOS, EOS string // bos_token and eos_token
	Generate bool   // add_generation_prompt: the answer is to begin
	Now      time.Time
}

// Error is what a template says or does wrong.
type Error struct {
	Line   int  // of the template, 0 where it isn't known
	Raised bool // by raise_exception: the conversation is not one that the template takes
	Reason string
}

func (e *Error) Error() string {
	if e.Line == 0 {
		return "chat template: " + e.Reason
	}
	return fmt.Sprintf("chat template, line %d: %s", e.Line, e.Reason)
}

// closed has the template and nothing else.
type closed struct{ source string }

const itself = "chat_template"

func (c closed) Read(path string) (io.Reader, error) {
	if path != itself {
		return nil, fmt.Errorf("it reads %s, and may read nothing", path)
	}
	return strings.NewReader(c.source), nil
}

func (c closed) Resolve(path string) (string, error)    { return path, nil }
func (c closed) Inherit(string) (loaders.Loader, error) { return c, nil }

// generation marks what an assistant says, for training; it renders what is in it.
var generation = regexp.MustCompile(`\{%(-?)\s*(end)?generation\s*(-?)%\}`)

// Parse reads a template.
func Parse(source string) (t *Template, err error) {
	if len(source) > maxSource {
		return nil, &Error{Reason: fmt.Sprintf("it has %d bytes, more than %d", len(source), maxSource)}
	}
	source = generation.ReplaceAllStringFunc(source, func(s string) string {
		m := generation.FindStringSubmatch(s)
		word := "if true"
		if m[2] != "" {
			word = "endif"
		}
		return "{%" + m[1] + " " + word + " " + m[3] + "%}"
	})
	c := config.New()
	c.TrimBlocks, c.LeftStripBlocks = true, true
	defer func() { // the library panics at some that are malformed
		if r := recover(); r != nil {
			t, err = nil, &Error{Reason: fmt.Sprint("it is malformed: ", r)}
		}
	}()
	parsed, err := exec.NewTemplate(itself, c, closed{nestedIf(source)}, newEnvironment(map[string]any{}))
	if err != nil {
		return nil, asError(err)
	}
	return &Template{parsed}, nil
}

// newEnvironment has no names of Jinja's that read anything.
func newEnvironment(globals map[string]any) *exec.Environment {
	return &exec.Environment{
		Context:           exec.NewContext(globals),
		Filters:           exec.NewFilterSet(map[string]exec.FilterFunction{}).Update(builtins.Filters).Update(exec.NewFilterSet(map[string]exec.FilterFunction{"tojson": toJSON})),
		Tests:             builtins.Tests,
		ControlStructures: builtins.ControlStructures,
		Methods:           builtins.Methods,
	}
}

// Render renders a conversation. The error is an *Error.
func (t *Template) Render(in Input) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), maxTime)
	defer cancel()
	out := &bounded{ctx: ctx}
	done := make(chan error, 1)
	said := new(raised)
	go func() { // ends at the next thing that is written, after its time
		defer func() {
			if r := recover(); r != nil {
				done <- fmt.Errorf("it fails: %v", r)
			}
		}()
		done <- t.t.Execute(out, exec.NewContext(in.values(ctx, said)))
	}()
	select {
	case err := <-done:
		if err != nil && *said != "" { // the library may keep its text alone
			return "", &Error{Line: lineOf(err), Raised: true, Reason: string(*said)}
		}
		if err != nil {
			return "", asError(err)
		}
		return out.b.String(), nil
	case <-ctx.Done():
		return "", &Error{Reason: fmt.Sprintf("it takes longer than %v", maxTime)}
	}
}

// values are the names that a template knows.
func (in Input) values(ctx context.Context, said *raised) map[string]any {
	messages := make([]any, len(in.Messages))
	for i, m := range in.Messages {
		messages[i] = map[string]any{"role": m.Role, "content": m.Content}
	}
	left := maxRange
	v := map[string]any{
		"messages": messages, "add_generation_prompt": in.Generate, "bos_token": in.BOS, "eos_token": in.EOS,
		"tools": nil, "documents": nil,
		"raise_exception": func(_ *exec.Evaluator, args *exec.VarArgs) (any, error) {
			*said = raised(args.First().String())
			return nil, said
		},
		"strftime_now": func(_ *exec.Evaluator, args *exec.VarArgs) (string, error) {
			return strftime(in.Now, args.First().String())
		},
		"range": func(_ *exec.Evaluator, args *exec.VarArgs) ([]int, error) { return steps(ctx, args, &left) },
	}
	for _, name := range []string{"namespace", "dict", "joiner", "cycler"} {
		v[name], _ = builtins.GlobalFunctions.Get(name)
	}
	return v
}

// steps is Python's range as a list.
func steps(ctx context.Context, args *exec.VarArgs, left *int) ([]int, error) {
	bounds := []int{0, 0, 1}
	for i, a := range args.Args {
		if i > 2 || !a.IsInteger() {
			return nil, errors.New("range takes one to three whole numbers")
		}
		bounds[i] = a.Integer()
	}
	if len(args.Args) == 1 {
		bounds[0], bounds[1] = 0, bounds[0]
	}
	from, to, by := bounds[0], bounds[1], bounds[2]
	if by == 0 || len(args.Args) == 0 {
		return nil, errors.New("range takes a step that isn't 0, and one to three whole numbers")
	}
	var out []int
	for i := from; by > 0 && i < to || by < 0 && i > to; i += by {
		if *left--; *left < 0 || ctx.Err() != nil {
			return nil, fmt.Errorf("its ranges have more than %d steps", maxRange)
		}
		out = append(out, i)
	}
	return out, nil
}

// bounded is a text that ends at a size or a time.
type bounded struct {
	ctx context.Context // of one rendering: an io.Writer is given none
	b   strings.Builder
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.ctx.Err() != nil {
		return 0, fmt.Errorf("it takes longer than %v", maxTime)
	}
	if b.b.Len()+len(p) > maxText {
		return 0, fmt.Errorf("it renders more than %d bytes", maxText)
	}
	return b.b.Write(p)
}

// raised is what a template says by raise_exception.
type raised string

func (r *raised) Error() string { return string(*r) }

// The library tells where in its texts alone, the innermost last.
var (
	atLine  = regexp.MustCompile(`(?i)\bline:? (\d+)`)
	tailing = regexp.MustCompile(`(?s)^.*(?:at line \d+: [^\n]*?(?:Node|Expression|Structure)?\([^\n]*\)|[Uu]nable to [^:\n]*): `)
)

func lineOf(err error) (line int) {
	if m := atLine.FindAllStringSubmatch(err.Error(), -1); m != nil {
		_, _ = fmt.Sscan(m[len(m)-1][1], &line)
	}
	return line
}

func asError(err error) *Error {
	e := &Error{Line: lineOf(err)}
	text := err.Error()
	e.Reason = tailing.ReplaceAllString(text, "")
	if i := strings.LastIndex(e.Reason, "failed to parse template '"); i >= 0 { // it holds all of the template
		if j := strings.LastIndex(e.Reason, "': "); j > i {
			e.Reason = e.Reason[j+len("': "):]
		}
	}
	return e
}
