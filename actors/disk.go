package actors

import (
	"errors"
	"syscall"

	"github.com/open-autoglm/autoglm/runtime/train"
)

// Blameless tells of an error that is no fault of the work that met it: the disk's,
// or a checkpoint's that was damaged since it was written. The job ends with its
// state kept, and resume goes on once it is mended.
func Blameless(err error) bool { return DiskError(err) || errors.Is(err, train.ErrCheckpoint) }

// DiskError tells whether err is the disk's: full, over a quota or a limit on
// file sizes, read-only, or broken.
func DiskError(err error) bool {
	for _, e := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG, syscall.EROFS, syscall.EIO} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
