# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role nvidia_driver decides on nodes by dnf and pacman: which branch, whose driver, what is refused before a change.

The tests of one node build on each other, in the order in which they stand.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ansible_collections.gpufleet.llm.plugins.plugin_utils import driver_files
from harness import Driver, Fleet, long, running

pytestmark = pytest.mark.skipif(
    not long("nvidia_driver"), reason="long: GPUFLEET_LONG=nvidia_driver or GPUFLEET_NIGHTLY=1"
)

RHEL, ARCH = "rhel", "arch"
# The containers' kernel is the host's: no repository has headers of it under its own name.
HEADERS = {RHEL: "kernel-devel-matched", ARCH: "linux-headers"}
_DRIVER = Driver({node: {"mirror_profile": "depot", "kernel_headers": headers} for node, headers in HEADERS.items()})
drive, settled = _DRIVER.drive, _DRIVER.settled
MODULE = 'modinfo -F version "$(find /lib/modules -name nvidia.ko)"'
LICENCE = 'modinfo -F license "$(find /lib/modules -name nvidia.ko)"'
STREAM = "sed -n 's/^stream *= *//p' /etc/dnf/modules.d/nvidia-driver.module"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with running("driver-decision", {RHEL: "rhel9-like:t4-nodriver", ARCH: "arch-like:t4-nodriver"}) as fleet:
        yield fleet


# -- Arch ------------------------------------------------------------------------------------------------------------------


def test_arch_another_branch_than_its_own_is_refused_before_a_change(fleet: Fleet) -> None:
    before = fleet.tree(ARCH)
    refused = drive(fleet, ARCH, ok=False, branch="570")
    assert "branch 570 is not in" in refused.output and "590.48.01" in refused.output, str(refused)
    assert fleet.tree(ARCH) == before


def test_arch_the_default_branch_is_nobodys_wish_and_the_daemon_is_enabled(fleet: Fleet) -> None:
    fleet.arch_state(ARCH, "arch-before")
    drive(fleet, ARCH)
    assert fleet.sh(ARCH, "pacman -Q nvidia-utils") == "nvidia-utils 590.44.01-1"
    assert fleet.sh(ARCH, "systemctl is-enabled nvidia-persistenced") == "enabled"
    assert fleet.sh(ARCH, "systemctl is-failed nvidia-persistenced", check=False) == "inactive"
    settled(fleet, ARCH)


def test_arch_its_own_branch_by_name(fleet: Fleet) -> None:
    """The packages are held by now; what came is written down, and nothing else that pacman says."""
    fleet.arch_state(ARCH, "arch")
    drive(fleet, ARCH, version="590.48.01")
    assert fleet.sh(ARCH, MODULE) == "590.48.01"
    record = fleet.sh(ARCH, f"cat {driver_files.RECORD}").splitlines()
    assert "nvidia-utils" in record and [line for line in record if " " in line] == []
    settled(fleet, ARCH, branch="590")


# -- RHEL family -----------------------------------------------------------------------------------------------------------


def test_rhel_no_branch_is_the_newest_and_its_stream_goes_on(fleet: Fleet) -> None:
    drive(fleet, RHEL, branch="")
    assert fleet.sh(RHEL, MODULE) == "590.48.01"
    assert fleet.sh(RHEL, STREAM) == "open-dkms"
    settled(fleet, RHEL, branch="")


def test_rhel_the_other_flavour_of_the_same_version(fleet: Fleet) -> None:
    wish = {"branch": "590", "flavour": "proprietary"}
    drive(fleet, RHEL, **wish)
    assert (fleet.sh(RHEL, MODULE), fleet.sh(RHEL, LICENCE)) == ("590.48.01", "NVIDIA")
    settled(fleet, RHEL, **wish)


def test_rhel_somebody_elses_broken_driver_is_repaired_in_its_branch_and_flavour(fleet: Fleet) -> None:
    """Without a trace of this role, and without a module: as after the boot into a kernel that nothing was built for."""
    fleet.sh(RHEL, f"rm -f {' '.join(driver_files.OWN)}; find /lib/modules -name 'nvidia*.ko' -delete")
    drive(fleet, RHEL)
    assert (fleet.sh(RHEL, MODULE), fleet.sh(RHEL, LICENCE)) == ("590.48.01", "NVIDIA")
    assert "branch 590" in fleet.sh(RHEL, f"cat {driver_files.FOUND}")
    settled(fleet, RHEL)


def test_rhel_its_branch_is_left_when_that_is_asked_for(fleet: Fleet) -> None:
    drive(fleet, RHEL, keep_working=False)
    assert fleet.sh(RHEL, MODULE).startswith("580.")
    assert fleet.sh(RHEL, LICENCE) == "Dual MIT/GPL"
    assert fleet.rc(RHEL, f"test -e {driver_files.FOUND}") != 0
    settled(fleet, RHEL, keep_working=False)
