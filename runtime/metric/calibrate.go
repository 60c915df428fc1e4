package metric

import (
	"errors"
	"fmt"
	"math"
)

// Calibration is what is known of how far a model's probabilities may be believed:
// a temperature that the logits are to be divided by, and what that changes on tokens
// that it was not fitted to.
type Calibration struct {
	Temperature float64 `json:"temperature"`
	Fitted      int     `json:"fitted"` // tokens that it was fitted to
	Judged      int     `json:"judged"` // tokens that the rest was measured on
	Before      Belief  `json:"before"` // at temperature 1
	After       Belief  `json:"after"`
	Part        string  `json:"part"`             // the text that the tokens are of
	SHA256      string  `json:"sha256,omitempty"` // of that text, where it is one
}

// Belief is how good probabilities are.
type Belief struct {
	NLL float64 `json:"nll"` // nats of a token, mean
	ECE float64 `json:"ece"` // expected calibration error, see CalibrationError
}

// Bounds of temperatures. A fit that ends at one says that the text is not the model's.
const (
	LeastTemperature = 0.05
	MostTemperature  = 20
)

// Temperature is the one for which the mean negative log-likelihood of targets is least,
// where logits, [n, V], are divided by it (Guo et al. 2017, temperature scaling). It
// does not change which token is the likeliest.
//
// The loss is convex in 1/T: Newton's steps, within a bracket that its derivative's sign
// halves.
func Temperature(logits []float32, vocab int, targets []int32) (float64, error) {
	if err := checkLogits(logits, vocab, targets); err != nil {
		return 0, err
	}
	low, high := 1.0/MostTemperature, 1.0/LeastTemperature
	beta := 1.0
	for range 100 {
		slope, curve := 0.0, 0.0
		for i, t := range targets {
			g, h := slopeAt(logits[i*vocab:(i+1)*vocab], t, beta)
			slope, curve = slope+g, curve+h
		}
		if slope < 0 {
			low = beta
		} else {
			high = beta
		}
		next := beta - slope/curve
		if !(next > low && next < high) {
			next = (low + high) / 2
		}
		if math.Abs(next-beta) < 1e-7*beta {
			return 1 / next, nil
		}
		beta = next
	}
	return 1 / beta, nil
}

func checkLogits(logits []float32, vocab int, targets []int32) error {
	if len(targets) == 0 {
		return errors.New("there is no token to fit a temperature to")
	}
	if vocab < 1 || len(logits) != vocab*len(targets) {
		return fmt.Errorf("%d logits are not those of %d tokens, of a vocabulary of %d", len(logits), len(targets), vocab)
	}
	for _, v := range logits {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return errors.New("a logit is no number: the model's weights are damaged")
		}
	}
	for i, t := range targets {
		if t < 0 || int(t) >= vocab {
			return fmt.Errorf("target %d is %d, which is no token", i, t)
		}
	}
	return nil
}

// slopeAt is the first and second derivative of −log softmax(beta·z)[t] by beta: E[z] − z_t
// and Var[z].
func slopeAt(z []float32, t int32, beta float64) (slope, curve float64) {
	top := highest(z)
	var sum, first, second float64
	for _, v := range z {
		d := float64(v) - top
		p := math.Exp(beta * d)
		sum, first, second = sum+p, first+p*d, second+p*d*d
	}
	mean := first / sum
	return mean - (float64(z[t]) - top), second/sum - mean*mean
}

func highest(z []float32) float64 {
	top := z[0]
	for _, v := range z[1:] {
		top = max(top, v)
	}
	return float64(top)
}

// calibrationBins are those of CalibrationError: of equal width, as in Guo et al. 2017.
const calibrationBins = 15

// Believe measures probabilities at a temperature: logits are [n, V].
func Believe(logits []float32, vocab int, targets []int32, temperature float64) (Belief, error) {
	if err := checkLogits(logits, vocab, targets); err != nil {
		return Belief{}, err
	}
	confidences, right := make([]float64, len(targets)), make([]bool, len(targets))
	nll := 0.0
	for i, t := range targets {
		z := logits[i*vocab : (i+1)*vocab]
		top := highest(z)
		sum := 0.0
		for _, v := range z {
			sum += math.Exp((float64(v) - top) / temperature)
		}
		confidences[i], right[i] = 1/sum, float64(z[t]) == top
		nll += math.Log(sum) - (float64(z[t])-top)/temperature
	}
	return Belief{NLL: nll / float64(len(targets)), ECE: CalibrationError(confidences, right)}, nil
}

// CalibrationError is the expected calibration error (Naeini et al. 2015): answers in 15
// bins by their confidence, 0 to 1, and the mean over all of how far their bin's mean
// confidence is from the share of it that is right.
func CalibrationError(confidences []float64, right []bool) float64 {
	var sum [calibrationBins]float64
	for i, c := range confidences {
		b := min(max(int(math.Ceil(c*calibrationBins))-1, 0), calibrationBins-1)
		sum[b] += c - hit(right[i])
	}
	total := 0.0
	for _, s := range sum {
		total += math.Abs(s)
	}
	return total / float64(max(len(confidences), 1))
}
