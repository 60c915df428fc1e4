//go:build gpu

package nccl

import (
	"fmt"
	"unsafe"

	"github.com/ebitengine/purego"
)

// cuda is what is needed of the driver's API: its file's name and its functions
// are the same for all versions of CUDA, and its primary context is the one that
// libtorch and NCCL use.
type cuda struct {
	init            func(flags uint32) int32
	deviceGetCount  func(count *int32) int32
	deviceGet       func(device *int32, ordinal int32) int32
	primaryRetain   func(ctx *uintptr, device int32) int32
	primaryRelease  func(device int32) int32
	ctxSetCurrent   func(ctx uintptr) int32
	streamCreate    func(stream *uintptr, flags uint32) int32
	streamDestroy   func(stream uintptr) int32
	streamQuery     func(stream uintptr) int32
	streamWaitEvent func(stream, event uintptr, flags uint32) int32
	eventCreate     func(event *uintptr, flags uint32) int32
	eventDestroy    func(event uintptr) int32
	eventRecord     func(event, stream uintptr) int32
	memAlloc        func(p *uintptr, bytes uintptr) int32
	memFree         func(p uintptr) int32
	memcpyHtoD      func(to uintptr, from unsafe.Pointer, bytes, stream uintptr) int32
	memcpyDtoH      func(to unsafe.Pointer, from, bytes, stream uintptr) int32
	getErrorString  func(code int32, text **byte) int32
}

// Results of the driver.
const (
	cudaNotReady = 600
)

const (
	streamNonBlocking  = 1 // it doesn't wait for the default stream
	eventDisableTiming = 2
)

func loadCUDA(path string) (*cuda, error) {
	lib, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_GLOBAL)
	if err != nil {
		return nil, fmt.Errorf("the NVIDIA driver's %s can't be loaded (%w): install the driver, or set AUTOGLM_CUDA to the file", path, err)
	}
	c := &cuda{}
	err = bind(lib, path, []symbol{
		{&c.init, "cuInit"},
		{&c.deviceGetCount, "cuDeviceGetCount"},
		{&c.deviceGet, "cuDeviceGet"},
		{&c.primaryRetain, "cuDevicePrimaryCtxRetain"},
		{&c.primaryRelease, "cuDevicePrimaryCtxRelease_v2"},
		{&c.ctxSetCurrent, "cuCtxSetCurrent"},
		{&c.streamCreate, "cuStreamCreate"},
		{&c.streamDestroy, "cuStreamDestroy_v2"},
		{&c.streamQuery, "cuStreamQuery"},
		{&c.streamWaitEvent, "cuStreamWaitEvent"},
		{&c.eventCreate, "cuEventCreate"},
		{&c.eventDestroy, "cuEventDestroy_v2"},
		{&c.eventRecord, "cuEventRecord"},
		{&c.memAlloc, "cuMemAlloc_v2"},
		{&c.memFree, "cuMemFree_v2"},
		{&c.memcpyHtoD, "cuMemcpyHtoDAsync_v2"},
		{&c.memcpyDtoH, "cuMemcpyDtoHAsync_v2"},
		{&c.getErrorString, "cuGetErrorString"},
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// check turns a result into an error that names the call.
func (c *cuda) check(code int32, call string) error {
	if code == 0 {
		return nil
	}
	var text *byte
	if c.getErrorString(code, &text) != 0 || text == nil {
		return fmt.Errorf("CUDA: %s: error %d", call, code)
	}
	return fmt.Errorf("CUDA: %s: %s", call, goString(text))
}

// symbol is a function variable and its name in a library.
type symbol struct {
	f    any
	name string
}

// bind looks all of a library's functions up.
func bind(lib uintptr, path string, symbols []symbol) error {
	for _, s := range symbols {
		p, err := purego.Dlsym(lib, s.name)
		if err != nil {
			return fmt.Errorf("%s has no %s: is it old? %w", path, s.name, err)
		}
		purego.RegisterFunc(s.f, p)
	}
	return nil
}

// goString copies a C string of a sane length.
func goString(p *byte) string {
	if p == nil {
		return ""
	}
	n := 0
	for n < 4096 && *(*byte)(unsafe.Add(unsafe.Pointer(p), n)) != 0 {
		n++
	}
	return string(unsafe.Slice(p, n))
}
