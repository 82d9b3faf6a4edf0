# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans in words: a table for people, JSON for machines. Nodes whose plans say the same share their rows."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

Plan = Mapping[str, Any]

HEAD = ("NODE", "GPU", "DRIVER", "CUDA", "MODEL", "PRECISION", "MEMORY", "PYTHON", "TORCH")
NAMES_SHOWN = 3
WIDTH = 120


def as_json(plans: Sequence[Plan]) -> str:
    """All plans and a summary, keys sorted: the same plans give the same text."""
    content = {"plans": sorted(plans, key=lambda p: str(p["node"])), "summary": summary(plans)}
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)


def summary(plans: Sequence[Plan]) -> dict[str, Any]:
    """The fleet in numbers; totals of bytes are null where a part is not known."""
    sizes = [plan["download_bytes"] for plan in plans]
    return {
        "nodes": len(plans),
        "ok": sum(1 for plan in plans if plan["ok"]),
        "with_conflicts": sorted(str(plan["node"]) for plan in plans if not plan["ok"]),
        "without_gpu": sum(1 for plan in plans if plan["accelerator"] == "cpu"),
        "download_known_bytes": sum(plan["download"]["known_bytes"] for plan in plans),
        "download_bytes": None if None in sizes else sum(sizes),
    }


def table(plans: Sequence[Plan], reasons: bool = False, missing: Sequence[str] = ()) -> str:
    """The plans as a table, then conflicts with remedies, warnings, and (when asked) every choice with its reason.

    C(missing) are nodes that have no plan.
    """
    groups = _groups(plans)
    rows = [row for members, plan in groups for row in _rows(members, plan)]
    out = _aligned([HEAD, *rows]) if rows else []
    for members, plan in groups:
        out += _details(members, plan, reasons)
    for node in missing:
        out += ["", f"{node}: no plan (the node did not answer, or its facts could not be read)"]
    return "\n".join([*out, "", _closing(plans, missing)])


def gigabytes(size: int | None) -> str:
    """C(14.0 GB), or C(?) when not known."""
    return "?" if size is None else f"{size / 1e9:.1f} GB"


def torch_words(torch: Mapping[str, Any]) -> str:
    """C(2.1.2 cu121 (Python index))."""
    if not torch["version"]:
        return "none fits"
    where = {"pypi": " (Python index)", "pytorch": " (PyTorch index)"}.get(str(torch["index"]), "")
    return f"{torch['version']} {torch['variant'] or ''}".rstrip() + where


def driver_words(plan: Plan) -> str:
    """C(580 open, install)."""
    driver = plan["driver"]
    if driver["branch"] is None:
        return "-"
    return f"{driver['version'] or driver['branch']} {driver['flavour'] or ''}".rstrip() + f", {driver['action']}"


def gpu_words(plan: Plan) -> list[str]:
    """C(2 x Tesla T4 (7.5, 16.1 GB)), one line per kind of card."""
    kinds: dict[str, int] = {}
    for card in plan["gpus"]:
        cc = card["compute_capability"] or "/".join(card["possible_compute_capabilities"]) or "?"
        size = f"{gigabytes(card['memory_total_bytes'])}{' nominal' if card['memory_nominal'] else ''}"
        label = f"{card['name']} ({cc}, {size})"
        kinds[label] = kinds.get(label, 0) + 1
    return [f"{count} x {label}" if count > 1 else label for label, count in kinds.items()] or ["none"]


def _groups(plans: Sequence[Plan]) -> list[tuple[list[str], Plan]]:
    """Nodes with the same words, in the order of the first."""
    groups: dict[str, tuple[list[str], Plan]] = {}
    for plan in plans:
        words = json.dumps([_rows([""], plan), _details([""], plan, True)], sort_keys=True)
        groups.setdefault(words, ([], plan))[0].append(str(plan["node"]))
    return list(groups.values())


def _members(names: Sequence[str]) -> str:
    if len(names) <= NAMES_SHOWN:
        return ", ".join(names)
    return f"{', '.join(names[:NAMES_SHOWN])} and {len(names) - NAMES_SHOWN} more"


def _rows(members: Sequence[str], plan: Plan) -> list[tuple[str, ...]]:
    toolkit = plan["cuda_toolkit"]["version"] or "none"
    models = [_model_cells(model) for model in plan["models"]]
    if not models:
        models = [("-", "-", "-", plan["python"] or "-", torch_words(plan["torch"]))]
    gpus = gpu_words(plan)
    rows = []
    for number in range(max(len(models), len(gpus))):
        first = number == 0
        left = (
            _members(members) if first else "",
            gpus[number] if number < len(gpus) else "",
            driver_words(plan) if first else "",
            toolkit if first else "",
        )
        rows.append((*left, *(models[number] if number < len(models) else ("",) * 5)))
    return rows


def _model_cells(model: Mapping[str, Any]) -> tuple[str, ...]:
    where = "" if model["device"] == "cuda" else " on CPU"
    precision = f"{model['precision'] or 'none'}{where}"
    memory = f"{gigabytes(model['memory_needed_bytes'])} of {gigabytes(model['memory_available_bytes'])}"
    if model["fits"] is False:
        memory += " (!)"
    return (str(model["name"]), precision, memory, model["python"] or "-", torch_words(model["torch"]))


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def _details(members: Sequence[str], plan: Plan, reasons: bool) -> list[str]:
    out: list[str] = []
    for conflict in plan["conflicts"]:
        out += _wrapped("CONFLICT", f"{conflict['rule']}: found {conflict['found']}, wanted {conflict['wanted']}")
        out += _wrapped("  do", conflict["remedy"])
    for warning in plan["warnings"]:
        out += _wrapped("note", f"{warning['rule']}: {warning['message']}")
    if reasons:
        for reason in plan["reasons"]:
            out += _wrapped(
                "because", f"{reason['choice']}: {reason['because']} [{reason['rule']}; {reason['source']}]"
            )
    return ["", _members(members), *out] if out else []


def _wrapped(mark: str, text: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"  {mark:<10}",
        subsequent_indent=" " * 12,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _closing(plans: Sequence[Plan], missing: Sequence[str]) -> str:
    numbers = summary(plans)
    conflicts = len(numbers["with_conflicts"])
    words = [f"{numbers['nodes']} node{'' if numbers['nodes'] == 1 else 's'} planned", f"{numbers['ok']} ready"]
    if conflicts:
        words.append(f"{conflicts} with conflicts")
    if missing:
        words.append(f"{len(missing)} without a plan")
    known = gigabytes(numbers["download_known_bytes"])
    if numbers["download_bytes"] is None:
        words.append(f"to download: {known} known, and what has no known size (drivers, wheels)")
    else:
        words.append(f"to download: {known}")
    return "; ".join(words) + ". Nothing was changed."
