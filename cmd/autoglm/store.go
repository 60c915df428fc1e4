package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/open-autoglm/autoglm/cluster/bucket"
)

// storeFlags name the bucket in which nodes keep what jobs must not lose.
type storeFlags bucket.Config

func (f *storeFlags) add(c *cobra.Command) {
	fl := c.Flags()
	fl.StringVar(&f.URL, "store", "", "`s3://BUCKET/PREFIX` that keeps what jobs must not lose too, one prefix a cluster")
	fl.StringVar(&f.Endpoint, "store-endpoint", "", "`URL` of the store, such as https://minio:9000 (default $AWS_ENDPOINT_URL_S3, $AWS_ENDPOINT_URL or AWS)")
	fl.StringVar(&f.Region, "store-region", "", "`NAME` of its region (default $AWS_REGION)")
	fl.StringVar(&f.Credentials, "store-credentials", "", "`FILE` as ~/.aws/credentials (default $AWS_ACCESS_KEY_ID and $AWS_SECRET_ACCESS_KEY, or that file)")
}

// storeTime bounds a check: a node has more patience.
const storeTime = 30 * time.Second

// check tells in words that the bucket can be used; "" where none is named.
func (f *storeFlags) check(ctx context.Context) (string, error) {
	if f.URL == "" {
		if *f != (storeFlags{}) {
			return "", usageError{errors.New("--store-endpoint, --store-region and --store-credentials are about --store s3://BUCKET/PREFIX")}
		}
		return "", nil
	}
	b, err := bucket.Open(bucket.Config(*f))
	if err != nil {
		return "", usageError{err}
	}
	defer b.Close()
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	begin := time.Now()
	if err := b.Check(ctx); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s can be written, listed, read and deleted from, in %d ms together", b, time.Since(begin).Milliseconds()), nil
}
