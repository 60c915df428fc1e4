package cert

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/open-autoglm/autoglm/runtime/durable"
)

// ErrRevoked means that a certificate is on the list of revoked ones.
var ErrRevoked = errors.New("revoked")

// RevokedError names the certificate.
type RevokedError struct {
	Name string
	At   time.Time
}

func (e *RevokedError) Error() string {
	return fmt.Sprintf("the certificate of %s was revoked on %s; whoever is to go on needs a new one: autoglm ca issue", e.Name, e.At.UTC().Format(time.DateOnly))
}

// Is implements errors.Is.
func (e *RevokedError) Is(target error) bool { return target == ErrRevoked }

// Why a list is refused.
var (
	ErrListOld    = errors.New("the list of revoked certificates is older than the one that is held")
	ErrListForged = errors.New("the list of revoked certificates is not this authority's")
)

const (
	listFile  = "crl.pem"
	issuedDir = "issued"
	listBlock = "X509 CRL"
	maxList   = 4 << 20 // bytes
)

// Serial is a certificate's number as revoke takes it.
func Serial(n *big.Int) string { return fmt.Sprintf("%x", n) }

// record keeps what was issued, so that it can be revoked by name.
func (ca *CA) record(der []byte) error {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	dir := filepath.Join(ca.dir, issuedDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, Serial(c.SerialNumber)+".pem"), certPEM(der))
}

// Revoked is an entry of the list.
type Revoked struct {
	Serial string    `json:"serial"`
	Name   string    `json:"name,omitempty"` // where the authority knows it
	At     time.Time `json:"at"`
}

// Revoke adds certificates to the authority's list: all that it issued to a name, one by
// its serial number (hexadecimal), or one in a file. It returns those that were not on it.
func (ca *CA) Revoke(which ...string) ([]Revoked, error) {
	var out []Revoked
	for _, w := range which {
		found, err := ca.find(w)
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	old, err := ca.list()
	if err != nil {
		return nil, err
	}
	next := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: ca.cert.NotAfter}
	if old != nil {
		next.Number.Add(old.Number, next.Number)
		next.RevokedCertificateEntries = old.RevokedCertificateEntries
	}
	var fresh []Revoked
	for _, r := range out {
		n, _ := new(big.Int).SetString(r.Serial, 16)
		if slices.ContainsFunc(next.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool { return e.SerialNumber.Cmp(n) == 0 }) {
			continue
		}
		next.RevokedCertificateEntries = append(next.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: n, RevocationTime: r.At})
		fresh = append(fresh, r)
	}
	if len(fresh) == 0 && old != nil {
		return nil, nil
	}
	der, err := x509.CreateRevocationList(rand.Reader, next, ca.cert, ca.key)
	if err != nil {
		return nil, err
	}
	return fresh, durable.WriteFile(filepath.Join(ca.dir, listFile), pem.EncodeToMemory(&pem.Block{Type: listBlock, Bytes: der}))
}

// find names certificates.
func (ca *CA) find(which string) ([]Revoked, error) {
	now := time.Now().UTC().Truncate(time.Second)
	if c, err := readCert(which); err == nil {
		if err := c.CheckSignatureFrom(ca.cert); err != nil {
			return nil, fmt.Errorf("%s is of another authority", which)
		}
		return []Revoked{{Serial(c.SerialNumber), c.Subject.CommonName, now}}, nil
	}
	files, err := filepath.Glob(filepath.Join(ca.dir, issuedDir, "*.pem"))
	if err != nil {
		return nil, err
	}
	var out []Revoked
	for _, f := range files {
		c, err := readCert(f)
		if err != nil {
			return nil, err
		}
		if s := Serial(c.SerialNumber); (c.Subject.CommonName == which || s == strings.ToLower(which)) && time.Now().Before(c.NotAfter) {
			out = append(out, Revoked{s, c.Subject.CommonName, now})
		}
	}
	if n, ok := new(big.Int).SetString(which, 16); len(out) == 0 && ok && n.Sign() > 0 && len(which) >= 16 {
		out = append(out, Revoked{Serial(n), "", now}) // issued before the authority took notes
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: this authority has issued no certificate to that name that is still good; give the file of the certificate, or its serial number (openssl x509 -noout -serial -in cert.pem)", which)
	}
	return out, nil
}

// list is the authority's own; nil where there is none yet.
func (ca *CA) list() (*x509.RevocationList, error) {
	b, err := ca.List()
	if b == nil || err != nil {
		return nil, err
	}
	l, err := parseList(b, ca.cert)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(ca.dir, listFile), err)
	}
	return l, nil
}

// List is the authority's list of revoked certificates, PEM; nil where there is none.
func (ca *CA) List() ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(ca.dir, listFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// parseList reads a list that the authority has signed.
func parseList(b []byte, ca *x509.Certificate) (*x509.RevocationList, error) {
	if len(b) > maxList {
		return nil, fmt.Errorf("a list of revoked certificates of %d bytes, at most %d are taken", len(b), maxList)
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != listBlock {
		return nil, errors.New("no list of revoked certificates in PEM; autoglm ca revoke writes one")
	}
	l, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("list of revoked certificates: %w", err)
	}
	if !bytes.Equal(l.RawIssuer, ca.RawSubject) || l.CheckSignatureFrom(ca) != nil {
		return nil, ErrListForged
	}
	if l.Number == nil || !l.Number.IsUint64() || l.Number.Sign() == 0 {
		return nil, errors.New("a list of revoked certificates without a number")
	}
	return l, nil
}

// revocations is the list that an identity goes by.
type revocations struct {
	number uint64
	list   []byte // PEM
	at     map[string]time.Time
}

// Revoke has the identity refuse the certificates of a list (PEM), if it is newer than
// the one that it holds. It tells whether it was: the same one again is no error.
func (id *Identity) Revoke(list []byte) (bool, error) {
	l, err := parseList(list, id.ca)
	if err != nil {
		return false, err
	}
	next := &revocations{number: l.Number.Uint64(), list: bytes.Clone(list), at: map[string]time.Time{}}
	for _, e := range l.RevokedCertificateEntries {
		next.at[Serial(e.SerialNumber)] = e.RevocationTime
	}
	for {
		held := id.revoked.Load()
		switch {
		case held == nil || next.number > held.number:
		case next.number < held.number:
			return false, fmt.Errorf("%w: number %d, held is number %d", ErrListOld, next.number, held.number)
		case bytes.Equal(list, held.list):
			return false, nil
		default:
			return false, fmt.Errorf("%w: two lists have the number %d: the authority's folder was copied or put back; revoke once more", ErrListOld, next.number)
		}
		if id.revoked.CompareAndSwap(held, next) {
			return true, nil
		}
	}
}

// Revocations is the list that is held, and its number; nil and 0 where there is none.
func (id *Identity) Revocations() ([]byte, uint64) {
	if r := id.revoked.Load(); r != nil {
		return r.list, r.number
	}
	return nil, 0
}

// Refuses is a *RevokedError where the certificate is on the list; its own is asked for
// by nil.
func (id *Identity) Refuses(leaf *x509.Certificate) error {
	if leaf == nil {
		leaf = id.leaf
	}
	if r := id.revoked.Load(); r != nil {
		if at, ok := r.at[Serial(leaf.SerialNumber)]; ok {
			return &RevokedError{leaf.Subject.CommonName, at}
		}
	}
	return nil
}

// refuses looks at the other end of a connection.
func (id *Identity) refuses(s tls.ConnectionState) error {
	if len(s.PeerCertificates) == 0 {
		return nil
	}
	return id.Refuses(s.PeerCertificates[0])
}
