package remote

import (
	"fmt"
	"net"
	"strconv"
	"strings"
)

// At is the address of a node's life in PIDs: where its port is reached, and its
// boot number.
func At(addr string, boot uint64) string {
	return addr + "#" + strconv.FormatUint(boot, 10)
}

// parse takes At apart.
func parse(life string) (addr, host string, boot uint64, err error) {
	addr, number, ok := strings.Cut(life, "#")
	if ok {
		boot, err = strconv.ParseUint(number, 10, 64)
	}
	if !ok || err != nil || len(life) > 300 {
		return "", "", 0, fmt.Errorf("address %q is not HOST:PORT#BOOT", life)
	}
	if host, _, err = net.SplitHostPort(addr); err != nil {
		return "", "", 0, fmt.Errorf("address %q: %w", life, err)
	}
	return addr, host, boot, nil
}
