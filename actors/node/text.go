package node

import (
	"context"
	"errors"
	"io"

	"github.com/open-autoglm/autoglm/runtime/data"
)

// eachText calls f with every text of a part.
func eachText(ctx context.Context, r *data.PartReader, f func(string)) error {
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		ex, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, s := range ex.Segments {
			f(s.Text)
		}
	}
}
