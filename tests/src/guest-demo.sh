# The guest's part of the demo. Set by the host: CPUS, KNOWN_HASH, NEW_MIB, URL, PAGE_HASH.

# on_pci DEVICE SYSFS-PATH: it hangs on a PCI bus and its interrupts are MSI-X.
on_pci() {
    device=$(readlink -f "$2/..")
    case $device in
        /sys/devices/pci*) ;;
        *) fail "$1 is not on a PCI bus: $device" ;;
    esac
    [ "$(cat "$device"/msi_irqs/* | sort -u)" = msix ] || fail "$1 has no MSI-X interrupts"
    say "ok $1 is PCI device ${device##*/} with $(ls "$device/msi_irqs" | wc -l) MSI-X vectors"
}

# interrupts DEVICE SYSFS-PATH: how many its vectors have brought.
interrupts() {
    total=0
    for vector in $(ls "$(readlink -f "$2/..")/msi_irqs"); do
        for count in $(sed -n "s/^ *$vector: *\([0-9 ]*\).*/\1/p" /proc/interrupts); do total=$((total + count)); done
    done
    [ "$total" -gt 0 ] || fail "$1 has brought no interrupt"
    say "ok $1 has brought $total interrupts"
}

hash_of() { sha256sum "$1" | cut -d ' ' -f 1; }

[ "$(nproc)" = "$CPUS" ] || fail "$(nproc) CPUs instead of $CPUS"
[ -b /dev/vda ] || fail "no /dev/vda"
[ -e /sys/class/net/eth0 ] || fail "no eth0"
on_pci /dev/vda /sys/block/vda/device
on_pci eth0 /sys/class/net/eth0/device

mount -t ext4 /dev/vda /mnt || fail "mount /dev/vda"
say "ok ext4 on /dev/vda is mounted"
[ "$(hash_of /mnt/known)" = "$KNOWN_HASH" ] || fail "the known file has another hash"
say "ok the known file has its hash"

dd if=/dev/urandom of=/mnt/new bs=1M count="$NEW_MIB" 2>/dev/null || fail "write /mnt/new"
sync
new=$(hash_of /mnt/new)
echo "$new" >/mnt/new.sha256
sync
echo 3 >/proc/sys/vm/drop_caches
[ "$(hash_of /mnt/new)" = "$new" ] || fail "the new file reads back differently"
say "ok $NEW_MIB MiB written, flushed and read back from the disk"
say "value new $new"

ip link set lo up
ip link set eth0 up
udhcpc -q -n -t 10 -T 1 -i eth0 -s /dhcp >/dev/null 2>&1 || fail "no address by DHCP"
gateway=$(cat /gateway)
say "ok eth0 has $(ip -4 address show dev eth0 | sed -n 's/.*inet \([^ ]*\).*/\1/p') by DHCP"
ping -c 3 -W 2 "$gateway" >/dev/null || fail "the gateway $gateway does not answer"
say "ok the gateway $gateway answers"
wget -q -O /page "$URL" || fail "wget $URL"
[ "$(hash_of /page)" = "$PAGE_HASH" ] || fail "the page has another hash"
say "ok $(wc -c </page) bytes fetched from $URL"

interrupts /dev/vda /sys/block/vda/device
interrupts eth0 /sys/class/net/eth0/device
umount /mnt || fail "umount"
say "report: Linux $(uname -r), $(nproc) CPUs, $(sed -n 's/MemTotal: *//p' /proc/meminfo), up for $(cut -d ' ' -f 1 /proc/uptime) s"
say "done"
