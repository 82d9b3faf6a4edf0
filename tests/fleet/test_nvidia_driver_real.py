# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian's real driver packages with the real DKMS: several builds of minutes each, so only with GPUFLEET_NIGHTLY=1.

The quick half, one build of 535 on Debian 12, is in molecule/nvidia_driver.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from harness import NIGHTLY, Driver, Fleet, running

pytestmark = pytest.mark.skipif(not NIGHTLY, reason="builds of many minutes: GPUFLEET_NIGHTLY=1")

D12, D13 = "d12", "d13"
COMMON = {
    "method": "distribution",
    "kernel_headers": "linux-headers-cloud-amd64",
}
BRANCH = {D12: "535", D13: "550"}
_DRIVER = Driver({node: {**COMMON, "branch": branch} for node, branch in BRANCH.items()})
drive, settled = _DRIVER.drive, _DRIVER.settled


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with running("driver-real", {D12: "debian12:t4-nodriver", D13: "debian13:t4-nodriver"}, depot=True) as fleet:
        # Debian 13's headers depend on their kernel, which a real node has and a container has not.
        fleet.sh(
            D13, "apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y linux-image-cloud-amd64"
        )
        yield fleet


def built(fleet: Fleet, node: str) -> dict[str, str]:
    """Module in DKMS -> version, of those that are installed for a kernel."""
    found = re.findall(
        r"(?m)^(nvidia[\w-]*)/([\d.]+), \S+, \S+: installed", fleet.sh(node, "dkms status 2>/dev/null; true")
    )
    return dict(found)


@pytest.fixture(scope="module")
def bare(fleet: Fleet) -> dict[str, set[str]]:
    return {node: fleet.debs(node) for node in (D12, D13)}


NVIDIA_SOURCE = "/etc/apt/sources.list.d/gpufleet-nvidia.sources"
NON_FREE_SOURCE = "/etc/apt/sources.list.d/gpufleet-nvidia-driver.sources"
REPOSITORY = {"method": "nvidia_repo", "branch": "580", "mirror_profile": "depot"}
# The fixtures have one key, under the name of the older of NVIDIA's two
KEY = "https://developer.download.nvidia.com/compute/cuda/repos/debian13/x86_64/3bf863cc.pub"
NVIDIA_REPOSITORY = {D12: REPOSITORY, D13: {**REPOSITORY, "repo_key_url": KEY}}


def facts(fleet: Fleet, node: str) -> dict[str, Any]:
    """What gpu_facts says of a node."""
    told: dict[str, Any] = fleet.module(node, "gpu_facts")["ansible_facts"]["gpufleet_gpu"]
    return told


def build_for_the_kernel_that_has_headers(fleet: Fleet, node: str) -> None:
    """The fixture's script does; DKMS would do it by itself for the running kernel, of which a container has no headers."""
    fleet.sh(node, "mkdir -p /etc/gpufleet-fixture; ls /lib/modules | grep cloud > /etc/gpufleet-fixture/kernel")


def test_debian_13_begins_with_nvidias_repository(fleet: Fleet, bare: dict[str, set[str]]) -> None:
    """With the depot's driver, whose module is a small one, but is built for real, too. Debian's needs consent to take over."""
    assert bare[D13]
    assert facts(fleet, D13)["state"] == facts(fleet, D12)["state"] == "driver_not_installed"
    build_for_the_kernel_that_has_headers(fleet, D13)
    drive(fleet, D13, **NVIDIA_REPOSITORY[D13])
    assert built(fleet, D13) == {"nvidia": "580.126.20"}
    settled(fleet, D13, **NVIDIA_REPOSITORY[D13])
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


@pytest.mark.parametrize("node", [D12, D13])
def test_gpu_facts_reads_the_real_packages(fleet: Fleet, node: str) -> None:
    """Nothing can be loaded here: built for another kernel than the running one; then laid out for the running one."""
    (version,) = built(fleet, node).values()
    seen = facts(fleet, node)
    assert (seen["state"], seen["driver"]["library_version"]) == ("module_missing_for_kernel", version), seen
    assert seen["driver"]["loaded_version"] is None
    kernel = "/lib/modules/$(uname -r)"
    laid_out = f"{kernel}/updates/dkms"
    fleet.sh(
        node,
        f"rm -f /run/made; test -d {kernel} || touch /run/made; mkdir -p {laid_out}; "
        f"cp /lib/modules/*cloud*/updates/dkms/nvidia-current.ko* {laid_out}; depmod",
    )
    try:
        seen = facts(fleet, node)
        assert seen["state"] == "module_not_loaded", seen
        assert (seen["driver"]["module_version"], seen["driver"]["flavour"]) == (version, "proprietary"), seen
    finally:
        fleet.sh(node, f"rm -r {laid_out}; if test -e /run/made; then rm -r {kernel}; else depmod; fi")


@pytest.mark.parametrize("node", [D12, D13])
def test_to_nvidias_repository_by_consent(fleet: Fleet, node: str) -> None:
    """On Debian 13 that is where it came from. Debian 12 goes back with the next test."""
    build_for_the_kernel_that_has_headers(fleet, node)
    drive(fleet, node, **NVIDIA_REPOSITORY[node], switch_method=True)
    assert built(fleet, node) == {"nvidia": "580.126.20"}
    assert fleet.rc(node, f"test -e {NON_FREE_SOURCE}") != 0
    settled(fleet, node, **NVIDIA_REPOSITORY[node])


def test_a_version_that_does_not_build_says_why_and_the_next_run_heals(fleet: Fleet) -> None:
    """The open modules of Debian 12's 535.261.03 are older than its kernel 6.1.0-56; a real build fails for real."""
    failed = drive(fleet, D12, ok=None, version="535.261.03", flavour="open", switch_method=True)
    if failed.rc == 0 or "No version" in failed.output:
        drive(fleet, D12, switch_method=True)
        pytest.skip("this archive has no 535.261.03 any more, or its newest kernel still takes it")
    assert "error:" in failed.output and "did not build" in failed.output, str(failed)
    drive(fleet, D12)
    (version,) = built(fleet, D12).values()
    assert version.startswith(BRANCH[D12]) and version != "535.261.03"
    assert drive(fleet, D12).changed(D12) == 0


@pytest.mark.parametrize("node", [D12, D13])
def test_removed_to_what_was_there_before(fleet: Fleet, bare: dict[str, set[str]], node: str) -> None:
    drive(fleet, node, state="absent", nouveau_back=True)
    assert fleet.debs(node) == bare[node]
    assert built(fleet, node) == {}
    assert facts(fleet, node)["state"] == "driver_not_installed"
    assert drive(fleet, node, state="absent", nouveau_back=True).changed(node) == 0
