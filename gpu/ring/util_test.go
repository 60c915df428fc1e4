package ring

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/open-autoglm/autoglm/gpu/kernel"
)

func f32bits(x float32) uint32 { return math.Float32bits(x) }

func half(dt DType, x float32) uint16 {
	var out [1]uint16
	if dt == BF16 {
		kernel.EncodeBF16(out[:], []float32{x})
	} else {
		kernel.EncodeF16(out[:], []float32{x})
	}
	return out[0]
}

func widen(dt DType, h uint16) float32 {
	var out [1]float32
	if dt == BF16 {
		kernel.DecodeBF16(out[:], []uint16{h})
	} else {
		kernel.DecodeF16(out[:], []uint16{h})
	}
	return out[0]
}

// tlsEndpoint listens and dials with mutual TLS of a certificate of its own kind.
func tlsEndpoint(t testing.TB) *Endpoint {
	t.Helper()
	cert, pool := certificate(t)
	ep, err := NewEndpoint(EndpointConfig{NoLocal: true, TLS: &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, RootCAs: pool, ServerName: "ring",
	}})
	if err != nil {
		t.Fatal(err)
	}
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

var bg = context.Background()

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
