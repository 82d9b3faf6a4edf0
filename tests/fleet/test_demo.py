# SPDX-License-Identifier: GPL-3.0-or-later
"""README's first command as a newcomer gives it, and the one that takes all of it away again."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from harness import NIGHTLY, ROOT, parse_stats

pytestmark = pytest.mark.skipif(not NIGHTLY, reason="minutes, and test_site.py goes the same way: at night")


def make(target: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", target], cwd=ROOT, capture_output=True, text=True, check=False, timeout=900)


def left() -> list[str]:
    """Containers and networks of the demo, and its files."""
    asked = (["podman", "ps", "--all", "--format", "{{.Names}}"], ["podman", "network", "ls", "--format", "{{.Name}}"])
    names = [
        line
        for argv in asked
        for line in subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines()
    ]
    cache = os.environ.get("GPUFLEET_CACHE", os.path.expanduser("~/.cache/gpufleet-llm"))
    paths = [str(ROOT / "results" / "demo"), f"{cache}/fleets/demo"]
    return [name for name in names if "-demo" in name] + [path for path in paths if os.path.exists(path)]


def test_bare_to_answer_twice_and_nothing_left() -> None:
    try:
        done = make("demo")
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        assert {node: numbers["changed"] for node, numbers in parse_stats(done.stdout).items()} == {"n1": 0, "n2": 0}
        assert done.stdout.count("2 of 2 nodes are ok") == 2
        for node in ("n1", "n2"):
            report = json.loads((ROOT / "results" / "demo" / f"{node}.json").read_text(encoding="utf-8"))
            assert report["ok"] and report["models"]
            assert all(model["answer"] in done.stdout for model in report["models"].values() if model["answer"])
        assert left(), "the test looks for what is there"
    finally:
        down = make("demo-down")
    assert down.returncode == 0, down.stderr
    assert left() == []


def test_who_may_not_run_it_is_told_at_once_and_how() -> None:
    argv = ["setpriv", "--reuid", "65534", "--clear-groups", "tools/demo", "up"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "root" in done.stdout + done.stderr
