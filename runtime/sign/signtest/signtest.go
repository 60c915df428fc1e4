// Package signtest stands in for the authority and the log of signing without keys, on the
// loopback: Fulcio, Rekor and a log of certificates, as far as a signature needs them.
package signtest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/rfc6962"
)

// Sigstore is the stand-in. Its certificates hold for ten minutes from now on.
type Sigstore struct {
	Fulcio, Rekor string        // URLs
	Late          time.Duration // by how much the log's clock is fast
	Unpublished   bool          // certificates carry no promise of the log of certificates

	root, sub      *x509.Certificate
	caKey          *ecdsa.PrivateKey
	logKey, ctKey  *ecdsa.PrivateKey
	mu             sync.Mutex
	bodies         [][]byte // of the log's entries
	times          []int64
	Certifications int // how many certificates were given
}

// New starts both servers, which end with the test.
func New(t testing.TB) *Sigstore {
	t.Helper()
	s := &Sigstore{caKey: newKey(t), logKey: newKey(t), ctKey: newKey(t)}
	rootKey := newKey(t)
	now := time.Now()
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "stand-in root"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	s.root = issue(t, root, root, &rootKey.PublicKey, rootKey)
	sub := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "stand-in authority"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	}
	s.sub = issue(t, sub, s.root, &s.caKey.PublicKey, rootKey)
	for path, serve := range map[*string]func(*http.Request) (any, error){&s.Fulcio: s.certify, &s.Rekor: s.log} {
		server := httptest.NewServer(answer(serve))
		t.Cleanup(server.Close)
		*path = server.URL
	}
	return s
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func issue(t testing.TB, c, parent *x509.Certificate, key *ecdsa.PublicKey, by *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key, by)
	if err != nil {
		t.Fatal(err)
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func answer(serve func(*http.Request) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a, err := serve(r)
		switch {
		case err != nil:
			w.WriteHeader(http.StatusBadRequest)
			a = map[string]any{"code": 3, "message": err.Error()}
		case r.Method == http.MethodPost:
			w.WriteHeader(http.StatusCreated)
		}
		_ = json.NewEncoder(w).Encode(a)
	})
}

// Token is an identity token, which no one has signed: the stand-in believes everybody.
func Token(issuer, email string) string {
	part := func(v any) string {
		raw, _ := json.Marshal(v)
		return base64.RawURLEncoding.EncodeToString(raw)
	}
	return part(map[string]string{"alg": "none"}) + "." + part(map[string]any{"iss": issuer, "aud": "sigstore", "sub": "1234", "email": email, "email_verified": true}) + ".none"
}

// TrustedRoot is the file that names the authority and both logs.
func (s *Sigstore) TrustedRoot() []byte {
	type object = map[string]any
	from := object{"start": "2020-01-01T00:00:00Z"}
	log := func(k *ecdsa.PrivateKey) []object {
		der := spki(k)
		id := sha256.Sum256(der)
		return []object{{
			"baseUrl": s.Rekor, "hashAlgorithm": "SHA2_256", "logId": object{"keyId": id[:]},
			"publicKey": object{"rawBytes": der, "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": from},
		}}
	}
	raw, _ := json.Marshal(object{
		"mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1", "tlogs": log(s.logKey), "ctlogs": log(s.ctKey), "timestampAuthorities": []object{},
		"certificateAuthorities": []object{{
			"subject": object{"organization": "stand-in", "commonName": "stand-in"}, "uri": s.Fulcio, "validFor": from,
			"certChain": object{"certificates": []object{{"rawBytes": s.sub.Raw}, {"rawBytes": s.root.Raw}}},
		}},
	})
	return raw
}

func spki(k *ecdsa.PrivateKey) []byte {
	der, _ := x509.MarshalPKIXPublicKey(&k.PublicKey)
	return der
}

// certify gives a certificate to who holds the key that it is for.
func (s *Sigstore) certify(r *http.Request) (any, error) {
	var q struct {
		Credentials struct {
			Token string `json:"oidcIdentityToken"`
		} `json:"credentials"`
		PublicKeyRequest struct {
			PublicKey struct{ Content string } `json:"publicKey"`
			Proof     []byte                   `json:"proofOfPossession"`
		} `json:"publicKeyRequest"`
	}
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil || r.URL.Path != "/api/v2/signingCert" {
		return nil, fmt.Errorf("%s: %w", r.URL.Path, err)
	}
	var claims struct {
		Issuer  string `json:"iss"`
		Email   string `json:"email"`
		Expires int64  `json:"exp"`
	}
	raw, err := base64.RawURLEncoding.DecodeString(strings.Split(q.Credentials.Token, ".")[1])
	if err := errors.Join(err, json.Unmarshal(raw, &claims)); err != nil {
		return nil, err
	}
	block, _ := pem.Decode([]byte(q.PublicKeyRequest.PublicKey.Content))
	if block == nil {
		return nil, errors.New("the public key is not PEM")
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(*ecdsa.PublicKey)
	h := sha256.Sum256([]byte(claims.Email))
	if !ok || !ecdsa.VerifyASN1(key, h[:], q.PublicKeyRequest.Proof) {
		return nil, errors.New("the proof of possession doesn't hold")
	}
	leaf, err := s.leaf(claims.Issuer, claims.Email, key)
	if err != nil {
		return nil, err
	}
	var chain []string
	for _, c := range [][]byte{leaf, s.sub.Raw, s.root.Raw} {
		chain = append(chain, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})))
	}
	s.mu.Lock()
	s.Certifications++
	s.mu.Unlock()
	return map[string]any{"signedCertificateEmbeddedSct": map[string]any{"chain": map[string]any{"certificates": chain}}}, nil
}

// leaf is made twice: first without the promise of the log of certificates, which signs that.
func (s *Sigstore) leaf(issuer, email string, key *ecdsa.PublicKey) ([]byte, error) {
	name, err := asn1.MarshalWithParams(issuer, "utf8")
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	c := &x509.Certificate{
		SerialNumber: serial, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(9 * time.Minute),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		ExtraExtensions: []pkix.Extension{
			{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 1}, Value: []byte(issuer)},
			{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 8}, Value: name},
		},
	}
	if u, err := url.Parse(email); err == nil && u.Scheme != "" {
		c.URIs = []*url.URL{u}
	} else {
		c.EmailAddresses = []string{email}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, s.sub, key, s.caKey)
	if err != nil || s.Unpublished {
		return der, err
	}
	bare, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	list, err := s.promise(bare, now)
	if err != nil {
		return nil, err
	}
	value, err := asn1.Marshal(list)
	if err != nil {
		return nil, err
	}
	c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2}, Value: value})
	return x509.CreateCertificate(rand.Reader, c, s.sub, key, s.caKey)
}

// promise is a list of one signed certificate timestamp (RFC 6962, section 3).
func (s *Sigstore) promise(bare *x509.Certificate, now time.Time) ([]byte, error) {
	var signed bytes.Buffer
	ms := binary.BigEndian.AppendUint64(nil, uint64(now.UnixMilli()))
	issuer := sha256.Sum256(s.sub.RawSubjectPublicKeyInfo)
	signed.Write([]byte{0, 0})
	signed.Write(ms)
	signed.Write([]byte{0, 1})
	signed.Write(issuer[:])
	n := len(bare.RawTBSCertificate)
	signed.Write([]byte{byte(n >> 16), byte(n >> 8), byte(n)})
	signed.Write(bare.RawTBSCertificate)
	signed.Write([]byte{0, 0})
	sig, err := sign(s.ctKey, signed.Bytes())
	if err != nil {
		return nil, err
	}
	id := sha256.Sum256(spki(s.ctKey))
	sct := append(append([]byte{0}, id[:]...), ms...)
	sct = append(sct, 0, 0, 4, 3)
	sct = append(binary.BigEndian.AppendUint16(sct, uint16(len(sig))), sig...)
	one := append(binary.BigEndian.AppendUint16(nil, uint16(len(sct))), sct...)
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(one))), one...), nil
}

func sign(k *ecdsa.PrivateKey, message []byte) ([]byte, error) {
	h := sha256.Sum256(message)
	return ecdsa.SignASN1(rand.Reader, k, h[:])
}

// log records what is posted and answers what is asked for.
func (s *Sigstore) log(r *http.Request) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Method == http.MethodGet {
		i, err := strconv.Atoi(r.URL.Query().Get("logIndex"))
		if err != nil || i < 0 || i >= len(s.bodies) {
			return nil, fmt.Errorf("there is no entry %q", r.URL.RawQuery)
		}
		return s.entry(i)
	}
	var q struct {
		Version string `json:"apiVersion"`
		Kind    string `json:"kind"`
		Spec    json.RawMessage
	}
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil || r.URL.Path != "/api/v1/log/entries" {
		return nil, fmt.Errorf("%s: %w", r.URL.Path, err)
	}
	if q.Kind == "dsse" {
		var err error
		if q.Spec, err = recorded(q.Spec); err != nil {
			return nil, err
		}
	}
	body, err := json.Marshal(map[string]any{"apiVersion": q.Version, "kind": q.Kind, "spec": q.Spec}) // keys in order
	if err != nil {
		return nil, err
	}
	s.bodies, s.times = append(s.bodies, body), append(s.times, time.Now().Add(s.Late).Unix())
	return s.entry(len(s.bodies) - 1)
}

// recorded is what the log keeps of an envelope: hashes.
func recorded(spec []byte) ([]byte, error) {
	var p struct {
		ProposedContent struct {
			Envelope  string
			Verifiers [][]byte
		}
	}
	var e struct {
		Payload    []byte
		Signatures []struct{ Sig string }
	}
	if err := errors.Join(json.Unmarshal(spec, &p), json.Unmarshal([]byte(p.ProposedContent.Envelope), &e)); err != nil {
		return nil, err
	}
	if len(p.ProposedContent.Verifiers) != 1 || len(e.Signatures) != 1 {
		return nil, errors.New("one verifier and one signature are wanted")
	}
	hash := func(b []byte) map[string]string {
		return map[string]string{"algorithm": "sha256", "value": fmt.Sprintf("%x", sha256.Sum256(b))}
	}
	return json.Marshal(map[string]any{
		"envelopeHash": hash([]byte(p.ProposedContent.Envelope)), "payloadHash": hash(e.Payload),
		"signatures": []any{map[string]any{"signature": e.Signatures[0].Sig, "verifier": p.ProposedContent.Verifiers[0]}},
	})
}

// entry is the answer for one, with its promise, and the proof in the tree of today.
func (s *Sigstore) entry(i int) (any, error) {
	id := sha256.Sum256(spki(s.logKey))
	promised := struct {
		Body  []byte `json:"body"`
		Time  int64  `json:"integratedTime"`
		ID    string `json:"logID"`
		Index int    `json:"logIndex"`
	}{s.bodies[i], s.times[i], fmt.Sprintf("%x", id), i}
	canonical, err := json.Marshal(promised)
	if err != nil {
		return nil, err
	}
	promise, err := sign(s.logKey, canonical)
	if err != nil {
		return nil, err
	}
	root := treeRoot(s.bodies)
	note := fmt.Sprintf("stand-in - 1\n%d\n%s\n", len(s.bodies), base64.StdEncoding.EncodeToString(root))
	sig, err := sign(s.logKey, []byte(note))
	if err != nil {
		return nil, err
	}
	var hashes []string
	for _, h := range treePath(i, s.bodies) {
		hashes = append(hashes, fmt.Sprintf("%x", h))
	}
	return map[string]any{fmt.Sprintf("%016x%x", 1, rfc6962.DefaultHasher.HashLeaf(s.bodies[i])): map[string]any{
		"body": promised.Body, "integratedTime": promised.Time, "logID": promised.ID, "logIndex": i,
		"verification": map[string]any{
			"signedEntryTimestamp": promise,
			"inclusionProof": map[string]any{
				"checkpoint": note + "\n— stand-in " + base64.StdEncoding.EncodeToString(append(id[:4:4], sig...)) + "\n",
				"hashes":     hashes, "logIndex": i, "rootHash": fmt.Sprintf("%x", root), "treeSize": len(s.bodies),
			},
		},
	}}, nil
}

// Change replaces an entry of the log, which then proves something else.
func (s *Sigstore) Change(i int, body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bodies[i] = body
}

// treeRoot and treePath are RFC 6962's MTH and PATH, section 2.1.
func treeRoot(leaves [][]byte) []byte {
	if len(leaves) == 1 {
		return rfc6962.DefaultHasher.HashLeaf(leaves[0])
	}
	k := split(len(leaves))
	return rfc6962.DefaultHasher.HashChildren(treeRoot(leaves[:k]), treeRoot(leaves[k:]))
}

func treePath(m int, leaves [][]byte) [][]byte {
	if len(leaves) == 1 {
		return nil
	}
	k := split(len(leaves))
	if m < k {
		return append(treePath(m, leaves[:k]), treeRoot(leaves[k:]))
	}
	return append(treePath(m-k, leaves[k:]), treeRoot(leaves[:k]))
}

// split is the largest power of two below n.
func split(n int) int {
	k := 1
	for 2*k < n {
		k *= 2
	}
	return k
}
