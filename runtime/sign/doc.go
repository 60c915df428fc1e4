// Package sign signs images, says what is in them and where they came from, and checks
// that, in the forms that cosign 2 reads and writes.
//
//	private, public, err := sign.GenerateKey(password)
//	signer, err := sign.ParsePrivate(private, password)
//	facts, err := sign.Sign(ctx, place, signer, time.Now())       // signature, SBOMs, provenance
//	key, err := sign.ParsePublic(public)
//	report, err := sign.Verify(ctx, place, key, sign.Predicates())
//
// A signature is over the digest of the image's manifest, which holds those of its layers.
// The attestations are statements of in-toto in DSSE envelopes: an SPDX document of the
// modules that the runtime was built from, a CycloneDX document of the model with its
// model card, and SLSA provenance that names the training data by hash, the job, the seed,
// the trial and the versions, as far as the bundle's card does. All facts are read out of
// the image that is signed.
//
// The caller's duties: a Place that doesn't check what it reads, such as a layout, is
// checked before it is signed. Whoever holds the password holds the key.
//
// Invariants: Verify reads nothing of an attestation before its signature holds, and
// accepts none that is of another image. Signing again replaces what the same key signed,
// and leaves what others did.
//
// There is no transparency log: cosign wants --insecure-ignore-tlog to verify, as its own
// signatures made with --tlog-upload=false do.
package sign
