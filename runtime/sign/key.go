package sign

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/secure-systems-lab/go-securesystemslib/encrypted"
)

// PEM types. A private key is PKCS #8, sealed with a password by NaCl's secretbox under a
// key of scrypt: JSON {"kdf", "cipher", "ciphertext"}, as cosign has it.
const (
	privateType    = "ENCRYPTED SIGSTORE PRIVATE KEY"
	oldPrivateType = "ENCRYPTED COSIGN PRIVATE KEY"
	publicType     = "PUBLIC KEY"
)

// ErrPassword means that a key can't be opened by a password.
var ErrPassword = errors.New("the password doesn't open the key")

// Signer holds a private key, and who vouches for it where nobody knows the key itself.
type Signer struct {
	key     *ecdsa.PrivateKey
	witness *witness // nil of a key that is kept
}

// Verifier says by whom an image must be signed: a Key or an Identity.
type Verifier interface {
	// keyOf is the key that a layer must be signed by, once all is right with it but the
	// signature itself. It may ask a log for an entry.
	keyOf(context.Context, layer) (*ecdsa.PublicKey, error)
}

// Key is a Verifier of what one key signed.
func Key(k *ecdsa.PublicKey) Verifier { return oneKey{k} }

type oneKey struct{ *ecdsa.PublicKey }

func (k oneKey) keyOf(context.Context, layer) (*ecdsa.PublicKey, error) { return k.PublicKey, nil }

// GenerateKey makes a pair of keys (ECDSA, P-256), the private one sealed, both as PEM.
func GenerateKey(password []byte) (private, public []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	sealed, err := encrypted.EncryptWithCustomKDFParameters(der, password, encrypted.Standard)
	if err != nil {
		return nil, nil, err
	}
	if der, err = x509.MarshalPKIXPublicKey(&key.PublicKey); err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: privateType, Bytes: sealed}), pem.EncodeToMemory(&pem.Block{Type: publicType, Bytes: der}), nil
}

// ParsePrivate opens a private key. The error wraps ErrPassword where only that is wrong.
func ParsePrivate(file, password []byte) (*Signer, error) {
	block, _ := pem.Decode(file)
	switch {
	case block == nil:
		return nil, errors.New("key: the file is not PEM")
	case block.Type == publicType:
		return nil, errors.New("key: this is a public key; signing takes the private one")
	case block.Type != privateType && block.Type != oldPrivateType:
		return nil, fmt.Errorf("key: PEM of type %q, must be %q; autoglm keygen makes one", block.Type, privateType)
	}
	der, err := encrypted.Decrypt(block.Bytes, password)
	if err != nil {
		return nil, fmt.Errorf("key: %w (%w)", ErrPassword, err)
	}
	any, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	key, ok := any.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("key: only ECDSA keys of P-256 are known")
	}
	return &Signer{key: key}, nil
}

// ParsePublic reads a public key.
func ParsePublic(file []byte) (*ecdsa.PublicKey, error) {
	block, _ := pem.Decode(file)
	switch {
	case block == nil:
		return nil, errors.New("key: the file is not PEM")
	case block.Type != publicType:
		return nil, fmt.Errorf("key: PEM of type %q, must be %q; verifying takes the public key", block.Type, publicType)
	}
	any, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	key, ok := any.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("key: only ECDSA keys of P-256 are known")
	}
	return key, nil
}

// Public is the key that verifies what the signer signs.
func (s *Signer) Public() *ecdsa.PublicKey { return &s.key.PublicKey }

// sign is a signature in ASN.1's DER over the SHA-256 of the message.
func (s *Signer) sign(message []byte) ([]byte, error) {
	h := sha256.Sum256(message)
	return ecdsa.SignASN1(rand.Reader, s.key, h[:])
}

func verify(key *ecdsa.PublicKey, message, signature []byte) bool {
	h := sha256.Sum256(message)
	return ecdsa.VerifyASN1(key, h[:], signature)
}
