package data

import "testing"

// TestRealKept holds that real, clean files lose next to nothing but duplicates.
func TestRealKept(t *testing.T) {
	for file, encoding := range map[string]string{
		"text/tinyshakespeare.txt": encUTF8, "text/zh.gb18030.jsonl": "gb18030", "text/zh.gb18030.txt": "gb18030", "text/zh.big5.txt": "big5",
		"text/ja.shift_jis.txt": "shift_jis", "text/fr-de-es.windows-1252.txt": "windows-1252", "text/ru.windows-1251.txt": "windows-1251",
		"text/mobydick.jsonl.gz": encUTF8, "text/zh.classics.jsonl.gz": encUTF8, "text/sotu.jsonl.gz": encUTF8,
		"qa/xquad.zh.jsonl": encUTF8, "qa/xiehouyu.zh.jsonl": encUTF8, "dialogue/sgd.messages.jsonl": encUTF8, "dialogue/crosswoz.zh.messages.jsonl.gz": encUTF8,
		"summarisation/scitldr.csv": encUTF8, "summarisation/scitldr.parquet": "", "classification/banking77.csv": encUTF8, "classification/sms-spam.csv": encUTF8,
	} {
		t.Run(file, func(t *testing.T) {
			r, _ := prepare(t, config(testdataFile(t, file)))
			if got := r.Files[0].Encoding; got != encoding {
				t.Errorf("encoding %q, want %q", got, encoding)
			}
			lost := int64(0)
			for rule, c := range r.Rules {
				if rule != RuleExact && rule != RuleNear {
					lost += c.Dropped
				}
			}
			if lost*100 > r.Rows || r.Rules[RuleNear] != nil && r.Rules[RuleNear].Dropped*50 > r.Rows {
				t.Errorf("of %d rows: %+v", r.Rows, r.Rules)
			}
			for _, part := range []string{"valid", "test"} {
				if f := float64(r.Parts[part].Bytes) / float64(r.Parts["train"].Bytes); f < 0.04 || f > 0.12 {
					t.Errorf("%s has %.3f of train", part, f)
				}
			}
		})
	}
}
