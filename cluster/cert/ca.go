package cert

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/open-autoglm/autoglm/runtime/durable"
)

// Role is what a certificate's holder may do.
type Role string

// Roles, from the least to the most; Node is a machine's.
const (
	Read   Role = "read"   // see
	Submit Role = "submit" // … and start, cancel and fetch jobs
	Admin  Role = "admin"  // … and drain nodes, rotate keys, back up
	Node   Role = "node"   // a member of the cluster
)

// May tells whether a holder of r may do what need asks for. A node may all.
func (r Role) May(need Role) bool {
	rank := map[Role]int{Read: 1, Submit: 2, Admin: 3, Node: 4}
	return rank[r] >= rank[need] && rank[r] > 0
}

// ParseRole reads a role by name.
func ParseRole(s string) (Role, error) {
	switch r := Role(s); r {
	case Read, Submit, Admin, Node:
		return r, nil
	}
	return "", fmt.Errorf("role %q is not known; give node, admin, submit or read", s)
}

// Validity of what an authority makes.
const (
	caValid      = 10 * 365 * 24 * time.Hour
	DefaultValid = 365 * 24 * time.Hour
	backdated    = 10 * time.Minute // for clocks that are behind
)

// Names of the files.
const (
	caFile   = "ca.pem"
	caKey    = "ca-key.pem"
	certFile = "cert.pem"
	keyFile  = "key.pem"
	usedDir  = "used"
)

// CA is an authority whose key is at hand.
type CA struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// InitCA makes an authority in a folder that holds none.
func InitCA(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, caKey)); err == nil {
		return fmt.Errorf("%s holds an authority already; its certificates would be worthless with a new one: name another folder, or remove this one yourself", dir)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := newSerial()
	if err != nil {
		return err
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "autoglm cluster"},
		NotBefore: now.Add(-backdated), NotAfter: now.Add(caValid),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, usedDir), 0o700); err != nil {
		return err
	}
	kb, err := keyPEM(key)
	if err != nil {
		return err
	}
	if err := durable.WriteSecret(filepath.Join(dir, caKey), kb); err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, caFile), certPEM(der))
}

// LoadCA opens an authority's folder.
func LoadCA(dir string) (*CA, error) {
	c, err := readCert(filepath.Join(dir, caFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s holds no authority; make one with: autoglm ca init --ca %s", dir, dir)
	}
	if err != nil {
		return nil, err
	}
	key, err := readKey(filepath.Join(dir, caKey))
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(c.PublicKey) {
		return nil, fmt.Errorf("%s: the key is not that of %s", filepath.Join(dir, caKey), caFile)
	}
	return &CA{dir: dir, cert: c, key: key}, nil
}

// Request is what a certificate is to say.
type Request struct {
	Name  string   // of a person or machine; the first host when empty
	Hosts []string // DNS names and IP addresses of a node; none for a person
	Role  Role     // Node when empty
	Valid time.Duration
}

func (r Request) template() (*x509.Certificate, error) {
	if r.Role == "" {
		r.Role = Node
	}
	if r.Valid == 0 {
		r.Valid = DefaultValid
	}
	if r.Role == Node && len(r.Hosts) == 0 {
		return nil, errors.New("a node's certificate names the hosts or addresses under which others reach it; give at least one")
	}
	if r.Name == "" && len(r.Hosts) > 0 {
		r.Name = r.Hosts[0]
	}
	if r.Name == "" {
		return nil, errors.New("a certificate needs a name")
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: r.Name, OrganizationalUnit: []string{string(r.Role)}},
		NotBefore:    now.Add(-backdated), NotAfter: now.Add(r.Valid),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	if r.Role == Node {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, h := range r.Hosts {
		switch ip := net.ParseIP(h); {
		case ip != nil:
			t.IPAddresses = append(t.IPAddresses, ip)
		case h == "" || strings.ContainsAny(h, " :/"):
			return nil, fmt.Errorf("host %q is neither a name nor an IP address; leave the port out", h)
		default:
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	return t, nil
}

// Issue makes a key and its certificate and writes both, with the authority's
// certificate, to a folder.
func (ca *CA) Issue(r Request, dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := ca.sign(r, key.Public())
	if err != nil {
		return err
	}
	return writeIdentity(dir, key, certPEM(der), certPEM(ca.cert.Raw))
}

func (ca *CA) sign(r Request, public crypto.PublicKey) ([]byte, error) {
	t, err := r.template()
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, t, ca.cert, public, ca.key)
	if err != nil {
		return nil, err
	}
	return der, ca.record(der)
}

const tokenPrefix = "agl1."

// Token lets one machine join until valid has passed.
func (ca *CA) Token(valid time.Duration) (string, error) {
	b := make([]byte, 16, 56+80)
	if _, err := rand.Read(b); err != nil {
		return "", err
	}
	b = binary.BigEndian.AppendUint64(b, uint64(time.Now().Add(valid).Unix()))
	p := pin(ca.cert)
	b = append(b, p[:]...)
	sum := sha256.Sum256(b)
	sig, err := ecdsa.SignASN1(rand.Reader, ca.key, sum[:])
	if err != nil {
		return "", err
	}
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(append(b, sig...)), nil
}

// Why a token is refused.
var (
	ErrToken     = errors.New("the token is not this authority's")
	ErrTokenLate = errors.New("the token has expired: make a new one (autoglm ca token)")
	ErrTokenUsed = errors.New("the token was used before: make a new one (autoglm ca token)")
)

type token struct {
	id     [16]byte
	expiry time.Time
	pin    [32]byte
	signed []byte
	sig    []byte
}

func parseToken(s string) (token, error) {
	body, ok := strings.CutPrefix(strings.TrimSpace(s), tokenPrefix)
	b, err := base64.RawURLEncoding.DecodeString(body)
	if !ok || err != nil || len(b) <= 56 {
		return token{}, errors.New("not a token: autoglm ca token prints one")
	}
	t := token{expiry: time.Unix(int64(binary.BigEndian.Uint64(b[16:24])), 0), signed: b[:56], sig: b[56:]}
	copy(t.id[:], b)
	copy(t.pin[:], b[24:])
	return t, nil
}

// Redeem signs a request for a node's certificate and uses the token up. Csr is a
// PKCS #10 request in DER; its names and addresses are taken, its subject's common
// name too. It returns the certificate and the authority's, both PEM.
func (ca *CA) Redeem(tokenText string, csr []byte) (certificate, authority []byte, err error) {
	t, err := parseToken(tokenText)
	if err != nil {
		return nil, nil, err
	}
	sum := sha256.Sum256(t.signed)
	if !ecdsa.VerifyASN1(&ca.key.PublicKey, sum[:], t.sig) {
		return nil, nil, ErrToken
	}
	if time.Now().After(t.expiry) {
		return nil, nil, ErrTokenLate
	}
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate request: %w", err)
	}
	if err := req.CheckSignature(); err != nil {
		return nil, nil, fmt.Errorf("certificate request: %w", err)
	}
	r := Request{Name: req.Subject.CommonName, Hosts: req.DNSNames, Role: Node}
	for _, ip := range req.IPAddresses {
		r.Hosts = append(r.Hosts, ip.String())
	}
	if _, err := r.template(); err != nil {
		return nil, nil, err // the token is still good
	}
	f, err := os.OpenFile(filepath.Join(ca.dir, usedDir, hex.EncodeToString(t.id[:])), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil, nil, ErrTokenUsed
	}
	if err != nil {
		return nil, nil, err
	}
	if err := errors.Join(f.Sync(), f.Close(), durable.SyncDir(filepath.Join(ca.dir, usedDir))); err != nil {
		return nil, nil, err
	}
	der, err := ca.sign(r, req.PublicKey)
	if err != nil {
		return nil, nil, err
	}
	return certPEM(der), certPEM(ca.cert.Raw), nil
}

func pin(c *x509.Certificate) [32]byte { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func keyPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func readCert(path string) (*x509.Certificate, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s holds no certificate in PEM", path)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

func readKey(path string) (*ecdsa.PrivateKey, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	// Root's may be readable by a group, which is how services get their secrets.
	allowed := fs.FileMode(0o600)
	if s, ok := info.Sys().(*syscall.Stat_t); ok && s.Uid == 0 {
		allowed = 0o640
	}
	if info.Mode().Perm()&^allowed&0o077 != 0 {
		return nil, fmt.Errorf("%s is readable by others than its owner; chmod 600 it", path)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s holds no key in PEM", path)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s is a key of another kind than ECDSA", path)
	}
	return key, nil
}
