# Copyright: Contributors to the gpufleet.llm project
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which Debian mirror this machine uses: read from its own apt sources, never written down anywhere."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from .host import FleetError


@dataclass(frozen=True)
class Source:
    """One apt source: the archive's address, its suites and components."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]


def parse_deb822(text: str) -> list[Source]:
    """Sources of a .sources file (only enabled stanzas of type deb)."""
    found = []
    for stanza in re.split(r"\n\s*\n", re.sub(r"(?m)^#.*\n?", "", text)):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1] in (" ", "\t") and name:
                fields[name] += " " + line.strip()
            elif ":" in line:
                name, value = line.split(":", 1)
                name = name.strip().lower()
                fields[name] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false"):
            continue
        for uri in fields.get("uris", "").split():
            found.append(
                Source(uri, tuple(fields.get("suites", "").split()), tuple(fields.get("components", "").split()))
            )
    return found


def parse_one_line(text: str) -> list[Source]:
    """Sources of a classic sources.list."""
    found = []
    for line in text.splitlines():
        match = re.match(r"^\s*deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)\s+([^#]+)", line)
        if match:
            found.append(Source(match[1], (match[2],), tuple(match[3].split())))
    return found


def machine_sources(etc: Path = Path("/etc/apt")) -> list[Source]:
    """All sources this machine's apt is configured with."""
    found: list[Source] = []
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        if path.is_file() and path.suffix in (".list", ".sources"):
            text = path.read_text(encoding="utf-8", errors="replace")
            found += parse_deb822(text) if path.suffix == ".sources" else parse_one_line(text)
    return found


def os_release(text: str) -> dict[str, str]:
    """The fields of an os-release file."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {key: value.strip().strip("\"'") for key, value in pairs}


def debian_archives(sources: list[Source], codename: str) -> tuple[str, str]:
    """(main archive, security archive or "") among the sources of a Debian machine with that codename."""
    main = security = ""
    for source in sources:
        if "main" not in source.components:
            continue
        if codename in source.suites and not main:
            main = source.uri
        if f"{codename}-security" in source.suites and not security:
            security = source.uri
    return main, security


def archives() -> tuple[str, str]:
    """The Debian archives node images are made from: GPUFLEET_DEBIAN_MIRROR, or this Debian machine's own.

    Returns ("", "") on another distribution: debootstrap then uses the address it was built with.
    """
    if os.environ.get("GPUFLEET_DEBIAN_MIRROR"):
        return os.environ["GPUFLEET_DEBIAN_MIRROR"], os.environ.get("GPUFLEET_DEBIAN_SECURITY_MIRROR", "")
    release = os_release(Path("/etc/os-release").read_text(encoding="utf-8"))
    if release.get("ID") != "debian":
        return "", ""
    main, security = debian_archives(machine_sources(), release.get("VERSION_CODENAME", ""))
    if not main:
        raise FleetError(
            "no Debian archive found in this machine's apt sources (/etc/apt): set GPUFLEET_DEBIAN_MIRROR to the address "
            "of a Debian mirror",
            2,
        )
    return main, security


def node_sources(main: str, security: str, codename: str, components: str = "main") -> str:
    """The deb822 file of a node image."""
    stanza = (
        "Types: deb\nURIs: {}\nSuites: {}\nComponents: {}\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )
    text = stanza.format(main, f"{codename} {codename}-updates", components)
    if security:
        text += "\n" + stanza.format(security, f"{codename}-security", components)
    return text
