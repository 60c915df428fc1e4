// Package cert is who may speak on a cluster: a certificate authority in a folder,
// the certificates that it issues, and the one-time tokens by which a machine
// without a certificate asks for one.
//
//	err := cert.InitCA("ca")                                       // autoglm ca init
//	ca, err := cert.LoadCA("ca")
//	err = ca.Issue(cert.Request{Hosts: []string{"10.0.0.1"}}, "tls") // autoglm ca issue 10.0.0.1
//	id, err := cert.Load("tls")
//	conf := id.TLS()                                               // both sides of mutual TLS
//
// # Roles
//
// A certificate carries one role as its organisational unit: node, which members
// of the cluster alone have, or one of a person's: admin, submit, read, each of
// which may do what the next may.
//
// # Tokens
//
//	"agl1." base64url( 16 id | 8 expiry, Unix seconds, big-endian | 32 pin | signature )
//
// The pin is SHA-256 of the authority's public key (SubjectPublicKeyInfo), so that
// who joins knows whom it talks to before it has a certificate; the signature is
// the authority's, ECDSA over SHA-256 of what stands before it. An authority takes
// a token once: the id becomes a file in its folder.
//
// # Revocation
//
// An authority's list of revoked certificates is an X.509 CRL (RFC 5280) in PEM, whose
// number grows. An identity that was given one (Identity.Revoke) refuses who is on it;
// an older list, or one of another authority, changes nothing.
//
// # Folders
//
//	CA/ca.pem ca-key.pem used/ID       an authority; the key is readable by its owner alone
//	CA/issued/SERIAL.pem crl.pem       what it issued, and what of it is revoked
//	DIR/ca.pem cert.pem key.pem        a host's or a person's
package cert
