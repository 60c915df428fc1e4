package daemon_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/actors/actorstest"
	"github.com/open-autoglm/autoglm/actors/daemon"
)

// Trials of earlier searches travel with a job into its journal; a job that names files
// where nobody has them is refused.
func TestWarmStartTravels(t *testing.T) {
	tn := newTown(t)
	a := tn.start("a")
	c := tn.client(a)
	tn.settle(c, 1, 1)
	dir := t.TempDir()
	earlier := filepath.Join(dir, "trials.csv")
	if err := os.WriteFile(earlier, []byte("trial,score,params_lr,params_optimizer\nt001,2.5,0.003,adamw\nt002,3.5,0.0001,muon\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	spec := tinySpec(actorstest.Corpus(t, dir), 24000)
	spec.WarmStart = []string{earlier}
	id, err := c.Submit(t.Context(), "", spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(earlier); err != nil {
		t.Fatal(err)
	}
	f, err := c.Follow(t.Context(), id, nil, nil)
	if err != nil || f.Job.State != daemon.Done || len(f.State.Past) != 2 || f.State.Past[0].Trial != "t001" {
		t.Fatalf("%+v, %d earlier trials, %v", f.Job, len(f.State.Past), err)
	}
	tried := false
	for _, d := range f.State.Decisions {
		tried = tried || d.Config.Float("lr") == 0.003 && strings.Contains(d.Reason, "earlier search")
	}
	if !tried {
		t.Error("the best of the earlier search was not tried")
	}
	res, err := http.Post("http://"+a.addr+"/v1/jobs", "application/json", strings.NewReader(`{"spec": {"warm_start": ["/etc/passwd"], "data": {"urls": ["http://127.0.0.1:1/x"]}}}`))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body := make([]byte, 1000)
	n, _ := res.Body.Read(body)
	if res.StatusCode != http.StatusBadRequest || !strings.Contains(string(body[:n]), "warm_start: names files of the machine that submits") {
		t.Errorf("%s: %s", res.Status, body[:n])
	}
	broken := filepath.Join(dir, "broken.csv")
	if err := os.WriteFile(broken, []byte("trial,score,params_lr\nt001,much,1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	spec.WarmStart = []string{broken}
	if _, err := c.Submit(t.Context(), "", spec, nil); err == nil || !strings.Contains(err.Error(), "broken.csv:2: score") {
		t.Errorf("a broken file: %v", err)
	}
}
