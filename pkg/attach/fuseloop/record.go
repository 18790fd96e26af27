package fuseloop

import (
	"encoding/json"
	"fmt"

	"github.com/rowan-csi/rowan/pkg/attach"
	"github.com/rowan-csi/rowan/pkg/attach/fuseloop/loopdev"
)

// recordVersion is raised when an older version could not serve what a newer one wrote. Fields may be added without: unknown ones are ignored.
const recordVersion = 1

// record is what the keeper keeps beside the descriptors, so that another process can go on.
type record struct {
	Version  int      `json:"version"`
	File     identity `json:"file"`
	Name     string   `json:"name"`
	Loop     int      `json:"loop"` // a hint; what counts is which device has the file Name. loopdev.None before it was configured
	ReadOnly bool     `json:"readOnly,omitempty"`
	Sector   int      `json:"sector"`
	Protocol protocol `json:"protocol"`
	Meta     []byte   `json:"meta,omitempty"`
}

func (r record) encode() ([]byte, error) {
	r.Version = recordVersion
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode attachment record: %w", err)
	}
	return b, nil
}

func decodeRecord(b []byte) (record, error) {
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("decode attachment record: %w", err)
	}
	if r.Version != recordVersion {
		return r, fmt.Errorf("attachment record of version %d: this is %d: %w", r.Version, recordVersion, attach.ErrUnavailable)
	}
	if (r.Sector != 512 && r.Sector != 4096) || r.Loop < loopdev.None || r.Loop > 1<<20 || len(r.Meta) > attach.MaxMetaLen || r.File.Ino == 0 {
		return r, fmt.Errorf("attachment record %.200q does not make sense: %w", b, attach.ErrInvalid)
	}
	return r, nil
}
