# SPDX-License-Identifier: GPL-3.0-or-later
"""A walk through a role's tasks: what it understands, what ends it, and what it leaves for the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible_collections.gpufleet.llm.plugins.plugin_utils import survey

ROLE = {
    "meta/argument_specs.yml": "argument_specs: {main: {options: {thing_size: {type: int, default: 3}}}}\n",
    "defaults/main.yml": "thing_size: 3\n",
    "vars/main.yml": """
__thing_wanted: {kind: file, path: /thing, content: "{{ thing_size }} {{ __thing_word }}"}
__thing_proves: "{{ __thing_seen.differs and not ansible_check_mode }}"
""",
    "vars/Debian.yml": "__thing_word: deb\n",
    "tasks/set_vars.yml": """
- name: Gather
  ansible.builtin.setup:
  when: ansible_facts['os_family'] is not defined
- name: Load
  ansible.builtin.include_vars: "{{ __thing_file }}"
  loop: [Debian, Debian_99]
  loop_control: {loop_var: __thing_name}
  vars: {__thing_file: "{{ role_path }}/vars/{{ __thing_name }}.yml"}
  when: __thing_file is file
- name: Refuse
  ansible.builtin.assert: {that: __thing_word is defined}
""",
    "tasks/main.yml": """
- name: Learn
  ansible.builtin.include_tasks: set_vars.yml
- name: Look
  gpufleet.llm.observe: {items: ["{{ __thing_wanted }}"]}
  register: __thing_seen
- name: Act
  ansible.builtin.include_tasks: {file: "{{ 'act.yml' if thing_size > 0 else 'remove.yml' }}"}
  when: __thing_seen.differs and not ansible_check_mode
- name: Prove
  ansible.builtin.command: "false"
  when: __thing_proves
- name: Say
  ansible.builtin.set_fact:
    thing_result: {ok: "{{ not __thing_seen.differs }}", size: "{{ thing_size }}"}
    __thing_private: 1
""",
}


class Node:
    """Stands in for what the action plugin does: templates and conditions by ansible-core, a look that is answered here."""

    def __init__(self, drift: list[str] | None = None, unreachable: bool = False) -> None:
        self.drift = drift or []
        self.unreachable = unreachable
        self.looks: list[Any] = []

    def template(self, value: Any, variables: dict[str, Any]) -> Any:
        return Templar(loader=DataLoader(), variables=variables).template(value)

    def holds(self, condition: Any, variables: dict[str, Any]) -> bool:
        templar = Templar(loader=DataLoader(), variables=variables)
        if hasattr(templar, "evaluate_conditional"):
            return bool(templar.evaluate_conditional(condition))
        from ansible.playbook.conditional import Conditional

        asked = Conditional(loader=DataLoader())
        asked.when = [condition]
        return bool(asked.evaluate_conditional(templar, variables))

    def call(self, name: str, args: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        if name == "gpufleet.llm.observe":
            if self.unreachable:
                raise AnsibleConnectionFailure("gone")
            self.looks.append(args["items"])
            return {"differs": bool(self.drift), "drift": self.drift}
        if name == "ansible.builtin.set_fact":
            return {"ansible_facts": args}
        assert name == "ansible.builtin.validate_argument_spec"
        return {"failed": not isinstance(self.template(variables["thing_size"], variables), int)}


@pytest.fixture
def walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Walk through the role, some of its files replaced."""
    monkeypatch.setattr(survey, "ROLES_DIR", tmp_path)

    def run(node: Node, files: dict[str, str] | None = None, **variables: Any) -> dict[str, Any]:
        for name, content in {**ROLE, **(files or {})}.items():
            path = tmp_path / "thing" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        seen = {"ansible_facts": {"os_family": "Debian"}, "ansible_check_mode": False, **variables}
        survey.read.cache_clear()
        return survey.Walk("thing", seen, node.template, node.holds, node.call).run()

    return run


def main(tasks: str) -> dict[str, str]:
    """The role with other tasks behind its look."""
    return {"tasks/main.yml": ROLE["tasks/main.yml"].split("- name: Act")[0] + tasks}


def test_a_role_that_finds_all_as_it_should_be_is_walked_to_its_end(walk: Any) -> None:
    node = Node()
    facts = walk(node)
    assert node.looks == [[{"kind": "file", "path": "/thing", "content": "3 deb"}]]
    assert facts == {"thing_result": {"ok": True, "size": 3}, "__thing_private": 1}


def test_the_inventory_wins_over_the_defaults(walk: Any) -> None:
    node = Node()
    assert walk(node, thing_size=5)["thing_result"]["size"] == 5
    assert node.looks[0][0]["content"] == "5 deb"


@pytest.mark.parametrize("check_mode", [False, True])
def test_what_differs_ends_the_walk_also_in_check_mode(walk: Any, check_mode: bool) -> None:
    with pytest.raises(survey.HasToRunError, match="Look: file:/thing"):
        walk(Node(drift=["file:/thing"]), ansible_check_mode=check_mode)


def test_invalid_arguments_are_left_for_the_role_to_refuse(walk: Any) -> None:
    with pytest.raises(survey.HasToRunError, match="arguments"):
        walk(Node(), thing_size="many")


def test_missing_facts_are_left_for_the_role_to_gather(walk: Any) -> None:
    with pytest.raises(survey.HasToRunError, match="Gather"):
        walk(Node(), ansible_facts={})


def test_a_refusal_is_left_for_the_role_to_word(walk: Any) -> None:
    with pytest.raises(survey.HasToRunError, match="Refuse"):
        walk(Node(), {"vars/Debian.yml": "{}\n"})


@pytest.mark.parametrize(
    "task",
    [
        "- {name: Odd, ansible.builtin.command: 'true'}",
        "- {name: Odd, ansible.builtin.set_fact: {x: 1}, delegate_to: localhost}",
        "- {name: Odd, ansible.builtin.set_fact: {x: 1}, until: true}",
        "- {name: Odd, block: [{name: In, ansible.builtin.set_fact: {x: 1}}]}",
        "- {name: Odd, ansible.builtin.set_fact: {x: '{{ nowhere }}'}}",
        "- {name: Odd, ansible.builtin.include_tasks: missing.yml}",
        "- {name: Odd, ansible.builtin.include_vars: missing.yml}",
        "- {name: Odd, ansible.builtin.set_fact: {x: 1}, when: nowhere.at_all}",
        "- {name: Odd, ansible.builtin.set_fact: {x: 1}, loop: '{{ nowhere }}'}",
    ],
)
def test_what_is_not_plainly_understood_ends_the_walk(walk: Any, task: str) -> None:
    with pytest.raises(survey.HasToRunError):
        walk(Node(), main(task))


@pytest.mark.parametrize(
    "task",
    [
        "- {name: Odd, ansible.builtin.command: 'true', when: false}",
        "- {name: Odd, ansible.builtin.set_fact: {x: 1}, delegate_to: localhost, when: [true, __thing_seen.differs]}",
        "- {name: Odd, ansible.builtin.set_fact: {x: '{{ item }}'}, loop: '{{ nowhere }}', when: false}",
    ],
)
def test_what_would_be_skipped_is_skipped(walk: Any, task: str) -> None:
    assert walk(Node(), main(task)) == {}


def test_a_loop_sees_its_own_earlier_rounds(walk: Any) -> None:
    task = """
- name: Begin
  ansible.builtin.set_fact: {thing_list: []}
- name: Add
  ansible.builtin.set_fact: {thing_list: "{{ thing_list + [item] }}"}
  loop: [1, 2, 3]
  when: item != 2
  register: __thing_loop
- name: Count
  ansible.builtin.set_fact: {thing_rounds: "{{ __thing_loop.results | length }}"}
"""
    facts = walk(Node(), main(task))
    assert facts["thing_list"] == [1, 3]
    assert str(facts["thing_rounds"]) == "3"  # ansible-core 2.18 knows no native types


def test_a_secret_is_not_in_the_reason(walk: Any) -> None:
    task = "- {name: Odd, ansible.builtin.set_fact: {x: \"{{ 'hunter2' | no_such_filter }}\"}, no_log: true}"
    with pytest.raises(survey.HasToRunError) as caught:
        walk(Node(), main(task))
    assert "hunter2" not in str(caught.value)


def test_a_node_that_cannot_be_reached_is_unreachable_and_not_one_that_has_to_run(walk: Any) -> None:
    with pytest.raises(AnsibleConnectionFailure):
        walk(Node(unreachable=True))


def test_every_role_of_the_collection_is_read_before_the_workers_are_forked() -> None:
    survey.read.cache_clear()
    survey.load_roles.cache_clear()
    names = survey.load_roles()
    assert {"git", "anaconda", "nginx", "nvidia_driver", "cuda", "llm_model"} == set(names)
    before = survey.read.cache_info().misses
    for role in names:
        for name in ("defaults/main.yml", "vars/main.yml", "tasks/main.yml", "meta/argument_specs.yml"):
            assert survey.read(str(survey.ROLES_DIR / role / name))
    assert survey.read.cache_info().misses == before
