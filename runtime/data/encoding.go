package data

import (
	"bytes"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/japanese"
	"golang.org/x/text/encoding/korean"
	"golang.org/x/text/encoding/simplifiedchinese"
	"golang.org/x/text/encoding/traditionalchinese"
	uni "golang.org/x/text/encoding/unicode"
	"golang.org/x/text/transform"
)

// Names of encodings as the probe reports them.
const (
	encUTF8    = "utf-8"
	encUTF8BOM = "utf-8, BOM"
	encUTF16LE = "utf-16-le"
	encUTF16BE = "utf-16-be"
)

var decoders = map[string]encoding.Encoding{
	encUTF16LE:           uni.UTF16(uni.LittleEndian, uni.IgnoreBOM),
	encUTF16BE:           uni.UTF16(uni.BigEndian, uni.IgnoreBOM),
	encUTF16LE + ", BOM": uni.UTF16(uni.LittleEndian, uni.UseBOM),
	encUTF16BE + ", BOM": uni.UTF16(uni.BigEndian, uni.UseBOM),
	"gb18030":            simplifiedchinese.GB18030,
	"big5":               traditionalchinese.Big5,
	"shift_jis":          japanese.ShiftJIS,
	"euc-jp":             japanese.EUCJP,
	"euc-kr":             korean.EUCKR,
	"windows-1251":       charmap.Windows1251,
	"koi8-r":             charmap.KOI8R,
	"windows-1252":       charmap.Windows1252,
	"iso-8859-1":         charmap.ISO8859_1,
}

// decoded gives the stream as UTF-8.
func decoded(enc string, src io.Reader) io.Reader {
	switch enc {
	case encUTF8:
		return src
	case encUTF8BOM:
		return &skipReader{src: src, skip: 3}
	}
	return transform.NewReader(src, decoders[enc].NewDecoder())
}

// skipReader leaves out the first bytes of a stream.
type skipReader struct {
	src  io.Reader
	skip int64
}

func (s *skipReader) Read(p []byte) (int, error) {
	if s.skip > 0 {
		n, err := io.CopyN(io.Discard, s.src, s.skip)
		s.skip -= n
		if err != nil {
			return 0, err
		}
	}
	return s.src.Read(p)
}

// detectEncoding names the encoding of a sample from the head of a file, whole
// tells that nothing follows. mixed means UTF-8 with some lines that are not. An
// empty name means that no encoding is likely.
func detectEncoding(b []byte, whole bool) (enc string, mixed bool) {
	switch {
	case bytes.HasPrefix(b, []byte("\xef\xbb\xbf")):
		return encUTF8BOM, !validHead(b, whole)
	case bytes.HasPrefix(b, []byte("\xff\xfe")):
		return encUTF16LE + ", BOM", false
	case bytes.HasPrefix(b, []byte("\xfe\xff")):
		return encUTF16BE + ", BOM", false
	}
	if e := detectUTF16(b); e != "" {
		return e, false
	}
	if validHead(b, whole) {
		return encUTF8, false
	}
	if mostlyUTF8Lines(b) {
		return encUTF8, true
	}
	if !whole { // a cut character at the end must not count
		if i := bytes.LastIndexByte(b, '\n'); i > 0 {
			b = b[:i]
		} else {
			b = b[:len(b)-min(len(b), 4)]
		}
	}
	return detectLegacy(b), false
}

// validHead tells valid UTF-8 whose last character may be cut.
func validHead(b []byte, whole bool) bool {
	if !whole {
		for i := 1; i < utf8.UTFMax && i <= len(b); i++ {
			if c := b[len(b)-i]; utf8.RuneStart(c) {
				if c >= 0x80 && !utf8.FullRune(b[len(b)-i:]) {
					b = b[:len(b)-i]
				}
				break
			}
		}
	}
	return utf8.Valid(b)
}

// detectUTF16 finds UTF-16 without a mark by where its zero bytes stand.
func detectUTF16(b []byte) string {
	b = b[:len(b)&^1]
	if len(b) < 4 {
		return ""
	}
	var even, odd int
	for i := 0; i < len(b); i += 2 {
		if b[i] == 0 {
			even++
		}
		if b[i+1] == 0 {
			odd++
		}
	}
	n := len(b) / 2
	switch {
	case odd > n*2/5 && even < n/50:
		return encUTF16LE
	case even > n*2/5 && odd < n/50:
		return encUTF16BE
	}
	return ""
}

// mostlyUTF8Lines tells whether the lines with bytes above 0x7F are mostly valid
// UTF-8, with real multi-byte characters in them.
func mostlyUTF8Lines(b []byte) bool {
	good, bad := 0, 0
	for len(b) > 0 {
		l := b
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			l, b = b[:i], b[i+1:]
		} else {
			break
		}
		if isASCII(l) {
			continue
		}
		if utf8.Valid(l) {
			good++
		} else {
			bad++
		}
	}
	return good > bad
}

func isASCII(b []byte) bool {
	for _, c := range b {
		if c >= 0x80 {
			return false
		}
	}
	return true
}

// frequent characters of running text, modern and classical, both scripts.
var frequent = func() map[rune]bool {
	m := map[rune]bool{}
	for _, r := range "的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可里后小么心多天而能好都然没日于起还发成事只作当想看文无开手十用主行方又如前所本见经头面公同三已老从动两长知民样现分将外但身些与高意进把法此实回二理美点月明其种声全工己话儿者向情部正名定女问力机给等几很业最间新什打便位因重被走电四第门相次东政海口使教西再平真听世气信北少关并内加化由却代军产入先山五太水万市眼体别处总才场师书比住员九笑性通目华报立马命张活难神数件安表原车白应路期叫死常提感金何更反合放做系计或司利受光王果亲界及今京务制解各任至清物台象记边共风战干接它许八特觉望直服毛林题建南度统色字请交爱让认算论百吃义科怎元社术结六功指思非流每青管夫连远资队跟带花快条院变联言权往展该領這來個國說們為時會過學對裡後麼還發無開見經頭動兩長樣現將與進實點種聲話問機給間東關內產萬書業車應親務邊戰題統請讓認論義術結曰焉矣哉乎雲兮" {
		m[r] = true
	}
	return m
}()

// detectLegacy scores the encodings of before Unicode on a sample.
func detectLegacy(b []byte) string {
	if len(b) > 64<<10 {
		b = b[:64<<10]
		if i := bytes.LastIndexByte(b, '\n'); i > len(b)/2 {
			b = b[:i]
		}
	}
	var highs, runs, c1, lower, koi, plausible int
	prev := false
	for i, c := range b {
		if c < 0x80 {
			prev = false
			continue
		}
		highs++
		if !prev {
			runs++
		}
		prev = true
		switch {
		case c < 0xA0:
			c1++
		case c >= 0xE0:
			lower++
		case c >= 0xC0:
			koi++
		}
		if plausible1252(b, i) {
			plausible++
		}
	}
	if highs == 0 {
		return encUTF8
	}
	single := float64(highs) / float64(runs) // mean length of a run of high bytes
	best, score := "", 0.0
	for _, e := range []string{"gb18030", "big5", "shift_jis", "euc-jp", "euc-kr"} {
		if s := scoreMultibyte(e, b, highs); s > score {
			best, score = e, s
		}
	}
	cyr := float64(lower+koi) / float64(highs)
	if single >= 2.5 && cyr > 0.9 && score < 0.35 {
		if lower > 2*koi {
			return "windows-1251"
		}
		if koi > 2*lower {
			return "koi8-r"
		}
	}
	if score >= 0.10 && single >= 1.5 {
		return best
	}
	if float64(plausible) >= 0.9*float64(highs) && single < 2.5 {
		if c1 > 0 {
			return "windows-1252"
		}
		return "iso-8859-1"
	}
	return ""
}

// scoreMultibyte gives the share of characters beyond ASCII that running text of
// that encoding's languages often has; negative for a wrong encoding.
func scoreMultibyte(enc string, b []byte, highs int) float64 {
	out, _, err := transform.Bytes(decoders[enc].NewDecoder(), b)
	if err != nil {
		return -1
	}
	var n, bad, freq, kana, hangul, odd int
	for _, r := range string(out) {
		if r < 0x80 {
			continue
		}
		n++
		switch {
		case r == utf8.RuneError || 0xE000 <= r && r <= 0xF8FF:
			bad++
		case 0x3041 <= r && r <= 0x30FF:
			kana++
		case 0xFF61 <= r && r <= 0xFF9F: // half-width kana: single high bytes of any text
			odd++
		case 0xAC00 <= r && r <= 0xD7A3:
			hangul++
		case frequent[r] || 0x3000 <= r && r <= 0x3011 || r == '，' || r == '：' || r == '？' || r == '；' || r == '！':
			freq++
		}
	}
	if n == 0 || bad*100 > n || odd*5 > n || highs < 2 {
		return -1
	}
	f := float64(freq) / float64(n)
	switch enc {
	case "shift_jis", "euc-jp":
		if kana*5 < n {
			return -1
		}
		return f + float64(kana)/float64(n)
	case "euc-kr":
		if hangul*2 < n {
			return -1
		}
		return float64(hangul) / float64(n) * 0.9
	}
	if kana*4 > n {
		return f / 4
	}
	return f
}

// plausible1252 tells whether the byte at i, read as Windows-1252, stands where
// running text of a western language has such a character.
func plausible1252(b []byte, i int) bool {
	c := b[i]
	letter := func(k int) bool {
		if k < 0 || k >= len(b) {
			return false
		}
		x := b[k]
		return 'a' <= x|0x20 && x|0x20 <= 'z' || x >= 0xC0 && x != 0xD7 && x != 0xF7
	}
	switch {
	case c >= 0xC0:
		return c != 0xD7 && c != 0xF7 && c != 0xFF
	case 0x91 <= c && c <= 0x97, c == 0x85, c == 0x8A, c == 0x8C, c == 0x8E, c == 0x9A, c == 0x9C, c == 0x9E, c == 0x9F, c == 0xA1, c == 0xBF, c == 0xB4:
		return true
	case c == 0xAB, c == 0xBB, c == 0xA7, c == 0xA9, c == 0xAE, c == 0xB0, c == 0xBA, c == 0xAA, c == 0xA0, c == 0xA3, c == 0x80, c == 0x99, c == 0xBD, c == 0xBC, c == 0xB7, c == 0xB2, c == 0xB3, c == 0x84, c == 0x82:
		return !letter(i-1) || !letter(i+1)
	}
	return false
}

// repairLine reads one line that is no valid UTF-8 as GB18030 or Windows-1252
// where that is clear, and gives nil where it is not.
func repairLine(b []byte) ([]byte, string) {
	var highs, inUTF8, pairs, highTrail int
	for i := 0; i < len(b); {
		if b[i] < 0x80 {
			i++
			continue
		}
		if r, n := utf8.DecodeRune(b[i:]); r != utf8.RuneError || n > 1 {
			inUTF8 += n
			highs += n
			i += n
			continue
		}
		highs++
		i++
	}
	for i := 0; i < len(b); i++ {
		if b[i] >= 0x81 && i+1 < len(b) {
			pairs++
			if b[i+1] >= 0x80 {
				highTrail++
			}
			i++
		}
	}
	if inUTF8*2 <= highs && pairs >= 4 && highTrail*2 >= pairs {
		if out, err := simplifiedchinese.GB18030.NewDecoder().Bytes(b); err == nil {
			n, han := 0, 0
			for _, r := range string(out) {
				if r < 0x80 {
					continue
				}
				n++
				if r == utf8.RuneError {
					n = -1 << 30
				}
				if unicode.Is(unicode.Han, r) || 0x3000 <= r && r <= 0x303F || 0xFF00 <= r && r <= 0xFF60 || strings.ContainsRune("“”‘’…—·", r) {
					han++
				}
			}
			if n > 0 && han*10 >= n*9 {
				return out, "gb18030"
			}
		}
	}
	if inUTF8 > 0 {
		return nil, ""
	}
	for i, c := range b {
		if c >= 0xE0 && c < 0xF0 && i+2 < len(b) && b[i+1]&0xC0 == 0x80 && b[i+2]&0xC0 == 0x80 {
			return nil, "" // half of a surrogate pair, or another damaged character of UTF-8
		}
		if c >= 0x80 && !plausible1252(b, i) {
			return nil, ""
		}
	}
	out, err := charmap.Windows1252.NewDecoder().Bytes(b)
	if err != nil || bytes.ContainsRune(out, utf8.RuneError) {
		return nil, ""
	}
	return out, "windows-1252"
}
