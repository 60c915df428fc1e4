package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/open-autoglm/autoglm/runtime/image"
)

func healthCommand() *cobra.Command {
	var ready, insecure bool
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "health [URL]",
		Short: "Ask a server whether it is alive",
		Long: `Health asks /healthz of a server that autoglm serve, or autoglm node, runs: a probe for
places that have no other program, such as an image. Exit code 1 when it doesn't
answer, or answers that it isn't well.`,
		Example: `  autoglm health                                  # http://127.0.0.1:8080
  autoglm health https://127.0.0.1:7400 --insecure`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			base := "http://127.0.0.1:8080"
			if len(args) == 1 {
				base = args[0]
			}
			if err := httpURL("URL", base); err != nil {
				return err
			}
			path := "/healthz"
			if ready {
				path = "/readyz"
			}
			ctx, cancel := context.WithTimeout(c.Context(), timeout)
			defer cancel()
			return askHealth(ctx, strings.TrimSuffix(base, "/")+path, insecure)
		},
	}
	fl := c.Flags()
	fl.BoolVar(&ready, "ready", false, "ask whether it takes requests (/readyz)")
	fl.BoolVar(&insecure, "insecure", false, insecureUsage)
	fl.DurationVar(&timeout, "timeout", 3*time.Second, "how long to wait for the answer")
	return c
}

func askHealth(ctx context.Context, url string, insecure bool) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	a, err := (&http.Client{Transport: image.Transport(image.Options{Insecure: insecure})}).Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = a.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(a.Body, 300))
	if err != nil {
		return err
	}
	if a.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s: %s", url, a.Status, strings.TrimSpace(string(text)))
	}
	fmt.Println(strings.TrimSpace(string(text)))
	return nil
}
