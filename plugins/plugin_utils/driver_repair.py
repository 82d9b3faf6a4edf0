# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a driver that is there and does not work can be repaired in its branch and by its method. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.gpufleet.llm.plugins.plugin_utils import driver_table, solver_rules
from ansible_collections.gpufleet.llm.plugins.plugin_utils.tables import load


def packaged_flavour(packages: Iterable[str]) -> str:
    """The flavour of the modules that packages bring, whoever made them; empty where none of them brings any."""
    modules = [
        n for n in packages if re.search(r"dkms|^linux-modules-nvidia|^a?kmod-nvidia|^nvidia(-lts)?(-open)?$", n)
    ]
    if not modules:
        return ""
    return "open" if any("-open" in name for name in modules) else "proprietary"


def complete(gpu: Mapping[str, Any]) -> bool:
    """Whether the installed driver has a module, built for this kernel or for another: it is worth to stay at its version."""
    driver = gpu["driver"]
    library = driver["library_version"]
    if library is None or driver["module_version"] == library or driver["loaded_version"] == library:
        return bool(driver["module_version"])
    built = any(d["version"] == library and d["state"] in ("built", "installed") for d in gpu["dkms"] or [])
    return built or bool(driver["other_kernels"])


def builds(branch: str, version: str, flavour: str, kernel: str) -> bool:
    """Whether a version, or without one the newest of its branch, compiles against a kernel."""
    driver = solver_rules.Driver(int(branch), version or None, flavour, "install", None)
    return solver_rules.kernel_limit(load(), driver, kernel) is None


def repairable(
    installed: Mapping[str, str],
    settings: Mapping[str, Any],
    system: Mapping[str, Any],
    gpu: Mapping[str, Any],
    cards: Mapping[str, Any],
    switches: int,
) -> bool:
    """Whether an installed driver drives the cards and its source still has its branch.

    :arg installed: C({"method", "version", "flavour"})
    :arg cards: what they allow, C({"flavours": [str], "first": int, "last": int | None})
    :arg switches: chips of NVSwitch that want a fabric manager
    """
    method, version = installed["method"], installed["version"]
    branch = version.partition(".")[0]
    if not branch.isdigit():
        return False
    flavours = [f for f in solver_rules.branch_flavours(load(), int(branch)) if f in cards["flavours"]]
    drives = cards["first"] <= int(branch) <= (cards["last"] or int(branch))
    if not drives or not flavours or not builds(branch, "", flavours[0], str(system["kernel"])):
        return False
    if method == "runfile":
        # One exact version, which nobody has to name when its hash is known. It brings no fabric manager.
        known = settings["runfile_sha256"] or driver_table.runfile_sha256(version, str(system["machine"]))
        return (
            bool(known)
            and complete(gpu)
            and not switches
            and builds(branch, version, flavours[0], str(system["kernel"]))
        )
    offer = driver_table.offer(system)
    if method == "distribution":
        # What rolls has no branches to stay in.
        there = offer is not None and branch in offer["branches"]
    else:
        there = method == "nvidia_repo" and driver_table.has_repository(system)
    row = driver_table.packages(method, system, branch) if there else None
    return row is not None and any(row[f] for f in flavours) and bool(row["fabricmanager"] or not switches)
