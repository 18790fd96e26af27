package volume

import "fmt"

// Consistency says what a snapshot shows of a file system that is in use.
type Consistency string

const (
	// ConsistencyCrash: what a power cut at that moment would leave. The default, and all that a raw block volume can have.
	ConsistencyCrash Consistency = "Crash"
	// ConsistencyFreeze: the file system was frozen for the cut. All that was written to it before is in files.
	ConsistencyFreeze Consistency = "FilesystemFreeze"
)

// ParseConsistency reads one; "" is ConsistencyCrash.
func ParseConsistency(s string) (Consistency, error) {
	switch c := Consistency(s); c {
	case "":
		return ConsistencyCrash, nil
	case ConsistencyCrash, ConsistencyFreeze:
		return c, nil
	}
	return "", fmt.Errorf("%w: consistency %q: use %s or %s", ErrInvalid, s, ConsistencyCrash, ConsistencyFreeze)
}

// CheckFreeze refuses to freeze a volume of that file system: a raw block volume has none that this machine knows of.
func CheckFreeze(fsType string) error {
	if fsType == "" {
		return fmt.Errorf("%w: consistency %s of a raw block volume: what is on it is known to its user alone, who freezes it (KubeVirt does so in the guest); "+
			"use %s", ErrInvalid, ConsistencyFreeze, ConsistencyCrash)
	}
	return nil
}
