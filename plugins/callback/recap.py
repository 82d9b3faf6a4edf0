# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Count what a run cost in remote calls and say so at its end."""

from __future__ import annotations

DOCUMENTATION = r"""
name: recap
type: aggregate
short_description: Prints how many remote calls a run cost per node
version_added: 0.1.0
author:
  - gpufleet.llm contributors (@gpufleet)
description:
  - Counts, per node, the tasks and loop items that were sent to it, and prints the counts after the play recap.
  - A task that ran on the controller alone (C(debug), C(set_fact), an include, an assertion) counts nothing. A module counts
    one, C(gpufleet.llm.observe) what it reports itself. Actions that transfer a file first (C(copy), C(template)) count
    one although they talk to the node more than once, so that the number of a run that changes things is a lower bound.
requirements:
  - enable it in C(ansible.cfg) with C(callbacks_enabled = gpufleet.llm.recap)
"""

from typing import Any

from ansible.plugins.callback import CallbackBase
from ansible_collections.gpufleet.llm.plugins.plugin_utils.task_result import part

# Actions that never talk to a node.
LOCAL_ACTIONS = frozenset(
    "add_host assert debug fail group_by include include_role include_tasks include_vars import_role import_tasks meta"
    " pause set_fact set_stats validate_argument_spec report plan".split()
)


def remote_calls(action: str, result: dict[str, Any], loop_items: int = 0) -> int:
    """How many calls to the node one task result stands for.

    @param action: name of the action, with or without a collection.
    @param result: the result as the module returned it.
    @param loop_items: items of a loop that were counted already one by one; their sum stands for the task.
    """
    if loop_items or result.get("skipped"):
        return 0
    if "remote_calls" in result:
        return int(result["remote_calls"])
    return 0 if action.rsplit(".", 1)[-1] in LOCAL_ACTIONS else 1


def _looped(result: Any) -> bool:
    task = part(result, "task")
    return bool(task.loop or task.loop_with)


class CallbackModule(CallbackBase):
    """Adds up C(remote_calls) per host."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "gpufleet.llm.recap"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calls: dict[str, int] = {}

    def _count(self, result: Any, looped: bool = False) -> None:
        task = part(result, "task")
        if task.delegate_to in ("localhost", "127.0.0.1"):
            return
        host = part(result, "host").get_name()
        values = part(result, "result")
        values = values if isinstance(values, dict) else {}
        items = 1 if looped and values.get("results") else 0
        self.calls[host] = self.calls.get(host, 0) + remote_calls(str(task.action), values, items)

    def v2_runner_on_ok(self, result: Any) -> None:
        self._count(result, looped=_looped(result))

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._count(result, looped=_looped(result))

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._count(result)

    def v2_runner_item_on_ok(self, result: Any) -> None:
        self._count(result)

    def v2_runner_item_on_failed(self, result: Any) -> None:
        self._count(result)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        if not self.calls:
            return
        self._display.banner("REMOTE CALLS")
        for host in sorted(self.calls):
            self._display.display(f"{host:<26} : {self.calls[host]}")
