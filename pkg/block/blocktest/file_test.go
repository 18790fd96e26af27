package blocktest_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rowan-csi/rowan/pkg/block"
	"github.com/rowan-csi/rowan/pkg/block/blocktest"
)

func TestFileConforms(t *testing.T) {
	open := func(t testing.TB, path string) block.Device {
		dev, err := blocktest.OpenFile(path, os.O_RDWR|os.O_CREATE, 512)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = dev.Close() })
		return dev
	}
	paths := map[block.Device]string{}
	blocktest.Run(t, blocktest.Config{
		New: func(t testing.TB) block.Device {
			path := filepath.Join(t.TempDir(), "file")
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(path, blocktest.MinSize); err != nil {
				t.Fatal(err)
			}
			dev := open(t, path)
			paths[dev] = path
			return dev
		},
		Reopen: func(t testing.TB, dev block.Device) block.Device { return open(t, paths[dev]) },
	})
}
