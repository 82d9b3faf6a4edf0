# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The NVML stand-in for unit tests: built once per process, and made-up root trees of nodes from its profiles."""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pynvml
import pytest
from ansible_collections.gpufleet.llm.plugins.module_utils import gpu_gather, nvml_binding

REPOSITORY = Path(__file__).resolve().parents[4]
STAND_IN = REPOSITORY / "tests" / "fleet" / "nvml_stand_in"
RELEASE = "6.1.0-28-amd64"


@functools.lru_cache(maxsize=1)
def built() -> Path:
    """Folder of build.sh's output; skips the test where there is no compiler."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc here, and the NVML stand-in is C")
    if os.environ.get("GPUFLEET_NVML_BUILT"):
        return Path(os.environ["GPUFLEET_NVML_BUILT"])
    out = Path(tempfile.mkdtemp(prefix="gpufleet-nvml-"))
    atexit.register(shutil.rmtree, out, ignore_errors=True)
    subprocess.run([STAND_IN / "build.sh", out], check=True)
    return out


def root_of(tmp_path: Path, profile: str) -> Path:
    """A root tree as the kernel and the driver's packages would show it on a node of this profile."""
    made, root = built() / profile, tmp_path / "root"
    shutil.copytree(made / "pci", root / "sys/bus/pci/devices", symlinks=True)
    shutil.copytree(made / "proc-driver", root / "proc/driver")
    shutil.copytree(made / "lib", root / "usr/lib/x86_64-linux-gnu", symlinks=True)
    if (made / "sys-module-nvidia/version").exists():
        shutil.copytree(made / "sys-module-nvidia", root / "sys/module/nvidia")
        for node in ("nvidiactl", "nvidia0", "nvidia-uvm"):
            put(root, f"dev/{node}", "")
    put(root, "proc/sys/kernel/osrelease", RELEASE + "\n")
    put(root, "proc/1/comm", "systemd\n")
    put(root, "proc/modules", "")
    return root


def put(root: Path, path: str, content: str | bytes) -> Path:
    """A file of a made-up tree."""
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content if isinstance(content, bytes) else content.encode())
    return target


def open_stand_in(choice: str, _library: str) -> Any:
    """A binding of the stand-in. The package is given the library: by its name it would find whichever was loaded first."""
    path = built() / "t4/lib/libnvidia-ml.so.1"
    if choice == "ctypes":
        return nvml_binding.CtypesBinding(os.fspath(path))
    pynvml.nvmlLib = ctypes.CDLL(os.fspath(path))
    pynvml._nvmlGetFunctionPointer_cache.clear()
    return nvml_binding.open_binding("pynvml")


def facts_of(root: Path, profile: str, binding: str = "ctypes", **arguments: Any) -> dict[str, Any]:
    """Gather on ``root`` with the stand-in answering from ``profile``."""
    os.environ["GPUFLEET_NVML_PROFILE"] = os.fspath(built() / profile / "profile")
    try:
        return gpu_gather.gather(
            gpu_gather.resolve_subset(arguments.pop("subset", ["all"])),
            root=os.fspath(root),
            nvml_binding=binding,
            open_binding=arguments.pop("open_binding", open_stand_in),
            timeout_seconds=arguments.pop("timeout_seconds", 60),
            **arguments,
        ).facts
    finally:
        del os.environ["GPUFLEET_NVML_PROFILE"]


def no_library(_choice: str, _library: str) -> Any:
    """What opening a binding does on a node without libnvidia-ml."""
    raise nvml_binding.NvmlError(nvml_binding.LIBRARY_NOT_FOUND)


def run_stand_in_smi(profile: str) -> Any:
    """A run_command that runs the stand-in nvidia-smi ("nvidia-smi -q -x" behind what bounds it) for real."""

    def run(argv: list[str]) -> tuple[int, str, str]:
        environment = {**os.environ, "GPUFLEET_NVML_PROFILE": os.fspath(built() / profile / "profile")}
        command = [*argv[:-3], os.fspath(built() / profile / "bin/nvidia-smi"), *argv[-2:]]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    return run
