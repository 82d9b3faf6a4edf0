# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a plan keeps every rule that it states, by the tables alone: none of the solver's own functions is called.

Each rule of C(solver_rules.RULES) has one function here. It gets a C(Look) (plan and request) and yields in words what
breaks the rule. A rule that is broken must be named by a conflict (or, where the rule only warns, by a warning).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

DATA = Path(__file__).resolve().parents[4] / "plugins" / "plugin_utils" / "data"
T = {
    name: yaml.safe_load((DATA / f"{name}.yml").read_text(encoding="utf-8"))
    for name in ("architectures", "chips", "drivers", "precisions", "toolkits", "torch")
}
ARCH = {row["compute_capability"]: row for row in T["architectures"]["architectures"]}
RELEASES = {row["torch"]: row for row in T["torch"]["releases"]}
PRECISIONS = {row["precision"]: row for row in T["precisions"]["precisions"]}
METHODS = {(row["method"], row["precision"]): row for row in T["precisions"]["methods"]}
ESTIMATOR = T["precisions"]["estimator"]
PIN_NAMES = {
    "accelerator", "compute_capability", "cuda_toolkit", "driver_branch", "driver_flavour", "driver_method",
    "driver_version", "forward_compatibility", "models", "precision", "python", "torch", "torch_index", "torch_variant",
}  # fmt: skip


def number(text: Any) -> tuple[int, ...]:
    """``525.85.05`` -> ``(525, 85, 5)``."""
    return tuple(int(n) for n in re.findall(r"\d+", str(text).split("+")[0]))


class Look:
    """A request and its plan, with what the tables say about the node."""

    def __init__(self, plan: dict[str, Any], request: dict[str, Any]) -> None:
        self.plan, self.request = plan, request
        self.pins: dict[str, Any] = request["pins"]
        self.driver: dict[str, Any] = plan["driver"]
        self.system: str = request["system"]
        self.cuda: bool = plan["accelerator"] == "cuda"
        self.possible = [self._possible(card) for card in request["gpus"]]
        self.conflicts = {c["rule"] for c in plan["conflicts"]}
        self.warnings = {w["rule"] for w in plan["warnings"]}

    def _possible(self, card: dict[str, Any]) -> list[str]:
        if card.get("compute_capability") in ARCH:
            return [card["compute_capability"]]
        device = next((d for d in T["chips"]["devices"] if d["device"] == card["pci_device"]), None)
        chip = device["chip"] if device else ""
        rows = [c for c in T["chips"]["chips"] if chip and chip.startswith(c["prefix"])]
        rows = [c for c in rows if c["prefix"] == chip or not c["exact"]]
        if rows:
            return [sorted(rows, key=lambda c: (c["exact"], len(c["prefix"])))[-1]["compute_capability"]]
        if self.pins.get("compute_capability") in ARCH:
            return [self.pins["compute_capability"]]
        if not re.fullmatch("[0-9a-f]{4}", card["pci_device"]):
            return []
        for row in T["chips"]["ranges"]:
            if row["device_from"] <= card["pci_device"] <= row["device_to"]:
                return list(row["possible"])
        return []

    def usable(self, index: int) -> int | None:
        """Bytes of a card that count: the free ones, else all; of a nominal size its tolerance."""
        card = self.request["gpus"][index]
        if card["memory_free_bytes"] is not None:
            return int(card["memory_free_bytes"])
        if card["memory_total_bytes"] is not None:
            return int(card["memory_total_bytes"])
        device = next((d for d in T["chips"]["devices"] if d["device"] == card["pci_device"]), None)
        return int(device["memory_gib"] * 2**30 * ESTIMATOR["nominal_tolerance"]) if device else None

    def datacenter(self, index: int) -> bool:
        """Whether the table sells this card for data centres; a card that is not listed does not count."""
        device = self.request["gpus"][index]["pci_device"]
        return any(d["device"] == device and d["market"] == "datacenter" for d in T["chips"]["devices"])

    def version(self) -> tuple[int, ...]:
        """The driver that the plan ends with. A branch without a version stands for its newest release."""
        kept = self.request["driver"]["version"] if self.driver["action"] in ("keep", "reinstall") else None
        text = self.driver["version"] or kept
        return number(text) if text else (self.driver["branch"], 999)

    def floor(self, cuda: str) -> tuple[int, ...]:
        """The oldest driver of a CUDA runtime."""
        for row in T["drivers"]["floors"]:
            key = number(row["cuda"])
            if number(cuda)[: len(key)] == key:
                return number(row["windows" if self.system == "Windows" else "linux"])
        raise AssertionError(f"no floor for CUDA {cuda}")

    def stacks(self) -> list[tuple[str, dict[str, Any], bool]]:
        """Python, torch and whether it computes on a card, per environment that has a wheel."""
        found = [(m["python"], m["torch"], m["device"] == "cuda") for m in self.plan["models"]]
        found = found or [
            (self.plan["python"], self.plan["torch"], self.cuda and self.plan["torch"]["variant"] != "cpu")
        ]
        return [stack for stack in found if stack[1]["requirement"]]

    def models(self) -> Iterator[tuple[dict[str, Any], dict[str, Any], list[int]]]:
        """What was wanted, what was planned, and the indexes of the cards that it may mean."""
        for wanted, planned in zip(self.request["models"], self.plan["models"]):
            cards = [i for i, card in enumerate(self.plan["gpus"]) if card["name"] == planned["card"]]
            yield wanted, planned, cards

    def arch_row(self, torch: dict[str, Any]) -> dict[str, Any] | None:
        """What is compiled into a wheel for this machine."""
        rows = [
            row for row in T["torch"]["arch_lists"]
            if row["variant"] == torch["variant"] and row["machine"] == self.request["os"]["machine"]
            and number(row["torch_from"]) <= number(torch["version"])[:2] <= number(row["torch_to"])
        ]  # fmt: skip
        return rows[0] if len(rows) == 1 else None


# ---------------------------------------------------------------------------------------------------- cards and drivers


def card_known(look: Look) -> Iterator[str]:
    for possible, out in zip(look.possible, look.plan["gpus"]):
        if not possible:
            yield "a card without a compute capability"
        elif out["possible_compute_capabilities"] != possible:
            yield f"{out['possible_compute_capabilities']}, and the tables say {possible}"


def gpu_state(look: Look) -> Iterator[str]:
    said = [w["message"] for w in look.plan["warnings"] if w["rule"] == "gpu-state"]
    yield from (note for note in look.request["notes"] if note not in said)


def interval(look: Look) -> tuple[int, int]:
    """First and last branch of all cards; of a generation only the last counts."""
    rows = [(ARCH[cc], len(possible) == 1) for possible in look.possible for cc in possible]
    first = max((row["first_branch"] or 0 for row, sure in rows if sure), default=0)
    return first, min((row["last_branch"] or 10**6 for row, _sure in rows), default=10**6)


def driver_drives_card(look: Look) -> Iterator[str]:
    first, last = interval(look)
    if look.cuda and look.system == "Linux" and not first <= look.driver["branch"] <= last:
        yield f"branch {look.driver['branch']}, and the cards know {first} to {last}"


def one_driver(look: Look) -> Iterator[str]:
    first, last = interval(look)
    if look.cuda and look.system == "Linux" and first > last:
        yield f"{first} or newer and {last} or older"
    flavours = [set(ARCH[cc]["module_flavours"]) for possible in look.possible for cc in possible]
    if look.cuda and flavours and not set.intersection(*flavours) and look.system == "Linux":
        yield "no flavour in common"


def module_flavour(look: Look) -> Iterator[str]:
    if not look.cuda or look.system != "Linux":
        return
    flavour = look.driver["flavour"]
    for possible in look.possible:
        yield from (f"{flavour} on {cc}" for cc in possible if flavour not in ARCH[cc]["module_flavours"])
    rows = [row for row in T["drivers"]["branches"] if row["branch"] <= look.driver["branch"]]
    ships = max(rows, key=lambda row: row["branch"])["open_modules"] if rows else "none"
    if look.driver["action"] != "keep" and {"open": "none", "proprietary": "only"}.get(flavour) == ships:
        yield f"branch {look.driver['branch']} has no {flavour} modules"


def kernel_limit(look: Look) -> Iterator[str]:
    running = look.driver["action"] == "keep" and look.request["driver"]["loaded"]
    if not look.cuda or look.system != "Linux" or running:
        return
    kernel = look.request["os"]["kernel"]
    rhel = re.match(r"([\d.]+-\d+)[\d.]*\.el\d", kernel)
    for row in T["drivers"]["kernel_limits"]:
        if row["branch"] != look.driver["branch"] or look.version() > number(row["up_to"]):
            continue
        if row["kernel_from"] and number(kernel.partition("-")[0]) >= number(row["kernel_from"]):
            yield f"kernel {kernel} with {look.version()}, limit {row['kernel_from']}"
        elif row["rhel_kernel_from"] and rhel:
            mine, limit = number(rhel.group(1)), number(row["rhel_kernel_from"])
            if mine[:3] == limit[:3] and mine >= limit:
                yield f"kernel {kernel} with {look.version()}, limit {row['rhel_kernel_from']}"


def kernel_warning(look: Look) -> Iterator[str]:
    for row in T["drivers"]["kernel_warnings"]:
        kernel = number(look.request["os"]["kernel"].partition("-")[0])
        if (
            look.cuda and look.system == "Linux" and look.driver["action"] != "keep" and look.driver["version"]
            and look.driver["branch"] == row["branch"] and look.version() <= number(row["up_to"])
            and kernel >= number(row["kernel_from"]) and look.request["os"]["distribution"] == row["distribution"]
            and not any(w["rule"] == "kernel-limit" and row["remedy"] in w["message"] for w in look.plan["warnings"])
        ):  # fmt: skip
            yield row["why"]


def driver_branch_status(look: Look) -> Iterator[str]:
    row = next((r for r in T["drivers"]["branches"] if r["branch"] == look.driver["branch"]), None)
    if look.cuda and look.system == "Linux" and (row is None or row["status"] == "ended"):
        yield f"branch {look.driver['branch']} is {row['status'] if row else 'not in the tables'}"


def driver_present(look: Look) -> Iterator[str]:
    if (
        look.cuda
        and look.system == "Linux"
        and look.pins.get("driver_method") == "none"
        and look.driver["action"] != "keep"
    ):
        yield f"{look.driver['action']}, and the driver is not ours"


def mvc_floor(look: Look) -> Iterator[str]:
    if not look.cuda or look.driver["forward_compatibility"]:
        return
    for _python, torch, on_card in look.stacks():
        if on_card and look.version() < look.floor(torch["cuda"]):
            yield f"driver {look.version()} below the floor of CUDA {torch['cuda']}"


def forward_compatibility(look: Look) -> Iterator[str]:
    lifted = look.driver["forward_compatibility"]
    if not lifted:
        return
    cuda = lifted["package"].removeprefix("cuda-compat-").replace("-", ".")
    base = [r["base_branch"] for r in T["drivers"]["forward_compatibility"] if r["cuda_major"] == number(cuda)[0]]
    if look.pins.get("forward_compatibility") is not True:
        yield "nobody asked for cuda-compat"
    if look.system != "Linux" or not base or look.driver["branch"] < base[0]:
        yield f"branch {look.driver['branch']} as the base of CUDA {cuda} on {look.system}"
    if not all(look.datacenter(index) for index in range(len(look.possible))):
        yield "a card that is not for data centres"
    if cuda not in {torch["cuda"] for _python, torch, on_card in look.stacks() if on_card}:
        yield f"cuda-compat for CUDA {cuda}, which nobody uses"
    if lifted["library_path"] != f"/usr/local/cuda-{cuda}/compat":
        yield lifted["library_path"]


# ------------------------------------------------------------------------------------------------------------ toolkits


def toolkit_architecture(look: Look) -> Iterator[str]:
    text = look.plan["cuda_toolkit"]["version"]
    if text is None or not look.cuda or text not in {row["cuda"] for row in T["toolkits"]["toolkits"]}:
        return
    for possible in look.possible:
        for cc in possible:
            first, last = ARCH[cc]["first_toolkit"], ARCH[cc]["last_toolkit"]
            if number(text)[:2] < number(first) or (last is not None and number(text)[:2] > number(last)):
                yield f"CUDA {text} on {cc}"


def toolkit_floor(look: Look) -> Iterator[str]:
    text = look.plan["cuda_toolkit"]["version"]
    if text in {row["cuda"] for row in T["toolkits"]["toolkits"]} and look.cuda and look.version() < look.floor(text):
        yield f"driver {look.version()} below the floor of the toolkit {text}"


def toolkit_column(look: Look) -> Iterator[str]:
    row = next((r for r in T["toolkits"]["toolkits"] if r["cuda"] == look.plan["cuda_toolkit"]["version"]), None)
    column = row["windows" if look.system == "Windows" else "linux"] if row else None
    if look.cuda and row and column and look.floor(row["cuda"]) <= look.version() < number(column):
        yield f"driver {look.version()} older than {column}"


# -------------------------------------------------------------------------------------------------------------- wheels


def wheel_exists(look: Look) -> Iterator[str]:
    for _python, torch, on_card in look.stacks():
        row = RELEASES.get(torch["version"])
        if row is None:
            yield f"torch {torch['version']}"
            continue
        if (torch["requirement"] == f"torch=={torch['version']}") != (torch["index"] == "pypi"):
            yield f"{torch['requirement']} on {torch['index']}"
        carried = {r["variant"] for r in T["torch"]["variants"] if number(r["torch"]) == number(torch["version"])[:2]}
        default = "cu" + row["pypi_cuda"].replace(".", "")
        if torch["variant"] != "cpu" and torch["variant"] not in ({default} if torch["index"] == "pypi" else carried):
            yield f"{torch['variant']} of {torch['version']} on {torch['index']}"
        elsewhere = look.request["os"]["machine"] != "x86_64"
        if on_card and (look.arch_row(torch) is None or (elsewhere and torch["index"] == "pypi")):
            yield f"{torch['requirement']} for {look.request['os']['machine']}"


def wheel_python(look: Look) -> Iterator[str]:
    for python, torch, _on_card in look.stacks():
        if python not in RELEASES[torch["version"]]["pythons"]:
            yield f"Python {python} with torch {torch['version']}"


def wheel_glibc(look: Look) -> Iterator[str]:
    mine = look.request["os"]["glibc"]
    for _python, torch, _on_card in look.stacks():
        if mine is not None and look.system == "Linux" and number(mine) < number(torch["glibc"]):
            yield f"glibc {mine} under {torch['glibc']}"


def wheel_windows(look: Look) -> Iterator[str]:
    for _python, torch, on_card in look.stacks():
        if on_card and look.system == "Windows" and torch["index"] == "pypi":
            yield torch["requirement"]


def runs_on(cc: str, arch: list[str], ptx: str | None) -> str:
    """``machine code``, ``ptx`` or nothing."""
    mine = number(cc)
    if any(number(a)[0] == mine[0] and number(a)[1] <= mine[1] for a in arch):
        return "machine code"
    return "ptx" if ptx is not None and number(ptx) <= mine else ""


def arch_coverage(look: Look) -> Iterator[str]:
    for _python, torch, on_card in look.stacks():
        row = look.arch_row(torch)
        if not on_card or row is None:
            continue
        for cc in (cc for possible in look.possible for cc in possible):
            how = runs_on(cc, row["arch"], row["ptx"])
            if not how:
                yield f"{torch['requirement']} on {cc}"
            elif (
                how == "ptx"
                and not look.driver["forward_compatibility"]
                and (look.driver["cuda_api"] is None or number(look.driver["cuda_api"]) < number(torch["cuda"]))
            ):
                yield f"PTX of CUDA {torch['cuda']} on a driver of CUDA {look.driver['cuda_api']}"


def companions(look: Look) -> Iterator[str]:
    for _python, torch, _on_card in look.stacks():
        row = RELEASES[torch["version"]]
        if (torch["torchvision"], torch["torchaudio"]) != (row["torchvision"], row["torchaudio"]):
            yield f"{torch['torchvision']} and {torch['torchaudio']} with {torch['version']}"


# -------------------------------------------------------------------------------------------------------------- models


def needed(wanted: dict[str, Any], precision: str, device: str) -> int | None:
    """Bytes that a model needs at least: its own figure, or weights, one full context and the low overhead."""
    row = wanted["precisions"].get(precision) or {}
    stated = row.get("memory_bytes" if device == "cuda" else "host_bytes")
    if stated:
        return int(stated)
    if not wanted.get("parameters"):
        return None
    bits = PRECISIONS[precision]["bits"]
    sixteen = min(wanted.get("embedding_parameters") or 0, wanted["parameters"]) if bits < 16 else 0
    weights = (wanted["parameters"] - sixteen) * bits // 8 + sixteen * 2
    context = 2 * max(ESTIMATOR["kv_bytes_per_value"], bits // 8)
    for key in ("layers", "kv_heads", "head_dim", "context_tokens"):
        context *= int(wanted.get(key) or 0)
    return weights + context + int(ESTIMATOR["overhead_low_bytes" if device == "cuda" else "cpu_overhead_bytes"])


def precision_memory(look: Look) -> Iterator[str]:
    for wanted, planned, cards in look.models():
        if planned["precision"] not in PRECISIONS or planned["dtype"] is None:
            continue
        if planned["device"] == "cuda":
            have = max((look.usable(index) or 0 for index in range(len(look.possible))), default=0)
            if not any((look.usable(index) or 0) == have for index in cards):
                yield f"{planned['card']} is not the card with the most memory"
            if all(look.usable(index) is None for index in cards):
                continue
        elif look.request["memory"]["available_bytes"] is None:
            continue
        else:
            have = look.request["memory"]["available_bytes"]
        wants = needed(wanted, planned["precision"], planned["device"])
        if wants is not None and wants > ESTIMATOR["refuse_above_free"] * have:
            yield f"{wants} of {have} bytes"
        if wants is not None and planned["memory_needed_bytes"] != wants:
            yield f"{planned['memory_needed_bytes']} bytes said, {wants} needed"


def dtype_hardware(look: Look) -> Iterator[str]:
    for wanted, planned, cards in look.models():
        if planned["dtype"] is None:
            continue
        if planned["device"] != "cuda":
            if planned["dtype"] != "float32":
                yield f"{planned['dtype']} on the processor"
            continue
        lowest = min(min(number(cc) for cc in look.possible[index]) for index in cards)
        method = (wanted["precisions"].get(planned["precision"]) or {}).get("method")
        row = METHODS.get((method, planned["precision"]), PRECISIONS[planned["precision"]])
        for need in (row, PRECISIONS[planned["dtype"]]):
            if lowest < number(need["minimum_compute_capability"]):
                yield f"{planned['precision']} in {planned['dtype']} by {method} on {lowest}"


def host_bytes(wanted: dict[str, Any], precision: str) -> int | None:
    """What loading a precision holds in the node's own memory before it is on the card."""
    row = wanted["precisions"].get(precision) or {}
    if row.get("host_bytes") is not None:
        return int(row["host_bytes"])
    method = METHODS.get((row.get("method"), precision))
    return wanted["parameters"] * 2 if method and method["loads_full_weights_in_host_memory"] else None


def host_memory(look: Look) -> Iterator[str]:
    have = look.request["memory"]["available_bytes"]
    for wanted, planned, _cards in look.models():
        if planned["device"] != "cuda" or planned["dtype"] is None or have is None:
            continue
        wants = host_bytes(wanted, planned["precision"])
        if wants is not None and wants > have:
            yield f"{wants} of {have} bytes of the node's own memory"


def gpu_required(look: Look) -> Iterator[str]:
    if look.pins.get("accelerator") == "cuda" and not look.request["gpus"]:
        yield "no card for accelerator cuda"
    for wanted, planned, _cards in look.models():
        if wanted.get("requires_gpu") and planned["device"] != "cuda":
            yield f"{wanted['name']} on the processor"


def disk_space(look: Look) -> Iterator[str]:
    free = look.request["disk"]["free_bytes"]
    known = sum(m.get("disk_bytes") or m.get("download_bytes") or 0 for m in look.request["models"])
    if free is not None and known > free:
        yield f"{known} bytes on {free}"


# ---------------------------------------------------------------------------------------------------------------- pins


def pin_understood(look: Look) -> Iterator[str]:
    pins = {key: value for key, value in look.pins.items() if value not in (None, "")}
    yield from (f"unknown pin {key}" for key in pins if key not in PIN_NAMES)
    for entry in (pins.get("models") or {}).values():
        yield from (f"unknown pin {key}" for key in entry if key not in PIN_NAMES - {"models"})
    yield from (f"{key} is a number" for key, value in pins.items() if isinstance(value, float))
    for key, values in {
        "driver_method": ("auto", "distribution", "nvidia_repo", "runfile", "none"), "accelerator": ("cuda", "cpu"),
        "driver_flavour": ("open", "proprietary"), "torch_index": ("pypi", "pytorch"),
    }.items():  # fmt: skip
        if key in pins and pins[key] not in values:
            yield f"{key} {pins[key]}"
    toolkits = {number(row["cuda"]) for row in T["toolkits"]["toolkits"]}
    toolkit = pins.get("cuda_toolkit", "none")
    if toolkit != "none" and not any(t[: len(number(toolkit))] == number(toolkit) for t in toolkits):
        yield f"cuda_toolkit {toolkit}"
    for entry in [pins, *(pins.get("models") or {}).values()]:
        torch = str(entry.get("torch") or "unpinned").partition("+")[0]
        if torch != "unpinned" and not any(number(r)[: len(number(torch))] == number(torch) for r in RELEASES):
            yield f"torch {torch}"


def same(asked: Any, have: Any) -> bool:
    """Whether a version is the one asked for, or begins with it."""
    return number(have)[: len(number(asked))] == number(asked)


def pins_hold(look: Look) -> Iterator[str]:
    """A pin that is not in the plan. A conflict does not excuse it: what was pinned stays in the plan."""
    asked, plan = look.pins, look.plan
    accelerator = asked.get("accelerator")
    possible = accelerator == "cpu" or (accelerator == "cuda" and plan["gpus"])
    if possible and plan["accelerator"] != accelerator:
        yield f"accelerator {plan['accelerator']}"
    if look.cuda and look.system == "Linux":
        if "driver_version" in asked:
            if plan["driver"]["version"] != asked["driver_version"]:
                yield f"driver {plan['driver']['version']}"
        elif "driver_branch" in asked and plan["driver"]["branch"] != int(asked["driver_branch"]):
            yield f"branch {plan['driver']['branch']}"
        if "driver_flavour" in asked and plan["driver"]["flavour"] != asked["driver_flavour"]:
            yield f"{plan['driver']['flavour']} modules"
        if asked.get("driver_method", "auto") not in ("auto", plan["driver"]["method"]):
            yield f"method {plan['driver']['method']}"
    if "cuda_toolkit" in asked:
        wanted, got = asked["cuda_toolkit"], plan["cuda_toolkit"]["version"]
        if (got is not None) if wanted == "none" else not same(wanted, got):
            yield f"toolkit {got}"
    stacks = [(m["python"], m["torch"], (asked.get("models") or {}).get(m["name"]) or {}) for m in plan["models"]]
    for python, torch, own in stacks or [(plan["python"], plan["torch"], {})]:
        yield from stack_pins(
            python, torch, {**asked, **{k: v for k, v in own.items() if k in PIN_NAMES}}, bool(plan["conflicts"])
        )
    for model in plan["models"]:
        own = (asked.get("models") or {}).get(model["name"]) or {}
        precision = own.get("precision") or asked.get("precision")
        if precision and model["precision"] != precision:
            yield f"{model['name']} at {model['precision']}"


def stack_pins(python: str | None, torch: dict[str, Any], asked: dict[str, Any], told: bool) -> Iterator[str]:
    if "python" in asked and python is not None and python != str(asked["python"]):
        yield f"Python {python}"
    if torch["requirement"] is None:
        if not told:
            yield "no wheel and no conflict"
        return
    wanted, _plus, local = str(asked.get("torch", "")).partition("+")
    if wanted and wanted != "unpinned" and not same(wanted, torch["version"]):
        yield f"torch {torch['version']}"
    if (local or "torch_variant" in asked) and torch["variant"] not in (local, asked.get("torch_variant")):
        yield f"variant {torch['variant']}"
    if asked.get("torch_index") in ("pypi", "pytorch") and torch["index"] != asked["torch_index"]:
        yield f"index {torch['index']}"


def locks_hold(look: Look) -> Iterator[str]:
    """A model's own lock and a pin that says otherwise; also two pins of the driver that disagree."""
    branch, version = look.pins.get("driver_branch"), look.pins.get("driver_version")
    if look.cuda and look.system == "Linux" and branch and version and int(branch) != number(version)[0]:
        yield f"branch {branch} and version {version}"
    for wanted, planned, _cards in look.models():
        torch, _plus, local = str(wanted.get("torch") or "").partition("+")
        if not planned["torch"]["requirement"]:
            continue
        if torch and number(planned["torch"]["version"]) != number(torch):
            yield f"torch {planned['torch']['version']} for a lock of {torch}"
        if local and planned["torch"]["variant"] != local:
            yield f"variant {planned['torch']['variant']} for a lock of {local}"
        supported = [wanted.get("python"), *wanted.get("pythons", [])]
        if wanted.get("python") and planned["python"] not in supported:
            yield f"Python {planned['python']} for a lock of {wanted['python']}"


# ----------------------------------------------------------------------------------------------------------- all of it

Rule = Callable[[Look], Iterator[str]]
# What a plan without a conflict keeps, and any other plan names.
CONFLICTS: list[tuple[str, Rule]] = [
    ("card-known", card_known), ("driver-drives-card", driver_drives_card), ("one-driver-for-all-cards", one_driver),
    ("module-flavour", module_flavour), ("kernel-limit", kernel_limit), ("driver-present", driver_present),
    ("mvc-floor", mvc_floor), ("mvc-floor", toolkit_floor), ("forward-compatibility", forward_compatibility),
    ("toolkit-architecture", toolkit_architecture), ("wheel-exists", wheel_exists), ("wheel-python", wheel_python),
    ("wheel-glibc", wheel_glibc), ("wheel-windows", wheel_windows), ("arch-coverage", arch_coverage),
    ("companions", companions), ("precision-memory", precision_memory), ("dtype-hardware", dtype_hardware),
    ("host-memory", host_memory), ("gpu-required", gpu_required), ("disk-space", disk_space),
    ("pin-understood", pin_understood), ("pins-hold", locks_hold),
]  # fmt: skip
# What every plan says in a warning.
WARNINGS: list[tuple[str, Rule]] = [
    ("gpu-state", gpu_state), ("driver-branch-status", driver_branch_status), ("toolkit-column", toolkit_column),
    ("kernel-limit", kernel_warning),
]  # fmt: skip
# What holds in every plan, whatever it says.
ALWAYS: list[tuple[str, Rule]] = [("pins-hold", pins_hold)]
# Rules that say the same thing from two sides: naming one of them is enough.
ALIKE = {
    "driver-drives-card": {"one-driver-for-all-cards", "card-known"},
    "module-flavour": {"one-driver-for-all-cards", "card-known"},
    "one-driver-for-all-cards": {"module-flavour", "driver-drives-card", "card-known"},
    # A wheel that is not there has neither a floor nor code.
    "mvc-floor": {"wheel-exists"},
    "arch-coverage": {"wheel-exists"},
}
# Rules whose conflict is never made up: where it is named, the tables find it broken too.
EXACT = {"kernel-limit", "disk-space", "driver-present", "card-known"}


def check_words(plan: dict[str, Any], rules: dict[str, str]) -> None:
    """Every conflict, warning and reason is complete and names a rule that there is."""
    assert plan["ok"] == (not plan["conflicts"])
    for conflict in plan["conflicts"]:
        assert conflict["rule"] in rules
        assert all(conflict[key] for key in ("found", "wanted", "remedy"))
    for warning in plan["warnings"]:
        assert warning["rule"] in rules and warning["message"]
    for reason in plan["reasons"]:
        assert reason["rule"] in rules
        assert all(reason[key] for key in ("choice", "because", "source"))


def check(plan: dict[str, Any], request: dict[str, Any]) -> Counter[str]:
    """Fail where a rule is broken and not named.

    :returns: the rules that this node broke, each of which the plan names.
    """
    look, told = Look(plan, request), Counter[str]()
    for rule, function in ALWAYS:
        broken = list(function(look))
        assert not broken, f"{rule}: {broken}"
    for rules, named in ((CONFLICTS, look.conflicts), (WARNINGS, look.warnings)):
        for rule, function in rules:
            broken = list(function(look))
            assert not broken or named & _names(rule), f"{rule}: {broken}"
            told[rule] += bool(broken)
    made_up = {rule for rule in look.conflicts & EXACT if not told[rule]}
    assert not made_up, f"{made_up} is named, and the tables find nothing wrong"
    return told


def _names(rule: str) -> set[str]:
    return {rule} | ALIKE.get(rule, set())
