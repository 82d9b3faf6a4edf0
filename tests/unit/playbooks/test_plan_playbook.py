# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""playbooks/plan.yml as a user runs it, against this machine, a node that is gone, and one without Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"
pytestmark = pytest.mark.skipif(not PLAYBOOK.exists(), reason="there is no ansible-playbook beside this Python")

INVENTORY = f"""
all:
  vars: {{ansible_python_interpreter: {sys.executable}}}
  hosts:
    good: {{ansible_connection: local, llm_model_wanted: [tiny_qwen2]}}
    refused: {{ansible_connection: local, llm_model_wanted: [tiny_qwen2], gpufleet_pins: {{torch: 2.1.2, accelerator: cuda}}}}
    nopython: {{ansible_connection: local, ansible_python_interpreter: /nonexistent/python}}
    gone: {{ansible_host: 127.0.0.1, ansible_port: 1, ansible_user: nobody}}
"""


def play(folder: Path, playbook: Path, *extra: str) -> subprocess.CompletedProcess[str]:
    (folder / "hosts.yml").write_text(INVENTORY, encoding="utf-8")
    own = {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_STDOUT_CALLBACK": "gpufleet.llm.plan_only", "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_CALLBACKS_ENABLED": "gpufleet.llm.plan_only", "ANSIBLE_LOCAL_TEMP": str(folder / "local"),
    }  # fmt: skip
    return subprocess.run(
        [str(PLAYBOOK), str(playbook), "-i", str(folder / "hosts.yml"), *extra],
        cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_json_on_standard_output_and_strict_exit_status(tmp_path: Path) -> None:
    done = play(
        tmp_path, ROOT / "playbooks" / "plan.yml", "-e", "gpufleet_plan_format=json", "-e", "gpufleet_plan_strict=true"
    )
    assert done.returncode == 2, done.stderr
    found = json.loads(done.stdout)
    assert [p["node"] for p in found["plans"]] == ["good", "refused"]
    assert found["summary"]["with_conflicts"] == ["refused"]
    good, refused = found["plans"]
    assert good["ok"] and good["models"][0]["torch"]["requirement"] == "torch==2.13.0+cpu"
    assert {c["rule"] for c in refused["conflicts"]} >= {"gpu-required", "pins-hold"}
    assert "gone: unreachable" in done.stderr
    assert "no plan for: nopython, gone" in done.stderr


def test_the_table_with_reasons_goes_to_a_file_and_conflicts_are_no_error(tmp_path: Path) -> None:
    out = tmp_path / "plan.txt"
    done = play(
        tmp_path, ROOT / "playbooks" / "plan.yml", "--limit", "good,refused", "-e", "gpufleet_plan_reasons=true", "-e",
        f"gpufleet_plan_file={out}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
    text = out.read_text(encoding="utf-8")
    assert "CONFLICT" in text and "because" in text and "2 nodes planned; 1 ready; 1 with conflicts" in text


TASKS = """
- hosts: good
  gather_facts: false
  tasks:
    - gpufleet.llm.plan:
        pci_ids: ["10de:15f8"]
        pins: {cuda_toolkit: "13.0"}
      register: result
    - ansible.builtin.copy:
        content: "{{ {'plan': ansible_facts['gpufleet_plan'], 'conflicts': result.conflicts, 'changed': result.changed} | to_json }}"
        dest: "{{ out }}"
      delegate_to: localhost
      vars: {ansible_connection: local, ansible_python_interpreter: "{{ ansible_playbook_python }}"}
    - gpufleet.llm.plan:
      register: without
      ignore_errors: true
      vars: {ansible_facts: {}}
    - gpufleet.llm.plan:
        pci_ids: []
        models: [no_such_model]
      register: unknown
      ignore_errors: true
    - ansible.builtin.copy:
        content: "{{ without.msg | default('') }} | {{ unknown.msg | default('') }}"
        dest: "{{ out }}.msg"
      delegate_to: localhost
      vars: {ansible_connection: local, ansible_python_interpreter: "{{ ansible_playbook_python }}"}
"""


def test_the_action_returns_the_plan_as_a_fact_and_says_what_is_missing(tmp_path: Path) -> None:
    playbook = tmp_path / "play.yml"
    playbook.write_text(TASKS, encoding="utf-8")
    done = play(tmp_path, playbook, "-e", f"out={tmp_path / 'out.json'}")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert found["changed"] is False
    assert found["plan"]["node"] == "good"
    assert found["conflicts"] == found["plan"]["conflicts"]
    assert [c["rule"] for c in found["conflicts"]] == ["toolkit-architecture"]
    message = (tmp_path / "out.json.msg").read_text(encoding="utf-8")
    assert "gpufleet.llm.gpu_facts" in message
    assert "no_such_model" in message
