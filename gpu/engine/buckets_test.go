package engine

import (
	"testing"

	"github.com/open-autoglm/autoglm/gpu/ring"
)

// collector is a GradientSync that counts.
type collector struct{ sizes []int }

func (c *collector) Reduce(bucket int, g ring.Buffer) { c.sizes = append(c.sizes, len(g.Data)) }
func (c *collector) Wait() error                      { return nil }

// TestBuckets: the cut depends on the length alone, not on when parts are ready,
// and a bucket comes as soon as it is whole.
func TestBuckets(t *testing.T) {
	for _, n := range []int{0, 1, firstBucket, firstBucket + 1, firstBucket * 3 / 2, 3*laterBucket + 17, 5 * laterBucket} {
		grads := make([]float32, n)
		var whole collector
		HandOver(grads, &whole)
		for _, step := range []int{1, 1000, laterBucket, 7 * laterBucket} {
			if n/step > 1<<12 {
				continue
			}
			var parts collector
			b := NewBuckets(grads, &parts)
			for from := n - 1; from > 0; from -= step {
				b.Ready(from)
				sum := 0
				for _, s := range parts.sizes {
					sum += s
				}
				if n-sum < from {
					t.Fatalf("%d elements: those from %d on were handed over when those from %d on were ready", n, n-sum, from)
				}
				if b.end-from >= laterBucket*3/2 {
					t.Fatalf("%d elements: a whole bucket before %d waits though %d is ready", n, b.end, from)
				}
			}
			b.Ready(0)
			if len(parts.sizes) != len(whole.sizes) {
				t.Fatalf("%d elements in steps of %d: %v, at once %v", n, step, parts.sizes, whole.sizes)
			}
			for i, s := range whole.sizes {
				if parts.sizes[i] != s {
					t.Fatalf("%d elements in steps of %d: %v, at once %v", n, step, parts.sizes, whole.sizes)
				}
			}
		}
	}
}

// addresses is a GradientSync that keeps what it is given.
type addresses struct{ given []ring.Buffer }

func (a *addresses) Reduce(bucket int, b ring.Buffer) { a.given = append(a.given, b) }
func (a *addresses) Wait() error                      { return nil }

// A gradient in a GPU's memory leaves as one in the host's does: the same cuts, in
// the same order, at the addresses of its elements.
func TestBucketsOnDevice(t *testing.T) {
	for _, dt := range []ring.DType{ring.F32, ring.BF16} {
		for _, n := range []int{0, 1, firstBucket + 1, 3*laterBucket + 17} {
			base := ring.Buffer{Device: 0x7f00_0000_1000, N: n, DType: dt, Stream: 0x55}
			var host collector
			HandOver(make([]float32, n), &host)
			var device addresses
			b := NewBufferBuckets(base, &device)
			b.Ready(0)
			if len(device.given) != len(host.sizes) {
				t.Fatalf("%d elements of %s: %d buckets, of host memory %d", n, dt, len(device.given), len(host.sizes))
			}
			end := n
			for i, b := range device.given {
				end -= host.sizes[i]
				want := base
				want.N, want.Device = host.sizes[i], base.Device+uintptr(end*dt.Size())
				if b.Device != want.Device || b.Len() != want.N || b.DType != dt || b.Stream != want.Stream || b.Data != nil || b.Half != nil {
					t.Errorf("%d elements of %s, bucket %d: %+v, want %+v", n, dt, i, b, want)
				}
			}
			if end != 0 {
				t.Errorf("%d elements of %s: the first %d are not handed over", n, dt, end)
			}
		}
	}
}
