package upstream

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/onsi/ginkgo/v2"

	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	e2evolume "k8s.io/kubernetes/test/e2e/framework/volume"
	"k8s.io/kubernetes/test/e2e/storage/external"
	storageframework "k8s.io/kubernetes/test/e2e/storage/framework"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

const driverName = "csi.rowan.storage"

// definition is external.driverDefinition, which is not exported. TestDefinition compares the two.
type definition struct {
	DriverInfo   storageframework.DriverInfo
	StorageClass struct {
		FromName                        bool
		FromFile, FromExistingClassName string
	}
	VolumeAttributesClass struct{ FromFile, FromExistingClassName string }
	SnapshotClass         struct {
		FromName                        bool
		FromFile, FromExistingClassName string
	}
	GroupSnapshotClass struct {
		FromName                        bool
		FromFile, FromExistingClassName string
	}
	InlineVolumes []struct {
		Attributes       map[string]string
		Shared, ReadOnly bool
	}
	ClientNodeName string
	NodeSelectors  map[string]string
	Timeouts       map[string]string
}

// capabilities are all that the suite knows; it takes any other word for one that nobody asks about.
var capabilities = []storageframework.Capability{storageframework.CapPersistence, storageframework.CapBlock, storageframework.CapFsGroup,
	storageframework.CapVolumeMountGroup, storageframework.CapExec, storageframework.CapSnapshotDataSource, storageframework.CapSnapshotMetadata,
	storageframework.CapVolumeGroupSnapshot, storageframework.CapPVCDataSource, storageframework.CapMultiPODs, storageframework.CapRWX,
	storageframework.CapControllerExpansion, storageframework.CapNodeExpansion, storageframework.CapOfflineExpansion,
	storageframework.CapOnlineExpansion, storageframework.CapVolumeLimits, storageframework.CapSingleNodeVolume, storageframework.CapTopology,
	storageframework.CapCapacity, storageframework.CapFSResizeFromSourceNotSupported, storageframework.CapReadWriteOncePod,
	storageframework.CapMultiplePVsSameID, storageframework.CapReadOnlyMany, storageframework.CapSELinuxMount}

func decode(t *testing.T, file string, into any) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := decodeStrictly(text, into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

// decodeStrictly takes no key twice, none that is unknown, and none in other letters: Kubernetes' decoder minds them, encoding/json does not.
func decodeStrictly(text []byte, into any) error {
	plain, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		return err
	}
	strict, err := json.UnmarshalStrict(plain, into)
	if err != nil {
		return err
	}
	if len(strict) > 0 {
		return strict[0]
	}
	return nil
}

// start is what the suite begins with before it reads the file.
func start() *definition {
	return &definition{DriverInfo: storageframework.DriverInfo{SupportedFsType: sets.NewString(""), SupportedSizeRange: e2evolume.SizeRange{Min: "5Gi"}}}
}

func TestManifest(t *testing.T) {
	d := start()
	decode(t, "manifest.yaml", d)
	if d.DriverInfo.Name != driverName {
		t.Errorf("the driver is called %q", d.DriverInfo.Name)
	}
	for c := range d.DriverInfo.Capabilities {
		if !slices.Contains(capabilities, c) {
			t.Errorf("the suite has no capability %q", c)
		}
	}
	for _, file := range []string{d.StorageClass.FromFile, d.SnapshotClass.FromFile, d.GroupSnapshotClass.FromFile} {
		if _, err := os.Stat(file); err != nil {
			t.Error(err)
		}
	}
}

// TestDecodeStrictly: a check that lets everything through would look green for ever.
func TestDecodeStrictly(t *testing.T) {
	for _, text := range []string{
		"driverInfo: {}", "DriverInfo: {Nam: x}", "DriverInfo: {StressTestOptions: {NumPod: 1}}", "Snapshotclass: {FromName: true}",
		"StorageClass: {FromFile: a, FromFile: b}"} {
		if err := decodeStrictly([]byte(text), start()); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

// TestDefinition: the suite's own decoder, which says nothing of keys that it ignores, makes of the manifest what ours makes of it, field by field.
func TestDefinition(t *testing.T) {
	var log bytes.Buffer
	ginkgo.GinkgoWriter.TeeTo(&log)
	defer ginkgo.GinkgoWriter.ClearTeeWriters()
	if err := external.AddDriverDefinition("manifest.yaml"); err != nil {
		t.Fatal(err)
	}
	_, theirs, found := strings.Cut(log.String(), "Driver loaded from path [manifest.yaml]: ")
	if !found {
		t.Fatalf("the suite no longer logs what it loaded, by which it is compared here; it logged: %s", log.String())
	}
	d := start()
	decode(t, "manifest.yaml", d)
	pointers := regexp.MustCompile(`0x[0-9a-f]+`) // what they lead to are exported types, decoded strictly above
	want := pointers.ReplaceAllString(strings.TrimSpace(strings.SplitN(theirs, "\n", 2)[0]), "pointer")
	if got := pointers.ReplaceAllString(fmt.Sprintf("%+v", d), "pointer"); got != want {
		t.Errorf("the suite's definition differs from the one here; adapt type definition:\nsuite %s\nhere  %s", want, got)
	}
}

func TestClasses(t *testing.T) {
	var class storagev1.StorageClass
	decode(t, "sc.yaml", &class)
	if class.Provisioner != driverName {
		t.Errorf("the StorageClass' provisioner is %q", class.Provisioner)
	}
	for file, kind := range map[string]string{"vsc.yaml": "VolumeSnapshotClass", "vgsc.yaml": "VolumeGroupSnapshotClass"} {
		var snapshots struct {
			APIVersion, Kind       string
			Metadata               struct{ Name string }
			Driver, DeletionPolicy string
			Parameters             map[string]string
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.UnmarshalStrict(text, &snapshots); err != nil {
			t.Fatal(err)
		}
		if snapshots.Driver != driverName || snapshots.Kind != kind {
			t.Errorf("%s is %+v", file, snapshots)
		}
	}
}
