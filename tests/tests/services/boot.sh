# Makes a host of this machine's files, with units and programs of Bulkhead installed, and becomes its systemd.
# It runs in new namespaces of every kind but users': sh boot.sh FOLDER PROGRAMS UNITS KERNEL
set -e
folder=$1 programs=$2 units=$3 kernel=$4
mount -t tmpfs tmpfs "$folder"
cd "$folder"
mkdir upper work root
mount -t overlay overlay -o "lowerdir=/,upperdir=upper,workdir=work" root
cd root
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero full random urandom tty; do
    touch dev/$node
    mount --bind /dev/$node dev/$node
done
mkdir dev/pts dev/shm dev/net
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mknod dev/kvm c 10 232
mknod dev/net/tun c 10 200
ln -s /proc/self/fd dev/fd

# Definitions and services of this machine are not the test's.
rm -rf etc/bulkhead etc/systemd/system/multi-user.target.wants
mkdir -p etc/systemd/system usr/lib/systemd/system-generators
for program in bulkhead bulkhead-vmm bulkhead-block bulkhead-net bulkhead-net-helper image-tool; do
    install -m 755 "$programs/$program" usr/bin/
done
install -m 644 "$units"/system/* usr/lib/systemd/system/
install -m 644 "$units"/sysusers.d/* usr/lib/sysusers.d/
install -m 644 "$units"/tmpfiles.d/* usr/lib/tmpfiles.d/
install -m 755 "$units"/system-generators/* usr/lib/systemd/system-generators/
install -m 644 "$kernel" usr/lib/test-kernel

mkdir -p old
pivot_root . old
umount -l /old
chroot . systemd-sysusers
chgrp kvm /dev/kvm
chmod 660 /dev/kvm
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=basic.target
