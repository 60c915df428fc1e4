// Command probe stands in for the runtime in a container: it says how it was started and
// what it sees.
package main

import (
	"fmt"
	"os"
	"strings"
)

func main() {
	model, err := os.ReadFile("/model/config.json")
	fmt.Printf("uid %d gid %d\nargs %s\nmodel %s %v\n", os.Getuid(), os.Getgid(), strings.Join(os.Args, " "), model, err)
	fmt.Printf("writable %t\n", os.WriteFile("/model/x", nil, 0o600) == nil || os.WriteFile("/x", nil, 0o600) == nil)
}
