package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/gguf"
	"github.com/open-autoglm/autoglm/runtime/image"
)

// exporting is what the flags of export say.
type exporting struct {
	format, out, kind, name, runtime, tag string
	force                                 bool
}

func exportCommand() *cobra.Command {
	var e exporting
	c := &cobra.Command{
		Use:   "export BUNDLE --format gguf|hf|oci --out PATH",
		Short: "Write a model for other programs: GGUF, a Hugging Face folder, a container image",
		Long: `Export writes a bundle, reads what it wrote back, and holds the two against each other.

  gguf   One file for llama.cpp, Ollama, LM Studio and others, with tokenizer and chat
         template. --type says how matrices are stored; norms stay f32:
           f32   as trained
           f16   half the size (default); bf16 has f32's range
           q8_0  about 0.27 of f32: 8 bits a value and a scale for 32 of them
           q4_0  about 0.16 of f32: 4 bits, the output projection q8_0
         A matrix whose rows are no multiple of 32 is f16 in the last two.
  hf     A folder for transformers and vLLM: the bundle, written anew, with --type f32
         (default), f16 or bf16.
  oci    A container image: this program, the model, and a user that may write nothing.
         PATH is a folder (OCI layout, for autoglm push, skopeo and autoglm sign), or a
         file ending in .tar (for docker load and podman load). The same program and
         model give the same digest. It serves the model on ports 8080 (REST) and 9000 (gRPC).

What is written is there whole or not at all. What is at PATH stays, unless --force.`,
		Example: `  autoglm export run1/bundle --format gguf --type q8_0 --out whale.gguf
  autoglm export run1/bundle --format oci --out run1/image
  autoglm push run1/image ghcr.io/me/whale:1
  autoglm export run1/bundle --format oci --out whale.tar --tag me/whale:1 && podman load -i whale.tar`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := e.check(c); err != nil {
				return usageError{err}
			}
			b, err := openBundle(args[0])
			if err != nil {
				return err
			}
			if e.name == "" {
				e.name = b.Card.Name
			}
			if e.name == "" {
				e.name = filepath.Base(filepath.Clean(args[0]))
			}
			if err := os.MkdirAll(filepath.Dir(e.out), 0o755); err != nil {
				return err
			}
			switch e.format {
			case "gguf":
				return e.gguf(b)
			case "hf":
				return e.folder(b)
			}
			return e.image(b, args[0])
		},
	}
	fl := c.Flags()
	fl.StringVar(&e.format, "format", "", "gguf, hf or oci")
	fl.StringVar(&e.out, "out", "", "`PATH` to write to")
	fl.StringVar(&e.kind, "type", "", "of gguf's matrices: f32, f16 (default), bf16, q8_0 (default of an int8 bundle) or q4_0 (of an int4 one); of hf's weights: f32 (default), f16 or bf16")
	fl.StringVar(&e.name, "name", "", "`NAME` of the model (default that of its card)")
	fl.StringVar(&e.runtime, "runtime", "", "static autoglm `FILE` to put into an image, of amd64 or arm64 (default this program)")
	fl.StringVar(&e.tag, "tag", "", "`NAME:TAG` of an image (default its name and latest)")
	fl.BoolVar(&e.force, "force", false, "replace what is at PATH")
	return c
}

// check finds what is wrong with the flags before anything is read.
func (e *exporting) check(c *cobra.Command) error {
	switch {
	case e.format == "":
		return errors.New("--format is needed: gguf, hf or oci")
	case e.out == "":
		return errors.New("--out PATH is needed")
	}
	for _, flag := range []string{"runtime", "tag"} {
		if c.Flags().Changed(flag) && e.format != "oci" {
			return fmt.Errorf("--%s is of --format oci", flag)
		}
	}
	switch e.format {
	case "gguf":
		if _, err := gguf.ParseType(cmp.Or(e.kind, "f16")); err != nil {
			return fmt.Errorf("--type: %w", err)
		}
	case "hf":
		e.kind = cmp.Or(e.kind, "f32")
		if dtypes[e.kind] == "" {
			return fmt.Errorf("--type %s is not known; hf has f32, f16 and bf16", e.kind)
		}
	case "oci":
		if e.kind != "" {
			return errors.New("an image takes the bundle's weights as they are; --type is of the other formats (export --format hf first)")
		}
	default:
		return fmt.Errorf("--format %s is not known; gguf, hf and oci are", e.format)
	}
	info, err := os.Stat(e.out)
	switch {
	case err != nil:
		return nil
	case !e.force:
		return fmt.Errorf("%s is there already; --force replaces it", e.out)
	case info.IsDir() == e.file():
		return fmt.Errorf("%s is not what this writes; remove it or choose another", e.out)
	}
	return nil
}

// file reports whether a file is written, not a folder.
func (e *exporting) file() bool {
	return e.format == "gguf" || e.format == "oci" && strings.HasSuffix(e.out, ".tar")
}

// ggufType is the type of file that loses nothing, or next to nothing, of a model's weights.
func ggufType(b *bundle.Bundle) string {
	kind := "f16"
	for _, p := range b.Params {
		switch {
		case p.Blocks != nil && p.Blocks.Bits == 4:
			return "q4_0"
		case p.Blocks != nil:
			kind = "q8_0"
		}
	}
	return kind
}

func (e *exporting) gguf(b *bundle.Bundle) error {
	t, err := gguf.ParseType(cmp.Or(e.kind, ggufType(b)))
	if err != nil {
		return usageError{err}
	}
	f, notes, err := gguf.FromBundle(b, gguf.Options{Type: t, Name: e.name, License: b.Card.License})
	if err != nil {
		return usageError{err}
	}
	if err := gguf.Write(e.out, f); err != nil {
		return err
	}
	if err := gguf.Verify(e.out, b); err != nil {
		return errors.Join(err, os.Remove(e.out))
	}
	for _, n := range notes {
		fmt.Println("!!", n)
	}
	info, err := os.Stat(e.out)
	if err != nil {
		return err
	}
	counts, values, rest := map[gguf.Type]int{}, map[gguf.Type]int{}, info.Size()
	for _, tensor := range f.Tensors {
		counts[tensor.Type]++
		values[tensor.Type] += len(tensor.Data)
	}
	sizes := f.Bytes()
	for _, t := range gguf.Types() {
		if counts[t] > 0 {
			fmt.Printf("  %-5s %4d tensors %12d values %s\n", t, counts[t], values[t], megabytes(sizes[t]))
			rest -= sizes[t]
		}
	}
	fmt.Printf("  tokenizer, keys and padding               %s\n", megabytes(rest))
	fmt.Printf("%s: %s, %.3f of f32; read back, and all as in the bundle\n", e.out, strings.TrimSpace(megabytes(info.Size())), float64(info.Size())/float64(4*b.Arch.Params()))
	return nil
}

func megabytes(n int64) string { return fmt.Sprintf("%9.2f MB", float64(n)/1e6) }

var dtypes = map[string]bundle.DType{"f32": bundle.Float32, "f16": bundle.Float16, "bf16": bundle.BFloat16}

func (e *exporting) folder(b *bundle.Bundle) error {
	b.DType = dtypes[e.kind]
	if err := bundle.Write(e.out, b); err != nil {
		return usageError{err}
	}
	again, err := bundle.Open(e.out)
	if err != nil {
		return err
	}
	if b.DType == bundle.Float32 && !bundle.Equal(again, b) {
		return fmt.Errorf("%s reads back as another model", e.out)
	}
	info, err := os.Stat(filepath.Join(e.out, bundle.WeightsFile))
	if err != nil {
		return err
	}
	fmt.Printf("%s: weights of %s (%s), read back\n", e.out, strings.TrimSpace(megabytes(info.Size())), e.kind)
	return nil
}

func (e *exporting) image(b *bundle.Bundle, dir string) error {
	if e.runtime == "" {
		e.runtime = "/proc/self/exe"
	}
	tag := e.tag
	if tag == "" {
		tag = slug(e.name) + ":latest"
	}
	img, err := image.Build(image.Spec{Runtime: e.runtime, Model: dir, Title: e.name, Description: b.Card.Summary, License: b.Card.License})
	if err != nil {
		return usageError{err}
	}
	if e.file() {
		err = image.WriteArchive(e.out, tag, img)
	} else {
		err = image.WriteLayout(e.out, tag, img)
	}
	if err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	total := int64(0)
	for i, what := range []string{"runtime", "tokenizer and configuration", "weights"} {
		n, err := layers[i].Size()
		if err != nil {
			return err
		}
		h, err := layers[i].Digest()
		if err != nil {
			return err
		}
		fmt.Printf("  %-28s %s  %s\n", what, megabytes(n), h)
		total += n
	}
	h, err := img.Digest()
	if err != nil {
		return err
	}
	fmt.Printf("%s: %s, %s, %s\n", e.out, tag, strings.TrimSpace(megabytes(total)), h)
	if e.file() {
		fmt.Printf("Next: podman load -i %s && podman run --read-only -p 8080:8080 %s\n", e.out, tag)
	} else {
		fmt.Printf("Next: autoglm sign %s --key cosign.key; autoglm push %s REGISTRY/NAME:TAG\n", e.out, e.out)
	}
	return nil
}

var notSlug = regexp.MustCompile(`[^a-z0-9]+`)

// slug is a name that images may have.
func slug(s string) string {
	s = strings.Trim(notSlug.ReplaceAllString(strings.ToLower(s), "-"), "-")
	if len(s) < 2 { // registries' clients want two characters
		return "autoglm-model"
	}
	return s
}
