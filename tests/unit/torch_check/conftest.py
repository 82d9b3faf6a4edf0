# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real libraries for the tests of torch_cuda_check: compiled here, or out of NVIDIA's wheels."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
Check = Callable[..., dict[str, Any]]


def cached_env() -> ModuleType:
    """tools/cached_env.py as a module."""
    spec = importlib.util.spec_from_file_location("cached_env", ROOT / "tools" / "cached_env.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def gcc() -> Callable[..., Path]:
    """``gcc(path, source, *flags)`` compiles a shared library (or, without ``-shared`` in flags, a program)."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not here")

    def build(path: Path, source: str, *flags: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.with_suffix(path.suffix + ".c")
        text.write_text(source)
        subprocess.run(["gcc", "-o", str(path), str(text), *flags], check=True, capture_output=True)
        text.unlink()
        return path

    return build


@pytest.fixture(scope="session")
def torch_cpu() -> Path:
    """The shared venv with the real PyTorch for the CPU."""
    try:
        return Path(cached_env().torch_cpu())
    except (subprocess.CalledProcessError, OSError) as exc:
        pytest.skip(f"PyTorch cannot be installed here: {exc}")


@pytest.fixture(scope="session")
def nvidia_wheel() -> Callable[[str, Path], None]:
    """``nvidia_wheel("name==version", target)`` lays a real wheel out in a site-packages directory."""
    tools = cached_env()

    def lay_out(requirement: str, target: Path) -> None:
        try:
            tools.unpack(requirement, target)
        except subprocess.CalledProcessError as exc:
            # Offline, or no such wheel for this Python. Anything else is a fault here and must not pass as a skip.
            assert "No matching distribution found" in exc.stderr, exc.stderr
            pytest.skip(f"{requirement} cannot be downloaded here: {exc.stderr.splitlines()[-1]}")

    return lay_out


@pytest.fixture
def bare_venv(tmp_path: Path) -> Path:
    """A venv with nothing in it."""
    target = tmp_path / "env"
    venv.create(target, with_pip=False, symlinks=True)
    return target


def site_packages(environment: Path) -> Path:
    """Where packages of this venv lie."""
    return environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


@pytest.fixture(scope="session")
def check() -> Check:
    """``check(python=..., environment={...})`` runs the module through ansible on localhost and returns its result."""

    def run(*flags: str, _env: dict[str, str] | None = None, **arguments: Any) -> dict[str, Any]:
        done = subprocess.run(
            [str(Path(sys.executable).with_name("ansible")), "localhost", "-m", "gpufleet.llm.torch_cuda_check", "-a",
             json.dumps(arguments), "-i", "localhost,", "-c", "local", "-e",
             json.dumps({"ansible_python_interpreter": sys.executable}), *flags],
            cwd=ROOT, capture_output=True, text=True, check=False,
            env={**os.environ, "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default", "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
                 "ANSIBLE_NOCOLOR": "1", **(_env or {})},
        )  # fmt: skip
        head = re.search(r"^localhost \| (\w+)!? => ", done.stdout, re.MULTILINE)
        assert head, done.stdout + done.stderr
        result: dict[str, Any] = json.loads(done.stdout[head.end() :])
        result["_status"] = head.group(1)
        return result

    return run
