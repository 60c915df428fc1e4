package cert

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/open-autoglm/autoglm/runtime/durable"
)

// Identity is a certificate with its key, and the authority by which it knows
// others. It may be shared.
type Identity struct {
	Name  string
	Role  Role
	Until time.Time

	pair    tls.Certificate
	leaf    *x509.Certificate
	ca      *x509.Certificate
	pool    *x509.CertPool
	revoked atomic.Pointer[revocations] // nil: no list
}

// Load reads a folder that Issue or a token's answer wrote. An expired certificate
// is an error that says how to renew it.
func Load(dir string) (*Identity, error) {
	ca, err := readCert(filepath.Join(dir, caFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s holds no certificate; write one with: autoglm ca issue HOST --out %s", dir, dir)
	}
	if err != nil {
		return nil, err
	}
	leaf, err := readCert(filepath.Join(dir, certFile))
	if err != nil {
		return nil, err
	}
	key, err := readKey(filepath.Join(dir, keyFile))
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return nil, fmt.Errorf("%s is not the key of %s", filepath.Join(dir, keyFile), certFile)
	}
	id := &Identity{Name: leaf.Subject.CommonName, Until: leaf.NotAfter, leaf: leaf, ca: ca, pool: x509.NewCertPool()}
	id.pool.AddCert(ca)
	id.pair = tls.Certificate{Certificate: [][]byte{leaf.Raw, ca.Raw}, PrivateKey: key, Leaf: leaf}
	if id.Role, err = roleOf(leaf); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, certFile), err)
	}
	if err := id.verify(leaf); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, certFile), err)
	}
	return id, nil
}

func (id *Identity) verify(leaf *x509.Certificate) error {
	_, err := leaf.Verify(x509.VerifyOptions{Roots: id.pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return explain(leaf, err)
}

// explain says what to do about a certificate that was not accepted.
func explain(leaf *x509.Certificate, err error) error {
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && time.Now().After(leaf.NotAfter):
		return fmt.Errorf("the certificate of %s expired on %s; issue a new one with: autoglm ca issue", leaf.Subject.CommonName, leaf.NotAfter.UTC().Format(time.DateOnly))
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("the certificate of %s is good from %s on, and this machine's clock says %s: set the clock", leaf.Subject.CommonName, leaf.NotBefore.UTC().Format(time.DateTime), time.Now().UTC().Format(time.DateTime))
	case errors.As(err, &unknown):
		return fmt.Errorf("the certificate of %s is from another authority; both sides need certificates of one: autoglm ca issue", leaf.Subject.CommonName)
	}
	return err
}

// roleOf reads the role of a certificate that has been verified.
func roleOf(leaf *x509.Certificate) (Role, error) {
	if len(leaf.Subject.OrganizationalUnit) != 1 {
		return "", errors.New("the certificate carries no role; issue one with: autoglm ca issue")
	}
	return ParseRole(leaf.Subject.OrganizationalUnit[0])
}

// PeerOf is the name and role of who is at the other end of a TLS connection
// whose handshake is done. Name and role are empty without a certificate.
func PeerOf(s tls.ConnectionState) (name string, role Role) {
	if len(s.VerifiedChains) == 0 {
		return "", ""
	}
	leaf := s.PeerCertificates[0]
	r, err := roleOf(leaf)
	if err != nil {
		return leaf.Subject.CommonName, ""
	}
	return leaf.Subject.CommonName, r
}

// Server is the configuration of a listener. Revoked certificates are refused, by the
// list that is held when they are shown. Whoever comes without a certificate
// gets through the handshake with no role: only a token's request is open to it.
func (id *Identity) Server() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{id.pair},
		ClientCAs: id.pool, ClientAuth: tls.VerifyClientCertIfGiven, VerifyConnection: id.refuses,
	}
}

// Client is the configuration to dial a host of the cluster, whose certificate
// must name it and carry the role of a node.
func (id *Identity) Client() *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{id.pair}, RootCAs: id.pool}
	c.VerifyConnection = func(s tls.ConnectionState) error {
		if _, role := PeerOf(s); role != Node {
			return errors.New("the other side's certificate is not a node's")
		}
		return id.refuses(s)
	}
	return c
}

// Explain makes a failed handshake's error say what to do.
func Explain(err error) error {
	var v *tls.CertificateVerificationError
	var host x509.HostnameError
	var record tls.RecordHeaderError
	var op *net.OpError
	switch {
	case errors.As(err, &host):
		return fmt.Errorf("%w; issue it for the name or address under which it is reached: autoglm ca issue", err)
	case errors.As(err, &v) && len(v.UnverifiedCertificates) > 0:
		return explain(v.UnverifiedCertificates[0], v.Err)
	case errors.As(err, &record):
		return errors.New("the other side does not speak TLS: one of the two runs with --insecure")
	case errors.As(err, &op) && op.Op == "remote error": // an alert, whose type crypto/tls keeps to itself
		switch text := op.Err.Error(); {
		case strings.Contains(text, "unknown certificate authority"):
			return errors.New("the other side does not know this certificate's authority; both need certificates of one: autoglm ca issue")
		case strings.Contains(text, "bad certificate"):
			return errors.New("the other side does not know this certificate's authority, or it was revoked; get one of its authority: autoglm ca issue")
		case strings.Contains(text, "expired certificate"):
			return errors.New("the other side finds this certificate expired: renew it (autoglm ca issue), or set the clocks")
		}
	}
	return err
}

// Asking is a machine without a certificate that holds a token.
type Asking struct {
	token string
	pin   [32]byte
	key   *ecdsa.PrivateKey
	CSR   []byte // PKCS #10, DER
}

// Ask prepares a request for a node's certificate under these hosts.
func Ask(tokenText string, hosts []string) (*Asking, error) {
	t, err := parseToken(tokenText)
	if err != nil {
		return nil, err
	}
	if time.Now().After(t.expiry) {
		return nil, ErrTokenLate
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	req := &x509.CertificateRequest{}
	for _, h := range hosts {
		if req.Subject.CommonName == "" {
			req.Subject = pkix.Name{CommonName: h}
		}
		if ip := net.ParseIP(h); ip != nil {
			req.IPAddresses = append(req.IPAddresses, ip)
		} else {
			req.DNSNames = append(req.DNSNames, h)
		}
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, req, key)
	if err != nil {
		return nil, err
	}
	return &Asking{token: tokenText, pin: t.pin, key: key, CSR: csr}, nil
}

// Token is the text to send with the request.
func (a *Asking) Token() string { return a.token }

// TLS is the configuration to dial a node with: its chain must end in the
// authority that the token names.
func (a *Asking) TLS() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // VerifyConnection does it against the token's pin
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return errors.New("the other side shows no certificate")
			}
			pool := x509.NewCertPool()
			found := false
			for _, c := range s.PeerCertificates[1:] {
				if c.IsCA && pin(c) == a.pin {
					pool.AddCert(c)
					found = true
				}
			}
			if !found {
				return errors.New("the other side belongs to another authority than the token")
			}
			leaf := s.PeerCertificates[0]
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool}); err != nil {
				return explain(leaf, err)
			}
			if r, err := roleOf(leaf); err != nil || r != Node {
				return errors.New("the other side's certificate is not a node's")
			}
			return nil
		},
	}
}

// Write stores the answer as an identity's folder.
func (a *Asking) Write(dir string, certificate, authority []byte) error {
	block, _ := pem.Decode(authority)
	if block == nil {
		return errors.New("the answer holds no authority")
	}
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return err
	}
	if pin(ca) != a.pin {
		return errors.New("the answer comes from another authority than the token")
	}
	return writeIdentity(dir, a.key, certificate, authority)
}

func writeIdentity(dir string, key *ecdsa.PrivateKey, certificate, authority []byte) error {
	if old, err := os.ReadFile(filepath.Join(dir, caFile)); err == nil && !bytes.Equal(old, authority) {
		return fmt.Errorf("%s holds a certificate of another authority; name another folder, or remove it yourself", dir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	kb, err := keyPEM(key)
	if err != nil {
		return err
	}
	if err := durable.WriteSecret(filepath.Join(dir, keyFile), kb); err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(dir, certFile), certificate); err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, caFile), authority)
}
