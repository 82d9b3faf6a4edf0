# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep standard output for what actions print themselves."""

from __future__ import annotations

DOCUMENTATION = r"""
name: plan_only
type: stdout
short_description: Prints nothing but what went wrong, and that on standard error
version_added: 0.1.0
author:
  - gpufleet.llm contributors (@gpufleet)
description:
  - For C(playbooks/plan.yml). With it standard output is the plan and nothing else, so that C(-e gpufleet_plan_format=json)
    can be read by another program.
  - Failed tasks and nodes that could not be reached are told on standard error.
requirements:
  - set as stdout callback, C(ANSIBLE_STDOUT_CALLBACK=gpufleet.llm.plan_only)
"""

from typing import Any

from ansible.plugins.callback import CallbackBase
from ansible_collections.gpufleet.llm.plugins.plugin_utils.task_result import part


class CallbackModule(CallbackBase):
    """Silent but for failures."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "gpufleet.llm.plan_only"

    def _tell(self, what: str, result: Any) -> None:
        host = part(result, "host").get_name()
        self._display.display(f"{host}: {what}: {part(result, 'result').get('msg', '')}", stderr=True)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """A task failed."""
        if not ignore_errors:
            self._tell("failed", result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """A node did not answer."""
        self._tell("unreachable", result)
