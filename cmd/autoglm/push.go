package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/open-autoglm/autoglm/runtime/image"
)

const insecureUsage = "allow plain HTTP beyond this machine, and certificates that nobody vouches for"

func pushCommand() *cobra.Command {
	var insecure bool
	c := &cobra.Command{
		Use:   "push LAYOUT REGISTRY/NAME:TAG",
		Short: "Push an image to a registry, with its signatures",
		Long: `Push sends the image that autoglm export --format oci has written to any registry, and
beside it what autoglm sign has attached. Layers that the registry has are not sent:
a new model of the same runtime sends its weights and configuration only. Passwords
are those of docker login and podman login.`,
		Example: `  autoglm push run1/image ghcr.io/me/whale:1
  autoglm push run1/image localhost:5000/me/whale:1`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			from, err := openLayout(args[0])
			if err != nil {
				return err
			}
			to, err := image.NewRegistry(args[1], image.Options{Insecure: insecure})
			if err != nil {
				return usageError{err}
			}
			h, err := image.Copy(c.Context(), from, to)
			if err != nil {
				return err
			}
			fmt.Printf("Pushed %s\n%s@%s\n", to, to.Name(), h)
			return nil
		},
	}
	c.Flags().BoolVar(&insecure, "insecure", false, insecureUsage)
	return c
}

func openLayout(dir string) (image.Layout, error) {
	if !image.IsLayout(dir) {
		return "", usageError{fmt.Errorf("%s is no OCI layout; autoglm export BUNDLE --format oci --out DIR writes one", dir)}
	}
	return image.Layout(dir), nil
}
