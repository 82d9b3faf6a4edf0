# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The solver's dated tables (C(data/*.yml)), loaded once, and versions that compare as numbers."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.gpufleet.llm.plugins.plugin_utils import yaml_file

Row = Mapping[str, Any]
Version = tuple[int, ...]

NAMES = ("architectures", "chips", "drivers", "precisions", "systems", "toolkits", "torch")


def version(text: Any) -> Version:
    """C(525.85.05) -> C((525, 85, 5)): numbers compare as numbers, whatever stands between them.

    :raises ValueError: when there is no number in it.
    """
    numbers = re.findall(r"\d+", str(text).partition("+")[0])
    if not numbers:
        raise ValueError(f"{text!r} is not a version")
    return tuple(int(n) for n in numbers)


def release(text: Any) -> Version:
    """C(2.10.1) -> C((2, 10)): the first two numbers."""
    return (*version(text), 0)[:2]


@dataclasses.dataclass(frozen=True)
class Tables:
    """All tables as read; rows are plain mappings with C(source) and C(verified)."""

    architectures: Mapping[str, Any]
    chips: Mapping[str, Any]
    drivers: Mapping[str, Any]
    precisions: Mapping[str, Any]
    systems: Mapping[str, Any]
    toolkits: Mapping[str, Any]
    torch: Mapping[str, Any]

    def source(self, table: str, row: Row) -> str:
        """The text of a row's source with the mark of what was not read there, for C(reasons[].source)."""
        data: Mapping[str, Any] = getattr(self, table)
        text = str(data["sources"][row["source"]])
        return f"{text} ({data['as_of']}{'' if row['verified'] else ', not verified'})"

    # -- architectures and chips -------------------------------------------------------------------------------------

    def architecture(self, compute_capability: str) -> Row | None:
        """The row of a compute capability such as C("7.5")."""
        return _first(self.architectures["architectures"], compute_capability=compute_capability)

    def device(self, pci_device: str) -> Row | None:
        """The row of a PCI device id such as C("1eb8")."""
        return _first(self.chips["devices"], device=pci_device)

    def chip(self, name: str) -> Row | None:
        """The row with the longest prefix of a chip's name such as C("TU104")."""
        rows = [
            row
            for row in self.chips["chips"]
            if (name == row["prefix"] if row["exact"] else name.startswith(row["prefix"]))
        ]
        return max(rows, key=lambda row: (row["exact"], len(row["prefix"])), default=None)

    def device_range(self, pci_device: str) -> Row | None:
        """The generation that a device id not in the table belongs to."""
        try:
            number = int(pci_device, 16)
        except ValueError:
            return None
        for row in self.chips["ranges"]:
            if int(row["device_from"], 16) <= number <= int(row["device_to"], 16):
                return row
        return None

    # -- drivers and toolkits ----------------------------------------------------------------------------------------

    @property
    def default_branch(self) -> int:
        """The branch that a fleet gets when nothing says otherwise."""
        return int(self.drivers["default_branch"])

    def branch(self, number: int) -> Row | None:
        """The row of a driver branch."""
        return _first(self.drivers["branches"], branch=number)

    def cuda_api(self, branch: int) -> str | None:
        """CUDA driver API of a branch: its own, or of the newest known branch that is not newer (a lower bound)."""
        known = [r for r in self.drivers["branches"] if r["cuda_api"] and r["branch"] <= branch]
        return str(max(known, key=lambda r: r["branch"])["cuda_api"]) if known else None

    def floor(self, cuda: str) -> Row | None:
        """The row of the driver floor of a CUDA runtime such as C("12.1")."""
        wanted = version(cuda)
        for row in self.drivers["floors"]:
            key = version(row["cuda"])
            if wanted[: len(key)] == key:
                return row
        return None

    def toolkit(self, text: str) -> Row | None:
        """The toolkit of a full version, or the newest update of C("12.0")."""
        if not re.search(r"\d", text):
            return None
        wanted = version(text)
        rows = [r for r in self.toolkits["toolkits"] if version(r["cuda"])[: len(wanted)] == wanted]
        return max(rows, key=lambda r: version(r["cuda"]), default=None)

    # -- torch -------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def torch_releases(self) -> Sequence[Row]:
        """Torch releases, newest first."""
        return sorted(self.torch["releases"], key=lambda r: version(r["torch"]), reverse=True)

    def torch_release(self, text: str) -> Row | None:
        """The row of a torch version."""
        wanted = version(text)
        for row in self.torch["releases"]:
            if version(row["torch"]) == wanted:
                return row
        return None

    def torch_variants(self, torch: str) -> list[Row]:
        """The variants of a release on the PyTorch index, highest CUDA first."""
        rows = [r for r in self.torch["variants"] if version(r["torch"]) == release(torch)]
        return sorted(rows, key=lambda r: version(variant_cuda(r["variant"])), reverse=True)

    def arch_list(self, variant: str, torch: str, machine: str) -> Row | None:
        """The GPU code compiled into a wheel."""
        for row in self.torch["arch_lists"]:
            if row["variant"] != variant or row["machine"] != machine:
                continue
            if version(row["torch_from"]) <= release(torch) <= version(row["torch_to"]):
                return row
        return None

    # -- precisions and systems --------------------------------------------------------------------------------------

    def precision(self, name: str) -> Row | None:
        """The row of a number format."""
        return _first(self.precisions["precisions"], precision=name)

    def method(self, method: str, precision: str) -> Row | None:
        """The row of a way to quantise."""
        return _first(self.precisions["methods"], method=method, precision=precision)

    def glibc(self, distribution: str, family: str, distribution_version: str) -> str | None:
        """The C library of a distribution, or nothing when the table has no row."""
        for name in (distribution, f"{family} family"):
            for row in self.systems["glibc"]:
                wanted = version(row["version"])
                if row["distribution"] != name or not re.search(r"\d", distribution_version):
                    continue
                if version(distribution_version)[: len(wanted)] == wanted:
                    return str(row["glibc"])
        return None


def variant_cuda(variant: str) -> str:
    """C("cu121") -> C("12.1"), C("cu132") -> C("13.2")."""
    digits = variant.removeprefix("cu")
    return f"{digits[:-1]}.{digits[-1]}"


def cuda_variant(cuda: str) -> str:
    """C("12.1") -> C("cu121")."""
    return "cu" + "".join(str(n) for n in release(cuda))


def _first(rows: Sequence[Row], **wanted: Any) -> Row | None:
    for row in rows:
        if all(row[key] == value for key, value in wanted.items()):
            return row
    return None


@functools.lru_cache(maxsize=1)
def load() -> Tables:
    """The tables shipped with the collection.

    :raises OSError: when a file is missing.
    """
    folder = os.path.join(os.path.dirname(__file__), "data")
    return Tables(**{name: yaml_file.read(os.path.join(folder, f"{name}.yml")) for name in NAMES})
