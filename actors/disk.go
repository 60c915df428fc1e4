package actors

import (
	"errors"
	"syscall"
)

// DiskError tells whether err is the disk's: full, over a quota or a limit on
// file sizes, read-only, or broken. Such an error is no fault of the work that
// met it: the job ends with its state kept, and resume goes on once it is mended.
func DiskError(err error) bool {
	for _, e := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG, syscall.EROFS, syscall.EIO} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
