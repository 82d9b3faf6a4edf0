# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""tests/gpu/test_roles_touch_nothing.py where there is no card: on this machine, with the NVML stand-in for its driver.

In a mount namespace of its own the PCI bus and /proc/driver are the stand-in's T4; everything else that the roles look at
is this machine's own. What only a card can show (the torch check) skips here too, and says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT

TEST = "tests/gpu/test_roles_touch_nothing.py"
BUILD = ROOT / "tests" / "fleet" / "nvml_stand_in" / "build.sh"
INSIDE = """
set -e
mount --bind "$0/pci" /sys/bus/pci/devices
mount --bind "$0/proc-driver" /proc/driver
exec "$@"
"""


def run(stand_in: Path | None, *arguments: str) -> str:
    """pytest on the test; its output."""
    argv = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *arguments]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GPUFLEET_GPU")}
    if stand_in is not None:
        argv = ["unshare", "-m", "--propagation", "private", "bash", "-c", INSIDE, str(stand_in), *argv]
        environment |= {
            "PATH": f"{stand_in / 'bin'}:{os.environ['PATH']}", "LD_LIBRARY_PATH": str(stand_in / "lib"),
            "GPUFLEET_NVML_PROFILE": str(stand_in / "profile"),
        }  # fmt: skip
        if TEST in arguments:
            environment["GPUFLEET_GPU_STAND_IN"] = "1"
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, env=environment).stdout


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """The stand-in of a T4 whose driver works."""
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("gcc") is None:
        pytest.skip("root, unshare and gcc are needed to put the stand-in in the place of the PCI bus")
    if not Path("/proc/driver").is_dir():
        pytest.skip("this kernel has no /proc/driver to put the stand-in's over")
    subprocess.run([str(BUILD), str(tmp_path / "built"), "t4"], check=True, capture_output=True)
    return tmp_path / "built" / "t4"


def test_the_roles_leave_a_driver_that_works_alone(stand_in: Path) -> None:
    out = run(stand_in, TEST)
    assert "2 passed, 1 skipped" in out, out[-6000:]
    assert "has no PyTorch for CUDA" in out


def test_a_stand_in_is_never_taken_for_a_card(stand_in: Path) -> None:
    out = run(stand_in, "tests/gpu")
    assert " passed" not in out and " failed" not in out, out
    assert "this machine has the NVML stand-in, not a GPU" in out


def test_without_a_card_every_test_skips_in_words() -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has an nvidia-smi")
    out = run(None, "tests/gpu")
    assert " passed" not in out and " failed" not in out and " error" not in out, out
    assert "these tests need a machine with an NVIDIA GPU and its driver" in out
