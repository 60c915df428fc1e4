package main

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"io"
	"os"
	"path/filepath"

	"github.com/open-autoglm/autoglm/runtime/durable"
)

// Moby Dick; or, The Whale, by Herman Melville (1851), public domain.
//
//go:embed sample/mobydick.txt.gz
var sampleText []byte

const sampleName = "mobydick.txt"

// writeSample puts the embedded text into dir and returns its path.
func writeSample(dir string) (string, error) {
	z, err := gzip.NewReader(bytes.NewReader(sampleText))
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(z)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, sampleName)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return path, durable.WriteFile(path, text)
}
