# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian's real driver packages with the real DKMS: several builds of minutes each, so only with GPUFLEET_NIGHTLY=1.

The quick half, one build of 535 on Debian 12, is in molecule/nvidia_driver.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from harness import NIGHTLY, Fleet, Play, running

pytestmark = pytest.mark.skipif(not NIGHTLY, reason="builds of many minutes: GPUFLEET_NIGHTLY=1")

D12, D13 = "d12", "d13"
COMMON = {
    "method": "distribution",
    "kernel_headers": "linux-headers-cloud-amd64",
    "boot_time_command": "stat -c %Z /proc/1",
}
BRANCH = {D12: "535", D13: "550"}


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with running("driver-real", {D12: "debian12:t4-nodriver", D13: "debian13:t4-nodriver"}, depot=True) as fleet:
        # Debian 13's headers depend on their kernel, which a real node has and a container has not.
        fleet.sh(
            D13, "apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y linux-image-cloud-amd64"
        )
        yield fleet


def drive(fleet: Fleet, node: str, *args: str, ok: bool | None = True, **wishes: Any) -> Play:
    wishes = {**COMMON, "branch": BRANCH[node], **wishes}
    return fleet.role(
        "nvidia_driver", "--limit", node, *args, ok=ok, **{f"nvidia_driver_{k}": v for k, v in wishes.items()}
    )


def built(fleet: Fleet, node: str) -> dict[str, str]:
    """Module in DKMS -> version, of those that are installed for a kernel."""
    found = re.findall(r"(?m)^(nvidia[\w-]*)/([\d.]+), \S+, \S+: installed", fleet.sh(node, "dkms status"))
    return dict(found)


def packages(fleet: Fleet, node: str) -> set[str]:
    return set(fleet.sh(node, "dpkg-query -W -f '${db:Status-Abbrev} ${Package}\\n' | awk '/^.i/ {print $2}'").split())


@pytest.fixture(scope="module")
def bare(fleet: Fleet) -> dict[str, set[str]]:
    return {node: packages(fleet, node) for node in (D12, D13)}


NVIDIA_SOURCE = "/etc/apt/sources.list.d/gpufleet-nvidia.sources"
NON_FREE_SOURCE = "/etc/apt/sources.list.d/gpufleet-nvidia-driver.sources"
NVIDIA_REPOSITORY = {
    "method": "nvidia_repo",
    "branch": "580",
    "mirror_profile": "depot",
    "repo_key_url": "https://developer.download.nvidia.com/compute/cuda/repos/debian13/x86_64/3bf863cc.pub",
}


def settled(fleet: Fleet, node: str, **wishes: Any) -> None:
    again = drive(fleet, node, **wishes)
    assert again.changed(node) == 0 and not again.drift(node), str(again)


def test_debian_13_begins_with_nvidias_repository(fleet: Fleet, bare: dict[str, set[str]]) -> None:
    """With the depot's driver, whose module is a small one, but is built for real, too. Debian's needs consent to take over."""
    assert bare[D13]
    fleet.sh(D13, "mkdir -p /etc/gpufleet-fixture; ls /lib/modules | grep cloud > /etc/gpufleet-fixture/kernel")
    drive(fleet, D13, **NVIDIA_REPOSITORY)
    assert built(fleet, D13) == {"nvidia": "580.126.20"}
    settled(fleet, D13, **NVIDIA_REPOSITORY)
    refused = drive(fleet, D13, ok=False)
    assert "nvidia_driver_switch_method" in refused.output, str(refused)
    assert built(fleet, D13) == {"nvidia": "580.126.20"}


@pytest.mark.parametrize("node", [D12, D13])
def test_installed_built_and_settled(fleet: Fleet, bare: dict[str, set[str]], node: str) -> None:
    """On Debian 13 in the place of the driver of NVIDIA's repository."""
    assert bare[node]
    drive(fleet, node, switch_method=True)
    (version,) = built(fleet, node).values()
    assert version.startswith(BRANCH[node])
    assert fleet.rc(node, f"test -e {NVIDIA_SOURCE}") != 0
    settled(fleet, node)


def test_debian_13_goes_back_to_nvidias_repository(fleet: Fleet) -> None:
    drive(fleet, D13, **NVIDIA_REPOSITORY, switch_method=True)
    assert built(fleet, D13) == {"nvidia": "580.126.20"}
    assert fleet.rc(D13, f"test -e {NON_FREE_SOURCE}") != 0
    settled(fleet, D13, **NVIDIA_REPOSITORY)


def test_a_version_that_does_not_build_says_why_and_the_next_run_heals(fleet: Fleet) -> None:
    """Debian 12's 535.261.03 is older than its kernel 6.1.0-56; a real build fails for real."""
    offered = fleet.sh(D12, "apt-cache madison nvidia-kernel-dkms")
    if "535.261.03" not in offered:
        pytest.skip("the archive has no 535.261.03 any more")
    failed = drive(fleet, D12, ok=None, version="535.261.03")
    if failed.rc == 0:
        pytest.skip("this archive's newest kernel still takes 535.261.03")
    assert "error:" in failed.output and "did not build" in failed.output, str(failed)
    drive(fleet, D12)
    assert drive(fleet, D12).changed(D12) == 0


@pytest.mark.parametrize("node", [D12, D13])
def test_removed_to_what_was_there_before(fleet: Fleet, bare: dict[str, set[str]], node: str) -> None:
    drive(fleet, node, state="absent", nouveau_back=True)
    assert packages(fleet, node) == bare[node]
    assert built(fleet, node) == {}
    assert drive(fleet, node, state="absent", nouveau_back=True).changed(node) == 0
