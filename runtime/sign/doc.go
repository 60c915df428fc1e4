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
// A signer keeps a key, or is Keyless: an authority (Fulcio) gives a key of the moment a
// certificate for the identity of a token, and a log (Rekor) records what it signed. The
// certificate, its chain and the log's promise stand beside a signature as cosign has them,
// so that it is verified without asking anybody:
//
//	signer, err := sign.Keyless{Fulcio: …, Rekor: …, Token: token, Client: http}.Signer(ctx)
//	root, err := sign.ParseTrustedRoot(file)
//	report, err := sign.Verify(ctx, place, sign.Identity{Subject: …, Issuer: …, Root: root}, nil)
//
// With a key nothing is sent to a log: cosign wants --insecure-ignore-tlog to verify that,
// as its own signatures made with --tlog-upload=false do.
//
// Not known: timestamps of RFC 3161, Rekor's second version, the form of sigstore's own
// bundles, names of the kind otherName in certificates.
package sign
