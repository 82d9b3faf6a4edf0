# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the roles that have nothing to do. Documented in plugins/modules/survey.py."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.gpufleet.llm.plugins.plugin_utils import survey
from ansible_collections.gpufleet.llm.plugins.plugin_utils.untag import plain

display = Display()


class ActionModule(ActionBase):
    """Walk role after role until one has to run."""

    _supports_check_mode = True
    _supports_async = False
    _requires_connection = True
    _VALID_ARGS = frozenset(("roles", "skip"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """The result described in RETURN of the module's documentation."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        del tmp
        roles = plain(self._task.args.get("roles"))
        if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
            raise AnsibleActionFail(f"roles wants a list of names, got {roles!r}")
        if boolean(plain(self._task.args.get("skip", False))):
            result.update(changed=False, idle=[], act=roles, why="", facts={}, remote_calls=0)
            return result
        self._remote_calls = 0
        self._surveyor = self._templar.copy_with_new_env(available_variables=dict(task_vars or {}))
        variables = dict(task_vars or {})
        facts: dict[str, Any] = {}
        why = ""
        idle: list[str] = []
        for role in roles:
            # What a role changes may matter to the ones behind it: from the first one that has to run, all do.
            try:
                walk = survey.Walk(role, {**variables, **facts}, self._template, self._holds, self._call)
                facts.update(walk.run())
            except survey.HasToRunError as reason:
                why = f"{role}: {reason}"
                display.vv(f"survey: from here on roles have to run: {why}", host=variables.get("inventory_hostname"))
                break
            idle.append(role)
        public = {name: value for name, value in facts.items() if not name.startswith("_")}
        result.update(changed=False, idle=idle, act=roles[len(idle) :], why=why, facts=public)
        result["remote_calls"] = self._remote_calls
        return result

    def _template(self, value: Any, variables: dict[str, Any]) -> Any:
        self._surveyor.available_variables = variables
        return self._surveyor.template(value)

    def _holds(self, condition: Any, variables: dict[str, Any]) -> bool:
        self._surveyor.available_variables = variables
        if hasattr(self._surveyor, "evaluate_conditional"):
            return bool(self._surveyor.evaluate_conditional(condition))
        from ansible.playbook.conditional import Conditional  # ansible-core 2.18

        asked = Conditional(loader=self._loader)
        asked.when = [condition]
        return bool(asked.evaluate_conditional(self._surveyor, variables))

    def _call(self, name: str, args: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        task = self._task.copy()
        task.args = args
        self._surveyor.available_variables = variables
        action = self._shared_loader_obj.action_loader.get(
            name,
            task=task,
            connection=self._connection,
            play_context=self._play_context,
            loader=self._loader,
            templar=self._surveyor,
            shared_loader_obj=self._shared_loader_obj,
        )
        try:
            result: dict[str, Any] = action.run(task_vars=variables)
        except AnsibleActionFail as error:
            self._remote_calls += int((getattr(error, "result", None) or {}).get("remote_calls", 0))
            raise
        self._remote_calls += int(result.get("remote_calls", 0))
        return result
