package sign

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	spdxjson "github.com/spdx/tools-golang/json"

	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/image"
)

const password = "correct horse"

type keyPair struct {
	private, public []byte
	signer          *Signer
}

// pair is made once: opening a key is meant to take long.
var pair = sync.OnceValues(func() (p keyPair, err error) {
	if p.private, p.public, err = GenerateKey([]byte(password)); err == nil {
		p.signer, err = ParsePrivate(p.private, []byte(password))
	}
	return p, err
})

func keys(t *testing.T) (private, public []byte, s *Signer) {
	t.Helper()
	p, err := pair()
	if err != nil {
		t.Fatal(err)
	}
	return p.private, p.public, p.signer
}

var tinyRuntime = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "autoglm-sign")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "runtime")
	c := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "../image/testdata/probe")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := c.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return path, err
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := tinyRuntime(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

var card = bundle.Card{
	Name: "Whale", Task: "text-generation", License: "apache-2.0", Seed: 42, Job: "0a1b", Trial: "t007", Limits: []string{"short texts"},
	Data:     []bundle.DataSource{{Name: "mobydick.txt", Files: 1, Bytes: 100, SHA256: strings.Repeat("ab", 32), License: "public domain"}},
	Scores:   []bundle.Score{{Name: "bits per byte", Value: 2.5, On: "held-out part"}},
	Versions: []bundle.Version{{Name: "autoglm", Version: "v1.2.3"}},
}

// exported is a layout of a small image.
func exported(t *testing.T, weights string) image.Layout {
	t.Helper()
	runtime, err := tinyRuntime()
	if err != nil {
		t.Fatal(err)
	}
	model := t.TempDir()
	data, err := json.Marshal(card)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"config.json": "{}", "card.json": string(data), "model.safetensors": weights} {
		if err := os.WriteFile(filepath.Join(model, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	img, err := image.Build(image.Spec{Runtime: runtime, Model: model, Title: "Whale"})
	if err != nil {
		t.Fatal(err)
	}
	dir := image.Layout(filepath.Join(t.TempDir(), "lay"))
	if err := image.WriteLayout(string(dir), "whale:1", img); err != nil {
		t.Fatal(err)
	}
	return dir
}

// hub is a registry of this process.
func hub(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func remote(t *testing.T, ref string) *image.Registry {
	t.Helper()
	r, err := image.NewRegistry(ref, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSignAndVerify(t *testing.T) {
	_, _, s := keys(t)
	other, _, err := GenerateKey(nil) // an empty password is one
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := ParsePrivate(other, nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := exported(t, "weights")
	host := hub(t)
	pushed := remote(t, host+"/me/whale:pushed")
	direct := remote(t, host+"/you/whale:direct")
	if _, err := image.Copy(t.Context(), dir, direct); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second replaces
		for _, place := range []image.Place{dir, direct} {
			if _, err := Sign(t.Context(), place, s, time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := image.Copy(t.Context(), dir, pushed); err != nil {
		t.Fatal(err)
	}
	for name, place := range map[string]image.Place{"layout": dir, "pushed": pushed, "signed there": direct} {
		r, err := Verify(t.Context(), place, Key(s.Public()), Predicates())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if r.Signatures != 1 || len(r.Attestations) != 3 {
			t.Errorf("%s: %d signatures, %d attestations", name, r.Signatures, len(r.Attestations))
		}
		if _, err := Verify(t.Context(), place, Key(stranger.Public()), nil); !errors.Is(err, ErrUnsigned) || !strings.Contains(err.Error(), "not by this key") {
			t.Errorf("%s: another key: %v", name, err)
		}
	}
	if err := dir.Check(); err != nil {
		t.Error(err)
	}
	// Others' signatures stay.
	if _, err := Sign(t.Context(), dir, stranger, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	for _, key := range []*Signer{s, stranger} {
		if _, err := Verify(t.Context(), dir, Key(key.Public()), Predicates()); err != nil {
			t.Error(err)
		}
	}
}

func TestVerifyRefuses(t *testing.T) {
	_, _, s := keys(t)
	dir := exported(t, "weights")
	if _, err := Verify(t.Context(), dir, Key(s.Public()), nil); !errors.Is(err, ErrUnsigned) || !strings.Contains(err.Error(), "none at all") {
		t.Errorf("unsigned: %v", err)
	}
	f, err := Sign(t.Context(), dir, s, time.Unix(1, 0))
	if err != nil {
		t.Fatal(err)
	}
	// What signs one image signs no other.
	for _, kind := range []image.Kind{image.Signatures, image.Attestations} {
		other := exported(t, "other weights")
		if _, err := Sign(t.Context(), other, s, time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		img, err := dir.Attached(t.Context(), v1.Hash{}, kind)
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Attach(t.Context(), v1.Hash{}, kind, img); err != nil {
			t.Fatal(err)
		}
		if _, err := Verify(t.Context(), other, Key(s.Public()), Predicates()); !errors.Is(err, ErrUnsigned) {
			t.Errorf("%s of another image: %v", kind, err)
		}
	}
	if _, err := Verify(t.Context(), dir, Key(s.Public()), []string{"https://example.com/other"}); !errors.Is(err, ErrUnsigned) {
		t.Errorf("an attestation that isn't there: %v", err)
	}
	// One byte of a payload, a signature or an envelope.
	for _, kind := range []image.Kind{image.Signatures, image.Attestations} {
		img, err := dir.Attached(t.Context(), v1.Hash{}, kind)
		if err != nil {
			t.Fatal(err)
		}
		layers, err := layersOf(img)
		if err != nil {
			t.Fatal(err)
		}
		bad := slices.Clone(layers)
		if kind == image.Signatures {
			sig, _ := base64.StdEncoding.DecodeString(bad[0].annotations[signatureKey])
			sig[len(sig)-1] ^= 1
			bad[0].annotations = maps.Clone(bad[0].annotations)
			bad[0].annotations[signatureKey] = base64.StdEncoding.EncodeToString(sig)
		} else {
			bad[2].content = []byte(strings.Replace(string(bad[2].content), `"payload":"ey`, `"payload":"eY`, 1))
		}
		if img, err = imageOf(bad); err != nil {
			t.Fatal(err)
		}
		if err := dir.Attach(t.Context(), v1.Hash{}, kind, img); err != nil {
			t.Fatal(err)
		}
		if _, err := Verify(t.Context(), dir, Key(s.Public()), Predicates()); !errors.Is(err, ErrUnsigned) {
			t.Errorf("a changed byte of %s: %v", kind, err)
		}
		if img, err = imageOf(layers); err != nil {
			t.Fatal(err)
		}
		if err := dir.Attach(t.Context(), v1.Hash{}, kind, img); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Verify(t.Context(), dir, Key(s.Public()), Predicates()); err != nil {
		t.Errorf("%s: %v", f.Digest, err)
	}
}

func TestPredicates(t *testing.T) {
	_, _, s := keys(t)
	dir := exported(t, "weights")
	if _, err := Sign(t.Context(), dir, s, time.Date(2026, 11, 28, 0, 0, 0, 0, time.UTC)); err != nil {
		t.Fatal(err)
	}
	r, err := Verify(t.Context(), dir, Key(s.Public()), Predicates())
	if err != nil {
		t.Fatal(err)
	}
	doc, err := spdxjson.Read(strings.NewReader(string(r.Attestations[SPDX])))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range doc.Packages {
		names = append(names, p.PackageName)
	}
	if doc.CreationInfo.Created != "2026-11-28T00:00:00Z" || !slices.Contains(names, "std") || !slices.Contains(names, "github.com/open-autoglm/autoglm") || len(doc.Relationships) != len(names) {
		t.Errorf("SPDX of %s: %v", doc.CreationInfo.Created, names)
	}
	var bom cdx.BOM
	if err := cdx.NewBOMDecoder(strings.NewReader(string(r.Attestations[CycloneDX])), cdx.BOMFileFormatJSON).Decode(&bom); err != nil {
		t.Fatal(err)
	}
	m := bom.Metadata.Component
	if m.Type != cdx.ComponentTypeMachineLearningModel || m.Name != "Whale" || (*m.ModelCard.QuantitativeAnalysis.PerformanceMetrics)[0].Value != "2.5" || (*m.ModelCard.ModelParameters.Datasets)[0].Ref != "data-0" {
		t.Errorf("CycloneDX %+v", m)
	}
	var p provenance
	if err := json.Unmarshal(r.Attestations[Provenance], &p); err != nil {
		t.Fatal(err)
	}
	d := p.BuildDefinition
	if d.ExternalParameters.Job != "0a1b" || *d.ExternalParameters.Seed != 42 || d.InternalParameters.Trial != "t007" || d.ResolvedDependencies[0].Digest["sha256"] != strings.Repeat("ab", 32) ||
		p.RunDetails.Builder.Version["autoglm"] != "v1.2.3" || len(p.RunDetails.Byproducts) != 4 {
		t.Errorf("provenance %+v", p)
	}
}

func TestKeys(t *testing.T) {
	private, public, s := keys(t)
	if _, err := ParsePrivate(private, []byte("wrong")); !errors.Is(err, ErrPassword) {
		t.Errorf("a wrong password: %v", err)
	}
	key, err := ParsePublic(public)
	if err != nil || !key.Equal(s.Public()) {
		t.Errorf("the public key is another one: %v", err)
	}
	block, _ := pem.Decode(private)
	block.Type = oldPrivateType
	if _, err := ParsePrivate(pem.EncodeToMemory(block), []byte(password)); err != nil {
		t.Errorf("cosign's older type: %v", err)
	}
	for want, f := range map[string]func() error{
		"not PEM":    func() error { _, err := ParsePrivate([]byte("x"), nil); return err },
		"public key": func() error { _, err := ParsePrivate(public, nil); return err },
		"takes the":  func() error { _, err := ParsePublic(private); return err },
	} {
		if err := f(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func FuzzEnvelope(f *testing.F) {
	private, _, err := GenerateKey(nil)
	if err != nil {
		f.Fatal(err)
	}
	s, err := ParsePrivate(private, nil)
	if err != nil {
		f.Fatal(err)
	}
	digest := fmt.Sprintf("%064d", 1)
	f.Add([]byte(`{"payloadType":"application/vnd.in-toto+json","payload":"e30=","signatures":[{"sig":"AA=="}]}`), digest)
	f.Add([]byte(`{"critical":{"image":{"docker-manifest-digest":"sha256:00"},"type":"x"}}`), "")
	f.Fuzz(func(t *testing.T, content []byte, hex string) {
		h := v1.Hash{Algorithm: "sha256", Hex: hex}
		if _, err := checkAttestation(t.Context(), layer{envelopeMedia, content, nil}, Key(s.Public()), h); err == nil {
			t.Fatal("an envelope that nobody signed is accepted")
		}
		if checkSignature(t.Context(), layer{payloadMedia, content, map[string]string{signatureKey: hex}}, Key(s.Public()), h) == nil {
			t.Fatal("a payload that nobody signed is accepted")
		}
	})
}

func FuzzKeys(f *testing.F) {
	private, public, err := GenerateKey(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(public)
	f.Add(private[:len(private)/2])
	f.Fuzz(func(_ *testing.T, file []byte) {
		_, _ = ParsePublic(file)
		if block, _ := pem.Decode(file); block == nil || block.Type == publicType {
			_, _ = ParsePrivate(file, nil) // others cost a scrypt each
		}
	})
}
