#!/usr/bin/env bash
# The first process of a made host: its own mounts, then an SSH server that only keys open.
#
#   host.sh FOLDER ADDRESS PORT NAME [PATH...]     PATH: what must stay visible although it is in /tmp
#
# Started in namespaces of its own (network, mounts, processes, name), so nothing here is seen
# outside, and the end of this process is the end of the host.
set -euo pipefail
folder="$1" address="$2" port="$3" name="$4"
shift 4

mount --make-rprivate /
umount -l /run/netns 2>/dev/null || true # or this host would hold the others' networks
hostname "$name"

# A home of its own, by the table of users: the real one may hold the Python that all share.
sed "s#^root:\(.*\):/root:#root:\1:$folder/home:#" /etc/passwd >"$folder/passwd"
mount --bind "$folder/passwd" /etc/passwd

number=0
for path in "$@"; do
  mkdir -p "$folder/kept/$number"
  mount --bind "$path" "$folder/kept/$number"
  number=$((number + 1))
done
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd "$folder/tmp"
chmod 1777 "$folder/tmp"
mount --bind "$folder/tmp" /tmp
number=0
for path in "$@"; do
  mkdir -p "$path"
  mount --bind "$folder/kept/$number" "$path"
  number=$((number + 1))
done

cd /
exec /usr/sbin/sshd -D -e -f /dev/null -p "$port" -h "$folder/host_key" \
  -o "ListenAddress=$address" -o "AuthorizedKeysFile=$folder/authorized_keys" -o StrictModes=no \
  -o UsePAM=no -o PasswordAuthentication=no -o PermitRootLogin=prohibit-password \
  -o PidFile=none -o PrintMotd=no -o PrintLastLog=no
