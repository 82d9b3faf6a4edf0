# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show the plans of all nodes of the play. Documentation: plugins/modules/plan_show.py."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.gpufleet.llm.plugins.plugin_utils import solver_render
from ansible_collections.gpufleet.llm.plugins.plugin_utils.untag import plain

ARGUMENTS: dict[str, Any] = {
    "format": {"type": "str", "default": "table", "choices": ["table", "json"]},
    "reasons": {"type": "bool", "default": False},
    "dest": {"type": "path"},
}


def write(path: str, text: str) -> None:
    """Write a file by rename, so that a reader never sees half of it."""
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".plan-")
    with os.fdopen(handle, "w", encoding="utf-8") as out:
        out.write(text + "\n")
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)


class ActionModule(ActionBase):
    """C(plan_show) runs on the controller only; no connection to a node is made."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables: dict[str, Any] = task_vars or {}
        _dummy, args = self.validate_argument_spec(argument_spec=ARGUMENTS)
        nodes = [str(node) for node in variables.get("ansible_play_hosts_all") or []]
        hostvars = variables.get("hostvars") or {}
        plans, missing = [], []
        for node in nodes:
            plan = (hostvars[node].get("ansible_facts") or {}).get("gpufleet_plan") or hostvars[node].get(
                "gpufleet_plan"
            )
            if plan:
                plans.append(plain(plan))
            else:
                missing.append(node)
        if args["format"] == "json":
            text = solver_render.as_json(plans)
        else:
            text = solver_render.table(plans, bool(args["reasons"]), missing)
        if args["dest"]:
            write(str(args["dest"]), text)
        else:
            Display().display(text)
        conflicts = solver_render.summary(plans)["with_conflicts"]
        result.update(changed=False, text=text, with_conflicts=conflicts, without_plan=missing, remote_calls=0)
        return result
