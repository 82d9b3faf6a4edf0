# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of the role nvidia_driver for dnf, pacman and runfiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.gpufleet.llm.plugins.plugin_utils import driver_dnf, driver_pacman


def driver_transaction(text: str, known: list[str] | None = None) -> dict[str, Any]:
    """What dnf --assumeno would do, and what of it must not be."""
    return driver_dnf.read_transaction(text, known or [])


def driver_pacman_transaction(text: str, kernels: list[str]) -> dict[str, Any]:
    """What pacman --print would bring, and what of it must not come."""
    return driver_pacman.read_transaction(text, kernels)


def driver_specs(offered: str, chosen: dict[str, Any], loose: list[str]) -> list[str]:
    """What dnf install is given, of what driver_versions has chosen."""
    return driver_dnf.specs(offered, chosen["version"], chosen["versions"], loose)


def driver_runfile_log(text: str, said: str = "") -> dict[str, Any]:
    """Why NVIDIA's installer failed."""
    return driver_dnf.read_log(text, said)


class FilterModule:
    """What ansible-core loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name -> function."""
        return {
            "driver_pacman_transaction": driver_pacman_transaction,
            "driver_runfile_log": driver_runfile_log,
            "driver_specs": driver_specs,
            "driver_transaction": driver_transaction,
        }
