package image

import (
	"archive/tar"
	"bytes"
	"debug/buildinfo"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
)

// Places inside an image.
const (
	RuntimePath = "/autoglm"
	ModelPath   = "/model"
)

// Spec is what an image is made of.
type Spec struct {
	Runtime     string // the static binary
	Model       string // folder of a bundle; its files go in as they are
	Title       string
	Description string
	License     string // of the model
}

// epoch is when everything in an image was made: the time of its making would change its
// digest.
var epoch = time.Unix(0, 0).UTC()

// file is one file of a layer.
type file struct {
	path string // inside the image, without the slash in front
	from string
	mode int64
}

// Build makes the image. It reads the files again when the image is written, so they stay
// where they are until then.
func Build(s Spec) (v1.Image, error) {
	arch, err := checkRuntime(s.Runtime)
	if err != nil {
		return nil, err
	}
	configs, weights, err := modelFiles(s.Model)
	if err != nil {
		return nil, err
	}
	binary, err := compressed([]file{{path: RuntimePath[1:], from: s.Runtime, mode: 0o755}})
	if err != nil {
		return nil, err
	}
	config, err := compressed(configs)
	if err != nil {
		return nil, err
	}
	weight, err := stored(weights)
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	history := func(layer v1.Layer, what string) mutate.Addendum {
		return mutate.Addendum{Layer: layer, History: v1.History{Created: v1.Time{Time: epoch}, CreatedBy: "autoglm export", Comment: what}}
	}
	img, err = mutate.Append(img, history(binary, "runtime"), history(config, "tokenizer and configuration"), history(weight, "weights"))
	if err != nil {
		return nil, err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	labels := s.labels()
	cf.Created, cf.OS, cf.Architecture = v1.Time{Time: epoch}, "linux", arch
	cf.Config = v1.Config{
		User:       "65532:65532", // nobody in particular: no file belongs to it
		Entrypoint: []string{RuntimePath, "serve", ModelPath}, Cmd: []string{"--listen", "0.0.0.0:8080", "--grpc", "0.0.0.0:9000", "--insecure"},
		WorkingDir: "/", ExposedPorts: map[string]struct{}{"8080/tcp": {}, "9000/tcp": {}}, Labels: labels,
		Healthcheck: &v1.HealthConfig{Test: []string{"CMD", RuntimePath, "health"}, Interval: 10 * time.Second, Timeout: 5 * time.Second, StartPeriod: 10 * time.Second, Retries: 3},
	}
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		return nil, err
	}
	return mutate.Annotations(img, labels).(v1.Image), nil
}

// labels are those that https://github.com/opencontainers/image-spec/blob/main/annotations.md names.
func (s Spec) labels() map[string]string {
	m := map[string]string{"org.opencontainers.image.source": "https://github.com/open-autoglm/autoglm"}
	set := func(key, value string) {
		if value != "" {
			m["org.opencontainers.image."+key] = value
		}
	}
	set("title", s.Title)
	set("description", s.Description)
	set("licenses", s.License)
	if info, err := buildinfo.ReadFile(s.Runtime); err == nil {
		set("version", strings.Trim(info.Main.Version, "()"))
		for _, setting := range info.Settings {
			if setting.Key == "vcs.revision" {
				set("revision", setting.Value)
			}
		}
	}
	return m
}

// ErrDynamic marks a runtime that needs libraries, which an image of it alone lacks.
var ErrDynamic = errors.New("is a dynamic binary, which would find no libraries in the image")

// checkRuntime is the architecture of a static Linux binary.
func checkRuntime(path string) (string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return "", fmt.Errorf("runtime %s is no Linux binary: %w", path, err)
	}
	defer func() { _ = f.Close() }()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return "", fmt.Errorf("runtime %s %w; name a static one with --runtime FILE, built by: CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' ./cmd/autoglm", path, ErrDynamic)
		}
	}
	switch f.Machine {
	case elf.EM_X86_64:
		return "amd64", nil
	case elf.EM_AARCH64:
		return "arm64", nil
	}
	return "", fmt.Errorf("runtime %s is for %s; images are made for amd64 and arm64", path, f.Machine)
}

// modelFiles are the files of a bundle, by layer.
func modelFiles(dir string) (configs, weights []file, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		f := file{path: path.Join(ModelPath[1:], e.Name()), from: filepath.Join(dir, e.Name()), mode: 0o644}
		info, err := os.Stat(f.from) // through links, of which caches of models are made
		switch {
		case err != nil:
			return nil, nil, err
		case strings.HasPrefix(e.Name(), "."):
			continue
		case !info.Mode().IsRegular():
			return nil, nil, fmt.Errorf("%s holds %s, which is no file of a bundle; remove it", dir, e.Name())
		}
		if filepath.Ext(e.Name()) == ".safetensors" {
			weights = append(weights, f)
		} else {
			configs = append(configs, f)
		}
	}
	if len(configs) == 0 || len(weights) == 0 {
		return nil, nil, fmt.Errorf("%s is no bundle: it has %d files of weights and %d others", dir, len(weights), len(configs))
	}
	return configs, weights, nil
}

// writeTar writes files, and the folder that they lie in, if it is not the root.
func writeTar(w io.Writer, files []file) error {
	t := tar.NewWriter(w)
	if dir := path.Dir(files[0].path); dir != "." {
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: epoch}); err != nil {
			return err
		}
	}
	for _, f := range files {
		if err := addFile(t, f); err != nil {
			return err
		}
	}
	return t.Close()
}

func addFile(t *tar.Writer, f file) error {
	in, err := os.Open(f.from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.path, Size: info.Size(), Mode: f.mode, ModTime: epoch}); err != nil {
		return err
	}
	if _, err := io.Copy(t, in); err != nil {
		return fmt.Errorf("%s: %w", f.from, err)
	}
	return nil
}

// stream is the tar of files, written while it is read. Closing it ends the writer.
func stream(files []file) io.ReadCloser {
	r, w := io.Pipe()
	go func() { _ = w.CloseWithError(writeTar(w, files)) }() // ends with the last read, or with Close
	return r
}

// compressed is a layer that is made at once, in memory.
func compressed(files []file) (v1.Layer, error) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if err := errors.Join(writeTar(w, files), w.Close()); err != nil {
		return nil, err
	}
	return layer(func() io.ReadCloser { return io.NopCloser(bytes.NewReader(b.Bytes())) })
}

// stored is a layer of gzip's form that is not compressed: not all clients know a bare
// tar. It is made while it is read.
func stored(files []file) (v1.Layer, error) {
	return layer(func() io.ReadCloser { return stream(files) }, tarball.WithCompressionLevel(gzip.NoCompression))
}

func layer(open func() io.ReadCloser, o ...tarball.LayerOption) (v1.Layer, error) {
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return open(), nil }, append(o, tarball.WithMediaType(types.OCILayer))...)
}
