# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads what dnf and NVIDIA's installer say: rehearsals of transactions, the installer's log. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.gpufleet.llm.plugins.plugin_utils.driver_node import harm

# A kernel and its modules; headers (kernel-devel, kernel-headers) are no kernel.
KERNEL = re.compile(r"^kernel(-(core|modules|modules-core|modules-extra|rt|rt-core|uek|uek-core|64k|64k-core))?$")

SECTION = re.compile(r"^([A-Z][a-z]+(?: [a-z]+)*):$")
INSTALLS = ("Installing", "Installing dependencies", "Installing weak dependencies", "Installing group/module packages")


def read_transaction(text: str, known: Sequence[str] = ()) -> dict[str, Any]:
    """What C(dnf --assumeno) would do, and what of it must not be.

    :arg text: its output in the C locale (dnf 4 or 5)
    :arg known: packages that may go besides those of a driver: what this role brought
    :returns: C({"ok": bool, "nothing": bool, "install": [name], "change": [name], "remove": [name], "problems": [str]});
        C(install) is new on the node, C(change) is upgraded, downgraded or reinstalled
    """
    sections: dict[str, list[str]] = {}
    current = ""
    for line in text.splitlines():
        header = SECTION.match(line.rstrip())
        if header:
            current = header[1]
            continue
        if line.startswith("Transaction Summary"):
            current = ""
        # A package is indented by one space; lines with more go on with the line above ("replacing ...").
        package = re.match(r"^ (\S+)(?:\s|$)", line)
        if current and package:
            sections.setdefault(current, []).append(package[1])
    install = [name for key in INSTALLS for name in sections.get(key, [])]
    change = [name for key in ("Upgrading", "Downgrading", "Reinstalling") for name in sections.get(key, [])]
    remove = [name for key, names in sections.items() if key.startswith("Removing") for name in names]
    problems = harm(install + change + remove, remove, KERNEL.match, known)
    problems += [line.strip() for line in re.findall(r"(?m)^(?:Error: .+|Unable to find a match: .+)$", text)]
    problems += [line.strip() for line in re.findall(r"(?m)^ +- (.+)$", text)]
    return {
        "ok": not problems,
        "nothing": not sections,
        "install": install,
        "change": change,
        "remove": remove,
        "problems": problems,
    }


def specs(offered: str, version: str, versions: Mapping[str, str], loose: Sequence[str]) -> list[str]:
    """What C(dnf install) is given: C(name-version-release) for all that comes in the driver's version, else the name.

    :arg offered: lines C(name | version-release | repository) of C(dnf repoquery)
    :arg version: the chosen driver version
    :arg versions: package -> version-release of the coupled packages
    :arg loose: packages that may have versions of their own; one that is also there in the driver's version must be it, or
        dnf takes its newest, which the rest of the driver does not go with
    """
    out = [f"{name}-{number}" for name, number in sorted(versions.items())]
    rows = [[part.strip() for part in line.split("|")] for line in offered.splitlines() if line.count("|") >= 2]
    for name in loose:
        same = sorted({row[1] for row in rows if row[0] == name and row[1].rpartition("-")[0] == version})
        out.append(f"{name}-{same[-1]}" if same else name)
    return out


# What an error in the installer's log means, and what helps. The first that fits the errors wins.
CAUSES = (
    (
        r"Nouveau kernel driver is currently in use",
        "nouveau is loaded",
        "The role has blacklisted it; reboot the node (nvidia_driver_reboot: auto) and run the role again.",
    ),
    (
        r"appears to be already loaded|appears to already be loaded|An NVIDIA kernel module .* is (?:in use|loaded)",
        "another NVIDIA module is loaded, and this branch does not install over it",
        "Stop what uses the GPU and unload the module, or reboot, and run the role again.",
    ),
    (
        r"Unable to find the kernel source tree|kernel source path|kernel header file",
        "the headers of the running kernel are missing",
        "Install them (nvidia_driver_kernel_headers), or reboot into the kernel whose headers are there.",
    ),
    (
        r"development tool `(?:cc|gcc|make|ld)`",
        "the compiler or make is missing",
        "Install gcc and make, and run the role again.",
    ),
    (
        r"compiler version check failed|cc version check|gcc-version-check",
        "the compiler is not the one that built the kernel",
        "Install the kernel's own compiler, or add --no-cc-version-check to nvidia_driver_runfile_options.",
    ),
    (
        r"No space left on device",
        "the disk is full",
        "Make room, or let nvidia_driver_runfile_tmpdir point to a larger file system.",
    ),
    (
        r"module signature|Key was rejected|Required key not available",
        "the kernel takes only signed modules (Secure Boot)",
        "Use packages (Ubuntu's archive has signed ones: nvidia_driver_secure_boot: signed), or enrol a key and pass "
        "--module-signing-secret-key.",
    ),
    (
        r"unrecognized option|Invalid commandline",
        "this branch's installer does not know one of the options",
        "Look at nvidia_driver_runfile_options; --advanced-options of the runfile lists what it knows.",
    ),
    (
        r"Building kernel modules|kernel module (?:failed to build|was not created)|Unable to build",
        "the modules do not build for this kernel",
        "The driver is older than the kernel knows: take branch 580 or newer.",
    ),
    (r"must be run as root", "it was not started as root", "Run the play with become: true."),
    (r"no NVIDIA driver currently installed", "there is no driver of a runfile to remove", "Nothing is left to do."),
)
NOISE = re.compile(r"Installation has failed\.|Invalid commandline, please run|log file .* for details\.\s*$")


def read_log(text: str, said: str = "") -> dict[str, Any]:
    """Why NVIDIA's installer failed; it ends with 1 for whatever reason, only its log tells which.

    :arg text: C(/var/log/nvidia-installer.log); empty when it was not written, as for an unknown option
    :arg said: what the installer printed itself
    :returns: C({"version": str, "ok": bool, "errors": [str], "compiler": [str], "cause": str, "remedy": str})
    """
    version = re.search(r"(?m)^installer version: (\S+)", text)
    errors: list[str] = []
    for source in (text, said):
        for found in re.findall(r"(?ms)^ERROR: (.+?)(?=^(?:->|ERROR:|WARNING:)|\n\n|\Z)", source):
            line = " ".join(found.split())
            if line not in errors:
                errors.append(line)
    errors += re.findall(r"(?m)^nvidia-installer: (unrecognized option: .+)$", said)
    telling = [line for line in errors if not NOISE.search(line)] or errors
    compiler = [
        line.strip() for line in text.splitlines() if re.search(r"(?<!^ERROR)\berror: |undefined!|\*\*\* \[", line)
    ]
    whole = "\n".join([*telling, *errors])
    cause, remedy = next(
        ((cause, remedy) for pattern, cause, remedy in CAUSES if re.search(pattern, whole)),
        ("", "Read /var/log/nvidia-installer.log and /var/lib/dkms/nvidia/*/build/make.log on the node."),
    )
    return {
        "version": version[1] if version else "",
        "ok": not errors and "is now complete" in text,
        "errors": telling,
        "compiler": compiler[:5],
        "cause": cause,
        "remedy": remedy,
    }
