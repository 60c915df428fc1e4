// Package image makes container images of a runtime and a model, without Docker, and
// keeps them in a folder (OCI layout), in a file (docker-archive) or in a registry.
//
//	img, err := image.Build(image.Spec{Runtime: "/proc/self/exe", Model: "run1/bundle", Title: "whale"})
//	err = image.WriteLayout("run1/image", "whale:1", img)
//	err = image.WriteArchive("whale.tar", "whale:1", img)
//	err = image.Copy(ctx, image.Layout("run1/image"), registry)   // with its signatures
//
// An image has three layers: the runtime (one static binary, gzip), the tokenizer and
// configuration (gzip), the weights (gzip's form, stored: they don't compress). A new model of
// the same runtime pushes the last two. It runs as user 65532 and writes nothing, so that
// its root may be read-only; it serves REST on port 8080 and gRPC on 9000, to whoever
// reaches the container's ports: other arguments, with --keys, take the place of its own.
// Docker and podman load, of a docker-archive, run the program's own health command as a
// HEALTHCHECK; the OCI's specification knows no such field, and podman ignores it in a layout.
//
// Invariants: the same runtime and model give the same digest. What was written is an
// image by the specifications (https://github.com/opencontainers/image-spec, version 1.1).
// A layout is replaced whole or not at all. Passwords and models go over plain HTTP to this machine
// alone, unless Insecure allows it.
//
// Vocabulary: a Place is where an image lies. What is attached to an image, its signatures
// and attestations, lies beside it as images of their own, as cosign has them: in a
// registry under the tags sha256-HEX.sig and sha256-HEX.att, in a layout under the
// annotation "kind".
package image
