package cluster

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/open-autoglm/autoglm/runtime/durable"
)

// kept is what a node's folder says of it, in node.json.
type kept struct {
	ID      string              `json:"id"`
	Boot    uint64              `json:"boot"`    // of the last start
	Cluster string              `json:"cluster"` // empty before it belongs to one
	Peers   map[string]lastSeen `json:"peers"`   // by id; those who left are forgotten
}

type lastSeen struct {
	Addr string    `json:"addr"`
	At   time.Time `json:"at"`
}

const (
	keptFile   = "node.json"
	forgetting = 7 * 24 * time.Hour // a peer that was away for so long is not looked for
)

// loadKept reads the folder and counts this start.
func loadKept(dir string) (kept, error) {
	k := kept{Peers: map[string]lastSeen{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return k, err
	}
	path := filepath.Join(dir, keptFile)
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if k.ID, err = randomID(); err != nil {
			return k, err
		}
	case err != nil:
		return k, err
	default:
		if err := json.Unmarshal(b, &k); err != nil || k.ID == "" {
			return k, fmt.Errorf("%s is damaged (%v); remove it: the node then joins under a new id", path, err)
		}
	}
	k.Boot++
	return k, k.store(dir)
}

func (k kept) store(dir string) error {
	b, err := json.MarshalIndent(k, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, keptFile), b)
}

func randomID() (string, error) {
	b := make([]byte, 8)
	_, err := rand.Read(b)
	return hex.EncodeToString(b), err
}
