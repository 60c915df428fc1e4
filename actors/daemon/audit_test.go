package daemon

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// backupOf lays streams out as replica's Backup does.
func backupOf(streams map[string][][]byte) *bytes.Buffer {
	var b bytes.Buffer
	b.WriteString("AGLSNAP\x01")
	for _, name := range []string{"job/j1", "jobs"} {
		var body []byte
		for _, r := range streams[name] {
			body = binary.LittleEndian.AppendUint32(body, uint32(len(r)))
			body = binary.LittleEndian.AppendUint32(body, crc32.Checksum(r, crc32.MakeTable(crc32.Castagnoli)))
			body = append(body, r...)
		}
		b.WriteByte(byte(len(name)))
		b.WriteString(name)
		b.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(body))))
		b.Write(body)
	}
	return &b
}

// sound is a job that was given out twice and is done.
func sound(t *testing.T) (jobs []record, entries []struct {
	epoch, seq uint64
	e          journal.Event
},
) {
	t.Helper()
	jobs = []record{
		{Op: opSubmit, ID: "j1", Job: &Job{ID: "j1"}},
		{Op: opAssign, ID: "j1", Node: "a", Devices: []string{"cpu:0", "cpu:1"}, Epoch: 1},
		{Op: opReturn, ID: "j1", Epoch: 1},
		{Op: opAssign, ID: "j1", Node: "b", Devices: []string{"cpu:0"}, Epoch: 2},
		{Op: opEnd, ID: "j1", Epoch: 2, State: Done},
	}
	add := func(epoch, seq uint64, e journal.Event) {
		entries = append(entries, struct {
			epoch, seq uint64
			e          journal.Event
		}{epoch, seq, e})
	}
	add(1, 0, journal.Event{Kind: journal.Created})
	add(1, 1, journal.Event{Kind: journal.Decided, Decision: &search.Decision{Seq: 0}})
	add(1, 2, journal.Event{Kind: journal.Decided, Decision: &search.Decision{Seq: 1}})
	add(1, 3, journal.Event{Kind: journal.TrialEnded, Trial: &journal.TrialReport{Seq: 0}})
	add(2, 0, journal.Event{Kind: journal.Resumed})
	add(2, 1, journal.Event{Kind: journal.TrialEnded, Trial: &journal.TrialReport{Seq: 1}})
	add(2, 2, journal.Event{Kind: journal.FinalEnded, Trial: &journal.TrialReport{Seq: -1}})
	add(2, 3, journal.Event{Kind: journal.Finished})
	return jobs, entries
}

// The audit is content with a sound journal and finds each fault that is planted.
func TestAudit(t *testing.T) {
	type entry = struct {
		epoch, seq uint64
		e          journal.Event
	}
	for _, c := range []struct {
		name   string
		damage func(jobs *[]record, entries *[]entry)
		want   string
	}{
		{"sound", func(*[]record, *[]entry) {}, ""},
		{"a lost trial", func(_ *[]record, e *[]entry) {
			*e = append((*e)[:5:5], (*e)[6:]...)
			(*e)[5].seq, (*e)[6].seq = 1, 2
		}, "decision 1 was lost"},
		{"a trial twice", func(_ *[]record, e *[]entry) { (*e)[5].e.Trial = &journal.TrialReport{Seq: 0} }, "decision 0 () ended 2 times"},
		{"two owners", func(j *[]record, _ *[]entry) { *j = append((*j)[:2:2], (*j)[3:]...) }, "while another node had it"},
		{"a device after another", func(j *[]record, _ *[]entry) {
			*j = slices.Insert(*j, 3, record{Op: opAssign, ID: "j2", Node: "a", Devices: []string{"cpu:1"}, Epoch: 1})
		}, ""},
		{"a double lease", func(j *[]record, _ *[]entry) {
			*j = slices.Insert(*j, 2, record{Op: opAssign, ID: "j2", Node: "a", Devices: []string{"cpu:1"}, Epoch: 1})
		}, "job j2: device cpu:1 of node a was given to it while job j1 had it"},
		{"a device that is lent", func(j *[]record, _ *[]entry) {
			*j = slices.Insert(*j, 2,
				record{Op: opLend, ID: "j1", Epoch: 1, Lent: &Lent{Node: "b", Devices: []string{"cpu:1"}}},
				record{Op: opAssign, ID: "j2", Node: "b", Devices: []string{"cpu:1"}, Epoch: 1})
		}, "job j2: device cpu:1 of node b was given to it while job j1 had it"},
		{"a device that came back", func(j *[]record, _ *[]entry) {
			*j = slices.Insert(*j, 2,
				record{Op: opLend, ID: "j1", Epoch: 1, Lent: &Lent{Node: "b", Devices: []string{"cpu:1"}}},
				record{Op: opLeft, ID: "j1", Epoch: 1, Node: "b"},
				record{Op: opAssign, ID: "j2", Node: "b", Devices: []string{"cpu:1"}, Epoch: 1})
		}, ""},
		{"ranks apart", func(_ *[]record, e *[]entry) {
			(*e)[6].e.Trial.Err = fmt.Sprintf("%v: rank 1's is not rank 0's after step 7", train.ErrApart)
		}, "rank 1's is not rank 0's"},
		{"ranks apart for a while", func(_ *[]record, e *[]entry) {
			retried := journal.Event{Kind: journal.TrialRetried, Trial: &journal.TrialReport{Seq: 1, Err: train.ErrApart.Error()}}
			*e = slices.Insert(*e, 4, entry{1, 4, retried})
		}, train.ErrApart.Error()},
		{"an epoch again", func(j *[]record, _ *[]entry) { (*j)[3].Epoch = 1 }, "epoch 1 after 1"},
		{"a zombie's record", func(_ *[]record, e *[]entry) { (*e)[6].epoch = 1 }, "a record of epoch 1 after one of 2"},
		{"a record twice", func(_ *[]record, e *[]entry) { (*e)[2].seq = 1 }, "record 1 of epoch 1 follows record 1"},
		{"an epoch nobody had", func(_ *[]record, e *[]entry) { (*e)[7].epoch, (*e)[7].seq = 3, 0 }, "given out only up to 2"},
		{"orders", func(_ *[]record, e *[]entry) {
			stop := journal.Event{Kind: journal.Ordered, Order: &search.Order{Kind: search.Stop, Trial: "t001", Before: 2}}
			(*e)[6].e = stop
			(*e)[7].e = journal.Event{Kind: journal.Decided, Decision: &search.Decision{Seq: 2, Trial: "t001"}}
		}, "decision 2 is of trial t001, which was stopped before"},
		{"an order in another place", func(_ *[]record, e *[]entry) {
			(*e)[6].e = journal.Event{Kind: journal.Ordered, Order: &search.Order{Kind: search.Stop, Trial: "t001", Before: 1}}
		}, "order 0 stands before decision 2 and says 1"},
		{"an order twice", func(_ *[]record, e *[]entry) {
			(*e)[6].e = journal.Event{Kind: journal.Ordered, Order: &search.Order{Seq: 1, Before: 2}}
		}, "an order out of order"},
		{"no end", func(_ *[]record, e *[]entry) { *e = (*e)[:7] }, "its journal has no end"},
		{"work after the end", func(_ *[]record, e *[]entry) {
			*e = append(*e, entry{2, 4, journal.Event{Kind: journal.Tick}})
		}, "tick after its end"},
		{"ended by another", func(j *[]record, _ *[]entry) { (*j)[4].Epoch = 1 }, "ended by the node of epoch 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			jobs, entries := sound(t)
			c.damage(&jobs, &entries)
			streams := map[string][][]byte{}
			for _, r := range jobs {
				b, err := r.encode()
				if err != nil {
					t.Fatal(err)
				}
				streams["jobs"] = append(streams["jobs"], b)
			}
			for _, e := range entries {
				b, err := e.e.Encode()
				if err != nil {
					t.Fatal(err)
				}
				streams["job/j1"] = append(streams["job/j1"], encodeEntry(e.epoch, e.seq, b))
			}
			found, err := Audit(backupOf(streams))
			if err != nil {
				t.Fatal(err)
			}
			all := strings.Join(found, "\n")
			if c.want == "" && all != "" || !strings.Contains(all, c.want) {
				t.Errorf("found %q, want %q", all, c.want)
			}
		})
	}
}

func FuzzRecords(f *testing.F) {
	f.Add([]byte(`{"op":"assign","id":"j1","epoch":1}`))
	f.Add(encodeEntry(1, 2, []byte(`{"kind":"tick"}`)))
	f.Add(appendFrame(nil, []byte("x")))
	f.Fuzz(func(_ *testing.T, b []byte) {
		reg := newRegistry()
		if r, err := decodeRecord(b); err == nil {
			reg.apply(r)
			_ = reg.list()
		}
		_, _, _, _ = decodeEntry(b)
		_ = readFrames(bytes.NewReader(b), func([]byte) error { return nil })
		_, _ = decodeNews(b)
		_, _ = Audit(bytes.NewReader(b))
	})
}
