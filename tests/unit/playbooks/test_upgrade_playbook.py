# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""playbooks/upgrade_driver.yml on nodes that are folders of this machine: what is lost on the way, and its variables.

nvidia-smi is a script that reads the node's folder, the role one that writes there. A node with a file `lost` in its folder
does not answer, since its connection is ssh to a port where nobody listens; the host `gone` never answers.
With ssh and NVIDIA's own interface: tests/fleet/test_upgrade_driver.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"
pytestmark = pytest.mark.skipif(not PLAYBOOK.exists(), reason="there is no ansible-playbook beside this Python")

OLD, NEW = "570.1", "580.2"
NODES = ["n1", "n2", "n3"]
NOTE = "echo {} >> $NODE/evidence"

# On a node the file driver-fails lets it fail, driver-stays lets it end without effect, driver-dropped loses one task in the
# middle, driver-lost loses the node there, look-loses once it has told its version, proof-loses once that is the new one.
ROLE = """
- name: Refuse when the test wants it
  ansible.builtin.command: test ! -e {{ folder }}/driver-fails
  check_mode: false
  changed_when: false
- name: Write down with what it was called
  ansible.builtin.copy:
    dest: "{{ folder }}/called"
    content: "batch={{ ansible_play_batch | join(',') }} reboot={{ nvidia_driver_reboot }}"
- name: Lose it in the middle
  ansible.builtin.file: {path: "{{ folder }}/lost", state: touch}
  when: (folder ~ '/driver-lost') is exists
- name: Take a step that is lost
  ansible.builtin.command: "true"
  delegate_to: "{{ 'gone' if (folder ~ '/driver-dropped') is exists else inventory_hostname }}"
- name: Be of another version
  ansible.builtin.copy: {dest: "{{ folder }}/version", content: "{{ nvidia_driver_version }}"}
  when: (folder ~ '/driver-stays') is not exists
- name: Say whether it needs a reboot
  ansible.builtin.set_fact:
    nvidia_driver_reboot_required: "{{ (folder ~ '/driver-stays') is exists }}"
"""


class Nodes:
    """The folders of the nodes, and runs of the playbook on them."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder, self.names = folder, names
        for name in names:
            (folder / name).mkdir()
            (folder / name / "version").write_text(OLD)
        tool = folder / "nvidia-smi"
        tool.write_text(
            "#!/bin/sh\ncd $1 && cat version || exit\nif [ -e look-loses ]; then touch lost; fi\n"
            f"if [ -e proof-loses ] && grep -q {NEW} version; then touch lost; fi\n"
        )
        tool.chmod(0o755)
        (folder / "roles" / "stand_in" / "tasks").mkdir(parents=True)
        (folder / "roles" / "stand_in" / "tasks" / "main.yml").write_text(ROLE)
        own = {
            "ansible_python_interpreter": sys.executable,
            "ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_user": "nobody",
            "folder": f"{folder}/{{{{ inventory_hostname }}}}",
            "ansible_connection": "{{ 'ssh' if (folder ~ '/lost') is exists else 'local' }}",
            "gpufleet_environment": {"NODE": "{{ folder }}"},
        }  # fmt: skip
        gone = {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_user": "nobody", "ansible_connection": "ssh"}
        others = {
            "gone": gone,
            "controller": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable},
        }
        groups = {"nodes": {"hosts": {name: {} for name in names}, "vars": own}, "others": {"hosts": others}}
        (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": groups}}))

    def upgrade(
        self, *args: str, ok: bool, playbook: Path = ROOT / "playbooks/upgrade_driver.yml", **more: object
    ) -> str:
        """What the run said, in one line."""
        variables = {
            "gpufleet_hosts": "nodes",
            "gpufleet_become": False,
            "gpufleet_upgrade_role": "stand_in",
            "nvidia_driver_version": NEW,
            "gpufleet_drain_command": NOTE.format("drain"),
            "gpufleet_resume_command": NOTE.format("resume"),
            "gpufleet_drain_become": False,
            "__gpufleet_mark": "{{ folder }}/mark",
            "__gpufleet_bus": "{{ folder }}/bus",
            "__gpufleet_asked": [str(self.folder / "nvidia-smi"), "{{ folder }}"],
            **more,
        }
        given = {name: value for name, value in variables.items() if value is not None}
        own = {
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "ANSIBLE_ROLES_PATH": str(self.folder / "roles"),
            "ANSIBLE_LOCAL_TEMP": str(self.folder / "local"), "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
        }  # fmt: skip
        done = subprocess.run(
            [str(PLAYBOOK), str(playbook), "-i", str(self.folder / "hosts.yml"), "-e", json.dumps(given), *args],
            cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True, timeout=300, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert (done.returncode == 0) is ok, done.stdout + done.stderr
        return " ".join((done.stdout + done.stderr).split())

    def fault(self, node: str, name: str) -> None:
        (self.folder / node / name).touch()

    def versions(self) -> list[str]:
        return ["new" if (self.folder / node / "version").read_text() == NEW else "old" for node in self.names]

    def evidence(self, node: str) -> list[str]:
        path = self.folder / node / "evidence"
        return path.read_text().split() if path.exists() else []

    def marked(self, node: str) -> bool:
        return (self.folder / node / "mark").exists()

    def called(self, node: str) -> str:
        return (self.folder / node / "called").read_text()


@pytest.fixture
def nodes(tmp_path: Path) -> Nodes:
    return Nodes(tmp_path, NODES)


def test_the_nodes_of_these_tests_are_upgraded(nodes: Nodes) -> None:
    said = nodes.upgrade(ok=True)
    assert nodes.versions() == ["new"] * 3 and "upgraded: n1, n2, n3" in said
    assert all(nodes.evidence(node) == ["drain", "resume"] and not nodes.marked(node) for node in NODES)


def test_no_driver_is_changed_when_the_drain_host_is_lost(nodes: Nodes) -> None:
    said = nodes.upgrade(ok=False, gpufleet_drain_host="gone")
    assert nodes.versions() == ["old"] * 3
    assert nodes.marked("n1") and not nodes.evidence("n1")
    assert "n1: failed, it stays drained. Drain it: unreachable:" in said
    assert "failed: n1" in said and "the canary failed: n1" in said and "not started: n2, n3" in said


def test_a_lost_drain_host_counts_toward_the_threshold(nodes: Nodes) -> None:
    """Two nodes of three may fail, each the only one of its batch: the run goes on, and says of each what came of it."""
    where = "{{ 'gone' if inventory_hostname != 'n1' else inventory_hostname }}"
    said = nodes.upgrade(ok=False, gpufleet_drain_host=where, gpufleet_batch=1, gpufleet_max_failures=2)
    assert nodes.versions() == ["new", "old", "old"]
    assert "upgraded: n1" in said and "failed: n2, n3" in said and "not started:" not in said


def test_a_node_is_not_resumed_in_words_when_the_resume_was_lost(nodes: Nodes) -> None:
    where = (
        "{{ 'gone' if (folder ~ '/version') is exists and lookup('file', folder ~ '/version') == '"
        + NEW
        + "' else inventory_hostname }}"
    )
    said = nodes.upgrade(ok=False, gpufleet_drain_host=where)
    assert nodes.versions() == ["new", "old", "old"] and nodes.evidence("n1") == ["drain"] and nodes.marked("n1")
    assert "failed: n1" in said and "Resume it: unreachable:" in said and "upgraded:" not in said
    assert "resumed: n1" in nodes.upgrade("--limit", "n1", ok=True)
    assert nodes.evidence("n1") == ["drain", "resume"] and not nodes.marked("n1")


def test_a_check_that_nobody_heard_of_is_no_proof(nodes: Nodes) -> None:
    nodes.fault("n1", "proof-loses")
    said = nodes.upgrade(ok=False, gpufleet_upgrade_check_command="true", gpufleet_drain_host="controller")
    assert nodes.evidence("n1") == ["drain"] and nodes.marked("n1")
    assert "n1: failed, it stays drained. Prove that it does its work: unreachable:" in said
    assert "not started: n2, n3" in said


def test_a_node_that_could_not_be_marked_is_not_drained(nodes: Nodes) -> None:
    nodes.fault("n1", "look-loses")
    said = nodes.upgrade(ok=False, gpufleet_drain_host="controller")
    assert "n1: failed. Mark the node as being upgraded: unreachable:" in said
    assert nodes.versions() == ["old"] * 3 and not nodes.evidence("n1")


def test_a_mark_that_could_not_be_taken_away(nodes: Nodes) -> None:
    said = nodes.upgrade(ok=False, gpufleet_resume_command="touch $NODE/lost")
    assert nodes.marked("n1") and "not started: n2, n3" in said
    assert "n1: failed, it stays marked. Take the mark away: unreachable:" in said


@pytest.mark.parametrize("fault", ["driver-dropped", "driver-lost"])
def test_what_the_role_lost_in_its_middle_is_a_failure(nodes: Nodes, fault: str) -> None:
    """Also when the node is back for the next task, and all looks well at the end."""
    nodes.fault("n1", fault)
    said = nodes.upgrade(ok=False)
    assert nodes.evidence("n1") == ["drain"] and nodes.marked("n1")
    assert "failed: n1" in said and "not started: n2, n3" in said
    assert "n1: failed, it stays drained. stand_in : Take a step that is lost: unreachable:" in said


def test_a_node_that_never_answered_is_not_called_drained(nodes: Nodes) -> None:
    nodes.fault("n2", "lost")
    said = nodes.upgrade(ok=False, gpufleet_max_failures=1, gpufleet_batch=1)
    assert nodes.versions() == ["new", "old", "new"]
    assert "n2: failed. Look whether the node has the wanted driver" in said


def test_without_its_callback_no_node_is_drained(nodes: Nodes, tmp_path: Path) -> None:
    """A copy of the playbook alone could not know what was lost."""
    alone = tmp_path / "playbooks"
    shutil.copytree(ROOT / "playbooks", alone, ignore=shutil.ignore_patterns("callback_plugins"))
    said = nodes.upgrade(ok=False, playbook=alone / "upgrade_driver.yml")
    assert "failed: n1" in said and "'__gpufleet_lost' is undefined" in said
    assert nodes.versions() == ["old"] * 3 and not nodes.evidence("n1") and not nodes.marked("n1")


def test_a_node_without_a_card_is_named_and_left_alone(nodes: Nodes) -> None:
    card = nodes.folder / "n2" / "bus" / "0000:01:00.0"
    card.mkdir(parents=True)
    (card / "vendor").write_text("0x10de\n")
    (card / "class").write_text("0x030200\n")
    for node in ("n2", "n3"):
        (nodes.folder / node / "version").unlink()
    said = nodes.upgrade(ok=True)
    assert "upgraded: n1, n2" in said and "no NVIDIA card: n3" in said, "a card whose driver does not answer is one"
    assert not nodes.evidence("n3") and not nodes.marked("n3")
    said = nodes.upgrade("--limit", "n1,n3", ok=False, gpufleet_canary="n3")
    assert "not started: n1" in said and "no canary has an NVIDIA card: n3" in said


def test_a_drained_node_whose_card_is_gone_is_a_failure(nodes: Nodes) -> None:
    nodes.fault("n1", "mark")
    nodes.fault("n1", "driver-stays")
    (nodes.folder / "n1" / "version").unlink()
    assert "failed: n1" in nodes.upgrade(ok=False)


def test_check_mode_says_what_the_role_refuses(nodes: Nodes) -> None:
    nodes.fault("n1", "driver-fails")
    said = nodes.upgrade("--check", ok=False)
    assert "failed: n1" in said and "would be upgraded: n2, n3" in said, "all of them, whatever one says"
    assert "n1: failed. Refuse when the test wants it:" in said
    assert nodes.versions() == ["old"] * 3
    assert not any(
        nodes.evidence(node) or nodes.marked(node) or (nodes.folder / node / "called").exists() for node in NODES
    )


def test_more_than_one_canary(nodes: Nodes) -> None:
    nodes.fault("n2", "driver-fails")
    said = nodes.upgrade(ok=False, gpufleet_canary_count=2, gpufleet_max_failures=3)
    assert nodes.called("n1").startswith("batch=n1,n2 ")
    assert "upgraded: n1" in said and "the canary failed: n2" in said and "not started: n3" in said


def test_a_tenth_of_the_nodes_at_once_when_nothing_is_said(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, [f"n{number}" for number in range(20)])
    for name in nodes.names:
        (tmp_path / name / "version").write_text(NEW)
    said = nodes.upgrade(ok=True)
    assert said.count("PLAY [Upgrade the driver, the canary first]") == 1 + 10, "one, then nineteen by twos"


def test_a_drain_that_does_not_end(nodes: Nodes) -> None:
    pipe = nodes.folder / "n1" / "pipe"
    os.mkfifo(pipe)
    try:
        said = nodes.upgrade(ok=False, gpufleet_drain_command="cat $NODE/pipe", gpufleet_drain_timeout_seconds=1)
    finally:
        with contextlib.suppress(OSError):  # nobody reads it any more
            os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    assert nodes.versions() == ["old"] * 3 and nodes.marked("n1")
    assert "n1: failed, it stays drained. Drain it:" in said
    assert "Timed out after 1 second" in said or "time frame (1)" in said, "the newer and the older ansible-core"


def test_a_reboot_that_is_not_allowed_is_said(nodes: Nodes) -> None:
    nodes.fault("n1", "driver-stays")
    said = nodes.upgrade(ok=False, gpufleet_upgrade_reboot="never")
    assert nodes.called("n1").endswith(" reboot=never")
    assert (
        f"nvidia-smi says {OLD} , wanted is {NEW}. The node needs a reboot, which gpufleet_upgrade_reboot does not allow."
        in said
    )


def test_any_driver_is_right_when_no_branch_is_asked_for(nodes: Nodes) -> None:
    said = nodes.upgrade(ok=True, nvidia_driver_version="", nvidia_driver_branch="")
    assert "right already: n1, n2, n3" in said and nodes.versions() == ["old"] * 3
