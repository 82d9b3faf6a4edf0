# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the documentation prints is what works: EXAMPLES parse, those that can run do, and pages are up to date."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tool(name: str) -> ModuleType:
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RUN = tool("run_examples")


@pytest.mark.parametrize("module", RUN.modules())
def test_the_examples_of_every_module_are_a_playbook(module: str) -> None:
    tasks = RUN.examples(module)
    assert tasks
    assert any(f"gpufleet.llm.{module}" in task for task in tasks), "no example uses the module itself"
    assert all(task.get("name") for task in tasks), "a task without a name"
    assert RUN.syntax(module) == ""


@pytest.mark.parametrize("module", sorted(RUN.RUNNABLE))
def test_examples_run_as_printed(module: str) -> None:
    assert RUN.wrong(module) == ""


def test_a_broken_example_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [{"name": "No such module", "gpufleet.llm.no_such_module": {}}]
    monkeypatch.setattr(RUN, "examples", lambda _module: broken)
    assert "no_such_module" in RUN.syntax("gpu_facts")
    monkeypatch.setattr(
        RUN, "examples", lambda _module: [{"name": "Fail", "ansible.builtin.fail": {"msg": "as wanted"}}]
    )
    assert "as wanted" in RUN.wrong("gpu_facts")


def commands(page: str) -> list[str]:
    """The commands of a page's console blocks that run on this machine."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("ansible localhost ")]


@pytest.mark.parametrize("command", commands("docs/howto/torch-check.md"))
def test_the_commands_of_the_howto_run_as_printed(command: str) -> None:
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "localhost | SUCCESS" in done.stdout
    assert re.search(r"^ *verdict: \w+$", done.stdout, re.MULTILINE)


def test_the_page_of_errors_is_up_to_date() -> None:
    page = tool("errors_page")
    assert page.PAGE.read_text(encoding="utf-8") == page.page(), "run tools/errors_page.py"
