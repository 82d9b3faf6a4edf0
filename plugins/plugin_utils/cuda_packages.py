# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What package managers are asked for toolkits, and what they answer. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.gpufleet.llm.plugins.plugin_utils import nvidia_repository

# Of a driver's packages those with a kernel module, and the metapackages that bring one.
KERNEL = re.compile(
    r"dkms|kernel|kmod|^linux-modules|^nvidia-driver|^nvidia-open(-\d|$)|^cuda-drivers|^cuda(-\d|$)|^nvidia$|-lts"
)
# name -> version -> [(name, lower bound)] of what that version needs
Offered = dict[str, dict[str, list[tuple[str, str]]]]

_BOUNDS = {
    "apt": re.compile(r"^\s*([a-z0-9][a-z0-9+.-]*)(?::\w+)?\s*\(>?=\s*([^)\s]+)\s*\)"),
    "dnf": re.compile(r"^\s*(\S+)\s+>?=\s+(\S+)"),
}


def offered(listing: str, manager: str) -> Offered:
    """The packages of a listing, each version with what it needs.

    @param listing: of C(apt-cache show), or for dnf per package a line C(@name version-release) and a line per requirement.
    """
    found: Offered = {}
    for stanza in re.split(r"\n\s*\n" if manager == "apt" else r"(?m)^@", listing):
        if manager == "apt":
            fields = dict(re.findall(r"(?m)^([\w-]+): *(.*)$", stanza))
            name, version = fields.get("Package", ""), fields.get("Version", "")
            needs = [*fields.get("Pre-Depends", "").split(","), *fields.get("Depends", "").split(",")]
        else:
            head, *needs = stanza.splitlines() or [""]
            name, _space, version = head.partition(" ")
        if name and version.strip():
            bounds = [match.groups() for match in map(_BOUNDS[manager].match, needs) if match]
            found.setdefault(name, {})[version.strip()] = [(str(n), str(v)) for n, v in bounds]
    return found


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def _exact(versions: Iterable[str], wanted: str) -> str:
    """Of these versions the one that is the wanted one, in its newest revision."""
    same = [v for v in versions if wanted in (v, v.rpartition("-")[0])]
    return max(same, key=_order, default="")


def _walk(known: Offered, start: Iterable[tuple[str, str]], suffix: str) -> dict[str, str]:
    """All packages of a release that are reached from some of them along their bounds: name -> version."""
    reached: dict[str, str] = {}
    queue = list(start)
    while queue:
        name, wanted = queue.pop(0)
        version = _exact(known.get(name, {}), wanted)
        if version and _order(version) > _order(reached.get(name, "")):
            reached[name] = version
            queue += [(n, v) for n, v in known[name][version] if n.endswith(suffix)]
    return reached


def pins(toolkit: Mapping[str, Any], manager: str, listing: str) -> dict[str, str]:
    """The packages that make up a pinned update, each with its version.

    Each part has a version of its own, and the metapackage knows it only as a lower bound (nvcc of 12.4.0 is
    C(>= 12.4.99)): left alone, apt and dnf take the newest part.
    """
    if not toolkit["package_version"] or manager not in _BOUNDS:
        return {}
    known, suffix = offered(listing, manager), str(toolkit["suffix"])
    metapackage = f"cuda-toolkit{suffix}"
    reached = _walk(known, [(metapackage, str(toolkit["full"]))], suffix)
    if metapackage in toolkit["packages"]:
        return reached
    return _walk(known, [(name, reached[name]) for name in toolkit["packages"] if name in reached], suffix)


def pins_record(toolkit: Mapping[str, Any], manager: str, listing: str) -> str:
    """What is written down of them, for the next look: the update, then a line per package."""
    lines = [f"{name} {version}" for name, version in sorted(pins(toolkit, manager, listing).items())]
    return "\n".join([str(toolkit["full"]), *lines]) + "\n"


def specs(toolkits: Iterable[Mapping[str, Any]], manager: str, listing: str = "") -> list[str]:
    """What apt-get, dnf or pacman is asked to install: of a pinned update each part in its version."""
    sign = "=" if manager == "apt" else "-"
    asked = []
    for toolkit in toolkits:
        exact = pins(toolkit, manager, listing)
        for name in [*toolkit["packages"], *(n for n in sorted(exact) if n not in toolkit["packages"])]:
            if name in exact:
                asked.append(f"{name}{sign}{exact[name]}")
            elif toolkit["package_version"] and name.startswith("cuda-toolkit-") and manager in _BOUNDS:
                # not offered in that version: the package manager says so
                asked.append(f"{name}{sign}{toolkit['package_version'] if manager == 'apt' else toolkit['full']}")
            else:
                asked.append(name)
    return asked


def transaction(output: str, manager: str, own: Iterable[str] = ()) -> dict[str, list[str]]:
    """What a simulated installation would do.

    @param output: of C(apt-get --simulate install), C(dnf --assumeno install) or C(pacman --sync --print).
    @param own: names that are a toolkit here, whatever they look like.
    @returns: C({install, remove, driver, kernel}): names; C(driver) are those to be installed that belong to a driver,
        C(kernel) those of them that bring a kernel module or a whole driver.
    """
    install, remove = [], []
    if manager == "apt":
        install = re.findall(r"(?m)^Inst (\S+)", output)
        remove = re.findall(r"(?m)^(?:Remv|Purg) (\S+)", output)
    elif manager == "dnf":
        section = ""
        for line in output.splitlines():
            heading = re.match(
                r"^(Installing|Upgrading|Downgrading|Reinstalling|Removing|Enabling|Skipping)[^:]*:", line
            )
            if heading:
                section = heading[1]
            elif not line.strip() or line.startswith(("=", "Transaction")):
                section = "" if line.startswith("Transaction") else section
            elif line.startswith(" ") and section:
                name = line.split()[0]
                if section in ("Installing", "Upgrading", "Downgrading", "Reinstalling"):
                    install.append(name)
                elif section == "Removing":
                    remove.append(name)
    else:
        install = [line.split()[0] for line in output.splitlines() if line.strip()]
    driver = nvidia_repository.driver_packages(install, own)
    return {"install": install, "remove": remove, "driver": driver, "kernel": [n for n in driver if KERNEL.search(n)]}
