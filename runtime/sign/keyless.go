package sign

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
)

// Where cosign keeps the certificate of a signature, the authorities above it and the
// log's entry.
const (
	certificateKey = "dev.sigstore.cosign/certificate" // PEM
	chainKey       = "dev.sigstore.cosign/chain"       // PEM
	bundleKey      = "dev.sigstore.cosign/bundle"      // JSON
)

// Limits of what the authority and the log answer.
const (
	maxAnswer = 1 << 20
	maxChain  = 8
)

// Keyless says who vouches for a signer that keeps no key: an authority that gives a key of
// a few minutes a certificate with the identity of a token (Fulcio), and a log that records
// what it signed (Rekor).
type Keyless struct {
	Fulcio, Rekor string // URLs
	Token         string // identity token of OpenID Connect, with the audience that Fulcio wants
	Client        *http.Client
}

// witness is what a signer without a key of its own shows.
type witness struct {
	leaf  *x509.Certificate
	chain []*x509.Certificate // above the leaf
	log   *Log
}

// Signer makes a key and asks the authority to vouch for it.
// (https://github.com/sigstore/fulcio/blob/main/fulcio.proto, CreateSigningCertificate)
func (k Keyless) Signer(ctx context.Context) (*Signer, error) {
	subject, err := tokenSubject(k.Token)
	if err != nil {
		return nil, fmt.Errorf("identity token: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	s := &Signer{key: key}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	proof, err := s.sign([]byte(subject))
	if err != nil {
		return nil, err
	}
	var q certificateRequest
	q.Credentials.Token = k.Token
	q.PublicKeyRequest.PublicKey.Algorithm = "ECDSA"
	q.PublicKeyRequest.PublicKey.Content = string(pem.EncodeToMemory(&pem.Block{Type: publicType, Bytes: der}))
	q.PublicKeyRequest.Proof = proof
	var a certificateAnswer
	if err := post(ctx, k.Client, k.Fulcio+"/api/v2/signingCert", q, &a); err != nil {
		return nil, fmt.Errorf("certificate from Fulcio: %w", err)
	}
	chain, err := parseChain(strings.Join(append(a.Embedded.Chain.Certificates, a.Detached.Chain.Certificates...), "\n"))
	if err != nil {
		return nil, fmt.Errorf("certificate from Fulcio: %w", err)
	}
	if !key.PublicKey.Equal(chain[0].PublicKey) {
		return nil, errors.New("certificate from Fulcio: it is for another key")
	}
	s.witness = &witness{leaf: chain[0], chain: chain[1:], log: &Log{URL: k.Rekor, Client: k.Client}}
	return s, nil
}

type certificateRequest struct {
	Credentials struct {
		Token string `json:"oidcIdentityToken"`
	} `json:"credentials"`
	PublicKeyRequest struct {
		PublicKey struct {
			Algorithm string `json:"algorithm"`
			Content   string `json:"content"` // PEM
		} `json:"publicKey"`
		Proof []byte `json:"proofOfPossession"` // signature of the token's subject
	} `json:"publicKeyRequest"`
}

type certificateAnswer struct {
	Embedded, Detached struct {
		Chain struct {
			Certificates []string `json:"certificates"` // PEM, the leaf first
		} `json:"chain"`
	}
}

// UnmarshalJSON gives the two forms of an answer short names.
func (a *certificateAnswer) UnmarshalJSON(raw []byte) error {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(raw, &m); err != nil {
		return err
	}
	for name, to := range map[string]any{"signedCertificateEmbeddedSct": &a.Embedded, "signedCertificateDetachedSct": &a.Detached} {
		if part := m[name]; part != nil {
			if err := json.Unmarshal(part, to); err != nil {
				return err
			}
		}
	}
	return nil
}

// tokenSubject is the name that the authority takes from a token: its email where that is
// verified, else its subject. The token itself is the authority's to check.
func tokenSubject(token string) (string, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return "", errors.New("it is no JSON Web Token, which has three parts with dots between")
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", fmt.Errorf("its second part: %w", err)
	}
	var claims struct {
		Subject  string `json:"sub"`
		Email    string `json:"email"`
		Verified any    `json:"email_verified"` // some issuers write it as a string
	}
	if err := json.Unmarshal(raw, &claims); err != nil {
		return "", fmt.Errorf("its claims: %w", err)
	}
	switch {
	case claims.Email != "" && claims.Verified != true && claims.Verified != "true":
		return "", fmt.Errorf("its issuer hasn't verified %s", claims.Email)
	case claims.Email != "":
		return claims.Email, nil
	case claims.Subject != "":
		return claims.Subject, nil
	}
	return "", errors.New("it names nobody: neither email nor sub is there")
}

// parseChain reads certificates, of which there is one at least.
func parseChain(text string) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for rest := []byte(text); ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		if len(chain) == maxChain {
			return nil, fmt.Errorf("more than %d certificates", maxChain)
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, err
		}
		chain = append(chain, c)
	}
	if len(chain) == 0 {
		return nil, errors.New("there is no certificate in PEM")
	}
	return chain, nil
}

func certificatePEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// Identity of a signer without a key, as its certificate has it: subject and issuer. Both
// are empty of a key that is kept.
func (s *Signer) Identity() (subject, issuer string) {
	if s.witness == nil {
		return "", ""
	}
	return strings.Join(subjects(s.witness.leaf), ", "), issuerOf(s.witness.leaf)
}

// witnessed adds the certificate of the signer and the log's entry to what it signed.
func (s *Signer) witnessed(ctx context.Context, l layer) (layer, error) {
	w := s.witness
	if w == nil {
		return l, nil
	}
	l.annotations = maps.Clone(l.annotations)
	leaf := certificatePEM(w.leaf)
	l.annotations[certificateKey] = string(leaf)
	var above bytes.Buffer
	for _, c := range w.chain {
		above.Write(certificatePEM(c))
	}
	l.annotations[chainKey] = above.String()
	proposed, err := propose(l, leaf)
	if err != nil {
		return l, err
	}
	e, err := w.log.add(ctx, proposed)
	if err == nil {
		err = matches(e.Body, l, w.leaf)
	}
	if err != nil {
		return l, fmt.Errorf("entry in Rekor: %w", err)
	}
	raw, err := json.Marshal(logBundle{Payload: e.logPayload, Promise: e.Verification.Promise})
	l.annotations[bundleKey] = string(raw)
	return l, err
}

// earlier verifies what the same signer signed before, which is replaced: by its key, or by
// a key with a certificate of the same identity.
func (s *Signer) earlier() Verifier {
	if s.witness == nil {
		return Key(s.Public())
	}
	return sameIdentity{s.witness.leaf}
}

type sameIdentity struct{ *x509.Certificate }

func (c sameIdentity) keyOf(_ context.Context, l layer) (*ecdsa.PublicKey, error) {
	other, err := certificateOf(l)
	if err != nil {
		return nil, err
	}
	if !slices.Equal(subjects(other), subjects(c.Certificate)) || issuerOf(other) != issuerOf(c.Certificate) {
		return nil, errors.New("it is of another identity")
	}
	return keyOfCertificate(other)
}

func certificateOf(l layer) (*x509.Certificate, error) {
	text := l.annotations[certificateKey]
	if text == "" {
		return nil, errors.New("it has no certificate: it was made with a key, which autoglm verify --key checks")
	}
	chain, err := parseChain(text)
	if err != nil {
		return nil, fmt.Errorf("its certificate: %w", err)
	}
	return chain[0], nil
}

func keyOfCertificate(c *x509.Certificate) (*ecdsa.PublicKey, error) {
	key, ok := c.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("its certificate is for another kind of key than ECDSA of P-256")
	}
	return key, nil
}

// subjects are the alternative names of a certificate.
func subjects(c *x509.Certificate) []string {
	names := slices.Concat(c.EmailAddresses, c.DNSNames)
	for _, u := range c.URIs {
		names = append(names, u.String())
	}
	return names
}

// Extensions of Fulcio (https://github.com/sigstore/fulcio/blob/main/docs/oid-info.md).
var (
	oidIssuerRaw = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 1} // bare text
	oidIssuer    = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 8} // UTF8String
)

// issuerOf is who had issued the token that a certificate was given for.
func issuerOf(c *x509.Certificate) string {
	raw := ""
	for _, e := range c.Extensions {
		if e.Id.Equal(oidIssuer) {
			var s string
			if rest, err := asn1.UnmarshalWithParams(e.Value, &s, "utf8"); err == nil && len(rest) == 0 {
				return s
			}
		}
		if e.Id.Equal(oidIssuerRaw) {
			raw = string(e.Value)
		}
	}
	return raw
}

// post sends JSON and reads JSON; an answer that is no success is an error with its text.
func post(ctx context.Context, c *http.Client, url string, body, answer any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	return exchange(c, r, answer)
}

func exchange(c *http.Client, r *http.Request, answer any) error {
	r.Header.Set("Accept", "application/json")
	r.Header.Set("User-Agent", "autoglm")
	a, err := c.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = a.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(a.Body, maxAnswer+1))
	switch {
	case err != nil:
		return err
	case len(text) > maxAnswer:
		return fmt.Errorf("%s: the answer is longer than %d bytes", r.URL.Redacted(), maxAnswer)
	case a.StatusCode/100 != 2:
		return &answerError{url: r.URL.Redacted(), status: a.StatusCode, text: strings.TrimSpace(string(text[:min(len(text), 300)])), location: a.Header.Get("Location")}
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return fmt.Errorf("%s: the answer is not what it should be: %w", r.URL.Redacted(), err)
	}
	return nil
}

// answerError is an answer of HTTP that is no success.
type answerError struct {
	url, text, location string
	status              int
}

func (e *answerError) Error() string {
	return fmt.Sprintf("%s answered %d %s: %s", e.url, e.status, http.StatusText(e.status), e.text)
}
