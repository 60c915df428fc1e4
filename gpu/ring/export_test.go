package ring

// For tests outside the package.
var (
	Formed     = formed
	OnAll      = onAll
	Transports = transports
)
