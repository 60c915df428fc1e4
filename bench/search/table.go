package main

import (
	"bytes"
	"compress/gzip"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// family says what the digits of a table's keys mean.
type family struct {
	prefix   string
	maximise bool
	// kinds of the parameters: 'o' where the order of the choices means something,
	// 'c' where they are names.
	kinds string
	names []string
}

// families of published tables. A table of none of them is minimised, and its
// parameters are names.
var families = []family{
	{"hpolib_", false, "ccoooocoo", []string{"act1", "act2", "batch", "drop1", "drop2", "lr", "sched", "units1", "units2"}},
	{"hpobench_", true, "ooooo", []string{"alpha", "batch", "depth", "lr", "width"}},
	{"nasbench201_", true, "cccccc", []string{"e0", "e1", "e2", "e3", "e4", "e5"}},
}

// table reads a CSV of finished trainings, gzipped or not: a column "key" with one
// digit (0-9, a-z) a parameter, the index of its choice, and columns of results, one a
// seed. Cells without a number are passed over; a row without any is a training that
// failed, as is a configuration that has no row.
func table(path string) (task, error) {
	b, err := unpacked(path)
	if err != nil {
		return task{}, err
	}
	return readTable(path, bytes.NewReader(b))
}

// unpacked is what a file holds, gzipped or not.
func unpacked(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil || !strings.HasSuffix(path, ".gz") {
		return b, err
	}
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err == nil {
		b, err = io.ReadAll(z)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return b, nil
}

func readTable(path string, r io.Reader) (task, error) {
	fail := func(format string, a ...any) (task, error) {
		return task{}, fmt.Errorf("%s: %s", path, fmt.Sprintf(format, a...))
	}
	rows := csv.NewReader(r)
	rows.ReuseRecord, rows.FieldsPerRecord = true, -1 // cells may be missing
	head, err := rows.Read()
	if err != nil {
		return fail("%v", err)
	}
	head = slices.Clone(head)
	if len(head) < 2 || head[0] != "key" {
		return fail("the first line is %q, want key,v1,…", strings.Join(head, ","))
	}
	base := filepath.Base(path)
	fam := family{}
	for _, k := range families {
		if strings.HasPrefix(base, k.prefix) {
			fam = k
		}
	}
	sign := 1.0
	if fam.maximise {
		sign = -1
	}
	values := map[string]float64{}
	var all []float64
	var counts []int
	for line := 2; ; line++ {
		row, err := rows.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fail("%v", err)
		}
		key := strings.Clone(row[0])
		if counts == nil {
			counts = make([]int, len(key))
		}
		if len(key) != len(counts) || key == "" {
			return fail("line %d: key %q has %d digits, those before it %d", line, key, len(key), len(counts))
		}
		for i := range len(key) {
			d := digit(key[i])
			if d < 0 {
				return fail("line %d: key %q: %q is no digit", line, key, key[i])
			}
			counts[i] = max(counts[i], d+1)
		}
		sum, n := 0.0, 0
		for _, cell := range row[1:] {
			if v, err := strconv.ParseFloat(cell, 64); err == nil && !math.IsNaN(v) && !math.IsInf(v, 0) {
				sum += v
				n++
			}
		}
		if n > 0 {
			v := sign * sum / float64(n)
			values[key] = v
			all = append(all, v)
		}
	}
	if len(all) == 0 {
		return fail("holds no results")
	}
	if fam.kinds != "" && len(fam.kinds) != len(counts) {
		return fail("keys have %d digits, tables %s… have %d", len(counts), fam.prefix, len(fam.kinds))
	}
	slices.Sort(all)
	best, median := all[0], all[len(all)/2]
	spread := median - best
	if spread == 0 {
		spread = 1
	}
	t := task{name: strings.TrimSuffix(strings.TrimSuffix(base, ".gz"), ".csv"), suite: strings.TrimSuffix(fam.prefix, "_")}
	for i, n := range counts {
		name := fmt.Sprintf("p%d", i)
		if fam.names != nil {
			name = fam.names[i]
		}
		t.dims = append(t.dims, indexDim(name, n, fam.kinds != "" && fam.kinds[i] == 'o'))
	}
	t.eval = func(c space.Config) ([]float64, float64) {
		v, ok := values[indices(t.dims, c)]
		if !ok {
			v = math.Inf(1)
		}
		return []float64{v}, 0
	}
	t.regret = func(v float64) float64 { return (v - best) / spread }
	return t, nil
}

// indices of a configuration of index dimensions, as digits.
func indices(dims []space.Dimension, c space.Config) string {
	key := make([]byte, len(dims))
	for i, d := range dims {
		if v := c[d.Name]; v.IsWord() {
			key[i] = v.Word[1]
		} else {
			key[i] = digits[c.Int(d.Name)]
		}
	}
	return string(key)
}

const digits = "0123456789abcdefghijklmnopqrstuvwxyz"

func digit(c byte) int { return strings.IndexByte(digits, c) }

// indexDim is a parameter of n choices, known by their index.
func indexDim(name string, n int, ordered bool) space.Dimension {
	if ordered || n == 1 {
		return space.MustParse(name, fmt.Sprintf("int(0, %d)", n-1))
	}
	choices := make([]string, n)
	for i := range choices {
		choices[i] = "c" + digits[i:i+1]
	}
	return space.MustParse(name, "["+strings.Join(choices, ", ")+"]")
}
