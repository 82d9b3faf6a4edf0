# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filters of the models' catalogue: from what an inventory wants to what a node shall have, and what came of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.gpufleet.llm.plugins.plugin_utils import catalog as shelf
from ansible_collections.gpufleet.llm.plugins.plugin_utils import catalog_node
from ansible_collections.gpufleet.llm.plugins.plugin_utils.lock import LockError, parse_lock


def catalog(wanted: Any, dirs: list[str], precisions: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """The models that are wanted, each with all keys."""
    return shelf.wanted_models(wanted, dirs, precisions)


def catalog_removed(names: list[str], dirs: list[str]) -> list[dict[str, str]]:
    """Name and environment of models that shall go; one that is in no catalogue any more has its own environment."""
    folders = shelf.names(dirs)
    out: list[dict[str, str]] = []
    for name in names:
        python = shelf.read_folder(folders[name])["python"] if name in folders else {}
        out.append({"name": name, "environment": str(python.get("environment", name))})
    return out


def lock(text: str) -> dict[str, str]:
    """Name to version of a hash lock's unconditional lines."""
    return parse_lock(text).requirements


def _told(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (shelf.CatalogError, LockError) as error:
            raise AnsibleFilterError(f"gpufleet.llm.{function.__name__}: {error}") from error

    return wrapped


def catalog_items(models: list[dict[str, Any]], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """What observe shall look at."""
    return catalog_node.items(models, settings)


def catalog_work(
    models: list[dict[str, Any]], settings: dict[str, Any], seen: dict[str, Any], force: bool = False
) -> dict[str, Any]:
    """What to do about what observe found."""
    return catalog_node.work(models, settings, seen, force)


def catalog_outcome(
    models: list[dict[str, Any]],
    settings: dict[str, Any],
    last: dict[str, Any],
    *,
    tests: list[dict[str, Any]] | None = None,
    torch: list[dict[str, Any]] | None = None,
    changed: bool = False,
) -> dict[str, Any]:
    """The role's result."""
    return catalog_node.outcome(models, settings, last, tests=tests or [], torch=torch or [], changed=changed)


def catalog_sources(mirror: dict[str, Any], channels: list[str]) -> dict[str, Any]:
    """Where everything comes from under a resolved mirror profile."""
    return catalog_node.sources(mirror, channels)


class FilterModule:
    """What ansible-core loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name -> function."""
        functions = (catalog, catalog_items, catalog_outcome, catalog_removed, catalog_sources, catalog_work, lock)
        return {function.__name__: _told(function) for function in functions}
