#!/usr/bin/env python3
# Copyright: Contributors to the gpufleet.llm project
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A virtual machine under software emulation: a Debian 12 with a kernel, a bootloader and an initramfs of its own.

It shows what a container cannot: modules that load, an initramfs that is rebuilt and then used, reboots. Its PCI bus shows a
Tesla T4 (files mounted over sysfs; there is no card), nouveau is loaded when it boots, and the depot is at its usual address.

`machine.py build` makes the disk once (five minutes and 3 GB in the cache); `Machine.start()` boots a copy of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from fleetlib import aptsources, gpu, images, pki
from fleetlib.host import CACHE, FleetError, lock, run, say, wait_for

TOOLS = {"qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils", "mkfs.ext4": "e2fsprogs"}
PACKAGES = (
    *(
        "linux-image-amd64",
        "linux-headers-amd64",
        "initramfs-tools",
        "kmod",
        "udev",
        "dkms",
        "gcc",
        "make",
        "libc6-dev",
    ),
    *("grub-pc-bin", "grub-common", "xorriso", "mtools", "findutils"),
)
GRUB = """insmod biosdisk
insmod ext2
set root=(hd0)
linux /vmlinuz root=/dev/vda rw console=ttyS0 net.ifnames=0
initrd /initrd.img
boot
"""
# What makes a debootstrap root a machine that one can log in to. The rest is Debian's own.
SETUP = r"""
set -eu
update-ca-certificates >/dev/null
echo '/dev/vda / ext4 defaults 0 1' > /etc/fstab
echo vm > /etc/hostname
printf '127.0.0.1 localhost vm\n10.0.2.2 depot.gpufleet.test\n' > /etc/hosts
printf '[Match]\nName=eth0\n[Network]\nDHCP=yes\n' > /etc/systemd/network/eth0.network
systemctl enable -q systemd-networkd.service ssh.service
# Under emulation an initramfs with all modules takes six minutes, one with what this machine boots from half a minute.
sed -i 's/^MODULES=.*/MODULES=list/' /etc/initramfs-tools/initramfs.conf
printf 'virtio_pci\nvirtio_blk\next4\n' >> /etc/initramfs-tools/modules
sed -i 's/^COMPRESS=.*/COMPRESS=gzip/' /etc/initramfs-tools/initramfs.conf
update-initramfs -u -k all
# The timers would take apt's lock whenever they like.
for unit in apt-daily.timer apt-daily-upgrade.timer; do ln -sf /dev/null "/etc/systemd/system/$unit"; done
id ops >/dev/null 2>&1 || useradd --create-home --shell /bin/bash ops
usermod -p '*' ops
echo 'ops ALL=(ALL:ALL) NOPASSWD: ALL' > /etc/sudoers.d/ops
chmod 0440 /etc/sudoers.d/ops
# A machine with a card loads nouveau for it when it boots; here there is none, so it is asked for by name.
echo nouveau > /etc/modules-load.d/nouveau.conf
cat > /etc/systemd/system/gpufleet-card.service <<'UNIT'
[Unit]
Description=A card on the PCI bus that is not there
After=systemd-modules-load.service systemd-udev-settle.service
Before=ssh.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/mount --bind /srv/gpufleet-card /sys/bus/pci/devices
[Install]
WantedBy=multi-user.target
UNIT
systemctl enable -q gpufleet-card.service
mkdir -p /tmp/iso/boot/grub
cp /tmp/grub.cfg /tmp/iso/boot/grub/grub.cfg
grub-mkrescue -o /boot.iso /tmp/iso >/dev/null 2>&1
rm -rf /tmp/iso /tmp/grub.cfg /usr/sbin/policy-rc.d /var/cache/apt/archives/*.deb /etc/resolv.conf
echo 'nameserver 10.0.2.3' > /etc/resolv.conf
: > /etc/machine-id
"""


def missing() -> list[str]:
    """Debian packages that this machine lacks for it."""
    return sorted({package for tool, package in TOOLS.items() if not shutil.which(tool)})


def build() -> Path:
    """The folder with disk.img, boot.iso and the login key; made once per recipe."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    digest.update(json.dumps([*aptsources.archives(), pki.ca_sha256()]).encode())
    folder = CACHE / "vm" / digest.hexdigest()[:12]
    if folder.exists():
        return folder
    with lock("vm"):
        if not folder.exists():
            say("building the virtual machine's disk (minutes)")
            partial = folder.with_name(folder.name + ".part")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            _build(partial)
            os.replace(partial, folder)
    return folder


def _build(folder: Path) -> None:
    root = CACHE / "build" / "vm.root"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    run(["tar", "-C", str(root), "-xf", str(images.base_root("bookworm"))])
    main, security = aptsources.archives()
    (root / "etc/apt/sources.list").unlink(missing_ok=True)
    sources = root / "etc/apt/sources.list.d/debian.sources"
    sources.write_text(aptsources.node_sources(main, security, "bookworm"))
    (root / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
    (root / "usr/sbin/policy-rc.d").chmod(0o755)
    shutil.copyfile("/etc/resolv.conf", root / "etc/resolv.conf")
    anchor = root / "usr/local/share/ca-certificates/gpufleet-depot.crt"
    anchor.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(pki.ca_certificate(), anchor)
    images.chroot(root, ["apt-get", "update", "-q"])
    images.chroot(root, ["apt-get", "install", "-y", "-q", "--no-install-recommends", *PACKAGES])
    shutil.copytree(gpu.build() / "t4" / "pci", root / "srv/gpufleet-card", symlinks=True)
    for link in (root / "srv/gpufleet-card").rglob("driver"):
        link.unlink()
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "vm", "-f", str(folder / "id_ed25519")])
    home = root / "home/ops/.ssh"
    (root / "tmp/grub.cfg").write_text(GRUB)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as text:
        text.write(SETUP)
        text.seek(0)
        images.chroot(root, ["sh", "-s"], stdin=text)
    home.mkdir(mode=0o700)
    shutil.copyfile(folder / "id_ed25519.pub", home / "authorized_keys")
    run(["chroot", str(root), "chown", "-R", "ops:ops", "/home/ops/.ssh"])
    shutil.move(str(root / "boot.iso"), folder / "boot.iso")
    run(["mkfs.ext4", "-q", "-d", str(root), str(folder / "disk.img"), "6G"])
    shutil.rmtree(root)


class Machine:
    """A booted copy of the disk."""

    def __init__(self, folder: Path, place: Path) -> None:
        self.folder, self.place = folder, place
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Boot; returns when ops can log in."""
        disk = self.place / "disk.qcow2"
        base = str(self.folder / "disk.img")
        run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, str(disk)])
        self.process = subprocess.Popen(
            [
                "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2048",
                "-display", "none", "-serial", f"file:{self.place}/console.log", "-drive", f"file={disk},if=virtio",
                "-cdrom", str(self.folder / "boot.iso"), "-boot", "d",
                "-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{self.port}-:22", "-device", "virtio-net-pci,netdev=net",
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        wait_for("the virtual machine takes a login", self._ready, 600, interval=3)

    def _ready(self) -> bool:
        if self.process is None or self.process.poll() is not None:
            raise SystemExit("qemu ended while the machine was booting")
        return run([*self.ssh_argv(), "true"], timeout=30).returncode == 0

    def ssh_argv(self) -> list[str]:
        """How this machine logs in to it."""
        options = ["UserKnownHostsFile=/dev/null", "StrictHostKeyChecking=no", "IdentitiesOnly=yes", "BatchMode=yes"]
        options += ["ConnectTimeout=10", "LogLevel=ERROR"]
        flags = [flag for option in options for flag in ("-o", option)]
        return [
            "ssh",
            "-F",
            "none",
            "-i",
            str(self.folder / "id_ed25519"),
            "-p",
            str(self.port),
            *flags,
            "ops@127.0.0.1",
        ]

    def sh(self, script: str, check: bool = True) -> str:
        """Run a root shell script in it; its output, stripped."""
        done = subprocess.run(
            [*self.ssh_argv(), "sudo", "sh"], input=script, capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"rc {done.returncode}: {script}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def inventory(self) -> Path:
        """An inventory with this one machine."""
        host = {
            "ansible_host": "127.0.0.1", "ansible_port": self.port, "ansible_user": "ops",
            "ansible_python_interpreter": "/usr/bin/python3", "ansible_ssh_private_key_file": str(self.folder / "id_ed25519"),
            "ansible_ssh_common_args": "-F none -o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no -o LogLevel=ERROR",
        }  # fmt: skip
        path = self.place / "inventory.yml"
        path.write_text(json.dumps({"all": {"children": {"nodes": {"hosts": {"vm": host}}}}}) + "\n")
        return path

    def stop(self) -> None:
        """Pull the plug."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def depot(port: int = 443) -> Iterator[None]:
    """The depot on this machine's loopback, which the virtual machine sees as 10.0.2.2."""
    argv = [str(HERE.parent / "fleet"), "depot-local", "--port", str(port)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            if process.stdout is None or not process.stdout.readline().startswith("base:"):
                raise FleetError(f"the depot does not start at port {port} of the loopback")
            yield
        finally:
            process.terminate()


if __name__ == "__main__":
    if sys.argv[1:] != ["build"]:
        sys.exit("usage: machine.py build")
    if missing():
        sys.exit(f"missing here: apt-get install {' '.join(missing())}")
    print(build())
