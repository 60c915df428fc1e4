package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
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

func signCommand() *cobra.Command {
	var key string
	var insecure bool
	c := &cobra.Command{
		Use:   "sign LAYOUT|REGISTRY/IMAGE --key FILE",
		Short: "Sign an image, and attest what it holds and where it came from",
		Long: `Sign puts a signature beside an image, and three signed statements: the modules that
its program was built from (SPDX), the model with its model card (CycloneDX), and its
provenance (SLSA: data by hash, job, seed, trial, versions). All are as cosign makes
them; in a layout they lie beside the image, and autoglm push takes them along.
Nothing is sent to a transparency log.

The key's password is asked for, or taken from AUTOGLM_KEY_PASSWORD or COSIGN_PASSWORD.`,
		Example: `  autoglm sign run1/image --key cosign.key
  autoglm push run1/image ghcr.io/me/whale:1
  cosign verify --key cosign.pub --insecure-ignore-tlog ghcr.io/me/whale:1`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			place, err := imagePlace(args[0], insecure)
			if err != nil {
				return err
			}
			file, err := readKey(key, "cosign.key")
			if err != nil {
				return err
			}
			if err := checkPlace(place); err != nil {
				return err
			}
			password, err := keyPassword(c.Context(), false)
			if err != nil {
				return err
			}
			s, err := sign.ParsePrivate(file, password)
			if err != nil {
				return usageError{err}
			}
			f, err := sign.Sign(c.Context(), place, s, time.Now())
			if err != nil {
				return err
			}
			if f.Card == nil {
				fmt.Println("!! The model has no card.json: its provenance names no data, job or seed.")
			}
			fmt.Printf("Signed %s, and attested %d modules and %d files of it.\nNext: autoglm verify %s --key %s\n", f.Digest, len(f.Build.Deps)+1, len(f.Files), args[0], strings.TrimSuffix(key, ".key")+".pub")
			return nil
		},
	}
	c.Flags().StringVar(&key, "key", "", "private key `FILE`, of autoglm keygen or cosign generate-key-pair")
	c.Flags().BoolVar(&insecure, "insecure", false, insecureUsage)
	return c
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

func verifyCommand() *cobra.Command {
	var key, show string
	var require []string
	var insecure bool
	c := &cobra.Command{
		Use:   "verify LAYOUT|REGISTRY/IMAGE --key FILE",
		Short: "Check the signature and the attestations of an image",
		Long: `Verify accepts an image that is signed by a key, with the attestations that --require
names, by the same key and about the same image. Of a layout every byte is checked;
what a registry sends is checked where it is pulled. Exit code 1 when it is refused.`,
		Example: `  autoglm verify run1/image --key cosign.pub
  autoglm verify ghcr.io/me/whale:1 --key cosign.pub --require=       # the signature alone
  autoglm verify run1/image --key cosign.pub --show slsaprovenance1   # print where it came from`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			place, err := imagePlace(args[0], insecure)
			if err != nil {
				return err
			}
			file, err := readKey(key, "cosign.pub")
			if err != nil {
				return err
			}
			public, err := sign.ParsePublic(file)
			if err != nil {
				return usageError{err}
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
			r, err := sign.Verify(c.Context(), place, public, wanted)
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
			fmt.Printf("%s is signed by %s: %d signature(s), %d attestation(s).\n", r.Digest, key, r.Signatures, len(r.Attestations))
			return nil
		},
	}
	fl := c.Flags()
	fl.StringVar(&key, "key", "", "public key `FILE`")
	fl.StringSliceVar(&require, "require", []string{"spdxjson", "cyclonedx", "slsaprovenance1"}, "attestations that must be there; none with --require=")
	fl.StringVar(&show, "show", "", "print this attestation instead, as JSON")
	fl.BoolVar(&insecure, "insecure", false, insecureUsage)
	return c
}
