//go:build race

package native

// raceDetector tells that memory and time are not those of the product.
const raceDetector = true
