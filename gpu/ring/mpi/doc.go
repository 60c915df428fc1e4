// Package mpi sums through OpenMPI or MPICH: the backend mpi of gpu/ring in builds
// with the tag gpu, without cgo of its own. Without the tag it is empty.
//
//	mpirun -n 4 program        whose ranks call ring.Form with what ring.FromEnv gives
//
// The library is loaded when it is first asked for: OpenMPI's libmpi.so.40 where
// its mpirun has started the process, otherwise MPICH's libmpich.so.12;
// AUTOGLM_MPI names another file, of either kind.
//
// MPI begins and ends once a process, and can't be told to give up. So a process
// joins one ring; its calls are made on a thread of their own, and whoever waits for
// one gives up at the ring's bounds, on which the process has to end. A lost rank
// ends the ring for all (ring.ErrUnmendable): mpirun kills what is left, and
// training resumes from its checkpoint in new processes.
//
// Sums are taken in MPI's order, half-width ones in float32 and rounded once. All
// ranks hold the same bits where MPI's algorithm gives that; OpenMPI's and MPICH's
// do.
package mpi
