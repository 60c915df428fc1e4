package device_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/gpu/device/devicetest"
)

func ids(ds []device.Device) string {
	var out []string
	for _, d := range ds {
		out = append(out, strings.TrimPrefix(d.ID, "gpu:"))
	}
	return strings.Join(out, " ")
}

func TestBestConnected(t *testing.T) {
	for _, tc := range []struct {
		in   string
		gone []int
		want string
	}{
		{"gpu-2x-a100", nil, "0 1"},
		{"gpu-2", []int{0}, "2 3"},           // not 1 with 2
		{"gpu-4", []int{0, 2}, "4 5 6 7"},    // one NUMA node whole
		{"gpu-3", []int{0, 4}, "1 2 3"},      // one pair and a third of its half
		{"gpu-4", []int{0, 2, 4}, "1 3 6 7"}, // two and two: the ring crosses twice
		{"gpu-any", nil, "0 1 2 3 4 5 6 7"},
	} {
		f := devicetest.New(8)
		for _, i := range tc.gone {
			f.Set(i, func(d *device.Device) { d.Sick = "XID 79" })
		}
		m, err := f.Scan()
		if err != nil {
			t.Fatal(err)
		}
		r, err := device.ParseRequest(tc.in)
		if err != nil {
			t.Fatal(err)
		}
		got, err := m.Match(r)
		if err != nil || ids(got) != tc.want {
			t.Errorf("%s without %v: %s, %v; want %s", tc.in, tc.gone, ids(got), err, tc.want)
		}
	}
}

func TestUnmetSaysWhatIsMissing(t *testing.T) {
	f := devicetest.New(4)
	f.Set(1, func(d *device.Device) { d.Sick = "too hot: 96 °C" })
	m, err := f.Scan()
	if err != nil {
		t.Fatal(err)
	}
	held := map[string]string{"gpu:2": "pid 7"}
	for in, want := range map[string][]string{
		"gpu-4":       {"asks for 4 GPUs", "gpu:1 is sick (too hot: 96 °C)", "gpu:2 is leased by pid 7", "2 can be had"},
		"gpu-1x-h100": {"1 GPU with h100 in its name", "A100"},
		"cpu-1":       {"1 CPU core"},
	} {
		r, err := device.ParseRequest(in)
		if err != nil {
			t.Fatal(err)
		}
		_, err = m.MatchFree(r, held)
		if !errors.Is(err, device.ErrUnmet) || errors.Is(err, device.ErrBusy) {
			t.Errorf("%s: %v", in, err)
			continue
		}
		for _, w := range want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %v; nothing of %q", in, err, w)
			}
		}
	}
	if _, err := m.MatchFree(device.Request{Kind: device.GPU, Count: 3}, held); !errors.Is(err, device.ErrBusy) {
		t.Errorf("three that will be free again: %v", err)
	}
}

func TestLoadPolicy(t *testing.T) {
	last := device.Auto
	for i, step := range []struct {
		load float64
		want device.Kind
	}{{0.69, device.GPU}, {0.7, device.CPU}, {0.65, device.CPU}, {0.59, device.GPU}, {0.65, device.GPU}, {-1, device.CPU}, {0, device.GPU}} {
		if last = device.DefaultLoadPolicy().Next(last, step.load); last != step.want {
			t.Errorf("step %d, load %v: %s, want %s", i, step.load, last, step.want)
		}
	}
	for _, p := range []device.LoadPolicy{{}, {Threshold: 1.1}, {Threshold: 0.5, Hysteresis: 0.5}, {Threshold: 0.5, Hysteresis: -1}} {
		if p.Validate() == nil {
			t.Errorf("%+v passes", p)
		}
	}
	if err := device.DefaultLoadPolicy().Validate(); err != nil {
		t.Error(err)
	}
}

func TestWatchTellsSicknessAndLoss(t *testing.T) {
	f := devicetest.New(3)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var told []string
	scans := 0
	err := device.Watch(ctx, time.Microsecond, device.Events{
		Sick: func(d device.Device) { told = append(told, d.ID+" sick: "+d.Sick) },
		Well: func(d device.Device) { told = append(told, d.ID+" well") },
		Err:  func(err error) { told = append(told, err.Error()); f.Fail(nil) },
		Scan: func(m device.Machine) {
			switch scans++; scans {
			case 1:
				f.Set(1, func(d *device.Device) { d.Sick = "XID 79" })
			case 2:
				f.Fail(errors.New("driver gone"))
			case 3:
				f.Set(1, func(d *device.Device) { d.Sick = "" })
			case 4:
				f.Remove(2)
			case 5:
				if len(m.Devices) != 3 {
					t.Errorf("%d devices after one vanished: it must stay in sight", len(m.Devices))
				}
				cancel()
			}
		},
	}, f)
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	want := "gpu:1 sick: XID 79, driver gone, gpu:1 well, gpu:2 sick: vanished"
	if got := strings.Join(told, ", "); got != want {
		t.Errorf("told %s\nwant %s", got, want)
	}
}
