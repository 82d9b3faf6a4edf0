#!/bin/sh
# Runs inside the root of every node image, after its packages are there: what makes it a machine one can log in to.
set -eu

# Timers that take the package manager's lock on their own would make tests depend on luck; the rest has no hardware.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
            fstrim.timer getty@tty1.service console-getty.service systemd-udevd.service systemd-networkd.service \
            systemd-resolved.service systemd-timesyncd.service systemd-firstboot.service systemd-pcrphase.service \
            sys-kernel-debug.mount sys-kernel-tracing.mount; do
    ln -sf /dev/null "/etc/systemd/system/$unit"
done

# The host key and the authorized key are the fleet's, mounted when a node starts: an image holds no key.
rm -f /etc/ssh/ssh_host_*
systemctl disable ssh-keygen.service 2>/dev/null || true
mkdir -p /etc/ssh/sshd_config.d
cat > /etc/ssh/sshd_config.d/10-fleet.conf <<'CONF'
HostKey /etc/gpufleet/ssh_host_ed25519_key
AuthorizedKeysFile /etc/gpufleet/authorized_keys
PasswordAuthentication no
UseDNS no
MaxStartups 100
CONF

id ops >/dev/null 2>&1 || useradd --create-home --shell /bin/bash ops
usermod -p '*' ops
echo 'ops ALL=(ALL:ALL) NOPASSWD: ALL' > /etc/sudoers.d/ops
chmod 0440 /etc/sudoers.d/ops
mkdir -p /etc/gpufleet

if [ -s /usr/local/share/ca-certificates/gpufleet-depot.crt ]; then
    update-ca-certificates >/dev/null
fi

# A node with a simulated driver shows that driver's files in /proc, from its very first unit on.
cat > /etc/systemd/system/gpufleet-stand-in.service <<'UNIT'
[Unit]
Description=Files of the simulated NVIDIA driver in /proc/driver
DefaultDependencies=no
Before=sysinit.target
ConditionPathIsDirectory=/srv/gpufleet-stand-in/proc-driver

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/mount --bind /srv/gpufleet-stand-in/proc-driver /proc/driver

[Install]
WantedBy=sysinit.target
UNIT
systemctl enable -q gpufleet-stand-in.service

: > /etc/machine-id
rm -f /var/lib/dbus/machine-id /etc/hostname /usr/sbin/policy-rc.d
rm -rf /var/cache/apt/*.bin /var/cache/apt/archives/*.deb /var/lib/apt/lists/* /var/log/*.log /var/log/apt /tmp/*
