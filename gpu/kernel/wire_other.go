//go:build !amd64 || purego

package kernel

func addTwo(_, _, _, _ *float32, _ int)       { panic(unreachable) }
func encodeBF16(_ *uint16, _ *float32, _ int) { panic(unreachable) }
func decodeBF16(_ *float32, _ *uint16, _ int) { panic(unreachable) }
func addBF16(_ *float32, _ *uint16, _ int)    { panic(unreachable) }
func encodeF16(_ *uint16, _ *float32, _ int)  { panic(unreachable) }
func decodeF16(_ *float32, _ *uint16, _ int)  { panic(unreachable) }
func addF16(_ *float32, _ *uint16, _ int)     { panic(unreachable) }
