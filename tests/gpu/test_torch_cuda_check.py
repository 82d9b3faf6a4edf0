# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""torch_cuda_check on a real card: it passes, and it names a library that was planted before the wheel's own.

GPUFLEET_TORCH_PYTHON names a Python with a PyTorch for CUDA (default: the Python that runs the tests). Ansible is needed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.llm.plugins.module_utils import elf, ldpath

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def python(nvidia_smi: str) -> str:
    """A Python with a PyTorch for CUDA."""
    path = os.environ.get("GPUFLEET_TORCH_PYTHON", sys.executable)
    code = "import importlib.util as u; s = u.find_spec('torch'); print(s.origin if s else '')"
    origin = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False).stdout.strip()
    if not origin:
        pytest.skip(f"{path} has no PyTorch; set GPUFLEET_TORCH_PYTHON")
    if not re.search(r"^cuda\b[^=]*= *['\"]", Path(origin).with_name("version.py").read_text(), re.MULTILINE):
        pytest.skip(f"{path} has a PyTorch for the CPU; set GPUFLEET_TORCH_PYTHON")
    return path


def check(**arguments: Any) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "ansible", "adhoc", "localhost", "-m", "gpufleet.llm.torch_cuda_check", "-a",
         json.dumps(arguments), "-i", "localhost,", "-c", "local",
         "-e", json.dumps({"ansible_python_interpreter": sys.executable})],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "ANSIBLE_CALLBACK_RESULT_FORMAT": "json", "ANSIBLE_NOCOLOR": "1"},
    )  # fmt: skip
    head = re.search(r"^localhost \| SUCCESS => ", done.stdout, re.MULTILINE)
    assert head, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout[head.end() :])
    return result


def test_the_card_computes(python: str) -> None:
    result = check(python=python, device="cuda")
    assert result["verdict"] == "ok", (result["cause"], result["explanation"], result["computation"]["error"])
    assert result["computation"]["device"] == "cuda"
    assert result["computation"]["steps"] == ["add", "matmul", "conv2d", "sparse"]
    assert result["computation"]["cards"]
    assert all(one["ok"] is not False for one in result["checks"])
    assert any("libcusparse" in path for path in result["libraries"]["loaded"])


def test_hidden_cards_are_named(python: str) -> None:
    result = check(python=python, device="cuda", environment={"CUDA_VISIBLE_DEVICES": ""})
    assert (result["verdict"], result["cause"]) == ("failed", "devices-hidden")


def test_a_planted_library_is_named(python: str, tmp_path: Path) -> None:
    """A libcublasLt without a single symbol in LD_LIBRARY_PATH: newer PyTorch loads its own by path and survives."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("gcc is not here")
    plain = check(python=python, device="cuda")
    own = next((path for path in plain["libraries"]["loaded"] if "libcublasLt" in path), None)
    if own is None:
        pytest.skip("this PyTorch has libcublasLt linked in")
    name = elf.ElfFile(own).soname or os.path.basename(own)
    assert ldpath.WATCHED.match(name)
    (tmp_path / "x.c").write_text("int planted;")
    subprocess.run(
        [gcc, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(tmp_path / name), str(tmp_path / "x.c")], check=True
    )
    for variable, value in (("LD_LIBRARY_PATH", str(tmp_path)), ("LD_PRELOAD", str(tmp_path / name))):
        result = check(python=python, device="cuda", environment={variable: value})
        named = [row["path"] for row in result["libraries"]["shadowed"]]
        if result["verdict"] == "ok":
            # Found by RPATH or loaded by path: the planted file never came in.
            assert str(tmp_path / name) not in result["libraries"]["loaded"]
            assert variable == "LD_LIBRARY_PATH"
        else:
            assert str(tmp_path / name) in named
            assert str(tmp_path / name) in result["explanation"]
            assert result["cause"] in ("undefined-symbol", "shadowed-library", "E1", "E5")
