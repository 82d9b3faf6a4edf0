# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role nvidia_driver on real nodes: what is there, and what of it drifts and is healed.

debian12 has Debian's real driver, built by the real DKMS; the others NVIDIA-shaped packages. What comes after is in
test_lifecycle.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

RECORD = "/var/lib/gpufleet/nvidia_driver/installed_packages"
BLACKLIST = "/etc/modprobe.d/gpufleet-nouveau.conf"
UNATTENDED = "/etc/apt/apt.conf.d/52gpufleet-nvidia-driver"
DROP_IN = "/etc/systemd/system/nvidia-persistenced.service.d/10-gpufleet.conf"


def lines(node: Any, command: str, *arguments: str) -> list[str]:
    done = node.run(command, *arguments)
    assert done.rc == 0, done.stderr
    return done.stdout.splitlines()


def is_real(node: Any) -> bool:
    return node.system_info.distribution == "debian" and node.system_info.release.startswith("12")


def driver_version(node: Any) -> str:
    package = "nvidia-smi" if is_real(node) else "libnvidia-compute-580"
    return str(node.package(package).version).partition("-")[0]


def test_the_modules_are_built_in_the_version_of_the_library(node: Any) -> None:
    found = lines(
        node,
        "sh -c %s",
        "for f in $(find /lib/modules/ -path '*dkms*' -name 'nvidia*.ko*' | "
        "grep -E '/nvidia(-current)?(-open)?\\.ko'); do modinfo -F version $f; done | sort -u",
    )
    assert found == [driver_version(node)]


def test_debians_real_driver_is_built_by_the_real_dkms(node: Any) -> None:
    if not is_real(node):
        pytest.skip("fixture packages")
    (status,) = [line for line in lines(node, "dkms status") if line.startswith("nvidia")]
    assert status.startswith(f"nvidia-current/{driver_version(node)}") and "installed" in status
    assert node.run("nvidia-smi").rc == 9  # it cannot reach a driver: the kernel is the host's


def test_all_parts_have_one_version_and_are_held(node: Any) -> None:
    held = set(lines(node, "apt-mark showhold"))
    parts = {"nvidia-smi", "libcuda1", "nvidia-kernel-dkms"} if is_real(node) else {
        "libnvidia-compute-580", "nvidia-utils-580", "nvidia-dkms-580-open",
    }  # fmt: skip
    assert parts <= held
    assert {str(node.package(p).version).partition("-")[0] for p in parts} == {driver_version(node)}


def test_apt_would_not_exchange_it(node: Any) -> None:
    said = lines(node, "apt-get --simulate dist-upgrade")
    assert not [line for line in said if line.startswith("Inst") and "nvidia" in line]


def test_no_kernel_came_with_it(node: Any) -> None:
    assert not [line for line in lines(node, "dpkg-query -W -f '${Package}\\n'") if line.startswith("linux-image")]


def test_nouveau_is_blacklisted_in_a_file_of_its_own(node: Any) -> None:
    assert "blacklist nouveau" in node.file(BLACKLIST).content_string
    assert "blacklist nouveau" in node.run("modprobe --showconfig").stdout


def test_apt_reads_the_narrow_blacklist(node: Any) -> None:
    said = "\n".join(lines(node, "apt-config dump Unattended-Upgrade::Package-Blacklist"))
    assert "nvidia-" in said and "libnvidia-" in said and "linux-image" not in said


def test_the_persistence_daemon_is_enabled_and_not_failed(node: Any) -> None:
    unit = node.service("nvidia-persistenced")
    assert unit.is_enabled
    assert node.run("systemctl is-failed nvidia-persistenced").stdout.strip() != "failed"
    assert "ConditionPathExists=/proc/driver/nvidia/version" in node.file(DROP_IN).content_string
    # started without the module: skipped, not failed
    assert node.run("systemctl start nvidia-persistenced").rc == 0
    assert node.run("systemctl is-failed nvidia-persistenced").stdout.strip() != "failed"


def test_a_run_on_a_converged_node_costs_few_remote_calls(node: Any, node_name: str, play: Callable[..., Any]) -> None:
    done = play()
    assert done.rc == 0 and done.changed == {node_name: 0}, done
    # the facts of the distribution and of the GPU are asked for by each of these plays; the role itself looks twice
    assert int(done.output.rpartition(node_name)[2].split(":")[1].split()[0]) <= 4, done


DRIFT = {
    "unheld": "apt-mark unhold $(apt-mark showhold | head -n 1)",
    "blacklist gone": f"rm {BLACKLIST}",
    "blacklist edited": f"echo '# nothing' > {BLACKLIST}",
    "unattended edited": f"sed -i '/libnvidia/d' {UNATTENDED}",
    "drop-in gone": f"rm {DROP_IN}",
    "daemon disabled": "systemctl disable nvidia-persistenced",
    "mode opened": f"chmod 0666 {BLACKLIST}",
    "source edited": "sed -i 's/^Types: deb$/Types: deb deb-src/' /etc/apt/sources.list.d/gpufleet-nvidia*.sources",
}


@pytest.mark.parametrize("case", DRIFT)
def test_drift_is_seen_and_healed(node: Any, node_name: str, play: Callable[..., Any], case: str) -> None:
    broken = node.run("sh -c %s", DRIFT[case])
    assert broken.rc == 0, broken.stderr
    assert play(None, "--check").changed[node_name] > 0
    healed = play()
    assert healed.rc == 0 and healed.changed[node_name] > 0, healed
    again = play(None, "--check", "--diff")
    assert again.changed == {node_name: 0} and "+++ after" not in again.output, again


def test_a_module_that_is_gone_is_built_again(node: Any, node_name: str, play: Callable[..., Any]) -> None:
    if is_real(node) and not os.environ.get("GPUFLEET_NIGHTLY"):
        pytest.skip("a real build of minutes: GPUFLEET_NIGHTLY=1")
    assert node.run("sh -c %s", "find /lib/modules -name 'nvidia*.ko*' -delete").rc == 0
    seen = play(None, "--check", "--diff")
    assert seen.changed[node_name] > 0 and "module:built" in seen.output, seen
    if is_real(node):  # a fixture has no headers of this kernel, so DKMS can build nothing
        healed = play()
        assert healed.rc == 0, healed
        test_the_modules_are_built_in_the_version_of_the_library(node)
        assert play().changed == {node_name: 0}


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"nvidia_driver_kernel_headers": "auto", "nvidia_driver_force": True}, ["kernel-headers", "linux-headers-"]),
        (
            {"nvidia_driver_branch": "470", "nvidia_driver_version": "", "nvidia_driver_flavour": "open"},
            ["module-flavour", "branch 470 has no open modules"],
        ),
        ({"nvidia_driver_method": "runfile", "nvidia_driver_version": "525.60.13"}, ["source", "one-method", "switch_method"]),
        ({"nvidia_driver_method": "runfile"}, ["nvidia_driver_version"]),
    ],
)  # fmt: skip
def test_refusals_come_before_the_first_change(
    node: Any, play: Callable[..., Any], extra: dict[str, Any], words: list[str]
) -> None:
    before = lines(node, "sh -c %s", "dpkg-query -W; find /etc -newer /proc/1 -type f | sort | xargs -r sha256sum")
    refused = play(extra)
    assert refused.rc != 0
    for word in words:
        assert word in refused.output, refused
    assert (
        lines(node, "sh -c %s", "dpkg-query -W; find /etc -newer /proc/1 -type f | sort | xargs -r sha256sum") == before
    )
