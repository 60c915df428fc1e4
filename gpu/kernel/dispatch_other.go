//go:build !amd64 || purego

package kernel

// Without assembly the level is generic and none of these is reached.

func detect() simd { return generic }

const hasBF16 = false

func hasByteDots() bool { return false }

func tileProduct(_, _, _ int, _ []float32, _ int, _ []float32, _ int, _ []float32, _ int, _ bool) {
	panic(unreachable)
}

func peakTiles(int) { panic(unreachable) }

func roundTiles(_, _ *float32, _ int) { panic(unreachable) }

func transposePairs(_, _ *float32, _, _, _ int) { panic(unreachable) }

func roundTransposed(_, _ *float32, _, _, _ int) { panic(unreachable) }

const unreachable = "kernel: assembly called on a build without it"

func tile(_ int, _, _, _ *float32, _, _, _, _, _, _ int)      { panic(unreachable) }
func tilePairs(_ int, _, _, _ *float32, _, _, _, _, _, _ int) { panic(unreachable) }
func roundPairs(_, _ *float32, _ int)                         { panic(unreachable) }
func interleavePairs(_, _, _ *float32, _ int)                 { panic(unreachable) }
func packPairsN(_, _ *float32, _, _ int)                      { panic(unreachable) }
func peak(_ int)                                              { panic(unreachable) }
func peakPairs(_ int)                                         { panic(unreachable) }
func packT(_, _ *float32, _, _ int)                           { panic(unreachable) }
func packN(_, _ *float32, _, _ int)                           { panic(unreachable) }
func add(_, _ *float32, _ int)                                { panic(unreachable) }
func addTo(_, _, _ *float32, _ int)                           { panic(unreachable) }
func axpy(_, _ *float32, _ int, _ float32)                    { panic(unreachable) }
func scale(_ *float32, _ int, _ float32)                      { panic(unreachable) }
func mulScale(_, _, _ *float32, _ int, _ float32)             { panic(unreachable) }
func dot(_, _ *float32, _ int) float32                        { panic(unreachable) }
func dot3(_, _, _ *float32, _ int) float32                    { panic(unreachable) }
func maximum(_ *float32, _ int) float32                       { panic(unreachable) }
func expSum(_, _ *float32, _ int, _, _ float32) float32       { panic(unreachable) }
func softmaxGrad(_, _ *float32, _ int, _, _ float32)          { panic(unreachable) }
func normGrad(_, _, _, _, _ *float32, _ int, _, _ float32)    { panic(unreachable) }
func swiglu(_, _, _ *float32, _ int)                          { panic(unreachable) }
func swigluGrad(_, _, _, _, _ *float32, _ int)                { panic(unreachable) }
func adamw(_, _, _, _, _ *float32, _ int)                     { panic(unreachable) }
func rope(_, _, _ *float32, _, _ int, _ float32)              { panic(unreachable) }
func dropout(_ *float32, _ int, _, _, _ uint32, _ float32)    { panic(unreachable) }

func dotTile(_, _ int, _ *float32, _, _ *byte, _ *uint16, _, _, _, _, _ int) { panic(unreachable) }
func dotRows(_, _ int, _ *float32, _, _ *byte, _ *uint16, _, _ int)          { panic(unreachable) }
func roundBlocks(_ *byte, _ *float32, _, _ int)                              { panic(unreachable) }
func unpack(_ int, _ *float32, _ *byte, _ *uint16, _, _ int)                 { panic(unreachable) }
func tileHalves(_ int, _, _ *float32, _ *byte, _, _, _, _, _ int)            { panic(unreachable) }
func unpack16(_ *float32, _ *byte, _, _ int)                                 { panic(unreachable) }
