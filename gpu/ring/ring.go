package ring

// Buffer is one contiguous piece of gradient (or parameter) memory that a
// collective reads and overwrites in place. The ring owns it between Reduce and
// Wait; nobody else may touch it meanwhile.
type Buffer struct {
	Data []float32
}
