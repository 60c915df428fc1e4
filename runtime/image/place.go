package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/open-autoglm/autoglm/runtime/durable"
)

// Kind of what is attached to an image.
type Kind string

// Kinds, by the ends of their tags.
const (
	Signatures   Kind = "sig"
	Attestations Kind = "att"
)

// kindKey is the annotation by which cosign tells the images of a layout apart.
const (
	kindKey   = "kind"
	kindImage = "dev.cosignproject.cosign/image"
	refKey    = "org.opencontainers.image.ref.name"
)

var kindValues = map[Kind]string{Signatures: "dev.cosignproject.cosign/sigs", Attestations: "dev.cosignproject.cosign/atts"}

// Place is where an image lies, with what is attached to it.
type Place interface {
	// Name is what a signature says was signed.
	Name() string
	// Image is the image; its content is checked as it is read, by Check in a layout.
	Image(context.Context) (v1.Image, error)
	// Attached is what is attached to the image of that digest, nil where nothing is.
	Attached(context.Context, v1.Hash, Kind) (v1.Image, error)
	// Attach replaces what was attached.
	Attach(context.Context, v1.Hash, Kind, v1.Image) error
}

// WriteLayout puts an image at dir, or replaces the layout that is there; another folder
// is refused.
func WriteLayout(dir, ref string, img v1.Image) error {
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 && !IsLayout(dir) {
		return fmt.Errorf("%s holds files but no image; remove it or choose another", dir)
	}
	err := durable.WriteDir(dir, func(tmp string) error {
		p, err := layout.Write(tmp, empty.Index)
		if err != nil {
			return err
		}
		if err := p.WriteImage(img); err != nil {
			return err
		}
		if err := Layout(tmp).put(img, map[string]string{kindKey: kindImage, refKey: ref}); err != nil {
			return err
		}
		return Layout(tmp).Check()
	})
	if err != nil {
		return fmt.Errorf("write image %s: %w", dir, err)
	}
	return nil
}

// WriteArchive puts an image at path, as docker load and podman load take it.
func WriteArchive(path, tag string, img v1.Image) error {
	t, err := name.NewTag(tag)
	if err != nil {
		return err
	}
	err = durable.Write(path, func(w io.Writer) error { return tarball.Write(t, img, w) })
	if err == nil {
		if err = checkArchive(path, &t, img); err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}
	if err != nil {
		return fmt.Errorf("write image %s: %w", path, err)
	}
	return nil
}

// checkArchive reads the layers of an archive back.
func checkArchive(path string, t *name.Tag, img v1.Image) error {
	again, err := tarball.ImageFromPath(path, t)
	if err != nil {
		return err
	}
	want, err := img.Layers()
	if err != nil {
		return err
	}
	got, err := again.Layers()
	if err != nil {
		return err
	}
	if len(got) != len(want) {
		return fmt.Errorf("%d layers of %d read back", len(got), len(want))
	}
	for i, l := range want {
		a, err := l.Digest()
		if err != nil {
			return err
		}
		b, err := got[i].Digest()
		if err != nil {
			return err
		}
		if a != b {
			return fmt.Errorf("layer %s reads back as %s: a file was changed meanwhile, or the disk is damaged", a, b)
		}
	}
	return nil
}

// IsLayout reports whether a folder is an OCI layout.
func IsLayout(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "oci-layout"))
	return err == nil
}

// Layout is a folder with one image.
type Layout string

const indexFile = "index.json"

func (l Layout) index() (v1.IndexManifest, error) {
	var index v1.IndexManifest
	raw, err := os.ReadFile(filepath.Join(string(l), indexFile))
	if err != nil {
		return index, err
	}
	if err := json.Unmarshal(raw, &index); err != nil {
		return index, fmt.Errorf("%s: %w", filepath.Join(string(l), indexFile), err)
	}
	return index, nil
}

// find is the image of that kind. One of another maker has no kind.
func (l Layout) find(kind string) (*v1.Descriptor, error) {
	index, err := l.index()
	if err != nil {
		return nil, err
	}
	var found *v1.Descriptor
	for _, d := range index.Manifests {
		if k := d.Annotations[kindKey]; k != kind && (k != "" || kind != kindImage) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("%s holds several images; keep one to a layout", l)
		}
		found = &d
	}
	return found, nil
}

// Name implements Place.
func (l Layout) Name() string {
	if d, err := l.find(kindImage); err == nil && d != nil {
		return d.Annotations[refKey]
	}
	return ""
}

// Image implements Place.
func (l Layout) Image(context.Context) (v1.Image, error) {
	img, err := l.image(kindImage)
	if err == nil && img == nil {
		err = fmt.Errorf("%s holds no image", l)
	}
	return img, err
}

func (l Layout) image(kind string) (v1.Image, error) {
	d, err := l.find(kind)
	if err != nil || d == nil {
		return nil, err
	}
	if !d.MediaType.IsImage() {
		return nil, fmt.Errorf("%s holds a list of images (%s); export one to a layout of its own", l, d.MediaType)
	}
	return layout.Path(l).Image(d.Digest)
}

// Attached implements Place.
func (l Layout) Attached(_ context.Context, _ v1.Hash, k Kind) (v1.Image, error) {
	return l.image(kindValues[k])
}

// Attach implements Place.
func (l Layout) Attach(_ context.Context, _ v1.Hash, k Kind, img v1.Image) error {
	if err := layout.Path(l).WriteImage(img); err != nil {
		return err
	}
	return l.put(img, map[string]string{kindKey: kindValues[k]})
}

// put names an image, whose blobs are there, in the index, in place of one of its kind.
func (l Layout) put(img v1.Image, annotations map[string]string) error {
	index, err := l.index()
	if err != nil {
		return err
	}
	d, err := partial.Descriptor(img)
	if err != nil {
		return err
	}
	d.Annotations, d.ArtifactType = annotations, ""
	kept := index.Manifests[:0]
	for _, m := range index.Manifests {
		if m.Annotations[kindKey] != annotations[kindKey] {
			kept = append(kept, m)
		}
	}
	index.Manifests = append(kept, *d)
	raw, err := json.MarshalIndent(index, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(string(l), indexFile), append(raw, '\n'))
}

// Check holds every blob of the layout's images against its digest.
func (l Layout) Check() error {
	index, err := l.index()
	if err != nil {
		return err
	}
	for _, d := range index.Manifests {
		if err := l.checkBlob(d.Digest, d.Size); err != nil {
			return err
		}
		img, err := layout.Path(l).Image(d.Digest)
		if err != nil {
			return err
		}
		m, err := img.Manifest()
		if err != nil {
			return err
		}
		for _, b := range append(m.Layers, m.Config) {
			if err := l.checkBlob(b.Digest, b.Size); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l Layout) checkBlob(h v1.Hash, size int64) error {
	r, err := layout.Path(l).Blob(h)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	got, n, err := v1.SHA256(r)
	if err != nil {
		return err
	}
	if got != h || n != size {
		return fmt.Errorf("%s: blob %s has the digest %s and %d bytes, not %d: it was changed or damaged", l, h, got, n, size)
	}
	return nil
}

// Options of a registry.
type Options struct {
	Insecure bool // plain HTTP beyond this machine, and certificates that nobody vouches for
}

// Registry is the image of a reference, such as ghcr.io/me/whale:1.
type Registry struct {
	ref     name.Reference
	options []remote.Option
}

// NewRegistry takes passwords from where docker login and podman login leave them.
func NewRegistry(ref string, o Options) (*Registry, error) {
	var opts []name.Option
	if o.Insecure {
		opts = append(opts, name.Insecure)
	}
	r, err := name.ParseReference(ref, opts...)
	if err != nil {
		return nil, err
	}
	return &Registry{ref: r, options: []remote.Option{
		remote.WithAuthFromKeychain(authn.DefaultKeychain),
		remote.WithTransport(Transport(o)),
		remote.WithUserAgent("autoglm"),
	}}, nil
}

// Transport carries requests with secrets: by TLS, or to this machine.
func Transport(o Options) http.RoundTripper {
	t := remote.DefaultTransport.(*http.Transport).Clone()
	if o.Insecure {
		t.TLSClientConfig.InsecureSkipVerify = true
	}
	return &guard{insecure: o.Insecure, next: t}
}

// guard refuses plain HTTP to other machines, wherever a registry sends us.
type guard struct {
	insecure bool
	next     http.RoundTripper
}

func (g *guard) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" && !g.insecure && !loopback(r.URL.Hostname()) {
		return nil, fmt.Errorf("%s speaks plain HTTP; --insecure allows that", r.URL.Host)
	}
	return g.next.RoundTrip(r)
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (r *Registry) with(ctx context.Context) []remote.Option {
	return append([]remote.Option{remote.WithContext(ctx)}, r.options...)
}

// Name implements Place.
func (r *Registry) Name() string { return r.ref.Context().Name() }

// String is the reference.
func (r *Registry) String() string { return r.ref.Name() }

// Image implements Place.
func (r *Registry) Image(ctx context.Context) (v1.Image, error) {
	d, err := remote.Get(r.ref, r.with(ctx)...)
	if err != nil {
		return nil, err
	}
	if !d.MediaType.IsImage() {
		return nil, fmt.Errorf("%s is a list of images; name one of them by its digest", r.ref)
	}
	return d.Image()
}

// tag is the name of what is attached to an image.
func (r *Registry) tag(h v1.Hash, k Kind) name.Tag {
	return r.ref.Context().Tag(h.Algorithm + "-" + h.Hex + "." + string(k))
}

// Attached implements Place.
func (r *Registry) Attached(ctx context.Context, h v1.Hash, k Kind) (v1.Image, error) {
	img, err := remote.Image(r.tag(h, k), r.with(ctx)...)
	var missing *transport.Error
	if errors.As(err, &missing) && missing.StatusCode == http.StatusNotFound {
		return nil, nil
	}
	return img, err
}

// Attach implements Place.
func (r *Registry) Attach(ctx context.Context, h v1.Hash, k Kind, img v1.Image) error {
	return remote.Write(r.tag(h, k), img, r.with(ctx)...)
}

// Copy puts the image of a layout, and what is attached to it, into a registry. Layers
// that are there already are not sent.
func Copy(ctx context.Context, from Layout, to *Registry) (v1.Hash, error) {
	img, err := from.Image(ctx)
	if err != nil {
		return v1.Hash{}, err
	}
	h, err := img.Digest()
	if err != nil {
		return h, err
	}
	// What is attached goes first: who sees the image finds it signed.
	for _, k := range []Kind{Signatures, Attestations} {
		a, err := from.Attached(ctx, h, k)
		if err == nil && a != nil {
			err = to.Attach(ctx, h, k, a)
		}
		if err != nil {
			return h, err
		}
	}
	return h, remote.Write(to.ref, img, to.with(ctx)...)
}
