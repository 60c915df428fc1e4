package fit

import (
	"bytes"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// wrapperFile holds gotch's generated wrappers.
const wrapperFile = "torch_api_generated.cpp.h"

var (
	errorLine = regexp.MustCompile(`^(.*?):(\d+)(?::\d+)?: (?:fatal )?error: (.*)$`)
	heading   = regexp.MustCompile(`^\S.*: In .*:$`)
	fromHere  = regexp.MustCompile(`^(.*?):(\d+)(?::\d+)?:\s+required from here`)
	signature = regexp.MustCompile(`^([A-Za-z_][\w ]*?[ *]+)(atg_\w+)\(.*\) ?\{`)
)

// compileError is one error of the compiler.
type compileError struct {
	File string
	Line int // from 1
	Text string
}

// parseErrors reads the errors out of what g++ or clang++ printed. Lines that
// are none are passed over. An error inside of a template of another file is that
// of the wrapper which asks for it ("required from here").
func parseErrors(output string) []compileError {
	var errs []compileError
	var asks []string // file and line of the wrapper that the errors to come are of
	for line := range strings.Lines(output) {
		line = strings.TrimRight(line, "\r\n")
		if heading.MatchString(line) {
			asks = nil
		}
		if m := fromHere.FindStringSubmatch(line); m != nil && filepath.Base(m[1]) == wrapperFile {
			asks = m[1:3]
		}
		m := errorLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		if asks != nil && filepath.Base(m[1]) != wrapperFile {
			m[1], m[2] = asks[0], asks[1]
		}
		n, err := strconv.Atoi(m[2])
		if err != nil || n < 1 {
			continue
		}
		errs = append(errs, compileError{m[1], n, m[3]})
	}
	return errs
}

// blank replaces the bodies of the wrappers that enclose the given lines
// (from 1) by one that throws, keeping every other line in its place. It
// returns the new text and the wrappers' names, each once, in the file's order.
// A line that is in no wrapper is an error.
func blank(src []byte, lines []int) ([]byte, []string, error) {
	text := bytes.Split(src, []byte("\n"))
	lines = slices.Clone(lines)
	slices.Sort(lines)
	var names []string
	end := -1 // last line, from 0, of the wrapper that was blanked last
	for _, n := range lines {
		i := n - 1
		if i <= end {
			continue
		}
		if i < 0 || i >= len(text) {
			return nil, nil, fmt.Errorf("line %d is outside the file of %d lines", n, len(text))
		}
		from := i
		var head []string
		for ; from >= 0; from-- {
			if head = signature.FindStringSubmatch(string(text[from])); head != nil {
				break
			}
			if from < i && isEnd(text[from]) {
				return nil, nil, fmt.Errorf("line %d is in no wrapper", n)
			}
		}
		if head == nil {
			return nil, nil, fmt.Errorf("line %d is in no wrapper", n)
		}
		for end = from; end < len(text) && !isEnd(text[end]); end++ {
		}
		if end == len(text) || end < i || end < from+1 {
			return nil, nil, fmt.Errorf("wrapper %s at line %d does not end", head[2], from+1)
		}
		body := fmt.Sprintf("  PROTECT(throw std::runtime_error(%q);)", head[2]+" is not in this libtorch")
		if strings.TrimSpace(head[1]) != "void" {
			body += " return 0;"
		}
		for j := from + 1; j < end; j++ {
			text[j] = nil
		}
		if end == from+1 {
			text[from] = append(slices.Clone(text[from]), body...)
		} else {
			text[from+1] = []byte(body)
		}
		names = append(names, head[2])
	}
	return bytes.Join(text, []byte("\n")), names, nil
}

// mendMask lets a missing mask of the fused attention be missing: gotch passes an
// undefined tensor instead, which libtorch refuses together with is_causal.
func mendMask(src []byte) []byte {
	text := bytes.Split(src, []byte("\n"))
	for i, line := range text {
		if bytes.Contains(line, []byte("torch::scaled_dot_product_attention(")) {
			text[i] = bytes.ReplaceAll(line, []byte("(attn_mask ? *attn_mask : torch::Tensor())"),
				[]byte("(attn_mask ? c10::optional<torch::Tensor>(*attn_mask) : c10::optional<torch::Tensor>())"))
		}
	}
	return bytes.Join(text, []byte("\n"))
}

// isEnd says whether the line closes a function.
func isEnd(line []byte) bool {
	return len(line) > 0 && line[0] == '}'
}
