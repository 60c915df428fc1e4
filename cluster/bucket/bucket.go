// Package bucket keeps files by their content in a bucket of an S3-compatible store,
// beside the nodes that hold them: what is there outlives all of them.
//
//	b, err := bucket.Open(bucket.Config{URL: "s3://models/autoglm", Endpoint: "https://minio.example.com:9000"})
//	err = b.Check(ctx)                                  // autoglm doctor
//	err = b.Put(ctx, ref, f)                            // nothing is sent where it is there
//	transport.RegisterProtocol("s3", b)                 // then a files.Store fetches from b.Holder()
//
// A bucket is one cluster's, whose name stands in it: no other may remove anything. A
// file's key is
//
//	PREFIX/ab/abcdef…   of its hash
//	PREFIX/cluster      the cluster's id
//
// Credentials are those of AWS's own tools: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and
// AWS_SESSION_TOKEN, or a file as ~/.aws/credentials, with AWS_PROFILE.
package bucket

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/open-autoglm/autoglm/cluster/files"
)

// Config of a Bucket.
type Config struct {
	URL         string // s3://BUCKET/PREFIX; the prefix may be empty
	Endpoint    string // https://HOST:PORT; $AWS_ENDPOINT_URL_S3, $AWS_ENDPOINT_URL or AWS when empty
	Region      string // $AWS_REGION, $AWS_DEFAULT_REGION or what the store says when empty
	Credentials string // file as ~/.aws/credentials; the environment's, then that file's when empty
}

// Bucket is a place in a store. Its methods may be called from any goroutine.
type Bucket struct {
	name, prefix string
	endpoint     string
	client       *minio.Core
	transport    *http.Transport
}

// A request that the store did not take, or answer, is sent again after a while, which
// doubles. (The client's own retries read on in a body that an early refusal cut off.)
const (
	tries = 5
	apart = 100 * time.Millisecond
)

// Open prepares; nothing is sent.
func Open(cfg Config) (*Bucket, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil || u.Scheme != "s3" || u.Host == "" || u.RawQuery != "" || u.User != nil {
		return nil, fmt.Errorf("store %q: give s3://BUCKET/PREFIX", cfg.URL)
	}
	b := &Bucket{name: u.Host, prefix: strings.Trim(u.Path, "/")}
	b.endpoint = cmp.Or(cfg.Endpoint, os.Getenv("AWS_ENDPOINT_URL_S3"), os.Getenv("AWS_ENDPOINT_URL"), "https://s3.amazonaws.com")
	e, err := url.Parse(b.endpoint)
	if err != nil || e.Scheme != "https" && e.Scheme != "http" || e.Host == "" || strings.Trim(e.Path, "/") != "" {
		return nil, fmt.Errorf("store's endpoint %q: give https://HOST:PORT", b.endpoint)
	}
	if cfg.Credentials != "" {
		if _, err := os.Stat(cfg.Credentials); err != nil {
			return nil, fmt.Errorf("store's credentials: %w", err)
		}
	}
	file := &credentials.FileAWSCredentials{Filename: cfg.Credentials} // by $AWS_SHARED_CREDENTIALS_FILE or ~/.aws/credentials when empty
	from := credentials.NewChainCredentials([]credentials.Provider{&credentials.EnvAWS{}, file})
	if cfg.Credentials != "" {
		from = credentials.New(file)
	}
	if b.transport, err = minio.DefaultTransport(e.Scheme == "https"); err != nil {
		return nil, err
	}
	b.client, err = minio.NewCore(e.Host, &minio.Options{
		Creds: from, Secure: e.Scheme == "https", Transport: b.transport, MaxRetries: 1,
		Region: cmp.Or(cfg.Region, os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION")),
	})
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", cfg.URL, err)
	}
	return b, nil
}

// Close lets go of idle connections.
func (b *Bucket) Close() { b.transport.CloseIdleConnections() }

func (b *Bucket) String() string { return "s3://" + path.Join(b.name, b.prefix) + " at " + b.endpoint }

func (b *Bucket) key(hash string) string { return path.Join(b.prefix, hash[:2], hash) }

// ask does what f does, again where the store has trouble.
func (b *Bucket) ask(ctx context.Context, f func() error) error {
	for try := 0; ; try++ {
		err := f()
		code := minio.ToErrorResponse(err).StatusCode // 0 where there was no answer
		if err == nil || code >= 400 && code < 500 && code != http.StatusTooManyRequests || try == tries-1 {
			return err
		}
		select {
		case <-time.After(apart << try):
		case <-ctx.Done():
			return err
		}
	}
}

func (b *Bucket) put(ctx context.Context, key string, r io.ReaderAt, size int64) error {
	return b.explain(b.ask(ctx, func() error {
		_, err := b.client.Client.PutObject(ctx, b.name, key, io.NewSectionReader(r, 0, size), size, minio.PutObjectOptions{ContentType: "application/octet-stream"})
		return err
	}))
}

func (b *Bucket) get(ctx context.Context, key string, opts minio.GetObjectOptions) (r io.ReadCloser, h http.Header, err error) {
	err = b.ask(ctx, func() error {
		r, _, h, err = b.client.GetObject(ctx, b.name, key, opts)
		return err
	})
	return r, h, err
}

// explain says what to do about the store's refusal.
func (b *Bucket) explain(err error) error {
	if err == nil {
		return nil
	}
	hint := ""
	switch e := minio.ToErrorResponse(err); e.Code {
	case "NoSuchBucket":
		hint = "; make the bucket, or name another with --store"
	case "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken":
		hint = "; see AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or --store-credentials, and that they may read, write, list and delete there"
	case "RequestTimeTooSkewed":
		hint = "; set this machine's clock"
	case "AuthorizationHeaderMalformed", "PermanentRedirect":
		hint = "; the bucket is in another region: --store-region"
	}
	return fmt.Errorf("store %s: %w%s", b, err, hint)
}

// missing tells of an object that is not there.
func missing(err error) bool { return minio.ToErrorResponse(err).Code == "NoSuchKey" }

// Put keeps a file, unless it is there.
func (b *Bucket) Put(ctx context.Context, ref files.Ref, f *os.File) error {
	if err := ref.Valid(); err != nil {
		return err
	}
	var info minio.ObjectInfo
	err := b.ask(ctx, func() (err error) {
		info, err = b.client.StatObject(ctx, b.name, b.key(ref.Hash), minio.StatObjectOptions{})
		return err
	})
	if err == nil && info.Size == ref.Size {
		return nil
	}
	if err != nil && !missing(err) {
		return b.explain(err)
	}
	return b.put(ctx, b.key(ref.Hash), f, ref.Size)
}

// Holder is where a files.Store fetches from, once RoundTrip stands for the scheme s3.
func (b *Bucket) Holder() string { return "s3://" + b.name }

// RoundTrip implements http.RoundTripper: a GET of Holder's file, or of a range of it, as
// a node would answer it.
func (b *Bucket) RoundTrip(r *http.Request) (*http.Response, error) {
	ref := files.Ref{Hash: strings.TrimPrefix(r.URL.Path, "/")}
	if err := ref.Valid(); err != nil {
		return nil, err
	}
	var opts minio.GetObjectOptions
	code := http.StatusOK
	if want := r.Header.Get("Range"); want != "" {
		code = http.StatusPartialContent
		opts.Set("Range", want)
	}
	body, header, err := b.get(r.Context(), b.key(ref.Hash), opts)
	if missing(err) {
		code, body = http.StatusNotFound, http.NoBody
	} else if err != nil {
		return nil, b.explain(err)
	}
	return &http.Response{
		Status: strconv.Itoa(code) + " " + http.StatusText(code), StatusCode: code, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: header, Body: body, ContentLength: -1, Request: r,
	}, nil
}

// Owner is the cluster whose bucket it is: the one that asks where there was none.
func (b *Bucket) Owner(ctx context.Context, cluster string) (string, error) {
	key := path.Join(b.prefix, "cluster")
	r, _, err := b.get(ctx, key, minio.GetObjectOptions{})
	if err == nil {
		defer r.Close()
		id, err := io.ReadAll(io.LimitReader(r, 1024))
		return string(id), b.explain(err)
	}
	if !missing(err) {
		return "", b.explain(err)
	}
	return cluster, b.put(ctx, key, strings.NewReader(cluster), int64(len(cluster)))
}

// List calls visit with each file and when it was put there.
func (b *Bucket) List(ctx context.Context, visit func(ref files.Ref, at time.Time)) error {
	prefix := ""
	if b.prefix != "" {
		prefix = b.prefix + "/"
	}
	all, err := b.list(ctx, prefix)
	for _, o := range all {
		if ref := (files.Ref{Hash: path.Base(o.Key), Size: o.Size}); ref.Valid() == nil && o.Key == b.key(ref.Hash) {
			visit(ref, o.LastModified)
		}
	}
	return err
}

// list is all objects whose key begins so.
func (b *Bucket) list(ctx context.Context, prefix string) ([]minio.ObjectInfo, error) {
	var all []minio.ObjectInfo
	err := b.ask(ctx, func() error {
		all = all[:0]
		for o := range b.client.ListObjectsIter(ctx, b.name, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
			if o.Err != nil {
				return o.Err
			}
			all = append(all, o)
		}
		return ctx.Err()
	})
	return all, b.explain(err)
}

// Remove forgets a file; one that is not there is no error.
func (b *Bucket) Remove(ctx context.Context, hash string) error {
	return b.explain(b.ask(ctx, func() error {
		return b.client.RemoveObject(ctx, b.name, b.key(hash), minio.RemoveObjectOptions{})
	}))
}

// Check puts, lists, reads and removes a small object, and says what it could not.
func (b *Bucket) Check(ctx context.Context) error {
	text := []byte("autoglm looks whether this bucket can be used " + rand.Text())
	ref := files.Of(bytes.NewReader(text))
	key := b.key(ref.Hash)
	if err := b.put(ctx, key, bytes.NewReader(text), ref.Size); err != nil {
		return fmt.Errorf("writing: %w", err)
	}
	all, err := b.list(ctx, key)
	if err == nil && len(all) != 1 {
		err = b.explain(errors.New("what was written is not listed"))
	}
	if err != nil {
		return fmt.Errorf("listing: %w", err)
	}
	r, _, err := b.get(ctx, key, minio.GetObjectOptions{})
	if err != nil {
		return fmt.Errorf("reading: %w", b.explain(err))
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, text) {
		return fmt.Errorf("reading: %w", b.explain(errors.Join(err, errors.New("other content came back"))))
	}
	if err := b.Remove(ctx, ref.Hash); err != nil {
		return fmt.Errorf("deleting: %w", err)
	}
	return nil
}
