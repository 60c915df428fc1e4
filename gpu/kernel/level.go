package kernel

import "os"

// simd is a level of vector instructions, in rising order.
type simd int

const (
	generic simd = iota
	avx2
	avx512
	amx // bf16 products in tiles, on top of AVX-512 with AVX512_BF16
)

var levelNames = [...]string{generic: "generic", avx2: "avx2", avx512: "avx512", amx: "amx"}

// level is the one that runs. It is set once, before main; only tests change it.
var level = chooseLevel(os.Getenv("AUTOGLM_SIMD"), detect())

// Level names the instructions in use: "generic", "avx2", "avx512" or "amx".
func Level() string { return levelNames[level] }

// chooseLevel is the forced level where it is known and not above what the CPU
// has, and otherwise the best one.
func chooseLevel(forced string, best simd) simd {
	for l, name := range levelNames {
		if name == forced && simd(l) <= best {
			return simd(l)
		}
	}
	return best
}
