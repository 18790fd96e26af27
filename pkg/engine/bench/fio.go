package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"time"
)

// ErrNoFio: the plain file's side of every comparison needs fio.
var ErrNoFio = errors.New("fio is not in PATH; install it (Debian, Ubuntu: apt-get install fio)")

// fioJob is one run of fio on a plain file.
type fioJob struct {
	file  string
	rw    string // fio's name of the pattern
	bytes int
	depth int
	sync  bool          // fdatasync after every write
	size  int64         // with no time: written once
	time  time.Duration // 0: until all is written
}

type fioResult struct {
	Jobs []struct {
		Error int
		Read  fioSide
		Write fioSide
	}
}

type fioSide struct {
	IOPS    float64
	Latency struct{ Max float64 } `json:"clat_ns"`
}

// run runs the job and returns requests a second.
func (j fioJob) run(ctx context.Context) (float64, error) {
	side, err := j.measure(ctx)
	return side.IOPS, err
}

// measure runs the job.
func (j fioJob) measure(ctx context.Context) (side fioSide, err error) {
	path, err := exec.LookPath("fio")
	if err != nil {
		return side, ErrNoFio
	}
	args := []string{
		"--name=plain", "--filename=" + j.file, "--rw=" + j.rw, "--bs=" + strconv.Itoa(j.bytes), "--iodepth=" + strconv.Itoa(j.depth),
		"--size=" + strconv.FormatInt(j.size, 10), "--ioengine=io_uring", "--direct=1", "--output-format=json", "--randrepeat=0",
		"--thread", // a job in a process of its own would outlive fio when that is killed
	}
	if j.time > 0 {
		args = append(args, "--time_based", "--runtime="+strconv.FormatInt(j.time.Milliseconds(), 10)+"ms")
	} else {
		args = append(args, "--end_fsync=1")
	}
	if j.sync {
		args = append(args, "--fdatasync=1")
	}
	out, err := exec.CommandContext(ctx, path, args...).Output()
	if cause := context.Cause(ctx); cause != nil {
		return side, cause
	}
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return side, fmt.Errorf("run fio on %s: %w", j.file, err)
	}
	var r fioResult
	if err := json.Unmarshal(out, &r); err != nil {
		return side, fmt.Errorf("read fio's output: %w", err)
	}
	if len(r.Jobs) != 1 || r.Jobs[0].Error != 0 {
		return side, fmt.Errorf("fio on %s ended with an error; run it by hand: fio %v", j.file, args)
	}
	if side = r.Jobs[0].Read; side.IOPS == 0 {
		side = r.Jobs[0].Write
	}
	return side, nil
}
