# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look at everything a role manages with one remote command. Documented in plugins/modules/observe.py."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable
from typing import Any

from ansible import constants
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.gpufleet.llm.plugins.plugin_utils import observe

display = Display()

# Cut the node's half into pieces here: the strategy imports this plugin once, before it forks the workers.
observe.load_script()

# What sudo says when its policy wants a terminal, which there is none of while stdin carries data.
WANTS_TTY = ("you must have a tty to run sudo", "a terminal is required to read the password")


class ActionModule(ActionBase):
    """Send the look, compare the answer."""

    _supports_check_mode = True
    _supports_async = False
    _requires_connection = True
    _VALID_ARGS = frozenset(("items", "deep", "missing_python"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """The result described in RETURN of the module's documentation."""
        result = super().run(tmp, task_vars)
        del tmp
        args = self._task.args
        try:
            items = observe.build_request(args.get("items", []))
            deep = observe.to_bool(observe.plain(args.get("deep", False)))
        except observe.ObserveError as error:
            raise AnsibleActionFail(str(error)) from None
        except ValueError as error:
            raise AnsibleActionFail(f"deep {error}, got {args.get('deep')!r}") from None
        missing_python = observe.plain(args.get("missing_python", "fail"))
        if missing_python not in ("fail", "report"):
            raise AnsibleActionFail(f"missing_python wants fail or report, got {missing_python!r}")

        self._remote_calls = 0
        self._unusable: list[str] = []
        task_vars = task_vars or {}
        if self._task.delegate_to:
            task_vars = task_vars.get("ansible_delegated_vars", {}).get(self._task.delegate_to, task_vars)
        payload_for = functools.partial(observe.build_payload, items, deep, manager=self._manager(task_vars))
        look = self._look(items, payload_for, self._interpreter(task_vars))
        if look is None:
            if missing_python == "fail":
                found = f" (too old or broken: {', '.join(self._unusable)})" if self._unusable else ""
                raise AnsibleActionFail(
                    f"This node has no Python 3.9 or newer{found}, so nothing on it can be looked at. Install one (Debian: "
                    "apt-get install python3; RHEL: dnf install python3; Arch: pacman -S python), for example with "
                    "ansible.builtin.raw, or set ansible_python_interpreter to the one it has.",
                    result={"python_missing": True, "remote_calls": self._remote_calls},
                )
            look = observe.result_without_python(items, self._unusable)

        result.update(look)
        result["remote_calls"] = self._remote_calls
        result["changed"] = bool(self._task.check_mode and look["differs"])
        if self._task.check_mode and self._task.diff:
            result["diff"] = observe.build_diff(items, look["items"])
        return result

    def _interpreter(self, task_vars: dict[str, Any]) -> str | None:
        """ansible_python_interpreter (variable, environment or ansible.cfg) when it names one, else None."""
        try:
            value = constants.config.get_config_value("INTERPRETER_PYTHON", variables=task_vars)
        except Exception as error:  # an interpreter that cannot be read is no reason not to look
            display.vv(f"observe: INTERPRETER_PYTHON: {error}")
            return None
        word = str(observe.plain(self._templar.template(value)) or "").strip()
        if not word or word in ("auto", "auto_legacy", "auto_silent", "auto_legacy_silent"):
            return None
        return word

    @staticmethod
    def _manager(task_vars: dict[str, Any]) -> str:
        """The node's package manager when its facts are known, else auto."""
        facts = task_vars.get("ansible_facts") or {}
        return observe.MANAGERS.get(str(facts.get("pkg_mgr", "")), "auto")

    def _look(
        self, items: list[observe.Item], payload_for: Callable[[str], bytes], interpreter: str | None
    ) -> dict[str, Any] | None:
        """Ask the node and compare; None when it has no Python."""
        token = secrets.token_hex(8)
        payload = payload_for(token)
        answer: dict[str, Any] | None = None
        ways = self._ways()
        for number, way in enumerate(ways):
            try:
                returned = self._send(payload, interpreter, token, way)
            except AnsibleConnectionFailure:
                raise  # unreachable is unreachable
            except AnsibleError as error:  # become failed before the command ran
                if number + 1 < len(ways) and any(words in str(error) for words in WANTS_TTY):
                    continue
                raise
            stdout, stderr = returned.get("stdout", ""), returned.get("stderr", "")
            try:
                answer = observe.parse_answer(stdout, token)
            except observe.ObserveError as error:
                raise AnsibleActionFail(str(error), result={"stderr": stderr[-2000:]}) from None
            if answer is not None:
                break
            unusable = observe.unusable_pythons(stdout, token)
            if unusable is not None:
                self._unusable = unusable
                return None
            if number + 1 < len(ways) and any(words in stdout + stderr for words in WANTS_TTY):
                continue
            said = "\n".join(one.strip() for one in (stdout, stderr) if one.strip())
            raise AnsibleActionFail(
                f"The node did not answer (rc {returned.get('rc')}): {said[-2000:] or 'nothing was said'}",
                result={"rc": returned.get("rc"), "stdout": stdout[-2000:]},
            )
        if answer is None:  # the loop ends with an answer or an error; type checkers cannot know
            raise AnsibleActionFail("The node did not answer.")
        display.vv(
            f"observe: {len(items)} items, {len(payload)} bytes sent, {self._remote_calls} remote call(s)",
            host=self._task.delegate_to or None,
        )
        try:
            return observe.compare(items, answer)
        except observe.ObserveError as error:
            raise AnsibleActionFail(str(error)) from None

    def _ways(self) -> list[str]:
        """How the script may reach the node, best first: on stdin, or as an argument of the command."""
        become = self._connection.become
        if not getattr(self._connection, "has_pipelining", False):
            return ["argument"]
        if become is not None and getattr(become, "require_tty", False):  # su, pbrun: a password only from a terminal
            return ["argument"]
        return ["stdin", "argument"]

    def _send(self, payload: bytes, interpreter: str | None, token: str, way: str) -> dict[str, Any]:
        """One remote command."""
        if way == "stdin":
            self._remote_calls += 1
            return self._low_level_execute_command(
                observe.build_command(interpreter, token), in_data=payload, sudoable=True
            )
        if len(payload) * 4 // 3 > observe.ARGUMENT_LIMIT_BYTES:
            raise AnsibleActionFail(
                f"The request is {len(payload)} bytes, too long for a command line, and this connection "
                f"({self._connection.transport}) cannot send data on stdin. Split the items into several tasks."
            )
        self._remote_calls += 1
        return self._low_level_execute_command(
            observe.build_command(interpreter, token, argument=payload), sudoable=True
        )
