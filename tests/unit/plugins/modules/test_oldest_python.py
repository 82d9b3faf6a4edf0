# SPDX-License-Identifier: GPL-3.0-or-later
"""What is sent to nodes runs on the oldest Python that a node may have, by ansible itself on this machine."""

from __future__ import annotations

import ast
import glob
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
ANSIBLE = Path(sys.executable).parent / "ansible"
FOUND = [shutil.which("python3.9") or "", *glob.glob(os.path.expanduser("~/.pyenv/versions/3.9.*/bin/python3.9"))]
OLDEST = next(
    (p for p in FOUND if p and not subprocess.run([p, "-c", ""], capture_output=True, check=False).returncode), ""
)
NODE_FILES = sorted([*(ROOT / "plugins/module_utils").glob("*.py"), *(ROOT / "plugins/modules").glob("*.py")])
# Modules that only their documentation is kept in run on the controller.
MODULES = [
    path.stem for path in sorted((ROOT / "plugins/modules").glob("*.py")) if "def main" in path.read_text("utf-8")
]

pytestmark = pytest.mark.skipif(not ANSIBLE.exists(), reason="there is no ansible beside this Python")


@pytest.mark.parametrize("path", NODE_FILES, ids=lambda path: path.name)
def test_its_syntax_is_that_of_python_3_9(path: Path) -> None:
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))


@pytest.mark.skipif(not OLDEST, reason="there is no Python 3.9 on this machine")
@pytest.mark.parametrize("module", MODULES)
def test_a_module_starts_on_python_3_9(module: str) -> None:
    said = subprocess.run(
        [str(ANSIBLE), "localhost", "-c", "local", "-m", f"gpufleet.llm.{module}", "-e", f"ansible_python_interpreter={OLDEST}"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1",
             "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"},
    )  # fmt: skip
    words = said.stdout + said.stderr
    assert "Traceback" not in words and "ImportError" not in words and "SyntaxError" not in words, words
    if module == "gpu_facts":
        facts = json.loads(said.stdout.partition("=>")[2])["ansible_facts"]["gpufleet_gpu"]
        assert facts["state"]
    else:
        assert "missing required" in words or "one of the following is required" in words, words
