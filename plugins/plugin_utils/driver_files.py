# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files that the role nvidia_driver writes, as text. Pure. Their paths are the sign that a driver is this role's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

HEADER = "# Written by the Ansible role gpufleet.llm.nvidia_driver; changes here are lost.\n"

NOUVEAU = "/etc/modprobe.d/gpufleet-nouveau.conf"
PREFERENCES = "/etc/apt/preferences.d/gpufleet-nvidia-driver.pref"
UNATTENDED = "/etc/apt/apt.conf.d/52gpufleet-nvidia-driver"
PERSISTENCED = "/etc/systemd/system/nvidia-persistenced.service.d/10-gpufleet.conf"
FABRICMANAGER = "/etc/systemd/system/nvidia-fabricmanager.service.d/10-gpufleet.conf"
RECORD = "/var/lib/gpufleet/nvidia_driver/installed_packages"
FOUND = "/var/lib/gpufleet/nvidia_driver/found_driver"
DEBIAN_SOURCE = "/etc/apt/sources.list.d/gpufleet-nvidia-driver.sources"
# There while an initramfs is older than the blacklist of nouveau: a run that ends in between leaves it to the next one.
INITRAMFS = "/var/lib/gpufleet/nvidia_driver/initramfs_is_old"
# For what the node was rebooted last; gone when that helped.
REBOOTED = "/var/lib/gpufleet/nvidia_driver/rebooted_for"

# Any of these on a node: its driver is managed by this role.
OWN = (NOUVEAU, PREFERENCES, UNATTENDED, PERSISTENCED, FABRICMANAGER, RECORD, DEBIAN_SOURCE, FOUND)

# Only the driver: nvidia-container-toolkit and nvidia-cuda-* go on being upgraded.
BLACKLIST = (
    "^nvidia-(?!container|cuda|docker|fs)",
    "^libnvidia-(?!container)",
    "^(libcuda1|libnvcuvid1|libcudadebugger1)$",
    "^cuda-drivers",
    "^linux-modules-nvidia-",
    "^firmware-nvidia-",
)


def nouveau() -> dict[str, str]:
    """Keeps nouveau from loading."""
    return _file(NOUVEAU, HEADER + "blacklist nouveau\noptions nouveau modeset=0\n")


def unattended() -> dict[str, str]:
    """Adds the driver's packages, and nothing else, to what unattended-upgrades leaves alone."""
    lines = "".join(f'    "{pattern}";\n' for pattern in BLACKLIST)
    return _file(UNATTENDED, HEADER.replace("#", "//") + f"Unattended-Upgrade::Package-Blacklist {{\n{lines}}};\n")


def preferences(packages: Sequence[str], version: str) -> dict[str, str]:
    """Pins a driver version (or branch, C(580.*)), also against newer ones; above 1000 apt may go back to it."""
    pattern = version if version.endswith("*") else f"{version}-*"
    text = f"Package: {' '.join(packages)}\nPin: version {pattern}\nPin-Priority: 1001\n"
    return _file(PREFERENCES, HEADER + text)


def found(branch: str) -> dict[str, str]:
    """Says that a driver was there before this role: it stays in its branch until another is asked for."""
    return _file(FOUND, f"{HEADER}branch {branch}\n")


def drop_in(path: str) -> dict[str, str]:
    """A service that is skipped, not failed, while the module is not loaded.

    For the fabric manager the device nodes of NVSwitch are no sign of that, since it makes them itself. At boot it waits until
    udev has loaded the modules: a node whose fabric manager was skipped answers with error 802 until somebody looks.
    """
    udev = "systemd-udev-settle.service"
    waits = f"Wants={udev}\nAfter={udev}\n" if path == FABRICMANAGER else ""
    return _file(path, HEADER + f"[Unit]\n{waits}ConditionPathExists=/proc/driver/nvidia/version\n")


def deb822(uris: Sequence[str], suites: Sequence[str], components: Sequence[str], signed_by: str) -> str:
    """An apt source."""
    lines = ["Types: deb", f"URIs: {' '.join(uris)}", f"Suites: {' '.join(suites)}"]
    if components:
        lines.append(f"Components: {' '.join(components)}")
    if signed_by:
        lines.append(f"Signed-By: {signed_by}")
    return HEADER + "\n".join(lines) + "\n"


def debian_sources(lines: Sequence[str], codename: str) -> tuple[list[dict[str, Any]], set[str]]:
    """Where Debian itself comes from on a node, and which components of it are enabled.

    :arg lines: all apt source files, each line with C(|) before it, as the probe tells them
    """
    found: list[dict[str, Any]] = []
    enabled: set[str] = set()
    own = False
    text = []
    for line in [line.removeprefix("|") for line in lines]:
        if line.startswith("# /"):
            own = line[2:].strip() == DEBIAN_SOURCE
        elif own:
            continue
        words = re.match(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+(.+)$", line)
        if words:
            options = dict(o.split("=", 1) for o in (words[1] or "").split() if "=" in o)
            text += ["", f"URIs: {words[2]}", f"Suites: {words[3]}", f"Components: {words[4].partition('#')[0]}"]
            text += [f"Signed-By: {options['signed-by']}", ""] if "signed-by" in options else [""]
        elif not line.startswith("#"):
            text.append(line)
    for stanza in "\n".join(text).split("\n\n"):
        fields = {k.lower(): v.split() for k, v in re.findall(r"(?m)^([A-Za-z-]+):[ \t]*(.*)$", stanza)}
        suites = [s for s in fields.get("suites", []) if s.startswith((codename, "stable", "oldstable"))]
        uris = [u.rstrip("/") for u in fields.get("uris", []) if "debian" in u]
        components = set(fields.get("components", []))
        if not suites or not uris or fields.get("enabled") == ["no"] or "deb" not in fields.get("types", ["deb"]):
            continue
        enabled |= components
        if "main" in components:
            found.append({"uris": uris, "suites": suites, "signed_by": " ".join(fields.get("signed-by", []))})
    return found, enabled


def _file(path: str, content: str) -> dict[str, str]:
    return {"path": path, "content": content, "mode": "0644"}
