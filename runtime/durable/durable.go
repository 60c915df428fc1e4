// Package durable writes files that are there whole or not at all: into a
// temporary file beside the place, fsync, rename, fsync of the folder. A crash at
// any moment leaves the old content or the new, and at most a file whose name
// begins with a dot.
//
//	err := durable.WriteFile("out/leaderboard.json", b)
//	err := durable.WriteDir("out/bundle", func(dir string) error { … })
package durable

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
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

// WriteDir puts at path a folder of what fill puts into an empty one, or replaces the
// folder that is there, in one step. On an error path is as it was and nothing is left
// beside it.
func WriteDir(path string, fill func(dir string) error) error {
	path = filepath.Clean(path)
	parent := filepath.Dir(path)
	tmp, err := os.MkdirTemp(parent, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }() // what is there now: nothing, or the older folder
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	if err := fill(tmp); err != nil {
		return err
	}
	if err := syncAll(tmp); err != nil {
		return err
	}
	if _, err = os.Lstat(path); err == nil {
		err = exchange(tmp, path)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return err
	}
	return SyncDir(parent)
}

// syncAll makes all that a folder holds durable.
func syncAll(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() && !d.Type().IsRegular() {
			return err
		}
		return SyncDir(path) // a file is synced as a folder is
	})
}

// exchange swaps two folders: in one step where the file system can, else in two
// renames, of which the first is undone if the second fails.
func exchange(tmp, dir string) error {
	err := unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, dir, unix.RENAME_EXCHANGE)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	old := tmp + ".old"
	if err := os.Rename(dir, old); err != nil {
		return err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return errors.Join(err, os.Rename(old, dir))
	}
	return os.RemoveAll(old)
}
