package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/gpu/device/devicetest"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/serve"
	"github.com/open-autoglm/autoglm/runtime/serve/oip/api"
	"github.com/open-autoglm/autoglm/runtime/serve/servetest"
)

func tinyBundleDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "bundle")
	if err := bundle.Write(dir, servetest.Bundle(t, 1)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestServeRefuses(t *testing.T) {
	dir := tinyBundleDir(t)
	local := []string{"--listen", "127.0.0.1:0", "--grpc", "127.0.0.1:0"}
	for name, args := range map[string][]string{
		"no bundle":        {},
		"not a bundle":     append([]string{t.TempDir()}, local...),
		"two of a name":    append([]string{"a=" + dir, "a=" + dir}, local...),
		"a name with @":    append([]string{"a@1=" + dir}, local...),
		"open to all":      {dir, "--listen", "0.0.0.0:0"},
		"gRPC open to all": {dir, "--listen", "127.0.0.1:0", "--grpc", ":0"},
		"no address":       {dir, "--listen", "here"},
		"no keys":          append([]string{dir, "--keys", filepath.Join(t.TempDir(), "none")}, local...),
		"half of TLS":      append([]string{dir, "--tls-cert", "x"}, local...),
		"no certificate":   append([]string{dir, "--tls-cert", "x", "--tls-key", "y"}, local...),
		"no slots":         append([]string{dir, "--slots", "0"}, local...),
		"half a page":      append([]string{dir, "--kv-cache", "100"}, local...),
		"negative queue":   append([]string{dir, "--queue", "-1"}, local...),
		"negative threads": append([]string{dir, "--threads", "-1"}, local...),
		"no device":        append([]string{dir, "--device", "tpu"}, local...),
		"a load above 1":   append([]string{dir, "--gpu-load", "1.5"}, local...),
		"hysteresis":       append([]string{dir, "--gpu-hysteresis", "0.9"}, local...),
		"no time":          append([]string{dir, "--timeout", "0"}, local...),
		"canary":           append([]string{dir, "--canary", "x"}, local...),
		"canary's model":   append([]string{"m=" + dir, "--canary", "n=" + dir + ":5"}, local...),
		"canary's share":   append([]string{"m=" + dir, "--canary", "m=" + dir + ":0"}, local...),
	} {
		if code := run(append([]string{"serve"}, args...)); code != exitUsage {
			t.Errorf("%s: exit code %d", name, code)
		}
	}
}

// Where serve computes, on machines and builds made up.
func TestServeDevices(t *testing.T) {
	engines := func(gpus int, openErr error) *gpuEngine {
		return &gpuEngine{
			count: func() int { return gpus },
			open: func(a glm.Arch, state engine.StateDict, seqs int) (engine.Decoder, error) {
				if openErr != nil {
					return nil, openErr
				}
				return native.NewDecoder(a, state, native.DecoderOptions{MaxSeqs: seqs})
			},
		}
	}
	full := errors.New("the GPU's memory is full")
	b := servetest.Bundle(t, 1)
	for _, c := range []struct {
		device string
		engine *gpuEngine
		want   string // the decoder, or the error
	}{
		{"cpu", engines(1, nil), "cpu"},
		{"auto", nil, "cpu"},
		{"auto", engines(0, nil), "cpu"},
		{"auto", engines(1, nil), "pair"},
		{"auto", engines(1, full), "cpu"},
		{"gpu", engines(1, nil), "gpu"},
		{"gpu", engines(1, full), "memory is full"},
		{"gpu", nil, "this build can't compute on GPUs"},
		{"gpu", engines(0, nil), "libtorch sees no GPU"},
		{"tpu", nil, "give auto, cpu or gpu"},
	} {
		f := serveFlags{device: c.device, gpuLoad: 0.7, gpuHysteresis: 0.1}
		got := ""
		d, err := f.devices(c.engine)
		if err == nil {
			var cpu, dec engine.Decoder
			dec, err = d.decoder(b.Arch, b.Params, 2, func() (engine.Decoder, error) {
				var err error
				cpu, err = native.NewDecoder(b.Arch, b.Params, native.DecoderOptions{MaxSeqs: 2})
				return cpu, err
			})
			if _, is := dec.(*serve.Pair); is {
				got = "pair"
			} else if got = "cpu"; dec != cpu {
				got = "gpu"
			}
			if err == nil {
				err = dec.Close()
			}
			d.load.close()
		}
		if err != nil {
			got = err.Error()
		}
		if got != c.want && (err == nil || !strings.Contains(got, c.want)) {
			t.Errorf("%s: %s, want %s", c.device, got, c.want)
		}
	}
}

// The load is the first GPU's; one that is sick, gone or unreadable is not known.
func TestGPULoad(t *testing.T) {
	fake := devicetest.New(2)
	l := gpuLoad{[]device.Source{fake}}
	fake.Set(0, func(d *device.Device) { d.Load = 0.4 })
	if got := l.load(); got != 0.4 {
		t.Error(got)
	}
	fake.Set(0, func(d *device.Device) { d.Sick = "XID 79" })
	if got := l.load(); got != -1 {
		t.Errorf("of a sick one: %g", got)
	}
	l.sources = []device.Source{devicetest.New(0)}
	if got := l.load(); got != -1 {
		t.Errorf("of none: %g", got)
	}
	l.close()
}

func TestServedNames(t *testing.T) {
	got, err := parseNamed([]string{"run1/bundle", "x=y/z", "/models/small"})
	if err != nil || fmt.Sprint(got) != "[{run1 run1/bundle} {x y/z} {small /models/small}]" {
		t.Errorf("%v, %v", got, err)
	}
	if b, percent, err := parseCanary("m=c:/x:12.5%"); err != nil || b.name != "m" || b.dir != "c:/x" || percent != 12.5 {
		t.Errorf("%v, %g, %v", b, percent, err)
	}
}

// certificate writes one of this machine's own.
func certificate(t *testing.T) (cert, key string, pool *x509.CertPool) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "serve"}, NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &priv.PublicKey, priv)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key, pool = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), x509.NewCertPool()
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: raw}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return cert, key, pool
}

// A whole life: keys, TLS, both protocols, a reload, and a stream that outlives SIGTERM.
func TestServe(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	var out bytes.Buffer
	c := apikeyCommand()
	c.SetOut(&out)
	c.SetArgs([]string{"ada", "--file", file})
	if err := c.Execute(); err != nil {
		t.Fatal(err)
	}
	key := strings.TrimSpace(out.String())
	if code := run([]string{"apikey", "ada", "--file", file}); code != exitUsage {
		t.Errorf("a second key of a name: exit code %d", code)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	cert, certKey, pool := certificate(t)
	ctx, cancel := context.WithCancel(t.Context())
	ready := make(chan [2]string, 1)
	f := serveFlags{
		listen: "127.0.0.1:0", grpc: "127.0.0.1:0", keys: file, cert: cert, key: certKey, slots: 4, queue: 4, maxBody: 1 << 20,
		timeout: time.Minute, grace: 30 * time.Second, prefix: 1 << 20, device: "cpu", ready: func(web, rpc string) { ready <- [2]string{web, rpc} },
	}
	done := make(chan error, 1)
	go func() { done <- f.run(ctx, []string{"tiny=" + tinyBundleDir(t)}) }()
	var addr [2]string
	select {
	case addr = <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	defer client.CloseIdleConnections()
	do := func(method, path, body string) (int, io.ReadCloser) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "https://"+addr[0]+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer "+key)
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, res.Body
	}
	text := func(method, path, body string) (int, string) {
		t.Helper()
		status, r := do(method, path, body)
		defer func() { _ = r.Close() }()
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return status, string(b)
	}
	if status, body := text("POST", "/v1/completions", `{"prompt":"x","max_tokens":3}`); status != 200 {
		t.Errorf("%d %s", status, body)
	}
	conn, err := grpc.NewClient(addr[1], grpc.WithTransportCredentials(credentials.NewClientTLSFromCert(pool, "")))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	md := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+key)
	if m, err := api.NewGRPCInferenceServiceClient(conn).ModelMetadata(md, &api.ModelMetadataRequest{Name: "tiny"}); err != nil || len(m.Versions) != 1 {
		t.Errorf("%v, %v", m, err)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, body := text("GET", "/v1/models", ""); strings.Contains(body, `"versions":["2"]`) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("SIGHUP reloads nothing")
		}
	}
	status, stream := do("POST", "/v1/completions", `{"prompt":"x","max_tokens":200,"ignore_eos":true,"stream":true}`)
	defer func() { _ = stream.Close() }()
	lines := bufio.NewReader(stream)
	if line, err := lines.ReadString('\n'); status != 200 || err != nil || !strings.HasPrefix(line, "data: ") {
		t.Errorf("%d %q, %v", status, line, err)
	}
	cancel()
	rest, err := io.ReadAll(lines)
	if err != nil || !strings.HasSuffix(string(rest), "data: [DONE]\n\n") {
		t.Errorf("a stream that began before the end: %v, %.200s", err, rest[max(0, len(rest)-200):])
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
