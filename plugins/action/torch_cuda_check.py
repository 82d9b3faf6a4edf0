# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's half of torch_cuda_check: from what the node found to one cause. Documentation: the module."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.gpufleet.llm.plugins.plugin_utils import torch_verdict


class ActionModule(ActionBase):
    """Runs the module on the node and makes the verdict of what comes back."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the documented result, or the module's own failure (wrong arguments, node out of reach)."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        found: dict[str, Any] = self._execute_module(task_vars=task_vars)
        raw = found.pop("raw", None)
        result.update(found)
        if raw is not None:
            result.update(torch_verdict.decide(raw))
        return result
