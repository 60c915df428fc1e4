package data_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/open-autoglm/autoglm/runtime/data"
)

func Example() {
	dir, err := os.MkdirTemp("", "example-")
	if err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	var rows strings.Builder
	rows.WriteString("question,answer\n")
	for i := range 200 {
		fmt.Fprintf(&rows, "What is %d plus one?,It is %d.\n", i, i+1)
	}
	file := filepath.Join(dir, "sums.csv")
	if err := os.WriteFile(file, []byte(rows.String()), 0o600); err != nil {
		panic(err)
	}

	cfg := data.DefaultConfig()
	cfg.Files = []string{file}
	report, err := data.Prepare(context.Background(), cfg, filepath.Join(dir, "out"), data.Events{})
	if err != nil {
		panic(err)
	}
	fmt.Println(report.Task, report.Rows, report.Kept)

	part, err := data.OpenPart(filepath.Join(dir, "out"), "train")
	if err != nil {
		panic(err)
	}
	defer func() { _ = part.Close() }()
	n := 0
	for {
		e, err := part.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			panic(err)
		}
		if n == 0 {
			fmt.Println(e.Render())
		}
		n++
	}
	fmt.Println(n == int(report.Parts["train"].Examples))
	// Output:
	// question-answering 200 200
	// <|bos|><|user|>What is 0 plus one?<|assistant|>It is 1.<|endoftext|>
	// true
}
