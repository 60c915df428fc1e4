package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	k8syaml "sigs.k8s.io/yaml"

	"github.com/open-autoglm/autoglm/runtime/image"
	"github.com/open-autoglm/autoglm/runtime/sign"
)

// documents are those of a YAML file, each decoded into what Kubernetes' API calls it, in
// which every field must be known.
func documents(t *testing.T, file []byte) map[string]any {
	t.Helper()
	out := map[string]any{}
	for dec := yaml.NewDecoder(bytes.NewReader(file)); ; {
		var n yaml.Node
		if err := dec.Decode(&n); errors.Is(err, io.EOF) {
			return out
		} else if err != nil {
			t.Fatal(err)
		}
		raw, err := yaml.Marshal(&n)
		if err != nil {
			t.Fatal(err)
		}
		var head struct{ Kind, APIVersion string }
		if err := k8syaml.Unmarshal(raw, &head); err != nil {
			t.Fatal(err)
		}
		to, ok := map[string]any{
			"v1 ServiceAccount": &corev1.ServiceAccount{}, "v1 Service": &corev1.Service{}, "apps/v1 Deployment": &appsv1.Deployment{}, "apps/v1 StatefulSet": &appsv1.StatefulSet{},
			"policy/v1 PodDisruptionBudget": &policyv1.PodDisruptionBudget{}, "networking.k8s.io/v1 NetworkPolicy": &networkingv1.NetworkPolicy{},
		}[head.APIVersion+" "+head.Kind]
		if !ok {
			t.Fatalf("%s %s is no kind that is expected", head.APIVersion, head.Kind)
		}
		if err := k8syaml.UnmarshalStrict(raw, to); err != nil {
			t.Errorf("%s: %v", head.Kind, err)
		}
		out[head.Kind] = to
	}
}

// kustomization has the fields that are used of kustomize.config.k8s.io/v1beta1.
type kustomization struct {
	APIVersion string   `yaml:"apiVersion"`
	Kind       string   `yaml:"kind"`
	Resources  []string `yaml:"resources"`
	Patches    []struct {
		Path string `yaml:"path"`
	} `yaml:"patches"`
	Replicas []struct {
		Name  string `yaml:"name"`
		Count int32  `yaml:"count"`
	} `yaml:"replicas"`
}

func readKustomization(t *testing.T, dir string) kustomization {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "kustomization.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var k kustomization
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	dec.KnownFields(true)
	if err := dec.Decode(&k); err != nil || k.APIVersion != "kustomize.config.k8s.io/v1beta1" || k.Kind != "Kustomization" {
		t.Fatalf("%s: %+v, %v", dir, k, err)
	}
	for _, name := range k.Resources {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	return k
}

func TestKustomize(t *testing.T) {
	dir := t.TempDir()
	_, public, err := sign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "cosign.pub"), string(public))
	ref := "ghcr.io/me/whale@sha256:" + strings.Repeat("ab", 32)
	out, stderr, code := autoglm(t, dir, "deploy", "serving", "--kustomize", "k8s", "--image", ref, "--key", "cosign.pub")
	if code != 0 || strings.Contains(out, "!!") {
		t.Fatalf("exit %d: %s%s", code, out, stderr)
	}
	for _, args := range [][]string{
		{"--kustomize", "k8s"},
		{"--image", "ghcr.io/me/whale:1"},
		{"--key", "absent.pub"},
		{"--key", "k8s/base/serving.yaml"},
	} {
		if out, stderr, code := autoglm(t, dir, append([]string{"deploy", "serving"}, args...)...); code != exitUsage || stderr == "" || out != "" {
			t.Errorf("%q: exit %d: %s%s", args, code, out, stderr)
		}
	}
	root := filepath.Join(dir, "k8s")
	base, err := os.ReadFile(filepath.Join(root, "base", "serving.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	found := documents(t, base)
	d := found["Deployment"].(*appsv1.Deployment)
	if got := d.Spec.Template.Spec.Containers[0].Image; got != ref || readKustomization(t, filepath.Join(root, "base")).Resources[0] != "serving.yaml" {
		t.Errorf("the base runs %s", got)
	}
	policy, err := os.ReadFile(filepath.Join(root, "overlays", "cluster", "policy.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var p struct {
		Spec struct {
			Rules []struct {
				VerifyImages []struct {
					ImageReferences []string `yaml:"imageReferences"`
					Attestors       []struct {
						Entries []struct {
							Keys struct {
								PublicKeys string `yaml:"publicKeys"`
							}
						}
					}
				} `yaml:"verifyImages"`
			}
		}
	}
	if err := yaml.Unmarshal(policy, &p); err != nil {
		t.Fatal(err)
	}
	v := p.Spec.Rules[0].VerifyImages[0]
	if v.ImageReferences[0] != "ghcr.io/me/whale*" || strings.TrimSpace(v.Attestors[0].Entries[0].Keys.PublicKeys) != strings.TrimSpace(string(public)) || bytes.Contains(policy, []byte("the lines of")) {
		t.Errorf("policy %s", policy)
	}
	cluster := readKustomization(t, filepath.Join(root, "overlays", "cluster"))
	if !slices.Equal(cluster.Resources, []string{"../../base", "policy.yaml"}) || cluster.Replicas[0].Name != d.Name || cluster.Replicas[0].Count < 2 {
		t.Errorf("cluster %+v", cluster)
	}
	edge := filepath.Join(root, "overlays", "edge")
	k := readKustomization(t, edge)
	if len(k.Patches) != 2 {
		t.Fatalf("edge %+v", k)
	}
	small := patched(t, d, filepath.Join(edge, k.Patches[0].Path))
	c := small.Spec.Template.Spec.Containers[0]
	if *small.Spec.Replicas != 1 || c.Resources.Limits.Memory().String() != "256Mi" || c.Image != ref || len(c.Env) != 1 || small.Spec.Strategy.RollingUpdate != nil || c.LivenessProbe == nil {
		t.Errorf("edge %+v", small.Spec)
	}
	for _, args := range [][]string{d.Spec.Template.Spec.Containers[0].Args, c.Args} {
		if err := serveCommand().ParseFlags(args); err != nil {
			t.Errorf("%q: %v", args, err)
		}
	}
	if kustomize, err := exec.LookPath("kustomize"); err == nil { // its own judgement, where it is installed
		for _, overlay := range []string{"edge", "cluster"} {
			if out, err := exec.CommandContext(t.Context(), kustomize, "build", filepath.Join(root, "overlays", overlay)).CombinedOutput(); err != nil || !bytes.Contains(out, []byte(ref)) {
				t.Errorf("kustomize build %s: %v\n%s", overlay, err, out)
			}
		}
	}
}

// patched is a deployment with a strategic merge patch, as kustomize applies it.
func patched(t *testing.T, d *appsv1.Deployment, path string) *appsv1.Deployment {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := k8syaml.UnmarshalStrict(raw, &appsv1.Deployment{}); err != nil {
		t.Error(err)
	}
	patch, err := k8syaml.YAMLToJSON(raw)
	if err != nil {
		t.Fatal(err)
	}
	was, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	is, err := strategicpatch.StrategicMergePatch(was, patch, d)
	if err != nil {
		t.Fatal(err)
	}
	var out appsv1.Deployment
	if err := json.Unmarshal(is, &out); err != nil {
		t.Fatal(err)
	}
	return &out
}

// The manifests that run nodes are Kubernetes' too.
func TestStrictManifests(t *testing.T) {
	if found := documents(t, []byte(deployed(t, "kubernetes"))); len(found) != 4 {
		t.Errorf("%d kinds", len(found))
	}
}

// Units of servers name flags that serve and health have, and the image's probe is one.
func TestUnitsOfServing(t *testing.T) {
	line := func(text, key string) []string {
		for l := range strings.Lines(text) {
			if v, ok := strings.CutPrefix(strings.TrimSpace(l), key+"="); ok {
				return strings.Fields(v)
			}
		}
		t.Fatalf("no %s", key)
		return nil
	}
	flags := func(c *cobra.Command, args []string) {
		t.Helper()
		if err := c.ParseFlags(args); err != nil {
			t.Errorf("%q: %v", args, err)
		}
	}
	flags(serveCommand(), line(deployed(t, "systemd-serve"), "ExecStart")[2:])
	flags(serveCommand(), line(deployed(t, "quadlet"), "Exec"))
	var health []string
	if err := json.Unmarshal([]byte(strings.Join(line(deployed(t, "quadlet"), "HealthCmd"), " ")), &health); err != nil || health[0] != image.RuntimePath || health[1] != "health" {
		t.Errorf("%q, %v", health, err)
	}
	flags(healthCommand(), health[2:])
	if verify, err := exec.LookPath("systemd-analyze"); err == nil {
		path := filepath.Join(t.TempDir(), "autoglm-serve.service")
		write(t, path, strings.ReplaceAll(deployed(t, "systemd-serve"), "/usr/local/bin/autoglm", binary))
		if out, err := exec.CommandContext(t.Context(), verify, "verify", path).CombinedOutput(); err != nil || bytes.Contains(out, []byte(path)) {
			t.Errorf("%v: %s", err, out)
		}
	}
	err := fs.WalkDir(deployFiles, "deploy", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.Count(name, "/") == 1 {
			if out, stderr, code := autoglm(t, t.TempDir(), "deploy", filepath.Base(name)); code != 0 || out != deployed(t, filepath.Base(name)) {
				t.Errorf("deploy %s: exit %d: %s", name, code, stderr)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestHealth(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/readyz" {
			http.Error(w, "draining", http.StatusServiceUnavailable)
		}
	}))
	defer s.Close()
	for _, c := range []struct {
		code int
		want string
		args []string
	}{
		{exitDone, "", []string{s.URL + "/"}},
		{exitFailed, "draining", []string{s.URL, "--ready"}},
		{exitFailed, "refused", []string{"http://127.0.0.1:1"}},
		{exitFailed, "plain HTTP", []string{"http://10.255.255.254:1"}},
		{exitUsage, "must be a URL", []string{"127.0.0.1"}},
	} {
		if _, stderr, code := autoglm(t, t.TempDir(), append([]string{"health"}, c.args...)...); code != c.code || !strings.Contains(stderr, c.want) {
			t.Errorf("%q: exit %d: %s", c.args, code, stderr)
		}
	}
}
