//go:build !amd64 || purego

package kernel

func flush() uint32  { return 0 }
func unflush(uint32) {}
