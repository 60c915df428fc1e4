package data

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// DataPlugin is a source of data. Connect comes first and once; Fetch gives the
// stored bytes, which the caller reads to the end and closes; Preprocess turns
// them into a format that is read here (JSONL, JSON, CSV, Parquet or plain text,
// compressed or not) and may return its argument. Calls don't overlap.
type DataPlugin interface {
	Connect(config map[string]string) error
	Fetch(ctx context.Context) (io.ReadCloser, error)
	Preprocess(r io.Reader) (io.Reader, error)
}

// FromBytes makes a plugin of a function that gives all bytes at once and one that
// transforms them; both hold the data in memory. transform may be nil.
func FromBytes(fetch func(ctx context.Context, config map[string]string) ([]byte, error), transform func([]byte) ([]byte, error)) DataPlugin {
	return &bytesPlugin{fetch: fetch, transform: transform}
}

type bytesPlugin struct {
	config    map[string]string
	fetch     func(ctx context.Context, config map[string]string) ([]byte, error)
	transform func([]byte) ([]byte, error)
}

func (p *bytesPlugin) Connect(config map[string]string) error {
	p.config = config
	return nil
}

func (p *bytesPlugin) Fetch(ctx context.Context) (io.ReadCloser, error) {
	b, err := p.fetch(ctx, p.config)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (p *bytesPlugin) Preprocess(r io.Reader) (io.Reader, error) {
	if p.transform == nil {
		return r, nil
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	if b, err = p.transform(b); err != nil {
		return nil, err
	}
	return bytes.NewReader(b), nil
}

// FileSource reads a file; Connect takes "path".
type FileSource struct{ path string }

// Connect checks the file.
func (s *FileSource) Connect(config map[string]string) error {
	f, _, err := checkFile(config["path"])
	if err != nil {
		return err
	}
	s.path = config["path"]
	return f.Close()
}

// Fetch opens the file.
func (s *FileSource) Fetch(context.Context) (io.ReadCloser, error) {
	f, _, err := checkFile(s.path)
	return f, err
}

// Preprocess changes nothing.
func (s *FileSource) Preprocess(r io.Reader) (io.Reader, error) { return r, nil }

// HTTPSource fetches a URL; Connect takes "url", and "max_bytes" is the field
// MaxBytes. A download that stops is an error: it is not resumed.
type HTTPSource struct {
	MaxBytes int64         // 0: 64 GiB
	Timeout  time.Duration // for the answer's header, and for each pause of the body; 0: 30 s
	Client   *http.Client  // nil: one of its own
	url      string
	ext      string
}

// Connect checks the URL.
func (s *HTTPSource) Connect(config map[string]string) error {
	u, err := url.Parse(config["url"])
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return &InputError{File: config["url"], Msg: "is not an http or https URL", Hint: "give it as https://host/path", Err: err}
	}
	s.url, s.ext = u.String(), extension(u.Path)
	return nil
}

// Ext tells the format's ending, from the URL or, after Fetch, the content type.
func (s *HTTPSource) Ext() string { return s.ext }

// Fetch begins the download.
func (s *HTTPSource) Fetch(ctx context.Context) (io.ReadCloser, error) {
	limit, wait := s.MaxBytes, s.Timeout
	if limit == 0 {
		limit = 64 << 30
	}
	if wait == 0 {
		wait = 30 * time.Second
	}
	client := s.Client
	if client == nil {
		client = &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	late := &InputError{File: s.url, Msg: fmt.Sprintf("server was silent for %s", wait), Hint: "try again later, or download the file and name it"}
	timer := time.AfterFunc(wait, func() { cancel(late) })
	fail := func(err error) error {
		timer.Stop()
		cancel(nil)
		if c := context.Cause(ctx); c != nil && !errors.Is(c, context.Canceled) {
			return c
		}
		return &InputError{File: s.url, Msg: "cannot be fetched: " + err.Error(), Hint: "check the address and the network", Err: err}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return nil, fail(err)
	}
	req.Header.Set("Accept-Encoding", "identity")
	resp, err := client.Do(req)
	if err != nil {
		return nil, fail(err)
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		return nil, fail(errors.New("server answers " + resp.Status))
	}
	if resp.ContentLength > limit {
		_ = resp.Body.Close()
		return nil, fail(fmt.Errorf("it has %d bytes, the limit is %d", resp.ContentLength, limit))
	}
	if t, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err == nil && !knownExt[s.ext] {
		s.ext = map[string]string{
			"application/json": "json", "application/x-ndjson": "jsonl", "application/jsonl": "jsonl", "text/csv": "csv",
			"text/tab-separated-values": "tsv", "text/plain": "", "application/vnd.apache.parquet": "parquet",
		}[t]
	}
	return &httpBody{body: resp.Body, want: resp.ContentLength, limit: limit, timer: timer, wait: wait, fail: fail}, nil
}

var knownExt = map[string]bool{"jsonl": true, "json": true, "csv": true, "tsv": true, "parquet": true, "txt": true}

type httpBody struct {
	body           io.ReadCloser
	n, want, limit int64
	timer          *time.Timer
	wait           time.Duration
	fail           func(error) error
}

func (b *httpBody) Read(p []byte) (int, error) {
	b.timer.Reset(b.wait)
	n, err := b.body.Read(p)
	b.n += int64(n)
	switch {
	case b.n > b.limit:
		return n, b.fail(fmt.Errorf("it has more than %d bytes", b.limit))
	case err == io.EOF && b.want >= 0 && b.n < b.want:
		return n, b.fail(fmt.Errorf("the connection ended after %d of %d bytes", b.n, b.want))
	case err != nil && err != io.EOF:
		return n, b.fail(err)
	}
	return n, err
}

func (b *httpBody) Close() error {
	b.timer.Stop()
	err := b.body.Close()
	_ = b.fail(errors.New("closed"))
	return err
}

// Preprocess changes nothing.
func (s *HTTPSource) Preprocess(r io.Reader) (io.Reader, error) { return r, nil }

// gather brings every source onto the disk: files stay where they are, all others
// are written to tmp. Cleaning steps are started and given back; the caller closes
// them.
func (c *Config) gather(ctx context.Context, tmp string, ev Events) (sources []source, steps []*Command, err error) {
	defer func() {
		if err != nil {
			for _, s := range steps {
				_ = s.Close()
			}
			steps = nil
		}
	}()
	files, err := expand(c.Files)
	if err != nil {
		return nil, nil, err
	}
	for _, f := range files {
		sources = append(sources, newSource(f))
	}
	for i, u := range c.URLs {
		ev.phase("fetch " + u)
		h := &HTTPSource{}
		if err := h.Connect(map[string]string{"url": u}); err != nil {
			return nil, steps, err
		}
		p := filepath.Join(tmp, fmt.Sprintf("url-%d", i))
		if err := download(ctx, h, p, u); err != nil {
			return nil, steps, err
		}
		sources = append(sources, source{name: u, path: p, ext: h.Ext()})
	}
	for i, s := range c.Sources {
		name := fmt.Sprintf("source %d (%T)", i+1, s)
		p := filepath.Join(tmp, fmt.Sprintf("source-%d", i))
		if err := download(ctx, s, p, name); err != nil {
			return nil, steps, err
		}
		sources = append(sources, source{name: name, path: p})
	}
	for i, pc := range c.Plugins {
		cmd := &Command{Args: pc.Command, Log: ev.Log}
		if err := cmd.Connect(pc.Config); err != nil {
			return nil, steps, err
		}
		if cmd.Role() == RoleClean {
			steps = append(steps, cmd)
			continue
		}
		ev.phase("fetch " + cmd.Name())
		p := filepath.Join(tmp, fmt.Sprintf("plugin-%d.jsonl", i))
		err := download(ctx, cmd, p, cmd.Name())
		if cerr := cmd.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return nil, steps, err
		}
		sources = append(sources, source{name: cmd.Name(), path: p, ext: "jsonl"})
	}
	if len(sources) == 0 {
		return nil, steps, &InputError{Field: "data", Msg: "no source of data is named, only cleaning steps", Hint: "give at least one file"}
	}
	return sources, steps, nil
}

func download(ctx context.Context, p DataPlugin, path, name string) error {
	in, err := p.Fetch(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	r, err := p.Preprocess(in)
	if err != nil {
		return fmt.Errorf("preprocess %s: %w", name, err)
	}
	f, err := os.Create(path)
	if err != nil {
		return writeError(path, err)
	}
	if _, err = io.Copy(f, r); err != nil {
		_ = f.Close()
		var pe *os.PathError
		if errors.As(err, &pe) && pe.Op == "write" {
			return writeError(path, err)
		}
		return err
	}
	return writeError(path, f.Close())
}
