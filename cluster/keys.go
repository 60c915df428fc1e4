package cluster

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hashicorp/memberlist"

	"github.com/open-autoglm/autoglm/runtime/durable"
)

// keySet is what gossip is sealed with. Whoever holds one of a lower serial takes
// the other's.
type keySet struct {
	Serial uint64   `json:"serial" msgpack:"serial"`
	Keys   [][]byte `json:"keys" msgpack:"keys"` // AES-256; the first one seals, all open
}

const keysFile = "gossip-keys.json"

func newKey() ([]byte, error) {
	k := make([]byte, 32)
	_, err := rand.Read(k)
	return k, err
}

func (s keySet) valid() error {
	if len(s.Keys) == 0 || len(s.Keys) > 8 {
		return fmt.Errorf("%d gossip keys", len(s.Keys))
	}
	for _, k := range s.Keys {
		if len(k) != 32 {
			return fmt.Errorf("a gossip key of %d bytes", len(k))
		}
	}
	return nil
}

func loadKeys(dir string) (keySet, error) {
	var s keySet
	path := filepath.Join(dir, keysFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("%s: %w", path, err)
	}
	if err := s.valid(); err != nil {
		return s, fmt.Errorf("%s: %w; remove it and join again", path, err)
	}
	return s, nil
}

func (s keySet) store(dir string) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return durable.WriteSecret(filepath.Join(dir, keysFile), b)
}

// apply makes a ring hold exactly these keys.
func (s keySet) apply(r *memberlist.Keyring) error {
	for _, k := range s.Keys {
		if err := r.AddKey(k); err != nil {
			return err
		}
	}
	if err := r.UseKey(s.Keys[0]); err != nil {
		return err
	}
	for _, old := range r.GetKeys() {
		if !has(s.Keys, old) {
			if err := r.RemoveKey(old); err != nil {
				return err
			}
		}
	}
	return nil
}

func has(keys [][]byte, k []byte) bool {
	for _, o := range keys {
		if bytes.Equal(o, k) {
			return true
		}
	}
	return false
}

// adopt takes a newer set of keys.
func (m *Members) adopt(s keySet) error {
	if err := s.valid(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.Serial <= m.keys.Serial {
		return nil
	}
	if err := s.store(m.cfg.Dir); err != nil {
		return err
	}
	m.keys = s
	if m.ring == nil {
		return nil
	}
	return s.apply(m.ring)
}

// RotateKeys replaces the key that seals gossip: all members learn the new one,
// then all use it, then all forget the old one. A member that can't be reached
// stops the rotation where it is, which is safe; start it again when it is back or
// gone. Nodes that are away learn the keys when they come back.
func (m *Members) RotateKeys(ctx context.Context) error {
	fresh, err := newKey()
	if err != nil {
		return err
	}
	old := m.keySet()
	for _, keys := range [][][]byte{append([][]byte{old.Keys[0]}, fresh), {fresh, old.Keys[0]}, {fresh}} {
		if err := m.adopt(keySet{Serial: m.keySet().Serial + 1, Keys: keys}); err != nil {
			return err
		}
		for _, o := range m.Members() {
			if o.ID == m.self.ID {
				continue
			}
			if _, err := m.greet(ctx, o.Addr, ""); err != nil {
				return fmt.Errorf("rotate keys: %s: %w", o.Name, err)
			}
		}
	}
	return nil
}

func (m *Members) keySet() keySet {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.keys
}
