//go:build gpu

package nccl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"github.com/ebitengine/purego"

	"github.com/open-autoglm/autoglm/gpu/ring"
)

// library is NCCL and the driver beside it.
type library struct {
	*cuda
	getVersion    func(version *int32) int32
	getUniqueID   func(id *uniqueID) int32
	initRank      func(comm *uintptr, ranks int32, id uniqueID, rank int32, c *config) int32
	asyncError    func(comm uintptr, state *int32) int32
	abort         func(comm uintptr) int32
	finalize      func(comm uintptr) int32
	destroy       func(comm uintptr) int32
	allReduce     func(send, recv, count uintptr, dtype, op int32, comm, stream uintptr) int32
	reduce        func(send, recv, count uintptr, dtype, op, root int32, comm, stream uintptr) int32
	reduceScatter func(send, recv, count uintptr, dtype, op int32, comm, stream uintptr) int32
	allGather     func(send, recv, count uintptr, dtype int32, comm, stream uintptr) int32
	broadcast     func(send, recv, count uintptr, dtype, root int32, comm, stream uintptr) int32
	groupStart    func() int32
	groupEnd      func() int32
	errorString   func(code int32) *byte
	lastError     func(comm uintptr) *byte
}

// uniqueID names a communicator; it is passed by value.
type uniqueID struct{ words [16]uint64 }

// config is ncclConfig_t as of NCCL 2.14: newer ones take its size and version for
// what they are.
type config struct {
	size     uintptr
	magic    uint32
	version  uint32
	blocking int32
	_        int32
}

const (
	configMagic   = 0xcafebeef
	configVersion = 21400
)

// Results.
const (
	success         = 0
	unhandledCUDA   = 1
	remoteError     = 6
	inProgress      = 7
	oldestVersion   = 21400
	sum             = 0 // of ncclRedOp_t
	float16, bf16   = 6, 9
	float32Type     = 7
	byteType        = 1 // uint8
	uniqueIDBytes   = 128
	defaultNCCL     = "libnccl.so.2"
	defaultCUDA     = "libcuda.so.1"
	environmentNCCL = "AUTOGLM_NCCL"
	environmentCUDA = "AUTOGLM_CUDA"
)

var loaded struct {
	sync.Once
	lib *library
	err error
}

// load loads both libraries, once a process.
func load() (*library, error) {
	loaded.Do(func() {
		loaded.lib, loaded.err = open(environ(environmentNCCL, defaultNCCL), environ(environmentCUDA, defaultCUDA))
	})
	return loaded.lib, loaded.err
}

func environ(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

func open(path, cudaPath string) (*library, error) {
	c, err := loadCUDA(cudaPath)
	if err != nil {
		return nil, err
	}
	lib, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_GLOBAL)
	if err != nil {
		return nil, fmt.Errorf("%s can't be loaded (%w): install libnccl2, or set %s to the file (of a torch wheel: nvidia/nccl/lib/%s)", path, err, environmentNCCL, defaultNCCL)
	}
	l := &library{cuda: c}
	err = bind(lib, path, []symbol{
		{&l.getVersion, "ncclGetVersion"},
		{&l.getUniqueID, "ncclGetUniqueId"},
		{&l.initRank, "ncclCommInitRankConfig"},
		{&l.asyncError, "ncclCommGetAsyncError"},
		{&l.abort, "ncclCommAbort"},
		{&l.finalize, "ncclCommFinalize"},
		{&l.destroy, "ncclCommDestroy"},
		{&l.allReduce, "ncclAllReduce"},
		{&l.reduce, "ncclReduce"},
		{&l.reduceScatter, "ncclReduceScatter"},
		{&l.allGather, "ncclAllGather"},
		{&l.broadcast, "ncclBroadcast"},
		{&l.groupStart, "ncclGroupStart"},
		{&l.groupEnd, "ncclGroupEnd"},
		{&l.errorString, "ncclGetErrorString"},
		{&l.lastError, "ncclGetLastError"},
	})
	if err != nil {
		return nil, err
	}
	var version int32
	if err := l.failed(l.getVersion(&version), "ncclGetVersion", 0); err != nil {
		return nil, err
	}
	if version < oldestVersion {
		return nil, fmt.Errorf("%s is NCCL %d; 2.14 or newer is needed, whose communicators can be given up", path, version)
	}
	return l, nil
}

// failed turns a result that is neither success nor under way into an error.
func (l *library) failed(code int32, call string, comm uintptr) error {
	if code == success || code == inProgress {
		return nil
	}
	text := goString(l.errorString(code))
	if more := goString(l.lastError(comm)); more != "" {
		text += ": " + more
	}
	err := fmt.Errorf("%s: %s (NCCL_DEBUG=WARN tells more)", call, text)
	if code == remoteError {
		return errors.Join(errRemote, err)
	}
	return err
}

// errRemote is NCCL's word that another rank has ended; the ring knows which.
var errRemote = errors.New("another rank ended")

func dtype(d ring.DType) int32 {
	switch d {
	case ring.BF16:
		return bf16
	case ring.F16:
		return float16
	}
	return float32Type
}

// rdma tells whether NCCL reaches other hosts over InfiniBand, RoCE, or a network that
// the user has given it by NCCL_NET.
func rdma(sys fs.FS, env func(string) string) bool {
	if net := env("NCCL_NET"); net != "" {
		return !strings.EqualFold(net, "socket")
	}
	if env("NCCL_IB_DISABLE") == "1" {
		return false
	}
	ports, _ := fs.Glob(sys, "class/infiniband/*/ports/*/state")
	return slices.ContainsFunc(ports, func(path string) bool {
		state, err := fs.ReadFile(sys, path) // "4: ACTIVE"
		return err == nil && strings.Contains(string(state), "ACTIVE")
	})
}

func init() {
	if unsafe.Sizeof(uniqueID{}) != uniqueIDBytes {
		panic("nccl: a unique ID has 128 bytes")
	}
	ring.Register(ring.Library{
		Name: ring.NCCL, Devices: true, Halves: true, Mends: true,
		RDMA:  func() bool { return rdma(os.DirFS("/sys"), os.Getenv) },
		Check: func() error { _, err := load(); return err },
		Join:  join,
	})
}
