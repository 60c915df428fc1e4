package data

// Events are the progress of a Prepare; any of them may be nil. They are called
// on the goroutine that called Prepare (Log also on those of plugins).
type Events struct {
	Phase    func(name string)    // what begins: probe, read FILE, duplicates, split
	Progress func(p Progress)     // about every 4 MiB read
	Warn     func(message string) // something a user should know
	Log      func(line string)    // a line of a plugin's stderr
}

// Progress is where reading stands.
type Progress struct {
	File  string `json:"file"`
	Bytes int64  `json:"bytes"` // stored bytes read of all files
	Total int64  `json:"total"` // stored bytes of all files
	Rows  int64  `json:"rows"`
	Kept  int64  `json:"kept"`
}

func (e Events) phase(s string) {
	if e.Phase != nil {
		e.Phase(s)
	}
}

// ReportVersion is the version of report.json.
const ReportVersion = 1

// Report is what Prepare did; report.json holds it. It has no times in it: the
// same input and configuration give the same report.
type Report struct {
	Version    int                  `json:"version"`
	Task       Task                 `json:"task"`
	Confidence float64              `json:"confidence"`
	Reasons    []string             `json:"reasons"`
	Files      []FileReport         `json:"files"`
	Rows       int64                `json:"rows"`    // rows read, blank lines not counted
	Kept       int64                `json:"kept"`    // rows in the parts
	Dropped    int64                `json:"dropped"` // listed in dropped.jsonl
	Rules      map[Rule]*RuleCount  `json:"rules"`
	PII        PII                  `json:"pii"` // rows with personal data, which stays
	Split      string               `json:"split"`
	Parts      map[string]PartCount `json:"parts"` // train, valid, test
	HeldOut    HeldOut              `json:"held_out"`
	Warnings   []string             `json:"warnings,omitempty"`
}

// HeldOut names the part that the final score is taken on.
type HeldOut struct {
	Part   string `json:"part"`
	Bytes  int64  `json:"bytes"`  // UTF-8 bytes of its texts
	SHA256 string `json:"sha256"` // of its file
	Given  bool   `json:"given"`  // it is the user's own, not split off
}

// FileReport is what became of one file.
type FileReport struct {
	FileInfo
	Roles   map[string]string `json:"roles,omitempty"`
	HeldOut bool              `json:"held_out,omitempty"` // given with Valid
	Rows    int64             `json:"rows"`
	Kept    int64             `json:"kept"` // before near duplicates were dropped
}

// DroppedRow is a line of dropped.jsonl.
type DroppedRow struct {
	File    string `json:"file"`
	Line    int64  `json:"line"`
	Rule    Rule   `json:"rule"`
	ID      string `json:"id,omitempty"`
	Note    string `json:"note,omitempty"`
	Of      string `json:"of,omitempty"` // duplicates: file:line of the row that stays
	Excerpt string `json:"excerpt"`      // its first 120 bytes
}
