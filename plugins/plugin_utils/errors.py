# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The error catalogue: from the raw text of a node to one cause and its remedies.

The table is C(data/errors.yml); this file only searches it. Nodes return text, the controller classifies.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.gpufleet.llm.plugins.plugin_utils import yaml_file

CATALOGUE = os.path.join(os.path.dirname(__file__), "data", "errors.yml")
# The end of a text is where a program says why it stopped; a longer text is cut to this many characters.
TEXT_LIMIT = 400_000
MATCHED_LIMIT = 400

UNKNOWN: dict[str, Any] = {
    "id": "unknown",
    "title": "Not in the catalogue",
    "cause": "No entry of the error catalogue fits this message.",
    "remedy": "Read the message itself; what it names first after the last traceback is mostly the cause.",
    "remedies": ["Read the message itself; what it names first after the last traceback is mostly the cause."],
    "matched": "",
}

_SECRETS = (
    (re.compile(r"\bhf_[A-Za-z0-9]{8,}"), "hf_***"),
    (re.compile(r"(?i)(authorization: *(?:bearer|basic|token) +)\S+"), r"\1***"),
    (re.compile(r"(://)[^/\s:@]+(?::[^/\s@]*)?@"), r"\1***@"),
)


@dataclass(frozen=True)
class Entry:
    """One row of C(errors.yml)."""

    id: str
    title: str
    cause: str
    rule: str
    probe: str
    remedy: tuple[str, ...]
    source: tuple[str, ...]
    evidence: str
    verified: bool
    patterns: tuple[re.Pattern[str], ...] = ()
    rcs: tuple[int, ...] = ()
    defaults: Mapping[str, str] = field(default_factory=dict)


@functools.cache
def catalogue(path: str = CATALOGUE) -> tuple[Entry, ...]:
    """The entries of the table, in the order in which they are tried.

    Raises ``KeyError`` or ``re.error`` for a malformed table; a unit test keeps the shipped one well-formed.
    """
    table = yaml_file.read(path)
    return tuple(
        Entry(
            id=row["id"],
            title=row["title"],
            cause=row["cause"],
            rule=row["rule"],
            probe=row["probe"],
            remedy=tuple(row["remedy"]),
            source=tuple(row["source"]),
            evidence=row["evidence"],
            verified=row["verified"],
            patterns=tuple(re.compile(pattern, re.MULTILINE) for pattern in row["patterns"]),
            rcs=tuple(row.get("rcs", ())),
            defaults=row.get("defaults", {}),
        )
        for row in table["errors"]
    )


def entry(error_id: str) -> Entry | None:
    """The entry of this id, or None."""
    return next((one for one in catalogue() if one.id == error_id), None)


def redact(text: str) -> str:
    """*text* without tokens, passwords in URLs and Authorization values."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def _fill(template: str, values: Mapping[str, str]) -> str:
    """*template* with its ``{name}`` placeholders filled; anything else in braces stays."""
    return re.sub(r"\{([a-z_]+)\}", lambda match: values.get(match.group(1), match.group(0)), template)


def api_version(number: int) -> str:
    """12080 -> ``12.8``: the driver API's number, 1000 * major + 10 * minor (cuDriverGetVersion)."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _derived(groups: Mapping[str, str]) -> dict[str, str]:
    """Words that follow from what a pattern caught."""
    derived = {}
    if groups.get("api", "").isdigit():
        derived["driver_cuda"] = f"CUDA {api_version(int(groups['api']))}"
    if groups.get("sm", "").isdigit():
        number = int(groups["sm"])
        derived["capability"] = f"of compute capability {number // 10}.{number % 10}"
    return derived


def explain(error_id: str, context: Mapping[str, Any] | None = None, matched: str = "") -> dict[str, Any]:
    """The texts of one entry, filled with *context*; the entry ``unknown`` for an id that does not exist.

    Returns the same keys as :func:`classify`.
    """
    found = entry(error_id)
    if found is None:
        return {**UNKNOWN, "remedies": list(UNKNOWN["remedies"]), "matched": redact(matched)[:MATCHED_LIMIT]}
    values = {
        **found.defaults,
        **{key: str(value) for key, value in (context or {}).items() if value not in (None, "")},
    }
    remedies = [_fill(one, values) for one in found.remedy]
    return {
        "id": found.id,
        "title": found.title,
        "cause": redact(_fill(found.cause, values)),
        "remedy": " Otherwise: ".join(remedies),
        "remedies": remedies,
        "matched": redact(matched.strip())[:MATCHED_LIMIT],
    }


def _line_of(text: str, match: re.Match[str]) -> str:
    """The whole lines that a match touches."""
    start = text.rfind("\n", 0, match.start()) + 1
    end = text.find("\n", match.end())
    return text[start : end if end >= 0 else len(text)]


def classify(text: str, context: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Name the one cause behind *text*, the raw output of a failed program.

    *context* may hold ``rc`` (exit status; negative or 128+n for a signal, 124 for a time limit), which decides when no
    message does, and values for the placeholders of the entry's texts (``python``, ``wheel_cuda``, ``seconds`` ...).

    Returns ``id`` (``unknown`` when nothing fits), ``title``, ``cause``, ``remedy`` (one string, best first),
    ``remedies`` (the same as a list) and ``matched`` (the line that decided, without secrets). Never raises, whatever the
    text.
    """
    text = str(text or "").replace("\r\n", "\n")[-TEXT_LIMIT:]
    context = dict(context or {})
    for one in catalogue():
        for pattern in one.patterns:
            # The last occurrence: what a program says before it stops counts more than an earlier warning.
            found = list(pattern.finditer(text))
            if found:
                match = found[-1]
                groups = {key: value.strip() for key, value in match.groupdict().items() if value}
                values = {**groups, **_derived(groups), **context}
                return explain(one.id, values, _line_of(text, match))
    rc = context.get("rc")
    if isinstance(rc, int) and not isinstance(rc, bool):
        for one in catalogue():
            if rc in one.rcs:
                return explain(one.id, context, f"exit status {rc}")
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    return explain("unknown", None, last)
