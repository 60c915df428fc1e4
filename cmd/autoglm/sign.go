package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/open-autoglm/autoglm/runtime/durable"
	"github.com/open-autoglm/autoglm/runtime/image"
	"github.com/open-autoglm/autoglm/runtime/sign"
)

// Variables that hold the password of a private key; the second is cosign's.
var passwordVars = []string{"AUTOGLM_KEY_PASSWORD", "COSIGN_PASSWORD"}

// keyPassword is a password from the environment or the terminal, asked for again when a
// key is made.
func keyPassword(ctx context.Context, again bool) ([]byte, error) {
	for _, name := range passwordVars {
		if p, ok := os.LookupEnv(name); ok {
			return []byte(p), nil
		}
	}
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return nil, usageError{fmt.Errorf("the key's password: there is no terminal to ask for it; set %s", passwordVars[0])}
	}
	p, err := askPassword(ctx, "Password of the key: ")
	if err != nil || !again {
		return p, err
	}
	q, err := askPassword(ctx, "Once more: ")
	if err == nil && !bytes.Equal(p, q) {
		err = usageError{errors.New("the passwords differ")}
	}
	return p, err
}

// askPassword reads a line that the terminal doesn't show. An interrupt leaves the
// terminal as it was.
func askPassword(ctx context.Context, prompt string) ([]byte, error) {
	fd := int(os.Stdin.Fd())
	shown, err := term.GetState(fd)
	if err != nil {
		return nil, err
	}
	fmt.Fprint(os.Stderr, prompt)
	defer fmt.Fprintln(os.Stderr)
	var line []byte
	read := make(chan error, 1)
	go func() { // after an interrupt it reads until the process ends, which is at once
		var err error
		line, err = term.ReadPassword(fd)
		read <- err
	}()
	select {
	case err := <-read:
		return line, err
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), term.Restore(fd, shown))
	}
}

func keygenCommand() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "keygen",
		Short: "Make a pair of keys to sign images with",
		Long: `Keygen writes a private key, sealed with a password, and the public key that verifies
what it signs, as cosign generate-key-pair does. The password is asked for, or taken
from AUTOGLM_KEY_PASSWORD or COSIGN_PASSWORD. Keys that are there are never replaced.`,
		Example: `  autoglm keygen                       # cosign.key and cosign.pub
  autoglm keygen --out release         # release.key and release.pub`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			private, public := out+".key", out+".pub"
			for _, path := range []string{private, public} {
				if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
					return usageError{fmt.Errorf("%s is there already; name another pair with --out", path)}
				}
			}
			password, err := keyPassword(c.Context(), true)
			if err != nil {
				return err
			}
			key, pub, err := sign.GenerateKey(password)
			if err != nil {
				return err
			}
			if err := errors.Join(durable.WriteSecret(private, key), durable.WriteFile(public, pub)); err != nil {
				return err
			}
			fmt.Printf("Wrote %s, which stays with you, and %s, which may be known to all.\nNext: autoglm sign LAYOUT --key %s\n", private, public, private)
			return nil
		},
	}
	c.Flags().StringVar(&out, "out", "cosign", "`PREFIX` of the files: PREFIX.key and PREFIX.pub")
	return c
}

// imagePlace is a layout where a folder of that name is one, else a registry's image.
func imagePlace(arg string, insecure bool) (image.Place, error) {
	if image.IsLayout(arg) {
		return image.Layout(arg), nil
	}
	if _, err := os.Stat(arg); err == nil {
		return nil, usageError{fmt.Errorf("%s is no OCI layout; autoglm export BUNDLE --format oci --out DIR writes one", arg)}
	}
	r, err := image.NewRegistry(arg, image.Options{Insecure: insecure})
	if err != nil {
		return nil, usageError{err}
	}
	return r, nil
}

// checkPlace holds a layout's content against its digests; what a registry sends is
// checked as it is read.
func checkPlace(p image.Place) error {
	if l, ok := p.(image.Layout); ok {
		return l.Check()
	}
	return nil
}

// Variables that hold an identity token; the second is cosign's.
var tokenVars = []string{"AUTOGLM_IDENTITY_TOKEN", "SIGSTORE_ID_TOKEN"}

// keylessFlags are those of signing without a key that is kept.
type keylessFlags struct {
	on            bool
	fulcio, rekor string
	token         string // file
}

func (k *keylessFlags) add(c *cobra.Command) {
	fl := c.Flags()
	fl.BoolVar(&k.on, "keyless", false, "sign with a key of the moment, which --fulcio gives a certificate for your identity, and --rekor records")
	fl.StringVar(&k.fulcio, "fulcio", "", "`URL` of the certificate authority")
	fl.StringVar(&k.rekor, "rekor", "", "`URL` of the transparency log")
	fl.StringVar(&k.token, "identity-token", "", "`FILE` with an OpenID Connect identity token; else AUTOGLM_IDENTITY_TOKEN or SIGSTORE_ID_TOKEN holds it")
}

// signer asks the authority for a certificate.
func (k *keylessFlags) signer(ctx context.Context, insecure bool) (*sign.Signer, error) {
	for name, value := range map[string]string{"--fulcio": k.fulcio, "--rekor": k.rekor} {
		if err := httpURL(name, value); err != nil {
			return nil, fmt.Errorf("%w (the public ones are https://fulcio.sigstore.dev and https://rekor.sigstore.dev, where all can read who signed what)", err)
		}
	}
	token, err := k.identityToken()
	if err != nil {
		return nil, err
	}
	return sign.Keyless{
		Fulcio: strings.TrimSuffix(k.fulcio, "/"), Rekor: strings.TrimSuffix(k.rekor, "/"), Token: token,
		Client: sigstoreClient(insecure),
	}.Signer(ctx)
}

func (k *keylessFlags) identityToken() (string, error) {
	if k.token != "" {
		raw, err := os.ReadFile(k.token)
		if err != nil {
			return "", usageError{err}
		}
		return strings.TrimSpace(string(raw)), nil
	}
	for _, name := range tokenVars {
		if v := os.Getenv(name); v != "" {
			return v, nil
		}
	}
	return "", usageError{fmt.Errorf("--keyless needs an identity token: --identity-token FILE, or %s", strings.Join(tokenVars, " or "))}
}

func httpURL(flag, value string) error {
	u, err := url.Parse(value)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return usageError{fmt.Errorf("%s is %q, must be a URL such as https://example.com", flag, value)}
	}
	return nil
}

func sigstoreClient(insecure bool) *http.Client {
	return &http.Client{Transport: image.Transport(image.Options{Insecure: insecure}), Timeout: time.Minute}
}

func signCommand() *cobra.Command {
	var key string
	var insecure bool
	var keyless keylessFlags
	c := &cobra.Command{
		Use:   "sign LAYOUT|REGISTRY/IMAGE (--key FILE | --keyless)",
		Short: "Sign an image, and attest what it holds and where it came from",
		Long: `Sign puts a signature beside an image, and three signed statements: the modules that
its program was built from (SPDX), the model with its model card (CycloneDX), and its
provenance (SLSA: data by hash, job, seed, trial, versions). All are as cosign makes
them; in a layout they lie beside the image, and autoglm push takes them along.

With --key nothing is sent anywhere. The key's password is asked for, or taken from
AUTOGLM_KEY_PASSWORD or COSIGN_PASSWORD.

With --keyless nobody keeps a key: Fulcio gives one of this moment a certificate for the
identity of an OpenID Connect token, and Rekor records the signature and the statements.
Your identity and the hashes can be read there for ever.`,
		Example: `  autoglm sign run1/image --key cosign.key
  autoglm push run1/image ghcr.io/me/whale:1
  cosign verify --key cosign.pub --insecure-ignore-tlog ghcr.io/me/whale:1
  autoglm sign run1/image --keyless --fulcio https://fulcio.sigstore.dev --rekor https://rekor.sigstore.dev --identity-token token`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if keyless.on == (key != "") {
				return usageError{errors.New("sign takes either --key FILE or --keyless")}
			}
			place, err := imagePlace(args[0], insecure)
			if err != nil {
				return err
			}
			var s *sign.Signer
			if keyless.on {
				if err := checkPlace(place); err != nil {
					return err
				}
				s, err = keyless.signer(c.Context(), insecure)
			} else {
				s, err = keptSigner(c.Context(), key, place)
			}
			if err != nil {
				return err
			}
			f, err := sign.Sign(c.Context(), place, s, time.Now())
			if err != nil {
				return err
			}
			if f.Card == nil {
				fmt.Println("!! The model has no card.json: its provenance names no data, job or seed.")
			}
			fmt.Printf("Signed %s, and attested %d modules and %d files of it.\n", f.Digest, len(f.Build.Deps)+1, len(f.Files))
			if who, issuer := s.Identity(); keyless.on {
				fmt.Printf("Next: autoglm verify %s --certificate-identity %s --certificate-oidc-issuer %s --trusted-root FILE\n", args[0], who, issuer)
			} else {
				fmt.Printf("Next: autoglm verify %s --key %s\n", args[0], strings.TrimSuffix(key, ".key")+".pub")
			}
			return nil
		},
	}
	c.Flags().StringVar(&key, "key", "", "private key `FILE`, of autoglm keygen or cosign generate-key-pair")
	keyless.add(c)
	c.Flags().BoolVar(&insecure, "insecure", false, insecureUsage)
	return c
}

// keptSigner opens a private key, once the image is whole.
func keptSigner(ctx context.Context, key string, place image.Place) (*sign.Signer, error) {
	file, err := readKey(key, "cosign.key")
	if err != nil {
		return nil, err
	}
	if err := checkPlace(place); err != nil {
		return nil, err
	}
	password, err := keyPassword(ctx, false)
	if err != nil {
		return nil, err
	}
	s, err := sign.ParsePrivate(file, password)
	if err != nil {
		return nil, usageError{err}
	}
	return s, nil
}

func readKey(path, example string) ([]byte, error) {
	if path == "" {
		return nil, usageError{fmt.Errorf("--key FILE is needed, such as %s", example)}
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, usageError{err}
	}
	return raw, nil
}

// attestations are the names that users know predicates by; they are cosign's.
var attestations = map[string]string{"spdxjson": sign.SPDX, "cyclonedx": sign.CycloneDX, "slsaprovenance1": sign.Provenance}

// signedBy are the flags that say who must have signed.
type signedBy struct{ key, identity, issuer, roots, rekor string }

func (s *signedBy) add(c *cobra.Command) {
	fl := c.Flags()
	fl.StringVar(&s.key, "key", "", "public key `FILE`")
	fl.StringVar(&s.identity, "certificate-identity", "", "`WHO` signed without a key: the email address or URI of the certificate")
	fl.StringVar(&s.issuer, "certificate-oidc-issuer", "", "`URL` of who vouched for that identity")
	fl.StringVar(&s.roots, "trusted-root", "", "`FILE` with the authorities and logs to believe (trusted_root.json of sigstore)")
	fl.StringVar(&s.rekor, "rekor", "", "`URL` of the log, to have it prove its entry as well; else its signed promise does")
}

func (s *signedBy) verifier(insecure bool) (sign.Verifier, error) {
	if s.key != "" {
		if s.identity+s.issuer+s.roots+s.rekor != "" {
			return nil, usageError{errors.New("--key goes without --certificate-identity, --certificate-oidc-issuer, --trusted-root and --rekor")}
		}
		file, err := readKey(s.key, "cosign.pub")
		if err != nil {
			return nil, err
		}
		public, err := sign.ParsePublic(file)
		if err != nil {
			return nil, usageError{err}
		}
		return sign.Key(public), nil
	}
	if s.identity == "" || s.issuer == "" || s.roots == "" {
		return nil, usageError{errors.New("say who must have signed: --key FILE, or --certificate-identity WHO, --certificate-oidc-issuer URL and --trusted-root FILE")}
	}
	file, err := os.ReadFile(s.roots)
	if err != nil {
		return nil, usageError{err}
	}
	root, err := sign.ParseTrustedRoot(file)
	if err != nil {
		return nil, usageError{fmt.Errorf("%s: %w", s.roots, err)}
	}
	by := sign.Identity{Subject: s.identity, Issuer: s.issuer, Root: root}
	if s.rekor != "" {
		if err := httpURL("--rekor", s.rekor); err != nil {
			return nil, err
		}
		by.Log = &sign.Log{URL: strings.TrimSuffix(s.rekor, "/"), Client: sigstoreClient(insecure)}
	}
	return by, nil
}

func verifyCommand() *cobra.Command {
	var by signedBy
	var show string
	var require []string
	var insecure bool
	c := &cobra.Command{
		Use:   "verify LAYOUT|REGISTRY/IMAGE (--key FILE | --certificate-identity WHO)",
		Short: "Check the signature and the attestations of an image",
		Long: `Verify accepts an image that is signed by a key, or by an identity while a transparency
log looked on, with the attestations that --require names, by the same and about the
same image. Of a layout every byte is checked;
what a registry sends is checked where it is pulled. Exit code 1 when it is refused.`,
		Example: `  autoglm verify run1/image --key cosign.pub
  autoglm verify ghcr.io/me/whale:1 --key cosign.pub --require=       # the signature alone
  autoglm verify run1/image --key cosign.pub --show slsaprovenance1   # print where it came from
  autoglm verify ghcr.io/me/whale:1 --certificate-identity me@example.com \
    --certificate-oidc-issuer https://accounts.example.com --trusted-root trusted_root.json`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			place, err := imagePlace(args[0], insecure)
			if err != nil {
				return err
			}
			verifier, err := by.verifier(insecure)
			if err != nil {
				return err
			}
			if show != "" {
				require = append(require, show)
			}
			var wanted []string
			for _, name := range require {
				kind, ok := attestations[name]
				if !ok {
					return usageError{fmt.Errorf("attestation %q is not known; spdxjson, cyclonedx and slsaprovenance1 are", name)}
				}
				wanted = append(wanted, kind)
			}
			r, err := sign.Verify(c.Context(), place, verifier, wanted)
			if err == nil {
				err = checkPlace(place)
			}
			if err != nil {
				return err
			}
			if show != "" {
				_, err := fmt.Printf("%s\n", r.Attestations[attestations[show]])
				return err
			}
			fmt.Printf("%s is signed by %s: %d signature(s), %d attestation(s).\n", r.Digest, cmp.Or(by.key, by.identity), r.Signatures, len(r.Attestations))
			return nil
		},
	}
	by.add(c)
	fl := c.Flags()
	fl.StringSliceVar(&require, "require", []string{"spdxjson", "cyclonedx", "slsaprovenance1"}, "attestations that must be there; none with --require=")
	fl.StringVar(&show, "show", "", "print this attestation instead, as JSON")
	fl.BoolVar(&insecure, "insecure", false, insecureUsage)
	return c
}
