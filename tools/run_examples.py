#!/usr/bin/env python3
# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the EXAMPLES of modules as printed, on localhost.

tools/run_examples.py            all modules of RUNNABLE
tools/run_examples.py MODULE …   these (each must be in RUNNABLE: its examples change nothing)
tools/run_examples.py --syntax   parse the examples of every module as a playbook, run nothing
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
MODULES = ROOT / "plugins" / "modules"
# Modules whose examples can run on any machine, with the tasks that are meant to stop a play on a machine without a card or
# without the environment that they name. Modules that are not here install, download or need files of their own.
RUNNABLE: dict[str, set[str]] = {
    "gpu_facts": set(),
    "torch_cuda_check": {"Stop where a card must compute"},
}


def modules() -> list[str]:
    """Names of all modules."""
    return sorted(path.stem for path in MODULES.glob("*.py"))


def examples(module: str) -> list[dict[str, Any]]:
    """The tasks of a module's EXAMPLES. Raises ValueError when they are no list of tasks."""
    tree = ast.parse((MODULES / f"{module}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "EXAMPLES":
            tasks = yaml.safe_load(ast.literal_eval(node.value))
            if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
                raise ValueError(f"{module}: EXAMPLES is no list of tasks")
            return tasks
    raise ValueError(f"{module} has no EXAMPLES")


def _ansible(tasks: list[dict[str, Any]], folder: str, *flags: str) -> subprocess.CompletedProcess[str]:
    play = [{"name": "Examples", "hosts": "localhost", "gather_facts": False, "ignore_errors": True, "tasks": tasks}]
    book = Path(folder) / "examples.yml"
    book.write_text(yaml.safe_dump(play, sort_keys=False), encoding="utf-8")
    return subprocess.run(
        [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", "-c", "local", *flags,
         "-e", f"ansible_python_interpreter={sys.executable}", str(book)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
             "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"},
    )  # fmt: skip


def syntax(module: str) -> str:
    """What ansible-playbook has against a module's examples; empty when nothing."""
    with tempfile.TemporaryDirectory() as folder:
        done = _ansible(examples(module), folder, "--syntax-check")
    return "" if done.returncode == 0 else done.stdout + done.stderr


def run(module: str) -> tuple[dict[str, str], str]:
    """``({task name: ok, changed, failed or skipped}, all output)`` of a module's examples."""
    with tempfile.TemporaryDirectory() as folder:
        done = _ansible(examples(module), folder)
    states: dict[str, str] = {}
    name = ""
    for line in done.stdout.splitlines():
        head = re.match(r"TASK \[(.*)\] \**$", line)
        state = re.match(r"(ok|changed|skipping|failed|fatal): \[localhost\]", line)
        if head:
            name = head.group(1)
        elif state:
            states[name] = {"skipping": "skipped", "fatal": "failed"}.get(state.group(1), state.group(1))
    return states, done.stdout + done.stderr


def wrong(module: str) -> str:
    """What is not as it should be in a run of a module's examples; empty when all is well."""
    states, output = run(module)
    names = [str(task["name"]) for task in examples(module)]
    for name in names:
        state = states.get(name, "not run")
        wanted = ("failed", "ok") if name in RUNNABLE[module] else ("ok", "skipped")
        if state not in wanted:
            return f"{module}: '{name}' is {state}, wanted {' or '.join(wanted)}\n{output}"
    return ""


def main(arguments: list[str]) -> int:
    """The command line."""
    if arguments == ["--syntax"]:
        problems = [text for text in (syntax(module) for module in modules()) if text]
    else:
        unknown = [one for one in arguments if one not in RUNNABLE]
        if unknown:
            sys.exit(f"not in RUNNABLE: {' '.join(unknown)}")
        problems = [text for text in (wrong(module) for module in arguments or RUNNABLE) if text]
    print("\n".join(problems) if problems else "all examples are right")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
