package sign

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/open-autoglm/autoglm/runtime/image"
	"github.com/open-autoglm/autoglm/runtime/sign/signtest"
)

// roots are no authorities at all: without them cosign asks the network for some.
const roots = `{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1","tlogs":[],"certificateAuthorities":[],"ctlogs":[],"timestampAuthorities":[]}`

// cosign itself accepts what we sign, in a registry and in a layout, and refuses what we
// refuse; and we accept what it signs, with keys of its own.
func TestCosign(t *testing.T) {
	cosign := os.Getenv("AUTOGLM_COSIGN")
	if cosign == "" {
		const why = "AUTOGLM_COSIGN is unset: go install github.com/sigstore/cosign/v2/cmd/cosign@v2.6.5 takes ten minutes"
		if os.Getenv("AUTOGLM_REQUIRE") != "" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	private, public, s := keys(t)
	root := t.TempDir()
	file := func(name string, content []byte) string {
		path := filepath.Join(root, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	pub, nobody := file("ours.pub", public), file("roots.json", []byte(roots))
	run := func(args ...string) (string, error) {
		c := exec.CommandContext(t.Context(), cosign, args...)
		c.Dir = root
		c.Env = append(os.Environ(), "COSIGN_PASSWORD="+password)
		out, err := c.CombinedOutput()
		return string(out), err
	}
	verified := func(want bool, args ...string) {
		t.Helper()
		out, err := run(append(args, "--trusted-root", nobody, "--insecure-ignore-tlog=true")...)
		if (err == nil) != want {
			t.Errorf("cosign %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}

	dir := exported(t, "weights")
	if _, err := Sign(t.Context(), dir, s, time.Now()); err != nil {
		t.Fatal(err)
	}
	place := remote(t, hub(t)+"/autoglm/whale:1")
	if _, err := image.Copy(t.Context(), dir, place); err != nil {
		t.Fatal(err)
	}
	if out, err := run("generate-key-pair", "--output-key-prefix", "theirs"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	types := []string{"spdxjson", "cyclonedx", "slsaprovenance1"}
	for _, key := range []string{pub, "theirs.pub"} {
		verified(key == pub, "verify", "--key", key, "--allow-http-registry", place.String())
		verified(key == pub, "verify", "--key", key, "--local-image", string(dir))
		for _, typ := range types {
			verified(key == pub, "verify-attestation", "--type", typ, "--key", key, "--allow-http-registry", place.String())
			verified(key == pub, "verify-attestation", "--type", typ, "--key", key, "--local-image", string(dir))
		}
	}

	// One byte of the signed image's manifest is another image, which nobody signed.
	other := exported(t, "weightt")
	for _, k := range []image.Kind{image.Signatures, image.Attestations} {
		img, err := dir.Attached(t.Context(), v1.Hash{}, k)
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Attach(t.Context(), v1.Hash{}, k, img); err != nil {
			t.Fatal(err)
		}
	}
	verified(false, "verify", "--key", pub, "--local-image", string(other))
	verified(false, "verify-attestation", "--type", "spdxjson", "--key", pub, "--local-image", string(other))

	// The other way about: cosign signs beside us with our key and with its own.
	ours := file("ours.key", private)
	for _, key := range []string{ours, "theirs.key"} {
		if out, err := run("sign", "--key", key, "--tlog-upload=false", "--allow-http-registry", "-y", place.String()); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	raw, err := os.ReadFile(filepath.Join(root, "theirs.pub"))
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := ParsePublic(raw)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := Verify(t.Context(), place, Key(theirs), nil); err != nil || r.Signatures != 1 {
		t.Errorf("what cosign signed: %+v, %v", r, err)
	}
	if _, err := Verify(t.Context(), place, Key(s.Public()), Predicates()); err != nil {
		t.Errorf("our signature beside cosign's: %v", err)
	}
	if raw, err = os.ReadFile(filepath.Join(root, "theirs.key")); err != nil {
		t.Fatal(err)
	}
	if signer, err := ParsePrivate(raw, []byte(password)); err != nil || !signer.Public().Equal(theirs) {
		t.Errorf("cosign's private key: %v", err)
	}
	if bytes.Contains(raw, []byte("EC PRIVATE")) {
		t.Error("cosign's key is not sealed")
	}

	// Without a key: an authority and a log of this process.
	authority := signtest.New(t)
	if _, err := Sign(t.Context(), place, keyless(t, authority, somebody), time.Now()); err != nil {
		t.Fatal(err)
	}
	strange := signtest.New(t)
	for _, c := range []struct {
		want      bool
		who, from string
		trusts    *signtest.Sigstore
	}{
		{true, somebody, issuer, authority},
		{false, "mallory@example.com", issuer, authority},
		{false, somebody, "https://evil.example.com", authority},
		{false, somebody, issuer, strange},
	} {
		who := []string{"--offline", "--certificate-identity", c.who, "--certificate-oidc-issuer", c.from, "--allow-http-registry", place.String()}
		out, err := run(append([]string{"verify", "--trusted-root", file("believed.json", c.trusts.TrustedRoot())}, who...)...)
		if (err == nil) != c.want {
			t.Errorf("cosign verify of %+v: %v\n%s", c, err, out)
		}
		// Statements of that form it verifies by roots from the environment alone.
		var authorities, log, ctlog []byte
		for _, a := range trusted(t, c.trusts).authorities {
			for _, cert := range append(a.intermediates, a.root) {
				authorities = append(authorities, certificatePEM(cert)...)
			}
		}
		for to, keys := range map[*[]byte]map[string]logKey{&log: trusted(t, c.trusts).logs, &ctlog: trusted(t, c.trusts).ctlogs} {
			for _, k := range keys {
				der, err := x509.MarshalPKIXPublicKey(k.key)
				if err != nil {
					t.Fatal(err)
				}
				*to = pem.EncodeToMemory(&pem.Block{Type: publicType, Bytes: der})
			}
		}
		t.Setenv("SIGSTORE_ROOT_FILE", file("authorities.pem", authorities))
		t.Setenv("SIGSTORE_REKOR_PUBLIC_KEY", file("log.pem", log))
		t.Setenv("SIGSTORE_CT_LOG_PUBLIC_KEY_FILE", file("ctlog.pem", ctlog))
		for _, typ := range types {
			if out, err := run(append([]string{"verify-attestation", "--type", typ}, who...)...); (err == nil) != c.want {
				t.Errorf("cosign verify-attestation of %s and %+v: %v\n%s", typ, c, err, out)
			}
		}
	}
}
