package token

// Special tokens of the tokenizers that Trainer makes, in the order of their
// ids, 0 to 6.
const (
	EndOfText   = "<|endoftext|>" // ends every document and every answer (EOS)
	BOS         = "<|bos|>"       // stands once before the first token of a sequence
	Pad         = "<|pad|>"       // fills a batch; never scored
	System      = "<|system|>"
	User        = "<|user|>"
	Assistant   = "<|assistant|>"
	Observation = "<|observation|>" // a tool's answer
)

// Ids of the special tokens of the tokenizers that Trainer makes.
const (
	EndOfTextID int32 = iota
	BOSID
	PadID
	SystemID
	UserID
	AssistantID
	ObservationID
	numSpecials
)

var specials = [numSpecials]string{EndOfText, BOS, Pad, System, User, Assistant, Observation}

// Specials lists the special tokens of the tokenizers that Trainer makes, by id.
func Specials() []string { return append([]string(nil), specials[:]...) }

// MinVocab is the smallest vocabulary: the special tokens and the 256 bytes.
const MinVocab = int(numSpecials) + 256
