package bundle

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Card is what the model card tells, README.md to people and card.json to programs. What
// is empty is left out or said to be unknown; the card claims nothing by itself.
type Card struct {
	Name      string          `json:"name,omitempty"`
	Summary   string          `json:"summary,omitempty"` // a sentence or two
	License   string          `json:"license,omitempty"` // of the model, an identifier such as "apache-2.0"; "" is unknown
	Languages []string        `json:"languages,omitempty"`
	Task      string          `json:"task,omitempty"` // task type of the job, such as "text-generation"
	Data      []DataSource    `json:"data,omitempty"`
	Search    SearchSummary   `json:"search"`
	Training  TrainingSummary `json:"training"`
	Scores    []Score         `json:"scores,omitempty"`
	Limits    []string        `json:"limits,omitempty"` // what the model is not good for, beside what every small model isn't
	Seed      uint64          `json:"seed"`
	Job       string          `json:"job,omitempty"`   // SHA-256 of what the job asks for, see jobHash in actors/node
	Trial     string          `json:"trial,omitempty"` // whose configuration was trained
	Versions  []Version       `json:"versions,omitempty"`
	Created   string          `json:"created,omitempty"` // date, as the caller wants it shown; "" leaves it out
	// Compression is how the model was made smaller, in Markdown with its own heading.
	Compression string `json:"compression,omitempty"`
}

// AppendCompression adds that section to the bundle's card, whoever wrote the rest.
func (b *Bundle) AppendCompression(compression string) {
	if b.Readme == "" {
		b.Card.Compression = compression
		return
	}
	b.Readme = strings.TrimRight(b.Readme, "\n") + "\n\n" + compression
}

// DataSource is one set of files the model learnt from.
type DataSource struct {
	Name     string          `json:"name"`
	Files    int             `json:"files"`
	Bytes    int64           `json:"bytes"`
	SHA256   string          `json:"sha256"` // of the content
	License  string          `json:"license,omitempty"`
	Cleaning []CleaningCount `json:"cleaning,omitempty"`
}

// CleaningCount is how many records or bytes a cleaning rule changed or removed.
type CleaningCount struct {
	Rule  string `json:"rule"`
	Count int64  `json:"count"`
}

// SearchSummary is how the shape and the hyper-parameters were found.
type SearchSummary struct {
	Strategy  string `json:"strategy,omitempty"`
	Trials    int    `json:"trials,omitempty"`
	Budget    string `json:"budget,omitempty"` // as given: "3m", "40 trials"
	Objective string `json:"objective,omitempty"`
}

// TrainingSummary is the final training.
type TrainingSummary struct {
	Steps     int     `json:"steps,omitempty"`
	Tokens    int64   `json:"tokens,omitempty"`
	Seconds   float64 `json:"seconds,omitempty"`
	Optimizer string  `json:"optimizer,omitempty"`
	Device    string  `json:"device,omitempty"`
}

// Score is a measured number on held-out data.
type Score struct {
	Name  string  `json:"name"` // "bits per byte", "perplexity", "exact match"
	Value float64 `json:"value"`
	On    string  `json:"on,omitempty"` // what it was measured on
}

// Version is a program and its version.
type Version struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// markdown is the card with its YAML front matter. Scalars are JSON strings,
// which are YAML strings too.
func (c Card) markdown(b *Bundle) string {
	var s strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&s, format, args...) }
	row := func(cells ...any) {
		for _, cell := range cells {
			p("| %s ", cellText(cell))
		}
		p("|\n")
	}
	name := c.Name
	if name == "" {
		name = "A language model built by autoglm"
	}

	p("---\n")
	if c.License != "" {
		p("license: %s\n", yamlString(c.License))
	}
	if len(c.Languages) > 0 {
		p("language:\n")
		for _, l := range c.Languages {
			p("- %s\n", yamlString(l))
		}
	}
	p("library_name: transformers\npipeline_tag: text-generation\ntags:\n- autoglm\n- llama\n")
	p("---\n\n# %s\n\n", oneLine(name))
	if c.Summary != "" {
		p("%s\n\n", strings.TrimSpace(c.Summary))
	}
	if c.Task != "" {
		p("Task: %s.\n\n", oneLine(c.Task))
	}
	if c.Created != "" {
		p("Built on %s.\n\n", oneLine(c.Created))
	}

	p("## How to load\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\ntokenizer = AutoTokenizer.from_pretrained(\"PATH\")\nmodel = AutoModelForCausalLM.from_pretrained(\"PATH\")\n")
	p("ids = tokenizer(\"Once\", return_tensors=\"pt\")\nprint(tokenizer.decode(model.generate(**ids, max_new_tokens=64)[0]))\n```\n\n")
	p("```sh\nautoglm generate PATH --prompt \"Once\"\nautoglm eval PATH FILE\n```\n\n")

	a := b.Arch
	p("## Architecture\n\nDecoder of the Llama family (RMSNorm, grouped-query attention, rotary embedding, SwiGLU, no biases), %s.\n\n", cmp.Or(b.DType, Float32))
	row("parameters", "layers", "width", "heads (key/value)", "feed-forward", "context", "vocabulary", "embeddings")
	p("|---|---|---|---|---|---|---|---|\n")
	tied := "untied"
	if a.Tied {
		tied = "tied"
	}
	row(a.Params(), a.Layers, a.Dim, fmt.Sprintf("%d (%d)", a.Heads, a.KVHeads), a.FFN, a.Context, a.Vocab, tied)
	p("\nTokenizer: byte-level BPE with %d tokens.\n\n", b.Tokenizer.VocabSize())

	p("## Data\n\n")
	if len(c.Data) == 0 {
		p("Not recorded.\n\n")
	} else {
		row("source", "files", "bytes", "SHA-256", "licence")
		p("|---|---|---|---|---|\n")
		for _, d := range c.Data {
			row(d.Name, d.Files, d.Bytes, d.SHA256, orUnknown(d.License))
		}
		p("\n")
		for _, d := range c.Data {
			if len(d.Cleaning) == 0 {
				continue
			}
			p("Cleaning of %s: ", oneLine(d.Name))
			for i, r := range d.Cleaning {
				if i > 0 {
					p(", ")
				}
				p("%s %d", oneLine(r.Rule), r.Count)
			}
			p(".\n\n")
		}
	}

	p("## Search and training\n\n")
	if c.Search.Strategy != "" {
		p("Found by %s search, %d trials", oneLine(c.Search.Strategy), c.Search.Trials)
		if c.Search.Budget != "" {
			p(", budget %s", oneLine(c.Search.Budget))
		}
		if c.Search.Objective != "" {
			p(", objective %s", oneLine(c.Search.Objective))
		}
		p(".\n")
	}
	if t := c.Training; t.Steps > 0 {
		p("Trained for %d steps, %d tokens, %.0f s", t.Steps, t.Tokens, t.Seconds)
		if t.Optimizer != "" {
			p(", %s", oneLine(t.Optimizer))
		}
		if t.Device != "" {
			p(", on %s", oneLine(t.Device))
		}
		p(".\n")
	}
	if c.Search.Strategy == "" && c.Training.Steps == 0 {
		p("Not recorded.\n")
	}

	p("\n## Scores\n\n")
	if len(c.Scores) == 0 {
		p("Not measured.\n\n")
	} else {
		row("score", "value", "measured on")
		p("|---|---|---|\n")
		for _, sc := range c.Scores {
			row(sc.Name, fmt.Sprintf("%.6g", sc.Value), sc.On)
		}
		p("\n")
	}

	p("## Limits\n\n")
	limits := append(slices.Clone(c.Limits), "It knows only its training data: it states falsehoods fluently and repeats what biases the data has. Don't rely on it where an error does harm.")
	for _, l := range limits {
		p("- %s\n", oneLine(l))
	}
	p("\n## Licence\n\n%s\n\n", orUnknown(c.License))
	p("## Reproducibility\n\nSeed %d.", c.Seed)
	if c.Trial != "" {
		p(" Trial %s.", oneLine(c.Trial))
	}
	if c.Job != "" {
		p(" Job %s (SHA-256).", oneLine(c.Job))
	}
	for _, v := range c.Versions {
		p(" %s %s.", oneLine(v.Name), oneLine(v.Version))
	}
	p("\n")
	if c.Compression != "" {
		p("\n%s", c.Compression)
	}
	return s.String()
}

func orUnknown(s string) string {
	if s == "" {
		return "not stated"
	}
	return oneLine(s)
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

func cellText(v any) string { return strings.ReplaceAll(oneLine(fmt.Sprint(v)), "|", `\|`) }

func yamlString(s string) string {
	b, _ := json.Marshal(s) // a string doesn't fail
	return string(b)
}
