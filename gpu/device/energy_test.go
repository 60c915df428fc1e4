package device

import (
	"testing"
	"testing/fstest"
)

func TestEnergy(t *testing.T) {
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text + "\n")} }
	root := fstest.MapFS{
		"sys/class/powercap/intel-rapl:0/energy_uj":             file("1000000"),
		"sys/class/powercap/intel-rapl:0/max_energy_range_uj":   file("9000000"),
		"sys/class/powercap/intel-rapl:0:0/energy_uj":           file("700000"), // the cores of the first package
		"sys/class/powercap/intel-rapl:0:0/max_energy_range_uj": file("9000000"),
		"sys/class/powercap/intel-rapl:1/energy_uj":             file("8000000"),
		"sys/class/powercap/intel-rapl:1/max_energy_range_uj":   file("9000000"),
	}
	e, err := StartEnergy(root)
	if err != nil {
		t.Fatal(err)
	}
	root["sys/class/powercap/intel-rapl:0/energy_uj"] = file("3500000")
	root["sys/class/powercap/intel-rapl:0:0/energy_uj"] = file("3000000")
	root["sys/class/powercap/intel-rapl:1/energy_uj"] = file("500000") // it wrapped around
	if j, err := e.Joules(); err != nil || j != 4 {
		t.Errorf("%g J, %v; want 2.5 of one package and 1.5 of the other", j, err)
	}
	delete(root, "sys/class/powercap/intel-rapl:1/energy_uj")
	if j, err := e.Joules(); err == nil {
		t.Errorf("%g J with a counter that is gone", j)
	}
	for name, root := range map[string]fstest.MapFS{
		"none":    {},
		"nothing": {"sys/class/powercap/intel-rapl:0/energy_uj": file("")},
		"words":   {"sys/class/powercap/intel-rapl:0/energy_uj": file("many")},
	} {
		if _, err := StartEnergy(root); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
