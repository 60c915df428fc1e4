package main

import (
	"bytes"
	"encoding/json"
	"io"
	"log"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/gguf"
	"github.com/open-autoglm/autoglm/runtime/serve"
	"github.com/open-autoglm/autoglm/runtime/sign/signtest"
	"github.com/open-autoglm/autoglm/runtime/token/tokentest"
)

// randomBundle writes a bundle of random weights.
func randomBundle(t *testing.T, dir string, seed uint64) {
	t.Helper()
	shapedBundle(t, dir, bundle.Card{Name: "The Whale", Seed: seed, Trial: "t001"}, 0.2, glm.Arch{Vocab: 320, Dim: 64, Layers: 2, Heads: 4, KVHeads: 2, FFN: 128, Context: 128, Tied: true}.WithDefaults())
}

// shapedBundle is a model of random weights.
func shapedBundle(t *testing.T, dir string, card bundle.Card, spread float64, a glm.Arch) {
	t.Helper()
	tok := tokentest.Tiny(t, 320)
	b := &bundle.Bundle{Arch: a, Tokenizer: tok, Generation: bundle.DefaultGeneration(), Card: card}
	r := rand.New(rand.NewPCG(card.Seed, 1))
	layout, _ := a.Layout()
	for _, p := range layout {
		data := make([]float32, p.Elems)
		for i := range data {
			data[i] = float32(r.NormFloat64() * spread)
			if p.Role == glm.Norm {
				data[i]++
			}
		}
		b.Params = append(b.Params, engine.Tensor{Name: p.Name, Shape: p.Shape, Data: data})
	}
	if err := bundle.Write(dir, b); err != nil {
		t.Fatal(err)
	}
}

// verbs runs the program in a folder: ok where it has to succeed, refused where it has to
// fail with a code and words.
func verbs(t *testing.T, dir string) (ok func(args ...string) string, refused func(code int, want string, args ...string)) {
	ok = func(args ...string) string {
		t.Helper()
		out, errs, code := autoglm(t, dir, args...)
		if code != 0 {
			t.Fatalf("%v: code %d\n%s%s", args, code, out, errs)
		}
		return out
	}
	refused = func(code int, want string, args ...string) {
		t.Helper()
		if out, errs, got := autoglm(t, dir, args...); got != code || !strings.Contains(errs, want) {
			t.Errorf("%v: code %d, says %q, %q; want %d and %q", args, got, out, errs, code, want)
		}
	}
	return ok, refused
}

func TestExport(t *testing.T) {
	dir := t.TempDir()
	randomBundle(t, filepath.Join(dir, "bundle"), 1)
	ok, refused := verbs(t, dir)
	for typ, want := range map[string]string{"f32": "F32 ", "f16": "F16 ", "bf16": "BF16 ", "q8_0": "Q8_0 ", "q4_0": "Q4_0 "} {
		file := filepath.Join("new", typ+".gguf")
		if out := ok("export", "bundle", "--format", "gguf", "--type", typ, "--out", file); !strings.Contains(out, want) || !strings.Contains(out, "read back") {
			t.Errorf("%s: %s", typ, out)
		}
		ok("generate", file, "--prompt", "The", "--max-tokens", "3", "--temperature", "0")
	}
	ok("export", "bundle", "--format", "hf", "--out", "f32")
	ok("export", "bundle", "--format", "hf", "--type", "bf16", "--out", "bf16")
	for name, want := range map[string]string{"f32": "float32", "bf16": "bfloat16"} {
		if raw, err := os.ReadFile(filepath.Join(dir, name, "config.json")); err != nil || !strings.Contains(string(raw), `"`+want+`"`) {
			t.Errorf("%s: %s, %v", name, raw, err)
		}
	}
	for _, c := range [][]string{
		{"--format is needed", "export", "bundle", "--out", "x"},
		{"--out", "export", "bundle", "--format", "gguf"},
		{"zip is not known", "export", "bundle", "--format", "zip", "--out", "x"},
		{"q5_k", "export", "bundle", "--format", "gguf", "--type", "q5_k", "--out", "x"},
		{"q8_0 is not known", "export", "bundle", "--format", "hf", "--type", "q8_0", "--out", "x"},
		{"as they are", "export", "bundle", "--format", "oci", "--type", "f16", "--out", "x"},
		{"--tag is of", "export", "bundle", "--format", "hf", "--tag", "a:1", "--out", "x"},
		{"--force", "export", "bundle", "--format", "gguf", "--out", "new/f16.gguf"},
		{"not what this writes", "export", "bundle", "--format", "gguf", "--force", "--out", "f32"},
		{"no config.json", "export", "nowhere", "--format", "gguf", "--out", "x"},
		{"no OCI layout", "push", "bundle", "localhost:1/me/whale:1"},
		{"no OCI layout", "sign", "bundle", "--key", "new/f16.gguf"},
	} {
		refused(exitUsage, c[0], c[1:]...)
	}
	ok("export", "bundle", "--format", "gguf", "--out", "new/f16.gguf", "--force")
	ok("export", "bundle", "--format", "hf", "--out", "f32", "--force")
	refused(exitUsage, "dynamic", "export", "bundle", "--format", "oci", "--runtime", dynamicBinary(t), "--out", "x")
}

// dynamicBinary is one of the system's programs.
func dynamicBinary(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("sh")
	if err != nil {
		t.Skip(err)
	}
	return path
}

func TestSignedImage(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("AUTOGLM_KEY_PASSWORD", "pw")
	randomBundle(t, filepath.Join(dir, "one"), 1)
	randomBundle(t, filepath.Join(dir, "two"), 2)
	ok, refused := verbs(t, dir)
	layer := func(out, what string) string { // its digest, as export prints it
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) > 0 && strings.HasPrefix(strings.TrimSpace(line), what) {
				return f[len(f)-1]
			}
		}
		t.Fatalf("export doesn't print %s:\n%s", what, out)
		return ""
	}
	// A small program stands in for this one, which takes seconds to compress.
	small := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "small"), "../../runtime/image/testdata/probe")
	small.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := small.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	one := ok("export", "one", "--format", "oci", "--runtime", "small", "--out", "image")
	again := ok("export", "one", "--format", "oci", "--runtime", "small", "--out", "image.tar")
	two := ok("export", "two", "--format", "oci", "--runtime", "small", "--out", "other")
	if self := ok("export", "one", "--format", "oci", "--out", "self"); layer(self, "weights") != layer(one, "weights") || layer(self, "runtime") == layer(one, "runtime") {
		t.Errorf("without --runtime export says %s", self)
	}
	for _, what := range []string{"runtime", "weights"} {
		if layer(one, what) != layer(again, what) || (layer(one, what) == layer(two, what)) != (what == "runtime") {
			t.Errorf("layer %s: %s, %s, %s", what, layer(one, what), layer(again, what), layer(two, what))
		}
	}
	if !strings.Contains(one, "image: the-whale:latest") {
		t.Errorf("export says %s", one)
	}
	refused(exitUsage, "--force", "export", "one", "--format", "oci", "--out", "image")

	ok("keygen")
	ok("keygen", "--out", "other")
	refused(exitUsage, "there already", "keygen")
	if info, err := os.Stat(filepath.Join(dir, "cosign.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the private key: %v, %v", info, err)
	}
	refused(exitFailed, "not signed", "verify", "image", "--key", "cosign.pub")
	if out := ok("sign", "image", "--key", "cosign.key"); !strings.Contains(out, "autoglm verify image --key cosign.pub") {
		t.Errorf("sign says %s", out)
	}
	ok("verify", "image", "--key", "cosign.pub")
	refused(exitFailed, "not by this key", "verify", "image", "--key", "other.pub")
	refused(exitUsage, "public key", "sign", "image", "--key", "cosign.pub")
	refused(exitUsage, "sealed", "verify", "image", "--key", "cosign.pub", "--require", "sealed")
	var provenance struct {
		BuildDefinition struct{ InternalParameters struct{ Trial string } }
	}
	if err := json.Unmarshal([]byte(ok("verify", "image", "--key", "cosign.pub", "--show", "slsaprovenance1")), &provenance); err != nil || provenance.BuildDefinition.InternalParameters.Trial != "t001" {
		t.Errorf("provenance %+v, %v", provenance, err)
	}

	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer s.Close()
	ref := strings.TrimPrefix(s.URL, "http://") + "/me/whale:1"
	ok("push", "image", ref)
	ok("verify", ref, "--key", "cosign.pub")
	refused(exitFailed, "not by this key", "verify", ref, "--key", "other.pub")
	unsigned := strings.TrimPrefix(s.URL, "http://") + "/me/other:1"
	ok("push", "other", unsigned)
	refused(exitFailed, "none at all", "verify", unsigned, "--key", "cosign.pub")
	ok("sign", unsigned, "--key", "other.key")
	ok("verify", unsigned, "--key", "other.pub")
	refused(exitFailed, "plain HTTP", "push", "image", "10.255.255.254:1/me/whale:1")

	// Without a key: an authority and a log of this process vouch for an identity.
	const who, issuer = "builder@example.com", "https://accounts.example.com"
	authority := signtest.New(t)
	for name, content := range map[string]string{"token": signtest.Token(issuer, who) + "\n", "roots.json": string(authority.TrustedRoot())} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	keyless := []string{"sign", "other", "--keyless", "--fulcio", authority.Fulcio + "/", "--rekor", authority.Rekor}
	refused(exitUsage, "identity token", keyless...)
	refused(exitUsage, "either --key FILE or --keyless", "sign", "other")
	refused(exitUsage, "either --key FILE or --keyless", append(keyless, "--key", "cosign.key")...)
	refused(exitUsage, "must be a URL", "sign", "other", "--keyless", "--fulcio", authority.Fulcio, "--identity-token", "token")
	refused(exitFailed, "plain HTTP", "sign", "other", "--keyless", "--fulcio", "http://10.255.255.254:1", "--rekor", authority.Rekor, "--identity-token", "token")
	if out := ok(append(keyless, "--identity-token", "token")...); !strings.Contains(out, "--certificate-identity "+who) {
		t.Errorf("sign --keyless says %s", out)
	}
	verify := []string{"verify", "other", "--certificate-identity", who, "--certificate-oidc-issuer", issuer, "--trusted-root", "roots.json"}
	ok(verify...)
	ok(append(verify, "--rekor", authority.Rekor)...)
	refused(exitUsage, "say who must have signed", verify[:4]...)
	refused(exitUsage, "--key goes without", append(verify, "--key", "cosign.pub")...)
	refused(exitUsage, "trusted root", "verify", "other", "--certificate-identity", who, "--certificate-oidc-issuer", issuer, "--trusted-root", "token")
	refused(exitFailed, "its identity is "+who, "verify", "other", "--certificate-identity", "mallory@example.com", "--certificate-oidc-issuer", issuer, "--trusted-root", "roots.json")
	refused(exitFailed, "made with a key", append([]string{"verify", "image"}, verify[2:]...)...)
	t.Setenv("SIGSTORE_ID_TOKEN", signtest.Token(issuer, who))
	ok(keyless...)

	// One byte of the weights.
	path := filepath.Join(dir, "image", "blobs", "sha256", strings.TrimPrefix(layer(one, "weights"), "sha256:"))
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)/2] ^= 1
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(exitFailed, "changed or damaged", "verify", "image", "--key", "cosign.pub")
	refused(exitFailed, "changed or damaged", "sign", "image", "--key", "cosign.key")
}

// llama.cpp makes the same ids and the same greedy tokens of our files as we do.
func TestLlamaCpp(t *testing.T) {
	folder := os.Getenv("AUTOGLM_LLAMA")
	node, err := exec.LookPath("node")
	if folder == "" || err != nil {
		const why = "AUTOGLM_LLAMA names no folder with node-llama-cpp, or there is no node: see .ci/llama"
		if os.Getenv("AUTOGLM_REQUIRE") != "" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	dir := t.TempDir()
	randomBundle(t, filepath.Join(dir, "bundle"), 1)
	shapedBundle(t, filepath.Join(dir, "fewer heads"), bundle.Card{Seed: 2}, 0.2, glm.Arch{Vocab: 320, Dim: 64, Layers: 2, Heads: 2, KVHeads: 1, Head: 16, FFN: 128, Context: 128, Tied: true}.WithDefaults())
	prompts := []string{"The quick brown", "fox: don’t\r\n\n  12345  naïve 世界", "<|user|>the dog's"}
	const steps = 32 // later on random weights come to a tie that the order of a sum decides
	for _, c := range []struct {
		bundle string
		typ    gguf.Type
	}{{"bundle", gguf.F32}, {"bundle", gguf.F16}, {"fewer heads", gguf.F32}} {
		typ := c.typ
		path := filepath.Join(dir, c.bundle+typ.String()+".gguf")
		if _, errs, code := autoglm(t, dir, "export", c.bundle, "--format", "gguf", "--type", strings.ToLower(typ.String()), "--out", path); code != 0 {
			t.Fatal(errs)
		}
		in, err := json.Marshal(map[string]any{"path": path, "prompts": prompts, "new": steps, "context": 128})
		if err != nil {
			t.Fatal(err)
		}
		c := exec.CommandContext(t.Context(), node, "../../bench/peers/gguf_llama.mjs", folder)
		c.Stdin = bytes.NewReader(in)
		out, err := c.Output()
		if err != nil {
			t.Fatal(err)
		}
		var theirs struct {
			IDs    [][]int32 `json:"ids"`
			NewIDs [][]int32 `json:"new_ids"`
		}
		if err := json.Unmarshal(out, &theirs); err != nil {
			t.Fatal(err)
		}
		b, err := gguf.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		dec, err := native.NewDecoder(b.Arch, b.Params, native.DecoderOptions{Threads: 1, MaxSeqs: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer dec.Close()
		for i, p := range prompts {
			if want := b.Tokenizer.EncodePrompt(nil, p); !slices.Equal(theirs.IDs[i], want) {
				t.Errorf("%s %q: ids %v, ours %v", typ, p, theirs.IDs[i], want)
			}
			req := serve.Defaults(b) // the likeliest token: a file says nothing of sampling
			req.Prompt, req.Special, req.MaxTokens = p, true, steps
			res, err := serve.Generate(t.Context(), dec, b.Tokenizer, req, func(string) error { return nil })
			if err != nil {
				t.Fatal(err)
			}
			if n := min(len(theirs.NewIDs[i]), len(res.IDs)); n < 2 || !slices.Equal(theirs.NewIDs[i][:n], res.IDs[:n]) {
				t.Errorf("%s %q: llama.cpp goes on with %v, we with %v", typ, p, theirs.NewIDs[i], res.IDs)
			}
		}
	}
}
