# SPDX-License-Identifier: GPL-3.0-or-later
"""The role nvidia_driver by dnf, pacman and runfile, through a driver's whole life on the depot's fixture repositories.

Package managers, module streams, version locks and runfiles are real; what is in the packages is not
(tests/fleet/depot/README.md). The tests of one node build on each other, in the order in which they stand.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from harness import Driver, Fleet, interrupted, long, running, secure_boot

pytestmark = pytest.mark.skipif(
    not long("nvidia_driver"),
    reason="a driver's whole life: GPUFLEET_LONG=nvidia_driver or GPUFLEET_NIGHTLY=1",
)

RHEL, ARCH = "rhel", "arch"
# The containers' kernel is the host's: no repository has headers of it under its own name.
HEADERS = {RHEL: "kernel-devel-matched", ARCH: "linux-headers"}
_DRIVER = Driver({node: {"mirror_profile": "depot", "kernel_headers": headers} for node, headers in HEADERS.items()})
drive, settled = _DRIVER.drive, _DRIVER.settled
DRIVER_RPMS = "rpm -qa --qf '%{NAME} %{VERSION}\\n' '*nvidia*' | sort"
MODULE = 'modinfo -F version "$(find /lib/modules -name nvidia.ko)"'
# The installer looks for the distribution's own folder of libraries; the containers are made of two distributions.
LIBRARIES = "find /usr/lib /usr/lib64 -name 'libnvidia-ml.so.[0-9]*.*' -printf '%f\\n' 2>/dev/null; true"
LICENCE = 'modinfo -F license "$(find /lib/modules -name nvidia.ko)"'


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with running("driver-methods", {RHEL: "rhel9-like:t4-nodriver", ARCH: "arch-like:t4-nodriver"}) as fleet:
        yield fleet


def fixture_file(fleet: Fleet, node: str, name: str, there: bool = True) -> None:
    """Let something go wrong on a node, or right again."""
    path = f"/etc/gpufleet-fixture/{name}"
    fleet.sh(node, f"mkdir -p /etc/gpufleet-fixture; touch {path}" if there else f"rm -f {path}")


# In the place of dracut and mkinitcpio, which would want a kernel of the node's own: what the system would read of modprobe's
# settings when it boots, and the arguments.
INITRAMFS_STAND_IN = r"""#!/bin/sh
{ echo "by STAND_IN $*"; cat /etc/modprobe.d/*.conf 2>/dev/null; true; } > /boot/initramfs-stand-in.img
"""
IMAGE = "cat /boot/initramfs-stand-in.img 2>/dev/null; true"


def initramfs_tool(fleet: Fleet, node: str, name: str) -> None:
    """Give a node a kernel in /boot and the tool that makes its initramfs."""
    script = INITRAMFS_STAND_IN.replace("STAND_IN", name)
    fleet.sh(node, f"cat > /usr/local/bin/{name} <<'EOF'\n{script}EOF\nchmod 755 /usr/local/bin/{name}")
    fleet.sh(node, "mkdir -p /boot; echo kernel > /boot/vmlinuz-stand-in")


# -- RHEL family -----------------------------------------------------------------------------------------------------------


def rpm_versions(fleet: Fleet) -> set[str]:
    """The versions that the driver's packages have."""
    return {line.split()[1] for line in fleet.sh(RHEL, DRIVER_RPMS).splitlines()}


def test_rhel_check_of_a_bare_node_changes_nothing(fleet: Fleet) -> None:
    before = fleet.tree(RHEL)
    play = drive(fleet, RHEL, "--check")
    assert play.drift(RHEL)
    assert fleet.tree(RHEL) == before


def test_rhel_has_no_modules_that_the_firmware_trusts(fleet: Fleet) -> None:
    """NVIDIA's precompiled ones are signed with NVIDIA's key: told before the first change."""
    before = fleet.tree(RHEL)
    with secure_boot(fleet, RHEL):
        refused = drive(fleet, RHEL, ok=False, version="580.105.08", secure_boot="signed")
    said = " ".join(refused.output.split())
    assert "secure-boot: " in said and "no signed modules" in said and "stage_mok" in said, str(refused)
    assert fleet.tree(RHEL) == before


def test_rhel_installs_an_exact_version_from_its_stream(fleet: Fleet) -> None:
    wish: dict[str, Any] = {"version": "580.105.08"}
    initramfs_tool(fleet, RHEL, "dracut")
    drive(fleet, RHEL, **wish)
    image = fleet.sh(RHEL, IMAGE)
    assert image.startswith("by dracut --regenerate-all --force") and "blacklist nouveau" in image
    versions = dict(line.split() for line in fleet.sh(RHEL, DRIVER_RPMS).splitlines())
    driver = {name: version for name, version in versions.items() if "nvidia" in name}
    assert set(driver.values()) == {"580.105.08"}, driver
    assert {"kmod-nvidia-open-dkms", "nvidia-driver-cuda", "nvidia-persistenced"} <= set(driver)
    assert "nvidia-driver" not in driver, "headless: nothing of the desktop"
    assert "stream=580-open" in fleet.sh(RHEL, "cat /etc/dnf/modules.d/nvidia-driver.module")
    assert fleet.sh(RHEL, MODULE) == "580.105.08"
    assert fleet.sh(RHEL, LICENCE) == "Dual MIT/GPL"
    settled(fleet, RHEL, **wish)


def test_rhel_lock_keeps_an_update_of_the_system_away(fleet: Fleet) -> None:
    assert "580.105.08" in fleet.sh(RHEL, "dnf -q versionlock list")
    fleet.sh(RHEL, "dnf -q -y upgrade")
    assert fleet.sh(RHEL, MODULE) == "580.105.08"


@pytest.mark.parametrize(
    "edit",
    ["/nvidia-driver-cuda-libs/d", "s/580[.]105[.]08/580.126.20/", "d"],
    ids=["one gone", "another version", "empty"],
)
def test_rhel_locks_that_were_edited_are_written_again(fleet: Fleet, edit: str) -> None:
    before = fleet.sh(RHEL, "dnf -q versionlock list | sort")
    fleet.sh(RHEL, f"sed -i '{edit}' /etc/dnf/plugins/versionlock.list")
    healed = drive(fleet, RHEL, version="580.105.08")
    assert "hold:nvidia-driver-cuda-libs" in healed.drift(RHEL)
    assert not [key for key in healed.drift(RHEL) if not key.startswith("hold:")]
    assert fleet.sh(RHEL, "dnf -q versionlock list | sort") == before
    settled(fleet, RHEL, version="580.105.08")


@pytest.mark.parametrize("version", ["580.126.20", "580.105.08"], ids=["up", "down"])
def test_rhel_goes_up_and_down(fleet: Fleet, version: str) -> None:
    drive(fleet, RHEL, version=version)
    assert rpm_versions(fleet) == {version}
    assert fleet.sh(RHEL, MODULE) == version
    settled(fleet, RHEL, version=version)


def test_rhel_what_is_no_longer_to_be_held_is_let_go(fleet: Fleet) -> None:
    locks = "dnf -q versionlock list | grep nvidia; true"
    drive(fleet, RHEL, version="580.105.08", hold=False)
    assert fleet.sh(RHEL, locks) == ""
    settled(fleet, RHEL, version="580.105.08", hold=False)
    drive(fleet, RHEL, version="580.105.08")
    assert "580.105.08" in fleet.sh(RHEL, locks)


def test_rhel_changes_branch_with_its_stream(fleet: Fleet) -> None:
    drive(fleet, RHEL, branch="590")
    assert fleet.sh(RHEL, MODULE) == "590.48.01"
    assert "stream=590-open" in fleet.sh(RHEL, "cat /etc/dnf/modules.d/nvidia-driver.module")
    settled(fleet, RHEL, branch="590")


def test_rhel_changes_flavour(fleet: Fleet) -> None:
    wish: dict[str, Any] = {"branch": "580", "flavour": "proprietary"}
    drive(fleet, RHEL, **wish)
    assert fleet.sh(RHEL, LICENCE) == "NVIDIA"
    assert fleet.rc(RHEL, "rpm -q kmod-nvidia-open-dkms") != 0
    assert "stream=580-dkms" in fleet.sh(RHEL, "cat /etc/dnf/modules.d/nvidia-driver.module")
    settled(fleet, RHEL, **wish)


def test_rhel_a_module_that_does_not_build_is_said_and_healed(fleet: Fleet) -> None:
    fixture_file(fleet, RHEL, "dkms-fails")
    try:
        failed = drive(fleet, RHEL, ok=False, version="580.105.08")
        assert "linux/vmalloc.h" in failed.output, str(failed)
    finally:
        fixture_file(fleet, RHEL, "dkms-fails", there=False)
    drive(fleet, RHEL, version="580.105.08")
    assert fleet.sh(RHEL, MODULE) == "580.105.08"
    settled(fleet, RHEL, version="580.105.08")


def test_rhel_dnf_that_was_killed_is_healed(fleet: Fleet) -> None:
    """Killed while a package's script runs: rpm has some packages in both versions, the module is the old one."""
    with interrupted(fleet, RHEL):
        drive(fleet, RHEL, ok=False, version="580.126.20")
    assert fleet.sh(RHEL, "rpm -qa --qf '%{NAME}\\n' '*nvidia*' | sort | uniq -d")
    drive(fleet, RHEL, version="580.126.20")
    assert fleet.sh(RHEL, "rpm -qa --qf '%{NAME}\\n' '*nvidia*' | sort | uniq -d") == ""
    assert rpm_versions(fleet) == {"580.126.20"}
    assert fleet.sh(RHEL, MODULE) == "580.126.20"
    settled(fleet, RHEL, version="580.126.20")


def test_rhel_another_method_needs_consent(fleet: Fleet) -> None:
    wish = fleet.nvidia_runfile("580.126.20")
    before = fleet.tree(RHEL)
    refused = drive(fleet, RHEL, ok=False, **wish)
    assert "nvidia_driver_switch_method" in refused.output, str(refused)
    assert fleet.tree(RHEL) == before


def test_rhel_switches_to_the_runfile_and_back(fleet: Fleet) -> None:
    """In the same version, so that library and module alone would look as wanted."""
    assert fleet.sh(RHEL, MODULE) == "580.126.20"
    wish = {**fleet.nvidia_runfile("580.126.20"), "switch_method": True}
    drive(fleet, RHEL, **wish)
    assert fleet.sh(RHEL, "rpm -qa '*nvidia*'") == ""
    assert fleet.sh(RHEL, MODULE) == "580.126.20"
    assert fleet.rc(RHEL, "test -x /usr/bin/nvidia-uninstall") == 0
    assert fleet.sh(RHEL, LIBRARIES) == "libnvidia-ml.so.580.126.20"
    settled(fleet, RHEL, **wish)
    drive(fleet, RHEL, method="nvidia_repo", switch_method=True)
    assert fleet.rc(RHEL, "test -e /usr/bin/nvidia-uninstall") != 0
    assert fleet.rc(RHEL, "rpm -q nvidia-driver-cuda kmod-nvidia-open-dkms") == 0


NVIDIA_KEYS = "rpm -q gpg-pubkey --qf '%{SUMMARY}\\n' | grep -ci nvidia"


def test_rhel_removal_leaves_the_repository_to_the_role_cuda(fleet: Fleet) -> None:
    record = "/var/lib/gpufleet/cuda/12.4.toolkit"
    fleet.sh(RHEL, f"mkdir -p {record.rpartition('/')[0]}; printf 'method=repository\\n' > {record}")
    try:
        drive(fleet, RHEL, state="absent")
        assert fleet.sh(RHEL, "rpm -qa '*nvidia*' dkms gcc epel-release") == ""
        assert fleet.sh(RHEL, "cat /etc/yum.repos.d/gpufleet-nvidia.repo").startswith("#")
        assert fleet.rc(RHEL, "test -s /etc/pki/rpm-gpg/RPM-GPG-KEY-gpufleet-nvidia") == 0
        assert fleet.sh(RHEL, NVIDIA_KEYS) == "1"
        settled(fleet, RHEL, state="absent")
    finally:
        fleet.sh(RHEL, f"rm {record}")


def test_rhel_removal_leaves_nothing(fleet: Fleet) -> None:
    drive(fleet, RHEL, state="absent", nouveau_back=True)
    assert "blacklist nouveau" not in fleet.sh(RHEL, IMAGE), "nouveau is back in the initramfs, too"
    assert fleet.sh(RHEL, "rpm -qa '*nvidia*' dkms gcc epel-release") == ""
    assert fleet.sh(RHEL, "find /lib/modules -name 'nvidia*'; ls /var/lib/dkms 2>/dev/null") == ""
    assert (
        fleet.sh(
            RHEL, "cat /etc/yum.repos.d/*nvidia* /etc/dnf/plugins/versionlock.list 2>/dev/null | grep nvidia; true"
        )
        == ""
    )
    assert fleet.sh(RHEL, f"{NVIDIA_KEYS}; true") == "0"
    assert "580" not in fleet.sh(RHEL, "cat /etc/dnf/modules.d/nvidia-driver.module 2>/dev/null; true")
    settled(fleet, RHEL, state="absent")


NGINX = "[old]\\nname=old\\nbaseurl=https://depot.gpufleet.test/rpm/nginx/9/x86_64/\\ngpgcheck=0\\nmodule_hotfixes=1\\n"


def test_rhel_upgrades_the_system_by_consent(fleet: Fleet) -> None:
    """When a driver comes to a node that has none."""
    fleet.sh(RHEL, f"printf '{NGINX}' > /etc/yum.repos.d/old.repo; dnf -q -y install nginx-1.24.0")
    for consent, version in ((False, "1.24.0"), (True, "1.30.4")):
        drive(fleet, RHEL, version="580.105.08", system_update=consent)
        assert fleet.sh(RHEL, "rpm -q --qf '%{VERSION}' nginx") == version
        assert rpm_versions(fleet) == {"580.105.08"}
        drive(fleet, RHEL, state="absent")
    fleet.sh(RHEL, "dnf -q -y remove nginx; rm /etc/yum.repos.d/old.repo")


def test_rhel_10_has_no_streams_and_the_lock_keeps_the_branch(fleet: Fleet) -> None:
    """The same node under the name of the next release, with a repository that has no modules."""
    release = "/etc/os-release /etc/redhat-release /etc/rocky-release"
    fleet.sh(RHEL, f"for f in {release}; do [ ! -e $f ] || sed -i 's/9[.]4/10.0/g; s/el9/el10/g' $f; done")
    # The fixtures have one key, under its name in the repository for 9
    key = "https://developer.download.nvidia.com/compute/cuda/repos/rhel10/x86_64/D42D0685.pub"
    drive(fleet, RHEL, version="580.105.08", repo_key_url=key)
    assert "rhel10" in fleet.sh(RHEL, "cat /etc/yum.repos.d/*nvidia*")
    # dnf leaves an empty file of a stream that was left
    assert "enabled" not in fleet.sh(RHEL, "cat /etc/dnf/modules.d/nvidia-driver.module 2>/dev/null; true")
    assert "590.48.01" in fleet.sh(RHEL, "dnf -q --disableplugin=versionlock repoquery nvidia-driver-cuda")
    fleet.sh(RHEL, "dnf -q -y upgrade")
    assert rpm_versions(fleet) == {"580.105.08"}
    assert fleet.sh(RHEL, MODULE) == "580.105.08"
    settled(fleet, RHEL, version="580.105.08", repo_key_url=key)
    drive(fleet, RHEL, state="absent")
    assert fleet.sh(RHEL, "rpm -qa '*nvidia*' dkms gcc epel-release") == ""


# -- Arch ------------------------------------------------------------------------------------------------------------------


def test_arch_check_of_a_bare_node_changes_nothing(fleet: Fleet) -> None:
    before = fleet.tree(ARCH)
    play = drive(fleet, ARCH, "--check", "--diff")
    assert "package:nvidia-open-dkms" in play.drift(ARCH)
    assert fleet.tree(ARCH) == before


def test_arch_has_no_repository_of_nvidias(fleet: Fleet) -> None:
    before = fleet.tree(ARCH)
    refused = drive(fleet, ARCH, ok=False, method="nvidia_repo")
    assert "no package repository for Archlinux" in refused.output and "nvidia_driver_method: runfile" in refused.output
    assert fleet.tree(ARCH) == before


def test_arch_installs_what_the_repository_has(fleet: Fleet) -> None:
    fleet.arch_state(ARCH, "arch-before")
    initramfs_tool(fleet, ARCH, "mkinitcpio")
    drive(fleet, ARCH)
    image = fleet.sh(ARCH, IMAGE)
    assert image.startswith("by mkinitcpio -P") and "blacklist nouveau" in image
    assert (
        fleet.sh(ARCH, "pacman -Q nvidia-open-dkms nvidia-utils")
        == "nvidia-open-dkms 590.44.01-1\nnvidia-utils 590.44.01-1"
    )
    assert fleet.sh(ARCH, MODULE) == "590.44.01"
    settled(fleet, ARCH)


def test_arch_system_upgrade_leaves_the_driver_alone(fleet: Fleet) -> None:
    fleet.arch_state(ARCH, "arch")
    fleet.sh(ARCH, "pacman -Su --noconfirm")
    assert fleet.sh(ARCH, MODULE) == "590.44.01"


def test_arch_holds_that_were_edited_are_written_again(fleet: Fleet) -> None:
    assert fleet.sh(ARCH, "pacman-conf IgnorePkg").split() == ["nvidia-open-dkms", "nvidia-utils"]
    fleet.sh(ARCH, "sed -i 's/^IgnorePkg = .*/IgnorePkg = linux/' /etc/pacman.conf")
    healed = drive(fleet, ARCH)
    assert healed.drift(ARCH) == {"hold:nvidia-open-dkms", "hold:nvidia-utils"}
    drive(fleet, ARCH, hold=False)
    assert fleet.sh(ARCH, "pacman-conf IgnorePkg") == ""
    settled(fleet, ARCH, hold=False)
    drive(fleet, ARCH)
    assert fleet.sh(ARCH, "pacman-conf IgnorePkg").split() == ["nvidia-open-dkms", "nvidia-utils"]
    assert fleet.sh(ARCH, MODULE) == "590.44.01"
    settled(fleet, ARCH)


def test_arch_goes_up_by_wish_and_down_from_what_pacman_kept(fleet: Fleet) -> None:
    for version in ("590.48.01", "590.44.01"):
        drive(fleet, ARCH, version=version)
        assert fleet.sh(ARCH, MODULE) == version
        assert fleet.sh(ARCH, "pacman -Q nvidia-utils") == f"nvidia-utils {version}-1"
        settled(fleet, ARCH, version=version)


def test_arch_a_version_that_is_nowhere_is_refused(fleet: Fleet) -> None:
    refused = drive(fleet, ARCH, ok=False, version="580.95.05")
    assert "590.48.01" in refused.output
    assert fleet.sh(ARCH, MODULE) == "590.44.01"


PACMAN_LOCK = "/var/lib/pacman/db.lck"


def test_arch_pacman_that_was_killed_is_healed(fleet: Fleet) -> None:
    """Killed while a package's script runs: the packages are the new ones, the module is the old one, the lock is still there."""
    with interrupted(fleet, ARCH):
        drive(fleet, ARCH, ok=False, version="590.48.01")
    assert fleet.rc(ARCH, f"test -e {PACMAN_LOCK}") == 0
    drive(fleet, ARCH, version="590.48.01")
    assert fleet.rc(ARCH, f"test -e {PACMAN_LOCK}") != 0
    assert fleet.sh(ARCH, MODULE) == "590.48.01"
    settled(fleet, ARCH, version="590.48.01")


def test_arch_pacman_that_was_killed_between_files_and_database_is_healed(fleet: Fleet) -> None:
    """It lays the files down before it writes whose they are."""
    fleet.sh(
        ARCH,
        f"rm /var/lib/pacman/local/nvidia-utils-*/desc /var/lib/pacman/local/nvidia-utils-*/files; : > {PACMAN_LOCK}",
    )
    drive(fleet, ARCH, version="590.48.01")
    assert fleet.sh(ARCH, "pacman -Q nvidia-utils") == "nvidia-utils 590.48.01-1"
    assert fleet.sh(ARCH, "pacman -Qo /usr/bin/nvidia-smi").endswith("is owned by nvidia-utils 590.48.01-1")
    settled(fleet, ARCH, version="590.48.01")


def test_arch_a_lock_that_is_held_is_left_alone(fleet: Fleet) -> None:
    fleet.sh(
        ARCH,
        f"setsid sh -c 'exec 3> {PACMAN_LOCK}; exec sleep 600' > /dev/null 2>&1 < /dev/null & echo $! > /run/holder",
    )
    try:
        refused = drive(fleet, ARCH, ok=False, force=True)
        assert "unable to lock database" in refused.output, str(refused)
        assert fleet.rc(ARCH, f"test -e {PACMAN_LOCK}") == 0
    finally:
        fleet.sh(ARCH, f"kill $(cat /run/holder); rm -f {PACMAN_LOCK}")


def test_arch_switches_to_the_runfile_and_back(fleet: Fleet) -> None:
    wish = fleet.nvidia_runfile("580.126.20")
    before = fleet.tree(ARCH)
    assert "nvidia_driver_switch_method" in drive(fleet, ARCH, ok=False, **wish).output
    assert fleet.tree(ARCH) == before
    drive(fleet, ARCH, switch_method=True, **wish)
    assert fleet.sh(ARCH, "pacman -Qq | grep -E '^nvidia'; true") == ""
    assert fleet.sh(ARCH, MODULE) == "580.126.20"
    settled(fleet, ARCH, **wish)
    drive(fleet, ARCH, method="distribution", switch_method=True)
    assert fleet.rc(ARCH, "test -e /usr/bin/nvidia-uninstall") != 0
    assert fleet.sh(ARCH, MODULE) == "590.48.01"
    settled(fleet, ARCH, method="distribution")


def test_arch_removal_leaves_nothing(fleet: Fleet) -> None:
    """Not even what a killed pacman laid down without writing whose it is, and an old version's tree whose sources are gone."""
    fleet.sh(ARCH, "rm /var/lib/pacman/local/nvidia-utils-*/desc /var/lib/pacman/local/nvidia-utils-*/files")
    fleet.sh(ARCH, "mkdir -p /var/lib/dkms/nvidia/1.2.3; ln -s /usr/src/nvidia-1.2.3 /var/lib/dkms/nvidia/1.2.3/source")
    drive(fleet, ARCH, state="absent")
    assert fleet.sh(ARCH, "pacman -Qq | grep -E 'nvidia|dkms|gcc|^make|linux-headers'; true") == ""
    assert (
        fleet.sh(ARCH, "grep -E 'gpufleet.llm|IgnorePkg' /etc/pacman.conf; find /lib/modules -name 'nvidia*'; true")
        == ""
    )
    assert (
        fleet.sh(ARCH, "ls /var/lib/dkms 2>/dev/null; ls -d /usr/bin/nvidia* /usr/lib/libnvidia* 2>/dev/null; true")
        == ""
    )
    settled(fleet, ARCH, state="absent")


# A repository on the node itself with the second version of a package whose first is installed
PACMAN_OTHER = r"""
mkdir -p /srv/local; cd /srv/local; python3 - <<'EOF'
import hashlib, io, pathlib, tarfile
def pack(name, member, lines):
    with tarfile.open(name, "w:gz") as archive:
        header, data = tarfile.TarInfo(member), ("\n".join(lines) + "\n").encode()
        header.size = len(data)
        archive.addfile(header, io.BytesIO(data))
for version in ("1-1", "2-1"):
    file = f"gpufleet-other-{version}-any.pkg.tar.gz"
    pack(file, ".PKGINFO", ["pkgname = gpufleet-other", f"pkgver = {version}", "pkgdesc = a fixture", "arch = any", "size = 0"])
data = pathlib.Path(file).read_bytes()
rows = {"FILENAME": file, "NAME": "gpufleet-other", "VERSION": version, "CSIZE": len(data), "ARCH": "any",
        "SHA256SUM": hashlib.sha256(data).hexdigest()}
pack("other.db", f"gpufleet-other-{version}/desc", [f"%{key}%\n{value}\n" for key, value in rows.items()])
EOF
pacman -U --noconfirm gpufleet-other-1-1-any.pkg.tar.gz
printf '[other]\nSigLevel = Never\nServer = file:///srv/local\n' >> /etc/pacman.conf
pacman -Sy --noconfirm
"""


def test_arch_upgrades_the_system_by_consent(fleet: Fleet) -> None:
    """When a driver comes to a node that has none."""
    fleet.sh(ARCH, PACMAN_OTHER)
    for consent, version in ((False, "1-1"), (True, "2-1")):
        drive(fleet, ARCH, system_update=consent)
        assert fleet.sh(ARCH, "pacman -Q gpufleet-other") == f"gpufleet-other {version}"
        assert fleet.sh(ARCH, MODULE) == "590.48.01"
        drive(fleet, ARCH, state="absent")


# -- runfile ---------------------------------------------------------------------------------------------------------------


def test_runfile_failure_is_told_from_the_installers_log(fleet: Fleet) -> None:
    fixture_file(fleet, ARCH, "build-fails")
    try:
        failed = drive(fleet, ARCH, ok=False, **fleet.nvidia_runfile("580.105.08"))
    finally:
        fixture_file(fleet, ARCH, "build-fails", there=False)
    assert "Building kernel modules" in failed.output
    assert "assignment of read-only member" in failed.output, str(failed)
    assert "take branch 580 or newer" in failed.output
    assert fleet.rc(ARCH, "test -e /usr/bin/nvidia-smi") != 0


def test_runfile_with_another_sha256_is_not_started(fleet: Fleet) -> None:
    wish = {**fleet.nvidia_runfile("580.105.08"), "runfile_sha256": "0" * 64}
    failed = drive(fleet, ARCH, ok=False, **wish)
    assert "0" * 64 in failed.output
    assert fleet.rc(ARCH, "test -e /usr/bin/nvidia-smi") != 0


def test_runfile_killed_halfway_is_healed(fleet: Fleet) -> None:
    wish = fleet.nvidia_runfile("580.105.08")
    fixture_file(fleet, ARCH, "killed-halfway")
    try:
        drive(fleet, ARCH, ok=False, **wish)
    finally:
        fixture_file(fleet, ARCH, "killed-halfway", there=False)
    drive(fleet, ARCH, **wish)
    assert fleet.sh(ARCH, MODULE) == "580.105.08"
    assert fleet.sh(ARCH, LIBRARIES) == "libnvidia-ml.so.580.105.08"
    settled(fleet, ARCH, **wish)


@pytest.mark.parametrize("runfile_kept", [True, False], ids=["runfile there", "runfile gone"])
def test_runfile_killed_halfway_is_removed(fleet: Fleet, runfile_kept: bool) -> None:
    """The libraries are there and the uninstaller is not: the installer's own database tells what goes."""
    drive(fleet, ARCH, state="absent")
    fixture_file(fleet, ARCH, "killed-halfway")
    try:
        drive(fleet, ARCH, ok=False, **fleet.nvidia_runfile("580.105.08"))
    finally:
        fixture_file(fleet, ARCH, "killed-halfway", there=False)
    assert fleet.sh(ARCH, LIBRARIES) == "libnvidia-ml.so.580.105.08"
    assert fleet.rc(ARCH, "test -e /usr/bin/nvidia-uninstall") != 0
    if not runfile_kept:
        fleet.sh(ARCH, "rm -r /var/tmp/gpufleet-nvidia-driver")
    drive(fleet, ARCH, state="absent")
    nothing_of_a_runfile(fleet)
    settled(fleet, ARCH, state="absent")


@pytest.mark.parametrize("version", ["580.126.20", "580.105.08"], ids=["up", "down"])
def test_runfile_goes_up_and_down(fleet: Fleet, version: str) -> None:
    wish = fleet.nvidia_runfile(version)
    drive(fleet, ARCH, **wish)
    assert fleet.sh(ARCH, MODULE) == version
    assert fleet.sh(ARCH, LIBRARIES) == f"libnvidia-ml.so.{version}"
    settled(fleet, ARCH, **wish)


def test_runfile_older_than_the_kernel_is_refused_before_the_first_change(fleet: Fleet) -> None:
    before = fleet.tree(ARCH)
    refused = drive(fleet, ARCH, ok=False, **fleet.nvidia_runfile("525.85.05"))
    assert "525" in refused.output and "580" in refused.output
    assert fleet.tree(ARCH) == before


def nothing_of_a_runfile(fleet: Fleet) -> None:
    """Nothing that a runfile brings is on the node."""
    assert fleet.sh(ARCH, LIBRARIES) == ""
    places = (
        "/usr/bin/nvidia* /usr/lib/libnvidia* /usr/lib/libcuda* /usr/src/nvidia* /var/lib/nvidia /var/tmp/gpufleet*"
    )
    assert fleet.sh(ARCH, f"ls -d {places} 2>/dev/null; true") == ""
    assert fleet.sh(ARCH, "find /lib/modules -name 'nvidia*'; ls /var/lib/dkms 2>/dev/null; true") == ""


def test_runfile_removal(fleet: Fleet) -> None:
    drive(fleet, ARCH, state="absent")
    nothing_of_a_runfile(fleet)
    settled(fleet, ARCH, state="absent")
