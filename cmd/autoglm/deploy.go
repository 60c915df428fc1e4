package main

import (
	"embed"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

//go:embed deploy
var deployFiles embed.FS

func deployCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "deploy", Short: "Print units and manifests that start nodes, or serve models", Args: cobra.NoArgs,
		Long: `Deploy prints a file that starts nodes, or serves a model's image, the way a site does
it, with hardening, to be edited and used; its first lines say how.`,
		Example: `  autoglm deploy systemd > /etc/systemd/system/autoglm.service
  autoglm deploy config > /etc/autoglm/node.yaml`,
	}
	for _, d := range []struct{ name, short string }{
		{"systemd", "Print a unit of systemd"},
		{"container", "Print a Containerfile"},
		{"kubernetes", "Print manifests of Kubernetes"},
		{"serving", "Print manifests of Kubernetes that serve a model's image"},
		{"kyverno", "Print a policy of Kubernetes that admits signed models only"},
		{"slurm", "Print a batch script of Slurm"},
		{"nomad", "Print a job of Nomad"},
		{"config", "Print a node's configuration file with every field"},
	} {
		c.AddCommand(&cobra.Command{
			Use: d.name, Short: d.short, Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				b, err := deployFiles.ReadFile("deploy/" + d.name)
				if err != nil {
					return fmt.Errorf("deploy %s: %w", d.name, err)
				}
				_, err = os.Stdout.Write(b)
				return err
			},
		})
	}
	return c
}
