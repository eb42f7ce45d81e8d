#!/bin/sh
# The first process of a guest: mounts, modules, and how a guest reports to the test what it sees.
# One line per observation, so that the test can wait for it: `guest: ok …`, `guest: value NAME …`, `guest: FAILED …`.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
say() { echo "guest: $*"; }
finish() { sync; poweroff -f; }
fail() { say "FAILED $*"; finish; }
say up
while read -r module; do insmod "$module" || fail "insmod $module"; done </modules
