// Package durable writes files that are there whole or not at all: into a
// temporary file beside the place, fsync, rename, fsync of the folder. A crash at
// any moment leaves the old content or the new, and at most a file whose name
// begins with a dot.
//
//	err := durable.WriteFile("out/leaderboard.json", b)
package durable

import (
	"bufio"
	"errors"
	"io"
	"os"
	"path/filepath"
)

// WriteFile puts data at path, readable by all.
func WriteFile(path string, data []byte) error {
	return replace(path, 0o644, func(f *os.File) error {
		_, err := f.Write(data)
		return err
	})
}

// WriteSecret puts data at path, at no moment readable by others than its owner.
func WriteSecret(path string, data []byte) error {
	return replace(path, 0o600, func(f *os.File) error {
		_, err := f.Write(data)
		return err
	})
}

// Write puts at path what write writes, in many small pieces if it likes, readable
// by all. On an error path is as it was and nothing is left beside it.
func Write(path string, write func(io.Writer) error) error {
	return replace(path, 0o644, func(f *os.File) error {
		w := bufio.NewWriterSize(f, 1<<20)
		if err := write(w); err != nil {
			return err
		}
		return w.Flush()
	})
}

func replace(path string, mode os.FileMode, write func(*os.File) error) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close() // a second close is harmless
			_ = os.Remove(f.Name())
		}
	}()
	if err := write(f); err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return SyncDir(dir)
}

// SyncDir makes the names in a folder durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
