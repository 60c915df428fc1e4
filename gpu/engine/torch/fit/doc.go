// Package fit prepares a build of autoglm that computes through libtorch: it
// finds one, makes a copy of gotch that fits it, and builds the binary.
//
// gotch's generated C wrappers name functions that some libtorches lack. A
// syntax pass of the C++ compiler tells which; the bodies of those wrappers
// alone are replaced by one that throws, and the pass is repeated until it is
// clean. The copy lies in a cache folder, and a second mod file points at it,
// so that the module's own go.mod knows nothing of this machine.
//
//	r, err := fit.Run(ctx, fit.Config{Source: ".", Out: "autoglm-torch"}, fmt.Println)
//
// The caller needs go, a C++ compiler and a libtorch on the machine.
package fit
