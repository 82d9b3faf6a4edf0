# SPDX-License-Identifier: GPL-3.0-or-later
"""The role nvidia_driver by apt through a driver's life: on Debian from NVIDIA's repository, also with NVSwitch, on Ubuntu from
one method to another, killed in the middle, with consents given and not given.

Real package managers, and packages of the depot in the shape of NVIDIA's (tests/fleet/depot/README.md). dnf, pacman and
runfiles are in test_nvidia_driver_methods.py, Debian's real driver in test_nvidia_driver_real.py. The tests of one node build on
each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from harness import Driver, Fleet, gpu_in_use, interrupted, long, running

pytestmark = pytest.mark.skipif(
    not long("nvidia_driver"),
    reason="a driver's whole life: GPUFLEET_LONG=nvidia_driver or GPUFLEET_NIGHTLY=1",
)

D12, D13, UBUNTU, HGX = "d12", "d13", "ubuntu", "hgx"
NODES = {
    D12: "debian12:t4-nodriver",
    D13: "debian13:t4-nodriver",
    UBUNTU: "ubuntu22-like:t4-nodriver",
    HGX: "debian12:hgx-h100-nodriver",
}
COMMON: dict[str, Any] = {
    "mirror_profile": "depot",
    "method": "nvidia_repo",
    # The containers' kernel is the host's: no repository has headers of it.
    "kernel_headers": "",
}
# The fixtures have one key, under the name of the older of NVIDIA's two
KEY = {
    D13: {
        "repo_key_url": "https://developer.download.nvidia.com/compute/cuda/repos/debian13/x86_64/3bf863cc.pub",
    }
}
_DRIVER = Driver({node: {**COMMON, **KEY.get(node, {})} for node in NODES})
drive, settled = _DRIVER.drive, _DRIVER.settled
MODULE = 'modinfo -F version "$(find /lib/modules -name nvidia.ko)"'
BLACKLIST = "/etc/modprobe.d/gpufleet-nouveau.conf"
NVIDIA_SOURCE = "/etc/apt/sources.list.d/gpufleet-nvidia.sources"
# What the node has of the driver, by package: the pin has a version of its own.
DRIVER = (
    "dpkg-query -W -f '${db:Status-Abbrev}|${Package}|${Version}\\n' | tr -d ' ' | grep -E '^.i' | "
    "grep -E 'nvidia|libcuda' | grep -v pinning"
)
# An archive of Ubuntu with its component restricted: the -server series
RESTRICTED = "deb [trusted=yes] https://depot.gpufleet.test/nvidia/distribution/ubuntu jammy restricted"
DISPLAY = "[Service]\\nExecStart=/bin/sleep infinity\\n"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with running("driver-lifecycle", NODES) as fleet:
        yield fleet


def driver(fleet: Fleet, node: str) -> dict[str, str]:
    """Installed packages of a driver -> their driver version."""
    rows = [line.split("|") for line in fleet.sh(node, f"{DRIVER}; true").splitlines()]
    return {name: version.partition("-")[0] for _state, name, version in rows}


@pytest.fixture(scope="module")
def bare(fleet: Fleet) -> dict[str, set[str]]:
    return {node: fleet.debs(node) for node in NODES}


# -- Debian by NVIDIA's repository -----------------------------------------------------------------------------------------

PACKAGE = r"""
set -e
mkdir -p /srv/local /srv/build/DEBIAN; cd /srv/local
{ printf 'Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: gpufleet fixture <fixture@gpufleet.test>\n' "$1" "$2"
  [ -z "$3" ] || echo "$3"; echo 'Description: a fixture'; } > /srv/build/DEBIAN/control
dpkg-deb --build /srv/build $1_$2.deb; rm -r /srv/build
"""
OFFER = r"""
cd /srv/local
for file in *.deb; do
    dpkg-deb --field $file
    printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' $file $(stat -c %s $file) $(sha256sum $file | cut -d' ' -f1)
done > Packages
echo 'deb [trusted=yes] file:/srv/local ./' > /etc/apt/sources.list.d/local.list
"""


def package(fleet: Fleet, node: str, name: str, version: str = "1", relation: str = "") -> None:
    """Make a package with nothing in it."""
    fleet.sh(node, f"set -- {name} {version} {relation!r}; {PACKAGE}")


def installed(fleet: Fleet, node: str, name: str, relation: str = "") -> None:
    """Have such a package on the node."""
    package(fleet, node, name, "1", relation)
    fleet.sh(node, f"cd /srv/local && dpkg --install {name}_1.deb && rm {name}_1.deb")


OTHER = "dpkg-query -W -f '${Version}' gpufleet-other"
KERNELS = "dpkg-query -W -f '${Package}=${Version} ' 'linux-image-*gpufleet'"
FIXTURES = {"gpufleet-other", "linux-image-gpufleet", "linux-image-1-gpufleet"}


def test_check_of_a_bare_debian_13_changes_nothing(fleet: Fleet, bare: dict[str, set[str]]) -> None:
    # There is a newer one of each; the kernel's package then brings another kernel.
    for name in sorted(FIXTURES):
        installed(fleet, D13, name)
        package(fleet, D13, name, "2", "Depends: linux-image-2-gpufleet" if name == "linux-image-gpufleet" else "")
    package(fleet, D13, "linux-image-2-gpufleet", "2")
    fleet.sh(D13, OFFER)
    before = fleet.tree(D13)
    play = drive(fleet, D13, "--check", "--diff")
    assert {f"file:{NVIDIA_SOURCE}", "package:nvidia-driver-cuda"} <= play.drift(D13)
    assert fleet.tree(D13) == before
    assert bare[D13]


@pytest.mark.parametrize("node", [D12, D13])
def test_debian_gets_an_exact_version_from_nvidias_repository(
    fleet: Fleet, bare: dict[str, set[str]], node: str
) -> None:
    """And nouveau, of which it was told to leave it, is left."""
    assert not {"nvidia-driver-cuda"} & bare[node]
    wish = {"version": "580.105.08", "nouveau": "leave"}
    drive(fleet, node, **wish)
    there = driver(fleet, node)
    assert {"nvidia-driver-cuda", "nvidia-kernel-open-dkms", "libcuda1", "nvidia-persistenced"} <= set(there)
    assert set(there.values()) == {"580.105.08"}
    assert fleet.sh(node, MODULE) == "580.105.08"
    assert fleet.rc(node, f"test -e {BLACKLIST}") != 0
    assert fleet.rc(node, "dpkg -s nvidia-driver-pinning-580.105.08") == 0
    settled(fleet, node, **wish)


def test_the_key_comes_from_the_place_that_has_the_announced_one(fleet: Fleet) -> None:
    """The first place is down, the next has a stranger's key, the third the right one, and the last is not asked."""
    upstream = "https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/3bf863cc"
    depot = "https://depot.gpufleet.test"
    right = f"{depot}/nvidia/compute/cuda/repos/debian12/x86_64/3bf863cc"
    places = ["https://127.0.0.1:1/", f"{depot}/keys/nginx_signing.key?", right, f"{depot}/nowhere"]
    key = "/usr/share/keyrings/gpufleet-nvidia.asc"
    before = fleet.sh(D12, f"cat {key}; rm {key}")
    wishes = {"version": "580.105.08", "mirror_overrides": {"rewrite": {upstream: places}}}
    drive(fleet, D12, **wishes)
    assert fleet.sh(D12, f"cat {key}") == before
    asked = [row["path"] for row in fleet.depot_log()]
    assert "/keys/nginx_signing.key?.pub" in asked and "/nowhere.pub" not in asked, asked[-20:]
    settled(fleet, D12, **wishes)


def test_the_system_is_not_upgraded_without_consent(fleet: Fleet) -> None:
    assert fleet.sh(D13, "apt-get --simulate upgrade | grep -c '^Inst gpufleet-other'") == "1"
    assert fleet.sh(D13, OTHER) == "1"


@pytest.mark.parametrize("version", ["580.126.20", "580.105.08"], ids=["up", "down"])
@pytest.mark.parametrize("node", [D12, D13])
def test_debian_goes_up_and_down(fleet: Fleet, node: str, version: str) -> None:
    drive(fleet, node, version=version)
    assert set(driver(fleet, node).values()) == {version}
    assert fleet.sh(node, MODULE) == version
    assert "blacklist nouveau" in fleet.sh(node, f"cat {BLACKLIST}")
    settled(fleet, node, version=version)


@pytest.mark.parametrize("branch", ["590", "570", "580"])
def test_debian_changes_branches(fleet: Fleet, branch: str) -> None:
    """Up one branch, down two (570 has no pinning package), and back."""
    drive(fleet, D13, branch=branch)
    assert {version.partition(".")[0] for version in driver(fleet, D13).values()} == {branch}
    settled(fleet, D13, branch=branch)


@pytest.mark.parametrize("node", [D12, D13])
def test_debian_is_as_before_when_the_driver_is_gone(fleet: Fleet, bare: dict[str, set[str]], node: str) -> None:
    drive(fleet, node, state="absent", nouveau_back=True)
    assert fleet.debs(node) - FIXTURES == bare[node]
    left = fleet.sh(
        node,
        "find /etc /usr/share/keyrings /var/lib /lib/modules -name '*gpufleet-n*' -o -name nvidia.ko 2>/dev/null; true",
    )
    assert left == ""
    settled(fleet, node, state="absent", nouveau_back=True)


# In the place of a tool that makes the initramfs: what the system would read of modprobe's settings when it boots.
INITRAMFS = r"""
mkdir -p /boot /etc/gpufleet-fixture
echo kernel > /boot/vmlinuz-stand-in
cat > /usr/local/bin/dracut <<'EOF'
#!/bin/sh
[ ! -e /etc/gpufleet-fixture/boot-is-full ] || { echo "dracut stand-in: No space left on device" >&2; exit 1; }
cat /etc/modprobe.d/*.conf > /boot/initramfs-stand-in.img 2>/dev/null; true
EOF
chmod 755 /usr/local/bin/dracut
"""
NOUVEAU_IN_IMAGE = "grep -c 'blacklist nouveau' /boot/initramfs-stand-in.img"


def test_a_driver_that_cannot_be_had_leaves_nouveau_where_it_is(fleet: Fleet) -> None:
    before = fleet.debs(D12)
    refused = drive(fleet, D12, ok=False, version="580.999.99")
    assert "580.999.99" in refused.output and fleet.rc(D12, f"test -e {BLACKLIST}") != 0
    assert driver(fleet, D12) == {} and before
    drive(fleet, D12, state="absent", nouveau_back=True)


def test_a_transaction_that_brings_a_kernel_is_refused(fleet: Fleet) -> None:
    """As a newer dkms, or the headers of another kernel, can."""
    package(fleet, D12, "dkms", "99", "Depends: linux-image-2-gpufleet")
    package(fleet, D12, "linux-image-2-gpufleet")
    fleet.sh(D12, OFFER)
    before = fleet.debs(D12)
    refused = drive(fleet, D12, ok=False)
    assert "it would change the kernels of the node: linux-image-2-gpufleet" in " ".join(refused.output.split()), str(
        refused
    )
    # only what pins the branch was there before that transaction
    assert fleet.debs(D12) - before == {"nvidia-driver-pinning-580"}
    fleet.sh(D12, "rm -r /srv/local /etc/apt/sources.list.d/local.list; apt-get update")
    drive(fleet, D12, state="absent", nouveau_back=True)


def test_an_initramfs_that_could_not_be_rebuilt_is_rebuilt_by_the_next_run(fleet: Fleet) -> None:
    """As when /boot is full: nouveau would come back at every boot, or stay away for ever."""
    fleet.sh(D12, INITRAMFS)
    for wishes, blacklisted in (({"version": "580.105.08"}, "1"), ({"state": "absent", "nouveau_back": True}, "0")):
        fleet.sh(D12, "touch /etc/gpufleet-fixture/boot-is-full")
        failed = drive(fleet, D12, ok=False, **wishes)
        assert "No space left on device" in failed.output, str(failed)
        fleet.sh(D12, "rm /etc/gpufleet-fixture/boot-is-full")
        drive(fleet, D12, **wishes)
        assert fleet.sh(D12, NOUVEAU_IN_IMAGE, check=False) == blacklisted
        settled(fleet, D12, **wishes)
    fleet.sh(D12, "rm /usr/local/bin/dracut /boot/*stand-in*")


def test_the_system_is_upgraded_by_consent(fleet: Fleet) -> None:
    drive(fleet, D13, system_update=True)
    assert fleet.sh(D13, OTHER) == "2"
    assert fleet.sh(D13, KERNELS).split() == ["linux-image-1-gpufleet=1", "linux-image-gpufleet=1"]
    assert "nvidia-driver-cuda" in driver(fleet, D13)


def test_auto_takes_nvidias_where_the_distribution_has_not_the_branch(fleet: Fleet) -> None:
    """Debian 12 has 535, the default is 580."""
    drive(fleet, D12, method="auto")
    assert {version.partition(".")[0] for version in driver(fleet, D12).values()} == {"580"}
    assert fleet.rc(D12, f"test -s {NVIDIA_SOURCE}") == 0
    settled(fleet, D12, method="auto")


def test_what_is_no_longer_to_be_held_is_let_go(fleet: Fleet) -> None:
    held = "apt-mark showhold; ls /etc/apt/preferences.d | grep gpufleet; true"
    assert "nvidia-driver-cuda" in fleet.sh(D12, held)
    drive(fleet, D12, hold=False)
    assert fleet.sh(D12, held) == ""
    settled(fleet, D12, hold=False)
    drive(fleet, D12)
    assert "nvidia-driver-cuda" in fleet.sh(D12, held)


def test_what_does_not_stay_as_wanted_fails_the_node(fleet: Fleet) -> None:
    """Something on the node undoes what the role does; here apt-mark, in whose place is one that holds nothing."""
    fleet.sh(D12, "apt-mark unhold nvidia-driver-cuda")
    fleet.sh(D12, "printf '#!/bin/sh\n' > /usr/local/bin/apt-mark; chmod 755 /usr/local/bin/apt-mark")
    try:
        failed = drive(fleet, D12, ok=False)
    finally:
        fleet.sh(D12, "rm /usr/local/bin/apt-mark")
    said = " ".join(failed.output.split())
    assert "not as wanted after converging: package:nvidia-driver-cuda: hold is false, wanted true" in said, str(failed)
    drive(fleet, D12)
    settled(fleet, D12)


# -- A node with NVSwitch --------------------------------------------------------------------------------------------------

FABRIC_MANAGER = "nvidia-fabricmanager"


def test_nvswitch_wants_a_source_that_has_a_fabric_manager(fleet: Fleet) -> None:
    """Debian has none."""
    before = fleet.tree(HGX)
    refused = drive(fleet, HGX, ok=False, method="distribution", branch="535")
    assert "NVSwitch (chips on its bus: 1)" in refused.output and "error 802" in refused.output, str(refused)
    assert fleet.tree(HGX) == before


@pytest.mark.parametrize("version", ["580.105.08", "580.126.20", "580.105.08"], ids=["new", "up", "down"])
def test_the_fabric_manager_has_the_drivers_exact_version(fleet: Fleet, version: str) -> None:
    drive(fleet, HGX, version=version)
    there = driver(fleet, HGX)
    assert FABRIC_MANAGER in there and set(there.values()) == {version}
    assert FABRIC_MANAGER in fleet.sh(HGX, "apt-mark showhold").split()
    assert fleet.sh(HGX, f"systemctl is-enabled {FABRIC_MANAGER}") == "enabled"
    # No module is loaded here: it waits for one and does not fail.
    condition = fleet.sh(HGX, f"systemctl cat {FABRIC_MANAGER} | grep ^Condition")
    assert condition == "ConditionPathExists=/proc/driver/nvidia/version"
    fleet.sh(HGX, f"systemctl start {FABRIC_MANAGER}")
    state = fleet.sh(HGX, f"systemctl show -p ActiveState -p ConditionResult {FABRIC_MANAGER}")
    assert set(state.split()) == {"ActiveState=inactive", "ConditionResult=no"}
    settled(fleet, HGX, version=version)


def test_no_fabric_manager_where_there_is_no_nvswitch(fleet: Fleet) -> None:
    for node in (D12, D13):
        assert driver(fleet, node) and FABRIC_MANAGER not in driver(fleet, node)


# -- Killed in the middle --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("node", [D12, D13, UBUNTU])
def test_apt_that_was_killed_is_healed(fleet: Fleet, node: str) -> None:
    """Killed with dpkg while a package's script runs: half configured, others only unpacked, dpkg's journal open."""
    drive(fleet, node, version="580.105.08")
    with interrupted(fleet, node):
        drive(fleet, node, ok=False, version="580.126.20")
    modules = "nvidia-dkms-580-open" if node == UBUNTU else "nvidia-kernel-open-dkms"
    assert modules in fleet.sh(node, "dpkg --audit")
    drive(fleet, node, version="580.126.20")
    assert fleet.sh(node, "dpkg --audit") == ""
    assert set(driver(fleet, node).values()) == {"580.126.20"}
    assert fleet.sh(node, MODULE) == "580.126.20"
    settled(fleet, node, version="580.126.20")


def test_apt_that_was_killed_in_a_removal_is_healed(fleet: Fleet) -> None:
    """dpkg is killed in the middle of the driver's purge, and the next removal takes the rest."""
    prerm = "/var/lib/dpkg/info/nvidia-dkms-580-open.prerm"
    fleet.sh(UBUNTU, f"sed -i '2i cat /etc/gpufleet-fixture/kernel' {prerm}")
    with interrupted(fleet, UBUNTU):
        drive(fleet, UBUNTU, ok=False, state="absent")
    fleet.sh(UBUNTU, f"sed -i '/gpufleet-fixture/d' {prerm}")
    drive(fleet, UBUNTU, state="absent")
    assert driver(fleet, UBUNTU) == {} and fleet.sh(UBUNTU, "dpkg --audit") == ""
    settled(fleet, UBUNTU, state="absent")
    drive(fleet, UBUNTU)


# -- Ubuntu: from method to method -----------------------------------------------------------------------------------------


def test_a_driver_goes_only_when_the_other_can_be_had(fleet: Fleet) -> None:
    """With all consent, but without the archive's component in which the driver is."""
    before = driver(fleet, UBUNTU)
    refused = drive(fleet, UBUNTU, ok=False, method="distribution", switch_method=True)
    assert "nvidia-utils-580-server" in refused.output, str(refused)
    assert driver(fleet, UBUNTU) == before and fleet.sh(UBUNTU, MODULE) == "580.126.20"


def test_another_method_needs_consent(fleet: Fleet) -> None:
    fleet.sh(UBUNTU, f"echo '{RESTRICTED}' > /etc/apt/sources.list.d/restricted.list")
    before = fleet.tree(UBUNTU)
    refused = drive(fleet, UBUNTU, ok=False, method="distribution")
    assert "nvidia_driver_switch_method" in refused.output, str(refused)
    assert fleet.tree(UBUNTU) == before


def test_what_needs_the_driver_is_not_taken_along(fleet: Fleet) -> None:
    installed(fleet, UBUNTU, "gpufleet-needs-cuda", "Depends: libnvidia-compute-580")
    before = driver(fleet, UBUNTU)
    for wishes in ({"method": "distribution", "switch_method": True}, {"state": "absent"}):
        refused = drive(fleet, UBUNTU, ok=False, **wishes)
        assert "gpufleet-needs-cuda" in refused.output, str(refused)
        assert driver(fleet, UBUNTU) == before
    fleet.sh(UBUNTU, "dpkg --purge gpufleet-needs-cuda")


def test_a_driver_in_use_is_not_taken_away(fleet: Fleet) -> None:
    before = driver(fleet, UBUNTU)
    with gpu_in_use(fleet, UBUNTU) as process:
        refused = drive(fleet, UBUNTU, ok=False, state="absent")
        assert "1 processes use the GPU" in " ".join(refused.output.split()), str(refused)
        assert fleet.rc(UBUNTU, f"kill -0 {process}") == 0
    assert driver(fleet, UBUNTU) == before


def test_to_the_distributions_packages(fleet: Fleet) -> None:
    """A display manager runs all the while; nothing that is loaded has to make room, so it is left alone.

    And so is what only is called like a driver's package.
    """
    installed(fleet, UBUNTU, "nvidia-container-toolkit")
    fleet.sh(UBUNTU, f"printf '{DISPLAY}' > /etc/systemd/system/display-manager.service; systemctl daemon-reload")
    fleet.sh(UBUNTU, "systemctl start display-manager")
    drive(fleet, UBUNTU, method="distribution", switch_method=True)
    there = driver(fleet, UBUNTU)
    assert {"nvidia-dkms-580-server-open", "nvidia-utils-580-server"} <= set(there)
    assert not [name for name in there if name.endswith(("-580", "-580-open"))]
    # NVIDIA's repository would offer the same packages in other versions
    assert fleet.rc(UBUNTU, f"test -e {NVIDIA_SOURCE}") != 0
    assert "pinning" not in fleet.sh(UBUNTU, "dpkg-query -W -f '${db:Status-Abbrev} ${Package}\\n' | grep '^.i'")
    assert fleet.sh(UBUNTU, "systemctl is-active display-manager") == "active"
    fleet.sh(UBUNTU, "dpkg --status nvidia-container-toolkit && dpkg --purge nvidia-container-toolkit")
    settled(fleet, UBUNTU, method="distribution")


def test_and_back_to_nvidias(fleet: Fleet) -> None:
    """This time with the consent to stop the display manager."""
    drive(fleet, UBUNTU, switch_method=True, stop_display=True)
    there = driver(fleet, UBUNTU)
    assert {"nvidia-dkms-580-open", "nvidia-utils-580"} <= set(there)
    assert not [name for name in there if "-server" in name]
    assert fleet.sh(UBUNTU, "systemctl is-active display-manager", check=False) == "inactive"
    settled(fleet, UBUNTU)


def test_the_source_stays_while_the_role_cuda_uses_it(fleet: Fleet) -> None:
    record = "/var/lib/gpufleet/cuda/12.4.toolkit"
    fleet.sh(UBUNTU, f"mkdir -p {record.rpartition('/')[0]}; printf 'method=repository\\n' > {record}")
    drive(fleet, UBUNTU, method="distribution", switch_method=True)
    assert fleet.rc(UBUNTU, f"test -s {NVIDIA_SOURCE}") == 0
    assert "nvidia-utils-580-server" in driver(fleet, UBUNTU)


def test_auto_takes_the_distributions_where_it_has_the_branch(fleet: Fleet) -> None:
    """With NVIDIA's repository still there for the toolkit; and a driver that is there keeps its method."""
    drive(fleet, UBUNTU, state="absent")
    assert driver(fleet, UBUNTU) == {}
    drive(fleet, UBUNTU, method="auto")
    assert "nvidia-utils-580-server" in driver(fleet, UBUNTU)
    settled(fleet, UBUNTU, method="auto")
    drive(fleet, UBUNTU, method="nvidia_repo", switch_method=True)
    before = driver(fleet, UBUNTU)
    assert "nvidia-utils-580" in before
    settled(fleet, UBUNTU, method="auto")
    assert driver(fleet, UBUNTU) == before


def test_modules_that_canonical_signed_want_no_compiler(fleet: Fleet) -> None:
    """Those of exactly the running kernel."""
    drive(fleet, UBUNTU, state="absent")
    assert fleet.rc(UBUNTU, "command -v gcc") != 0
    wish = {"method": "distribution", "secure_boot": "signed"}
    drive(fleet, UBUNTU, **wish)
    there = driver(fleet, UBUNTU)
    assert f"linux-modules-nvidia-580-server-open-{fleet.sh(UBUNTU, 'uname -r')}" in there
    assert not [name for name in there if "dkms" in name] and fleet.rc(UBUNTU, "command -v gcc") != 0
    module = fleet.sh(UBUNTU, "find /lib/modules/$(uname -r) -name nvidia.ko")
    assert "Module signature appended" in fleet.sh(UBUNTU, f"tail -c 29 {module}")
    # modinfo went with the driver of before, and modules that are signed already do not need it
    assert fleet.rc(UBUNTU, f"grep -aq 'version=580.126.20' {module}") == 0
    settled(fleet, UBUNTU, **wish)


# -- Runfile ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("node", [D12, D13, UBUNTU])
def test_by_runfile_and_gone(fleet: Fleet, bare: dict[str, set[str]], node: str) -> None:
    """Up, and away with what apt brought for it; test_nvidia_driver_methods.py has the other distributions."""
    drive(fleet, node, state="absent", nouveau_back=True)
    # in the place of the headers of the host's kernel, which no archive has
    fleet.sh(node, "mkdir -p /lib/modules/$(uname -r)/build; touch /lib/modules/$(uname -r)/build/Makefile")
    for version in ("580.105.08", "580.126.20"):
        wish = fleet.nvidia_runfile(version)
        drive(fleet, node, **wish)
        assert fleet.sh(node, MODULE) == version and driver(fleet, node) == {}
        assert fleet.rc(node, "test -x /usr/bin/nvidia-uninstall") == 0
        settled(fleet, node, **wish)
    drive(fleet, node, state="absent", nouveau_back=True)
    assert fleet.rc(node, "ls /usr/bin/nvidia-uninstall /var/lib/nvidia 2>/dev/null") != 0
    assert fleet.sh(node, "find /lib/modules -name 'nvidia*'; ls /var/lib/dkms 2>/dev/null; true") == ""
    assert fleet.debs(node) - FIXTURES == bare[node]
    settled(fleet, node, state="absent", nouveau_back=True)
