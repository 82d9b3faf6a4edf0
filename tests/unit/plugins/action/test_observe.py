# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin inside ansible-playbook, on this machine: what a task's result looks like to a user."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[4]

# A connection that cannot send data on stdin, like those of some clouds.
NO_STDIN = """
DOCUMENTATION = '''
name: no_stdin
short_description: local without stdin
description: For a test.
extends_documentation_fragment: [connection_pipelining]
'''
from ansible.plugins.connection.local import Connection as Local

class Connection(Local):
    transport = "no_stdin"
    has_pipelining = False

    def exec_command(self, cmd, in_data=None, sudoable=True):
        assert not in_data, "this connection has no stdin"
        return super().exec_command(cmd, None, sudoable)
"""


class Run:
    """A finished playbook: exit status, output, and the last result of each task by the task's name."""

    def __init__(self, rc: int, output: str, lines: list[str]) -> None:
        self.rc = rc
        self.output = output
        self.results: dict[str, dict[str, Any]] = {}
        for line in lines:
            one = json.loads(line)
            self.results[one["task"]] = one["result"]


def play(tmp_path: Path, tasks: list[dict[str, Any]], *args: str, **env: str) -> Run:
    """Run tasks on localhost; the results come from a callback of our own, written beside the playbook."""
    (tmp_path / "callbacks").mkdir(exist_ok=True)
    (tmp_path / "callbacks" / "results.py").write_text(CALLBACK, encoding="utf-8")
    (tmp_path / "connections").mkdir(exist_ok=True)
    (tmp_path / "connections" / "no_stdin.py").write_text(NO_STDIN, encoding="utf-8")
    book = tmp_path / "book.yml"
    book.write_text(yaml.safe_dump([{"hosts": "all", "gather_facts": False, "tasks": tasks}]), encoding="utf-8")
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".collections"),
        "ANSIBLE_CALLBACK_PLUGINS": str(tmp_path / "callbacks"),
        "ANSIBLE_CONNECTION_PLUGINS": str(tmp_path / "connections"),
        "ANSIBLE_CALLBACKS_ENABLED": "results",
        "ANSIBLE_NOCOLOR": "1",
        "RESULTS": str(tmp_path / "results.jsonl"),
        **env,
    }
    (tmp_path / "results.jsonl").write_text("", encoding="utf-8")
    argv = [sys.executable, "-m", "ansible", "playbook", "-i", "one,", "-c", "local", *args, str(book)]
    done = subprocess.run(
        argv, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    lines = (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return Run(done.returncode, done.stdout + done.stderr, lines)


CALLBACK = """
DOCUMENTATION = '''
name: results
type: aggregate
short_description: results to a file
description: For a test.
'''
import json, os
from ansible.plugins.callback import CallbackBase

class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "results"

    def note(self, result, **kwargs):
        with open(os.environ["RESULTS"], "a") as out:
            line = {"task": result._task.get_name(), "result": result._result}
            out.write(json.dumps(line, default=str) + "\\n")

    v2_runner_on_ok = v2_runner_on_failed = v2_runner_item_on_ok = note
"""


def observe(name: str, items: Any, **more: Any) -> dict[str, Any]:
    options = {key: more.pop(key) for key in ("deep", "missing_python") if key in more}
    return {"name": name, "gpufleet.llm.observe": {"items": items, **options}, **more}


KEYS = {"differs", "drift", "items", "seen", "platform", "remote_calls", "python_missing", "changed"}


def test_a_look_never_changes_and_check_mode_predicts(tmp_path: Path) -> None:
    target = tmp_path / "f"
    target.write_text("old\n", encoding="utf-8")
    items = [{"kind": "file", "path": str(target), "content": "new\n"}]
    tasks = [observe("look", items, register="seen"), {"name": "s", "ansible.builtin.debug": {"var": "seen['items']"}}]
    normal = play(tmp_path, tasks, "--diff")
    assert normal.rc == 0, normal.output
    result = normal.results["look"]
    assert set(result) - {"_ansible_no_log", "_ansible_verbose_always"} == KEYS
    assert (result["differs"], result["changed"], result["remote_calls"]) == (True, False, 1)
    assert result["platform"]["python"].startswith("3.")
    check = play(tmp_path, tasks, "--check", "--diff")
    assert (check.results["look"]["differs"], check.results["look"]["changed"]) == (True, True)
    assert (check.results["look"]["diff"][0]["before"], check.results["look"]["diff"][0]["after"]) == ("old\n", "new\n")
    assert "-old" in check.output
    assert "+new" in check.output
    assert "diff" not in play(tmp_path, tasks, "--check").results["look"]
    target.write_text("new\n", encoding="utf-8")
    assert play(tmp_path, tasks, "--check", "--diff").results["look"]["changed"] is False
    assert target.read_text(encoding="utf-8") == "new\n"


def test_templates_loops_delegation_and_a_templated_interpreter(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x", encoding="utf-8")
    tasks = [
        observe(
            "templated",
            "{{ [{'kind': 'unit', 'name': 'no-such', 'active': wanted}] }}",
            vars={"wanted": "{{ 1 == 2 }}"},
        ),
        observe(
            "looped",
            [{"kind": "absent", "path": "{{ item }}"}],
            loop=["/no/such", str(tmp_path / "f")],
        ),
        observe(
            "delegated",
            [{"kind": "read", "key": "python", "argv": ["sh", "-c", "true"]}],
            delegate_to="other",
            vars={"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"},
        ),
        observe("omitted", [{"kind": "file", "path": str(tmp_path / "f"), "mode": "{{ omit }}", "owner": None}]),
    ]
    run = play(tmp_path, tasks)
    assert run.rc == 0, run.output
    assert run.results["templated"]["differs"] is False
    assert [one["differs"] for one in run.results["looped"]["results"]] == [False, True]
    assert run.results["delegated"]["platform"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert run.results["omitted"]["differs"] is False


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (observe("x", [{"kind": "package"}]), "items[0] (package): name is missing"),
        (observe("x", [], deep="perhaps"), "deep wants true or false, got 'perhaps'"),
        (observe("x", [], missing_python="ignore"), "missing_python wants fail or report"),
        (observe("x", [{"kind": "disk", "path": "/"}], **{"async": 10}), "does not support async"),
        ({"name": "x", "gpufleet.llm.observe": {"item": []}}, "Invalid options for gpufleet.llm.observe: item"),
    ],
    ids=["item", "deep", "missing_python", "async", "option"],
)
def test_what_makes_no_sense_fails_in_words(tmp_path: Path, task: dict[str, Any], message: str) -> None:
    run = play(tmp_path, [task])
    assert run.rc != 0
    assert message in run.results["x"]["msg"]


def test_a_connection_without_stdin_gets_it_as_an_argument(tmp_path: Path) -> None:
    run = play(tmp_path, [observe("look", [{"kind": "read", "key": "a", "path": "/proc/version"}])], "-c", "no_stdin")
    assert run.rc == 0, run.output
    assert run.results["look"]["seen"]["a"]["content"].startswith("Linux")
    files = {f"{n}.bin": {"size": n, "sha256": hashlib.sha256(b"%d" % n).hexdigest()} for n in range(6000)}
    big = [{"kind": "manifest", "path": "/no/such", "files": files}]
    refused = play(tmp_path, [observe("look", big)], "-c", "no_stdin")
    assert refused.rc != 0
    assert "too long for a command line" in refused.results["look"]["msg"]
    assert play(tmp_path, [observe("look", big)]).results["look"]["differs"] is True


def test_a_node_without_python(tmp_path: Path) -> None:
    """PATH and the usual places hold no Python in an empty root: here the interpreters are hidden by name."""
    empty = tmp_path / "empty"
    empty.mkdir()
    task = observe("fail", [{"kind": "package", "name": "git"}])
    code = (
        "import runpy, sys\n"
        "from ansible_collections.gpufleet.llm.plugins.plugin_utils import observe\n"
        "observe.PYTHONS = ('python3.no-such',)\n"
    )
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks" / "hide_python.py").write_text(
        CALLBACK.replace('"results"', '"hide_python"').replace("name: results", "name: hide_python") + "\n" + code,
        encoding="utf-8",
    )
    hide = {"ANSIBLE_CALLBACKS_ENABLED": "results,hide_python", "ANSIBLE_PYTHON_INTERPRETER": "/no/such/python"}
    run = play(tmp_path, [task], **hide)
    assert run.rc != 0
    assert "This node has no Python 3.9 or newer" in run.results["fail"]["msg"]
    assert run.results["fail"]["python_missing"] is True
    report = play(tmp_path, [observe("r", [{"kind": "package", "name": "git"}], missing_python="report")], **hide)
    assert report.rc == 0, report.output
    assert set(report.results["r"]) - {"_ansible_no_log"} == KEYS
    assert (report.results["r"]["python_missing"], report.results["r"]["drift"]) == (True, ["package:git"])


def test_a_secret_shows_at_no_verbosity(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old-secret", encoding="utf-8")
    item = {"kind": "file", "path": str(tmp_path / "f"), "content": "{{ token }}", "no_log": True}
    run = play(tmp_path, [observe("x", [item], vars={"token": "new-" + "secret"})], "--check", "--diff", "-vvvv")
    assert run.results["x"]["changed"] is True
    for secret in ("old-secret", "new-secret"):
        assert secret not in run.output
        assert secret not in json.dumps(run.results)
