package train

import (
	"errors"
	"fmt"
	"hash/crc32"
	"unsafe"

	"github.com/open-autoglm/autoglm/gpu/ring"
)

// ErrApart means that ranks which were to hold the same model hold different ones.
var ErrApart = errors.New("the ranks' models differ")

// alike compares the ranks' states at the end of a piece of training: all took the same
// sums, and so hold the same bits. Where one does not, its device or a link computes or
// carries wrong, and nothing that the ranks made together is to be trusted. All ranks
// call it.
func (r *Run) alike(st State) error {
	s, err := r.state()
	if err != nil {
		return err
	}
	var sum uint32
	for _, t := range s {
		if len(t.Data) > 0 {
			sum = crc32.Update(sum, castagnoli, unsafe.Slice((*byte)(unsafe.Pointer(&t.Data[0])), 4*len(t.Data)))
		}
	}
	// Two halves, which float32 carries exactly.
	all := make([]float32, 2*r.World)
	all[2*r.Rank], all[2*r.Rank+1] = float32(sum>>16), float32(sum&0xffff)
	r.Ring.Reduce(-6, ring.Buffer{Data: all})
	if err := r.Ring.Wait(); err != nil {
		return err
	}
	for k := 1; k < r.World; k++ {
		if all[2*k] != all[0] || all[2*k+1] != all[1] {
			return fmt.Errorf("%w: rank %d's is not rank 0's after step %d; test the memory of their devices and the links between them", ErrApart, k, st.Step)
		}
	}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)
