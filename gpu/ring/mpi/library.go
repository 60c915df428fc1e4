//go:build gpu

package mpi

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"unsafe"

	"github.com/ebitengine/purego"

	"github.com/open-autoglm/autoglm/gpu/ring"
)

// library is an MPI. Its handles are pointers in OpenMPI and 32-bit numbers in
// MPICH; both fit a uintptr, and on a little-endian machine one that is written
// through a pointer does as well.
type library struct {
	path string
	handles

	initThread    func(argc, argv uintptr, required int32, provided *int32) int32
	initialized   func(flag *int32) int32
	finalize      func() int32
	commRank      func(comm uintptr, rank *int32) int32
	commSize      func(comm uintptr, size *int32) int32
	commSplit     func(comm uintptr, color, key int32, out *uintptr) int32
	commFree      func(comm *uintptr) int32
	setErrhandler func(comm, handler uintptr) int32
	allreduce     func(send uintptr, recv unsafe.Pointer, count int32, dtype, op, comm uintptr) int32
	reduceScatter func(send, recv unsafe.Pointer, counts *int32, dtype, op, comm uintptr) int32
	allgatherv    func(send uintptr, n int32, sendType uintptr, recv unsafe.Pointer, counts, at *int32, recvType, comm uintptr) int32
	bcast         func(p unsafe.Pointer, count int32, dtype uintptr, root int32, comm uintptr) int32
	errorString   func(code int32, text *byte, n *int32) int32
}

// handles are the constants of a family.
type handles struct {
	family       string
	world        uintptr
	float, bytes uintptr
	sum          uintptr
	errorsReturn uintptr
	inPlace      uintptr
}

// mpich's constants are part of the ABI that it shares with Intel MPI and others.
var mpich = handles{
	family: "MPICH", world: 0x44000000, float: 0x4c00040a, bytes: 0x4c00010d, sum: 0x58000003, errorsReturn: 0x54000001, inPlace: ^uintptr(0),
}

const (
	threadSerialized = 2
	maxErrorString   = 1024 // longer than both families'
)

var loaded struct {
	sync.Once
	lib *library
	err error
}

func load() (*library, error) {
	loaded.Do(func() { loaded.lib, loaded.err = open(os.Getenv) })
	return loaded.lib, loaded.err
}

// open loads the MPI whose mpirun has started this process.
func open(get func(string) string) (*library, error) {
	path := get("AUTOGLM_MPI")
	switch {
	case get("OMPI_COMM_WORLD_SIZE") == "" && get("PMI_SIZE") == "" && get("PMIX_RANK") == "":
		return nil, errors.New("mpirun has not started this process: start the ranks with mpirun or mpiexec")
	case path != "":
	case get("OMPI_COMM_WORLD_SIZE") != "":
		path = "libmpi.so.40"
	default:
		path = "libmpich.so.12"
	}
	// Its plugins look for its symbols: global.
	lib, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_GLOBAL)
	if err != nil {
		return nil, fmt.Errorf("%s can't be loaded (%w): install openmpi-bin or mpich, or set AUTOGLM_MPI to the file", path, err)
	}
	l := &library{path: path, handles: mpich}
	if _, err := purego.Dlsym(lib, "ompi_mpi_comm_world"); err == nil {
		l.handles = handles{family: "OpenMPI", inPlace: 1}
		for name, h := range map[string]*uintptr{
			"ompi_mpi_comm_world": &l.world, "ompi_mpi_float": &l.float, "ompi_mpi_byte": &l.bytes, "ompi_mpi_op_sum": &l.sum, "ompi_mpi_errors_return": &l.errorsReturn,
		} {
			if *h, err = purego.Dlsym(lib, name); err != nil {
				return nil, fmt.Errorf("%s has no %s: %w", path, name, err)
			}
		}
	}
	for _, s := range []struct {
		f    any
		name string
	}{
		{&l.initThread, "MPI_Init_thread"},
		{&l.initialized, "MPI_Initialized"},
		{&l.finalize, "MPI_Finalize"},
		{&l.commRank, "MPI_Comm_rank"},
		{&l.commSize, "MPI_Comm_size"},
		{&l.commSplit, "MPI_Comm_split"},
		{&l.commFree, "MPI_Comm_free"},
		{&l.setErrhandler, "MPI_Comm_set_errhandler"},
		{&l.allreduce, "MPI_Allreduce"},
		{&l.reduceScatter, "MPI_Reduce_scatter"},
		{&l.allgatherv, "MPI_Allgatherv"},
		{&l.bcast, "MPI_Bcast"},
		{&l.errorString, "MPI_Error_string"},
	} {
		p, err := purego.Dlsym(lib, s.name)
		if err != nil {
			return nil, fmt.Errorf("%s has no %s: %w", path, s.name, err)
		}
		purego.RegisterFunc(s.f, p)
	}
	return l, nil
}

// check turns a result into an error that names the call.
func (l *library) check(code int32, call string) error {
	if code == 0 {
		return nil
	}
	text := make([]byte, maxErrorString)
	var n int32
	if l.errorString(code, &text[0], &n) != 0 || n < 0 || int(n) > len(text) {
		return fmt.Errorf("%s: error %d of %s", call, code, l.family)
	}
	return fmt.Errorf("%s: %s (%s)", call, text[:n], l.family)
}

func init() {
	ring.Register(ring.Library{
		Name:  ring.MPI,
		Check: func() error { _, err := load(); return err },
		Join:  join,
	})
}
