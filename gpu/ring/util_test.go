package ring

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"
)

// tlsEndpoint listens and dials with mutual TLS of a certificate of its own kind.
func tlsEndpoint(t testing.TB) *Endpoint {
	t.Helper()
	ep, err := NewEndpoint(EndpointConfig{NoLocal: true, TLS: tlsConfig(t)})
	if err != nil {
		t.Fatal(err)
	}
	return ep
}

func tlsConfig(t testing.TB) *tls.Config {
	cert, pool := certificate(t)
	return &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, RootCAs: pool, ServerName: "ring",
	}
}

// onHost is an endpoint that takes itself to be on one of several hosts: two ranks
// on each, or with alone one on the first and the last.
func onHost(t testing.TB, r int, how string) *Endpoint {
	t.Helper()
	var cfg EndpointConfig
	host := r / 2
	switch how {
	case "hierarchical tls":
		cfg.TLS = tlsConfig(t)
	case "hierarchical alone":
		host = (r + 1) / 2
	case "library afar":
		host = r
	}
	ep, err := NewEndpoint(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ep.host = fmt.Sprint("host ", host)
	return ep
}

var (
	theCert  *tls.Certificate
	certOnce sync.Once
)

func certificate(t testing.TB) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	certOnce.Do(func() {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		tmpl := &x509.Certificate{
			SerialNumber: big.NewInt(1), DNSNames: []string{"ring"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		theCert = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
	})
	pool := x509.NewCertPool()
	pool.AddCert(theCert.Leaf)
	return *theCert, pool
}

// A rank that is quick reaches another one before that has begun to expect the
// first of all epochs.
func TestTheFirstEpochWaits(t *testing.T) {
	ep, err := NewEndpoint(EndpointConfig{NoTCP: true})
	if err != nil {
		t.Fatal(err)
	}
	defer ep.Close()
	c, err := net.Dial("unix", ep.unixAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := (hello{purpose: forData, rank: 1, world: 2}).write(c); err != nil {
		t.Fatal(err)
	}
	g := <-ep.expect(0)
	if g.hello.rank != 1 {
		t.Errorf("rank %d came", g.hello.rank)
	}
	g.conn.Close()
}
