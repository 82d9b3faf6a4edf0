# SPDX-License-Identifier: GPL-3.0-or-later
"""The role cuda where the distribution has a toolkit of its own and NVIDIA has no packages: Arch Linux, by pacman.

Debian's, RHEL's and Ubuntu's ways are in molecule/cuda, Debian's real toolkit is in test_cuda_real.py. The packages are the
depot's (tests/fleet/depot/README.md), pacman is the real one. The tests build on each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from harness import Fleet, Play, long, running, vars_of

pytestmark = pytest.mark.skipif(
    not long("cuda"), reason="a toolkit's whole life: GPUFLEET_LONG=cuda or GPUFLEET_NIGHTLY=1"
)

NODE = "arch"
DRIVER = {"nvidia_driver_boot_time_command": "stat -c %Z /proc/1", "nvidia_driver_kernel_headers": ""}
OLD, NEW = {"version": "12.4", "method": "distribution"}, {"version": "13.0", "method": "distribution"}
RUNFILE = vars_of("molecule/cuda/vars.yml")["cuda_runfile"]


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with running("cuda-lifecycle", {NODE: "arch-like:t4-nodriver"}) as fleet:
        fleet.arch_state(NODE, "arch-before")
        yield fleet


def drive(fleet: Fleet, *args: str, ok: bool | None = True, **wishes: Any) -> Play:
    wishes = {"mirror_profile": "depot", **wishes}
    return fleet.role("cuda", *args, ok=ok, **{f"cuda_{k}": v for k, v in wishes.items()})


def step(fleet: Fleet, **wishes: Any) -> None:
    """Bring it there; a second run changes nothing."""
    drive(fleet, **wishes)
    again = drive(fleet, **wishes)
    assert again.changed(NODE) == 0 and not again.drift(NODE), str(again)


def release(fleet: Fleet, prefix: str) -> str:
    """What the toolkit's nvcc says of itself, or nothing."""
    return fleet.sh(
        NODE, f"{prefix}/bin/nvcc --version 2>/dev/null | sed -n 's/.*release \\([0-9.]*\\),.*/\\1/p'; true"
    )


def packages(fleet: Fleet) -> set[str]:
    return set(fleet.sh(NODE, "pacman -Qq").split())


@pytest.fixture(scope="module")
def bare(fleet: Fleet) -> set[str]:
    return packages(fleet)


def test_a_toolkit_that_brings_a_driver_is_refused(fleet: Fleet, bare: set[str]) -> None:
    """Arch's depends on the libraries of Arch's driver; it is that driver's role which brings them."""
    before = fleet.tree(NODE)
    refused = drive(fleet, ok=False, toolkits=[OLD])
    assert "nvidia-utils" in refused.output and "driver" in refused.output, str(refused)
    assert fleet.tree(NODE) == before and bare


def test_beside_the_distributions_driver(fleet: Fleet, bare: set[str]) -> None:
    fleet.role("nvidia_driver", **DRIVER)
    driver = packages(fleet)
    checked = drive(fleet, "--check", "--diff", toolkits=[OLD])
    assert checked.drift(NODE) and packages(fleet) == driver
    step(fleet, toolkits=[OLD])
    assert packages(fleet) - driver == {"cuda"} and "cuda" not in bare
    assert release(fleet, "/opt/cuda") == "12.4"


def test_one_of_nvidias_by_runfile_lies_beside_it(fleet: Fleet) -> None:
    step(fleet, toolkits=[OLD, RUNFILE])
    assert release(fleet, "/opt/cuda") == "12.4" and release(fleet, "/usr/local/cuda-12.0") == "12.0"
    assert fleet.sh(NODE, "readlink -f /usr/local/cuda") == "/usr/local/cuda-12.0"


def test_files_that_are_gone_come_again(fleet: Fleet) -> None:
    fleet.sh(NODE, "rm /opt/cuda/bin/nvcc")
    healed = drive(fleet, toolkits=[OLD, RUNFILE])
    assert healed.drift(NODE) == {"toolkit:12.4"}
    assert release(fleet, "/opt/cuda") == "12.4"


def test_a_release_that_the_distribution_has_not_is_refused(fleet: Fleet) -> None:
    before = fleet.tree(NODE)
    refused = drive(fleet, ok=False, toolkits=[NEW, RUNFILE])
    assert "has CUDA 12.4, wanted is 13.0" in " ".join(refused.output.split()), str(refused)
    assert fleet.tree(NODE) == before and release(fleet, "/opt/cuda") == "12.4"


def test_up_when_the_distribution_has_it(fleet: Fleet) -> None:
    fleet.arch_state(NODE, "arch")
    step(fleet, toolkits=[NEW, RUNFILE])
    assert fleet.sh(NODE, "cd /var/lib/gpufleet/cuda && ls *.toolkit").split() == [
        "12.0.toolkit",
        "distribution.toolkit",
    ]
    # the old release was one and the same package
    step(fleet, toolkits=[NEW, RUNFILE], exclusive=True)
    assert release(fleet, "/opt/cuda") == "13.0" and release(fleet, "/usr/local/cuda-12.0") == "12.0"


def test_a_pacman_that_was_killed_is_healed(fleet: Fleet) -> None:
    """It lays the files down before it writes whose they are, and leaves its lock."""
    entry, lock = "/var/lib/pacman/local/cuda-[0-9]*", "/var/lib/pacman/db.lck"
    fleet.sh(NODE, f"rm {entry}/desc {entry}/files /opt/cuda/bin/nvcc; : > {lock}")
    step(fleet, toolkits=[NEW, RUNFILE])
    assert fleet.sh(NODE, "pacman -Qo /opt/cuda/bin/nvcc").endswith("is owned by cuda 13.0.2-1")
    assert release(fleet, "/opt/cuda") == "13.0" and fleet.rc(NODE, f"test -e {lock}") != 0
    assert fleet.rc(NODE, "test -e /var/lib/gpufleet/cuda/interrupted") != 0


def test_an_old_one_that_the_distribution_has_no_more_is_refused(fleet: Fleet) -> None:
    refused = drive(fleet, ok=False, toolkits=[OLD, RUNFILE])
    assert "has CUDA 13.0, wanted is 12.4" in " ".join(refused.output.split()), str(refused)
    assert release(fleet, "/opt/cuda") == "13.0"


def test_only_the_one_that_is_named_goes(fleet: Fleet) -> None:
    # as if somebody else had installed it
    fleet.sh(NODE, "rm -f /var/lib/gpufleet/cuda/*[!0].toolkit")
    step(fleet, toolkits=[{**NEW, "state": "absent"}, RUNFILE])
    assert "cuda" not in packages(fleet) and release(fleet, "/usr/local/cuda-12.0") == "12.0"


def test_it_goes_without_a_trace_and_leaves_the_driver(fleet: Fleet, bare: set[str]) -> None:
    step(fleet, toolkits=[NEW, RUNFILE])
    step(fleet, toolkits=[NEW, RUNFILE], state="absent")
    assert fleet.sh(NODE, "ls -d /opt/cuda /usr/local/cuda* /var/lib/gpufleet/cuda 2>/dev/null; true") == ""
    assert {"nvidia-open-dkms", "nvidia-utils"} <= packages(fleet)
    fleet.sh(NODE, "pacman -S --noconfirm cuda")
    drive(fleet, toolkits=[NEW, RUNFILE], state="absent")
    assert release(fleet, "/opt/cuda") == "13.0", "another one's toolkit has gone"
    fleet.sh(NODE, "pacman -Rs --noconfirm cuda")
    fleet.role("nvidia_driver", **DRIVER, nvidia_driver_state="absent")
    assert packages(fleet) == bare
