# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Walk through a role's own tasks in one process, for as long as nothing on the node would be changed.

A role of this collection that finds everything as it should be runs nothing but conditions, variables and a look. Ansible
forks a process for each of those; here they are interpreted where they are. What is read are the role's own files, so there
is no second description of what a role looks at. Whatever is not plainly understood, or would act, ends the walk with
HasToRunError: then the role runs in the ordinary way, and says in its own words what there is to say.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.parsing.dataloader import DataLoader

ROLES_DIR = Path(__file__).resolve().parents[2] / "roles"
COLLECTION = "gpufleet.llm"

# What a task may say here besides its action. Anything else (a block, a loop until, delegation, another user) has a meaning
# that is left to Ansible.
KEYWORDS = frozenset(("name", "when", "vars", "register", "loop", "loop_control", "no_log"))


class HasToRunError(Exception):
    """The role must be run by Ansible; the text says why."""


@functools.cache
def read(path: str) -> Any:
    """The content of a YAML file of a role, its templates trusted, once per process; None when there is no such file."""
    if not os.path.exists(path):
        return None
    loader = DataLoader()
    # Trust is a notion of ansible-core 2.19 and later.
    known = inspect.signature(loader.load_from_file).parameters
    trusted = {"trusted_as_template": True} if "trusted_as_template" in known else {}
    return loader.load_from_file(path, cache="none", unsafe=True, **trusted)


@functools.lru_cache(maxsize=1)
def load_roles() -> tuple[str, ...]:
    """Read all the files that a walk may need; the names of the roles. For C(preload), before the workers are forked."""
    for path in sorted(ROLES_DIR.glob("*/*/*.yml")):
        if path.parent.name in ("defaults", "vars", "tasks", "meta"):
            read(str(path))
    return tuple(sorted(path.name for path in ROLES_DIR.iterdir() if (path / "tasks").is_dir()))


@dataclasses.dataclass(frozen=True)
class Step:
    """One task, taken apart."""

    name: str
    action: str
    args: Any
    when: tuple[Any, ...]
    variables: dict[str, Any]
    register: str
    loop: Any
    loop_var: str
    secret: bool
    unknown: tuple[str, ...]

    @classmethod
    def of(cls, task: Mapping[str, Any]) -> Step:
        """Take a task as it stands in a tasks file apart. Actions have a dot in their name (FQCN), keywords have none."""
        actions = [key for key in task if "." in key]
        unknown = tuple(sorted(key for key in task if "." not in key and key not in KEYWORDS))
        when = task.get("when", [])
        control = task.get("loop_control") or {}
        return cls(
            name=str(task.get("name", "")),
            action=actions[0] if len(actions) == 1 else "",
            args=task[actions[0]] if len(actions) == 1 else None,
            when=tuple(when) if isinstance(when, list) else (when,),
            variables=dict(task.get("vars") or {}),
            register=str(task.get("register", "")),
            loop=task.get("loop"),
            loop_var=str(control.get("loop_var", "item")),
            secret=bool(task.get("no_log", False)),
            unknown=unknown,
        )


class Walk:
    """One role on one node.

    @param role: its name, without the collection's.
    @param variables: what the node's tasks see, without this role's own variables.
    @param template: C(template(value, variables)), a value with its templates filled in.
    @param holds: C(holds(condition, variables)), whether a condition is true.
    @param call: C(call(action, args, variables)), runs one of C(CALLED) in this process and returns its result.
    """

    # Actions that run as they are, in this process. None of them changes anything on a node.
    CALLED = ("gpufleet.llm.observe", "ansible.builtin.set_fact", "ansible.builtin.validate_argument_spec")

    def __init__(
        self,
        role: str,
        variables: Mapping[str, Any],
        template: Callable[[Any, dict[str, Any]], Any],
        holds: Callable[[Any, dict[str, Any]], bool],
        call: Callable[[str, dict[str, Any], dict[str, Any]], dict[str, Any]],
    ) -> None:
        self.path = ROLES_DIR / role
        if not (self.path / "tasks" / "main.yml").is_file():
            raise HasToRunError("no such role here")
        self.template, self.holds, self.call = template, holds, call
        # Defaults give way to all, the role's own variables to none but what it sets itself.
        self.variables: dict[str, Any] = {
            **(self._read("defaults/main.yml") or {}),
            **variables,
            **(self._read("vars/main.yml") or {}),
            "role_path": str(self.path),
            "role_name": role,
            "ansible_role_name": f"{COLLECTION}.{role}",
            "ansible_collection_name": COLLECTION,
            "ansible_search_path": [str(self.path), *(variables.get("ansible_search_path") or [])],
        }
        self.facts: dict[str, Any] = {}
        self.spec = ((self._read("meta/argument_specs.yml") or {}).get("argument_specs") or {}).get("main") or {}

    def _read(self, name: str) -> Any:
        return read(str(self.path / name))

    def run(self) -> dict[str, Any]:
        """Walk to the end; the facts that the role sets. Raises HasToRunError."""
        options = self.spec.get("options") or {}
        if options:
            checked = self.call(
                "ansible.builtin.validate_argument_spec",
                {"argument_spec": options, "provided_arguments": {}},
                self.variables,
            )
            if checked.get("failed"):
                raise HasToRunError("its arguments are not valid")
        self._tasks("main.yml", {})
        return self.facts

    def _tasks(self, name: str, inherited: dict[str, Any]) -> None:
        tasks = self._read(f"tasks/{name}")
        if not isinstance(tasks, list):
            raise HasToRunError(f"tasks/{name} is no list of tasks")
        for task in tasks:
            step = Step.of(task)
            try:
                self._step(step, {**inherited, **step.variables})
            except (HasToRunError, AnsibleConnectionFailure):  # the role would not get to the node either
                raise
            except Exception as error:
                raise HasToRunError(f"{step.name}: {'(hidden)' if step.secret else error}") from error

    def _step(self, step: Step, extra: dict[str, Any]) -> None:
        if step.loop is None:
            result = self._once(step, extra)
        else:
            try:
                loop = self.template(step.loop, {**self.variables, **extra})
            except Exception:
                if all(self.holds(condition, {**self.variables, **extra}) for condition in step.when):
                    raise
                loop = []
            results = [self._once(step, {**extra, step.loop_var: item}) for item in loop]
            result = {"changed": False, "results": results, "skipped": all("skipped" in one for one in results)}
        if step.register:
            self.variables[step.register] = result

    def _once(self, step: Step, extra: dict[str, Any]) -> dict[str, Any]:
        scope = {**self.variables, **extra}
        for condition in step.when:
            if not self.holds(condition, scope):
                return {"changed": False, "skipped": True}
        if step.unknown or not step.action:
            raise HasToRunError(f"{step.name}: {', '.join(step.unknown) or 'no single action'}")
        if step.action == "ansible.builtin.include_tasks":
            file = step.args["file"] if isinstance(step.args, Mapping) else step.args
            self._tasks(str(self.template(file, scope)), extra)
            return {"changed": False}
        if step.action == "ansible.builtin.include_vars":
            self._include_vars(str(self.template(step.args, scope)))
            return {"changed": False}
        if step.action == "ansible.builtin.assert":
            wanted = step.args["that"]
            for condition in wanted if isinstance(wanted, list) else [wanted]:
                if not self.holds(condition, scope):
                    raise HasToRunError(f"{step.name}: not so")
            return {"changed": False}
        if step.action not in self.CALLED:
            raise HasToRunError(step.name)
        result = self.call(step.action, self.template(step.args, scope), scope)
        if result.get("failed") or result.get("differs"):
            raise HasToRunError(
                f"{step.name}: {', '.join(map(str, result.get('drift') or [])) or result.get('msg', 'failed')}"
            )
        facts = result.get("ansible_facts") or {}
        self.variables.update(facts)
        self.facts.update(facts)
        return result

    def _include_vars(self, name: str) -> None:
        loaded = read(name if os.path.isabs(name) else str(self.path / "vars" / name))
        if not isinstance(loaded, Mapping):
            raise HasToRunError(f"{name} holds no variables")
        self.variables.update(loaded)
