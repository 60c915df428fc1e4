package policy

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"regexp/syntax"
	"strings"
	"time"
	"unicode"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"

	"github.com/open-autoglm/autoglm/runtime/metric"
)

// Bounds of what an expression may cost: units are CEL's, about ten bytes looked at or
// made, half a byte that a pattern is matched with, or one call. The time is for all rules of an answer, and more than they take.
const (
	costLimit = 1_000_000
	evalTime  = 2 * time.Second
)

// Input is an answer, and what is known of it.
type Input struct {
	Prompt     string // of a chat: what was said last
	Answer     string
	Model      string  // whose answer it is
	Confidence float64 // 0 to 1
	Tokens     int     // of the answer
	Finish     string  // stop or length
	Attempt    int     // 1 is the first
}

// env is the language of rules: CEL with the variables of Input, json, and functions on
// texts whose results are bounded.
var env = func() *cel.Env {
	e, err := cel.NewEnv(append(functions(),
		cel.Variable("prompt", cel.StringType),
		cel.Variable("answer", cel.StringType),
		cel.Variable("model", cel.StringType),
		cel.Variable("confidence", cel.DoubleType),
		cel.Variable("tokens", cel.IntType),
		cel.Variable("finish", cel.StringType),
		cel.Variable("attempt", cel.IntType),
		cel.Variable("json", cel.DynType),
		cel.ParserRecursionLimit(64),
		cel.ParserExpressionSizeLimit(maxExpression),
	)...)
	if err != nil {
		panic(err) // of our own making
	}
	return e
}()

// expr is a compiled expression. Any goroutine may use it.
type expr struct {
	prg       cel.Program
	believes  bool // it looks at confidence
	wantsJSON bool
}

// newExpr compiles text, whose result must be of a type.
func newExpr(path, text string, result *cel.Type) (*expr, error) {
	if len(text) > maxExpression {
		return nil, wrong(path, "is longer than %d bytes", maxExpression)
	}
	tree, issues := env.Compile(text)
	if err := issues.Err(); err != nil {
		return nil, wrong(path, "%s", strings.TrimSpace(strings.ReplaceAll(err.Error(), "<input>:", "")))
	}
	if t := tree.OutputType(); !t.IsExactType(result) && !t.IsExactType(cel.DynType) {
		return nil, wrong(path, "is of type %s, must be %s", cel.FormatCELType(t), cel.FormatCELType(result))
	}
	e := &expr{}
	for _, r := range tree.NativeRep().ReferenceMap() {
		e.believes = e.believes || r.Name == "confidence"
		e.wantsJSON = e.wantsJSON || r.Name == "json"
	}
	if err := checkPatterns(path, tree.NativeRep().Expr()); err != nil {
		return nil, err
	}
	var err error
	e.prg, err = env.Program(tree, cel.EvalOptions(cel.OptOptimize), cel.CostTracking(bySize{}), cel.CostLimit(costLimit), cel.InterruptCheckFrequency(64))
	if err != nil {
		return nil, wrong(path, "%v", err)
	}
	return e, nil
}

// maxPattern is how many instructions a regular expression may compile to: matching takes
// at most so many steps for each byte of the text.
const maxPattern = 256

// checkPatterns refuses a regular expression that is not written out, or is large: what a
// model says is no pattern to search by.
func checkPatterns(path string, root ast.Expr) error {
	var bad error
	ast.PostOrderVisit(root, ast.NewExprVisitor(func(e ast.Expr) {
		if bad != nil || e.Kind() != ast.CallKind || e.AsCall().FunctionName() != overloads.Matches {
			return
		}
		args := e.AsCall().Args()
		pattern := args[len(args)-1]
		if pattern.Kind() != ast.LiteralKind {
			bad = wrong(path, "the pattern of matches must be written out")
			return
		}
		text, _ := pattern.AsLiteral().Value().(string)
		re, err := syntax.Parse(text, syntax.Perl)
		if err != nil {
			bad = wrong(path, "matches: %v", err)
			return
		}
		prog, err := syntax.Compile(re.Simplify())
		if err != nil {
			bad = wrong(path, "matches: %v", err)
			return
		}
		if n := len(prog.Inst); n > maxPattern {
			bad = wrong(path, "the pattern %.40q compiles to %d steps a byte, at most %d are taken", text, n, maxPattern)
		}
	}))
	return bad
}

// scope is what expressions see of an answer.
type scope struct {
	vars   map[string]any
	parsed bool // json stands for the answer
}

func newScope(in Input) *scope {
	return &scope{vars: map[string]any{
		"prompt": in.Prompt, "answer": in.Answer, "model": in.Model, "confidence": in.Confidence, "tokens": in.Tokens,
		"finish": in.Finish, "attempt": in.Attempt, "json": nil,
	}}
}

// rewrite puts another text in the answer's place.
func (s *scope) rewrite(text string) { s.vars["answer"], s.vars["json"], s.parsed = text, nil, false }

// eval is the expression's value; nothing that it can be given makes it panic, hang or
// take much memory. ctx has an end.
func (e *expr) eval(ctx context.Context, s *scope) (v any, err error) {
	prompt, answer := s.vars["prompt"].(string), s.vars["answer"].(string)
	if len(answer) > maxText || len(prompt) > maxText {
		return nil, fmt.Errorf("a prompt of %d bytes with an answer of %d is too long for rules", len(prompt), len(answer))
	}
	if ctx.Err() != nil { // expressions without a loop don't look
		return nil, context.Cause(ctx)
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	if e.wantsJSON && !s.parsed {
		s.vars["json"], s.parsed = parsed(answer), true
	}
	out, _, err := e.prg.ContextEval(ctx, s.vars)
	if err != nil {
		return nil, err
	}
	return out.Value(), nil
}

// parsed is the JSON that an answer is; nil where it is none.
func parsed(answer string) any {
	var v any
	if json.Unmarshal([]byte(answer), &v) != nil {
		return nil
	}
	return v
}

// bySize prices a call by what goes in and comes out.
type bySize struct{}

// CallCost implements cost.ActualCostEstimator.
func (bySize) CallCost(function, _ string, args []ref.Val, result ref.Val) *uint64 {
	units := uint64(1)
	for _, v := range append(args[:len(args):len(args)], result) {
		switch v := v.(type) {
		case types.String:
			if function == overloads.Matches {
				units += 2 * uint64(len(v)) // of up to maxPattern steps a byte
				continue
			}
			units += uint64(len(v)) / 10
		case types.Bytes:
			units += uint64(len(v)) / 10
		case traits.Sizer:
			if function == operators.Add || function == operators.Index {
				continue // a loop's list grows in place
			}
			if n, ok := v.Size().(types.Int); ok {
				units += uint64(n)
			}
		}
	}
	return &units
}

var stringList = reflect.TypeFor[[]string]()

// functions are those on texts that CEL's standard lacks, by the names of its extension;
// none makes more than maxText.
func functions() []cel.EnvOption {
	text, list, integer := cel.StringType, cel.ListType(cel.StringType), cel.IntType
	member := func(name string, args []*cel.Type, result *cel.Type, f func(args []ref.Val) ref.Val) cel.EnvOption {
		id := name
		for _, a := range args {
			id += "_" + a.TypeName()
		}
		return cel.Function(name, cel.MemberOverload(id, args, result, cel.FunctionBinding(func(args ...ref.Val) ref.Val { return f(args) })))
	}
	str := func(v ref.Val) string { return string(v.(types.String)) }
	folded := func(name string, f func(string) string) cel.EnvOption {
		return member(name, []*cel.Type{text}, text, func(a []ref.Val) ref.Val { return bounded(f(str(a[0]))) })
	}
	return []cel.EnvOption{
		folded("trim", strings.TrimSpace),
		folded("lowerAscii", func(s string) string { return mapASCII(s, unicode.ToLower) }),
		folded("upperAscii", func(s string) string { return mapASCII(s, unicode.ToUpper) }),
		member("words", []*cel.Type{text}, list, func(a []ref.Val) ref.Val { return strs(metric.Words(str(a[0]))) }),
		member("replace", []*cel.Type{text, text, text}, text, func(a []ref.Val) ref.Val {
			s, old, by := str(a[0]), str(a[1]), str(a[2])
			if n := strings.Count(s, old); len(s)+n*(len(by)-len(old)) > maxText {
				return types.NewErr("replace makes a text of more than %d bytes", maxText)
			}
			return types.String(strings.ReplaceAll(s, old, by))
		}),
		member("split", []*cel.Type{text, text}, list, func(a []ref.Val) ref.Val { return strs(strings.Split(str(a[0]), str(a[1]))) }),
		member("join", []*cel.Type{list, text}, text, join),
		member("indexOf", []*cel.Type{text, text}, integer, func(a []ref.Val) ref.Val {
			i := strings.Index(str(a[0]), str(a[1]))
			if i > 0 {
				i = len([]rune(str(a[0])[:i]))
			}
			return types.Int(i)
		}),
		member("substring", []*cel.Type{text, integer, integer}, text, func(a []ref.Val) ref.Val {
			runes := []rune(str(a[0]))
			from, to := int64(a[1].(types.Int)), int64(a[2].(types.Int))
			if from < 0 || to < from || to > int64(len(runes)) {
				return types.NewErr("substring %d to %d of %d characters", from, to, len(runes))
			}
			return types.String(runes[from:to])
		}),
	}
}

func strs(s []string) ref.Val { return types.NewDynamicList(types.DefaultTypeAdapter, s) }

func bounded(s string) ref.Val {
	if len(s) > maxText {
		return types.NewErr("a text of more than %d bytes", maxText)
	}
	return types.String(s)
}

// join counts before it makes anything.
func join(a []ref.Val) ref.Val {
	native, err := a[0].ConvertToNative(stringList)
	if err != nil {
		return types.NewErr("join: %v", err)
	}
	parts, sep := native.([]string), string(a[1].(types.String))
	n := len(sep) * max(0, len(parts)-1)
	for _, p := range parts {
		if n += len(p); n > maxText {
			break
		}
	}
	if n > maxText {
		return types.NewErr("join makes a text of more than %d bytes", maxText)
	}
	return types.String(strings.Join(parts, sep))
}

func mapASCII(s string, f func(rune) rune) string {
	return strings.Map(func(r rune) rune {
		if r < 0x80 {
			return f(r)
		}
		return r
	}, s)
}
