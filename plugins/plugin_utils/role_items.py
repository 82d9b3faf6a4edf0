# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Short ways to write items of gpufleet.llm.observe in a role's vars. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any


def package_items(packages: Iterable[str | Mapping[str, Any]], state: str = "present") -> list[dict[str, Any]]:
    """Names, or ``{"name", "version": exact, glob or "", "hold": bool}``, as items of gpufleet.llm.observe."""
    items = []
    for given in packages:
        package: Mapping[str, Any] = {"name": given} if isinstance(given, str) else given
        item: dict[str, Any] = {"kind": "package", "name": package["name"], "state": state}
        if package.get("version"):
            item["version"] = package["version"]
        if "hold" in package:
            item["hold"] = package["hold"]
        items.append(item)
    return items


def absent_items(paths: Iterable[str]) -> list[dict[str, Any]]:
    """Paths at which nothing must be, as items of gpufleet.llm.observe."""
    return [{"kind": "absent", "path": path} for path in paths]


def file_items(files: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """``{"path", "content", "owner", "group", "mode", "no_log"}`` as items of gpufleet.llm.observe.

    A secret is compared by its SHA-256, so that the task's arguments, which ansible shows with -vvv, do not hold it.
    """
    items = []
    for file in files:
        item = {"kind": "file", **file}
        if item.get("no_log"):
            item["sha256"] = hashlib.sha256(str(item.pop("content")).encode("utf-8")).hexdigest()
        items.append(item)
    return items
