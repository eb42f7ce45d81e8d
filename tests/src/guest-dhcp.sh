#!/bin/sh
# What udhcpc calls with the lease it has got.
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
ip address add "$ip/${mask:-24}" dev "$interface"
ip route add default via "$router" dev "$interface"
echo "nameserver $dns" >/etc/resolv.conf
echo "$router" >/gateway
