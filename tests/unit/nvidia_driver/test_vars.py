# SPDX-License-Identifier: GPL-3.0-or-later
"""Expressions of roles/nvidia_driver/vars/main.yml, as ansible-core templates them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import lookup_loader
from ansible.template import Templar, trust_as_template

ROLE = Path(__file__).resolve().parents[3] / "roles/nvidia_driver"
VARS = {
    name: trust_as_template(text)
    for name, text in yaml.safe_load((ROLE / "vars/main.yml").read_text()).items()
    if isinstance(text, str)
}


def value(expression: str, **variables: Any) -> Any:
    return Templar(loader=DataLoader(), variables={**VARS, **variables}).template(trust_as_template(expression))


@pytest.fixture(autouse=True)
def _names_of_lookups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ansible's loader of collections, which would replace that of the tests, a lookup is known by its short name."""
    get = lookup_loader.get
    monkeypatch.setattr(lookup_loader, "get", lambda name, **more: get(name.removeprefix("ansible.builtin."), **more))


GPU = {"gpu_count": 1, "driver": {"versions_match": True, "loaded": True}, "kernel": {"nouveau_loaded": False}}


@pytest.mark.parametrize(
    ("action", "wanted", "check", "loads"),
    [("install", True, False, True), ("keep", True, False, True), ("install", False, False, False),
     ("install", True, True, False), ("remove", True, False, False)],
)  # fmt: skip
def test_what_the_decision_says_of_a_reboot_is_what_a_reload_follows(
    action: str, wanted: bool, check: bool, loads: bool
) -> None:
    """Also where library and module are of one version: the flavour may be another."""
    plan = {"action": action, "reboot_wanted": wanted}
    facts = {"gpufleet_gpu": GPU}
    given = {"__nvidia_driver_plan": plan, "ansible_facts": facts, "__nvidia_driver_node": {"container": ""}}
    assert value("{{ __nvidia_driver_loads }}", ansible_check_mode=check, **given) is loads


def reboots(connection: dict[str, str], machine_id: str, reboot: str = "auto") -> Any:
    tasks = yaml.safe_load((ROLE / "tasks/load.yml").read_text())
    (condition,) = [task["when"] for task in tasks if task.get("ansible.builtin.include_tasks") == "reboot.yml"]
    given = {
        "__nvidia_driver_loads": True,
        "nvidia_driver_reboot": reboot,
        "__nvidia_driver_node": {"machine_id": machine_id, "rebooted": ""},
    }
    return value(f"{{{{ {condition} }}}}", **given, **connection)


@pytest.mark.parametrize(
    ("connection", "happens"),
    [({}, True), ({"ansible_connection": "ssh"}, True), ({"ansible_connection": "local"}, False)],
)
def test_a_node_that_is_reached_without_a_connection_is_the_controller_and_not_rebooted(
    connection: dict[str, str], happens: bool
) -> None:
    assert reboots(connection, "0" * 32) is happens
    assert reboots(connection, "0" * 32, "required_fact") is False


def test_the_controllers_own_machine_id_is_the_controller_whatever_the_connection() -> None:
    own = Path("/etc/machine-id")
    if not own.exists() or not own.read_text().strip():
        pytest.skip("this machine has no machine-id")
    assert reboots({"ansible_connection": "ssh"}, own.read_text().strip()) is False


@pytest.mark.parametrize(
    ("manager", "failing", "offered", "refreshes"),
    [("apt", ["build-tools"], "", True), ("dnf", ["disk"], "", False), ("pacman", [], "", True),
     ("pacman", ["kernel-headers"], "590.48.01-1", False)],
)  # fmt: skip
def test_lists_are_refreshed_before_a_refusal_where_they_may_lack_what_is_asked(
    manager: str, failing: list[str], offered: str, refreshes: bool
) -> None:
    """A fresh Arch machine has none, and without them nobody knows which branch it would get."""
    condition = yaml.safe_load((ROLE / "tasks/preflight.yml").read_text())[0]["when"]
    given = {"__nvidia_driver_plan": {"package_manager": manager}, "__nvidia_driver_failing": failing}
    node = {"offered": offered}
    assert value(f"{{{{ {condition} }}}}", __nvidia_driver_node=node, **given) is refreshes
