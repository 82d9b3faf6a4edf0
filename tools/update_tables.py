#!/usr/bin/env python3
"""Regenerate the solver's tables from their public sources."""

from __future__ import annotations
import re
from pathlib import Path
from typing import Any
import yaml


def version_key(text: str) -> tuple[int, ...]:
    """``2.10.0`` -> ``(2, 10, 0)``."""
    return tuple(int(n) for n in re.findall(r"\d+", text))


class _Dumper(yaml.SafeDumper):
    """Rows on one line each, lists of rows one row per line."""


def dump_table(path: str | Path, head: list[str], table: dict[str, Any]) -> str:
    """Write one table in the canonical form; return the text."""
    lines = ["---", *[f"# {line}" for line in head]]
    for key, value in table.items():
        if isinstance(value, dict) and all(not isinstance(v, (dict, list)) for v in value.values()):
            lines.append(f"{key}:")
            lines += [f"  {k}: {_scalar(v)}" for k, v in value.items()]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines.append(f"{key}:")
            for row in value:
                lines += _row(row)
        else:
            lines.append(f"{key}: {_flow(value)}")
    text = "\n".join(lines) + "\n"
    Path(path).write_text(text, encoding="utf-8")
    return text


def _scalar(value: Any) -> str:
    return yaml.safe_dump(value, width=10000, default_flow_style=True).removesuffix("\n").removesuffix("\n...")


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(v) for v in value) + "]"
    if isinstance(value, str):
        return (
            "'" + value.replace("'", "''") + "'"
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", value)
            or value in {"yes", "no", "on", "off", "true", "false", "null", "y", "n"}
            else value
        )
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _row(row: dict[str, Any]) -> list[str]:
    one = f"  - {_flow(row)}"
    if len(one) <= 150:
        return [one]
    out = []
    for position, (key, value) in enumerate(row.items()):
        out.append(f"  {'- ' if position == 0 else '  '}{key}: {_flow(value)}")
    return out
