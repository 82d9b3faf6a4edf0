# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests that need a real NVIDIA GPU: ``pytest tests/gpu``. Without one they are skipped and say so."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest


@pytest.fixture(scope="session")
def nvidia_smi() -> str:
    """Path of a real nvidia-smi that answers."""
    if os.environ.get("GPUFLEET_NVML_PROFILE") or os.path.exists("/etc/gpufleet-nvml-profile"):
        pytest.skip("this machine has the NVML stand-in, not a GPU")
    path = shutil.which("nvidia-smi")
    if path is None:
        pytest.skip("no nvidia-smi here: these tests need a machine with an NVIDIA GPU and its driver")
    done = subprocess.run([path, "-L"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"nvidia-smi finds no GPU here: {' '.join((done.stdout + done.stderr).split())}")
    return path
