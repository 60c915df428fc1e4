package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/open-autoglm/autoglm/actors/node"
	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// inventory is what devices --json prints.
type inventory struct {
	device.Machine
	LockDir string                   `json:"lock_dir"`
	Leases  map[string]device.Record `json:"leases"` // by device ID
}

func devicesCommand() *cobra.Command {
	var asJSON, watch bool
	var every time.Duration
	c := &cobra.Command{
		Use:   "devices",
		Short: "List what this machine has to compute with, and who holds it",
		Long: `Devices lists processors and GPUs with their health, load and lease. Leases are
files in /run/lock/autoglm, or in the folder that AUTOGLM_LOCKS names.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if every <= 0 {
				return usageError{fmt.Errorf("--every %v: give more than 0", every)}
			}
			show := func(m device.Machine) error {
				inv, err := leased(m)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(inv)
				}
				printDevices(os.Stdout, inv)
				return nil
			}
			if !watch {
				m, err := node.Inventory()
				if err != nil {
					return err
				}
				return show(m)
			}
			return watchDevices(c.Context(), every, asJSON, show)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print everything as JSON; with --watch one line a look")
	c.Flags().BoolVar(&watch, "watch", false, "look again and again until Ctrl-C")
	c.Flags().DurationVar(&every, "every", time.Second, "with --watch, look so often")
	return c
}

func leased(m device.Machine) (inventory, error) {
	m.SIMD = kernel.Level()
	if m.SIMD == "generic" {
		m.Notes = append(m.Notes, "no AVX2 here: training runs on portable code, many times slower")
	}
	inv := inventory{Machine: m, LockDir: device.LockDir(), Leases: map[string]device.Record{}}
	l, err := device.OpenLeases(inv.LockDir)
	if err != nil {
		inv.Notes = append(inv.Notes, err.Error())
		return inv, nil // what there is can be told all the same
	}
	inv.Leases, err = l.Holders(m.Devices)
	return inv, err
}

func watchDevices(ctx context.Context, every time.Duration, asJSON bool, show func(device.Machine) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	live := !asJSON && term.IsTerminal(int(os.Stdout.Fd())) && os.Getenv("TERM") != "dumb"
	sources := node.Sources()
	defer func() {
		for _, s := range sources {
			s.Close()
		}
	}()
	tell := func(d device.Device, what string) { fmt.Fprintf(os.Stderr, "autoglm: %s %s\n", d.ID, what) }
	err := device.Watch(ctx, every, device.Events{
		Sick: func(d device.Device) { tell(d, "is sick: "+d.Sick) },
		Well: func(d device.Device) { tell(d, "is well") },
		Err:  func(err error) { fmt.Fprintln(os.Stderr, "autoglm:", err) },
		Scan: func(m device.Machine) {
			if live {
				fmt.Print("\x1b[H\x1b[2J")
			} else if !asJSON {
				fmt.Println(time.Now().Format("2006-01-02 15:04:05"))
			}
			if err := show(m); err != nil {
				cancel(err) // such as a closed pipe
			}
		},
	}, sources...)
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

func printDevices(w io.Writer, inv inventory) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "DEVICE\tMODEL\tNODE\tMEMORY\tLOAD\tTEMP\tSTATE")
	for _, d := range inv.Devices {
		numa, memory, load, temp, state := "–", "–", "–", "–", "free"
		if d.NUMA >= 0 {
			numa = fmt.Sprint(d.NUMA)
		}
		if d.MemoryBytes > 0 {
			memory = fmt.Sprintf("%d/%d MB", d.UsedBytes>>20, d.MemoryBytes>>20)
		}
		if d.Load >= 0 {
			load = fmt.Sprintf("%.0f %%", d.Load*100)
		}
		if d.Celsius != 0 {
			temp = fmt.Sprintf("%d °C", d.Celsius)
		}
		if r, ok := inv.Leases[d.ID]; ok {
			state = "leased by " + r.String()
		}
		if d.Sick != "" {
			state = "sick: " + d.Sick
		}
		if len(d.Siblings) > 1 {
			var s []string
			for _, n := range d.Siblings {
				s = append(s, fmt.Sprint(n))
			}
			state += " (one core: " + strings.Join(s, ", ") + ")"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", d.ID, d.Model, numa, memory, load, temp, state)
	}
	_ = t.Flush() // as fmt.Fprintln: there is no one to tell
	fmt.Fprintf(w, "kernels %s, %d MB of memory\n", inv.SIMD, inv.MemoryBytes>>20)
	for _, n := range inv.Notes {
		fmt.Fprintln(w, "note:", n)
	}
}

// leaseFlags say what a build does about devices that others hold.
type leaseFlags struct {
	wait  time.Duration
	share bool
}

func (f *leaseFlags) add(c *cobra.Command) {
	c.Flags().DurationVar(&f.wait, "wait", time.Hour, "wait so long for devices that another process holds; 0 is refused at once")
	c.Flags().BoolVar(&f.share, "share", false, "compute on processors that others hold too, and lease none; GPUs are never shared")
}

// lease makes the node's Lease.
func (f *leaseFlags) lease(ctx context.Context, owner string) node.Lease {
	return func(m device.Machine, r device.Request, wait bool) ([]device.Device, *device.Held, error) {
		if f.share && r.Kind != device.GPU {
			ds, err := m.Match(r)
			return ds, nil, err
		}
		l, err := device.OpenLeases(device.LockDir())
		if err != nil {
			return nil, nil, err
		}
		end := time.NewTimer(f.wait)
		defer end.Stop()
		again := time.NewTicker(200 * time.Millisecond)
		defer again.Stop()
		for told := false; ; {
			ds, held, err := l.Acquire(m, r, owner, 0)
			if !errors.Is(err, device.ErrBusy) || !wait {
				return ds, held, err
			}
			if f.wait <= 0 {
				return nil, nil, fmt.Errorf("%w.\nWait for it with --wait 1h, or compute beside it with --share", err)
			}
			if !told {
				fmt.Fprintf(os.Stderr, "autoglm: %v.\nWaiting up to %v for them; Ctrl-C ends, --share computes beside them.\n", err, f.wait)
				told = true
			}
			select {
			case <-ctx.Done():
				return nil, nil, ctx.Err()
			case <-end.C:
				return nil, nil, fmt.Errorf("%w, and waiting %v did not help.\nCompute beside it with --share", err, f.wait)
			case <-again.C:
			}
		}
	}
}
