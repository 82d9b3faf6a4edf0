# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter gpufleet.llm.preload."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from ansible_collections.gpufleet.llm import plugins
from ansible_collections.gpufleet.llm.plugins.plugin_utils import (
    cuda,
    driver_table,
    errors,
    mirrors,
    nvidia_repository,
    observe,
    survey,
    tables,
)

# What reads a file once per process.
TABLES: tuple[Callable[[], Any], ...] = (
    cuda.data,
    driver_table.table,
    errors.catalogue,
    mirrors.profiles,
    nvidia_repository.table,
    observe.load_script,
    survey.load_roles,
    tables.load,
)


@functools.lru_cache(maxsize=1)
def load() -> tuple[str, ...]:
    """Import what the collection runs on the controller and read its tables; the names of the imported modules."""
    names = []
    for kind in ("plugin_utils", "filter", "action"):
        package = importlib.import_module(f"{plugins.__name__}.{kind}")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
            names.append(module.name)
    for read in TABLES:
        read()
    return tuple(names)


def preload(value: Any) -> Any:
    """The value as it is, after C(load)."""
    load()
    return value


class FilterModule:
    """What ansible-core loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name -> function."""
        return {"preload": preload}
