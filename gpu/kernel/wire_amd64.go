//go:build amd64 && !purego

package kernel

// n is a positive multiple of wide. These are bound by memory, so that AVX2
// serves every level.

//go:noescape
func addTwo(d, e, a, b *float32, n int)

//go:noescape
func encodeBF16(dst *uint16, src *float32, n int)

//go:noescape
func decodeBF16(dst *float32, src *uint16, n int)

//go:noescape
func addBF16(dst *float32, src *uint16, n int)

//go:noescape
func encodeF16(dst *uint16, src *float32, n int)

//go:noescape
func decodeF16(dst *float32, src *uint16, n int)

//go:noescape
func addF16(dst *float32, src *uint16, n int)
