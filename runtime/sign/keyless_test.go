package sign

import (
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/open-autoglm/autoglm/runtime/image"
	"github.com/open-autoglm/autoglm/runtime/sign/signtest"
)

const (
	somebody = "builder@example.com"
	issuer   = "https://accounts.example.com"
)

func keyless(t *testing.T, s *signtest.Sigstore, who string) *Signer {
	t.Helper()
	signer, err := Keyless{Fulcio: s.Fulcio, Rekor: s.Rekor, Token: signtest.Token(issuer, who), Client: http.DefaultClient}.Signer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

func trusted(t *testing.T, s *signtest.Sigstore) *TrustedRoot {
	t.Helper()
	root, err := ParseTrustedRoot(s.TrustedRoot())
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func TestKeyless(t *testing.T) {
	s := signtest.New(t)
	log := &Log{URL: s.Rekor, Client: http.DefaultClient}
	for _, who := range []string{somebody, "https://github.com/me/whale/.github/workflows/release.yaml@refs/heads/main"} {
		dir := exported(t, "weights")
		for range 2 { // the second replaces what the same identity signed
			signer := keyless(t, s, who)
			if _, err := Sign(t.Context(), dir, signer, time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
			if subject, from := signer.Identity(); subject != who || from != issuer {
				t.Errorf("signed as %s of %s", subject, from)
			}
		}
		place := remote(t, hub(t)+"/autoglm/whale:1")
		if _, err := image.Copy(t.Context(), dir, place); err != nil {
			t.Fatal(err)
		}
		v := Identity{Subject: who, Issuer: issuer, Root: trusted(t, s)}
		for _, p := range []image.Place{dir, place} {
			for _, v.Log = range []*Log{nil, log} {
				r, err := Verify(t.Context(), p, v, Predicates())
				if err != nil || r.Signatures != 1 || len(r.Attestations) != 3 {
					t.Errorf("%s: %+v, %v", who, r, err)
				}
			}
		}
	}
	if s.Certifications != 4 {
		t.Errorf("%d certificates for four signings", s.Certifications)
	}
}

// What isn't as it must be is refused, and the error says what.
func TestKeylessRefused(t *testing.T) {
	s := signtest.New(t)
	other := signtest.New(t)
	good := exported(t, "weights")
	if _, err := Sign(t.Context(), good, keyless(t, s, somebody), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	made, err := attached(t.Context(), good, v1.Hash{}, image.Signatures)
	if err != nil {
		t.Fatal(err)
	}
	signed := func(t *testing.T) image.Layout {
		dir := exported(t, "weights")
		if _, err := Sign(t.Context(), dir, keyless(t, s, somebody), time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	changed := func(change func(*layer)) func(*testing.T) image.Layout {
		return func(t *testing.T) image.Layout {
			l := made[0]
			l.annotations = maps.Clone(l.annotations)
			change(&l)
			img, err := imageOf([]layer{l})
			if err != nil {
				t.Fatal(err)
			}
			if err := good.Attach(t.Context(), v1.Hash{}, image.Signatures, img); err != nil {
				t.Fatal(err)
			}
			return good
		}
	}
	entry := func(change func(*logBundle)) func(*testing.T) image.Layout {
		return changed(func(l *layer) {
			var b logBundle
			if err := json.Unmarshal([]byte(l.annotations[bundleKey]), &b); err != nil {
				t.Fatal(err)
			}
			change(&b)
			raw, _ := json.Marshal(b)
			l.annotations[bundleKey] = string(raw)
		})
	}
	otherLayers := func() []layer {
		dir := exported(t, "weights")
		if _, err := Sign(t.Context(), dir, keyless(t, s, somebody), time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		l, err := attached(t.Context(), dir, v1.Hash{}, image.Signatures)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}()
	v := Identity{Subject: somebody, Issuer: issuer, Root: trusted(t, s)}
	for _, c := range []struct {
		name, want string
		dir        func(*testing.T) image.Layout
		by         func(*Identity)
	}{
		{"good", "", changed(func(*layer) {}), nil},
		{"wrong identity", "its identity is builder@example.com, not mallory@example.com", signed, func(v *Identity) { v.Subject = "mallory@example.com" }},
		{"wrong issuer", "vouched for by https://accounts.example.com, not https://evil.example.com", signed, func(v *Identity) { v.Issuer = "https://evil.example.com" }},
		{"expired certificate", "and the log saw the signature at", func(t *testing.T) image.Layout {
			s.Late = time.Hour
			defer func() { s.Late = 0 }()
			return signed(t)
		}, nil},
		{"changed signature", "the log recorded another signature", changed(func(l *layer) { l.annotations[signatureKey] = otherLayers[0].annotations[signatureKey] }), nil},
		{"changed payload", "the log recorded other content", changed(func(l *layer) { l.content = []byte(strings.Replace(string(l.content), "sha256:", "sha256:0", 1)) }), nil},
		{"changed certificate", "the log recorded another certificate", changed(func(l *layer) { l.annotations[certificateKey] = otherLayers[0].annotations[certificateKey] }), nil},
		{"another's entry", "the log recorded another signature", changed(func(l *layer) { l.annotations[bundleKey] = otherLayers[0].annotations[bundleKey] }), nil},
		{"changed time of the entry", "its entry isn't signed by the log", entry(func(b *logBundle) { b.Payload.Time++ }), nil},
		{"changed body of the entry", "its entry isn't signed by the log", entry(func(b *logBundle) { b.Payload.Body[len(b.Payload.Body)-1] = ' ' }), nil},
		{"changed promise", "its entry isn't signed by the log", entry(func(b *logBundle) { b.Promise[len(b.Promise)-1] ^= 1 }), nil},
		{"absent entry", "it has no entry of a transparency log", changed(func(l *layer) { delete(l.annotations, bundleKey) }), nil},
		{"entry of an unknown log", "which the trusted root doesn't name", entry(func(b *logBundle) { b.Payload.ID = strings.Repeat("0", 64) }), nil},
		{"no certificate", "it has no certificate", changed(func(l *layer) { delete(l.annotations, certificateKey) }), nil},
		{"no promise of the log of certificates", "no promise of a log of certificates (SCT)", func(t *testing.T) image.Layout {
			s.Unpublished = true
			defer func() { s.Unpublished = false }()
			return signed(t)
		}, nil},
		{"promise of another log of certificates", "of a log of certificates that the trusted root names", signed, func(v *Identity) {
			root := *v.Root
			root.ctlogs = trusted(t, other).ctlogs
			v.Root = &root
		}},
		{"other authorities", "of no authority of the trusted root", signed, func(v *Identity) {
			root := *v.Root
			root.authorities = trusted(t, other).authorities
			v.Root = &root
		}},
		{"the log proves another entry", "of the log is another one", func(t *testing.T) image.Layout {
			dir := signed(t)
			l, err := attached(t.Context(), dir, v1.Hash{}, image.Signatures)
			if err != nil {
				t.Fatal(err)
			}
			var b logBundle
			if err := json.Unmarshal([]byte(l[0].annotations[bundleKey]), &b); err != nil {
				t.Fatal(err)
			}
			s.Change(int(b.Payload.Index), []byte(`{}`))
			return dir
		}, func(v *Identity) { v.Log = &Log{URL: s.Rekor, Client: http.DefaultClient} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			by := v
			if c.by != nil {
				c.by(&by)
			}
			_, err := Verify(t.Context(), c.dir(t), by, nil)
			if c.want == "" && err == nil {
				return
			}
			if !errors.Is(err, ErrUnsigned) || c.want == "" || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
	if _, err := Verify(t.Context(), changed(func(*layer) {})(t), Key(keyless(t, s, somebody).Public()), nil); !errors.Is(err, ErrUnsigned) {
		t.Errorf("another key: %v", err)
	}
}

// A log that proves nothing, and an authority that refuses, are told at signing.
func TestKeylessServers(t *testing.T) {
	s := signtest.New(t)
	ask := func(k Keyless) error {
		k.Client = http.DefaultClient
		signer, err := k.Signer(t.Context())
		if err == nil {
			_, err = Sign(t.Context(), exported(t, "weights"), signer, time.Unix(1, 0))
		}
		return err
	}
	token := signtest.Token(issuer, somebody)
	for _, c := range []struct {
		want string
		k    Keyless
	}{
		{"three parts", Keyless{Fulcio: s.Fulcio, Rekor: s.Rekor, Token: "x"}},
		{"certificate from Fulcio: http", Keyless{Fulcio: s.Rekor, Rekor: s.Rekor, Token: token}},
		{"entry in Rekor: http", Keyless{Fulcio: s.Fulcio, Rekor: s.Fulcio, Token: token}},
	} {
		if err := ask(c.k); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
	if err := ask(Keyless{Fulcio: s.Fulcio, Rekor: s.Rekor, Token: token}); err != nil {
		t.Error(err)
	}
	for want, file := range map[string]string{
		"must begin with":    `{}`,
		"must name one each": `{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}`,
		"tlogs[0].publicKey": `{"mediaType":"application/vnd.dev.sigstore.trustedroot.v0.2+json","tlogs":[{}]}`,
	} {
		if _, err := ParseTrustedRoot([]byte(file)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func FuzzTrustedRoot(f *testing.F) {
	f.Add(signtest.New(f).TrustedRoot())
	f.Fuzz(func(_ *testing.T, file []byte) { _, _ = ParseTrustedRoot(file) })
}

func FuzzKeyless(f *testing.F) {
	s := signtest.New(f)
	root, err := ParseTrustedRoot(s.TrustedRoot())
	if err != nil {
		f.Fatal(err)
	}
	signer, err := Keyless{Fulcio: s.Fulcio, Rekor: s.Rekor, Token: signtest.Token(issuer, somebody), Client: http.DefaultClient}.Signer(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	digest := v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}
	l, err := newSignature(signer, "whale", digest)
	if err != nil {
		f.Fatal(err)
	}
	if l, err = signer.witnessed(f.Context(), l); err != nil {
		f.Fatal(err)
	}
	a := l.annotations
	f.Add(a[certificateKey], a[bundleKey], a[signatureKey])
	f.Fuzz(func(t *testing.T, certificate, entry, signature string) {
		l := layer{payloadMedia, l.content, map[string]string{certificateKey: certificate, bundleKey: entry, signatureKey: signature}}
		if checkSignature(t.Context(), l, Identity{Subject: "mallory@example.com", Issuer: issuer, Root: root}, digest) == nil {
			t.Fatal("accepted for another identity")
		}
	})
}
