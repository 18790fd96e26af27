package main

import (
	"cmp"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/rowan-csi/rowan/pkg/bytesize"
	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
)

// What follows is the JSON that scripts read: fields are added, never renamed.

type versionView struct {
	Client string `json:"client"`
	Engine string `json:"engine,omitempty"`
}

func (v versionView) table(w io.Writer) error {
	return writeFields(w, field{"rowanctl", v.Client}, field{"rowan-engine", v.Engine})
}

type poolView struct {
	Name          string `json:"name"`
	ID            string `json:"id,omitempty"`
	State         string `json:"state"`
	Reason        string `json:"reason,omitempty"`
	Member        string `json:"member"`
	Device        string `json:"device,omitempty"`
	Size          int64  `json:"size"`
	Used          int64  `json:"used"`
	Free          int64  `json:"free"`
	Provisioned   int64  `json:"provisioned"`
	MetadataBytes int64  `json:"metadataBytes"`
	Volumes       int    `json:"volumes"`
	Snapshots     int    `json:"snapshots"`
	Jobs          int    `json:"jobs"`
	Available     int64  `json:"available"`
	Reserved      int64  `json:"reserved"`
	Thick         int64  `json:"thick"`
	Level         string `json:"level,omitempty"`

	WarnAt        float64 `json:"warnAt,omitempty"`
	RefuseAt      float64 `json:"refuseAt,omitempty"`
	ChecksumBytes int64   `json:"checksumBytes"`
	Unsummed      int     `json:"unsummed"`

	Allocation string       `json:"allocation,omitempty"`
	Members    []memberView `json:"members,omitempty"`

	Metadata *metadataView `json:"metadata,omitempty"` // by show, of an open pool
}

type memberView struct {
	Index     int    `json:"index"`
	ID        string `json:"id"`
	Path      string `json:"path"`
	Directory string `json:"directory,omitempty"`
	Device    string `json:"device,omitempty"`
	State     string `json:"state"`
	Reason    string `json:"reason,omitempty"`
	Metadata  bool   `json:"metadata,omitempty"`
	Size      int64  `json:"size"`
	Used      int64  `json:"used"`
	// GrowthStopped: the file system is too full for the member to take more of it.
	GrowthStopped bool `json:"growthStopped,omitempty"`
}

func viewMembers(list []engine.MemberInfo) (views []memberView) {
	for _, m := range list {
		views = append(views, memberView(m))
	}
	return views
}

// memberFields are a line for each of several members.
func (p poolView) memberFields() (fields []field) {
	if len(p.Members) < 2 {
		return nil
	}
	fields = append(fields, field{"Allocation", p.Allocation})
	for _, m := range p.Members {
		text := fmt.Sprintf("%s, %s, %s of %s used", m.Path, m.State, bytesize.Format(m.Used), bytesize.Format(m.Size))
		if m.Metadata {
			text += ", metadata"
		}
		if m.Reason != "" {
			text += ": " + m.Reason
		}
		fields = append(fields, field{fmt.Sprintf("Member %d", m.Index), text})
	}
	return fields
}

func viewPool(p engine.PoolInfo) poolView {
	return poolView{
		Allocation: p.Allocation, Members: viewMembers(p.Members),
		Name: p.Name, ID: p.ID, State: p.State, Reason: p.Reason, Member: p.Member, Device: p.Device, Size: p.Size, Used: p.Used, Free: p.Free,
		Provisioned: p.Provisioned, MetadataBytes: p.MetadataBytes, Volumes: p.Volumes, Snapshots: p.Snapshots, Jobs: p.Jobs,
		Available: p.Available, Level: string(p.Level), WarnAt: p.WarnAt, RefuseAt: p.RefuseAt,
		Reserved: p.Reserved, Thick: p.Thick,
		ChecksumBytes: p.ChecksumBytes, Unsummed: p.Unsummed,
	}
}

func (p poolView) table(w io.Writer) error {
	fields := []field{
		{"Name", p.Name}, {"ID", p.ID}, {"State", p.State}, {"Reason", p.Reason}, {"Member", p.Member}, {"Device", p.Device},
	}
	if p.Size > 0 { // nothing is known of a pool that is not open
		fields = append(fields,
			field{"Size", exact(p.Size)}, field{"Used", exact(p.Used)}, field{"Free", exact(p.Free)}, field{"Reserved", p.reserved()}, field{"Available", exact(p.Available)},
			field{"Level", p.level()}, field{"Provisioned", exact(p.Provisioned)},
			field{"Metadata", exact(p.MetadataBytes)}, field{"Volumes", strconv.Itoa(p.Volumes)}, field{"Snapshots", strconv.Itoa(p.Snapshots)},
			field{"Being freed", strconv.Itoa(p.Jobs) + " layers"}, field{"Checksums", checksumsText(p)})
	}
	fields = append(fields, p.memberFields()...)
	if p.Metadata != nil {
		fields = append(fields, p.Metadata.fields()...)
		fields = append(fields, field{"Metadata cost", p.Metadata.perBlock()})
	}
	return writeFields(w, fields...)
}

// reserved is nothing where there are no thick volumes.
func (p poolView) reserved() string {
	if p.Thick == 0 {
		return ""
	}
	return exact(p.Reserved) + ", for thick volumes of " + bytesize.Format(p.Thick)
}

// level says where the pool is on the ladder, and what comes next.
func (p poolView) level() string {
	marks := fmt.Sprintf("warns at %.0f %% in use, takes nothing new from %.0f %% on", p.WarnAt*100, p.RefuseAt*100)
	if p.Level == "" {
		return marks
	}
	return p.Level + " (" + marks + ")"
}

func checksumsText(p poolView) string {
	waits := "of all frozen blocks"
	if p.Unsummed > 0 {
		waits = fmt.Sprintf("of frozen blocks, but for those of %d generations", p.Unsummed)
	}
	return fmt.Sprintf("%s; %s of metadata for them since it was opened", waits, bytesize.Format(p.ChecksumBytes))
}

type poolList []poolView

func (l poolList) table(w io.Writer) error {
	header := []string{"NAME", "STATE", ">SIZE", ">USED", ">FREE", ">PROVISIONED", ">VOLUMES", ">SNAPSHOTS", "MEMBER"}
	var rows [][]string
	for _, p := range l {
		rows = append(rows, []string{
			p.Name, p.State, bytesize.Format(p.Size), bytesize.Format(p.Used), bytesize.Format(p.Free), bytesize.Format(p.Provisioned),
			strconv.Itoa(p.Volumes), strconv.Itoa(p.Snapshots), p.Member,
		})
	}
	return writeRows(w, header, rows)
}

type snapshotView struct {
	Pool      string            `json:"pool"`
	Name      string            `json:"name"`
	ID        string            `json:"id"`
	Volume    string            `json:"volume"`
	VolumeID  string            `json:"volumeId"`
	Group     string            `json:"group,omitempty"`
	Size      int64             `json:"size"`
	Owned     int64             `json:"owned"`
	Freed     *int64            `json:"freedIfDeletedNow,omitempty"` // by show alone
	CreatedAt time.Time         `json:"createdAt"`
	Labels    map[string]string `json:"labels,omitempty"`
}

func viewSnapshot(pool string, s engine.SnapshotInfo) snapshotView {
	return snapshotView{
		Pool: pool, Name: s.Name, ID: s.ID, Volume: s.Volume, VolumeID: s.VolumeID, Group: s.Group, Size: s.Size, Owned: s.Owned,
		CreatedAt: s.CreatedAt, Labels: s.Labels,
	}
}

func (s snapshotView) table(w io.Writer) error {
	freed := ""
	if s.Freed != nil {
		freed = exact(*s.Freed)
	}
	return writeFields(w,
		field{"Name", s.Name}, field{"ID", s.ID}, field{"Pool", s.Pool}, field{"Volume", s.Volume}, field{"Volume ID", s.VolumeID},
		field{"Group", s.Group},
		field{"Created", timeText(s.CreatedAt)}, field{"Size", exact(s.Size)}, field{"Owned", exact(s.Owned)}, field{"Freed if deleted now", freed},
		field{"Labels", labelsText(s.Labels)})
}

type snapshotList []snapshotView

func (l snapshotList) table(w io.Writer) error {
	var rows [][]string
	for _, s := range l {
		rows = append(rows, []string{s.Name, s.Volume, cmp.Or(s.Group, "-"), bytesize.Format(s.Size), bytesize.Format(s.Owned), timeText(s.CreatedAt)})
	}
	return writeRows(w, []string{"NAME", "VOLUME", "GROUP", ">SIZE", ">OWNED", "CREATED"}, rows)
}

type attachmentView struct {
	Pool     string `json:"pool"`
	Volume   string `json:"volume"`
	Device   string `json:"device,omitempty"`
	ReadOnly bool   `json:"readOnly,omitempty"`
	Stalled  string `json:"stalled,omitempty"`
}

func viewAttachment(a host.Attachment) attachmentView {
	return attachmentView{Pool: a.Pool, Volume: a.Volume, Device: a.Device, ReadOnly: a.ReadOnly, Stalled: a.Stalled}
}

func (a attachmentView) table(w io.Writer) error {
	return writeFields(w, field{"Volume", a.Volume}, field{"Device", a.Device}, field{"Stalled", a.Stalled})
}

// deletedView is what programs get to read of something that is gone.
type deletedView struct {
	Pool    string   `json:"pool"`
	Deleted []string `json:"deleted"`
}

func (d deletedView) table(io.Writer) error { return nil }
