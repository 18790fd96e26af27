package main

import (
	"fmt"
	"io"
	"time"

	"github.com/rowan-csi/rowan/pkg/bytesize"
	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
)

type volumeView struct {
	Pool         string            `json:"pool"`
	Name         string            `json:"name"`
	ID           string            `json:"id"`
	Size         int64             `json:"size"`
	Mapped       int64             `json:"mapped"`
	Owned        int64             `json:"owned"`
	Written      bool              `json:"written"`
	HasParent    bool              `json:"hasParent"`
	FromSnapshot string            `json:"fromSnapshot,omitempty"`
	FromVolume   string            `json:"fromVolume,omitempty"`
	Open         bool              `json:"open"`
	Mode         string            `json:"mode"`
	Tidy         bool              `json:"tidy"`
	Provisioning string            `json:"provisioning,omitempty"`
	Reserved     int64             `json:"reserved,omitempty"`
	CreatedAt    time.Time         `json:"createdAt"`
	Labels       map[string]string `json:"labels,omitempty"`
	Attachment   *attachmentView   `json:"attachment,omitempty"`
	Counters     *countersView     `json:"counters,omitempty"`
	Metadata     *metadataView     `json:"poolMetadata,omitempty"` // by show, while attached
}

// countersView has the volume's work since it was attached, and what follows from it.
type countersView struct {
	Reads           uint64 `json:"reads"`
	ReadBytes       uint64 `json:"readBytes"`
	Writes          uint64 `json:"writes"`
	WriteBytes      uint64 `json:"writeBytes"`
	Discards        uint64 `json:"discards"`
	Flushes         uint64 `json:"flushes"`
	DataReads       uint64 `json:"dataReads"`
	DataReadBytes   uint64 `json:"dataReadBytes"`
	DataWrites      uint64 `json:"dataWrites"`
	DataWriteBytes  uint64 `json:"dataWriteBytes"`
	FirstWrites     uint64 `json:"firstWrites"`
	FirstWriteBytes uint64 `json:"firstWriteBytes"`
	Copies          uint64 `json:"copies"`
	CopyBytes       uint64 `json:"copyBytes"`
	// Bytes on the pool's segments for each byte the guest asked for; absent where it asked for none.
	ReadAmplification  *float64 `json:"readAmplification,omitempty"`
	WriteAmplification *float64 `json:"writeAmplification,omitempty"`
}

func viewVolume(pool string, v engine.VolumeInfo, attached []host.Attachment) volumeView {
	view := volumeView{
		Pool: pool, Name: v.Name, ID: v.ID, Size: v.Size, Mapped: v.Mapped, Owned: v.Owned, Written: v.Written, HasParent: v.HasParent,
		FromSnapshot: v.FromSnapshot, FromVolume: v.FromVolume, Open: v.Open, CreatedAt: v.CreatedAt, Labels: v.Labels,
		Mode: v.Mode.String(), Tidy: v.Tidy,
		Provisioning: string(v.Provisioning), Reserved: v.Reserved,
	}
	for _, a := range attached {
		if a.Volume == v.Name {
			av := viewAttachment(a)
			view.Attachment = &av
		}
	}
	if c := v.Counters; c != nil {
		view.Counters = &countersView{
			Reads: c.Reads, ReadBytes: c.ReadBytes, Writes: c.Writes, WriteBytes: c.WriteBytes, Discards: c.Discards, Flushes: c.Flushes,
			DataReads: c.DataReads, DataReadBytes: c.DataReadBytes, DataWrites: c.DataWrites, DataWriteBytes: c.DataWriteBytes,
			FirstWrites: c.FirstWrites, FirstWriteBytes: c.FirstWriteBytes, Copies: c.Copies, CopyBytes: c.CopyBytes,
			ReadAmplification: ratio(c.DataReadBytes, c.ReadBytes), WriteAmplification: ratio(c.DataWriteBytes, c.WriteBytes),
		}
	}
	return view
}

// provisioning tells of a thick volume how much is set aside for it still; a thin one is not worth a line.
func (v volumeView) provisioning() string {
	if v.Provisioning != string(engine.ProvisionThick) {
		return ""
	}
	return v.Provisioning + ", " + bytesize.Format(v.Reserved) + " set aside and not used yet"
}

func ratio(done, asked uint64) *float64 {
	if asked == 0 {
		return nil
	}
	r := float64(done) / float64(asked)
	return &r
}

func (v volumeView) table(w io.Writer) error {
	fields := []field{
		{"Name", v.Name}, {"ID", v.ID}, {"Pool", v.Pool}, {"Created", timeText(v.CreatedAt)}, {"Size", exact(v.Size)},
		{"Mapped", exact(v.Mapped)}, {"Owned", exact(v.Owned)}, {"From snapshot", v.FromSnapshot}, {"From volume", v.FromVolume},
		{"Provisioning", v.provisioning()}, {"Written", yesNo(v.Written)}, {"Mode", v.Mode}, {"Tidy", yesNo(v.Tidy)}, {"Labels", labelsText(v.Labels)}, {"Device", v.device()},
	}
	if a := v.Attachment; a != nil {
		fields = append(fields, field{"Stalled", a.Stalled})
	}
	if err := writeFields(w, fields...); err != nil || v.Counters == nil {
		return err
	}
	metadata := ""
	if v.Metadata != nil {
		metadata = v.Metadata.perBlock()
	}
	return v.Counters.write(w, field{"Pool metadata", metadata})
}

func (c countersView) write(w io.Writer, more field) error {
	if _, err := io.WriteString(w, "\nSince it was attached:\n"); err != nil {
		return err
	}
	row := func(what string, n, bytes uint64) []string {
		return []string{what, fmt.Sprint(n), bytesize.Format(int64(bytes))}
	}
	rows := [][]string{
		row("guest reads", c.Reads, c.ReadBytes),
		row("guest writes", c.Writes, c.WriteBytes),
		row("  redirected to new blocks", c.FirstWrites, c.FirstWriteBytes),
		row("  old data copied away", c.Copies, c.CopyBytes),
		{"guest discards", fmt.Sprint(c.Discards), ""},
		{"guest flushes", fmt.Sprint(c.Flushes), ""},
		row("pool data reads", c.DataReads, c.DataReadBytes),
		row("pool data writes", c.DataWrites, c.DataWriteBytes),
	}
	if err := writeRows(w, []string{"", ">REQUESTS", ">BYTES"}, rows); err != nil {
		return err
	}
	return writeFields(w,
		field{"Read amplification", ratioText(c.ReadAmplification)}, field{"Write amplification", ratioText(c.WriteAmplification)}, more)
}

func ratioText(r *float64) string {
	if r == nil {
		return ""
	}
	return fmt.Sprintf("%.2f pool data bytes for each guest byte", *r)
}

// device is the device node, and how it is attached where that is not the usual way.
func (v volumeView) device() string {
	a := v.Attachment
	switch {
	case a == nil:
		return ""
	case a.Stalled != "":
		return a.Device + " (stalled)"
	case a.ReadOnly:
		return a.Device + " (read-only)"
	}
	return a.Device
}

// source is what a volume was made of.
func (v volumeView) source() string {
	switch {
	case v.FromSnapshot != "":
		return "snapshot " + v.FromSnapshot
	case v.FromVolume != "":
		return "volume " + v.FromVolume
	}
	return "-"
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

type volumeList []volumeView

func (l volumeList) table(w io.Writer) error {
	var rows [][]string
	for _, v := range l {
		device := v.device()
		if device == "" {
			device = "-"
		}
		rows = append(rows, []string{
			v.Name, bytesize.Format(v.Size), bytesize.Format(v.Mapped), bytesize.Format(v.Owned), v.source(), device, timeText(v.CreatedAt),
		})
	}
	return writeRows(w, []string{"NAME", ">SIZE", ">MAPPED", ">OWNED", "FROM", "DEVICE", "CREATED"}, rows)
}
