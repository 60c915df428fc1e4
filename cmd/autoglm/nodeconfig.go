package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"gopkg.in/yaml.v3"
)

// A node's configuration file is YAML whose fields are the flags of autoglm node.

// nodeFields reads a file as a mapping; nil where it is none.
func nodeFields(path string) (*yaml.Node, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return nil, nil
	}
	return doc.Content[0], nil
}

// loadNodeConfig sets the flags that a file names and the command line doesn't.
func loadNodeConfig(c *cobra.Command, path string) error {
	m, err := nodeFields(path)
	if err != nil {
		return err
	}
	if m == nil {
		return fmt.Errorf("%s is no configuration of a node; autoglm deploy config prints one", path)
	}
	seen := map[string]bool{}
	for i := 0; i < len(m.Content); i += 2 {
		key, value := m.Content[i], m.Content[i+1]
		bad := func(err error) error { return fmt.Errorf("%s:%d: %s: %w", path, key.Line, key.Value, err) }
		flag := nodeField(c, key.Value)
		switch {
		case flag == nil:
			return bad(errors.New("unknown field; autoglm deploy config prints all that there are"))
		case seen[key.Value]:
			return bad(errors.New("given twice"))
		}
		seen[key.Value] = true
		if flag.Changed {
			continue
		}
		values, err := flagValues(value)
		if err != nil {
			return bad(err)
		}
		for _, v := range values {
			if err := flag.Value.Set(v); err != nil {
				return bad(err)
			}
		}
	}
	return nil
}

// nodeField is the flag of a field; nil where there is none.
func nodeField(c *cobra.Command, name string) *pflag.Flag {
	if name == "config" || name == "help" {
		return nil
	}
	return c.Flags().Lookup(name)
}

// flagValues are what a flag is set to, one after the other.
func flagValues(v *yaml.Node) ([]string, error) {
	var out []string
	switch v.Kind {
	case yaml.ScalarNode:
		if v.Tag == "!!null" {
			return nil, nil
		}
		return []string{v.Value}, nil
	case yaml.SequenceNode:
		for _, e := range v.Content {
			if e.Kind != yaml.ScalarNode {
				return nil, errors.New("a list of words is wanted")
			}
			out = append(out, e.Value)
		}
		return out, nil
	case yaml.MappingNode:
		for i := 0; i < len(v.Content); i += 2 {
			if v.Content[i+1].Kind != yaml.ScalarNode {
				return nil, errors.New("words by name are wanted")
			}
			out = append(out, v.Content[i].Value+"="+v.Content[i+1].Value)
		}
		return out, nil
	}
	return nil, errors.New("a word, a list or words by name are wanted")
}

// isNodeConfig tells a node's file from a job's by the fields that only a node's has.
func isNodeConfig(path string) bool {
	m, err := nodeFields(path)
	if err != nil || m == nil {
		return false // a job's reader says what is wrong
	}
	c := nodeCommand()
	for i := 0; i < len(m.Content); i += 2 {
		if name := m.Content[i].Value; name != "data" && name != "name" && nodeField(c, name) != nil {
			return true
		}
	}
	return false
}

// checkNodeConfig prints what a node's file comes to, and tries the store that it names.
func checkNodeConfig(ctx context.Context, path string) error {
	c := nodeCommand()
	if err := loadNodeConfig(c, path); err != nil {
		return usageError{err}
	}
	var b strings.Builder
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Name != "config" && f.Name != "help" && f.Value.String() != "" && f.Value.String() != "[]" && !strings.HasPrefix(f.Name, "token") {
			fmt.Fprintf(&b, "%s: %s\n", f.Name, f.Value)
		}
	})
	fmt.Print(b.String())
	text := func(name string) string { return c.Flags().Lookup(name).Value.String() }
	store := storeFlags{URL: text("store"), Endpoint: text("store-endpoint"), Region: text("store-region"), Credentials: text("store-credentials")}
	said, err := store.check(ctx)
	if said != "" {
		fmt.Printf("# %s\n", said)
	}
	return err
}
