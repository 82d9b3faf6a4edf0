# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read hash-locked requirements files, as C(uv pip compile --generate-hashes) or pip-tools write them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

_PIN = re.compile(
    r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*==\s*(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)\s*"
    r"(?:;\s*(?P<marker>.*?))?\s*(?P<hashes>(?:--hash=\S+\s*)*)$"
)
_HASH = re.compile(r"--hash=(?P<algorithm>[a-z0-9]+):(?P<digest>[0-9a-fA-F]+)")


class LockError(ValueError):
    """The text is not a lock: something in it is not pinned exactly, or not hashed."""


@dataclass(frozen=True)
class Lock:
    """A lock file's content: C(requirements) name to version (names as PEP 503 spells them)."""

    requirements: dict[str, str]
    conditional: dict[str, str]
    sha256: str
    hashes: dict[str, tuple[str, ...]] = field(default_factory=dict)


def normal_name(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def logical_lines(text: str) -> list[str]:
    """The lines of a requirements file with continuations joined and comments removed."""
    lines: list[str] = []
    pending = ""
    for raw in text.splitlines():
        line = re.sub(r"(^|\s)#.*$", "", raw).rstrip()
        if line.endswith("\\"):
            pending += line[:-1] + " "
            continue
        line = (pending + line).strip()
        pending = ""
        if line:
            lines.append(line)
    if pending.strip():
        lines.append(pending.strip())
    return lines


def parse_lock(text: str, name: str = "the lock") -> Lock:
    """Parse and check a lock. A line with an environment marker goes to C(conditional), the others to C(requirements).

    Raises LockError that names every line that is not C(name==version) with at least one sha256.
    """
    requirements: dict[str, str] = {}
    conditional: dict[str, str] = {}
    hashes: dict[str, tuple[str, ...]] = {}
    wrong: list[str] = []
    for line in logical_lines(text):
        match = _PIN.match(line)
        if match is None:
            wrong.append(f"not of the form name==version --hash=sha256:...: {line[:80]!r}")
            continue
        package = normal_name(match["name"])
        digests = tuple(found["digest"] for found in _HASH.finditer(match["hashes"]) if found["algorithm"] == "sha256")
        if not digests:
            wrong.append(f"no sha256 for {package}=={match['version']}")
        if package in requirements:
            wrong.append(f"{package} stands there twice")
        hashes[package] = digests
        (conditional if match["marker"] else requirements)[package] = match["version"]
    if not requirements and not wrong:
        wrong.append("it is empty")
    if wrong:
        raise LockError(f"{name} is no hash lock: {'; '.join(wrong)}")
    return Lock(requirements, conditional, hashlib.sha256(text.encode()).hexdigest(), hashes)
