package cert

import (
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func authority(t *testing.T) *CA {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ca")
	if err := InitCA(dir); err != nil {
		t.Fatal(err)
	}
	ca, err := LoadCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func identity(t *testing.T, ca *CA, r Request) *Identity {
	t.Helper()
	dir := t.TempDir()
	if err := ca.Issue(r, dir); err != nil {
		t.Fatal(err)
	}
	id, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// shake does a handshake over loopback and returns what each side makes of it.
func shake(t *testing.T, server, client *tls.Config) (name string, role Role, serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := l.Accept()
		if err != nil {
			serverErr = err
			return
		}
		c := tls.Server(raw, server)
		defer c.Close()
		if serverErr = c.Handshake(); serverErr == nil {
			name, role = PeerOf(c.ConnectionState())
			_, serverErr = c.Write([]byte("x"))
		}
	}()
	if client.ServerName == "" {
		client = client.Clone()
		client.ServerName = "127.0.0.1"
	}
	c, err := tls.Dial("tcp", l.Addr().String(), client)
	if err == nil {
		// A server's refusal of our certificate comes with the first read (TLS 1.3).
		if _, err = c.Read(make([]byte, 1)); errors.Is(err, io.EOF) {
			err = nil
		}
		c.Close()
	}
	clientErr = err
	l.Close()
	<-done
	return
}

func TestMutual(t *testing.T) {
	ca := authority(t)
	node := identity(t, ca, Request{Hosts: []string{"127.0.0.1", "gpu1"}})
	elsewhere := identity(t, ca, Request{Hosts: []string{"10.1.1.1"}})
	person := identity(t, ca, Request{Name: "ada", Role: Submit})
	stranger := identity(t, authority(t), Request{Hosts: []string{"127.0.0.1"}})

	for _, c := range []struct {
		name           string
		server, client *tls.Config
		role           Role
		server1        string // of the server's error
		client1        string
	}{
		{"node to node", node.Server(), node.Client(), Node, "", ""},
		{"person to node", node.Server(), person.Client(), Submit, "", ""},
		{"nobody to node", node.Server(), &tls.Config{InsecureSkipVerify: true}, "", "", ""},
		{"wrong host", elsewhere.Server(), node.Client(), "", "", "issue it for the name or address"},
		{"stranger serves", stranger.Server(), node.Client(), "", "", "another authority"},
		{"stranger asks", node.Server(), func() *tls.Config {
			c := stranger.Client()
			c.InsecureSkipVerify = true
			c.VerifyConnection = nil
			return c
		}(), "", "another authority", "does not know this certificate's authority"},
		{"person serves", person.Server(), func() *tls.Config { c := node.Client(); c.ServerName = "ada"; return c }(), "", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, role, serr, cerr := shake(t, c.server, c.client)
			if c.name == "person serves" {
				if cerr == nil {
					t.Fatal("a person's certificate was taken for a node's")
				}
				return
			}
			if c.client1 == "" && cerr != nil || c.client1 != "" && (cerr == nil || !strings.Contains(Explain(cerr).Error(), c.client1)) {
				t.Errorf("client: %v (%T), want %q", cerr, cerr, c.client1)
			}
			if c.server1 != "" && (serr == nil || !strings.Contains(Explain(serr).Error(), c.server1)) {
				t.Errorf("server: %v, want %q", serr, c.server1)
			}
			if role != c.role {
				t.Errorf("role %q, want %q", role, c.role)
			}
		})
	}
}

func TestExpired(t *testing.T) {
	ca := authority(t)
	dir := t.TempDir()
	if err := ca.Issue(Request{Hosts: []string{"127.0.0.1"}, Valid: -time.Minute}, dir); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "expired") || !strings.Contains(err.Error(), "autoglm ca issue") {
		t.Fatalf("an expired certificate: %v", err)
	}
}

func TestToken(t *testing.T) {
	ca := authority(t)
	node := identity(t, ca, Request{Hosts: []string{"127.0.0.1"}})
	token, err := ca.Token(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	ask, err := Ask(token, []string{"10.0.0.2", "gpu2"})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := shake(t, node.Server(), ask.TLS()); err != nil {
		t.Fatalf("dialling with a token: %v", err)
	}
	if _, _, _, err := shake(t, identity(t, authority(t), Request{Hosts: []string{"127.0.0.1"}}).Server(), ask.TLS()); err == nil {
		t.Fatal("a stranger's node was taken for the token's")
	}
	crt, auth, err := ca.Redeem(token, ask.CSR)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "tls")
	if err := ask.Write(dir, crt, auth); err != nil {
		t.Fatal(err)
	}
	id, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if id.Role != Node || id.Name != "10.0.0.2" || id.leaf.DNSNames[0] != "gpu2" {
		t.Fatalf("%+v", id)
	}
	if _, _, err := ca.Redeem(token, ask.CSR); !errors.Is(err, ErrTokenUsed) {
		t.Fatalf("a token used twice: %v", err)
	}
	late, _ := ca.Token(-time.Minute)
	if _, _, err := ca.Redeem(late, ask.CSR); !errors.Is(err, ErrTokenLate) {
		t.Fatalf("a late token: %v", err)
	}
	foreign, _ := authority(t).Token(time.Hour)
	if _, _, err := ca.Redeem(foreign, ask.CSR); !errors.Is(err, ErrToken) {
		t.Fatalf("another authority's token: %v", err)
	}
	// Its expiry can't be moved.
	fresh, _ := ca.Token(time.Hour)
	b, _ := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(fresh, tokenPrefix))
	b[22]++
	if _, _, err := ca.Redeem(tokenPrefix+base64.RawURLEncoding.EncodeToString(b), ask.CSR); !errors.Is(err, ErrToken) {
		t.Fatalf("a forged token: %v", err)
	}
}

func TestFolders(t *testing.T) {
	ca := authority(t)
	if err := InitCA(ca.dir); err == nil {
		t.Fatal("a second authority took the place of the first")
	}
	if _, err := LoadCA(t.TempDir()); err == nil || !strings.Contains(err.Error(), "autoglm ca init") {
		t.Fatalf("no authority: %v", err)
	}
	dir := t.TempDir()
	if err := ca.Issue(Request{Hosts: []string{"a"}}, dir); err != nil {
		t.Fatal(err)
	}
	if err := ca.Issue(Request{Hosts: []string{"a"}}, dir); err != nil {
		t.Fatalf("renewal: %v", err)
	}
	if err := authority(t).Issue(Request{Hosts: []string{"a"}}, dir); err == nil {
		t.Fatal("another authority's certificate was written over")
	}
	if err := os.Chmod(filepath.Join(dir, keyFile), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Fatalf("a key that all can read: %v", err)
	}
	if err := os.Chmod(filepath.Join(dir, keyFile), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); (err == nil) != (os.Getuid() == 0) {
		t.Fatalf("a key that its owner's group can read, of user %d: %v", os.Getuid(), err)
	}
	for _, r := range []Request{{}, {Role: Admin}, {Hosts: []string{"10.0.0.1:7400"}}} {
		if err := ca.Issue(r, t.TempDir()); err == nil {
			t.Errorf("%+v was issued", r)
		}
	}
}

func TestRoles(t *testing.T) {
	for _, c := range []struct {
		have, need Role
		may        bool
	}{{Read, Read, true}, {Read, Submit, false}, {Submit, Read, true}, {Admin, Submit, true}, {Admin, Node, false}, {Node, Admin, true}, {"", Read, false}} {
		if c.have.May(c.need) != c.may {
			t.Errorf("%q may %q: %v", c.have, c.need, !c.may)
		}
	}
}

func FuzzToken(f *testing.F) {
	dir := f.TempDir()
	if err := InitCA(dir); err != nil {
		f.Fatal(err)
	}
	ca, err := LoadCA(dir)
	if err != nil {
		f.Fatal(err)
	}
	good, err := ca.Token(time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, []byte("x"))
	f.Add("agl1.", []byte{})
	f.Fuzz(func(t *testing.T, token string, csr []byte) {
		if _, _, err := ca.Redeem(token, csr); err == nil && token != good {
			t.Fatalf("%q was redeemed", token)
		}
	})
}
