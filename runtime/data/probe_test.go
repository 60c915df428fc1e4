package data

import (
	"context"
	"strings"
	"testing"
)

// TestProbeLabelled holds the probe against every file whose task is known.
func TestProbeLabelled(t *testing.T) {
	for _, c := range []struct {
		file  string
		task  Task
		roles string // role=column,…
	}{
		{"text/tinyshakespeare.txt", TaskText, ""},
		{"text/mobydick.jsonl.gz", TaskText, "text=text"},
		{"text/sotu.jsonl.gz", TaskText, "text=text"},
		{"text/zh.classics.jsonl.gz", TaskText, "text=text"},
		{"text/zh.gb18030.jsonl", TaskText, "text=text"},
		{"text/zh.gb18030.txt", TaskText, ""},
		{"text/zh.big5.txt", TaskText, ""},
		{"text/ja.shift_jis.txt", TaskText, ""},
		{"text/fr-de-es.windows-1252.txt", TaskText, ""},
		{"text/ru.windows-1251.txt", TaskText, ""},
		{"qa/xquad.en.jsonl", TaskQA, "question=question,answer=answer,context=context"},
		{"qa/xquad.zh.jsonl", TaskQA, "question=question,answer=answer,context=context"},
		{"qa/squad-nested.en.json", TaskQA, "question=question,answer=answers,context=context"},
		{"qa/webquestions.jsonl", TaskQA, "question=question,answer=answer"},
		{"qa/xiehouyu.zh.jsonl", TaskQA, "question=question,answer=answer"},
		{"qa/chatterbot.en.jsonl", TaskQA, "question=question,answer=answer"},
		{"dialogue/sgd.messages.jsonl", TaskDialogue, "messages=messages"},
		{"dialogue/sgd.sharegpt.jsonl.gz", TaskDialogue, "messages=conversations"},
		{"dialogue/crosswoz.zh.messages.jsonl.gz", TaskDialogue, "messages=messages"},
		{"dialogue/chatterbot.en.messages.jsonl", TaskDialogue, "messages=messages"},
		{"dialogue/chatterbot.zh.sharegpt.jsonl", TaskDialogue, "messages=conversations"},
		{"summarisation/scitldr.csv", TaskSummary, "document=document,summary=summary"},
		{"summarisation/scitldr.parquet", TaskSummary, "document=document,summary=summary"},
		{"summarisation/pep-titles.jsonl", TaskSummary, "document=document,summary=summary"},
		{"classification/sms-spam.csv", TaskClassification, "text=text,label=label"},
		{"classification/banking77.csv", TaskClassification, "text=text,label=category"},
		{"variants/qa.snappy.parquet", TaskQA, "question=question,answer=answer,context=context"},
		{"variants/qa.nulls.parquet", TaskQA, "question=question,answer=answer,context=context"},
		{"variants/qa.nested.parquet", TaskQA, "question=question,answer=answers,context=context"},
		{"variants/messages.parquet", TaskDialogue, "messages=messages"},
		{"variants/qa.noheader.csv", TaskQA, "question=column_1,answer=column_2,context=column_3"},
		{"variants/qa.alpaca.jsonl", TaskQA, "question=instruction,answer=output,context=input"},
		{"variants/qa.array.json", TaskQA, "question=question,answer=answer,context=context"},
		{"variants/qa.wrapped.json", TaskQA, "question=question,answer=answer,context=context"},
		{"variants/qa.zh.gb18030.csv", TaskQA, "question=question,answer=answer,context=context"},
		{"variants/qa.utf16be-nobom.csv", TaskQA, "question=question,answer=answer,context=context"},
		{"variants/qa.cr.csv", TaskQA, "question=question,answer=answer,context=context"},
		{"variants/qa.ragged.csv", TaskQA, "question=question,answer=answer,context=context"},
		{"dirty/dirty.jsonl", TaskText, "text=text"},
		{"dirty/dirty.qa.jsonl", TaskQA, "question=question,answer=answer"},
	} {
		t.Run(c.file, func(t *testing.T) {
			r, err := Probe(context.Background(), config(testdataFile(t, c.file)))
			if err != nil {
				t.Fatal(err)
			}
			if r.Task != c.task {
				t.Fatalf("task %q (%v), want %q", r.Task, r.Reasons, c.task)
			}
			if r.Confidence <= 0 || r.Confidence > 1 || len(r.Reasons) == 0 {
				t.Errorf("confidence %v, reasons %v", r.Confidence, r.Reasons)
			}
			for _, w := range strings.Split(c.roles, ",") {
				if k, v, ok := strings.Cut(w, "="); ok && r.Files[0].Guess.Roles[k] != v {
					t.Errorf("role %s is column %q, want %q", k, r.Files[0].Guess.Roles[k], v)
				}
			}
		})
	}
}

// TestProbeTables holds that no task is made up for tables of numbers.
func TestProbeTables(t *testing.T) {
	for _, f := range []string{"tabular/penguins.csv", "tabular/adult.semicolon.csv", "timeseries/realTraffic.occupancy_6005.csv"} {
		t.Run(f, func(t *testing.T) {
			_, err := Probe(context.Background(), config(testdataFile(t, f)))
			if e := wantInput(t, err); e.Field != "task_type" {
				t.Errorf("field %q: %v", e.Field, e)
			}
		})
	}
}

func TestProbeSmall(t *testing.T) {
	rows := func(f string) string { return strings.Repeat(f+"\n", 5) }
	for _, c := range []struct {
		name, file, content string
		task                Task
	}{
		{"text rows", "a.jsonl", rows(`{"text":"A sentence that is long enough to be text.","source":"x"}`), TaskText},
		{"qa", "a.jsonl", rows(`{"question":"Why?","answer":"Because."}`), TaskQA},
		{"prompt", "a.jsonl", rows(`{"prompt":"Say hello","completion":"hello"}`), TaskQA},
		{"squad answers", "a.jsonl", rows(`{"question":"Why?","context":"c c c","answers":{"text":["x"],"answer_start":[0]}}`), TaskQA},
		{"messages", "a.jsonl", rows(`{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"ho"}]}`), TaskDialogue},
		{"summary", "a.csv", "article,highlights\n" + rows(strings.Repeat("long words ", 20)+",short words"), TaskSummary},
		{"label", "a.csv", "text,label\ngood day,1\nbad day,0\nfine day,1\nworse day,0\nnice,1\n", TaskClassification},
		{"plain", "a.txt", "Just some words.\nAnd more.\n", TaskText},
		{"no ending, csv", "a", "question,answer\n" + rows("Why?,Because."), TaskQA},
		{"no ending, prose", "a", "It was late, and dark.\nNobody came, or went, or spoke.\nSo it goes.\n", TaskText},
		{"json that is jsonl", "a.json", rows(`{"text":"A sentence that is long enough to be text."}`), TaskText},
		{"no header", "a.tsv", strings.Repeat("Who is it that came here?\tAnna B.\nWhat is that thing over there?\tA box of wood.\n", 4), TaskQA},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := Probe(context.Background(), config(put(t, c.file, c.content)))
			if err != nil {
				t.Fatal(err)
			}
			if r.Task != c.task {
				t.Fatalf("task %q (%v), want %q", r.Task, r.Reasons, c.task)
			}
		})
	}
}

func TestProbeForced(t *testing.T) {
	p := put(t, "a.jsonl", strings.Repeat(`{"alpha":"Why is that so?","beta":"Because it is."}`+"\n", 5))
	c := config(p)
	c.Columns = map[string]string{"question": "alpha", "answer": "beta"}
	r, err := Probe(context.Background(), c)
	if err != nil || r.Task != TaskQA || r.Files[0].Guess.Roles["answer"] != "beta" {
		t.Fatalf("%+v, %v", r, err)
	}
	c.Columns["answer"] = "gamma"
	_, err = Probe(context.Background(), c)
	if e := wantInput(t, err); e.Field != "gamma" || !strings.Contains(e.Hint, "alpha") {
		t.Errorf("%v", e)
	}
	c = config(p)
	c.Task = TaskSummary
	_, err = Probe(context.Background(), c)
	if e := wantInput(t, err); e.Field != "document" {
		t.Errorf("%v", e)
	}
	c = config(p, put(t, "b.jsonl", strings.Repeat(`{"messages":[{"role":"user","content":"hi"}]}`+"\n", 3)))
	_, err = Probe(context.Background(), c)
	if e := wantInput(t, err); !strings.Contains(e.Msg, "looks like dialogue") {
		t.Errorf("%v", e)
	}
}
