package sign

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cryptoasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// TrustedRoot are the authorities and logs that an Identity is checked by
// (https://github.com/sigstore/protobuf-specs/blob/main/protos/sigstore_trustroot.proto).
type TrustedRoot struct {
	authorities []authority
	logs        map[string]logKey // by ID
	ctlogs      map[string]logKey // of certificates
}

type authority struct {
	root          *x509.Certificate
	intermediates []*x509.Certificate
	valid         validFor
}

type logKey struct {
	key   crypto.PublicKey
	valid validFor
}

type validFor struct {
	Start time.Time  `json:"start"`
	End   *time.Time `json:"end"`
}

func (v validFor) holds(t time.Time) bool {
	return !t.Before(v.Start) && (v.End == nil || !t.After(*v.End))
}

// trustedRootFile is the form in JSON; what isn't named here isn't used.
type trustedRootFile struct {
	MediaType   string                `json:"mediaType"`
	Logs        []transparencyLogFile `json:"tlogs"`
	CTLogs      []transparencyLogFile `json:"ctlogs"`
	Authorities []struct {
		CertChain struct {
			Certificates []struct {
				RawBytes []byte `json:"rawBytes"`
			} `json:"certificates"`
		} `json:"certChain"`
		ValidFor validFor `json:"validFor"`
	} `json:"certificateAuthorities"`
}

type transparencyLogFile struct {
	BaseURL   string `json:"baseUrl"`
	PublicKey struct {
		RawBytes []byte   `json:"rawBytes"` // PKIX
		ValidFor validFor `json:"validFor"`
	} `json:"publicKey"`
	LogID struct {
		KeyID []byte `json:"keyId"`
	} `json:"logId"`
}

const trustedRootMedia = "application/vnd.dev.sigstore.trustedroot"

// ParseTrustedRoot reads a trusted_root.json.
func ParseTrustedRoot(file []byte) (*TrustedRoot, error) {
	var f trustedRootFile
	if err := json.Unmarshal(file, &f); err != nil {
		return nil, fmt.Errorf("trusted root: %w", err)
	}
	if !strings.HasPrefix(f.MediaType, trustedRootMedia) {
		return nil, fmt.Errorf("trusted root: mediaType is %q, must begin with %q", f.MediaType, trustedRootMedia)
	}
	t := &TrustedRoot{}
	for i, a := range f.Authorities {
		var chain []*x509.Certificate
		for _, c := range a.CertChain.Certificates {
			cert, err := x509.ParseCertificate(c.RawBytes)
			if err != nil {
				return nil, fmt.Errorf("trusted root: certificateAuthorities[%d]: %w", i, err)
			}
			chain = append(chain, cert)
		}
		if len(chain) == 0 {
			return nil, fmt.Errorf("trusted root: certificateAuthorities[%d] has no certificates", i)
		}
		last := len(chain) - 1
		t.authorities = append(t.authorities, authority{chain[last], chain[:last], a.ValidFor})
	}
	var err error
	if t.logs, err = logKeys("tlogs", f.Logs); err != nil {
		return nil, err
	}
	if t.ctlogs, err = logKeys("ctlogs", f.CTLogs); err != nil {
		return nil, err
	}
	if len(t.authorities) == 0 || len(t.logs) == 0 {
		return nil, errors.New("trusted root: certificateAuthorities and tlogs must name one each at least")
	}
	return t, nil
}

func logKeys(field string, logs []transparencyLogFile) (map[string]logKey, error) {
	keys := map[string]logKey{}
	for i, l := range logs {
		key, err := x509.ParsePKIXPublicKey(l.PublicKey.RawBytes)
		if err != nil {
			return nil, fmt.Errorf("trusted root: %s[%d].publicKey: %w", field, i, err)
		}
		id := l.LogID.KeyID
		if len(id) == 0 {
			h := sha256.Sum256(l.PublicKey.RawBytes)
			id = h[:]
		}
		keys[hex.EncodeToString(id)] = logKey{key, l.PublicKey.ValidFor}
	}
	return keys, nil
}

// verifyAny verifies with a key of a log, of whatever kind.
func verifyAny(key crypto.PublicKey, message, signature []byte) bool {
	h := sha256.Sum256(message)
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(k, h[:], signature)
	case ed25519.PublicKey:
		return ed25519.Verify(k, message, signature)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(k, crypto.SHA256, h[:], signature) == nil
	}
	return false
}

// Identity is a Verifier of what somebody signed without a key of their own, by a
// certificate of an authority, while a log looked on.
type Identity struct {
	Subject string // email address, URI or name of a host, as the certificate has it
	Issuer  string // URL of who issued the token
	Root    *TrustedRoot
	Log     *Log // asked for its proof of inclusion too, where it isn't nil
}

// keyOf implements Verifier. It holds, in this order: the log's promise, what it recorded,
// the certificate's time and chain, its own log's promise, and who it is for.
func (v Identity) keyOf(ctx context.Context, l layer) (*ecdsa.PublicKey, error) {
	leaf, err := certificateOf(l)
	if err != nil {
		return nil, err
	}
	at, err := v.logged(ctx, l, leaf)
	if err != nil {
		return nil, err
	}
	if err := v.Root.vouches(leaf, at); err != nil {
		return nil, err
	}
	if names := subjects(leaf); !slices.Contains(names, v.Subject) {
		return nil, fmt.Errorf("its identity is %s, not %s", strings.Join(names, ", "), v.Subject)
	}
	if issuer := issuerOf(leaf); issuer != v.Issuer {
		return nil, fmt.Errorf("its identity is vouched for by %s, not %s", issuer, v.Issuer)
	}
	return keyOfCertificate(leaf)
}

// logged is when the log recorded the layer.
func (v Identity) logged(ctx context.Context, l layer, leaf *x509.Certificate) (time.Time, error) {
	var none time.Time
	text := l.annotations[bundleKey]
	if text == "" {
		return none, errors.New("it has no entry of a transparency log")
	}
	var b logBundle
	if err := json.Unmarshal([]byte(text), &b); err != nil {
		return none, fmt.Errorf("its entry of the log: %w", err)
	}
	at := time.Unix(b.Payload.Time, 0).UTC()
	key, ok := v.Root.logs[b.Payload.ID]
	if !ok || !key.valid.holds(at) {
		return none, fmt.Errorf("its entry is of log %s at %s, which the trusted root doesn't name", b.Payload.ID, at.Format(time.RFC3339))
	}
	signed, err := json.Marshal(b.Payload)
	if err != nil {
		return none, err
	}
	if !verifyAny(key.key, signed, b.Promise) {
		return none, errors.New("its entry isn't signed by the log: it was changed")
	}
	if err := matches(b.Payload.Body, l, leaf); err != nil {
		return none, err
	}
	if v.Log == nil {
		return at, nil
	}
	e, err := v.Log.at(ctx, b.Payload.Index)
	if err != nil {
		return none, fmt.Errorf("ask the log for entry %d: %w", b.Payload.Index, err)
	}
	if !bytes.Equal(e.Body, b.Payload.Body) {
		return none, fmt.Errorf("entry %d of the log is another one", b.Payload.Index)
	}
	return at, e.checkpointed(key)
}

// vouches reports why a certificate isn't of one of the authorities, at the time of the log.
func (t *TrustedRoot) vouches(leaf *x509.Certificate, at time.Time) error {
	if at.Before(leaf.NotBefore) || at.After(leaf.NotAfter) {
		return fmt.Errorf("its certificate held from %s to %s, and the log saw the signature at %s",
			leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339), at.Format(time.RFC3339))
	}
	why := errors.New("the trusted root names no authority of that time")
	for _, a := range t.authorities {
		if !a.valid.holds(at) {
			continue
		}
		roots, between := x509.NewCertPool(), x509.NewCertPool()
		roots.AddCert(a.root)
		for _, c := range a.intermediates {
			between.AddCert(c)
		}
		chains, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}})
		if err != nil {
			why = err
			continue
		}
		return t.published(leaf, chains)
	}
	return fmt.Errorf("its certificate is of no authority of the trusted root: %w", why)
}

// oidSCTs is the extension with the promises of logs of certificates (RFC 6962, section 3.3).
var oidSCTs = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2}

// published reports why no log of certificates that the trusted root names has promised to
// publish this one. A root that names none asks for none.
func (t *TrustedRoot) published(leaf *x509.Certificate, chains [][]*x509.Certificate) error {
	if len(t.ctlogs) == 0 {
		return nil
	}
	var list []byte
	for _, e := range leaf.Extensions {
		if e.Id.Equal(oidSCTs) {
			if _, err := asn1.Unmarshal(e.Value, &list); err != nil {
				return fmt.Errorf("the promise of a log of certificates: %w", err)
			}
		}
	}
	if list == nil {
		return errors.New("its certificate has no promise of a log of certificates (SCT), which the trusted root's ctlogs ask for")
	}
	tbs, err := withoutSCTs(leaf.RawTBSCertificate)
	if err != nil {
		return err
	}
	s := cryptobyte.String(list)
	var scts cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&scts) {
		return errBadSCT
	}
	for !scts.Empty() {
		var one cryptobyte.String
		if !scts.ReadUint16LengthPrefixed(&one) {
			return errBadSCT
		}
		for _, chain := range chains {
			if len(chain) > 1 && t.promised(one, chain[1], tbs) {
				return nil
			}
		}
	}
	return errors.New("its certificate has no promise (SCT) of a log of certificates that the trusted root names")
}

var errBadSCT = errors.New("the promises of logs of certificates (SCT) are malformed")

// promised reports whether an SCT is by a log of the root, of this certificate (RFC 6962,
// section 3.2).
func (t *TrustedRoot) promised(sct cryptobyte.String, issuer *x509.Certificate, tbs []byte) bool {
	var version, hash, scheme uint8
	var id []byte
	var ms uint64
	var extensions, signature cryptobyte.String
	if !sct.ReadUint8(&version) || version != 0 || !sct.ReadBytes(&id, sha256.Size) || !sct.ReadUint64(&ms) ||
		!sct.ReadUint16LengthPrefixed(&extensions) || !sct.ReadUint8(&hash) || !sct.ReadUint8(&scheme) || !sct.ReadUint16LengthPrefixed(&signature) || !sct.Empty() {
		return false
	}
	const sha256Hash = 4
	key, ok := t.ctlogs[hex.EncodeToString(id)]
	if !ok || hash != sha256Hash || !key.valid.holds(time.UnixMilli(int64(ms))) {
		return false
	}
	signed, err := sctMessage(ms, issuer, tbs, extensions)
	return err == nil && verifyAny(key.key, signed, signature)
}

// sctMessage is what a log of certificates signs.
func sctMessage(ms uint64, issuer *x509.Certificate, tbs, extensions []byte) ([]byte, error) {
	b := cryptobyte.NewBuilder(nil)
	b.AddUint8(0) // version 1
	b.AddUint8(0) // certificate_timestamp
	b.AddUint64(ms)
	b.AddUint16(1) // precert_entry
	h := sha256.Sum256(issuer.RawSubjectPublicKeyInfo)
	b.AddBytes(h[:])
	b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(tbs) })
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(extensions) })
	return b.Bytes()
}

// withoutSCTs is the certificate that a log had seen: without its promise.
func withoutSCTs(tbs []byte) ([]byte, error) {
	bad := errors.New("the certificate is malformed")
	in := cryptobyte.String(tbs)
	var fields cryptobyte.String
	if !in.ReadASN1(&fields, cryptoasn1.SEQUENCE) {
		return nil, bad
	}
	extensionsTag := cryptoasn1.Tag(3).Constructed().ContextSpecific()
	b := cryptobyte.NewBuilder(nil)
	b.AddASN1(cryptoasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for !fields.Empty() {
			var field cryptobyte.String
			var tag cryptoasn1.Tag
			if !fields.ReadAnyASN1Element(&field, &tag) {
				b.SetError(bad)
				return
			}
			if tag != extensionsTag {
				b.AddBytes(field)
				continue
			}
			var inner, list cryptobyte.String
			if !field.ReadASN1(&inner, extensionsTag) || !inner.ReadASN1(&list, cryptoasn1.SEQUENCE) {
				b.SetError(bad)
				return
			}
			b.AddASN1(extensionsTag, func(b *cryptobyte.Builder) {
				b.AddASN1(cryptoasn1.SEQUENCE, func(b *cryptobyte.Builder) { copyExtensions(b, list, bad) })
			})
		}
	})
	return b.Bytes()
}

// copyExtensions copies all but the promises.
func copyExtensions(b *cryptobyte.Builder, list cryptobyte.String, bad error) {
	for !list.Empty() {
		var whole cryptobyte.String
		if !list.ReadASN1Element(&whole, cryptoasn1.SEQUENCE) {
			b.SetError(bad)
			return
		}
		inside, fields := whole, cryptobyte.String(nil)
		var id asn1.ObjectIdentifier
		if !inside.ReadASN1(&fields, cryptoasn1.SEQUENCE) || !fields.ReadASN1ObjectIdentifier(&id) {
			b.SetError(bad)
			return
		}
		if !id.Equal(oidSCTs) {
			b.AddBytes(whole)
		}
	}
}
