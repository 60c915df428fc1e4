package telemetry

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// none stands where there is no value.
const none = "–"

// size prints a count in short: 950, 12.3k, 4.56M.
func size(n int64) string {
	x := float64(n)
	switch {
	case n < 0:
		return none
	case x >= 1e9:
		return digits(x/1e9) + "B"
	case x >= 1e6:
		return digits(x/1e6) + "M"
	case x >= 1e4:
		return digits(x/1e3) + "k"
	}
	return strconv.FormatInt(n, 10)
}

func digits(x float64) string {
	switch {
	case x >= 100:
		return strconv.FormatFloat(x, 'f', 0, 64)
	case x >= 10:
		return strconv.FormatFloat(x, 'f', 1, 64)
	}
	return strconv.FormatFloat(x, 'f', 2, 64)
}

// byteSize prints 512 B, 1.20 MB (decimal units).
func byteSize(n int64) string {
	x := float64(n)
	switch {
	case x >= 1e9:
		return digits(x/1e9) + " GB"
	case x >= 1e6:
		return digits(x/1e6) + " MB"
	case x >= 1e3:
		return digits(x/1e3) + " kB"
	}
	return strconv.FormatInt(n, 10) + " B"
}

// seconds prints 0.42 s, 12.3 s, 4m05s, 2h10m.
func seconds(s float64) string {
	switch {
	case math.IsNaN(s) || math.IsInf(s, 0) || s < 0:
		return none
	case s < 10:
		return strconv.FormatFloat(s, 'f', 2, 64) + " s"
	case s < 60:
		return strconv.FormatFloat(s, 'f', 1, 64) + " s"
	}
	d := time.Duration(min(s, 1e9) * float64(time.Second)).Round(time.Second)
	if d >= time.Hour {
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
}

// bits prints a score.
func bits(x float64) string {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return none
	}
	return strconv.FormatFloat(x, 'f', 4, 64)
}

func short(x float64) string {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return none
	}
	return strconv.FormatFloat(x, 'g', 4, 64)
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

// words makes a name readable: exact_duplicate is "exact duplicate".
func words(name string) string { return strings.ReplaceAll(name, "_", " ") }

// clip cuts a text to n runes.
func clip(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n]) + "…"
}
