# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads data/driver_packages.yml: what the driver is called where. Pure, but for reading the table once."""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from ansible_collections.gpufleet.llm.plugins.plugin_utils import nvidia_repository, yaml_file
from ansible_collections.gpufleet.llm.plugins.plugin_utils.tables import load

DATA = pathlib.Path(__file__).parent / "data" / "driver_packages.yml"

Row = Mapping[str, Any]


@functools.lru_cache(maxsize=1)
def table() -> dict[str, Any]:
    """The table as it is in the file."""
    read: dict[str, Any] = yaml_file.read(DATA)
    return read


def names(system: Mapping[str, Any]) -> tuple[str, ...]:
    """Under which names rows know a distribution, the most special first: C(("Rocky", "RedHat"))."""
    return (str(system["distribution"]), str(system["os_family"]))


def offer(system: Mapping[str, Any]) -> Row | None:
    """What the distribution itself offers, or nothing."""
    for row in table()["offers"]:
        if row["distribution"] in names(system) and row["version"] in ("", _release(system, row["version"])):
            found: Row = row
            return found
    return None


def has_repository(system: Mapping[str, Any]) -> bool:
    """Whether NVIDIA has a repository for a distribution."""
    return nvidia_repository.has_repository(
        str(system["distribution"]),
        str(system["os_family"]),
        str(system["distribution_version"]),
        str(system["machine"]),
    )


def modular(system: Mapping[str, Any]) -> bool:
    """Whether NVIDIA's repository for a distribution has module streams (RHEL 8 and 9)."""
    return any(
        row["os_family"] == system["os_family"] and row["version"] == _release(system, row["version"])
        for row in table()["module_streams"]
    )


def _release(system: Mapping[str, Any], wanted: str) -> str:
    """The node's release to as many parts as the row names: 22.04 for Ubuntu, 9 for Rocky 9.4."""
    parts = str(system["distribution_version"]).split(".")
    return ".".join(parts[: len(str(wanted).split("."))])


def packages(method: str, system: Mapping[str, Any], branch: str) -> Row | None:
    """The row with the names of a branch's packages, or nothing."""
    for name in names(system):
        for row in table()["packages"]:
            if row["method"] != method or row["distribution"] != name:
                continue
            if not branch.isdigit():
                if row["branch_to"] is None:
                    found: Row = row
                    return found
                continue
            number = int(branch)
            if (row["branch_from"] or 0) <= number <= (row["branch_to"] or number):
                found = row
                return found
    return None


def build_packages(manager: str) -> list[str]:
    """What a build of kernel modules needs besides headers."""
    return [str(name) for row in table()["build"] if row["manager"] == manager for name in row["packages"]]


def headers_package(system: Mapping[str, Any], manager: str) -> str:
    """The package with the headers of the running kernel."""
    kernel = str(system["kernel"])
    for row in table()["headers"]:
        if row["distribution"] not in ("", *names(system)) or row.get("manager", manager) != manager:
            continue
        if re.search(row["match"], kernel):
            return str(row["package"]).format(kernel=kernel)
    return ""


def known_packages(manager: str) -> re.Pattern[str]:
    """What packages of a driver, whoever made them, are called."""
    return re.compile(str(table()["known_packages"][{"apt": "dpkg", "dnf": "rpm"}.get(manager, manager)]))


def runfile_url(version: str, machine: str) -> str:
    """NVIDIA's own place of a runfile."""
    return str(table()["runfile"]["url"]).format(version=version, machine=machine)


def runfile_sha256(version: str, machine: str) -> str:
    """The hash of a runfile, empty where it is not known."""
    known = {str(row["version"]): str(row["sha256"]) for row in load().drivers["releases"]}
    return known.get(version, "") if machine == "x86_64" else ""


def runfile_options(branch: int, flavour: str, headless: bool) -> list[str]:
    """The options that the installer of a branch knows and an unattended installation wants."""
    wanted = {"always", flavour} | ({"headless"} if headless else set())
    return [
        str(row["option"])
        for row in table()["runfile"]["options"]
        if row["when"] in wanted and (row["from"] or 0) <= branch <= (row["to"] or branch)
    ]
