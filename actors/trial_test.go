package actors

import "testing"

// Losses count where a task stands still, and are forgotten once it has gone on.
func TestLossesAreForgotten(t *testing.T) {
	var tr Trial
	for range maxLost {
		tr.reached(40) // again and again at one place
		tr.loses()
	}
	if tr.lost != maxLost {
		t.Errorf("%d losses at one place count as %d", maxLost, tr.lost)
	}
	tr.reached(40 + forgotten - 1)
	if tr.lost != maxLost {
		t.Error("forgotten too early")
	}
	tr.reached(40 + forgotten)
	if tr.lost != 0 || tr.loses() != 1 {
		t.Errorf("far beyond them %d losses are left", tr.lost)
	}
}
