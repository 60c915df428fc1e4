package data

import (
	_ "unsafe" // for go:linkname

	"github.com/parquet-go/parquet-go/compress"
	"github.com/parquet-go/parquet-go/format"
	"github.com/pierrec/lz4/v4"
)

// lz4Raw decodes LZ4 pages in place. The codec of parquet-go 0.32 moves to a
// buffer of its own when a page packs to more than a third, and its caller then
// keeps the old, empty one (column.go, decompress: the case of equal lengths). The
// library has no way to register a codec, so its table is reached by its name;
// TestVariants reads such a file and fails should the table move.
type lz4Raw struct{ compress.Codec }

//go:linkname parquetCodecs github.com/parquet-go/parquet-go.compressionCodecs
var parquetCodecs [format.Lz4Raw + 1]compress.Codec

func init() { parquetCodecs[format.Lz4Raw] = lz4Raw{parquetCodecs[format.Lz4Raw]} }

// Decode uses dst where the page fits.
func (lz4Raw) Decode(dst, src []byte) ([]byte, error) {
	dst = dst[:cap(dst)]
	for {
		n, err := lz4.UncompressBlock(src, dst)
		if err == nil {
			return dst[:n], nil
		}
		// a block unpacks to at most 255 times its size
		if len(dst) > 256*len(src) {
			return nil, err
		}
		dst = make([]byte, 2*len(dst)+1024)
	}
}
