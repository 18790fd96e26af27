package fuseloop

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"testing"

	"github.com/rowan-csi/rowan/pkg/attach"
	"github.com/rowan-csi/rowan/pkg/block"
)

// BenchmarkFio measures the path from the kernel to a RAM device with fio: go test -run xxx -bench Fio. b.N is fio's; the figures are in the extra
// columns.
func BenchmarkFio(b *testing.B) {
	need(b)
	if _, err := exec.LookPath("fio"); err != nil {
		b.Skip("fio is not installed")
	}
	a, dev := New(Config{}), block.NewRAM(1<<30, 512)
	at, err := a.Attach(b.Context(), "bench", dev, attach.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := at.Detach(context.Background()); err != nil {
			b.Error(err)
		}
	})
	chunk := make([]byte, 1<<20)
	for i := range chunk {
		chunk[i] = byte(i)
	}
	for off := int64(0); off < dev.Size(); off += int64(len(chunk)) { // reads must find memory, not holes
		if _, err := dev.WriteAt(chunk, off); err != nil {
			b.Fatal(err)
		}
	}
	for _, job := range []struct {
		rw, bs string
		depth  int
	}{
		{"randread", "4k", 1}, {"randread", "4k", 32}, {"randread", "4k", 128}, {"randwrite", "4k", 1}, {"randwrite", "4k", 32},
		{"read", "1m", 8}, {"write", "1m", 8},
	} {
		b.Run(fmt.Sprintf("%s-%s-depth%d", job.rw, job.bs, job.depth), func(b *testing.B) {
			out, err := exec.Command("fio", "--name=x", "--filename="+at.Path(), "--ioengine=io_uring", "--direct=1", "--rw="+job.rw, "--bs="+job.bs,
				fmt.Sprintf("--iodepth=%d", job.depth), "--time_based", "--runtime=5", "--ramp_time=1", "--output-format=json").Output()
			if err != nil {
				b.Fatalf("fio: %v\n%s", err, out)
			}
			var result struct {
				Jobs []struct {
					Read, Write struct {
						IOPS   float64
						ClatNS struct{ Percentile map[string]float64 } `json:"clat_ns"`
					}
				}
			}
			if err := json.Unmarshal(out, &result); err != nil {
				b.Fatal(err)
			}
			side := result.Jobs[0].Read
			if result.Jobs[0].Write.IOPS > 0 {
				side = result.Jobs[0].Write
			}
			b.ReportMetric(side.IOPS, "IO/s")
			b.ReportMetric(side.ClatNS.Percentile["50.000000"]/1000, "µs-p50")
			b.ReportMetric(side.ClatNS.Percentile["99.000000"]/1000, "µs-p99")
		})
	}
}
