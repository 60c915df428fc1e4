package telemetry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"html/template"
	"path/filepath"

	"github.com/open-autoglm/autoglm/runtime/durable"
	"github.com/open-autoglm/autoglm/runtime/journal"
)

// ReportFile is the report's name in a build's folder.
const ReportFile = "report.html"

// MaxBytes bounds the report.
const MaxBytes = 3 << 20

var reportTemplate = template.Must(template.New("report").Parse(reportHTML))

// WriteReport writes dir/report.html from the build's files (metrics of the
// trials, data/report.json, bundle/eval.json, the samples) and the state of its
// journal; with a nil state leaderboard.json and job.json stand in for it. The
// build may be unfinished or failed. The error is that of writing: files that
// can't be read are named in the report.
func WriteReport(dir string, st *journal.State) error {
	b, err := render(dir, st)
	if err == nil {
		err = durable.WriteFile(filepath.Join(dir, ReportFile), b)
	}
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

func render(dir string, st *journal.State) ([]byte, error) {
	lib, err := echarts()
	if err != nil {
		return nil, err
	}
	// The first attempt draws as much as reads well; a build with very many or very
	// long names may need less to stay under MaxBytes.
	for limits := (limits{rows: 400, curves: 60, points: 200}); ; limits = limits.half() {
		p := newPage(readFolder(dir, st), limits)
		plots, err := json.Marshal(p.plots)
		if err != nil {
			return nil, err
		}
		p.Lib, p.Script, p.Style = template.JS(lib), template.JS(reportJS), template.CSS(reportCSS)
		p.Plots = template.JS(plots) // json.Marshal escapes <, > and &
		p.Policy = policy(lib, reportJS)
		var out bytes.Buffer
		if err := reportTemplate.Execute(&out, p); err != nil {
			return nil, err
		}
		if out.Len() <= MaxBytes || limits.rows <= 1 {
			return out.Bytes(), nil
		}
	}
}

// limits bound what is drawn.
type limits struct {
	rows   int // trials in tables and in the plots of all trials
	curves int
	points int // of a curve; the final training has three times as many
}

func (l limits) half() limits {
	return limits{rows: max(1, l.rows/2), curves: max(1, l.curves/2), points: max(8, l.points/2)}
}
