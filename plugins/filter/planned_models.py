# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter C(planned_models). Documentation: planned_models.yml beside this file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.gpufleet.llm.plugins.plugin_utils.planned import planned_models


class FilterModule:
    """Filters that hand a plan to the roles."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {"planned_models": planned_models}
