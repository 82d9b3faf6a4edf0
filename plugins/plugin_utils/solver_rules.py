# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules of the solver, one pure function each: facts in, the violation in words (or nothing) out.

docs/explanation/solver.md lists them under the same names.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from ansible_collections.gpufleet.llm.plugins.plugin_utils.tables import Row, Tables, Version, release, version

RULES: dict[str, str] = {
    "card-known": "The compute capability of every card is known, or at least its generation.",
    "gpu-state": "What gpu_facts found wrong with a card or its driver is repeated as a warning.",
    "driver-drives-card": "The driver branch lies between the first and the last branch that know the card.",
    "one-driver-for-all-cards": "One driver branch and one module flavour drive every card of a node.",
    "module-flavour": "Open modules from Turing on and only they from Blackwell on; proprietary before Turing.",
    "kernel-limit": "The driver's module compiles against the running kernel.",
    "driver-branch-status": "A branch past its end of support gets a warning.",
    "mvc-floor": "CUDA M.n runs on every driver from the floor of CUDA M on (minor-version compatibility, M >= 11).",
    "forward-compatibility": "cuda-compat lifts an old driver on data-centre cards only, from a base branch on.",
    "toolkit-architecture": "The toolkit lies between the first and the last that compile for the card.",
    "toolkit-column": "A driver older than the one a toolkit was released with gets a warning, no more.",
    "wheel-exists": "The wheel is on the index for this release, CUDA variant and machine.",
    "wheel-python": "The wheel exists for the Python of the environment.",
    "wheel-glibc": "The C library of the node is not older than the wheel's manylinux tag.",
    "wheel-windows": "On Windows the Python index carries CPU wheels only.",
    "arch-coverage": "The wheel has machine code of the card's major version, or PTX not newer than card and driver.",
    "companions": "torchvision and torchaudio are those released with torch.",
    "precision-memory": "A model needs at most 95 % of the free memory (a nominal size counts 93 %).",
    "dtype-hardware": "bfloat16 from compute capability 8.0, float16 from 5.3, quantisers from theirs.",
    "host-memory": "Quantising while loading holds the 16-bit weights in the node's own memory first.",
    "gpu-required": "A model that requires a GPU gets one.",
    "disk-space": "What is to be downloaded and installed fits on the disk.",
    "pin-understood": "Every pin names something that the tables know.",
    "pins-hold": "A pin is a constraint and is never overridden.",
    "driver-present": "A driver that the inventory does not let us install is there.",
}


@dataclasses.dataclass(frozen=True)
class Violation:
    """A rule that does not hold: what was found and what was wanted, in words."""

    rule: str
    found: str
    wanted: str


@dataclasses.dataclass(frozen=True)
class Card:
    """A GPU: its possible compute capabilities (one, unless only its generation is known)."""

    label: str
    possible: tuple[str, ...]
    datacenter: bool
    memory_total_bytes: int | None
    memory_free_bytes: int | None
    memory_nominal: bool

    @property
    def compute_capability(self) -> str | None:
        """The compute capability when there is no doubt."""
        return self.possible[0] if len(self.possible) == 1 else None

    def usable_bytes(self, tables: Tables) -> int | None:
        """Free memory, or the total; a nominal size with its tolerance."""
        constants = tables.precisions["estimator"]
        if self.memory_free_bytes is not None:
            return self.memory_free_bytes
        if self.memory_total_bytes is None:
            return None
        if self.memory_nominal:
            return int(self.memory_total_bytes * constants["nominal_tolerance"])
        return self.memory_total_bytes


@dataclasses.dataclass(frozen=True)
class Driver:
    """A driver: its branch, its version when it is known, and how it comes (or stays)."""

    branch: int
    version: str | None
    flavour: str
    action: str
    cuda_api: str | None
    system: str = "Linux"

    @property
    def label(self) -> str:
        """C(525.85.05), or C(branch 580)."""
        return self.version or f"branch {self.branch}"

    def at_least(self, floor: str) -> bool:
        """Whether this driver reaches a version. A branch without a version stands for its newest release."""
        wanted = version(floor)
        if self.version is not None:
            return version(self.version) >= wanted
        return self.branch >= wanted[0]


def covers(compute_capability: str, compiled: Sequence[str], ptx: str | None) -> str | None:
    """How a wheel serves a card: C("sm_60"), C("compute_120 PTX"), or nothing.

    Machine code runs on the same major version from its own minor on; PTX on every card that is not older.
    """
    card = release(compute_capability)
    fitting = [release(cc) for cc in compiled if release(cc)[0] == card[0] and release(cc) <= card]
    if fitting:
        best = max(fitting)
        return f"sm_{best[0]}{best[1]}"
    if ptx is not None and release(ptx) <= card:
        return f"compute_{''.join(str(n) for n in release(ptx))} PTX"
    return None


def mvc_floor(tables: Tables, cuda: str, system: str = "Linux") -> tuple[str, Row] | None:
    """The oldest driver that runs a CUDA runtime on a system, and the row that says so."""
    row = tables.floor(cuda)
    if row is None:
        return None
    return str(row["windows"] if system == "Windows" else row["linux"]), row


def check_floor(tables: Tables, driver: Driver, cuda: str, needs: str) -> Violation | None:
    """C(mvc-floor)."""
    floor = mvc_floor(tables, cuda, driver.system)
    if floor is None:
        return Violation("mvc-floor", f"{needs} with CUDA {cuda}", "a CUDA version whose driver floor the tables know")
    if driver.at_least(floor[0]):
        return None
    return Violation("mvc-floor", f"driver {driver.label}", f"driver {floor[0]} or newer for {needs} (CUDA {cuda})")


def branch_interval(tables: Tables, cards: Sequence[Card]) -> tuple[int, int | None]:
    """First and last driver branch that know every card; no last branch while there is no end."""
    first, last = 0, None
    for card in cards:
        for cc in card.possible:
            row = tables.architecture(cc)
            if row is None:
                continue
            # A card of which only the generation is known binds by the last branch alone: its first is a guess.
            if len(card.possible) == 1:
                first = max(first, int(row["first_branch"] or 0))
            if row["last_branch"] is not None:
                last = int(row["last_branch"]) if last is None else min(last, int(row["last_branch"]))
    return first, last


def module_flavours(tables: Tables, cards: Sequence[Card]) -> list[str]:
    """Flavours of the kernel modules that drive every card, the wanted one first."""
    allowed = ["open", "proprietary"]
    for card in cards:
        if len(card.possible) > 1:
            # Every card of such a generation has one flavour in common: open from Turing on, proprietary before.
            newer = all(release(cc) >= (7, 5) for cc in card.possible)
            allowed = [f for f in allowed if f == ("open" if newer else "proprietary")]
            continue
        row = tables.architecture(card.possible[0]) if card.possible else None
        if row is not None:
            allowed = [f for f in allowed if f in row["module_flavours"]]
    return allowed


def branch_flavours(tables: Tables, branch: int) -> list[str]:
    """Flavours that a branch ships, its own default first."""
    rows = [r for r in tables.drivers["branches"] if r["branch"] <= branch]
    has = str(max(rows, key=lambda r: r["branch"])["open_modules"]) if rows else "none"
    return {
        "none": ["proprietary"],
        "optional": ["proprietary", "open"],
        "default": ["open", "proprietary"],
        "only": ["open"],
    }[has]


def kernel_version(kernel: str) -> Version:
    """C(6.5.0-14-generic) -> C((6, 5, 0))."""
    match = re.match(r"\d+(\.\d+)*", kernel)
    return version(match.group(0)) if match else ()


def rhel_kernel(kernel: str) -> Version:
    """C(5.14.0-503.11.1.el9_5.x86_64) -> C((5, 14, 0, 503)); empty for kernels of others."""
    match = re.match(r"(\d+\.\d+\.\d+)-(\d+)[\d.]*\.el\d", kernel)
    return (*version(match.group(1)), int(match.group(2))) if match else ()


def kernel_limit(tables: Tables, driver: Driver, kernel: str) -> tuple[Row, str] | None:
    """The row of the limit that the running kernel exceeds, and the limit.

    A branch without a version stands for its newest release: only what limits the whole branch (up to C(450.999)) binds it.
    """
    mine_or_newest = version(driver.version) if driver.version is not None else (driver.branch, 999)
    for row in tables.drivers["kernel_limits"]:
        if row["branch"] != driver.branch or mine_or_newest > version(row["up_to"]):
            continue
        if row["kernel_from"] and kernel_version(kernel) and kernel_version(kernel) >= version(row["kernel_from"]):
            return row, f"a kernel older than {row['kernel_from']}"
        if row["rhel_kernel_from"] and rhel_kernel(kernel):
            mine, limit = rhel_kernel(kernel), version(row["rhel_kernel_from"])
            if mine[:3] == limit[:3] and mine >= limit:
                return row, f"a kernel older than {row['rhel_kernel_from']}"
    return None


def forward_compatible(tables: Tables, driver: Driver, cards: Sequence[Card], cuda: str) -> Violation | None:
    """C(forward-compatibility): whether C(cuda-compat) may lift this driver to a CUDA version on these cards."""
    major = version(cuda)[0]
    base = [r for r in tables.drivers["forward_compatibility"] if r["cuda_major"] == major]
    if driver.system != "Linux" or not base:
        return Violation("forward-compatibility", f"CUDA {major} on {driver.system}", "Linux and CUDA 12 or newer")
    others = [card.label for card in cards if not card.datacenter]
    if others:
        return Violation("forward-compatibility", ", ".join(others), "data-centre cards only (error 804 on others)")
    if driver.branch < base[0]["base_branch"]:
        return Violation(
            "forward-compatibility", f"driver {driver.label}", f"branch {base[0]['base_branch']} or newer as the base"
        )
    return None


def text_list(values: Sequence[Any]) -> str:
    """C(a, b or c)."""
    words = [str(v) for v in values]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1] if words else "nothing"
