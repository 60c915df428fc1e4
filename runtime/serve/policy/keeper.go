package policy

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/serve"
)

// Keeper holds the policy file of a server beside its Hub: it serves the soft votes, and
// reads the file anew. Its methods may be called from any goroutine.
//
//	k := policy.NewKeeper("policy.yaml", map[string]string{"a": "run1/bundle", "b": "run2/bundle"})
//	hub := serve.NewHub(k.Opener(open), cfg, nil)
//	… hub.Load("a", "run1/bundle") …
//	err := k.Load(hub)
//	p := k.Policy()
type Keeper struct {
	path    string
	folders map[string]string // of the bundles, by served name
	policy  atomic.Pointer[Policy]

	mu struct {
		sync.Mutex
		mixes map[string]Mix // that are served, by served name
	}
}

// NewKeeper keeps the policy of a file, over bundles in folders by their served names. An
// empty path is no policy.
func NewKeeper(path string, folders map[string]string) *Keeper {
	k := &Keeper{path: path, folders: folders}
	k.mu.mixes = map[string]Mix{}
	return k
}

// Policy is the one that counts now; nil is none.
func (k *Keeper) Policy() *Policy { return k.policy.Load() }

// scheme is before a soft vote's name where a hub has a folder.
const scheme = "soft vote "

// Opener opens soft votes, and by open all else.
func (k *Keeper) Opener(open serve.Opener) serve.Opener {
	return func(dir string, seqs int) (*bundle.Bundle, engine.Decoder, error) {
		k.mu.Lock()
		mix, is := k.mu.mixes[dir]
		k.mu.Unlock()
		if !is {
			return open(dir, seqs)
		}
		var members []engine.Decoder
		var bundles []*bundle.Bundle
		fail := func(err error) (*bundle.Bundle, engine.Decoder, error) {
			for _, d := range members {
				err = errors.Join(err, d.Close())
			}
			return nil, nil, fmt.Errorf("%s: %w", dir, err)
		}
		for _, name := range mix.Over {
			b, dec, err := open(k.folders[name], seqs)
			if err != nil {
				return fail(err)
			}
			bundles, members = append(bundles, b), append(members, dec)
		}
		b, err := MixedBundle(mix.Over, bundles)
		if err != nil {
			return fail(err)
		}
		m, err := NewMixture(mix, members, b.Arch.Vocab)
		if err != nil {
			return fail(err)
		}
		return b, m, nil
	}
}

// Check reads the file, runs its tests, and looks whether all that it names is there.
func (k *Keeper) Check() error {
	_, err := k.read()
	return err
}

func (k *Keeper) read() (*Policy, error) {
	if k.path == "" {
		return nil, nil
	}
	p, err := Load(k.path)
	if err != nil {
		return nil, err
	}
	return p, k.check(p)
}

// Load reads the file, runs its tests, and lets it count from the next request on. Soft
// votes that are new, or not what they were, are loaded; those that are gone are served no
// more. On an error all stays as it was. The hub's models are to be loaded before.
func (k *Keeper) Load(hub *serve.Hub) error {
	p, err := k.read()
	if p == nil || err != nil {
		return err
	}
	k.mu.Lock()
	old := maps.Clone(k.mu.mixes)
	k.mu.Unlock()
	var done []string
	for _, name := range p.names {
		mix, is := p.served[name].Mixed()
		if !is || reflect.DeepEqual(mix, old[scheme+name]) {
			continue
		}
		k.set(name, &mix)
		if err := hub.Load(name, scheme+name); err != nil {
			return errors.Join(err, k.undo(hub, append(done, name), old))
		}
		done = append(done, name)
	}
	before := k.policy.Swap(p)
	if before == nil {
		return nil
	}
	for _, name := range before.names {
		if _, was := before.served[name].Mixed(); !was {
			continue
		}
		if s := p.Find(name); s != nil {
			if _, is := s.Mixed(); is {
				continue
			}
		}
		k.set(name, nil)
		if err := hub.Unload(name); err != nil {
			return err
		}
	}
	return nil
}

func (k *Keeper) set(name string, mix *Mix) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.mu.mixes, scheme+name)
	if mix != nil {
		k.mu.mixes[scheme+name] = *mix
	}
}

// undo serves the soft votes of names as they were; the last of them was not loaded.
func (k *Keeper) undo(hub *serve.Hub, names []string, old map[string]Mix) error {
	var errs []error
	for i, name := range names {
		mix, was := old[scheme+name]
		if !was {
			k.set(name, nil)
		} else {
			k.set(name, &mix)
		}
		if i == len(names)-1 {
			break
		}
		if was {
			errs = append(errs, hub.Load(name, scheme+name))
		} else {
			errs = append(errs, hub.Unload(name))
		}
	}
	return errors.Join(errs...)
}

// check refuses a policy that speaks of models that are not served.
func (k *Keeper) check(p *Policy) error {
	for _, name := range p.names {
		s := p.served[name]
		at := "models." + name
		_, bundled := k.folders[name]
		if bundled == (s.entry.Vote != nil) {
			why := "is neither a bundle that is served nor a vote: give it as NAME=BUNDLE, or a vote"
			if bundled {
				why = "is a bundle's name: a vote needs one of its own"
			}
			return p.located(wrong(at, "%s", why))
		}
		for _, other := range s.models() {
			if _, ok := k.folders[other]; ok {
				continue
			}
			soft := false
			if t := p.Find(other); t != nil && !(s.entry.Vote != nil && slices.Contains(s.entry.Vote.Over, other)) {
				_, soft = t.Mixed()
			}
			if !soft {
				return p.located(wrong(at, "names %s, which is no bundle that is served", other))
			}
		}
	}
	return nil
}

// Warnings are gates whose confidences are not calibrated, in words; hub has the models.
func (p *Policy) Warnings(hub Models) []string {
	if p == nil {
		return nil
	}
	var out []string
	for _, name := range p.names {
		s := p.served[name]
		if !s.believes || s.entry.Gate != nil && s.entry.Gate.Temperature > 0 {
			continue
		}
		asked := append(s.models(), name)
		if _, soft := s.Mixed(); soft {
			asked = append(slices.Clone(s.entry.Next), name)
		}
		for _, model := range asked {
			m, release, err := hub.Get(model, "")
			if err != nil { // the name of a vote
				continue
			}
			_, fitted := Calibrated(m.Bundle)
			release()
			switch _, soft := s.Mixed(); {
			case fitted:
			case soft && model == name:
				out = append(out, fmt.Sprintf("policy of %s: nothing calibrates a soft vote; its confidences are taken as they are, unless the gate says temperature", name))
			default:
				out = append(out, fmt.Sprintf("policy of %s: %s has no calibration, so that its confidences are taken as they are; autoglm calibrate makes one", name, model))
			}
		}
	}
	return out
}
