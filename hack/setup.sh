#!/usr/bin/env bash
# hack/setup.sh TARGET...: makes sure that the tools a make target runs are here.
#
# As root on Debian or Ubuntu it installs what is missing. Anywhere else it names what is missing and the command that installs it; then `test` goes on
# (its tests skip and say so) and every other target stops. Where all is there it prints nothing.
set -euo pipefail

# command:package, or file:package, as Debian names them.
declare -A needs=(
	[test]="mkfs.xfs:xfsprogs mkfs.ext4:e2fsprogs blkid:util-linux wipefs:util-linux sfdisk:fdisk losetup:mount mount:mount"
	[demo]="mkfs.xfs:xfsprogs mkfs.ext4:e2fsprogs blkid:util-linux losetup:mount mount:mount"
	[bench]="mkfs.xfs:xfsprogs blkid:util-linux losetup:mount mount:mount fio:fio"
	[bench-peers]="mkfs.xfs:xfsprogs blkid:util-linux losetup:mount mount:mount fio:fio jq:jq qemu-img:qemu-utils qemu-storage-daemon:qemu-system-common"
	[cluster]="runc:runc /usr/lib/cni/ptp:containernetworking-plugins iptables:iptables conntrack:conntrack socat:socat ethtool:ethtool ip:iproute2
		nsenter:util-linux busybox:busybox-static mkfs.xfs:xfsprogs mkfs.ext4:e2fsprogs blkid:util-linux mount:mount"
	[generate]="protoc:protobuf-compiler /usr/include/google/protobuf/timestamp.proto:libprotobuf-dev"
)

# System folders hold mkfs and its like, and are not on every user's path.
PATH=$PATH:/usr/sbin:/sbin

if [ $# -eq 0 ]; then
	echo "usage: hack/setup.sh TARGET...   (targets: ${!needs[*]})" >&2
	exit 2
fi

# Devices that a module may have to be loaded for; what needs them says so if that did not help.
if [ "$(id -u)" = 0 ] && command -v modprobe >/dev/null; then
	[ -e /dev/fuse ] || modprobe -q fuse || true
	[ -e /dev/loop-control ] || modprobe -q loop || true
fi

missing=() packages=() soft=yes
for target in "$@"; do
	if [ -z "${needs[$target]:-}" ]; then
		echo "hack/setup.sh: no target '$target'; there are: ${!needs[*]}" >&2
		exit 2
	fi
	[ "$target" = test ] || soft=no
	for pair in ${needs[$target]}; do
		tool=${pair%%:*} package=${pair##*:}
		if ! command -v "$tool" >/dev/null && [ ! -e "$tool" ]; then
			missing+=("$tool")
			[[ " ${packages[*]} " == *" $package "* ]] || packages+=("$package")
		fi
	done
done
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	export DEBIAN_FRONTEND=noninteractive
	log=$(mktemp)
	trap 'rm -f "$log"' EXIT
	if apt-get update -qq >"$log" 2>&1 && apt-get install -y -qq --no-install-recommends "${packages[@]}" >>"$log" 2>&1; then
		exit 0
	fi
	tail -n 20 "$log" >&2
	echo "hack/setup.sh: apt-get could not install ${packages[*]} (see above); needed for: ${missing[*]}" >&2
	exit 1
fi

{
	echo "missing for 'make $*': ${missing[*]}"
	echo "  Debian, Ubuntu:  sudo apt-get install ${packages[*]}"
	echo "  elsewhere: the packages that hold these commands"
} >&2
[ $soft = yes ]
