package framework

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
)

// A writer's folder in its pod: round has how many rounds it did, errors what it met.
const writerDir = "/tmp/writer"

// StartWriter starts a writer on a device of a pod: round by round it writes a MiB of fresh random bytes to one of eight places, and then reads all of
// them back from the device, past any cache, and compares them with what it wrote. It goes on until StopWriter.
func (f *Flow) StartWriter(p *corev1.Pod, claim string) {
	f.Helper()
	f.Run(p, fmt.Sprintf(`mkdir -p %[1]s; cd %[1]s; cat > run <<'END'
i=0
while [ ! -e stop ]; do
	slot=$((i %% 8))
	head -c 1048576 /dev/urandom > block
	sha256sum < block > sum.$slot
	dd if=block of=%[2]s bs=1M seek=$slot oflag=direct conv=notrunc 2> said || echo "write of place $slot in round $i: $(cat said)" >> errors
	for s in sum.*; do
		dd if=%[2]s bs=1M skip=${s#sum.} count=1 iflag=direct 2> said | sha256sum | cmp -s - $s || echo "read of place ${s#sum.} in round $i: $(cat said)" >> errors
	done
	i=$((i+1)); echo $i > next; mv next round
done
touch stopped
END
		(sh run >/dev/null 2>&1 &)`, writerDir, DeviceDir+claim))
	f.WriterGoesOn(p)
}

// WriterGoesOn waits until a writer did a whole round that began after this call.
func (f *Flow) WriterGoesOn(p *corev1.Pod) {
	f.Helper()
	f.Run(p, fmt.Sprintf(`cd %s; read() { cat round 2>/dev/null || echo 0; }; n=$(read)
		for i in $(seq 1200); do [ $(read) -ge $((n+2)) ] && exit 0; sleep 0.1; done; echo "the writer hangs in round $n" >&2; cat errors >&2; exit 1`, writerDir))
}

// StopWriter ends a writer. What it met is the test's failure.
func (f *Flow) StopWriter(p *corev1.Pod) {
	f.Helper()
	errs := f.Run(p, fmt.Sprintf(`cd %s; touch stop; for i in $(seq 600); do if [ -e stopped ]; then cat errors 2>/dev/null || true; exit 0; fi; sleep 0.1; done
		echo "the writer does not end" >&2; exit 1`, writerDir))
	if errs != "" {
		f.Errorf("the writer in pod %s on node %s met:\n%s", p.Name, p.Spec.NodeName, errs)
	}
}
