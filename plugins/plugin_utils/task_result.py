# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads ansible-core's task results, for callbacks."""

from __future__ import annotations

from typing import Any


def part(result: Any, name: str) -> Any:
    """C(task), C(host) or C(result) of a task result: public names since ansible-core 2.19, private before."""
    return getattr(result, name) if hasattr(result, name) else getattr(result, f"_{name}")
