# SPDX-License-Identifier: GPL-3.0-or-later
"""Rehearsals of pacman."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ansible_collections.gpufleet.llm.plugins.plugin_utils.driver_pacman import read_transaction

ROLE = Path(__file__).resolve().parents[4] / "roles/nvidia_driver"
KERNELS = yaml.safe_load((ROLE / "vars/Archlinux.yml").read_text())["__nvidia_driver_pacman_kernels"]

TRANSACTION = """\
:: nvidia-utils is in IgnorePkg/IgnoreGroup. Install anyway? [Y/n]
libgcc
linux-headers
linux-firmware-nvidia
nvidia-utils
nvidia-open-dkms
"""


def test_names_are_read_and_nothing_else() -> None:
    read = read_transaction(TRANSACTION, KERNELS)
    assert read["ok"] and not read["problems"]
    assert read["install"] == TRANSACTION.splitlines()[1:]


@pytest.mark.parametrize("name", ["linux", "linux-lts", "linux-zen", "linux-hardened", "linux-rt"])
def test_kernels_must_stay(name: str) -> None:
    read = read_transaction(f"{TRANSACTION}{name}\n", KERNELS)
    assert not read["ok"]
    assert read["problems"] == [f"it would change the kernels of the node: {name}"]


def test_nothing_is_nothing() -> None:
    assert read_transaction("", KERNELS) == {"ok": True, "install": [], "problems": []}
