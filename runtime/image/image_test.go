package image

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// program writes the headers of a program, static or not, and something that stands for code.
func program(t *testing.T, machine elf.Machine, dynamic bool) string {
	t.Helper()
	kind := elf.PT_LOAD
	if dynamic {
		kind = elf.PT_INTERP
	}
	var b bytes.Buffer
	h := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: 1, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1, Shentsize: 64}
	copy(h.Ident[:], "\x7fELF\x02\x01\x01")
	for _, part := range []any{h, elf.Prog64{Type: uint32(kind)}} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			t.Fatal(err)
		}
	}
	b.WriteString(strings.Repeat("code ", 1000))
	path := filepath.Join(t.TempDir(), "runtime")
	if err := os.WriteFile(path, b.Bytes(), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func model(t *testing.T, weights string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"config.json": `{"a": 1}`, "tokenizer.json": "{}", "model.safetensors": weights} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func build(t *testing.T, s Spec) v1.Image {
	t.Helper()
	img, err := Build(s)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func digest(t *testing.T, img interface{ Digest() (v1.Hash, error) }) string {
	t.Helper()
	h, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h.String()
}

func TestDigestsAndLayers(t *testing.T) {
	runtime := program(t, elf.EM_X86_64, false)
	one := build(t, Spec{Runtime: runtime, Model: model(t, "weights"), Title: "Whale", License: "apache-2.0"})
	same := build(t, Spec{Runtime: runtime, Model: model(t, "weights"), Title: "Whale", License: "apache-2.0"})
	if digest(t, one) != digest(t, same) {
		t.Error("the same runtime and model have two digests")
	}
	other := build(t, Spec{Runtime: runtime, Model: model(t, "other weights"), Title: "Whale", License: "apache-2.0"})
	x, _ := one.Layers()
	y, _ := other.Layers()
	if len(x) != 3 || digest(t, x[0]) != digest(t, y[0]) || digest(t, x[1]) != digest(t, y[1]) || digest(t, x[2]) == digest(t, y[2]) {
		t.Error("another model changes more than the layer of its weights")
	}
	cf, err := one.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if c := cf.Config; c.User != "65532:65532" || fmt.Sprint(c.Entrypoint, c.Cmd) != "[/autoglm serve /model] [--listen 0.0.0.0:8080 --grpc 0.0.0.0:9000 --insecure]" || strings.Join(c.Healthcheck.Test, " ") != "CMD /autoglm health" || len(c.ExposedPorts) != 2 ||
		c.Labels["org.opencontainers.image.title"] != "Whale" || c.Labels["org.opencontainers.image.licenses"] != "apache-2.0" {
		t.Errorf("config %+v", c)
	}
	if cf.Architecture != "amd64" || cf.OS != "linux" || cf.Created.Unix() != 0 || len(cf.History) != 3 {
		t.Errorf("%s/%s, created %v, %d layers in the history", cf.OS, cf.Architecture, cf.Created, len(cf.History))
	}
	arm, err := build(t, Spec{Runtime: program(t, elf.EM_AARCH64, false), Model: model(t, "weights")}).ConfigFile()
	if err != nil || arm.Architecture != "arm64" {
		t.Errorf("architecture %v, %v", arm, err)
	}
}

func TestBuildRefuses(t *testing.T) {
	static := program(t, elf.EM_X86_64, false)
	if _, err := Build(Spec{Runtime: program(t, elf.EM_X86_64, true), Model: model(t, "w")}); !errors.Is(err, ErrDynamic) || !strings.Contains(err.Error(), "--runtime FILE") {
		t.Errorf("a dynamic binary: %v", err)
	}
	text := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(text, []byte("#!/bin/sh"), 0o600); err != nil {
		t.Fatal(err)
	}
	odd := model(t, "w")
	linked := t.TempDir() // as caches of models are
	for _, name := range []string{"config.json", "model.safetensors"} {
		if err := os.Symlink(filepath.Join(model(t, "w"), name), filepath.Join(linked, name)); err != nil {
			t.Fatal(err)
		}
	}
	build(t, Spec{Runtime: static, Model: linked})
	if err := os.Mkdir(filepath.Join(odd, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		spec Spec
		want string
	}{
		"script":  {Spec{Runtime: text, Model: model(t, "w")}, "no Linux binary"},
		"machine": {Spec{Runtime: program(t, elf.EM_RISCV, false), Model: model(t, "w")}, "EM_RISCV"},
		"nothing": {Spec{Runtime: static, Model: t.TempDir()}, "no bundle"},
		"folder":  {Spec{Runtime: static, Model: odd}, "sub"},
	} {
		if _, err := Build(c.spec); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	dir := model(t, "w")
	if err := WriteLayout(dir, "a:1", build(t, Spec{Runtime: static, Model: dir})); err == nil || !strings.Contains(err.Error(), "no image") {
		t.Errorf("a folder of something else is replaced: %v", err)
	}
}

// tree is every file of a folder with its bytes.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	m := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		m[strings.TrimPrefix(path, dir)] = string(raw)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestLayoutAndArchiveAreReproducible(t *testing.T) {
	root := t.TempDir()
	runtime := program(t, elf.EM_X86_64, false)
	var layouts []map[string]string
	var archives []string
	for _, name := range []string{"one", "two", "two"} { // the third replaces
		img := build(t, Spec{Runtime: runtime, Model: model(t, "w")})
		dir, file := filepath.Join(root, name), filepath.Join(root, name+".tar")
		if err := WriteLayout(dir, "whale:1", img); err != nil {
			t.Fatal(err)
		}
		if err := WriteArchive(file, "whale:1", img); err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		layouts, archives = append(layouts, tree(t, dir)), append(archives, string(raw))
	}
	for i := range layouts {
		if fmt.Sprint(layouts[i]) != fmt.Sprint(layouts[0]) || archives[i] != archives[0] {
			t.Error("two writes differ")
		}
	}
}

// A model that changes while its image is written leaves no image.
func TestModelChangesMeanwhile(t *testing.T) {
	root := t.TempDir()
	dir := model(t, "weights")
	img := build(t, Spec{Runtime: program(t, elf.EM_X86_64, false), Model: dir})
	if err := os.WriteFile(filepath.Join(dir, "model.safetensors"), []byte("weightt"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := WriteLayout(filepath.Join(root, "lay"), "a:1", img); err == nil {
		t.Error("a layout of two models is written")
	}
	if err := WriteArchive(filepath.Join(root, "a.tar"), "aa:1", img); err == nil {
		t.Error("an archive of two models is written")
	}
	if left, err := os.ReadDir(root); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestCheckFindsOneByte(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lay")
	if err := WriteLayout(dir, "a:1", build(t, Spec{Runtime: program(t, elf.EM_X86_64, false), Model: model(t, "w")})); err != nil {
		t.Fatal(err)
	}
	if err := Layout(dir).Check(); err != nil {
		t.Fatal(err)
	}
	img, err := Layout(dir).Image(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img); err != nil {
		t.Error(err)
	}
	for name, text := range tree(t, filepath.Join(dir, "blobs", "sha256")) {
		path := filepath.Join(dir, "blobs", "sha256", name)
		bad := []byte(text)
		bad[len(bad)/2] ^= 1
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Layout(dir).Check(); err == nil {
			t.Errorf("a changed byte of %s is not noticed", name)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Layout(dir).Check(); err != nil {
		t.Error(err)
	}
}

// serveRegistry is a registry of this process, and counts the blobs that it is sent.
func serveRegistry(t *testing.T) (host string, uploads func() int) {
	t.Helper()
	var mu sync.Mutex
	n := 0
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/blobs/uploads/") {
			mu.Lock()
			n++
			mu.Unlock()
		}
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://"), func() int {
		mu.Lock()
		defer mu.Unlock()
		defer func() { n = 0 }()
		return n
	}
}

func TestPush(t *testing.T) {
	host, uploads := serveRegistry(t)
	runtime := program(t, elf.EM_X86_64, false)
	push := func(weights, tag string) (*Registry, v1.Hash) {
		dir := Layout(filepath.Join(t.TempDir(), "lay"))
		img := build(t, Spec{Runtime: runtime, Model: model(t, weights)})
		if err := WriteLayout(string(dir), "whale:1", img); err != nil {
			t.Fatal(err)
		}
		// Any image will do as what is attached.
		if err := dir.Attach(t.Context(), v1.Hash{}, Signatures, build(t, Spec{Runtime: runtime, Model: model(t, "signature of "+weights)})); err != nil {
			t.Fatal(err)
		}
		r, err := NewRegistry(host+"/me/whale:"+tag, Options{})
		if err != nil {
			t.Fatal(err)
		}
		h, err := Copy(t.Context(), dir, r)
		if err != nil {
			t.Fatal(err)
		}
		return r, h
	}
	r, h := push("one", "1")
	if n := uploads(); n != 6 { // runtime, configuration, two weights, two configs
		t.Errorf("%d blobs were sent, want 6", n)
	}
	img, err := r.Image(t.Context())
	if err != nil || digest(t, img) != h.String() {
		t.Fatalf("the registry has another image: %v", err)
	}
	if err := validate.Image(img); err != nil {
		t.Error(err)
	}
	sig, err := r.Attached(t.Context(), h, Signatures)
	if err != nil || sig == nil {
		t.Errorf("the signature was not pushed: %v", err)
	}
	if att, err := r.Attached(t.Context(), h, Attestations); err != nil || att != nil {
		t.Errorf("attestations out of nowhere: %v, %v", att, err)
	}
	if _, _ = push("two", "2"); uploads() != 4 { // its weights and config, and the signature's
		t.Error("a second model of the runtime sends more than the model")
	}
}

func TestPlainHTTP(t *testing.T) {
	for host, want := range map[string]bool{"localhost": true, "127.0.0.1": true, "::1": true, "10.0.0.5": false, "registry.local": false} {
		if loopback(host) != want {
			t.Errorf("%s is this machine: %t", host, !want)
		}
	}
	r, err := NewRegistry("10.255.255.1:5000/me/whale:1", Options{})
	if err != nil {
		t.Fatal(err)
	}
	g := &guard{next: http.DefaultTransport}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://10.255.255.1:5000/v2/", nil)
	if _, err := g.RoundTrip(req); err == nil || !strings.Contains(err.Error(), "--insecure") {
		t.Errorf("%s: %v", r, err)
	}
}

func TestLayoutRefuses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lay")
	img := build(t, Spec{Runtime: program(t, elf.EM_X86_64, false), Model: model(t, "w")})
	if err := WriteLayout(dir, "a:1", img); err != nil {
		t.Fatal(err)
	}
	if IsLayout(t.TempDir()) || !IsLayout(dir) || Layout(dir).Name() != "a:1" {
		t.Error("a layout is not known")
	}
	path := filepath.Join(dir, indexFile)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(raw, &index); err != nil {
		t.Fatal(err)
	}
	for want, manifests := range map[string][]v1.Descriptor{"several": {index.Manifests[0], index.Manifests[0]}, "no image": {}} {
		index.Manifests = manifests
		raw, err := json.Marshal(index)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Layout(dir).Image(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// tool is a program of the system, which tests may lack.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		why := name + " is not installed: apt-get install skopeo umoci runc"
		if os.Getenv("AUTOGLM_REQUIRE") != "" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	return path
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	c := exec.CommandContext(t.Context(), name, args...)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", filepath.Base(name), strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out)
}

// Other people's tools read the image, unpack it and run it as nobody.
func TestContainer(t *testing.T) {
	skopeo, umoci, runc := tool(t, "skopeo"), tool(t, "umoci"), tool(t, "runc")
	if os.Getuid() != 0 {
		t.Skip("unpacking an image with its owners wants root")
	}
	dir := t.TempDir()
	probe := filepath.Join(dir, "probe")
	c := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", probe, "./testdata/probe")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	img := build(t, Spec{Runtime: probe, Model: model(t, "w"), Title: "Whale"})
	layout, archive := filepath.Join(dir, "lay"), filepath.Join(dir, "img.tar")
	if err := errors.Join(WriteLayout(layout, "1", img), WriteArchive(archive, "whale:1", img)); err != nil {
		t.Fatal(err)
	}
	for _, place := range []string{"oci:" + layout + ":1", "docker-archive:" + archive} {
		var seen struct {
			Labels map[string]string
			Layers []string
		}
		if err := json.Unmarshal([]byte(run(t, skopeo, "inspect", place)), &seen); err != nil {
			t.Fatal(err)
		}
		if seen.Labels["org.opencontainers.image.title"] != "Whale" || len(seen.Layers) != 3 {
			t.Errorf("skopeo sees %+v in %s", seen, place)
		}
	}
	bundle := filepath.Join(dir, "bundle")
	run(t, umoci, "unpack", "--image", layout+":1", bundle)
	config := filepath.Join(bundle, "config.json")
	var spec map[string]any
	raw, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &spec); err != nil {
		t.Fatal(err)
	}
	spec["process"].(map[string]any)["terminal"] = false
	spec["root"].(map[string]any)["readonly"] = true
	if raw, err = json.Marshal(spec); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	out := run(t, runc, "--root", filepath.Join(dir, "state"), "run", "--bundle", bundle, fmt.Sprintf("autoglm-test-%d", os.Getpid()))
	for _, want := range []string{"uid 65532 gid 65532", "args /autoglm serve /model --listen 0.0.0.0:8080 --grpc 0.0.0.0:9000 --insecure", `model {"a": 1} <nil>`, "writable false"} {
		if !strings.Contains(out, want) {
			t.Errorf("the container says %q, lacks %q", out, want)
		}
	}
}
