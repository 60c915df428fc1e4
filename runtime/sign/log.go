package sign

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
)

// Log is a transparency log of Rekor's
// (https://github.com/sigstore/rekor/blob/main/openapi.yaml).
type Log struct {
	URL    string
	Client *http.Client
}

// logPayload is what the log promises to have recorded. Its JSON, in this order and without
// spaces, is what a promise signs (RFC 8785).
type logPayload struct {
	Body  []byte `json:"body"` // JSON of a record
	Time  int64  `json:"integratedTime"`
	ID    string `json:"logID"` // hexadecimal SHA-256 of the log's key
	Index int64  `json:"logIndex"`
}

// logBundle is an entry as cosign keeps it beside a signature.
type logBundle struct {
	Promise []byte     `json:"SignedEntryTimestamp"`
	Payload logPayload `json:"Payload"`
}

// logEntry is one as the log answers it.
type logEntry struct {
	logPayload
	Verification struct {
		Promise   []byte     `json:"signedEntryTimestamp"`
		Inclusion *inclusion `json:"inclusionProof"`
	} `json:"verification"`
}

// inclusion proves that a record is a leaf of the log's tree (RFC 6962, section 2.1.1).
type inclusion struct {
	Checkpoint string   `json:"checkpoint"` // the tree's head, signed
	Hashes     []string `json:"hashes"`
	Index      uint64   `json:"logIndex"` // in the tree, which may be one of several of the log
	Root       string   `json:"rootHash"`
	Size       uint64   `json:"treeSize"`
}

// record is what an entry says: of kind "hashedrekord" or "dsse".
type record struct {
	Version string          `json:"apiVersion"`
	Kind    string          `json:"kind"`
	Spec    json.RawMessage `json:"spec"`
}

const recordVersion = "0.0.1"

type hashValue struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"value"` // hexadecimal
}

func hashOf(content []byte) hashValue {
	return hashValue{"sha256", fmt.Sprintf("%x", sha256.Sum256(content))}
}

// hashedRecord is of a payload's signature.
type hashedRecord struct {
	Data struct {
		Hash hashValue `json:"hash"`
	} `json:"data"`
	Signature struct {
		Content   []byte `json:"content"`
		PublicKey struct {
			Content []byte `json:"content"` // a certificate in PEM
		} `json:"publicKey"`
	} `json:"signature"`
}

// envelopeRecord is of an envelope; it is proposed whole, and recorded as hashes.
type envelopeRecord struct {
	Proposed     *proposedEnvelope   `json:"proposedContent,omitempty"`
	EnvelopeHash *hashValue          `json:"envelopeHash,omitempty"`
	PayloadHash  *hashValue          `json:"payloadHash,omitempty"`
	Signatures   []envelopeSignature `json:"signatures,omitempty"`
}

type proposedEnvelope struct {
	Envelope  string   `json:"envelope"`
	Verifiers [][]byte `json:"verifiers"`
}

type envelopeSignature struct {
	Signature string `json:"signature"`
	Verifier  []byte `json:"verifier"` // a certificate in PEM
}

// propose is the record of what was signed, by the certificate's key.
func propose(l layer, certificate []byte) (*record, error) {
	r := &record{Version: recordVersion}
	var spec any
	if l.media == envelopeMedia {
		r.Kind = "dsse"
		spec = envelopeRecord{Proposed: &proposedEnvelope{string(l.content), [][]byte{certificate}}}
	} else {
		r.Kind = "hashedrekord"
		var h hashedRecord
		var err error
		h.Data.Hash = hashOf(l.content)
		if h.Signature.Content, err = base64.StdEncoding.DecodeString(l.annotations[signatureKey]); err != nil {
			return nil, err
		}
		h.Signature.PublicKey.Content = certificate
		spec = h
	}
	var err error
	r.Spec, err = json.Marshal(spec)
	return r, err
}

// matches reports why a record is not of this layer and certificate.
func matches(body []byte, l layer, leaf *x509.Certificate) error {
	var r record
	if err := json.Unmarshal(body, &r); err != nil {
		return fmt.Errorf("the log's record: %w", err)
	}
	var hash hashValue
	var certificate []byte
	var signed bool
	switch r.Kind + " " + r.Version {
	case "hashedrekord " + recordVersion:
		var h hashedRecord
		if err := json.Unmarshal(r.Spec, &h); err != nil {
			return fmt.Errorf("the log's record: %w", err)
		}
		hash, certificate = h.Data.Hash, h.Signature.PublicKey.Content
		signed = l.media == payloadMedia && base64.StdEncoding.EncodeToString(h.Signature.Content) == l.annotations[signatureKey]
	case "dsse " + recordVersion:
		var d envelopeRecord
		if err := json.Unmarshal(r.Spec, &d); err != nil {
			return fmt.Errorf("the log's record: %w", err)
		}
		var e dsse.Envelope
		if d.EnvelopeHash == nil || len(d.Signatures) != 1 || json.Unmarshal(l.content, &e) != nil || len(e.Signatures) != 1 {
			return errors.New("the log's record is not of one envelope with one signature")
		}
		hash, certificate = *d.EnvelopeHash, d.Signatures[0].Verifier
		signed = l.media == envelopeMedia && d.Signatures[0].Signature == e.Signatures[0].Sig
	default:
		return fmt.Errorf("the log's record is of kind %q, version %q, which is not known", r.Kind, r.Version)
	}
	block, _ := pem.Decode(certificate)
	switch {
	case hash != hashOf(l.content):
		return errors.New("the log recorded other content")
	case !signed:
		return errors.New("the log recorded another signature")
	case block == nil || !bytes.Equal(block.Bytes, leaf.Raw):
		return errors.New("the log recorded another certificate")
	}
	return nil
}

// add records, and returns the entry once its proof of inclusion holds. A record that is
// there already is fetched.
func (l *Log) add(ctx context.Context, r *record) (*logEntry, error) {
	var found map[string]logEntry
	err := post(ctx, l.Client, l.URL+"/api/v1/log/entries", r, &found)
	var refused *answerError
	if errors.As(err, &refused) && refused.status == http.StatusConflict && refused.location != "" {
		return l.get(ctx, refused.location)
	}
	if err != nil {
		return nil, err
	}
	return oneEntry(found)
}

// at fetches the entry of an index.
func (l *Log) at(ctx context.Context, index int64) (*logEntry, error) {
	return l.get(ctx, "/api/v1/log/entries?logIndex="+strconv.FormatInt(index, 10))
}

func (l *Log) get(ctx context.Context, location string) (*logEntry, error) {
	base, err := url.Parse(l.URL)
	if err != nil {
		return nil, err
	}
	u, err := base.Parse(location)
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	var found map[string]logEntry
	if err := exchange(l.Client, r, &found); err != nil {
		return nil, err
	}
	return oneEntry(found)
}

func oneEntry(found map[string]logEntry) (*logEntry, error) {
	if len(found) != 1 {
		return nil, fmt.Errorf("the log answered %d entries, not one", len(found))
	}
	for id, e := range found {
		leaf := fmt.Sprintf("%x", rfc6962.DefaultHasher.HashLeaf(e.Body))
		if !strings.HasSuffix(id, leaf) {
			return nil, fmt.Errorf("the log's entry %s is of other content, whose hash is %s", id, leaf)
		}
		return &e, e.included()
	}
	return nil, nil
}

// included reports why the proof doesn't lead from the record to the root.
func (e *logEntry) included() error {
	p := e.Verification.Inclusion
	if p == nil {
		return errors.New("the log's entry has no proof of inclusion")
	}
	root, err := hex.DecodeString(p.Root)
	if err != nil {
		return fmt.Errorf("root of the log: %w", err)
	}
	var hashes [][]byte
	for _, h := range p.Hashes {
		raw, err := hex.DecodeString(h)
		if err != nil {
			return fmt.Errorf("proof of inclusion: %w", err)
		}
		hashes = append(hashes, raw)
	}
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, p.Index, p.Size, rfc6962.DefaultHasher.HashLeaf(e.Body), hashes, root); err != nil {
		return fmt.Errorf("the log's proof of inclusion doesn't hold: %w", err)
	}
	return nil
}

// checkpointed reports why the head of the tree that the proof leads to isn't the log's.
// A checkpoint is a signed note: origin, size and root, each a line, and after an empty
// line the signatures (https://github.com/transparency-dev/formats/blob/main/log/README.md).
func (e *logEntry) checkpointed(key logKey) error {
	p := e.Verification.Inclusion
	text, signatures, ok := strings.Cut(p.Checkpoint, "\n\n")
	lines := strings.Split(text, "\n")
	if !ok || len(lines) < 3 {
		return errors.New("the log's checkpoint is no signed note")
	}
	root, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || hex.EncodeToString(root) != p.Root || lines[1] != strconv.FormatUint(p.Size, 10) {
		return errors.New("the log's checkpoint is of another tree than the proof of inclusion")
	}
	for line := range strings.Lines(signatures) {
		fields := strings.Fields(line) // — NAME BASE64, of four bytes of the key's hash and the signature
		if len(fields) != 3 {
			continue
		}
		if raw, err := base64.StdEncoding.DecodeString(fields[2]); err == nil && len(raw) > 4 && verifyAny(key.key, []byte(text+"\n"), raw[4:]) {
			return nil
		}
	}
	return errors.New("the log's checkpoint isn't signed by its key")
}
