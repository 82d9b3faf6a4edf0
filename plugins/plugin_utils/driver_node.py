# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads what a node said for the role nvidia_driver: the probe's answer, apt's lists of versions, apt's rehearsals. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.gpufleet.llm.plugins.plugin_utils.tables import version

# What the probe (roles/nvidia_driver/files/probe.sh) tells, and what an empty answer means.
LISTS = (
    "own",
    "users",
    "initramfs",
    "boot",
    "modules",
    "audit",
    "nvidia_sources",
    "targets",
    "recorded",
    "cuda_repository",
    "dpkg_updates",
    "build_missing",
)
WORDS = (
    "uninstaller", "display", "container", "machine_id", "headers_candidate", "proc_version", "tmp_noexec",
    "dnf_modules", "boot_id", "rebooted", "runfile_started", "runfile_database", "offered",
)  # fmt: skip


def parse_probe(text: str) -> dict[str, Any]:
    """The probe's answer, always with all keys.

    Returns C({"known": bool, "packages": {name: {"version", "hold", "state"}}, "disk": {path: free_bytes}}) and the keys
    of LISTS (list of lines) and WORDS (one word or nothing).
    """
    sections: dict[str, list[str]] = {}
    current: list[str] = []
    for line in text.splitlines():
        head = re.fullmatch(r"== (\w+)", line)
        if head:
            current = sections.setdefault(head[1], [])
        elif line.strip():
            current.append(line.strip())
    packages = {}
    for line in sections.get("packages", []):
        state, name, number, *_rest = [*line.split(), "", "", ""]
        if name and number and state[1:2] not in ("n", "c", ""):
            packages[name.partition(":")[0]] = {"version": number, "hold": state.startswith("h"), "state": state}
    disk = {}
    for line in sections.get("disk", []):
        path, _space, kib = line.partition(" ")
        if kib.isdigit():
            disk[path] = int(kib) * 1024
    out: dict[str, Any] = {"known": bool(sections), "packages": packages, "disk": disk}
    out.update({name: sections.get(name, []) for name in LISTS})
    out.update({name: " ".join(sections.get(name, [])) for name in WORDS})
    return out


def upstream(package_version: str) -> str:
    """The driver's version in a package's: C(3:580.105.08-1.el9) -> C(580.105.08)."""
    return package_version.rpartition(":")[2].partition("-")[0].partition("+")[0]


def parse_madison(text: str) -> dict[str, list[str]]:
    """C(apt-cache madison): name -> versions, as apt orders them."""
    out: dict[str, list[str]] = {}
    for line in text.splitlines():
        parts = [part.strip() for part in line.split("|")]
        if len(parts) == 3 and "Sources" not in parts[2]:
            out.setdefault(parts[0], []).append(parts[1])
    return out


def pick_versions(
    text: str, coupled: Sequence[str], wanted: str = "", branch: str = "", there: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The newest driver version that every coupled package has.

    An archive can offer its packages in different versions, as Debian 12 does after a security update of one source
    package out of two; mixed versions make a driver that does not load.

    :arg there: installed packages of the driver with their versions. Those that carry the old driver's version move with it
        where the new one is offered, and go where it is not: apt's resolver neither goes back a version nor takes the
        packages of another branch away on its own, and says "held broken packages" instead

    Returns C({"version": driver version or "", "versions": {package: package version}, "missing": [str],
    "offered": {package: [version]}, "gone": [name], "newest_of_all": bool}).
    """
    offered = parse_madison(text)
    missing = [name for name in coupled if name not in offered]
    sets = [{upstream(number) for number in offered.get(name, [])} for name in coupled]
    common = set.intersection(*sets) if sets else set()
    fitting = [
        number
        for number in common
        if re.match(r"\d", number)
        and (number == wanted or not wanted)
        and (not branch or number.partition(".")[0] == branch)
    ]
    if not fitting:
        return {
            "version": "",
            "versions": {},
            "missing": missing,
            "offered": offered,
            "gone": [],
            "newest_of_all": False,
        }
    chosen = max(fitting, key=version)
    newest = max((number for one in sets for number in one if re.match(r"\d", number)), key=version)
    versions = {name: next(n for n in offered[name] if upstream(n) == chosen) for name in coupled}
    gone = []
    for name, number in (there or {}).items():
        fit = [n for n in offered.get(name, []) if upstream(n) == chosen]
        if fit:
            versions.setdefault(name, fit[0])
        elif (
            re.match(r"\d{3}\.\d", number.rpartition(":")[2])
            and upstream(number).partition(".")[0] != chosen.partition(".")[0]
        ):
            gone.append(name)
    return {
        "version": chosen,
        "versions": versions,
        "missing": missing,
        "offered": offered,
        "gone": sorted(gone),
        "newest_of_all": chosen == newest,
    }


# What parts of a driver are called, and what has such a name and is none.
PART = re.compile(r"nvidia|^libcuda(1|debugger1)$|^cuda-drivers|^libnv(cuvid|optix)1$|^libxnvctrl")
NO_PART = re.compile(
    r"container|^nvidia-(docker|fs|gds|cuda-(dev|doc|gdb|toolkit)|cudnn|nsight|driver-assistant)|^(dnf-plugin|python3?)-"
    r"|^(linux-firmware|firmware-nvidia-graphics|libnvidia-ml-dev)"
)


def driver_part(name: str) -> bool:
    """Whether a package is part of a driver: C(libnvidia-ml1) is, C(nvidia-container-toolkit) is not."""
    bare = name.partition(":")[0]
    return bool(PART.search(bare)) and not NO_PART.search(bare)


KERNEL = re.compile(
    r"^(linux-image|linux-generic|linux-modules-\d|linux-modules-extra|kernel(-core|-modules)?$|pve-kernel|proxmox-kernel)"
)


def harm(
    changed: Iterable[str], removed: Iterable[str], kernel: Callable[[str], object], known: Sequence[str] = ()
) -> list[str]:
    """What must not be of a transaction, whichever package manager rehearsed it, in words.

    :arg changed: packages that come, change or go
    :arg removed: those that go
    :arg kernel: whether a package is a kernel to that package manager
    :arg known: packages that may go besides those of a driver: what this role brought
    """
    problems = []
    kernels = sorted({name for name in changed if kernel(name)})
    if kernels:
        problems.append(f"it would change the kernels of the node: {', '.join(kernels)}")
    strangers = [name for name in removed if not driver_part(name) and name.partition(":")[0] not in known]
    if strangers:
        problems.append(f"it would remove packages that have nothing to do with the driver: {', '.join(strangers)}")
    return problems


def read_rehearsal(text: str, known: Sequence[str] = ()) -> dict[str, Any]:
    """What C(apt-get --simulate) would do, and what of it must not be.

    :arg known: packages that may go besides those of a driver: what this role brought

    Returns C({"ok": bool, "install": [name], "remove": [name], "problems": [str]}).
    """
    install = re.findall(r"(?m)^Inst (\S+)", text)
    remove = re.findall(r"(?m)^(?:Remv|Purg) (\S+)", text)
    problems = harm(install + remove, remove, KERNEL.match, known)
    for pattern in (r"(?m)^E: (.+)$", r"(?m)^ (\S+ : (?:Depends|Conflicts|Breaks|PreDepends): .+)$"):
        problems += [line.strip() for line in re.findall(pattern, text)]
    return {"ok": not problems, "install": install, "remove": remove, "problems": problems}


def installed_driver(node: Mapping[str, Any], pattern: re.Pattern[str]) -> dict[str, str]:
    """Installed packages of a driver, whoever made them: name -> version."""
    return {name: p["version"] for name, p in node["packages"].items() if pattern.search(name)}


def removable(text: str, recorded: Sequence[str]) -> list[str]:
    """Of the packages that the role had installed, those that nothing else needs any more, by apt's own rehearsal."""
    gone = set(re.findall(r"(?m)^(?:Remv|Purg) (\S+)", text))
    return sorted(gone & set(recorded))


def dkms_reason(log: str) -> str:
    """Why a build failed, out of DKMS's make.log: the first errors, at most three lines; empty without an error."""
    pattern = r"(?:^|: )(?:fatal )?error: |^Error! |\*\*\* \[|\*\*\* No rule"
    lines = [line.strip() for line in log.splitlines() if re.search(pattern, line)]
    return " | ".join(lines[:3])


def kernel_compiler(proc_version: str) -> str:
    """The package of the compiler that built a Debian or Ubuntu kernel, which a module wants too: C(gcc-12), or nothing."""
    match = re.search(r"\bgcc-(\d+)\b", proc_version)
    return f"gcc-{match[1]}" if match else ""
