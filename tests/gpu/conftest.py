# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests that need a real NVIDIA GPU: ``pytest tests/gpu``. Without one they are skipped and say so."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

STAND_IN = bool(os.environ.get("GPUFLEET_NVML_PROFILE") or os.path.exists("/etc/gpufleet-nvml-profile"))


@pytest.fixture(scope="session")
def nvidia_smi() -> str:
    """Path of a real nvidia-smi that answers."""
    if STAND_IN:
        pytest.skip("this machine has the NVML stand-in, not a GPU")
    return answering()


@pytest.fixture(scope="session")
def working_driver() -> str:
    """Path of an nvidia-smi that answers; with GPUFLEET_GPU_STAND_IN=1 the stand-in's will do.

    For tests of what a role does about a driver that works, not of the driver: tests/fleet/test_gpu_roles_stand_in.py.
    """
    if STAND_IN and not os.environ.get("GPUFLEET_GPU_STAND_IN"):
        pytest.skip("this machine has the NVML stand-in, not a GPU")
    return answering()


def answering() -> str:
    """Path of the nvidia-smi in the search path, when it lists a card; otherwise the test is skipped in words."""
    path = shutil.which("nvidia-smi")
    if path is None:
        pytest.skip("no nvidia-smi here: these tests need a machine with an NVIDIA GPU and its driver")
    done = subprocess.run([path, "-L"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"nvidia-smi finds no GPU here: {' '.join((done.stdout + done.stderr).split())}")
    return path
