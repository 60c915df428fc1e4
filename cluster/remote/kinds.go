package remote

import (
	"bytes"
	"encoding"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/vmihailenco/msgpack/v5"
	"google.golang.org/protobuf/encoding/protowire"
)

// MaxMessage is the most that an encoded message may take. What is larger belongs
// into a file or a stream of its own.
const MaxMessage = 32 << 10

// version of the envelope.
const version = 1

// Why a message can't travel.
var (
	ErrUnregistered = errors.New("its type is not registered to travel")
	ErrTooLarge     = fmt.Errorf("it takes more than %d bytes", MaxMessage)
)

// Kinds are the messages that travel, by number. It is filled before Start and
// only read afterwards.
type Kinds struct {
	numbers map[reflect.Type]uint32
	types   map[uint32]reflect.Type
}

// NewKinds is an empty set.
func NewKinds() *Kinds {
	return &Kinds{numbers: map[reflect.Type]uint32{}, types: map[uint32]reflect.Type{}}
}

// Register lets *T travel under a number, which is its name on the wire for ever. It
// panics where part of T would be lost on the way; a field that is to stay behind
// has the tag msgpack:"-".
func Register[T any](k *Kinds, number uint32) {
	t := reflect.TypeFor[T]()
	if old, ok := k.types[number]; ok {
		panic(fmt.Sprintf("remote: kind %d is %s, and was to be %s", number, old, t))
	}
	if _, ok := k.numbers[t]; ok || number == 0 || t.Kind() != reflect.Struct {
		panic(fmt.Sprintf("remote: %s can't be kind %d: a struct has one number above 0", t, number))
	}
	if err := travels(t, map[reflect.Type]bool{}); err != nil {
		panic(fmt.Sprintf("remote: %s can't be sent: %v", t, err))
	}
	k.types[number], k.numbers[t] = t, number
}

// encodings of a type's own, of which msgpack makes use.
var encodings = [][2]reflect.Type{
	{reflect.TypeFor[msgpack.CustomEncoder](), reflect.TypeFor[msgpack.CustomDecoder]()},
	{reflect.TypeFor[msgpack.Marshaler](), reflect.TypeFor[msgpack.Unmarshaler]()},
	{reflect.TypeFor[encoding.BinaryMarshaler](), reflect.TypeFor[encoding.BinaryUnmarshaler]()},
	{reflect.TypeFor[encoding.TextMarshaler](), reflect.TypeFor[encoding.TextUnmarshaler]()},
}

// travels tells what of a type would not arrive.
func travels(t reflect.Type, seen map[reflect.Type]bool) error {
	if seen[t] || t == reflect.TypeFor[*actor.PID]() || t == reflect.TypeFor[time.Time]() {
		return nil
	}
	seen[t] = true
	for _, e := range encodings {
		if p := reflect.PointerTo(t); p.Implements(e[0]) && p.Implements(e[1]) {
			return nil
		}
	}
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Array:
		return travels(t.Elem(), seen)
	case reflect.Map:
		if err := travels(t.Key(), seen); err != nil {
			return err
		}
		return travels(t.Elem(), seen)
	case reflect.Struct:
		for f := range t.Fields() {
			if f.Tag.Get("msgpack") == "-" {
				continue
			}
			if !f.IsExported() {
				return fmt.Errorf("field %s of %s is not exported", f.Name, t)
			}
			if err := travels(f.Type, seen); err != nil {
				return fmt.Errorf("field %s of %s: %w", f.Name, t, err)
			}
		}
	case reflect.Interface, reflect.Chan, reflect.Func, reflect.UnsafePointer, reflect.Complex64, reflect.Complex128, reflect.Uintptr, reflect.Invalid:
		return fmt.Errorf("a %s", t.Kind())
	}
	return nil
}

// Encode makes an envelope's bytes. It fails for what can't travel.
func (k *Kinds) Encode(message any) (b []byte, err error) {
	v := reflect.ValueOf(message)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return nil, fmt.Errorf("%T: %w", message, ErrUnregistered)
	}
	number, ok := k.numbers[v.Type().Elem()]
	if !ok {
		return nil, fmt.Errorf("%T: %w", message, ErrUnregistered)
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%T: %v", message, p)
		}
	}()
	var body bytes.Buffer
	enc := msgpack.GetEncoder()
	defer msgpack.PutEncoder(enc)
	enc.Reset(&body)
	enc.UseCompactInts(true)
	if err := enc.Encode(message); err != nil {
		return nil, fmt.Errorf("%T: %w", message, err)
	}
	return seal(number, body.Bytes(), message)
}

func seal(number uint32, body []byte, message any) ([]byte, error) {
	if len(body) > MaxMessage {
		return nil, fmt.Errorf("%T: %d bytes: %w", message, len(body), ErrTooLarge)
	}
	b := make([]byte, 0, len(body)+16)
	b = protowire.AppendTag(b, 1, protowire.VarintType)
	b = protowire.AppendVarint(b, version)
	b = protowire.AppendTag(b, 2, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(number))
	b = protowire.AppendTag(b, 3, protowire.BytesType)
	return protowire.AppendBytes(b, body), nil
}

// Decode opens an envelope. It takes anything for input.
func (k *Kinds) Decode(b []byte) (message any, err error) {
	number, body, err := unseal(b)
	if err != nil {
		return nil, err
	}
	t, ok := k.types[number]
	if !ok {
		return nil, fmt.Errorf("message of kind %d, which is not registered here: another version?", number)
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: %v", t, p)
		}
	}()
	rest, err := skim(body, 0)
	if err == nil && len(rest) > 0 {
		err = errTrailing
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t, err)
	}
	v := reflect.New(t)
	if err := msgpack.Unmarshal(body, v.Interface()); err != nil {
		return nil, fmt.Errorf("%s: %w", t, err)
	}
	return v.Interface(), nil
}

func unseal(b []byte) (number uint32, body []byte, err error) {
	var v uint64
	for len(b) > 0 {
		field, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return 0, nil, protowire.ParseError(n)
		}
		b = b[n:]
		var x uint64
		switch {
		case field < 3 && typ == protowire.VarintType:
			x, n = protowire.ConsumeVarint(b)
		case field == 3 && typ == protowire.BytesType:
			body, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(field, typ, b)
		}
		if n < 0 {
			return 0, nil, protowire.ParseError(n)
		}
		b = b[n:]
		switch {
		case field == 1:
			v = x
		case field == 2 && x > 1<<32-1:
			return 0, nil, errors.New("message of a kind above 32 bits")
		case field == 2:
			number = uint32(x)
		}
	}
	if v != version {
		return 0, nil, fmt.Errorf("message in an envelope of version %d, this node reads %d", v, version)
	}
	if len(body) > MaxMessage {
		return 0, nil, ErrTooLarge
	}
	return number, body, nil
}

// maxDepth of a message's values in one another.
const maxDepth = 32

var (
	errShort    = errors.New("a length is larger than what follows")
	errDeep     = fmt.Errorf("values are nested more than %d deep", maxDepth)
	errCode     = errors.New("a byte that begins no value")
	errTrailing = errors.New("bytes follow the message")
)

// skim steps over one value. A decoder allocates what lengths claim; after skim
// they claim no more elements than there are bytes.
func skim(b []byte, depth int) (rest []byte, err error) {
	if depth > maxDepth {
		return nil, errDeep
	}
	if len(b) == 0 {
		return nil, errShort
	}
	c := b[0]
	b = b[1:]
	elements, skip := 0, 0
	switch {
	case c <= 0x7f, c >= 0xe0, c == 0xc0, c == 0xc2, c == 0xc3: // small integers, nil, booleans
	case c <= 0x8f:
		elements = 2 * int(c&0x0f)
	case c <= 0x9f:
		elements = int(c & 0x0f)
	case c <= 0xbf:
		skip = int(c & 0x1f)
	case c == 0xc1:
		return nil, errCode
	case c == 0xca: // float32
		skip = 4
	case c == 0xcb: // float64
		skip = 8
	case c >= 0xcc && c <= 0xcf: // unsigned
		skip = 1 << (c - 0xcc)
	case c >= 0xd0 && c <= 0xd3: // signed
		skip = 1 << (c - 0xd0)
	case c >= 0xd4 && c <= 0xd8: // extensions of fixed length
		skip = 1 + 1<<(c-0xd4)
	default: // a length of 1, 2 or 4 bytes follows
		var n uint64
		width := 0
		switch c {
		case 0xc4, 0xc7, 0xd9:
			width = 1
		case 0xc5, 0xc8, 0xda, 0xdc, 0xde:
			width = 2
		default:
			width = 4
		}
		if len(b) < width {
			return nil, errShort
		}
		var full [8]byte
		copy(full[8-width:], b)
		n = binary.BigEndian.Uint64(full[:])
		b = b[width:]
		if n > uint64(len(b)) {
			return nil, errShort
		}
		switch {
		case c >= 0xde:
			elements = 2 * int(n)
		case c >= 0xdc:
			elements = int(n)
		case c >= 0xc7 && c <= 0xc9:
			skip = 1 + int(n)
		default:
			skip = int(n)
		}
	}
	if skip > len(b) || elements > len(b) {
		return nil, errShort
	}
	b = b[skip:]
	for range elements {
		if b, err = skim(b, depth+1); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// A PID travels as "address/id", none as nil.
func init() {
	msgpack.Register((*actor.PID)(nil), encodePID, decodePID)
}

const localAddress = "nonhost" // the library's name for a system that Start has not been given

func encodePID(enc *msgpack.Encoder, v reflect.Value) error {
	p := v.Interface().(*actor.PID)
	switch {
	case p == nil:
		return enc.EncodeNil()
	case p.Address == localAddress:
		return fmt.Errorf("the actor %s was spawned before remote.Start: others can't reach it", p.Id)
	}
	return enc.EncodeString(p.Address + "/" + p.Id)
}

func decodePID(dec *msgpack.Decoder, v reflect.Value) error {
	s, err := dec.DecodeString()
	if err != nil {
		return err
	}
	if s == "" { // nil is read so
		v.SetZero()
		return nil
	}
	address, id, ok := strings.Cut(s, "/")
	if !ok || address == "" || id == "" {
		return fmt.Errorf("%q is no PID", s)
	}
	v.Set(reflect.ValueOf(actor.NewPID(address, id)))
	return nil
}
