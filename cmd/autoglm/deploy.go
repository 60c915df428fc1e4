package main

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"github.com/open-autoglm/autoglm/runtime/durable"
	"github.com/open-autoglm/autoglm/runtime/sign"
)

//go:embed deploy
var deployFiles embed.FS

func deployCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "deploy", Short: "Print units and manifests that start nodes, or serve models", Args: cobra.NoArgs,
		Long: `Deploy prints a file that starts nodes, or serves a model's image, the way a site does
it, with hardening, to be edited and used; its first lines say how.`,
		Example: `  autoglm deploy systemd > /etc/systemd/system/autoglm.service
  autoglm deploy config > /etc/autoglm/node.yaml
  autoglm deploy serving --kustomize k8s --image ghcr.io/me/whale@sha256:HEX --key cosign.pub
  kubectl apply -k k8s/overlays/cluster`,
	}
	for _, d := range []struct{ name, short string }{
		{"systemd", "Print a unit of systemd"},
		{"systemd-serve", "Print a unit of systemd that serves a model"},
		{"quadlet", "Print a unit of podman that serves a model's image"},
		{"container", "Print a Containerfile"},
		{"kubernetes", "Print manifests of Kubernetes"},
		{"serving", "Print manifests of Kubernetes that serve a model's image"},
		{"kyverno", "Print a policy of Kubernetes that admits signed models only"},
		{"kyverno-keyless", "Print that policy for models that an identity signed"},
		{"slurm", "Print a batch script of Slurm"},
		{"nomad", "Print a job of Nomad"},
		{"config", "Print a node's configuration file with every field"},
	} {
		var fill deployFill
		var dir string
		sub := &cobra.Command{
			Use: d.name, Short: d.short, Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				b, err := deployFiles.ReadFile("deploy/" + d.name)
				if err != nil {
					return fmt.Errorf("deploy %s: %w", d.name, err)
				}
				if err := fill.read(); err != nil {
					return err
				}
				if dir != "" {
					return fill.kustomize(dir)
				}
				_, err = os.Stdout.Write(fill.apply(b))
				return err
			},
		}
		image := func() {
			sub.Flags().StringVar(&fill.image, "image", "", "`NAME@sha256:HEX` of the image, as autoglm push prints it")
		}
		key := func() {
			sub.Flags().StringVar(&fill.key, "key", "", "`FILE` of the public key that must have signed the image")
		}
		switch d.name {
		case "serving":
			image()
			key()
			sub.Flags().StringVar(&dir, "kustomize", "", "write to a new `DIR` instead, with overlays for a cluster, with the policy, and for one small machine")
		case "kyverno":
			image()
			key()
		case "kyverno-keyless":
			image()
		}
		c.AddCommand(sub)
	}
	return c
}

// deployFill is what manifests leave open.
type deployFill struct{ image, key string }

// What stands in the files where it is left open.
const (
	openImage = "registry.example.com/models/whale@sha256:0000000000000000000000000000000000000000000000000000000000000000"
	openNames = "registry.example.com/models/*"
	openKey   = "the lines of cosign.pub\n"
)

var imageByDigest = regexp.MustCompile(`^([a-z0-9][a-zA-Z0-9.:/_-]*/[a-z0-9._/-]+)@sha256:[0-9a-f]{64}$`)

// read checks what was given, and reads the key.
func (f *deployFill) read() error {
	if f.image != "" && !imageByDigest.MatchString(f.image) {
		return usageError{fmt.Errorf("--image %s: must be NAME@sha256:HEX, as autoglm push prints it: a tag can be moved to another image", f.image)}
	}
	if f.key == "" {
		return nil
	}
	raw, err := readKey(f.key, "cosign.pub")
	if err != nil {
		return err
	}
	if _, err := sign.ParsePublic(raw); err != nil {
		return usageError{err}
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	f.key = strings.Join(lines[1:len(lines)-1], "\n") + "\n"
	return nil
}

func (f *deployFill) apply(file []byte) []byte {
	if f.image != "" {
		name, _, _ := strings.Cut(f.image, "@")
		file = bytes.ReplaceAll(file, []byte(openImage), []byte(f.image))
		file = bytes.ReplaceAll(file, []byte(openNames), []byte(name+"*"))
	}
	if f.key == "" {
		return file
	}
	var out []byte
	for line := range bytes.Lines(file) {
		indent, ok := bytes.CutSuffix(line, []byte(openKey))
		if !ok || len(bytes.TrimSpace(indent)) > 0 {
			out = append(out, line...)
			continue
		}
		for l := range strings.Lines(f.key) {
			out = append(append(out, indent...), l...)
		}
	}
	return out
}

// kustomize writes a base and overlays of it to a folder that isn't there.
func (f *deployFill) kustomize(dir string) error {
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return usageError{fmt.Errorf("%s is there already; name another folder", dir)}
	}
	const from = "deploy/kustomize"
	files := map[string]string{"base/serving.yaml": "deploy/serving", "overlays/cluster/policy.yaml": "deploy/kyverno", "overlays/cluster/policy-keyless.yaml": "deploy/kyverno-keyless"}
	err := fs.WalkDir(deployFiles, from, func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files[strings.TrimPrefix(name, from+"/")] = name
		}
		return err
	})
	if err != nil {
		return err
	}
	err = durable.WriteDir(dir, func(tmp string) error {
		for to, name := range files {
			b, err := deployFiles.ReadFile(name)
			if err != nil {
				return err
			}
			if err := os.MkdirAll(filepath.Join(tmp, path.Dir(to)), 0o755); err != nil {
				return err
			}
			if err := durable.WriteFile(filepath.Join(tmp, to), f.apply(b)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	fmt.Printf("Wrote %s with the overlays edge and cluster.\n", dir)
	if f.image == "" {
		fmt.Println("!! No --image: put it into base/serving.yaml, and its name into the policies.")
	}
	if f.key == "" {
		fmt.Println("!! No --key: put cosign.pub into overlays/cluster/policy.yaml, or use policy-keyless.yaml.")
	}
	fmt.Printf("Next: kubectl apply -k %s/overlays/cluster\n", dir)
	return nil
}
