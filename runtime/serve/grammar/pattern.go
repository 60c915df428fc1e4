package grammar

import (
	"errors"
	"regexp/syntax"
)

// pattern makes texts that match a regular expression as a whole, which is more than
// JSON Schema asks: there a match anywhere is enough. Of classes of characters it takes
// those in ASCII.
func (c *compiler) pattern(expr string, next int32) (int32, error) {
	re, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		return 0, err
	}
	at, err := c.regexp(re.Simplify(), true, true, c.p.literal(`"`, next))
	if err != nil {
		return 0, err
	}
	return c.p.literal(`"`, at), nil
}

// regexp makes what re matches; first and last tell whether it begins and ends the text.
func (c *compiler) regexp(re *syntax.Regexp, first, last bool, next int32) (int32, error) {
	if len(c.p.states) >= maxStates {
		return next, nil
	}
	sub := func() *syntax.Regexp { return re.Sub[0] }
	switch re.Op {
	case syntax.OpEmptyMatch:
		return next, nil
	case syntax.OpBeginText:
		if first {
			return next, nil
		}
	case syntax.OpEndText:
		if last {
			return next, nil
		}
	case syntax.OpCapture:
		return c.regexp(sub(), first, last, next)
	case syntax.OpLiteral:
		if re.Flags&syntax.FoldCase != 0 {
			break
		}
		for i := len(re.Rune) - 1; i >= 0; i-- {
			quoted := text(string(re.Rune[i]))
			next = c.p.literal(quoted[1:len(quoted)-1], next)
		}
		return next, nil
	case syntax.OpCharClass:
		return c.class(re.Rune, next)
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		return c.class([]rune{0x20, 0x7e}, next)
	case syntax.OpStar:
		loop := c.p.state(state{op: split, other: next})
		body, err := c.regexp(sub(), false, false, loop)
		c.p.states[loop].next = body
		return loop, err
	case syntax.OpPlus:
		loop := c.p.state(state{op: split, other: next})
		body, err := c.regexp(sub(), false, false, loop)
		c.p.states[loop].next = body
		return body, err
	case syntax.OpQuest:
		body, err := c.regexp(sub(), first, last, next)
		if err != nil {
			return 0, err
		}
		return c.p.either(body, next), nil
	case syntax.OpConcat:
		var err error
		for i := len(re.Sub) - 1; i >= 0 && err == nil; i-- {
			next, err = c.regexp(re.Sub[i], first && i == 0, last && i == len(re.Sub)-1, next)
		}
		return next, err
	case syntax.OpAlternate:
		var all []int32
		for _, s := range re.Sub {
			at, err := c.regexp(s, first, last, next)
			if err != nil {
				return 0, err
			}
			all = append(all, at)
		}
		return c.p.either(all...), nil
	}
	return 0, errors.New("this regular expression is not supported: literals, classes, repetitions, alternatives and groups are, and ^ and $ at its ends")
}

// class makes one character of ranges, as JSON writes it.
func (c *compiler) class(ranges []rune, next int32) (int32, error) {
	one := state{op: read, next: next}
	var all []int32
	for i := 0; i < len(ranges); i += 2 {
		for r := max(ranges[i], 0x20); r <= min(ranges[i+1], 0x7e); r++ {
			if r == '"' || r == '\\' {
				all = append(all, c.p.literal(`\`+string(r), next))
				continue
			}
			one.set.add(byte(r), byte(r))
		}
	}
	if one.set != (set{}) {
		all = append(all, c.p.state(one))
	}
	if all == nil {
		return 0, errors.New("this regular expression has a class of characters of which none is in ASCII")
	}
	return c.p.either(all...), nil
}
