# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A driver's life on packages in the shape of NVIDIA's: up, down, another branch, flavour and method, broken, healed, gone.

Each step starts from where the one before left the node, and each ends with a run that changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Play = Callable[..., Any]


@pytest.fixture(autouse=True)
def only_fixtures(node: Any) -> None:
    if node.system_info.distribution == "debian" and node.system_info.release.startswith("12"):
        pytest.skip("real packages: tests/fleet/test_nvidia_driver_real.py")


def step(play: Play, node_name: str, **extra: Any) -> Any:
    done = play(extra)
    assert done.rc == 0, done
    again = play(extra)
    assert again.changed == {node_name: 0}, again
    return done


def installed(node: Any) -> dict[str, str]:
    said = node.run("dpkg-query -W -f '${db:Status-Abbrev} ${Package} ${Version}\\n'").stdout
    rows = [line.split() for line in said.splitlines()]
    return {name: version for state, name, version in rows if state[1] == "i" and ("nvidia" in name or "cuda" in name)}


def dkms(node: Any) -> dict[str, str]:
    return {n: v.partition("-")[0] for n, v in installed(node).items() if "dkms" in n or "kernel" in n}


def open_flavour(node: Any) -> bool:
    """Whether the module is built from the open sources. nvidia-kernel-common is of both."""
    (name,) = (name for name in installed(node) if "nvidia-dkms" in name)
    return "open" in name


def pins(node: Any) -> set[str]:
    return {name for name in installed(node) if "pinning" in name}


def test_down_to_an_exact_version(node: Any, node_name: str, play: Play) -> None:
    step(play, node_name, nvidia_driver_version="580.105.08")
    assert set(dkms(node).values()) == {"580.105.08"}
    assert pins(node) == {"nvidia-driver-pinning-580.105.08"}


def test_a_version_that_nobody_has_is_refused_with_what_there_is(node: Any, play: Play) -> None:
    before = installed(node)
    failed = play({"nvidia_driver_version": "580.1.1"})
    assert failed.rc != 0 and "580.1.1" in failed.output
    assert {k: v for k, v in installed(node).items() if "pinning" not in k} == {
        k: v for k, v in before.items() if "pinning" not in k
    }


def test_up_again_by_naming_the_version(node: Any, node_name: str, play: Play) -> None:
    step(play, node_name, nvidia_driver_version="580.126.20")
    assert set(dkms(node).values()) == {"580.126.20"}
    assert pins(node) == {"nvidia-driver-pinning-580.126.20"}


def test_a_branch_stays_at_its_version_until_asked(node: Any, node_name: str, play: Play) -> None:
    step(play, node_name, nvidia_driver_version="580.105.08")
    step(play, node_name)
    assert set(dkms(node).values()) == {"580.105.08"}
    assert pins(node) == {"nvidia-driver-pinning-580"}


def test_another_branch_whose_packages_have_other_names(node: Any, node_name: str, play: Play) -> None:
    step(play, node_name, nvidia_driver_branch="590")
    assert {v.partition(".")[0] for v in dkms(node).values()} == {"590"}
    assert not [name for name in installed(node) if "-580" in name and "pinning" not in name]
    assert pins(node) == {"nvidia-driver-pinning-590"}


def test_back_to_the_old_branch(node: Any, node_name: str, play: Play) -> None:
    step(play, node_name, nvidia_driver_branch="570")
    assert {v.partition(".")[0] for v in dkms(node).values()} == {"570"}
    assert pins(node) == set()
    assert "570." in node.file("/etc/apt/preferences.d/gpufleet-nvidia-driver.pref").content_string
    step(play, node_name)
    assert "570." not in node.file("/etc/apt/preferences.d/gpufleet-nvidia-driver.pref").content_string
    assert {v.partition(".")[0] for v in dkms(node).values()} == {"580"}


def test_directly_to_an_older_branch_and_back(node: Any, node_name: str, play: Play) -> None:
    """NVIDIA's pinning package of 580 must not keep apt from 570, which has none."""
    assert pins(node) == {"nvidia-driver-pinning-580"}
    step(play, node_name, nvidia_driver_branch="570")
    assert {v.partition(".")[0] for v in dkms(node).values()} == {"570"} and pins(node) == set()
    step(play, node_name)
    assert {v.partition(".")[0] for v in dkms(node).values()} == {"580"} and pins(node) == {"nvidia-driver-pinning-580"}


def test_the_other_flavour_and_back(node: Any, node_name: str, play: Play) -> None:
    assert open_flavour(node)
    step(play, node_name, nvidia_driver_flavour="proprietary")
    assert not open_flavour(node)
    step(play, node_name)
    assert open_flavour(node)


def test_a_build_that_fails_says_why_and_the_next_run_heals(node: Any, node_name: str, play: Play) -> None:
    assert set(dkms(node).values()) == {"580.126.20"}  # so another version has to be built
    assert node.run("sh -c %s", "mkdir -p /etc/gpufleet-fixture; touch /etc/gpufleet-fixture/dkms-fails").rc == 0
    failed = play({"nvidia_driver_version": "580.105.08"})
    assert node.run("rm /etc/gpufleet-fixture/dkms-fails").rc == 0
    assert failed.rc != 0, failed
    step(play, node_name, nvidia_driver_version="580.105.08")
    assert set(dkms(node).values()) == {"580.105.08"}


def test_packages_held_by_hand_do_not_stand_in_the_way(node: Any, node_name: str, play: Play) -> None:
    assert node.run(f"apt-mark hold {' '.join(installed(node))}").rc == 0
    step(play, node_name, nvidia_driver_version="580.126.20")
    assert set(dkms(node).values()) == {"580.126.20"}


def test_a_key_that_is_not_the_announced_one_is_not_trusted(node: Any, node_name: str, play: Play) -> None:
    refused = play({"nvidia_driver_repo_key_fingerprints": ["EB693B3035CD5710E231E123A4B469963BF863CC"]})
    assert refused.rc != 0 and "nvidia_driver_repo_key_fingerprints" in refused.output, refused
    assert not node.file("/usr/share/keyrings/gpufleet-nvidia.asc.candidate").exists
    step(play, node_name)


def test_removal_leaves_nothing_but_the_blacklist(node: Any, node_name: str, play: Play) -> None:
    brought = set(node.file("/var/lib/gpufleet/nvidia_driver/installed_packages").content_string.split())
    step(play, node_name, nvidia_driver_state="absent")
    assert installed(node) == {}
    said = node.run("dpkg-query -W -f '${db:Status-Abbrev} ${Package}\\n'").stdout
    left = {line.split()[1] for line in said.splitlines() if line.split()[0][1] == "i"}
    assert not brought & left
    found = node.run(
        "find /etc /var/lib/gpufleet /usr/share/keyrings -name '*gpufleet*nvidia*' -o -name '*gpufleet*nouveau*'"
    )
    assert found.stdout.split() == ["/etc/modprobe.d/gpufleet-nouveau.conf"]
    assert node.run("apt-get check").rc == 0


def test_nouveau_may_come_back(node: Any, node_name: str, play: Play) -> None:
    step(play, node_name, nvidia_driver_state="absent", nvidia_driver_nouveau_back=True)
    assert not node.file("/etc/modprobe.d/gpufleet-nouveau.conf").exists


def test_and_in_again(node: Any, node_name: str, play: Play) -> None:
    step(play, node_name)
    assert dkms(node)
