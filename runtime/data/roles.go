package data

import "strings"

// role is what a column is for; a set of them is a bit mask.
type role uint16

const (
	roleText role = 1 << iota
	roleQuestion
	roleContext
	roleAnswer
	roleDocument
	roleSummary
	roleLabel
	roleMessages
	roleMeta
)

var roleByName = map[string]role{
	"text": roleText, "question": roleQuestion, "context": roleContext, "answer": roleAnswer,
	"document": roleDocument, "summary": roleSummary, "label": roleLabel, "messages": roleMessages,
}

func (r role) String() string {
	for n, x := range roleByName {
		if x == r {
			return n
		}
	}
	return "other"
}

// aliases lists the names that columns of a role have in the wild, the most
// telling first. Names are compared by plainName.
var aliases = []struct {
	role  role
	names []string
}{
	{roleMessages, strings.Fields("messages conversations conversation chat dialog dialogue turns 对话")},
	{roleQuestion, strings.Fields("question instruction query prompt q problem questions userinput 问题")},
	{roleAnswer, strings.Fields("answer output answers response completion a reply solution answertext 答案 回答")},
	{roleContext, strings.Fields("context passage input background evidence paragraph reference 上下文")},
	{roleSummary, strings.Fields("summary summaries highlights tldr abstract headline summarytext 摘要")},
	{roleDocument, strings.Fields("document article dialogue fulltext sourcetext transcript report text content body source 正文")},
	{roleLabel, strings.Fields("label category labels class intent sentiment labeltext spam target topic type tag 标签 类别")},
	{roleText, strings.Fields("text content body sentence message review tweet utterance paragraph story document article rawtext comment 文本 内容")},
	{roleMeta, strings.Fields("id idx index uuid guid url source author date time timestamp title lang language split name file filename license meta metadata answerstart services score")},
}

var aliasRoles = func() map[string]role {
	m := map[string]role{}
	for _, a := range aliases {
		for _, n := range a.names {
			m[n] |= a.role
		}
	}
	return m
}()

// plainName folds a column's name: lower case, no separators.
func plainName(s string) string {
	return strings.Map(func(r rune) rune {
		switch r {
		case '_', '-', ' ', '.', ';', '\ufeff':
			return -1
		}
		return r
	}, strings.ToLower(strings.TrimSpace(s)))
}

// rolesOf gives the roles that a column of that name may have.
func rolesOf(name string) role { return aliasRoles[plainName(name)] }

// rank orders the names of a role, 0 for the most telling, -1 for none.
func rank(name string, r role) int {
	p := plainName(name)
	for _, a := range aliases {
		if a.role != r {
			continue
		}
		for i, n := range a.names {
			if n == p {
				return i
			}
		}
	}
	return -1
}

func aliasNames(r role) []string {
	for _, a := range aliases {
		if a.role == r {
			return a.names
		}
	}
	return nil
}
