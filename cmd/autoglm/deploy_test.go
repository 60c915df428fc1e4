package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"gopkg.in/yaml.v3"
	appsv1 "k8s.io/api/apps/v1"

	"github.com/open-autoglm/autoglm/runtime/sign"
)

func deployed(t *testing.T, name string) string {
	t.Helper()
	b, err := deployFiles.ReadFile("deploy/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// parses fails where a node would not take the arguments of a manifest.
func parses(t *testing.T, args []string) {
	t.Helper()
	if len(args) < 2 || args[0] != "node" {
		t.Fatalf("not a node's arguments: %q", args)
	}
	if err := nodeCommand().ParseFlags(args[1:]); err != nil {
		t.Errorf("%q: %v", args, err)
	}
}

func TestUnitOfSystemd(t *testing.T) {
	text := deployed(t, "systemd")
	keys := map[string]string{}
	for i, line := range strings.Split(text, "\n") {
		if line == "" || strings.HasPrefix(line, "#") || regexp.MustCompile(`^\[(Unit|Service|Install)\]$`).MatchString(line) {
			continue
		}
		k, v, ok := strings.Cut(line, "=")
		if !ok || !regexp.MustCompile(`^[A-Z][A-Za-z]+$`).MatchString(k) {
			t.Errorf("line %d: %q", i+1, line)
		}
		keys[k] = v
	}
	for _, k := range []string{"NoNewPrivileges", "ProtectSystem", "StateDirectory", "LimitNOFILE", "TimeoutStopSec"} {
		if keys[k] == "" {
			t.Errorf("no %s=", k)
		}
	}
	if keys["Restart"] != "on-failure" {
		t.Errorf("Restart=%s", keys["Restart"])
	}
	parses(t, strings.Fields(keys["ExecStart"])[1:])
	verify, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Log("systemd-analyze is not here")
		return
	}
	path := filepath.Join(t.TempDir(), "autoglm.service")
	write(t, path, strings.ReplaceAll(text, "/usr/local/bin/autoglm", binary))
	if out, err := exec.CommandContext(t.Context(), verify, "verify", path).CombinedOutput(); err != nil || bytes.Contains(out, []byte(path)) {
		t.Errorf("%v: %s", err, out)
	}
}

func TestManifestsOfKubernetes(t *testing.T) {
	dec := yaml.NewDecoder(strings.NewReader(deployed(t, "kubernetes")))
	dec.KnownFields(true)
	kinds := map[string]yaml.Node{}
	for {
		var n yaml.Node
		if err := dec.Decode(&n); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		var head struct{ Kind string }
		if err := n.Decode(&head); err != nil {
			t.Fatal(err)
		}
		kinds[head.Kind] = n
	}
	for _, k := range []string{"ServiceAccount", "Service", "PodDisruptionBudget", "StatefulSet"} {
		if _, ok := kinds[k]; !ok {
			t.Errorf("no %s", k)
		}
	}
	var set struct {
		Spec struct {
			Template struct {
				Spec struct {
					Containers []struct {
						Args      []string
						Resources struct{ Limits map[string]string }
					}
				}
			}
		}
	}
	n := kinds["StatefulSet"]
	if err := n.Decode(&set); err != nil {
		t.Fatal(err)
	}
	c := set.Spec.Template.Spec.Containers[0]
	parses(t, c.Args)
	if c.Resources.Limits["nvidia.com/gpu"] == "" {
		t.Error("no GPU among the limits")
	}
}

// The manifests run what export makes: its user, its ports, a root that nobody writes.
func TestManifestsOfServing(t *testing.T) {
	found := documents(t, []byte(deployed(t, "serving")))
	for _, k := range []string{"ServiceAccount", "Service", "PodDisruptionBudget", "NetworkPolicy", "Deployment"} {
		if found[k] == nil {
			t.Fatalf("no %s", k)
		}
	}
	pod := found["Deployment"].(*appsv1.Deployment).Spec.Template.Spec
	c := pod.Containers[0]
	if s := pod.SecurityContext; !*s.RunAsNonRoot || *s.RunAsUser != 65532 || !*c.SecurityContext.ReadOnlyRootFilesystem || !strings.Contains(c.Image, "@sha256:") {
		t.Errorf("pod %+v", pod)
	}
	if len(c.Ports) != 2 || c.Ports[0].ContainerPort != 8080 || c.Ports[1].ContainerPort != 9000 {
		t.Errorf("ports %+v", c.Ports)
	}
	if !slices.Contains(c.Args, "--keys="+c.VolumeMounts[0].MountPath+"/keys") || pod.Volumes[0].Secret == nil {
		t.Errorf("the keys: %+v", c)
	}
}

// The policy has the fields of Kyverno's ClusterPolicy, and asks for what sign makes.
func TestPolicyOfKyverno(t *testing.T) {
	type attestors []struct {
		Count   int
		Entries []struct {
			Keys struct {
				PublicKeys string `yaml:"publicKeys"`
				Rekor      struct {
					IgnoreTlog bool `yaml:"ignoreTlog"`
				}
				Ctlog struct {
					IgnoreSCT bool `yaml:"ignoreSCT"`
				}
			}
			Keyless struct {
				Subject, Issuer string
				Rekor           struct{ URL string }
			}
		}
	}
	type policy struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string
		Metadata   struct{ Name string }
		Spec       struct {
			ValidationFailureAction string `yaml:"validationFailureAction"`
			WebhookTimeoutSeconds   int    `yaml:"webhookTimeoutSeconds"`
			FailurePolicy           string `yaml:"failurePolicy"`
			Background              bool
			Rules                   []struct {
				Name  string
				Match struct {
					Any []struct{ Resources struct{ Kinds []string } }
				}
				VerifyImages []struct {
					ImageReferences []string `yaml:"imageReferences"`
					MutateDigest    bool     `yaml:"mutateDigest"`
					VerifyDigest    bool     `yaml:"verifyDigest"`
					Required        bool
					Attestors       attestors
					Attestations    []struct {
						Type      string
						Attestors attestors
					}
				} `yaml:"verifyImages"`
			}
		}
	}
	for _, name := range []string{"kyverno", "kyverno-keyless"} {
		var p policy
		dec := yaml.NewDecoder(strings.NewReader(deployed(t, name)))
		dec.KnownFields(true)
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		if p.APIVersion != "kyverno.io/v1" || p.Kind != "ClusterPolicy" || p.Spec.ValidationFailureAction != "Enforce" || p.Spec.FailurePolicy != "Fail" || p.Spec.Background {
			t.Errorf("policy %+v", p)
		}
		v := p.Spec.Rules[0].VerifyImages[0]
		if !v.MutateDigest || !v.VerifyDigest || !v.Required || len(v.ImageReferences) != 1 || p.Spec.Rules[0].Match.Any[0].Resources.Kinds[0] != "Pod" {
			t.Errorf("rule %+v", v)
		}
		if len(v.Attestations) != 1 || v.Attestations[0].Type != sign.Provenance {
			t.Fatalf("attestations %+v", v.Attestations)
		}
		for _, a := range []attestors{v.Attestors, v.Attestations[0].Attestors} {
			if k := a[0].Entries[0].Keyless; name == "kyverno-keyless" {
				if k.Subject == "" || k.Issuer == "" || k.Rekor.URL == "" {
					t.Errorf("identity %+v", k)
				}
				continue
			}
			k := a[0].Entries[0].Keys
			if !strings.HasPrefix(k.PublicKeys, "-----BEGIN PUBLIC KEY-----\n") || !strings.HasSuffix(k.PublicKeys, "\n-----END PUBLIC KEY-----") || !k.Rekor.IgnoreTlog || !k.Ctlog.IgnoreSCT {
				t.Errorf("key %+v", k)
			}
		}
	}
}

func TestOtherDeployments(t *testing.T) {
	path := filepath.Join(t.TempDir(), "autoglm.sbatch")
	write(t, path, deployed(t, "slurm"))
	if out, err := exec.CommandContext(t.Context(), "bash", "-n", path).CombinedOutput(); err != nil {
		t.Errorf("slurm: %v: %s", err, out)
	}
	_, cmd, _ := strings.Cut(deployed(t, "slurm"), "exec autoglm ")
	parses(t, strings.Fields(strings.NewReplacer("\\\n", " ", `"`, "", "'", "").Replace(cmd)))
	lists := regexp.MustCompile(`(?:args +=|CMD) (\[.*\])`)
	for name, want := range map[string]int{"nomad": 2, "container": 1} {
		found := lists.FindAllStringSubmatch(deployed(t, name), -1)
		if len(found) != want {
			t.Errorf("%s has %d lists of arguments", name, len(found))
		}
		for _, f := range found {
			var args []string
			if err := yaml.Unmarshal([]byte(f[1]), &args); err != nil {
				t.Fatal(err)
			}
			parses(t, args)
		}
	}
	if s := deployed(t, "nomad"); strings.Count(s, "{") != strings.Count(s, "}") {
		t.Error("nomad: braces don't match")
	}
}

// The example has every field, and is right.
func TestNodeConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.yaml")
	write(t, path, deployed(t, "config"))
	out, stderr, code := autoglm(t, t.TempDir(), "config", "check", path)
	if code != 0 || !strings.Contains(out, "quota: 50000000000") {
		t.Errorf("exit %d: %s%s", code, out, stderr)
	}
	m, err := nodeFields(path)
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for i := 0; i < len(m.Content); i += 2 {
		there[m.Content[i].Value] = true
	}
	c := nodeCommand()
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Name != "config" && !there[f.Name] {
			t.Errorf("the example lacks %s", f.Name)
		}
	})
	// The command line wins, lists and words by name are taken.
	if err := c.ParseFlags([]string{"--name", "mine"}); err != nil {
		t.Fatal(err)
	}
	if err := loadNodeConfig(c, path); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"name": "mine", "label": "[rack=7]", "copies": "2", "join": "[10.0.0.1:7400,10.0.0.2:7400,10.0.0.3:7400]"} {
		if got := c.Flags().Lookup(name).Value.String(); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	for text, want := range map[string]string{
		"listen: a:1\nadvertize: b:1\n": "node.yaml:2: advertize: unknown field",
		"listen: a:1\nconfig: x\n":      "config: unknown field",
		"copies: many\n":                "node.yaml:1: copies",
		"copies: 1\ncopies: 2\n":        "twice",
		"join: [[a]]\n":                 "join",
		"- listen\n":                    "no configuration of a node",
		"listen: [\n":                   "node.yaml",
	} {
		write(t, path, text)
		if err := loadNodeConfig(nodeCommand(), path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
		if _, stderr, code := autoglm(t, t.TempDir(), "node", "--config", path); code != exitUsage || !strings.Contains(stderr, want) {
			t.Errorf("%q: exit %d, %s", text, code, stderr)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func TestByteSize(t *testing.T) {
	for text, want := range map[string]byteSize{"0": 0, "17": 17, "1kB": 1000, "50GB": 50e9, "1.5GiB": 3 << 29, "2 TB": 2e12} {
		var s byteSize
		if err := s.Set(text); err != nil || s != want {
			t.Errorf("%q: %d, %v", text, s, err)
		}
	}
	for _, text := range []string{"", "GB", "-1", "1PB", "many", "1e30", "NaN", "9GBB"} {
		var s byteSize
		if err := s.Set(text); err == nil {
			t.Errorf("%q: %d", text, s)
		}
	}
}
