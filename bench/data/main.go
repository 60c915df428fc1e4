// Command data measures what preparing costs: reading, probing, cleaning, finding
// duplicates, splitting and writing a generated JSONL file of mixed rows.
//
//	go run ./bench/data -mb 200 -modes exact,near -procs 1
//
// It prints one JSON object a line for each mode:
//
//	{"mode","mb","seconds","mb_per_s","cpu_mb_per_s","rows","kept","rss_mb"}
//
// Each mode runs in a process of its own, so that rss_mb (the peak) is its own.
// cpu_mb_per_s divides by processor seconds: the speed of one core. With -python
// and $AUTOGLM_PYTHON a peer that parses, folds and deduplicates exactly, as a
// short Python program does, is measured too.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strings"
	"syscall"
	"time"

	"github.com/open-autoglm/autoglm/runtime/data"
)

type result struct {
	Mode  string  `json:"mode"`
	MB    float64 `json:"mb"`
	Secs  float64 `json:"seconds"`
	Speed float64 `json:"mb_per_s"`
	CPU   float64 `json:"cpu_mb_per_s"`
	Rows  int64   `json:"rows"`
	Kept  int64   `json:"kept"`
	RSS   float64 `json:"rss_mb"`
}

func main() {
	mb := flag.Int("mb", 100, "size of the generated file in MB")
	file := flag.String("file", "", "measure this file instead")
	modes := flag.String("modes", "exact,near", "probe, none, exact, near")
	procs := flag.Int("procs", 1, "GOMAXPROCS")
	memory := flag.Int64("memory", data.DefaultConfig().Memory>>20, "MiB for the indexes of duplicates")
	python := flag.Bool("python", false, "measure the Python peer too ($AUTOGLM_PYTHON)")
	cpuProfile := flag.String("cpuprofile", "", "write the last mode's profile here")
	child := flag.Bool("child", false, "internal: measure one mode in this process")
	flag.Parse()
	runtime.GOMAXPROCS(*procs)
	if *child {
		if err := measure(*modes, *file, *memory<<20, *cpuProfile); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if err := run(*mb, *file, *modes, *procs, *memory, *python, *cpuProfile); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(mb int, file, modes string, procs int, memory int64, python bool, cpuProfile string) error {
	if file == "" {
		dir, err := os.MkdirTemp("", "bench-data-")
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(dir) }()
		file = filepath.Join(dir, "mixed.jsonl")
		if err := generate(file, int64(mb)*1e6); err != nil {
			return err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, m := range strings.Split(modes, ",") {
		c := exec.Command(self, "-child", "-modes", m, "-file", file, "-procs", fmt.Sprint(procs), "-memory", fmt.Sprint(memory), "-cpuprofile", cpuProfile)
		c.Stdout, c.Stderr = os.Stdout, os.Stderr
		if err := c.Run(); err != nil {
			return fmt.Errorf("mode %s: %w", m, err)
		}
	}
	if py := os.Getenv("AUTOGLM_PYTHON"); python && py != "" {
		c := exec.Command(py, "-c", peer, file)
		c.Stdout, c.Stderr = os.Stdout, os.Stderr
		return c.Run()
	}
	return nil
}

// peer is the least that a Python program does for the same: strict UTF-8, JSON,
// NFKC folding, and a set of hashes.
const peer = `
import sys, json, time, unicodedata, resource, os, hashlib
t, seen, rows, kept = time.time(), set(), 0, 0
for line in open(sys.argv[1], "rb"):
    rows += 1
    try: text = json.loads(line.decode("utf-8"))["text"]
    except Exception: continue
    h = hashlib.blake2b(" ".join(unicodedata.normalize("NFKC", text).lower().split()).encode(), digest_size=8).digest()
    if h not in seen: seen.add(h); kept += 1
s, n = time.time() - t, os.path.getsize(sys.argv[1]) / 1e6
print(json.dumps({"mode": "python exact", "mb": round(n, 1), "seconds": round(s, 2), "mb_per_s": round(n / s, 1), "rows": rows, "kept": kept, "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
`

func measure(mode, file string, memory int64, cpuProfile string) error {
	st, err := os.Stat(file)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bench-data-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	cfg := data.DefaultConfig()
	cfg.Files, cfg.Exact, cfg.Near, cfg.Memory = []string{file}, mode != "none", mode == "near", memory
	r := result{Mode: mode, MB: float64(st.Size()) / 1e6}
	if cpuProfile != "" {
		f, err := os.Create(cpuProfile)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	begin, cpu := time.Now(), cpuTime()
	if mode == "probe" {
		p, err := data.Probe(context.Background(), cfg)
		if err != nil {
			return err
		}
		r.Rows = p.Files[0].Rows
	} else {
		rep, err := data.Prepare(context.Background(), cfg, dir, data.Events{})
		if err != nil {
			return err
		}
		r.Rows, r.Kept = rep.Rows, rep.Kept
	}
	r.Secs = time.Since(begin).Seconds()
	r.Speed, r.CPU = r.MB/r.Secs, r.MB/(cpuTime()-cpu)
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return err
	}
	r.RSS = float64(u.Maxrss) / 1024
	return json.NewEncoder(os.Stdout).Encode(r)
}

func cpuTime() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// generate writes rows of English-like and Chinese text, of lengths from a line to
// some pages, with copies, near copies, markup and other dirt among them.
func generate(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	rnd := rand.New(rand.NewPCG(1, 2))
	vocabulary := make([]string, 20000)
	for i := range vocabulary {
		b := make([]byte, 2+rnd.IntN(9))
		for j := range b {
			b[j] = "etaoinshrdlucmfwypvbgk"[min(rnd.IntN(22), rnd.IntN(22))]
		}
		vocabulary[i] = string(b)
	}
	var text strings.Builder
	var old [64]string
	var n int64
	for i := 0; n < size; i++ {
		text.Reset()
		words := 20 + rnd.IntN(200)
		if rnd.IntN(50) == 0 {
			words *= 20
		}
		switch k := rnd.IntN(100); {
		case k < 8:
			for range words {
				text.WriteRune(rune(0x4e00 + min(rnd.IntN(5000), rnd.IntN(5000))))
				if rnd.IntN(12) == 0 {
					text.WriteString("，")
				}
			}
		case k < 11 && old[i%64] != "":
			text.WriteString(old[i%64])
		case k < 13 && old[i%64] != "":
			text.WriteString(old[i%64] + " and more of it")
		default:
			for j := range words {
				if j > 0 {
					text.WriteByte(' ')
				}
				text.WriteString(vocabulary[min(rnd.IntN(20000), rnd.IntN(20000))])
				switch rnd.IntN(200) {
				case 0:
					text.WriteString(".\n")
				case 1, 2, 3, 4, 5, 6, 7, 8, 9, 10:
					text.WriteByte('.')
				case 11:
					text.WriteString(" café")
				case 12:
					text.WriteString(" \"so\"")
				case 13:
					if k < 16 {
						text.WriteString("<br>")
					}
				case 14:
					fmt.Fprintf(&text, " %d", rnd.IntN(3000))
				}
			}
		}
		old[rnd.IntN(64)] = text.String()
		b, err := json.Marshal(map[string]any{"id": fmt.Sprintf("r%08d", i), "text": text.String(), "source": "generated"})
		if err != nil {
			return err
		}
		if rnd.IntN(1000) == 0 {
			b = b[:len(b)/2]
		}
		k, err := w.Write(append(b, '\n'))
		if err != nil {
			return err
		}
		n += int64(k)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Close()
}
