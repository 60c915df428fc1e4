package node

import (
	"testing"

	"github.com/open-autoglm/autoglm/runtime/job"
)

// A job's hash is of what it asks for, and only of that.
func TestJobHash(t *testing.T) {
	spec := job.Default()
	spec.Data.Files = []string{"/here/corpus.jsonl"}
	want := jobHash(spec)
	same := spec
	same.Data.Files, same.Isolation, same.Priority, same.HardwareConstraint = []string{"/there/corpus.jsonl"}, "process", 5, "cpu-2"
	if jobHash(same) != want {
		t.Error("where and how a job is carried out changes its hash")
	}
	if spec.Data.Files[0] != "/here/corpus.jsonl" {
		t.Error("hashing changes the job")
	}
	other := spec
	other.Seed++
	if jobHash(other) == want || len(want) != 64 {
		t.Errorf("another seed has the hash %s, too", want)
	}
}
