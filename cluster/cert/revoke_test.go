package cert

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// revoke adds to the authority's list, and is the list.
func revoke(t *testing.T, ca *CA, which ...string) []byte {
	t.Helper()
	if _, err := ca.Revoke(which...); err != nil {
		t.Fatal(err)
	}
	b, err := ca.List()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Who is on the list is refused by either side, and told apart by name, serial number or
// file; all others go on.
func TestRevoke(t *testing.T) {
	ca := authority(t)
	a, b := identity(t, ca, Request{Hosts: []string{"127.0.0.1"}, Name: "a"}), identity(t, ca, Request{Hosts: []string{"127.0.0.1"}, Name: "b"})
	c, d := identity(t, ca, Request{Hosts: []string{"127.0.0.1"}, Name: "c"}), identity(t, ca, Request{Name: "ada", Role: Submit})
	dir := t.TempDir()
	if err := ca.Issue(Request{Name: "bob", Role: Read}, dir); err != nil {
		t.Fatal(err)
	}
	bob, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	refuses := func(which map[*Identity]bool) {
		t.Helper()
		for _, id := range []*Identity{b, c, d, bob} {
			if got := errors.Is(a.Refuses(id.leaf), ErrRevoked); got != which[id] {
				t.Errorf("%s is revoked: %t", id.Name, got)
			}
			_, _, serr, cerr := shake(t, a.Server(), id.Client())
			if (serr != nil) != which[id] || which[id] && (!errors.Is(serr, ErrRevoked) || !strings.Contains(Explain(cerr).Error(), "revoked")) {
				t.Errorf("%s asks: %v and %v", id.Name, serr, cerr)
			}
			if id.Role == Node {
				if _, _, _, cerr := shake(t, id.Server(), a.Client()); (cerr != nil) != which[id] || which[id] && !errors.Is(cerr, ErrRevoked) {
					t.Errorf("%s serves: %v", id.Name, cerr)
				}
			}
		}
	}
	refuses(nil)
	for i, step := range []struct {
		which string
		who   *Identity
	}{{"b", b}, {Serial(d.leaf.SerialNumber), d}, {filepath.Join(dir, certFile), bob}} {
		list := revoke(t, ca, step.which)
		for again := range 2 {
			if fresh, err := a.Revoke(list); err != nil || fresh != (again == 0) {
				t.Fatalf("%s, time %d: %v, %v", step.which, again, fresh, err)
			}
		}
		if _, n := a.Revocations(); n != uint64(i+1) {
			t.Errorf("list number %d after %d revocations", n, i+1)
		}
	}
	refuses(map[*Identity]bool{b: true, d: true, bob: true})
	if err := a.Refuses(b.leaf); !strings.Contains(err.Error(), "of b was revoked on "+time.Now().UTC().Format(time.DateOnly)) || !strings.Contains(err.Error(), "autoglm ca issue") {
		t.Error(err)
	}
	if again, err := ca.Revoke("b"); err != nil || len(again) != 0 {
		t.Errorf("revoked twice: %v, %v", again, err)
	}
	if _, err := ca.Revoke("nobody"); err == nil || !strings.Contains(err.Error(), "serial number") {
		t.Errorf("nobody: %v", err)
	}
	if _, err := authority(t).Revoke(filepath.Join(dir, certFile)); err == nil || !strings.Contains(err.Error(), "another authority") {
		t.Errorf("another authority's: %v", err)
	}
	// Whoever gets a new certificate is one of them again.
	anew := identity(t, ca, Request{Hosts: []string{"127.0.0.1"}, Name: "b"})
	if _, _, serr, cerr := shake(t, a.Server(), anew.Client()); serr != nil || cerr != nil {
		t.Errorf("b with a new certificate: %v, %v", serr, cerr)
	}
}

// Old lists, lists of others, and what is none change nothing.
func TestListsThatAreRefused(t *testing.T) {
	ca, other := authority(t), authority(t)
	a, b := identity(t, ca, Request{Hosts: []string{"127.0.0.1"}}), identity(t, ca, Request{Name: "b", Role: Read})
	identity(t, ca, Request{Name: "c", Role: Read})
	empty := revoke(t, ca)
	first := revoke(t, ca, "c")
	second := revoke(t, ca, "b")
	if _, err := a.Revoke(second); err != nil {
		t.Fatal(err)
	}
	forge := func(signer, named *CA, n *big.Int) []byte {
		t.Helper()
		c := *named.cert
		c.PublicKey = signer.key.Public()
		der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: n, ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}, &c, signer.key)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: listBlock, Bytes: der})
	}
	block, _ := pem.Decode(second)
	bent := bytes.Clone(block.Bytes)
	bent[len(bent)/2] ^= 1
	for name, c := range map[string]struct {
		list []byte
		want error
		text string
	}{
		"a replay":                     {first, ErrListOld, "number 2, held is number 3"},
		"the first one":                {empty, ErrListOld, ""},
		"another's":                    {forge(other, other, big.NewInt(9)), ErrListForged, ""},
		"another's in this one's name": {forge(other, ca, big.NewInt(9)), ErrListForged, ""},
		"the same number":              {forge(ca, ca, big.NewInt(3)), ErrListOld, "copied"},
		"an endless number":            {forge(ca, ca, new(big.Int).Lsh(big.NewInt(1), 100)), nil, "without a number"},
		"a bit flipped":                {pem.EncodeToMemory(&pem.Block{Type: listBlock, Bytes: bent}), nil, ""},
		"a certificate":                {certPEM(b.leaf.Raw), nil, "no list"},
		"nothing":                      {nil, nil, "no list"},
		"too much":                     {make([]byte, maxList+1), nil, "at most"},
	} {
		_, err := a.Revoke(c.list)
		if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
		if _, n := a.Revocations(); n != 3 || !errors.Is(a.Refuses(b.leaf), ErrRevoked) {
			t.Fatalf("%s: the list is number %d now", name, n)
		}
	}
}

func FuzzList(f *testing.F) {
	dir := f.TempDir()
	if err := InitCA(dir); err != nil {
		f.Fatal(err)
	}
	ca, err := LoadCA(dir)
	if err != nil {
		f.Fatal(err)
	}
	if _, err := ca.Revoke(strings.Repeat("a", 32)); err != nil {
		f.Fatal(err)
	}
	list, err := ca.List()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(list)
	f.Add([]byte("-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		id := &Identity{ca: ca.cert, leaf: &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{}}}
		if fresh, err := id.Revoke(b); fresh && err != nil {
			t.Fatal("taken, and refused")
		}
		_ = id.Refuses(nil)
	})
}
