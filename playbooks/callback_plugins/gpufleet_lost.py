# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Let a play know that one of its nodes, or a host that a task was delegated to, did not answer.

An unreachable host that is not ignored leaves the play, and with it the whole run when it was the last of its batch; one
that is ignored leaves no trace, and the next task runs. No keyword makes a failure of it, which a rescue could take.
Ansible loads this file with every playbook beside it; it does something only in a play that asks for it.
"""

from __future__ import annotations

DOCUMENTATION = r"""
name: gpufleet_lost
type: aggregate
short_description: Notes the first task of each node that was unreachable
description:
  - In a play with the variable C(__gpufleet_notes_lost) every node gets the fact C(__gpufleet_lost) with its first finished
    task, empty. The first task that is unreachable, also on a host that it was delegated to, puts its name and the reason there.
"""

from typing import Any

from ansible.plugins.callback import CallbackBase
from ansible_collections.gpufleet.llm.plugins.plugin_utils.task_result import part


class CallbackModule(CallbackBase):
    """Keeps one text per node."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "gpufleet_lost"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lost: dict[str, str] = {}
        self.variables: Any = None

    def v2_playbook_on_play_start(self, play: Any) -> None:
        self.variables = play.get_variable_manager() if "__gpufleet_notes_lost" in play.vars else None

    def v2_runner_on_ok(self, result: Any) -> None:
        # Only then is the fact defined: without this file the play fails instead of taking every node for one that answers.
        if part(result, "host").get_name() not in self.lost:
            self._note(result, "")

    def v2_runner_on_unreachable(self, result: Any) -> None:
        if not self.lost.get(part(result, "host").get_name()):
            told = part(result, "result").get("msg") or "no connection"
            self._note(result, f"{part(result, 'task').get_name()}: unreachable: {told}")

    def _note(self, result: Any, text: str) -> None:
        if self.variables is not None:
            node = part(result, "host").get_name()
            self.lost[node] = text
            self.variables.set_nonpersistent_facts(node, {"__gpufleet_lost": text})
