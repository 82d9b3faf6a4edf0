# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What nodes say to the role nvidia_driver, and what the role says at its end."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.llm.plugins.module_utils.gpu_gather import normalise_gpu_facts
from ansible_collections.gpufleet.llm.plugins.plugin_utils import driver, driver_node, driver_outcome

ROOT = Path(__file__).resolve().parents[4]

# What Debian 12 really offered in November 2026: a security update of one source package out of two.
MADISON = """\
nvidia-smi | 535.309.01-0+deb12u1 | http://mirror.example.org/debian-security bookworm-security/non-free amd64 Packages
nvidia-smi | 535.261.03-1 | http://mirror.example.org/debian bookworm/non-free amd64 Packages
nvidia-open-kernel-dkms | 535.261.03-1 | http://mirror.example.org/debian bookworm/contrib amd64 Packages
nvidia-kernel-dkms | 535.309.01-0+deb12u1 | http://mirror.example.org/debian-security bookworm-security/non-free amd64 Packages
nvidia-kernel-dkms | 535.261.03-1 | http://mirror.example.org/debian bookworm/non-free amd64 Packages
nvidia-graphics-drivers | 535.261.03-1 | http://mirror.example.org/debian bookworm/non-free Sources
"""


@pytest.mark.parametrize(
    ("coupled", "wanted", "branch", "version"),
    [
        (["nvidia-smi", "nvidia-open-kernel-dkms"], "", "535", "535.261.03"),
        (["nvidia-smi", "nvidia-kernel-dkms"], "", "535", "535.309.01"),
        (["nvidia-smi", "nvidia-kernel-dkms"], "535.261.03", "535", "535.261.03"),
        (["nvidia-smi", "nvidia-open-kernel-dkms"], "535.309.01", "535", ""),
        (["nvidia-smi"], "", "580", ""),
        (["nvidia-smi"], "", "", "535.309.01"),
        (["nvidia-smi", "nvidia-fabricmanager"], "", "535", ""),
    ],
)
def test_the_newest_version_that_all_parts_have(coupled: list[str], wanted: str, branch: str, version: str) -> None:
    found = driver_node.pick_versions(MADISON, coupled, wanted, branch)
    assert found["version"] == version
    if version:
        assert set(found["versions"]) == set(coupled)
        assert {driver_node.upstream(v) for v in found["versions"].values()} == {version}


def test_versions_compare_as_numbers() -> None:
    text = "a | 580.95.05-1 | x\na | 580.105.08-1 | x\n"
    assert driver_node.pick_versions(text, ["a"], "", "580")["version"] == "580.105.08"


def test_what_is_installed_moves_with_the_driver_or_goes() -> None:
    there = {
        "nvidia-alternative": "590.1-1",  # offered in the new version
        "libnvidia-compute": "590.1-1",  # a name that the other branch has not
        "nvidia-kernel-common": "20220217+3",  # not the driver's version
        "nvidia-modprobe": "535.1.01-1",  # same branch, its own patch level
    }
    text = MADISON + "nvidia-alternative | 535.261.03-1 | x y Packages\n"
    found = driver_node.pick_versions(text, ["nvidia-smi", "nvidia-open-kernel-dkms"], "", "535", there)
    assert found["versions"]["nvidia-alternative"] == "535.261.03-1"
    assert found["gone"] == ["libnvidia-compute"]


def test_what_is_missing_is_named() -> None:
    assert driver_node.pick_versions(MADISON, ["nvidia-smi", "nvidia-fabricmanager"])["missing"] == [
        "nvidia-fabricmanager"
    ]


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("535.261.03-1", "535.261.03"),
        ("3:580.105.08-1.el9", "580.105.08"),
        ("535.309.01-0+deb12u1", "535.309.01"),
        ("580.95.05-0ubuntu0.22.04.2", "580.95.05"),
    ],
)
def test_upstream_version(text: str, version: str) -> None:
    assert driver_node.upstream(text) == version


REHEARSAL = """\
Inst nvidia-smi (535.261.03-1 Debian:12.12/oldstable [amd64])
Inst dkms [3.0.10-1] (3.0.10-8 Debian [all])
Conf nvidia-smi
"""


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (REHEARSAL, ""),
        (REHEARSAL + "Remv nvidia-open-kernel-dkms [535.261.03-1]\n", ""),
        (REHEARSAL + "Inst linux-image-6.1.0-56-amd64 (6.1.192-2 Debian [amd64])\n", "kernels"),
        (REHEARSAL + "Inst linux-image-generic [5.15.0.1] (5.15.0.2 Ubuntu [amd64])\n", "kernels"),
        (REHEARSAL + "Remv linux-image-6.1.0-40-amd64 [6.1.1]\n", "kernels"),
        (REHEARSAL + "Remv postgresql [15]\n", "postgresql"),
        (REHEARSAL + "Purg nvidia-container-toolkit [1.17.8-1]\n", "nvidia-container-toolkit"),
        (REHEARSAL + "Purg libcuda1:i386 [580.105.08-1]\n", ""),
        (" nvidia-smi : Depends: x (= 1) but it is not installable\nE: you have held broken packages.\n", "held broken"),
        ("E: Version '1' for 'nvidia-smi' was not found\n", "was not found"),
    ],
)  # fmt: skip
def test_a_rehearsal_shows_what_must_not_be(text: str, problem: str) -> None:
    found = driver_node.read_rehearsal(text)
    assert found["ok"] is not bool(problem)
    assert problem in " ".join(found["problems"])


PARTS = """libcuda1 libcuda1:i386 libcudadebugger1 libnvcuvid1 libnvidia-ml1 libnvidia-compute-580-server cuda-drivers cuda-drivers-580
nvidia-driver-cuda nvidia-kernel-open-dkms nvidia-fabricmanager-580 nvidia-persistenced nvidia-cuda-mps nvidia-driver-pinning-580
linux-modules-nvidia-580-server-open-6.8.0-1-generic firmware-nvidia-gsp xserver-xorg-video-nvidia glx-alternative-nvidia
kmod-nvidia-open-dkms xorg-x11-drv-nvidia-cuda-libs libxnvctrl0 libnvidia-nscq-580 nvidia-imex-580""".split()
NO_PARTS = """nvidia-container-toolkit nvidia-container-toolkit-base libnvidia-container1 libnvidia-container-tools nvidia-docker2
nvidia-fs nvidia-fs-dkms nvidia-gds-12-4 nvidia-cuda-toolkit nvidia-cuda-dev nvidia-cudnn nvidia-driver-assistant libnvidia-ml-dev
firmware-nvidia-graphics linux-firmware-nvidia dnf-plugin-nvidia python3-pynvml cuda-toolkit-12-4 cuda-nvcc-12-4 libcudart12 dkms
""".split()


@pytest.mark.parametrize("name", [*PARTS, *NO_PARTS])
def test_what_is_part_of_a_driver(name: str) -> None:
    """Only that goes with it: containers go on finding their toolkit."""
    assert driver_node.driver_part(name) is (name in PARTS)


def test_what_the_role_brought_may_go_too() -> None:
    assert driver_node.read_rehearsal("Purg dkms [3]\n", ["dkms"])["ok"]
    assert not driver_node.read_rehearsal("Purg dkms [3]\n")["ok"]


def test_headers_are_no_kernel() -> None:
    text = (
        "Inst linux-headers-6.1.0-56-cloud-amd64 (6.1.192-2 Debian [amd64])\nInst linux-kbuild-6.1 (6.1.192-2 Debian)\n"
    )
    assert driver_node.read_rehearsal(text)["ok"]


def test_only_what_the_role_brought_is_taken_away() -> None:
    text = "Remv gcc-12 [12.2]\nRemv dkms [3]\nRemv linux-image-6.1.0-40-amd64 [6.1.1]\n"
    assert driver_node.removable(text, ["dkms", "gcc-12", "make"]) == ["dkms", "gcc-12"]


def test_the_reason_of_a_failed_build() -> None:
    log = (
        "  gcc-12 -Wall -Werror=strict-prototypes -c nv-pci.c\n"
        "/build/nvidia/nv-pci.c:223:9: error: too few arguments to function 'pci_resize_resource'\n"
        "make[3]: *** [/usr/src/linux-headers/scripts/Makefile.build:255: nv-pci.o] Error 1\n"
    )
    reason = driver_node.dkms_reason(log)
    assert "too few arguments to function 'pci_resize_resource'" in reason and "-Wall" not in reason
    assert driver_node.dkms_reason(" CONFTEST: drm_gem_object_put_unlocked\n LD [M] nvidia.ko\n") == ""


def test_an_unasked_probe_is_an_empty_one_with_all_keys() -> None:
    empty = driver_node.parse_probe("")
    assert not empty["known"] and empty["packages"] == {} and empty["users"] == [] and empty["container"] == ""
    assert set(driver_node.parse_probe("== own\n/x\n")) == set(empty)


def test_packages_of_the_probe() -> None:
    text = "== packages\nii nvidia-smi 1-1\nhi libcuda1:amd64 2-1\nrc nvidia-old 3-1\nun nvidia-virtual\n"
    text += "iF nvidia-kernel-dkms 4-1\n"
    found = driver_node.parse_probe(text)["packages"]
    assert set(found) == {"nvidia-smi", "libcuda1", "nvidia-kernel-dkms"}
    assert found["libcuda1"]["hold"] and not found["nvidia-smi"]["hold"]


def test_the_probe_itself_runs_in_a_plain_sh_and_changes_nothing(tmp_path: Path) -> None:
    script = (ROOT / "roles/nvidia_driver/files/probe.sh").read_text()
    own = tmp_path / "own file"
    own.write_text("")
    done = subprocess.run(
        ["/bin/sh", "-c", script, "sh", str(tmp_path), str(own), "/nonexistent"],
        capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == ""
    found = driver_node.parse_probe(done.stdout)
    assert found["known"] and found["own"] == [str(own)]
    assert str(tmp_path) in found["disk"]


def test_the_script_that_looks_for_modules(tmp_path: Path) -> None:
    """On a machine without any module: a sentence, not an error."""
    done = subprocess.run(
        ["/bin/sh", "-c", driver.MODULE_SCRIPT, "sh", "580.1", "running"], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() and done.stdout.strip() != "ok"


# -- the outcome ----------------------------------------------------------------------------------------------------------


def outcome(
    action: str = "install",
    *,
    container: str = "",
    reboot: str = "required_fact",
    plan: Mapping[str, Any] | None = None,
    drift: Sequence[str] = (),
    **facts: Any,
) -> dict[str, Any]:
    decided = {
        **driver.EMPTY,
        "action": action,
        "reason": "why",
        "flavour": "open",
        "version": "580.1",
        "method": "nvidia_repo",
        **(plan or {}),
    }
    gpus = [{"pci_address": "0000:01:00.0", "pci_device_id": "1eb8"}]
    told = normalise_gpu_facts({"gpus": gpus, "state": "x", "detail": "d", "remedy": "r", "usable": False, **facts})
    seen = {"differs": bool(drift), "drift": list(drift)}
    return driver_outcome.outcome(decided, told, seen, container=container, reboot=reboot, changed=True, rebooted=False)


MISMATCH = {"loaded": True, "loaded_version": "1", "library_version": "2", "versions_match": False}


@pytest.mark.parametrize("reboot", ["never", "required_fact", "auto"])
def test_a_reboot_that_is_wanted_is_a_state_with_a_remedy(reboot: str) -> None:
    told = outcome(reboot=reboot, driver=MISMATCH)
    assert told["reboot_required"] is True
    (check,) = [c for c in told["result"]["checks"] if not c["ok"]]
    assert check["name"] == "reboot" and "module 1 is loaded, library 2" in check["detail"] and check["remedy"]


def test_modules_of_the_other_flavour_want_a_reboot_once_theirs_are_installed() -> None:
    loaded = {"loaded": True, "loaded_version": "580.1", "versions_match": True, "flavour": "proprietary"}
    told = outcome(plan={"reboot_wanted": True}, driver=loaded)
    assert told["reboot_required"] is True
    (check,) = [c for c in told["result"]["checks"] if not c["ok"]]
    assert check["name"] == "reboot" and "proprietary modules are loaded, open ones are installed" in check["detail"]
    # with --check nothing is installed yet that a reboot could bring into force
    assert not outcome(plan={"reboot_wanted": True}, drift=["package:x"], driver=loaded)["reboot_required"]


@pytest.mark.parametrize("reboot", ["never", "required_fact", "auto"])
def test_a_module_that_outlives_its_removal_is_told_as_what_it_is(reboot: str) -> None:
    """No reboot was tried, so none has failed, and this node need not be the controller."""
    told = outcome("remove", reboot=reboot, driver={"loaded": True, "loaded_version": "580.1"})
    assert told["reboot_required"] is True
    (check,) = [c for c in told["result"]["checks"] if not c["ok"]]
    assert "module 580.1 is still loaded" in check["detail"]
    assert "stays loaded until a reboot" in check["remedy"] and "controller" not in check["remedy"]


def test_nouveau_wants_a_reboot() -> None:
    assert outcome(kernel={"nouveau_loaded": True})["reboot_required"]


def test_a_container_wants_none() -> None:
    told = outcome(container="podman", driver={"module_path": "/x.ko"})
    assert not told["reboot_required"] and told["result"]["ok"]
    assert outcome(driver={"module_path": "/x.ko"})["reboot_required"]


def test_a_gpu_that_does_not_answer_is_not_ok_and_says_what_to_do() -> None:
    told = outcome(driver={"loaded": True})["result"]
    assert not told["ok"] and {"name": "gpu", "ok": False, "detail": "x: d", "remedy": "r"} in told["checks"]


def test_skipped_nodes_are_ok_and_say_why() -> None:
    told = outcome("skip")["result"]
    assert told["ok"] and told["notes"] == ["nothing to do: why"]


def test_the_result_has_the_keys_of_the_contract() -> None:
    assert set(outcome()["result"]) == {"role", "ok", "changed", "checks", "versions", "notes"}
