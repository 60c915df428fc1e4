package sign

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"runtime/debug"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/image"
)

// Facts are what an image's own content says of it.
type Facts struct {
	Name   string // of its place
	Digest v1.Hash
	Title  string
	Card   *bundle.Card // nil where the model has none
	Build  *debug.BuildInfo
	Files  []File
}

// File is a file of an image.
type File struct {
	Path   string
	Size   int64
	SHA256 string
}

// Limits of what is held in memory.
const (
	maxRuntime = 1 << 30
	maxCard    = 16 << 20
)

// inspect reads every file of an image.
func inspect(img v1.Image, name string) (*Facts, error) {
	digest, err := img.Digest()
	if err != nil {
		return nil, err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	f := &Facts{Name: name, Digest: digest, Title: cf.Config.Labels["org.opencontainers.image.title"]}
	layers, err := img.Layers()
	if err != nil {
		return nil, err
	}
	for _, l := range layers {
		if err := f.layer(l); err != nil {
			return nil, err
		}
	}
	if f.Build == nil {
		return nil, fmt.Errorf("the image has no %s with the build information of Go: it can't be said what it is made of", image.RuntimePath)
	}
	return f, nil
}

func (f *Facts) layer(l v1.Layer) error {
	r, err := l.Uncompressed()
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if err := f.file(t, "/"+strings.TrimPrefix(path.Clean(h.Name), "/"), h.Size); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
}

func (f *Facts) file(r io.Reader, path string, size int64) error {
	hash := sha256.New()
	r = io.TeeReader(r, hash)
	switch path {
	case image.RuntimePath:
		raw, err := io.ReadAll(io.LimitReader(r, maxRuntime))
		if err != nil {
			return err
		}
		if f.Build, err = buildinfo.Read(bytes.NewReader(raw)); err != nil {
			return err
		}
	case image.ModelPath + "/" + bundle.CardDataFile:
		raw, err := io.ReadAll(io.LimitReader(r, maxCard))
		if err != nil {
			return err
		}
		f.Card = &bundle.Card{}
		if err := json.Unmarshal(raw, f.Card); err != nil {
			return err
		}
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return err
	}
	f.Files = append(f.Files, File{path, size, fmt.Sprintf("%x", hash.Sum(nil))})
	return nil
}

// card is the model's, empty where it has none.
func (f *Facts) card() bundle.Card {
	if f.Card == nil {
		return bundle.Card{}
	}
	return *f.Card
}

// modules are the runtime's own and those it was built from.
func (f *Facts) modules() []*debug.Module {
	out := []*debug.Module{&f.Build.Main}
	for _, m := range f.Build.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		out = append(out, m)
	}
	return append(out, &debug.Module{Path: "std", Version: strings.TrimPrefix(f.Build.GoVersion, "go")})
}

// purl names a module (https://github.com/package-url/purl-spec).
func purl(m *debug.Module) string {
	p := "pkg:golang/" + m.Path
	if m.Version != "" && m.Version != "(devel)" {
		p += "@" + strings.ReplaceAll(m.Version, "+", "%2B")
	}
	return p
}
