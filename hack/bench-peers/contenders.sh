# shellcheck shell=bash
# The contenders of hack/bench-peers/run. Each has three functions: NAME_setup once, NAME_fresh before each measurement (sets $target to what fio
# writes to, fully written and with a fresh snapshot under it), NAME_drop after it. They use run's $ground, $work, $SIZE, fill, later and die.
# What a round made is undone by NAME_drop or, when the run ends early, by the undo list; so those undo commands must bear being run twice.

gone() { # gone LOOP: detaches it if it is attached
	[ ! -e "/sys/class/block/${1#/dev/}/loop/backing_file" ] || losetup --detach "$1"
}

now_ms() { echo $(($(date +%s%N) / 1000000)); }

# plain: overwrites of a file that is there. No snapshot: this is what the ground can do.
plain_setup() {
	fill "$ground/plain"
}
plain_fresh() { target=$ground/plain; }
plain_drop() { :; }

# reflink: a file behind a loop device; the snapshot is a reflink of the file, as rawfile-localpv takes it.
reflink_setup() { :; }
reflink_fresh() {
	local vol=$ground/reflink start
	fill "$vol"
	target=$(losetup --find --show --direct-io=on "$vol")
	reflink_loop=$target
	later "gone '$target'"
	start=$(now_ms)
	cp --reflink=always "$vol" "$vol.snapshot"
	sync --file-system "$vol.snapshot"
	snapshot_ms=$(($(now_ms) - start))
}
reflink_drop() {
	losetup --detach "$reflink_loop"
	rm -f "$ground/reflink" "$ground/reflink.snapshot"
}

# qcow2: an overlay with subclusters of 4 KiB, so that a first write copies nothing, over a full image.
qcow2_setup() {
	fill "$ground/raw"
	qemu-img convert -O qcow2 -t none -T none -W -m 8 "$ground/raw" "$ground/base.qcow2"
	rm "$ground/raw"
}
qcow2_fresh() {
	local overlay=$ground/overlay.qcow2
	qemu-img create -q -f qcow2 -o extended_l2=on,cluster_size=128k -F qcow2 -b "$ground/base.qcow2" "$overlay"
	qcow2_export --blockdev "driver=qcow2,node-name=base,read-only=on,file.driver=file,file.filename=$ground/base.qcow2,file.$qcow2_direct" \
		--blockdev "driver=qcow2,node-name=top,backing=base,file.driver=file,file.filename=$overlay,file.$qcow2_direct"
}
readonly qcow2_direct=cache.direct=on,file.aio=io_uring
qcow2_export() { # qcow2_export BLOCKDEV...: exports the node top, and attaches it
	local point=$work/qcow2 deadline
	: >"$point"
	later "rm -f '$point'"
	# Detached by the loop, unmounted by the daemon's end.
	later "qcow2_stop"
	qemu-storage-daemon --daemonize --pidfile "$work/qsd.pid" "$@" --export "type=fuse,id=export,node-name=top,mountpoint=$point,writable=on"
	deadline=$((SECONDS + 30))
	until mountpoint --quiet "$point"; do
		[ "$SECONDS" -lt "$deadline" ] || die "qemu-storage-daemon has not exported the image after 30 s"
		sleep 0.1
	done
	target=$(losetup --find --show --direct-io=on "$point")
	qcow2_loop=$target
}
qcow2_stop() {
	local pid deadline=$((SECONDS + 30))
	if [ -n "${qcow2_loop:-}" ]; then
		gone "$qcow2_loop"
		qcow2_loop=
	fi
	[ -e "$work/qsd.pid" ] || return 0
	pid=$(cat "$work/qsd.pid")
	kill "$pid"
	while [ -e "/proc/$pid" ]; do
		[ "$SECONDS" -lt "$deadline" ] || kill -9 "$pid"
		sleep 0.1
	done
	rm -f "$work/qsd.pid"
	! mountpoint --quiet "$work/qcow2" || umount "$work/qcow2"
}
qcow2_drop() {
	qcow2_stop
	rm -f "$ground/overlay.qcow2"
}

# internal: a full image with qcow2's defaults and an internal snapshot in it. A first write copies the cluster of 64 KiB that the snapshot keeps.
internal_setup() { :; }
internal_fresh() {
	local image=$ground/internal.qcow2
	qemu-img convert -O qcow2 -t none -T none -W -m 8 "$ground/plain" "$image"
	qemu-img snapshot -c snapshot "$image"
	qcow2_export --blockdev "driver=qcow2,node-name=top,file.driver=file,file.filename=$image,file.$qcow2_direct"
}
internal_drop() {
	qcow2_stop
	rm -f "$ground/internal.qcow2"
}

# rowan: a volume of a pool in a folder on the same ground, attached as the engine chooses to.
rowan_bin=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/bin
rowan_is_there() { [ -x "$rowan_bin/rowan-engine" ] && [ -x "$rowan_bin/rowanctl" ]; }
rowanctl() { "$rowan_bin/rowanctl" --socket "$work/rowan/engine.sock" "$@"; }
rowan_setup() {
	local deadline=$((SECONDS + 30)) dir=$work/rowan
	mkdir -p "$dir"
	later "rm -rf '$dir'"
	rowan_rings=$(mktemp -d /dev/shm/bench-peers.XXXXXX)
	later "rm -rf '$rowan_rings'"
	"$rowan_bin/rowan-engine" keeper --keeper-socket "$dir/keeper.sock" >"$dir/keeper.log" 2>&1 &
	rowan_keeper=$!
	later "kill '$rowan_keeper'"
	"$rowan_bin/rowan-engine" --socket "$dir/engine.sock" --state-dir "$dir/state" --ring-dir "$rowan_rings" --keeper-socket "$dir/keeper.sock" \
		--start-keeper=false >"$dir/log" 2>&1 &
	rowan_pid=$!
	later "rowan_stop"
	until rowanctl pool list >/dev/null 2>&1; do
		if [ ! -e "/proc/$rowan_pid" ] || [ "$SECONDS" -ge "$deadline" ]; then
			cat "$dir/log" >&2
			die "rowan-engine does not answer"
		fi
		sleep 0.1
	done
	rowanctl pool create bench --dir "$ground/rowan" --size "$((SIZE * 4))Gi" >&2
}
rowan_stop() {
	rowan_drop || true
	kill "$rowan_pid" && wait "$rowan_pid"
	rm -rf "$ground/rowan"
}
rowan_fresh() { # rowan_fresh [MODE]
	rowan_volume=volume-$round
	rowanctl volume create "$rowan_volume" --size "${SIZE}Gi" --mode "${1:-row}" >&2
	target=$(rowanctl volume attach "$rowan_volume")
	[ -b "$target" ] || die "rowanctl volume attach printed '$target', which is not a block device"
	fill "$target"
	rowanctl snapshot create "snapshot-$round" "$rowan_volume" >&2
}
rowan_drop() {
	[ -n "${rowan_volume:-}" ] || return 0
	rowanctl volume show "$rowan_volume" >&2
	rowanctl volume detach "$rowan_volume" >&2
	rowanctl snapshot delete "snapshot-$round" >&2
	rowanctl volume delete "$rowan_volume" >&2
	rowan_volume=
}

# rowancow: the same in the other mode, which copies what the snapshot keeps out of the way.
rowancow_setup() { :; }
rowancow_fresh() { rowan_fresh cow; }
rowancow_drop() { rowan_drop; }
