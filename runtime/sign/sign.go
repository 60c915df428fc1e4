package sign

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/open-autoglm/autoglm/runtime/image"
)

// ErrUnsigned means that an image lacks a signature, or an attestation, by whom it must be.
var ErrUnsigned = errors.New("is not signed as it must be")

// Sign signs the image of a place, attests what it holds and where it came from, and
// attaches all that.
func Sign(ctx context.Context, p image.Place, s *Signer, now time.Time) (*Facts, error) {
	img, err := p.Image(ctx)
	if err != nil {
		return nil, err
	}
	f, err := inspect(img, p.Name())
	if err != nil {
		return nil, err
	}
	signature, err := newSignature(s, f.Name, f.Digest)
	if err != nil {
		return nil, err
	}
	if signature, err = s.witnessed(ctx, signature); err != nil {
		return nil, err
	}
	mine := func(l layer) bool { return checkSignature(ctx, l, s.earlier(), f.Digest) == nil }
	if err := attach(ctx, p, f.Digest, image.Signatures, mine, signature); err != nil {
		return nil, err
	}
	var attestations []layer
	for _, kind := range Predicates() {
		predicate, err := f.predicate(kind, now)
		if err != nil {
			return nil, err
		}
		a, err := newAttestation(s, f.Name, f.Digest, kind, predicate)
		if err != nil {
			return nil, err
		}
		if a, err = s.witnessed(ctx, a); err != nil {
			return nil, err
		}
		attestations = append(attestations, a)
	}
	mine = func(l layer) bool {
		st, err := checkAttestation(ctx, l, s.earlier(), f.Digest)
		return err == nil && slices.Contains(Predicates(), st.PredicateType)
	}
	return f, attach(ctx, p, f.Digest, image.Attestations, mine, attestations...)
}

// attach adds layers to those that are attached already, in place of old ones.
func attach(ctx context.Context, p image.Place, h v1.Hash, k image.Kind, old func(layer) bool, more ...layer) error {
	was, err := p.Attached(ctx, h, k)
	if err != nil {
		return err
	}
	layers, err := layersOf(was)
	if err != nil {
		return err
	}
	img, err := imageOf(append(slices.DeleteFunc(layers, old), more...))
	if err != nil {
		return err
	}
	return p.Attach(ctx, h, k, img)
}

// Report is what Verify found.
type Report struct {
	Digest       v1.Hash
	Signatures   int
	Attestations map[string]json.RawMessage // the predicates by type
}

// Verify holds the image of a place against who must have signed it: a signature by them,
// and an attestation of each of the types that are wanted. The error wraps ErrUnsigned and says what is wrong
// with those that are there.
func Verify(ctx context.Context, p image.Place, by Verifier, wanted []string) (*Report, error) {
	img, err := p.Image(ctx)
	if err != nil {
		return nil, err
	}
	digest, err := img.Digest()
	if err != nil {
		return nil, err
	}
	r := &Report{Digest: digest, Attestations: map[string]json.RawMessage{}}
	signatures, err := attached(ctx, p, digest, image.Signatures)
	if err != nil {
		return nil, err
	}
	var why error
	for i, l := range signatures {
		if err := checkSignature(ctx, l, by, digest); err != nil {
			why = errors.Join(why, fmt.Errorf("signature %d: %w", i+1, err))
			continue
		}
		r.Signatures++
	}
	if r.Signatures == 0 {
		return nil, unsigned(digest, "", len(signatures), why)
	}
	attestations, err := attached(ctx, p, digest, image.Attestations)
	if err != nil {
		return nil, err
	}
	why = nil
	for i, l := range attestations {
		st, err := checkAttestation(ctx, l, by, digest)
		if err != nil {
			why = errors.Join(why, fmt.Errorf("attestation %d: %w", i+1, err))
			continue
		}
		r.Attestations[st.PredicateType] = st.Predicate
	}
	for _, kind := range wanted {
		if r.Attestations[kind] == nil {
			return nil, unsigned(digest, "attestation "+kind+" of ", len(attestations), why)
		}
	}
	return r, nil
}

func attached(ctx context.Context, p image.Place, h v1.Hash, k image.Kind) ([]layer, error) {
	img, err := p.Attached(ctx, h, k)
	if err != nil {
		return nil, err
	}
	return layersOf(img)
}

func unsigned(digest v1.Hash, what string, n int, why error) error {
	err := fmt.Errorf("%s%s %w", what, digest, ErrUnsigned)
	switch {
	case n == 0:
		return fmt.Errorf("%w: there is none at all", err)
	case why != nil:
		return fmt.Errorf("%w: %w", err, why)
	}
	return err
}
