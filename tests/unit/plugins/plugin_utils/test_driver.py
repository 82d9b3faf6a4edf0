# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The decision of the role nvidia_driver over cards, distributions, methods and states of a node."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.gpufleet.llm.plugins.plugin_utils import driver, driver_files, driver_repair, driver_table

ROOT = Path(__file__).resolve().parents[4]

# PCI device ids
T4, P100, GTX1060, H100, RTX5090, K80, V100, RTX4060TI = "1eb8", "15f8", "1c03", "2330", "2b85", "102d", "1db4", "2803"

SYSTEMS = {
    "debian12": ("Debian", "12.15", "Debian", "bookworm", "6.1.0-55-cloud-amd64", "apt"),
    "debian13": ("Debian", "13.1", "Debian", "trixie", "6.12.48+deb13-amd64", "apt"),
    "ubuntu22": ("Ubuntu", "22.04", "Debian", "jammy", "5.15.0-122-generic", "apt"),
    "ubuntu24": ("Ubuntu", "24.04", "Debian", "noble", "6.8.0-45-generic", "apt"),
    "rocky9": ("Rocky", "9.4", "RedHat", "Blue Onyx", "5.14.0-427.13.1.el9_4.x86_64", "dnf"),
    "rocky95": ("Rocky", "9.5", "RedHat", "Blue Onyx", "5.14.0-503.14.1.el9_5.x86_64", "dnf"),
    "arch": ("Archlinux", "rolling", "Archlinux", "", "6.17.1-arch1-1", "pacman"),
}
DEBIAN_SOURCES = """\
== targets
|# /etc/apt/sources.list.d/debian.sources
|Types: deb
|URIs: http://mirror.example.org/debian
|Suites: bookworm bookworm-updates
|Components: main
|Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
|
|Types: deb
|URIs: http://mirror.example.org/debian-security
|Suites: bookworm-security
|Components: main
|Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""
FINE = "== headers_candidate\n1\n== disk\n/usr 90000000\n/var 90000000\n/boot 900000\n"


def system(name: str) -> dict[str, str]:
    keys = ("distribution", "distribution_version", "os_family", "codename", "kernel", "package_manager")
    return {**dict(zip(keys, SYSTEMS[name], strict=True)), "machine": "x86_64"}


def settings(**more: Any) -> dict[str, Any]:
    defaults = yaml.safe_load((ROOT / "roles/nvidia_driver/defaults/main.yml").read_text())
    out = {k.removeprefix("nvidia_driver_"): v for k, v in defaults.items()}
    out["mok_password_given"] = bool(more.pop("mok_password", "one-time"))
    return {**out, "mirror_profile": "upstream", "mirror_overrides": {}, **more}


def gpu(*devices: str, **more: Any) -> dict[str, Any]:
    cards = [{"pci_address": f"0000:{n:02x}:00.0", "pci_device_id": d} for n, d in enumerate(devices, 1)]
    facts: dict[str, Any] = {
        "gpus": cards,
        "state": "driver_not_installed",
        "detail": "",
        "remedy": "",
        "usable": False,
    }
    return {**facts, **more}


def working(version: str, *devices: str, flavour: str = "open", **more: Any) -> dict[str, Any]:
    found = {
        "loaded": True, "loaded_version": version, "library_version": version, "versions_match": True,
        "module_version": version, "flavour": flavour, "module_path": "/lib/modules/x/nvidia.ko",
    }  # fmt: skip
    return gpu(*(devices or (T4,)), state="ok", usable=True, driver=found, **more)


def decide(where: str, facts: dict[str, Any], probe: str | None = None, **more: Any) -> dict[str, Any]:
    fine = FINE + DEBIAN_SOURCES.replace("bookworm", system(where)["codename"])
    return driver.decide(settings(**more), system(where), facts, fine if probe is None else probe)


def failing(plan: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {c["name"]: c for c in plan["preflight"] if not c["ok"]}


def names(plan: dict[str, Any]) -> set[str]:
    return {p["name"] for p in plan["packages"]}


# -- what is there ---------------------------------------------------------------------------------------------------------

REST = "libcuda1 libnvidia-ml1 nvidia-kernel-support nvidia-smi".split()


@pytest.mark.parametrize(
    ("more", "recorded", "method"),
    [
        ("", "", "distribution"),
        ("nvidia-driver-cuda", "", "nvidia_repo"),
        # Somebody removed what has a name of NVIDIA's own; the role had brought it with the rest.
        ("", "nvidia-driver-cuda", "nvidia_repo"),
        # It was exchanged for Debian's since.
        ("libnvidia-nvvm4", "nvidia-driver-cuda libnvidia-nvvm4", "distribution"),
        ("nvidia-tesla-470-smi", "nvidia-driver-cuda nvidia-tesla-470-smi", "distribution"),
        # apt brought another one in the place of what was removed.
        ("nvidia-kernel-dkms", "nvidia-driver-cuda", "nvidia_repo"),
    ],
)
def test_the_source_of_a_debian_driver(more: str, recorded: str, method: str) -> None:
    found = dict.fromkeys([*REST, *more.split()], "580.105.08-1")
    packages = "".join(f"ii {name} {version}\n" for name, version in found.items())
    written = "\n".join([*REST, *recorded.split()] if recorded else [])
    probe = f"{FINE}{DEBIAN_SOURCES}== packages\n{packages}== recorded\n{written}\n"
    facts = gpu(T4, driver={"library_version": "580.105.08"})
    assert decide("debian12", facts, probe, method="nvidia_repo")["installed"]["method"] == method


# -- branch and flavour by the card ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "branch", "flavour"),
    [
        (T4, "580", "open"),
        (H100, "580", "open"),
        (RTX5090, "580", "open"),
        (RTX4060TI, "595", "open"),
        (P100, "580", "proprietary"),
        (GTX1060, "580", "proprietary"),
        (V100, "535", "proprietary"),
        # 535 ships both and prefers the proprietary ones
        (T4, "535", "proprietary"),
        # the book's branch
        (T4, "525", "proprietary"),
        (T4, "470", "proprietary"),
    ],
)
def test_flavour_follows_card_and_branch(device: str, branch: str, flavour: str) -> None:
    assert decide("ubuntu22", gpu(device), branch=branch)["flavour"] == flavour


@pytest.mark.parametrize(
    ("device", "more", "check", "remedy"),
    [
        (P100, {"branch": "590"}, "driver-drives-card", "nvidia_driver_branch: '580'"),
        (GTX1060, {"branch": "610"}, "driver-drives-card", "'580'"),
        (K80, {}, "driver-drives-card", "'470'"),
        (RTX5090, {"branch": "550"}, "driver-drives-card", "'580'"),
        (P100, {"flavour": "open"}, "module-flavour", "proprietary"),
        (RTX5090, {"flavour": "proprietary"}, "module-flavour", "open"),
        (T4, {"branch": "510", "flavour": "open"}, "module-flavour", "proprietary"),
        (T4, {"branch": "620", "flavour": "proprietary"}, "module-flavour", "open"),
    ],
)
def test_a_card_that_the_wish_does_not_fit_is_refused_with_the_way_out(
    device: str, more: dict[str, Any], check: str, remedy: str
) -> None:
    found = failing(decide("ubuntu22", gpu(device), method="nvidia_repo", **more))
    assert remedy in found[check]["remedy"]


def test_cards_that_share_no_flavour_are_refused() -> None:
    assert "one-driver-for-all-cards" in failing(decide("ubuntu22", gpu(P100, RTX5090)))


def test_two_generations_share_the_flavour_that_drives_both() -> None:
    assert decide("ubuntu22", gpu(P100, T4))["flavour"] == "proprietary"


# -- method ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "device", "more", "method"),
    [
        ("debian12", T4, {}, "nvidia_repo"),
        ("debian12", T4, {"branch": "535"}, "distribution"),
        ("debian13", T4, {"branch": "550"}, "distribution"),
        ("debian13", T4, {}, "nvidia_repo"),
        ("ubuntu22", T4, {}, "distribution"),
        ("ubuntu22", T4, {"branch": "590"}, "nvidia_repo"),
        ("rocky9", T4, {}, "nvidia_repo"),
        ("arch", RTX4060TI, {"branch": ""}, "distribution"),
        ("debian12", T4, {"branch": ""}, "distribution"),
    ],
)
def test_method_auto(where: str, device: str, more: dict[str, Any], method: str) -> None:
    plan = decide(where, gpu(device), **more)
    assert plan["method"] == method
    assert not failing(plan), failing(plan)


def test_nvswitch_without_a_fabric_manager_in_the_source() -> None:
    switched = gpu(H100, nvswitch={"count": 4})
    assert decide("debian12", switched, branch="")["method"] == "nvidia_repo"
    assert (
        "802" in failing(decide("debian12", switched, method="distribution", branch="535"))["fabric-manager"]["remedy"]
    )


def test_fabric_manager_only_with_nvswitch_and_at_the_drivers_version() -> None:
    version = "580.105.08"
    with_switch = decide("ubuntu22", gpu(H100, nvswitch={"count": 4}), version=version, method="nvidia_repo")
    manager = next(p for p in with_switch["packages"] if "fabricmanager" in p["name"])
    assert manager["coupled"] and manager["version"] == f"{version}-*"
    assert "nvidia-fabricmanager.service" in {s["name"] for s in with_switch["services"]}
    assert not any("fabricmanager" in n for n in names(decide("ubuntu22", gpu(H100), version=version)))
    waits = next(f for f in with_switch["files"] if "fabricmanager" in f["path"])["content"]
    # for the module, and not for the device nodes of NVSwitch, which the fabric manager makes itself
    assert waits.splitlines()[1:] == [
        "[Unit]",
        "Wants=systemd-udev-settle.service",
        "After=systemd-udev-settle.service",
        "ConditionPathExists=/proc/driver/nvidia/version",
    ]
    never = decide("ubuntu22", gpu(H100, nvswitch={"count": 4}), version=version, fabricmanager="never")
    assert not any("fabricmanager" in n for n in names(never))


# -- names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "device", "more", "wanted", "absent"),
    [
        ("debian12", T4, {"branch": "535"}, {"nvidia-kernel-dkms", "nvidia-smi", "libcuda1"}, {"nvidia-open-kernel-dkms"}),
        ("debian13", T4, {"branch": "550", "flavour": "open"}, {"nvidia-open-kernel-dkms"}, {"nvidia-kernel-dkms"}),
        ("debian12", T4, {}, {"nvidia-driver-cuda", "nvidia-kernel-open-dkms"}, {"nvidia-kernel-dkms"}),
        ("debian12", P100, {}, {"nvidia-driver-cuda", "nvidia-kernel-dkms"}, {"nvidia-kernel-open-dkms"}),
        ("ubuntu22", T4, {}, {"nvidia-dkms-580-server-open", "nvidia-utils-580-server"}, {"nvidia-dkms-580-server"}),
        ("ubuntu22", P100, {}, {"nvidia-dkms-580-server"}, {"nvidia-dkms-580-server-open"}),
        (
            "ubuntu22", T4, {"secure_boot": "signed"},
            {"linux-modules-nvidia-580-server-open-5.15.0-122-generic"}, {"nvidia-dkms-580-server-open"},
        ),
        ("ubuntu22", T4, {"method": "nvidia_repo"}, {"libnvidia-compute-580", "nvidia-dkms-580-open"}, {"nvidia-dkms-580"}),
        ("ubuntu24", T4, {"branch": "590"}, {"libnvidia-compute", "nvidia-dkms-open"}, {"nvidia-dkms"}),
        ("rocky9", T4, {}, {"nvidia-driver-cuda", "kmod-nvidia-open-dkms"}, {"kmod-nvidia-latest-dkms"}),
        ("rocky9", P100, {}, {"kmod-nvidia-latest-dkms"}, {"kmod-nvidia-open-dkms"}),
        ("arch", RTX4060TI, {"branch": ""}, {"nvidia-open-dkms", "nvidia-utils"}, {"nvidia-open"}),
    ],
)  # fmt: skip
def test_packages(where: str, device: str, more: dict[str, Any], wanted: set[str], absent: set[str]) -> None:
    plan = decide(where, gpu(device), **more)
    assert wanted <= names(plan)
    assert absent <= set(plan["absent_packages"])
    assert not names(plan) & set(plan["absent_packages"])


def test_a_desktop_gets_more_than_a_headless_node() -> None:
    assert "nvidia-driver" in names(decide("debian12", gpu(T4), branch="535", headless=False))
    assert "nvidia-driver" not in names(decide("debian12", gpu(T4), branch="535"))


@pytest.mark.parametrize(
    ("more", "pin"),
    [({}, "nvidia-driver-pinning-580"), ({"version": "580.105.08"}, "nvidia-driver-pinning-580.105.08")],
)
def test_nvidias_pinning_package(more: dict[str, Any], pin: str) -> None:
    plan = decide("debian12", gpu(T4), method="nvidia_repo", **more)
    assert plan["pins"] == [pin]


def test_an_exact_version_is_pinned_beside_nvidias_pin_of_the_branch() -> None:
    """A dependency that is not named in the transaction comes in the same version as what is."""
    facts = gpu(T4, driver={"library_version": "580.105.08", "module_version": "580.105.08"})
    probe = FINE + "== packages\nii nvidia-kernel-open-dkms 580.105.08-1\nii nvidia-driver-cuda 580.105.08-1\n"
    plan = decide("debian12", facts, probe, method="nvidia_repo")
    assert plan["pins"] == ["nvidia-driver-pinning-580"] and plan["preferences"]["version"] == "580.105.08"


def test_branches_without_a_pinning_package_are_pinned_by_a_file() -> None:
    plan = decide("ubuntu22", gpu(T4), method="nvidia_repo", branch="570")
    assert plan["pins"] == []
    assert plan["preferences"]["version"] == "570.*"
    assert not decide("ubuntu22", gpu(T4), method="nvidia_repo", branch="570", hold=False)["preferences"]["path"]


@pytest.mark.parametrize(
    ("where", "device", "modules", "stream"),
    [
        ("rocky9", T4, True, "580-open"),
        ("rocky9", P100, True, "580-dkms"),
        # the command is there or not; the distribution's number says nothing
        ("rocky9", T4, False, ""),
    ],
)
def test_module_stream(where: str, device: str, modules: bool, stream: str) -> None:
    probe = FINE + ("== dnf_modules\n/usr/lib/python3.9/site-packages/dnf/cli/commands/module.py\n" if modules else "")
    assert decide(where, gpu(device), probe)["stream"] == stream


NEWEST = FINE + "== dnf_modules\nx/module.py\n"


@pytest.mark.parametrize(
    ("device", "more", "branch", "stream"),
    [
        (T4, {}, "", "open-dkms"),
        (T4, {"flavour": "proprietary"}, "", "latest-dkms"),
        # the newest branch does not drive these any more
        (P100, {}, "580", "580-dkms"),
        (V100, {}, "580", "580-dkms"),
        (T4, {"version": "590.48.01"}, "590", "590-open"),
    ],
)
def test_no_branch_is_the_newest_that_drives_the_card(
    device: str, more: dict[str, Any], branch: str, stream: str
) -> None:
    plan = decide("rocky9", gpu(device), NEWEST, branch="", **more)
    assert (plan["branch"], plan["stream"]) == (branch, stream) and not failing(plan), failing(plan)


@pytest.mark.parametrize(
    ("where", "device", "method", "branch"),
    [
        ("debian12", T4, "distribution", "535"),
        ("debian12", K80, "distribution", "470"),
        ("debian12", P100, "nvidia_repo", "580"),
        ("ubuntu22", V100, "nvidia_repo", "580"),
        ("ubuntu22", T4, "nvidia_repo", ""),
    ],
)
def test_no_branch_with_other_sources(where: str, device: str, method: str, branch: str) -> None:
    plan = decide(where, gpu(device), branch="", method=method)
    assert plan["branch"] == branch and not failing(plan), failing(plan)


def test_no_branch_pins_what_came_and_not_its_branch() -> None:
    """What is wanted after the installation is what the installation brought."""
    first = decide("ubuntu22", gpu(T4), branch="", method="nvidia_repo")
    probe = FINE + f"== own\n{driver_files.RECORD}\n== packages\nii nvidia-dkms-open 590.48.01-0ubuntu1\n"
    for facts in (gpu(T4, driver=working("590.48.01")["driver"]), working("590.48.01")):
        then = decide("ubuntu22", facts, probe, branch="", method="nvidia_repo")
        assert then["version"] == "590.48.01" and then["preferences"]["version"] == "590.48.01"
        assert first["pins"] == then["pins"] == [] and names(first) == names(then)


def test_no_branch_stays_with_the_names_of_the_branch_that_is_there() -> None:
    facts, probe = broken("580.105.08", "ii nvidia-dkms-580-open 580.105.08-0ubuntu1")
    plan = decide("ubuntu22", facts, f"{probe}== own\n{driver_files.RECORD}\n", branch="")
    assert "nvidia-dkms-580-open" in names(plan) and plan["version"] == "580.105.08"


ROLLING = FINE + "== offered\n590.48.01-1\n"


@pytest.mark.parametrize(
    ("more", "branch", "refused"),
    [
        ({"branch": "570"}, "570", True),
        ({"branch": "590"}, "590", False),
        # Nobody asked for the default branch: what is offered.
        ({}, "", False),
        ({"flavour": "open"}, "", False),
        # perhaps among the packages that pacman has kept
        ({"version": "570.172.08"}, "570", False),
    ],
)
def test_arch_has_one_branch_and_is_not_asked_for_another_in_vain(
    more: dict[str, Any], branch: str, refused: bool
) -> None:
    plan = decide("arch", gpu(T4), ROLLING, **more)
    assert plan["method"] == "distribution" and plan["branch"] == branch
    found = failing(plan)
    assert set(found) == ({"source"} if refused else set())
    if refused:
        assert "590.48.01" in found["source"]["detail"] and "runfile" in found["source"]["remedy"]


def test_arch_does_not_drive_an_old_card_and_its_last_branch_is_named() -> None:
    found = failing(decide("arch", gpu(P100), ROLLING, branch=""))
    assert "590" in found["driver-drives-card"]["detail"] and "580" in found["driver-drives-card"]["detail"]


def test_arch_takes_what_is_offered_to_repair_a_driver() -> None:
    facts, probe = broken("580.105.08", "ii nvidia-open-dkms 580.105.08-1", state="module_missing_for_kernel")
    facts["driver"].update(OLD_KERNEL)
    plan = decide("arch", facts, f"{probe}== offered\n590.48.01-1\n")
    assert (plan["branch"], plan["version"]) == ("", "") and not failing(plan), failing(plan)


def test_the_headers_are_those_of_the_running_kernel() -> None:
    assert decide("debian12", gpu(T4))["headers"] == "linux-headers-6.1.0-55-cloud-amd64"
    assert decide("rocky9", gpu(T4))["headers"] == "kernel-devel-5.14.0-427.13.1.el9_4.x86_64"
    assert decide("arch", gpu(T4), branch="")["headers"] == "linux-headers"
    assert decide("debian12", gpu(T4), kernel_headers="linux-headers-amd64")["headers"] == "linux-headers-amd64"


def test_headers_that_cannot_be_had_stop_the_role_and_name_the_package() -> None:
    found = failing(decide("debian12", gpu(T4), "== disk\n/usr 90000000\n", branch="535"))["kernel-headers"]
    assert "linux-headers-6.1.0-55-cloud-amd64" in found["remedy"]
    newer = gpu(T4, kernel={"newest_installed": "6.1.0-56-cloud-amd64"})
    assert "reboot into it" in failing(decide("debian12", newer, "== boot\n", branch="535"))["kernel-headers"]["remedy"]
    there = gpu(T4, kernel={"headers_present": True})
    assert "kernel-headers" not in failing(decide("debian12", there, "== boot\n", branch="535"))


@pytest.mark.parametrize(
    ("where", "package"),
    [
        ("rocky9", "kernel-devel-5.14.0-427.13.1.el9_4.x86_64"),
        ("arch", "linux-headers"),
        ("ubuntu22", "linux-headers-5.15.0-122-generic"),
    ],
)
def test_headers_are_asked_for_by_every_package_manager(where: str, package: str) -> None:
    bare = FINE.replace("== headers_candidate\n1\n", "== headers_candidate\n")
    assert (
        package
        in failing(decide(where, gpu(T4), bare, method="nvidia_repo" if where != "arch" else "auto"))["kernel-headers"][
            "remedy"
        ]
    )
    assert "kernel-headers" not in failing(decide(where, gpu(T4), FINE))


@pytest.mark.parametrize("where", ["debian12", "rocky9", "arch"])
def test_a_compiler_that_cannot_be_had_stops_the_role_and_is_named(where: str) -> None:
    facts = gpu(T4, kernel={"headers_present": True})
    probe = FINE + "== build_missing\ngcc\nmake\nsomething-else\n"
    found = failing(decide(where, facts, probe))["build-tools"]
    assert "gcc, make can neither" in found["detail"] and "something-else" not in found["detail"] and found["remedy"]
    # also where the headers come another way
    assert "build-tools" in failing(decide(where, facts, probe, kernel_headers=""))
    assert "build-tools" not in failing(decide(where, facts, FINE))


def test_modules_that_come_built_want_no_compiler() -> None:
    plan = decide("ubuntu22", gpu(T4), FINE + "== build_missing\ngcc\n", method="distribution", secure_boot="signed")
    assert not plan["build"] and "build-tools" not in failing(plan)


def test_the_probe_asks_for_the_build_tools_of_the_table() -> None:
    probe = (ROOT / "roles/nvidia_driver/files/probe.sh").read_text()
    assert f'tools="{" ".join(driver_table.build_packages("apt"))} $' in probe
    assert f"pacman -T {' '.join(driver_table.build_packages('pacman'))})" in probe
    assert f"for tool in {' '.join(n for n in driver_table.build_packages('dnf') if n != 'dkms')}; do" in probe


def test_the_compiler_is_the_kernels() -> None:
    probe = FINE + "== proc_version\nLinux version 6.5.0-14-generic (x86_64-linux-gnu-gcc-12 (Ubuntu 12.3.0) 12.3.0)\n"
    assert "gcc-12" in decide("ubuntu22", gpu(T4), probe)["build_packages"]


# -- what is left alone ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "more", "action"),
    [
        ("580.105.08", {}, "keep"),
        # nothing is pinned: any working driver
        ("535.183.01", {}, "keep"),
        ("535.183.01", {"branch": "535"}, "keep"),
        ("535.183.01", {"version": "535.183.01"}, "keep"),
        ("535.183.01", {"branch": "570"}, "install"),
        ("580.105.08", {"version": "580.126.20"}, "install"),
        ("580.105.08", {"flavour": "proprietary"}, "install"),
        ("580.105.08", {"keep_working": False}, "install"),
        ("580.105.08", {"state": "absent"}, "remove"),
    ],
)
def test_a_working_driver_is_left_alone(version: str, more: dict[str, Any], action: str) -> None:
    plan = decide("ubuntu22", working(version), **more)
    assert plan["action"] == action
    if action == "keep":
        assert plan["items"] == []


def test_keeping_another_branch_than_asked_for_is_said() -> None:
    assert "keep_working" in decide("ubuntu22", working("535.183.01"))["reason"]


def mismatch() -> dict[str, Any]:
    facts = working("580.105.08")
    facts["driver"].update(loaded_version="580.95.05", versions_match=False)
    return {**facts, "usable": False, "state": "driver_library_mismatch"}


def test_a_driver_that_waits_for_a_reboot_is_not_installed_again() -> None:
    plan = decide("ubuntu22", mismatch())
    assert plan["action"] == "keep" and plan["reboot_wanted"] and "waits to be loaded" in plan["reason"]
    assert decide("ubuntu22", mismatch(), version="580.126.20")["action"] == "install"


DAEMONS = ["nvidia-fabricmanager.service", "nvidia-persistenced.service"]


def test_what_runs_is_stopped_for_a_reload_whoever_looks_after_it() -> None:
    """A daemon that holds the devices keeps the old module loaded."""
    facts = mismatch()
    facts["driver"]["persistence_daemon"] = True
    facts["nvswitch"] = {"count": 4, "fabric_manager_running": True}
    kept = decide("ubuntu22", facts)
    assert kept["action"] == "keep" and kept["services"] == [] and kept["stopped_for_reload"] == DAEMONS
    without = decide("ubuntu22", facts, OPEN_580, persistenced=False, fabricmanager="never")
    assert without["action"] == "install" and without["services"] == [] and without["stopped_for_reload"] == DAEMONS
    by_runfile = decide("ubuntu22", facts, OPEN_580, method="runfile", version="580.105.08")
    assert by_runfile["services"] == [] and by_runfile["stopped_for_reload"] == DAEMONS
    # and those that the plan has, though nobody saw them run
    assert decide("ubuntu22", mismatch(), OPEN_580)["stopped_for_reload"] == ["nvidia-persistenced.service"]
    assert decide("ubuntu22", mismatch())["stopped_for_reload"] == []


def test_a_working_driver_of_this_role_is_looked_after_at_its_own_version() -> None:
    probe = (
        FINE + f"== own\n{driver_files.RECORD}\n== packages\nii nvidia-dkms-535-server 535.183.01-0ubuntu0.22.04.1\n"
    )
    plan = decide("ubuntu22", working("535.183.01", flavour="proprietary"), probe)
    assert plan["action"] == "install" and plan["managed"]
    assert plan["branch"] == "535" and plan["version"] == "535.183.01" and plan["method"] == "distribution"


def test_a_blacklist_that_outlived_a_removal_does_not_make_a_driver_ours() -> None:
    plan = decide("ubuntu22", working("580.105.08"), FINE + f"== own\n{driver_files.NOUVEAU}\n")
    assert plan["action"] == "keep"


def test_arch_has_the_persistence_daemon_in_the_package_of_the_tools() -> None:
    plan = decide("arch", gpu(T4))
    assert names(plan) == {"nvidia-utils", "nvidia-open-dkms"}
    assert {"name": "nvidia-persistenced.service", "enabled": True, "active": False} in plan["services"]
    assert driver_files.PERSISTENCED in {f["path"] for f in plan["files"]}
    assert decide("arch", gpu(T4), persistenced=False)["services"] == []


def test_no_card_no_driver_unless_asked_for() -> None:
    assert decide("debian12", gpu())["action"] == "skip"
    assert decide("debian12", gpu())["items"] == []
    plan = decide("debian12", gpu(), without_gpu="install", branch="535")
    assert plan["action"] == "install" and not failing(plan)


def broken(
    version: str, packages: str, *devices: str, state: str = "gpu_error", **more: Any
) -> tuple[dict[str, Any], str]:
    """A driver that somebody installed and whose GPU does not work; its facts and the probe."""
    facts = {**working(version, *devices, **more), "usable": False, "state": state}
    return facts, f"{FINE}{DEBIAN_SOURCES}== packages\n{packages}\n"


REPO_570 = "ii nvidia-dkms-570-open 570.172.08-0ubuntu1\nii nvidia-utils-570 570.172.08-0ubuntu1"
SERVER_535 = {
    "open": "ii nvidia-dkms-535-server-open 535.183.01-0ubuntu0.22.04.1",
    "proprietary": "ii nvidia-dkms-535-server 535.183.01-0ubuntu0.22.04.1",
}
OLD_KERNEL = {
    "loaded": False, "loaded_version": None, "versions_match": None, "module_version": None, "module_path": None,
    "flavour": None, "other_kernels": ["5.15.0-121-generic"],
}  # fmt: skip


def test_what_is_broken_beside_the_driver_is_repaired_in_its_branch_method_and_version() -> None:
    """Only the fabric manager is missing."""
    facts, probe = broken("570.172.08", REPO_570, H100, state="fabric_manager_not_running", nvswitch={"count": 4})
    plan = decide("ubuntu22", facts, probe)
    assert (plan["action"], plan["method"], plan["version"]) == ("install", "nvidia_repo", "570.172.08")
    assert "nvidia-fabricmanager-570" in names(plan) and not failing(plan), failing(plan)
    assert "keep_working: false" in plan["reason"] and "fabric_manager_not_running" in plan["reason"]
    assert decide("ubuntu22", facts, probe, keep_working=False)["branch"] == "580"
    assert decide("ubuntu22", facts, probe, branch="590")["branch"] == "590"


def test_a_module_that_is_missing_for_a_new_kernel_is_built_of_the_same_driver() -> None:
    """Also in its flavour, which is not the one that its branch would get anew."""
    for flavour in ("open", "proprietary"):
        facts, probe = broken("535.183.01", SERVER_535[flavour], state="module_missing_for_kernel")
        facts["driver"].update(OLD_KERNEL)
        plan = decide("ubuntu22", facts, probe)
        assert (plan["branch"], plan["method"], plan["version"]) == ("535", "distribution", "535.183.01")
        assert plan["flavour"] == flavour and not failing(plan), failing(plan)
        # What this run leaves on the node makes the next one go on likewise, also while the module is not loaded yet.
        assert driver_files.FOUND in {f["path"] for f in plan["files"]}
        own = probe + f"== own\n{driver_files.RECORD}\n"
        again = decide("ubuntu22", facts, f"{own}{driver_files.FOUND}\n")
        assert (again["branch"], again["flavour"], again["files"]) == ("535", flavour, plan["files"])
        # A driver that the role brought goes where the variables say.
        other = decide("ubuntu22", facts, own)
        assert other["branch"] == "580"
        assert {"kind": "absent", "path": driver_files.FOUND} in other["items"]


@pytest.mark.parametrize(
    ("where", "version", "packages", "devices", "more"),
    [
        # a branch that does not drive the card, from either side
        ("ubuntu22", "590.48.01", "ii nvidia-dkms 590.48.01-0ubuntu1", [P100], {}),
        ("ubuntu22", "550.163.01", "ii nvidia-dkms-550-open 550.163.01-0ubuntu1", [RTX5090], {}),
        # a branch without the flavour that the card needs
        ("ubuntu22", "510.108.03", "ii nvidia-dkms-510 510.108.03-0ubuntu1", [RTX5090], {}),
        # a method that is asked for, or that has not this branch
        ("ubuntu22", "570.172.08", REPO_570, [T4], {"method": "distribution"}),
        ("debian12", "525.147.05", "ii nvidia-kernel-dkms 525.147.05-1", [T4], {}),
        ("debian12", "535.183.01", "ii nvidia-kernel-dkms 535.183.01-1", [H100], {"nvswitch": {"count": 4}}),
        # a branch that builds against no such kernel
        ("debian13", "418.226.00", "ii nvidia-driver-cuda 418.226.00-1", [T4], {}),
    ],
)  # fmt: skip
def test_what_cannot_be_repaired_gets_the_default_branch_or_a_refusal(
    where: str, version: str, packages: str, devices: list[str], more: dict[str, Any]
) -> None:
    facts, probe = broken(version, packages, *devices, nvswitch=more.pop("nvswitch", {}))
    plan = decide(where, facts, probe.replace("bookworm", system(where)["codename"]), **more)
    assert plan["action"] == "install" and plan["branch"] == "580"
    assert driver_files.FOUND not in {f["path"] for f in plan["files"]}
    if plan["remove_installer"]:
        assert "switch_method" in failing(plan)["one-method"]["remedy"]


def test_a_version_that_does_not_build_any_more_is_repaired_by_a_newer_one_of_its_branch() -> None:
    facts, probe = broken("525.85.05", "ii nvidia-dkms-525 525.85.05-0ubuntu1", flavour="proprietary")
    facts["driver"].update(OLD_KERNEL)
    newer = {**system("ubuntu22"), "kernel": "6.5.0-14-generic"}
    plan = driver.decide(settings(), newer, facts, probe)
    assert (plan["branch"], plan["version"], plan["method"]) == ("525", "", "nvidia_repo")
    assert "kernel-limit" not in failing(plan)


def test_a_runfiles_driver_is_repaired_by_its_runfile_where_its_hash_is_known() -> None:
    for version, method in (("580.105.08", "runfile"), ("570.133.07", "distribution")):
        facts, probe = broken(version, "", state="module_missing_for_kernel")
        facts["driver"].update(OLD_KERNEL)
        probe += "== uninstaller\n/usr/bin/nvidia-uninstall\n"
        plan = decide("ubuntu22", facts, probe)
        assert plan["method"] == method
        if method == "runfile":
            assert plan["version"] == version and not failing(plan), failing(plan)
        else:
            assert "nvidia_driver_method: runfile" in failing(plan)["one-method"]["remedy"]
        given = decide("ubuntu22", facts, probe, runfile_sha256="0" * 64)
        assert (given["method"], given["version"]) == ("runfile", version)


def test_a_card_that_belongs_to_a_virtual_machine_gets_no_driver() -> None:
    facts = gpu(T4, state="gpu_passed_through", detail="vfio-pci is bound to the card")
    plan = decide("ubuntu22", facts)
    assert plan["action"] == "skip" and "vfio-pci is bound to the card" in plan["reason"]
    assert decide("ubuntu22", facts, without_gpu="install")["action"] == "install"


@pytest.mark.parametrize("state", ["gpu_off_bus", "gpu_lost", "gpu_passed_through"])
def test_a_broken_card_is_no_reason_to_install_anything(state: str) -> None:
    facts = {**working("580.105.08"), "usable": False, "state": state, "detail": "the card is gone"}
    plan = decide("ubuntu22", facts)
    assert plan["action"] == "state" and "the card is gone" in plan["reason"]


# -- refusals -------------------------------------------------------------------------------------------------------------


def test_the_books_runfile_on_a_kernel_that_it_does_not_know() -> None:
    plan = decide("rocky95", gpu(T4), method="runfile", version="525.85.05")
    assert "580" in failing(plan)["kernel-limit"]["remedy"]
    newer = {**system("debian12"), "kernel": "6.5.0-14-generic"}
    plan = driver.decide(settings(method="runfile", version="525.85.05"), newer, gpu(T4), FINE)
    assert "kernel-limit" in failing(plan)
    assert "kernel-limit" not in failing(decide("debian12", gpu(T4), method="runfile", version="525.85.05"))


SIGNED = {"secure_boot": True, "headers_present": True}


@pytest.mark.parametrize(
    ("where", "mode", "ok"),
    [
        ("ubuntu22", "refuse", False),
        ("ubuntu22", "signed", True),
        ("debian12", "signed", False),
        ("debian12", "stage_mok", True),
        ("debian12", "ignore", True),
        # NVIDIA's precompiled ones are signed with a key that no firmware has.
        ("rocky9", "signed", False),
        # Arch's own modules are built already, and signed by nobody.
        ("arch", "signed", False),
    ],
)
def test_secure_boot(where: str, mode: str, ok: bool) -> None:
    plan = decide(where, gpu(T4, kernel=SIGNED), secure_boot=mode)
    assert ("secure-boot" not in failing(plan)) is ok
    if mode == "refuse":
        assert "stage_mok" in failing(plan)["secure-boot"]["remedy"]


CANONICAL = "linux-modules-nvidia-580-server-open-5.15.0-122-generic 5.15.0-122.132"
DKMS = "nvidia-dkms-580-server-open 580.95.05-0ubuntu0.22.04.2"


@pytest.mark.parametrize(
    ("package", "built", "more", "ok"),
    [
        # What Canonical signed says nothing of what DKMS would build here.
        (CANONICAL, False, {}, False),
        (CANONICAL, False, {"version": "580.126.20"}, False),
        (CANONICAL, False, {"secure_boot": "signed"}, True),
        # DKMS built the module that is loaded: the firmware knows its key, and the next build is signed with it, too.
        (DKMS, True, {}, True),
        (DKMS, True, {"version": "580.126.20"}, True),
        # Nothing is built anew, whoever signed what is there.
        (DKMS, False, {}, True),
        (DKMS, False, {"version": "580.126.20"}, False),
        (DKMS, False, {"flavour": "proprietary"}, False),
    ],
)
def test_a_signed_module_vouches_only_for_those_of_the_same_key(
    package: str, built: bool, more: dict[str, Any], ok: bool
) -> None:
    parts = "".join(
        f"ii {name}-580-server 580.95.05-0ubuntu0.22.04.2\n"
        for name in ("nvidia-utils", "libnvidia-compute", "libnvidia-cfg1", "nvidia-compute-utils")
    )
    source = "ii nvidia-kernel-source-580-server-open 580.95.05-0ubuntu0.22.04.2\n"
    probe = f"{FINE}== own\n{driver_files.RECORD}\n== packages\nii {package}\n{parts}{source}"
    facts = working("580.95.05", kernel=SIGNED)
    facts["driver"]["module_signed"] = True
    if built:
        known = {
            "module": "nvidia",
            "version": "580.95.05",
            "kernel": system("ubuntu22")["kernel"],
            "state": "installed",
        }
        facts["dkms"] = [known]
    assert ("secure-boot" not in failing(decide("ubuntu22", facts, probe, **more))) is ok


def test_a_key_is_not_staged_without_a_password() -> None:
    plan = decide("debian12", gpu(T4, kernel=SIGNED), secure_boot="stage_mok", mok_password="")
    assert "nvidia_driver_mok_password" in failing(plan)["secure-boot"]["remedy"]


@pytest.mark.parametrize(
    ("kernel", "mode", "looked"), [(SIGNED, "stage_mok", True), (SIGNED, "ignore", False), ({}, "stage_mok", False)]
)
def test_a_key_that_is_to_be_staged_is_looked_for_on_every_run(kernel: dict, mode: str, looked: bool) -> None:
    plan = decide("debian12", gpu(T4, kernel=kernel), secure_boot=mode)
    assert ("mok:staged" in [item.get("key") for item in plan["items"]]) is looked


def test_lockdown_counts_as_secure_boot() -> None:
    assert "secure-boot" in failing(decide("debian12", gpu(T4, kernel={"lockdown": "integrity"})))
    assert "secure-boot" not in failing(decide("debian12", gpu(T4, kernel={"lockdown": "none"})))


INSTALLED = {"library_version": "535.183.01", "module_version": "535.183.01"}


@pytest.mark.parametrize(
    ("where", "packages", "method"),
    [
        ("debian12", "ii nvidia-kernel-dkms 535.261.03-1", "distribution"),
        ("debian12", "ii nvidia-kernel-open-dkms 580.105.08-1\nii nvidia-driver-cuda 580.105.08-1", "nvidia_repo"),
        ("ubuntu22", "ii nvidia-dkms-580-server 580.95.05-0ubuntu0.22.04.2", "distribution"),
        ("ubuntu22", "ii nvidia-dkms-580-open 580.95.05-0ubuntu0.22.04.2", "distribution"),
        ("ubuntu22", "ii nvidia-dkms-580-open 580.95.05-0ubuntu1", "nvidia_repo"),
        ("rocky9", "ii kmod-nvidia-open-dkms 3:580.95.05-1.el9", "nvidia_repo"),
        ("rocky9", "ii akmod-nvidia 3:580.95.05-1.el9", "unknown"),
        ("arch", "ii nvidia-open-dkms 590.48.01-3", "distribution"),
        # configuration files of a removed package are no driver
        ("debian12", "rc nvidia-kernel-dkms 535.261.03-1", "unknown"),
    ],
)
def test_by_which_method_a_driver_came(where: str, packages: str, method: str) -> None:
    plan = decide(where, gpu(T4, driver=INSTALLED), f"{FINE}== packages\n{packages}\n", keep_working=False, branch="")
    assert plan["installed"]["method"] == method


def test_a_runfile_is_known_by_its_uninstaller() -> None:
    probe = FINE + "== uninstaller\n/usr/bin/nvidia-uninstall\n"
    plan = decide("ubuntu22", gpu(T4, driver=INSTALLED), probe, method="distribution")
    found = failing(plan)["one-method"]
    assert "runfile" in found["detail"] and "nvidia_driver_switch_method: true" in found["remedy"]
    agreed = decide("ubuntu22", gpu(T4, driver=INSTALLED), probe, method="distribution", switch_method=True)
    assert "one-method" not in failing(agreed) and agreed["remove_installer"] == "runfile"


def test_a_runfile_that_was_killed_is_taken_up_again() -> None:
    half = gpu(T4, driver={"library_version": "580.105.08"})
    wish = {"method": "runfile", "version": "580.105.08", "runfile_sha256": "0" * 64}
    assert "one-method" in failing(decide("arch", half, **wish))
    started = decide("arch", half, FINE + "== runfile_started\nyes\n", **wish)
    assert started["installed"]["method"] == "runfile" and not failing(started)


def test_remains_of_a_runfile_are_known_by_the_database_of_its_installer() -> None:
    probe = FINE + "== runfile_database\nyes\n"
    for found in (gpu(T4), gpu(T4, driver={"library_version": "580.105.08"})):
        gone = decide("arch", found, probe, state="absent")
        assert gone["remove_installer"] == "runfile"
        assert {"kind": "absent", "path": "/var/lib/nvidia/log"} in gone["items"]
        assert "runfile" in failing(decide("arch", found, probe))["one-method"]["detail"]
    packages = probe + "== packages\nii nvidia-open-dkms 590.48.01-3\n"
    assert decide("arch", gpu(T4), packages)["installed"]["method"] == "distribution"


@pytest.mark.parametrize(
    ("package", "flavour"),
    [
        ("nvidia-kernel-dkms", "proprietary"), ("nvidia-open-kernel-dkms", "open"), ("nvidia-kernel-open-dkms", "open"),
        ("nvidia-tesla-470-kernel-dkms", "proprietary"), ("nvidia-dkms-580-server", "proprietary"),
        ("nvidia-dkms-580-server-open", "open"), ("nvidia-dkms-580-open", "open"), ("nvidia-dkms-open", "open"),
        ("nvidia-dkms", "proprietary"), ("linux-modules-nvidia-580-server-open-5.15.0-122-generic", "open"),
        ("linux-modules-nvidia-580-server-5.15.0-122-generic", "proprietary"), ("kmod-nvidia-open-dkms", "open"),
        ("kmod-nvidia-latest-dkms", "proprietary"), ("kmod-nvidia", "proprietary"), ("nvidia-open", "open"),
        ("nvidia-580xx-dkms", "proprietary"), ("nvidia-lts-open", "open"), ("nvidia-driver-cuda", ""),
        ("nvidia-open-kernel-support", ""), ("nvidia-utils-580", ""),
    ],
)  # fmt: skip
def test_the_flavour_is_known_by_the_packages_where_there_is_no_module_to_ask(package: str, flavour: str) -> None:
    assert driver_repair.packaged_flavour(["libcuda1", package]) == flavour


def test_auto_stays_with_the_method_that_is_there() -> None:
    probe = FINE + "== packages\nii nvidia-dkms-580-open 580.95.05-0ubuntu1\n"
    assert decide("ubuntu22", gpu(T4, driver=INSTALLED), probe)["method"] == "nvidia_repo"


def test_processes_on_the_gpu_stop_an_exchange_but_not_a_look() -> None:
    probe = (
        FINE
        + f"== own\n{driver_files.RECORD}\n== users\n4711 python3\n"
        + "== packages\nii nvidia-dkms-580-server-open 580.95.05-0ubuntu0.1\n"
    )
    same = decide("ubuntu22", working("580.95.05"), probe)
    assert "gpu-in-use" not in failing(same)
    other = decide("ubuntu22", working("580.95.05"), probe, version="580.126.20")
    assert "python3 (4711)" in failing(other)["gpu-in-use"]["detail"]
    assert "gpu-in-use" not in failing(
        decide("ubuntu22", working("580.95.05"), probe, version="580.126.20", reboot="auto")
    )


def test_a_display_is_stopped_only_by_consent() -> None:
    probe = FINE + "== display\nactive\n"
    facts = gpu(T4, kernel={"nouveau_loaded": True})
    assert "display" in failing(decide("ubuntu22", facts, probe))
    assert "display" not in failing(decide("ubuntu22", facts, probe, stop_display=True))
    # a display that is drawn by another card
    assert "display" not in failing(decide("ubuntu22", gpu(T4), probe))


def test_room_on_the_disks() -> None:
    found = failing(decide("ubuntu22", gpu(T4), "== headers_candidate\n1\n== disk\n/usr 90000000\n/var 1000000\n"))[
        "disk"
    ]
    assert "/var has 1.0 GiB" in found["detail"] and "2.0 GiB" in found["detail"]


def test_a_runfile_needs_room_and_exec_in_its_folder() -> None:
    probe = "== headers_candidate\n1\n== disk\n/var/tmp 1000000\n== tmp_noexec\nnoexec\n"
    assert {"disk", "tmpdir"} <= set(
        failing(decide("ubuntu22", gpu(T4), probe, method="runfile", version="580.105.08"))
    )


def test_all_problems_at_once() -> None:
    facts = gpu(P100, kernel={"secure_boot": True})
    plan = decide("ubuntu22", facts, "== disk\n/var 1\n", branch="590", flavour="open")
    assert {"driver-drives-card", "module-flavour", "kernel-headers", "secure-boot", "disk"} <= set(failing(plan))


def test_a_branch_that_the_distribution_has_not() -> None:
    found = failing(decide("debian12", gpu(T4), method="distribution"))["source"]
    assert "580" in found["detail"] and "nvidia_repo" in found["remedy"] and "'535'" in found["remedy"]


def test_proprietary_modules_on_arch() -> None:
    assert "AUR" in failing(decide("arch", gpu(P100), method="distribution", branch=""))["source"]["remedy"]


# -- the runfile ----------------------------------------------------------------------------------------------------------


def test_a_runfile_without_version_is_an_error_in_words() -> None:
    with pytest.raises(driver.DriverError, match="nvidia_driver_version"):
        decide("ubuntu22", gpu(T4), method="runfile")


def test_the_hash_of_a_known_release_is_known() -> None:
    run = decide("debian12", gpu(T4), method="runfile", version="525.85.05")["runfile"]
    assert run["sha256"] == "ea63b4253403b224bb7313a8977a920dfe9d203d661dd5f6fc26585a70179140"
    assert run["urls"] == [
        "https://us.download.nvidia.com/XFree86/Linux-x86_64/525.85.05/NVIDIA-Linux-x86_64-525.85.05.run"
    ]
    assert "sha256" in failing(decide("debian12", gpu(T4), method="runfile", version="525.60.13"))["source"]["remedy"]


@pytest.mark.parametrize(
    ("branch", "flavour", "there", "not_there"),
    [
        (
            525,
            "proprietary",
            {"--silent", "--dkms"},
            {"--skip-module-load", "--allow-installation-with-running-driver", "-M=open"},
        ),
        (535, "open", {"-m=kernel-open"}, {"-M=open"}),
        (545, "open", {"--allow-installation-with-running-driver", "-m=kernel-open"}, {"--skip-module-load"}),
        (580, "open", {"-M=open", "--skip-module-load"}, {"-m=kernel-open"}),
        (580, "proprietary", {"-M=proprietary"}, {"-M=open"}),
    ],
)
def test_options_of_the_branch(branch: int, flavour: str, there: set[str], not_there: set[str]) -> None:
    options = set(driver_table.runfile_options(branch, flavour, True))
    assert there <= options and not not_there & options


# -- sources and files ----------------------------------------------------------------------------------------------------


def test_debians_components_come_from_where_the_node_already_fetches() -> None:
    plan = decide("debian12", gpu(T4), branch="535")
    (source,) = plan["sources"]
    text = source["content"]
    assert text.count("Components: contrib non-free non-free-firmware") == 2
    assert "URIs: http://mirror.example.org/debian-security\nSuites: bookworm-security" in text
    assert text.count("Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg") == 2


def test_components_that_are_enabled_are_not_added_again() -> None:
    enabled = DEBIAN_SOURCES.replace("Components: main", "Components: main contrib non-free non-free-firmware")
    assert decide("debian12", gpu(T4), FINE + enabled, branch="535")["sources"] == []


def test_one_line_sources_and_our_own_file() -> None:
    lines = (
        "|# /etc/apt/sources.list\n|deb [arch=amd64 signed-by=/k.gpg] http://m.example.org/debian bookworm main # x\n"
    )
    own = f"|# {driver_files.DEBIAN_SOURCE}\n|URIs: http://m.example.org/debian\n|Suites: bookworm\n"
    own += "|Components: non-free contrib\n"
    (source,) = decide("debian12", gpu(T4), FINE + "== targets\n" + lines + own, branch="535")["sources"]
    assert "URIs: http://m.example.org/debian\nSuites: bookworm\n" in source["content"]
    assert "Signed-By: /k.gpg" in source["content"]


@pytest.mark.parametrize(
    ("where", "more", "gone", "stays"),
    [
        ("debian13", {"method": "distribution", "branch": "550"}, "gpufleet-nvidia.sources", "gpufleet-nvidia-driver.sources"),
        ("debian13", {"method": "nvidia_repo"}, "gpufleet-nvidia-driver.sources", "gpufleet-nvidia.sources"),
        ("rocky9", {"method": "runfile", "version": "580.105.08"}, "gpufleet-nvidia.repo", ""),
    ],
)  # fmt: skip
def test_the_repository_of_another_method_goes(where: str, more: dict[str, Any], gone: str, stays: str) -> None:
    def absent(probe: str) -> set[str]:
        looks = decide(where, gpu(T4), probe, **more)["items"]
        return {i["path"].rpartition("/")[2] for i in looks if i["kind"] == "absent"}

    fine = FINE + DEBIAN_SOURCES.replace("bookworm", system(where)["codename"])
    assert gone in absent(fine) and stays not in absent(fine)
    # the role cuda takes its toolkits from NVIDIA's repository
    kept = absent(fine + "== cuda_repository\n/var/lib/gpufleet/cuda/12.4.toolkit\n")
    assert not {"gpufleet-nvidia.sources", "gpufleet-nvidia.repo"} & kept


def test_a_driver_of_another_method_is_never_as_wanted() -> None:
    """Also in the same version: the library and the module alone would look as wanted."""
    probe = FINE + "== packages\nii libnvidia-compute-580 580.126.20-1ubuntu1\n"
    wish: dict[str, Any] = {"version": "580.126.20", "switch_method": True}

    def keys(**more: Any) -> set[str]:
        looks = decide(
            "ubuntu22", gpu(T4, driver={**INSTALLED, "library_version": "580.126.20"}), probe, **wish, **more
        )
        return {str(i.get("key")) for i in looks["items"]}

    assert "library:method" in keys(method="runfile", runfile_sha256="0" * 64)
    assert "library:method" not in keys(method="nvidia_repo")


def test_nouveau_that_is_loaded_and_left_stops_the_role() -> None:
    facts = gpu(T4, kernel={"nouveau_loaded": True})
    found = failing(decide("ubuntu22", facts, nouveau="leave"))["nouveau"]
    assert "nvidia_driver_nouveau: disable" in found["remedy"]
    assert "nouveau" not in failing(decide("ubuntu22", facts))
    assert "nouveau" not in failing(decide("ubuntu22", gpu(T4), nouveau="leave"))


def test_nvidias_repository_through_a_mirror() -> None:
    plan = decide("debian12", gpu(T4), mirror_profile="depot")
    (source,) = plan["sources"]
    assert "https://depot.gpufleet.test/nvidia/" in source["content"] and "Suites: /" in source["content"]
    assert plan["keys"][0]["fingerprints"] == ["EB693B3035CD5710E231E123A4B469963BF863CC"]


def test_unattended_upgrades_leaves_the_driver_alone_and_nothing_else() -> None:
    import re

    patterns = [re.compile(p) for p in driver_files.BLACKLIST]

    def spared(name: str) -> bool:
        return any(p.match(name) for p in patterns)

    for name in (
        "nvidia-dkms-580-open",
        "libnvidia-compute-580",
        "libcuda1",
        "linux-modules-nvidia-580-server-generic",
    ):
        assert spared(name), name
    for name in (
        "nvidia-container-toolkit",
        "libnvidia-container1",
        "linux-image-generic",
        "openssl",
        "nvidia-cuda-toolkit",
    ):
        assert not spared(name), name


def test_what_is_not_asked_for_is_not_written_and_is_taken_away() -> None:
    plan = decide(
        "debian12", gpu(T4), branch="535", unattended_upgrades_blacklist=False, persistenced=False, nouveau="leave"
    )
    assert {f["path"] for f in plan["files"]} <= {driver_files.PREFERENCES}
    gone = {i["path"] for i in plan["items"] if i["kind"] == "absent"}
    assert {driver_files.UNATTENDED, driver_files.PERSISTENCED} <= gone


def test_every_package_that_is_held_is_watched_and_in_one_version() -> None:
    plan = decide("debian12", gpu(T4), version="535.261.03", method="distribution", branch="")
    for item in plan["items"]:
        if item["kind"] == "package" and item["state"] == "present":
            assert item["hold"] is True
    versions = {p["version"] for p in plan["packages"] if p["coupled"]}
    assert versions == {"535.261.03-*"}


PARTS = """\
== packages
ii kmod-nvidia-open-dkms 3:580.105.08-1.el9
ii nvidia-driver-cuda 3:580.105.08-1.el9
ii nvidia-driver-cuda-libs 3:580.105.08-1.el9
ii nvidia-kmod-common 3:580.105.08-1.el9
ii nvidia-persistenced 3:580.105.08-1.el9
ii nvidia-container-toolkit 1.17.8-1
ii nvidia-settings 3:580.82.07-1.el9
"""


def test_dnf_holds_the_parts_that_came_as_dependencies_too() -> None:
    """With only the named parts locked C(dnf upgrade) finds no solution, for the whole system."""
    plan = decide("rocky9", working("580.105.08"), PARTS, keep_working=False)
    assert plan["holds"] == sorted(line.split()[1] for line in PARTS.splitlines() if "580.105.08" in line)
    held = {i["name"]: i["hold"] for i in plan["items"] if i.get("key", "").startswith("hold:")}
    assert held == dict.fromkeys(plan["holds"], True)


@pytest.mark.parametrize("where", ["rocky9", "arch"])
@pytest.mark.parametrize("hold", [True, False])
def test_holds_of_dnf_and_pacman_are_watched_apart_from_the_packages(where: str, hold: bool) -> None:
    plan = decide(where, gpu(T4), hold=hold, **({"branch": ""} if where == "arch" else {}))
    held = {i["name"]: i["hold"] for i in plan["items"] if i.get("key", "").startswith("hold:")}
    assert held and held == dict.fromkeys(names(plan), hold)
    assert not [i for i in plan["items"] if "hold" in i and "key" not in i]


OPEN_580 = f"{FINE}== own\n{driver_files.RECORD}\n== packages\nii nvidia-dkms-580-server-open 580.105.08-0ubuntu0.1\n"


def flavour_look(plan: dict[str, Any]) -> dict[str, Any]:
    return next(item for item in plan["items"] if item.get("key") == "module:flavour")


def test_the_other_flavours_module_is_not_as_wanted() -> None:
    facts = gpu(T4, driver={**INSTALLED, "flavour": "open"})
    probe = FINE + "== packages\nii nvidia-open-kernel-dkms 535.183.01-1\n"
    assert (
        flavour_look(decide("debian12", facts, probe, branch="535", flavour="proprietary"))["argv"][-1] == "proprietary"
    )


@pytest.mark.parametrize(
    ("licence", "said"), [("Dual MIT/GPL", "open"), ("NVIDIA", "proprietary"), ("", "unknown"), (None, "ok")]
)
def test_the_flavour_of_the_file_counts_not_that_of_what_is_loaded(
    tmp_path: Path, licence: str | None, said: str
) -> None:
    """After an exchange the old module stays loaded until a reload or a reboot: the files are as wanted."""
    plan = decide("ubuntu22", working("580.105.08"), OPEN_580, flavour="proprietary")
    if licence is not None:
        (tmp_path / "updates").mkdir()
        (tmp_path / "updates/nvidia-current.ko.xz").touch()
        (tmp_path / "updates/nvidia-drm.ko").touch()
    modinfo = tmp_path / "modinfo"
    modinfo.write_text(f"#!/bin/sh\necho '{licence}'\n")
    modinfo.chmod(0o755)
    for flavour in ("open", "proprietary"):
        argv = [*flavour_look(plan)["argv"][:-1], flavour, str(tmp_path)]
        found = subprocess.run(
            argv, capture_output=True, text=True, check=True, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        )
        assert found.stdout.strip() == ("ok" if said == flavour else said)


def test_a_change_of_flavour_is_a_change_and_wants_a_reload() -> None:
    """The version stays, so nothing else tells that jobs run on modules that are exchanged."""
    users = OPEN_580 + "== users\n4711 python3\n"
    plan = decide("ubuntu22", working("580.105.08"), users, flavour="proprietary")
    assert plan["version"] == "580.105.08" and plan["reboot_wanted"]
    assert "python3 (4711)" in failing(plan)["gpu-in-use"]["detail"]
    assert "with open modules; wanted are proprietary ones" in plan["reason"]
    same = decide("ubuntu22", working("580.105.08"), users)
    assert not same["reboot_wanted"] and "gpu-in-use" not in failing(same)
    # The kernel of a container is another's.
    inside = decide("ubuntu22", working("580.105.08"), OPEN_580 + "== container\nlxc\n", flavour="proprietary")
    assert not inside["reboot_wanted"]


def test_a_driver_in_pieces_is_not_stayed_with() -> None:
    """Half installed: library there, no module for any kernel. The newest complete version is taken instead."""
    facts = gpu(T4, driver={"library_version": "535.261.03"})
    probe = FINE + "== packages\niF nvidia-kernel-dkms 535.261.03-1\n"
    assert decide("debian12", facts, probe, branch="535")["version"] == ""
    dkms = [{"module": "nvidia-current", "version": "535.261.03", "kernel": "x", "state": "installed"}]
    assert decide("debian12", {**facts, "dkms": dkms}, probe, branch="535")["version"] == "535.261.03"


# -- removal --------------------------------------------------------------------------------------------------------------


def test_removal_names_what_is_there_whatever_the_variables_say() -> None:
    probe = (
        FINE
        + "== packages\nhi nvidia-dkms-570-open 570.1-0ubuntu1\nii nvidia-driver-pinning-570 570-1\n"
        + "ii linux-image-generic 1\n"
    )
    plan = decide("ubuntu22", gpu(T4, driver=INSTALLED), probe, state="absent", version="580.105.08")
    assert plan["action"] == "remove"
    assert plan["absent_packages"] == ["nvidia-dkms-570-open", "nvidia-driver-pinning-570"]
    paths = {i["path"] for i in plan["items"] if i["kind"] == "absent"}
    assert driver_files.NOUVEAU not in paths
    back = decide("ubuntu22", gpu(T4), probe, state="absent", nouveau_back=True)
    assert driver_files.NOUVEAU in {i.get("path") for i in back["items"]}


def test_the_repository_stays_while_the_role_cuda_uses_it() -> None:
    probe = FINE + "== cuda_repository\n/var/lib/gpufleet/cuda/12.4.toolkit\n"
    used = {i.get("path") for i in decide("debian12", gpu(T4), probe, state="absent")["items"]}
    free = {i.get("path") for i in decide("debian12", gpu(T4), state="absent")["items"]}
    source = "/etc/apt/sources.list.d/gpufleet-nvidia.sources"
    assert source in free and source not in used


def test_rpms_own_copy_of_the_key_goes_with_the_repository() -> None:
    used = decide("rocky9", gpu(T4), FINE + "== cuda_repository\nx.toolkit\n", state="absent")
    free = decide("rocky9", gpu(T4), state="absent", repo_key_fingerprints=["A" * 40])
    assert used["keys"] == []
    assert [k["fingerprints"] for k in free["keys"]] == [["A" * 40]]


def test_removal_takes_what_a_failed_runfile_left() -> None:
    plan = decide("arch", gpu(T4), state="absent", runfile_tmpdir="/srv/tmp")
    folder = (ROOT / "roles/nvidia_driver/vars/main.yml").read_text().partition("__nvidia_driver_runfile_folder: ")[2]
    assert folder.startswith('"{{ nvidia_driver_runfile_tmpdir }}/gpufleet-nvidia-driver"')
    assert {"kind": "absent", "path": "/srv/tmp/gpufleet-nvidia-driver"} in plan["items"]


def test_the_plan_always_has_all_keys() -> None:
    for facts, more in ((gpu(), {}), (gpu(T4), {}), (working("580.105.08"), {}), (gpu(T4), {"state": "absent"})):
        assert set(decide("debian12", facts, **more)) == set(driver.EMPTY)


def test_the_rows_of_the_table_have_the_same_keys_and_known_sources() -> None:
    table = driver_table.table()
    for name in ("offers", "packages", "build", "module_streams"):
        keys = {frozenset(row) for row in table[name]}
        assert len(keys) == 1, name
        assert {row["source"] for row in table[name]} <= set(table["sources"])


def test_own_files_are_the_same_on_both_sides() -> None:
    text = (ROOT / "roles/nvidia_driver/vars/main.yml").read_text()
    assert yaml.safe_load(text)["__nvidia_driver_own_files"] == list(driver_files.OWN)
    assert yaml.safe_load(text)["__nvidia_driver_record"] == driver_files.RECORD
    assert yaml.safe_load(text)["__nvidia_driver_found"] == driver_files.FOUND
