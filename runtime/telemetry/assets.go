package telemetry

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"io"
)

// EChartsVersion is the version of Apache ECharts in the report.
const EChartsVersion = "6.1.0"

// echartsSHA256 is of the unpacked script.
const echartsSHA256 = "b66b25aeb4df84e33199dc21694014d336d222cbd9deb0e5a7c14bd6aa0d0fd0"

var (
	//go:embed assets/echarts.min.js.gz
	echartsGzip []byte
	//go:embed assets/report.html
	reportHTML string
	//go:embed assets/report.css
	reportCSS string
	//go:embed assets/report.js
	reportJS string
)

// echarts unpacks the library.
func echarts() (string, error) {
	r, err := gzip.NewReader(bytes.NewReader(echartsGzip))
	if err != nil {
		return "", fmt.Errorf("embedded echarts: %w", err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return "", fmt.Errorf("embedded echarts: %w", err)
	}
	return string(b), nil
}

// policy is the page's content security policy: nothing is loaded, and no script
// runs but those given.
func policy(scripts ...string) string {
	p := "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; style-src 'unsafe-inline'; script-src"
	for _, s := range scripts {
		sum := sha256.Sum256([]byte(s))
		p += " 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
	}
	return p
}
