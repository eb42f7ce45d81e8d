#!/bin/sh
# The outer host's first process: devices, modules, scratch disk, the command, and its exit status to the machine outside.
export PATH=/bulkhead/bin:/usr/sbin:/usr/bin HOME=/root RUST_BACKTRACE=1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup /sys/fs/cgroup
ln -s /proc/self/fd /dev/fd

while read -r module; do
    insmod "$module" || echo "outer host: cannot load $module"
done </modules
ip link set lo up

for port in /sys/class/virtio-ports/*; do
    case $(cat "$port/name") in
        output) output=/dev/${port##*/} ;;
        status) status=/dev/${port##*/} ;;
    esac
done
mount -t ext4 /dev/vda /work && cd /work
if [ -e /dev/kvm ]; then chmod 666 /dev/kvm; fi

sh /bulkhead/command >"$output" 2>&1 </dev/null
code=$?
cd /
umount /work || sync
echo "$code" >"$status"
poweroff -f
