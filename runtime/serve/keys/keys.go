// Package keys knows who may ask: API keys from a file that holds their hashes, and a
// rate for each.
//
//	key, line, err := keys.New("ada", 60)   // line goes into the file, key to Ada
//	ring, err := keys.Load("keys")
//	name, err := ring.Check(key)            // Unknown, or *RateError
//
// The file has a line for each key: its name, SHA-256 in hex, and optionally how many
// requests it may make in a minute. Lines that begin with # are comments. Keys are 256
// random bits, which a plain hash keeps secret.
//
//	ada 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 60
package keys

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ErrUnknown is a key that is not on the ring.
var ErrUnknown = errors.New("this API key is not known")

// RateError refuses a request of a key that has made too many.
type RateError struct {
	PerMinute int
	After     time.Duration // when the next one is taken
}

func (e *RateError) Error() string {
	return fmt.Sprintf("this API key may make %d requests in a minute; try again in %s", e.PerMinute, e.After)
}

// Ring is the keys that are known. Any goroutine may use it.
type Ring struct {
	path string
	now  func() time.Time

	mu struct {
		sync.Mutex
		keys []*entry
	}
}

type entry struct {
	name      string
	hash      [sha256.Size]byte
	perMinute int       // 0 is no bound
	tokens    float64   // requests that may come at once
	at        time.Time // when tokens was counted
}

// New makes a key and its line for the file.
func New(name string, perMinute int) (key, line string, err error) {
	if name == "" || strings.HasPrefix(name, "#") || len(strings.Fields(name)) != 1 {
		return "", "", fmt.Errorf("%q is no name for a key: give one word", name)
	}
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // never fails
	key = "ag-" + base64.RawURLEncoding.EncodeToString(raw[:])
	hash := sha256.Sum256([]byte(key))
	line = name + " " + hex.EncodeToString(hash[:])
	if perMinute > 0 {
		line += " " + strconv.Itoa(perMinute)
	}
	return key, line + "\n", nil
}

// Load reads a file of keys.
func Load(path string) (*Ring, error) { return load(path, time.Now) }

func load(path string, now func() time.Time) (*Ring, error) {
	r := &Ring{path: path, now: now}
	if err := r.Reload(); err != nil {
		return nil, err
	}
	return r, nil
}

// Reload reads the file again. On an error the keys stay as they were.
func (r *Ring) Reload() error {
	b, err := os.ReadFile(r.path)
	if err != nil {
		return err
	}
	parsed, err := parse(b)
	if err != nil {
		return fmt.Errorf("%s:%w", r.path, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range parsed { // who has used up a rate stays so
		k.tokens, k.at = float64(k.perMinute), r.now()
		for _, old := range r.mu.keys {
			if old.hash == k.hash && old.perMinute == k.perMinute {
				k.tokens, k.at = old.tokens, old.at
			}
		}
	}
	r.mu.keys = parsed
	return nil
}

func parse(b []byte) ([]*entry, error) {
	var out []*entry
	names := map[string]bool{}
	lines := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; lines.Scan(); n++ {
		f := strings.Fields(lines.Text())
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			continue
		}
		if len(f) < 2 || len(f) > 3 {
			return nil, fmt.Errorf("%d: give NAME SHA256 and, optionally, requests a minute", n)
		}
		e := &entry{name: f[0]}
		if h, err := hex.DecodeString(f[1]); err != nil || copy(e.hash[:], h) != len(e.hash) || len(h) != len(e.hash) {
			return nil, fmt.Errorf("%d: the second word is no SHA-256 in hex; autoglm apikey makes lines", n)
		}
		if len(f) == 3 {
			v, err := strconv.Atoi(f[2])
			if err != nil || v < 1 {
				return nil, fmt.Errorf("%d: %q are no requests a minute", n, f[2])
			}
			e.perMinute = v
		}
		if names[e.name] {
			return nil, fmt.Errorf("%d: %s has a key already", n, e.name)
		}
		names[e.name] = true
		out = append(out, e)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, errors.New("1: there is no key; autoglm apikey makes one")
	}
	return out, nil
}

// Check tells whose key it is and counts one request of it. It takes the same time
// for every key, known or not.
func (r *Ring) Check(key string) (name string, err error) {
	hash := sha256.Sum256([]byte(key))
	r.mu.Lock()
	defer r.mu.Unlock()
	var found *entry
	for _, k := range r.mu.keys {
		if subtle.ConstantTimeCompare(k.hash[:], hash[:]) == 1 {
			found = k
		}
	}
	if found == nil {
		return "", ErrUnknown
	}
	return found.name, found.take(r.now())
}

// take counts a request against the rate: a bucket that a minute fills.
func (e *entry) take(now time.Time) error {
	if e.perMinute == 0 {
		return nil
	}
	most := float64(e.perMinute)
	e.tokens, e.at = min(most, e.tokens+now.Sub(e.at).Minutes()*most), now
	if e.tokens < 1 {
		after := time.Duration((1 - e.tokens) / most * float64(time.Minute))
		return &RateError{PerMinute: e.perMinute, After: max(after.Round(time.Second), time.Second)}
	}
	e.tokens--
	return nil
}
