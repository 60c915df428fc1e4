package telemetry

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// browse lets Chromium open a file and returns the page as its scripts left it,
// and what it said on the console.
func browse(t *testing.T, chromium, path string) (dom string, console []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--user-data-dir="+t.TempDir(), "--enable-logging=stderr", "--virtual-time-budget=4000", "--window-size=1200,900",
		"--dump-dom", "file://"+path)
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s", chromium, err, log.String())
	}
	for line := range strings.Lines(log.String()) {
		if strings.Contains(line, "CONSOLE") {
			console = append(console, line)
		}
	}
	return out.String(), console
}

func TestBrowserDrawsEveryChart(t *testing.T) {
	chromium := os.Getenv("AUTOGLM_CHROMIUM")
	if chromium == "" {
		if os.Getenv("AUTOGLM_REQUIRE") == "all" {
			t.Fatal("AUTOGLM_CHROMIUM is not set: name a chromium browser's executable")
		}
		t.Skip("AUTOGLM_CHROMIUM is not set")
	}
	// What counts as an error is seen at all.
	bad := filepath.Join(t.TempDir(), "bad.html")
	write(t, []byte(`<!DOCTYPE html><script>undefined_function()</script>`), bad)
	if _, console := browse(t, chromium, bad); len(console) == 0 {
		t.Fatal("an error in a page was not seen")
	}

	charts := []string{"chart-curves", "chart-parallel", "chart-importance", "chart-cost", "chart-parts", "chart-rules", "chart-stages", "chart-slice", "chart-rank", "chart-edf", "chart-anova", "chart-contour", "chart-timeline", "chart-goals", "chart-volume"}
	for _, tt := range []struct {
		name  string
		build build
		none  []string // charts that have nothing to show
	}{
		{"finished", build{trials: 30, failed: 3, points: 60, final: true, goals: true}, nil},
		{"hostile", build{trials: 14, failed: 2, points: 30, final: true, hostile: hostile, goals: true}, nil},
		{"one trial", build{trials: 1, points: 20}, []string{"chart-parallel", "chart-importance", "chart-slice", "chart-rank", "chart-anova", "chart-contour", "chart-goals", "chart-volume"}},
		{"all failed", build{trials: 3, failed: 3}, []string{"chart-curves", "chart-importance", "chart-cost", "chart-slice", "chart-rank", "chart-edf", "chart-anova", "chart-contour", "chart-goals", "chart-volume"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, st := tt.build.make(t)
			if err := WriteReport(dir, st); err != nil {
				t.Fatal(err)
			}
			dom, console := browse(t, chromium, filepath.Join(dir, ReportFile))
			if len(console) > 0 {
				t.Errorf("the console says: %s", console)
			}
			if strings.Contains(dom, "<title>owned") {
				t.Error("hostile text ran as a script")
			}
			dom = regexp.MustCompile(`(?s)<script.*?</script>`).ReplaceAllString(dom, "")
			for _, id := range charts {
				_, rest, _ := strings.Cut(dom, `id="`+id+`"`)
				rest, _, _ = strings.Cut(rest, "<p ")
				paths := strings.Count(rest, "<path")
				want := true
				for _, n := range tt.none {
					want = want && n != id
				}
				if drawn := strings.Contains(rest, "<svg") && paths >= 2; drawn != want {
					t.Errorf("%s: drawn %v (%d paths), want %v", id, drawn, paths, want)
				}
			}
		})
	}
}
