package sign

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
)

// How cosign keeps signatures and attestations: an image with a layer for each.
const (
	signatureKey  = "dev.cosignproject.cosign/signature" // base64 of the signature of a payload
	predicateKey  = "predicateType"
	payloadMedia  = types.MediaType("application/vnd.dev.cosign.simplesigning.v1+json")
	envelopeMedia = types.MediaType("application/vnd.dsse.envelope.v1+json")
	statementType = "application/vnd.in-toto+json"
	statementURI  = "https://in-toto.io/Statement/v0.1"
)

// Limits of what is read before it is known to be signed.
const (
	maxPayload  = 64 << 20
	maxAttached = 256
)

// layer is one signature or attestation.
type layer struct {
	media       types.MediaType
	content     []byte
	annotations map[string]string
}

// layersOf reads what is attached; img may be nil.
func layersOf(img v1.Image) ([]layer, error) {
	if img == nil {
		return nil, nil
	}
	m, err := img.Manifest()
	if err != nil {
		return nil, err
	}
	if len(m.Layers) > maxAttached {
		return nil, fmt.Errorf("%d signatures or attestations are more than %d", len(m.Layers), maxAttached)
	}
	var out []layer
	for _, d := range m.Layers {
		l, err := img.LayerByDigest(d.Digest)
		if err != nil {
			return nil, err
		}
		content, err := readLayer(l, d)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", d.Digest, err)
		}
		out = append(out, layer{d.MediaType, content, d.Annotations})
	}
	return out, nil
}

func readLayer(l v1.Layer, d v1.Descriptor) ([]byte, error) {
	if d.Size > maxPayload {
		return nil, fmt.Errorf("%d bytes are more than %d", d.Size, maxPayload)
	}
	r, err := l.Compressed()
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	content, err := io.ReadAll(io.LimitReader(r, maxPayload+1))
	if err != nil {
		return nil, err
	}
	if h := fmt.Sprintf("%x", sha256.Sum256(content)); h != d.Digest.Hex {
		return nil, errors.New("the content has another digest: it was changed or damaged")
	}
	return content, nil
}

// imageOf is an image of the layers.
func imageOf(layers []layer) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, l := range layers {
		var err error
		img, err = mutate.Append(img, mutate.Addendum{Layer: static.NewLayer(l.content, l.media), Annotations: l.annotations})
		if err != nil {
			return nil, err
		}
	}
	return img, nil
}

// payload is what a signature signs: simple signing
// (https://github.com/containers/image/blob/main/docs/containers-signature.5.md).
type payload struct {
	Critical struct {
		Identity struct {
			Reference string `json:"docker-reference"`
		} `json:"identity"`
		Image struct {
			Digest string `json:"docker-manifest-digest"`
		} `json:"image"`
		Type string `json:"type"`
	} `json:"critical"`
	Optional map[string]any `json:"optional"` // other programs' notes
}

const payloadType = "cosign container image signature"

// newSignature signs the digest of an image's manifest.
func newSignature(s *Signer, name string, digest v1.Hash) (layer, error) {
	var p payload
	p.Critical.Identity.Reference, p.Critical.Image.Digest, p.Critical.Type = name, digest.String(), payloadType
	content, err := json.Marshal(p)
	if err != nil {
		return layer{}, err
	}
	sig, err := s.sign(content)
	if err != nil {
		return layer{}, err
	}
	return layer{payloadMedia, content, map[string]string{signatureKey: base64.StdEncoding.EncodeToString(sig)}}, nil
}

// errOther means that a signature holds by no key that was looked for.
var errOther = errors.New("it is not by this key")

// checkSignature reports why a layer is no signature of the image by whom it should be.
func checkSignature(ctx context.Context, l layer, v Verifier, digest v1.Hash) error {
	if l.media != payloadMedia {
		return fmt.Errorf("media type %q is not known", l.media)
	}
	key, err := v.keyOf(ctx, l)
	if err != nil {
		return err
	}
	sig, err := base64.StdEncoding.DecodeString(l.annotations[signatureKey])
	if err != nil || !verify(key, l.content, sig) {
		return errOther
	}
	var p payload
	if err := json.Unmarshal(l.content, &p); err != nil {
		return err
	}
	if p.Critical.Type != payloadType || p.Critical.Image.Digest != digest.String() {
		return fmt.Errorf("it signs %s %s", p.Critical.Type, p.Critical.Image.Digest)
	}
	return nil
}

// statement says something about an image: in-toto's
// (https://github.com/in-toto/attestation/tree/main/spec/v0.1).
type statement struct {
	Type          string          `json:"_type"`
	PredicateType string          `json:"predicateType"`
	Subject       []subject       `json:"subject"`
	Predicate     json.RawMessage `json:"predicate"`
}

type subject struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

// newAttestation signs a statement about an image, in DSSE's envelope
// (https://github.com/secure-systems-lab/dsse/blob/master/envelope.md).
func newAttestation(s *Signer, name string, digest v1.Hash, predicateType string, predicate []byte) (layer, error) {
	body, err := json.Marshal(statement{
		Type: statementURI, PredicateType: predicateType, Predicate: predicate,
		Subject: []subject{{Name: name, Digest: map[string]string{digest.Algorithm: digest.Hex}}},
	})
	if err != nil {
		return layer{}, err
	}
	sig, err := s.sign(dsse.PAE(statementType, body))
	if err != nil {
		return layer{}, err
	}
	content, err := json.Marshal(dsse.Envelope{
		PayloadType: statementType, Payload: base64.StdEncoding.EncodeToString(body),
		Signatures: []dsse.Signature{{Sig: base64.StdEncoding.EncodeToString(sig)}},
	})
	return layer{envelopeMedia, content, map[string]string{signatureKey: "", predicateKey: predicateType}}, err
}

// checkAttestation is the statement of an envelope, once it is by whom it should be and of
// the image.
func checkAttestation(ctx context.Context, l layer, v Verifier, digest v1.Hash) (*statement, error) {
	if l.media != envelopeMedia {
		return nil, fmt.Errorf("media type %q is not known", l.media)
	}
	key, err := v.keyOf(ctx, l)
	if err != nil {
		return nil, err
	}
	var e dsse.Envelope
	if err := json.Unmarshal(l.content, &e); err != nil {
		return nil, err
	}
	body, err := e.DecodeB64Payload()
	if err != nil {
		return nil, err
	}
	signed := false
	for _, s := range e.Signatures {
		sig, err := base64.StdEncoding.DecodeString(s.Sig)
		signed = signed || err == nil && verify(key, dsse.PAE(e.PayloadType, body), sig)
	}
	if !signed {
		return nil, errOther
	}
	var st statement
	if err := json.NewDecoder(bytes.NewReader(body)).Decode(&st); err != nil {
		return nil, err
	}
	if e.PayloadType != statementType {
		return nil, fmt.Errorf("payload type %q is not known", e.PayloadType)
	}
	for _, s := range st.Subject {
		if s.Digest[digest.Algorithm] == digest.Hex {
			return &st, nil
		}
	}
	return nil, errors.New("it is about another image")
}
