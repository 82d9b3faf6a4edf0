# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for every plan. The checker reads the tables itself and knows nothing of the solver's own functions."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.gpufleet.llm.plugins.plugin_utils import solver, solver_rules
from hypothesis import assume, given, settings
from hypothesis import strategies as st

DATA = Path(__file__).resolve().parents[4] / "plugins" / "plugin_utils" / "data"
T = {
    name: yaml.safe_load((DATA / f"{name}.yml").read_text(encoding="utf-8"))
    for name in ("architectures", "chips", "drivers", "precisions", "toolkits", "torch")
}
ARCH = {row["compute_capability"]: row for row in T["architectures"]["architectures"]}
RELEASES = {row["torch"]: row for row in T["torch"]["releases"]}
RANK = {row["precision"]: row["rank"] for row in T["precisions"]["precisions"]} | {None: 0}
GIB = 2**30
examples = settings(max_examples=100, deadline=None, derandomize=True)


# -------------------------------------------------------------------------------------------------- what may be asked

DEVICES = [row["device"] for row in T["chips"]["devices"]] + ["1fff", "13ff", "0640", "zzzz"]
DRIVERS = [
    "390.157", "450.51.05", "450.80.02", "470.256.02", "515.43.04", "520.61.05", "525.60.12", "525.60.13", "525.85.05",
    "535.261.03", "550.163.01", "560.35.03", "570.124.06", "575.57.08", "580.65.06", "580.159.03", "590.48.01",
    "595.71.05", "610.43.02", "620.10.01",
]  # fmt: skip
KERNELS = ["5.15.0-91-generic", "6.5.0-14-generic", "6.1.0-28-amd64", "5.14.0-503.11.1.el9_5.x86_64", "6.9.1-arch1-1"]
PINS: dict[str, list[Any]] = {
    "driver_version": DRIVERS,
    "driver_branch": [450, 525, 550, "580", 595],
    "driver_flavour": ["open", "proprietary"],
    "driver_method": ["auto", "runfile", "none"],
    "cuda_toolkit": ["none", "11.8", "12.0.1", "12.9", "13.0", "99.1"],
    "python": ["3.8", "3.10", "3.11", "3.14"],
    "torch": [*RELEASES, "2.1", "2.1.2+cu121", "unpinned", "9.9.9"],
    "torch_variant": ["cu118", "cu121", "cu126", "cu130", "cpu"],
    "torch_index": ["pypi", "pytorch"],
    "precision": ["float16", "bfloat16", "float32", "int8", "int4"],
    "forward_compatibility": [True, False],
    "accelerator": ["cuda", "cpu"],
}


def pins(*without: str) -> st.SearchStrategy[dict[str, Any]]:
    """Some pins out of the pools."""
    return st.fixed_dictionaries({}, optional={k: st.sampled_from(v) for k, v in PINS.items() if k not in without})


@st.composite
def models(draw: st.DrawFn) -> dict[str, Any]:
    """A model with or without a lock, a size, or figures of its own."""
    sizes = draw(st.sampled_from([5e8, 1.8e9, 6.2e9, 1.3e10, 7e10]))
    listed = draw(st.sets(st.sampled_from(["float16", "bfloat16", "float32", "int8", "int4"]), min_size=1))
    method = {"int8": draw(st.sampled_from(["bitsandbytes", "cpm_kernels", "gptq"])), "int4": "gptq"}
    bits = {"float16": 16, "bfloat16": 16, "float32": 32, "int8": 8, "int4": 4}
    stated = draw(st.booleans())
    precisions = {
        p: ({"method": method[p]} if p in method else {})
        | ({"memory_bytes": int(sizes * bits[p] / 8 * 1.2)} if stated else {})
        for p in sorted(listed)
    }
    out: dict[str, Any] = {
        "name": draw(st.sampled_from(["m", "n"])),
        "precisions": precisions,
        "parameters": int(sizes),
    }
    out |= draw(st.fixed_dictionaries({}, optional={
        "torch": st.sampled_from(["2.1.2", "2.7.1", "2.13.0+cpu"]), "python": st.sampled_from(["3.10", "3.11"]),
        "requires_gpu": st.just(True), "float16_safe": st.just(False), "needs_nvcc": st.just(True),
        "download_bytes": st.just(10**9),
    }))  # fmt: skip
    return out


@st.composite
def requests(draw: st.DrawFn, asked: st.SearchStrategy[dict[str, Any]] | None = None) -> dict[str, Any]:
    """A node: up to two cards, a driver or none, pins, up to two models."""
    cards = []
    for device in draw(st.lists(st.sampled_from(DEVICES), max_size=2)):
        total = draw(st.sampled_from([None, 6 * GIB, 15 * GIB, 80 * GIB]))
        free = None if total is None else draw(st.sampled_from([None, 0, total // 3, total]))
        cards.append({"pci_device": device, "memory_total_bytes": total, "memory_free_bytes": free})
    installed = draw(st.sampled_from([None, *DRIVERS]))
    return {
        "node": "n",
        "system": "Linux",
        "os": {
            "distribution": "Ubuntu", "kernel": draw(st.sampled_from(KERNELS)), "machine": "x86_64",
            "glibc": draw(st.sampled_from(["2.17", "2.27", "2.35", None])),
        },
        "gpus": cards,
        "driver": {
            "version": installed, "flavour": draw(st.sampled_from([None, "open", "proprietary"])), "loaded": draw(st.booleans()),
        },
        "memory": {"available_bytes": draw(st.sampled_from([None, 8 * GIB, 64 * GIB]))},
        "disk": {"free_bytes": draw(st.sampled_from([None, 10**8, 10**12]))},
        "pins": draw(pins() if asked is None else asked),
        "models": draw(st.lists(models(), max_size=2, unique_by=lambda m: m["name"])),
    }  # fmt: skip


# -------------------------------------------------------------------------------------------------------- the checker


def number(text: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", str(text).split("+")[0]))


def runs_on(cc: str, arch: list[str], ptx: str | None) -> str:
    mine = number(cc)
    if any(number(a)[0] == mine[0] and number(a)[1] <= mine[1] for a in arch):
        return "machine code"
    return "ptx" if ptx is not None and number(ptx) <= mine else ""


def floor_of(cuda: str) -> tuple[int, ...]:
    for row in T["drivers"]["floors"]:
        key = number(row["cuda"])
        if number(cuda)[: len(key)] == key:
            return number(row["linux"])
    raise AssertionError(f"no floor for CUDA {cuda}")


def reaches(driver: dict[str, Any], request: dict[str, Any], floor: tuple[int, ...]) -> bool:
    version = driver["version"] or (request["driver"]["version"] if driver["action"] == "keep" else None)
    return number(version) >= floor if version else driver["branch"] >= floor[0]


def check_torch(torch: dict[str, Any], python: str, plan: dict[str, Any], request: dict[str, Any]) -> None:
    row = RELEASES[torch["version"]]
    assert python in row["pythons"]
    assert (torch["torchvision"], torch["torchaudio"]) == (row["torchvision"], row["torchaudio"])
    glibc = request["os"]["glibc"]
    assert glibc is None or number(glibc) >= number(torch["glibc"])
    assert (torch["requirement"] == f"torch=={torch['version']}") == (torch["index"] == "pypi")
    if torch["variant"] == "cpu":
        return
    carried = {r["variant"] for r in T["torch"]["variants"] if number(r["torch"]) == number(torch["version"])[:2]}
    assert torch["variant"] == "cu" + row["pypi_cuda"].replace(".", "") or torch["index"] == "pytorch"
    assert torch["variant"] in carried
    if plan["accelerator"] == "cpu":
        return
    rows = [
        r for r in T["torch"]["arch_lists"]
        if r["variant"] == torch["variant"] and r["machine"] == "x86_64"
        and number(r["torch_from"]) <= number(torch["version"])[:2] <= number(r["torch_to"])
    ]  # fmt: skip
    assert len(rows) == 1
    lifted = plan["driver"]["forward_compatibility"] is not None
    for card in plan["gpus"]:
        for cc in card["possible_compute_capabilities"]:
            how = runs_on(cc, rows[0]["arch"], rows[0]["ptx"])
            assert how
            assert how == "machine code" or lifted or number(plan["driver"]["cuda_api"]) >= number(torch["cuda"])
    if lifted:
        assert all(card["datacenter"] for card in plan["gpus"])
    else:
        assert reaches(plan["driver"], request, floor_of(torch["cuda"]))


def check_driver(plan: dict[str, Any]) -> None:
    driver = plan["driver"]
    for card in plan["gpus"]:
        for cc in card["possible_compute_capabilities"]:
            row = ARCH[cc]
            assert driver["flavour"] in row["module_flavours"]
            assert row["last_branch"] is None or driver["branch"] <= row["last_branch"]
            if card["compute_capability"]:
                assert driver["branch"] >= (row["first_branch"] or 0)
    if driver["flavour"] == "open" and driver["action"] != "keep":
        assert driver["branch"] >= 515
    if driver["flavour"] == "proprietary" and driver["action"] != "keep":
        assert driver["branch"] < 620


def check_toolkit(plan: dict[str, Any], request: dict[str, Any]) -> None:
    version = plan["cuda_toolkit"]["version"]
    if version is None or plan["accelerator"] == "cpu":
        return
    assert version in {row["cuda"] for row in T["toolkits"]["toolkits"]}
    for card in plan["gpus"]:
        for cc in card["possible_compute_capabilities"]:
            assert number(ARCH[cc]["first_toolkit"]) <= number(version)[:2]
            assert ARCH[cc]["last_toolkit"] is None or number(version)[:2] <= number(ARCH[cc]["last_toolkit"])
    assert reaches(plan["driver"], request, floor_of(version))


def check_model(model: dict[str, Any], plan: dict[str, Any]) -> None:
    assert model["precision"] in RANK
    needed, available = model["memory_needed_bytes"], model["memory_available_bytes"]
    if needed is not None and available is not None:
        assert model["fits"] is True
        assert needed <= 0.95 * available
    if model["device"] == "cuda":
        cards = [c for c in plan["gpus"] if c["name"] == model["card"]]
        lowest = min(min(number(cc) for cc in c["possible_compute_capabilities"]) for c in cards)
        assert model["dtype"] != "bfloat16" or lowest >= (8, 0)
        assert model["dtype"] != "float16" or lowest >= (5, 3)
    else:
        assert model["dtype"] == "float32"


def check_pins(plan: dict[str, Any], asked: dict[str, Any]) -> None:
    card = plan["accelerator"] == "cuda"
    if "accelerator" in asked and (asked["accelerator"] == "cpu" or plan["gpus"]):
        assert plan["accelerator"] == asked["accelerator"]
    if card and "driver_version" in asked:
        assert plan["driver"]["version"] == asked["driver_version"]
    elif card and "driver_branch" in asked:
        assert plan["driver"]["branch"] == int(asked["driver_branch"])
    if card and "driver_flavour" in asked:
        assert plan["driver"]["flavour"] == asked["driver_flavour"]
    if card and asked.get("driver_method", "auto") != "auto":
        assert plan["driver"]["method"] == asked["driver_method"]
    if "cuda_toolkit" in asked:
        wanted = asked["cuda_toolkit"]
        got = plan["cuda_toolkit"]["version"]
        assert got is None if wanted == "none" else number(got)[: len(number(wanted))] == number(wanted)
    stacks = [(m["python"], m["torch"]) for m in plan["models"]] or [(plan["python"], plan["torch"])]
    for python, torch in stacks:
        check_stack_pins(python, torch, asked, plan)
    for model in plan["models"]:
        if "precision" in asked:
            assert model["precision"] == asked["precision"]


def check_stack_pins(python: str | None, torch: dict[str, Any], asked: dict[str, Any], plan: dict[str, Any]) -> None:
    if "python" in asked and python is not None:
        assert python == asked["python"]
    if torch["requirement"] is None:
        assert plan["conflicts"]
        return
    wanted, _plus, local = str(asked.get("torch", "")).partition("+")
    if wanted and wanted != "unpinned":
        assert number(torch["version"])[: len(number(wanted))] == number(wanted)
    if local or "torch_variant" in asked:
        assert torch["variant"] in (local, asked.get("torch_variant"))
    if "torch_index" in asked:
        assert torch["index"] == asked["torch_index"]


def check_words(plan: dict[str, Any]) -> None:
    assert plan["ok"] == (not plan["conflicts"])
    for conflict in plan["conflicts"]:
        assert conflict["rule"] in solver_rules.RULES
        assert all(conflict[key] for key in ("found", "wanted", "remedy"))
    for warning in plan["warnings"]:
        assert warning["rule"] in solver_rules.RULES and warning["message"]
    for reason in plan["reasons"]:
        assert reason["rule"] in solver_rules.RULES
        assert all(reason[key] for key in ("choice", "because", "source"))


def check(plan: dict[str, Any], request: dict[str, Any]) -> None:
    """Everything that a plan promises, by the tables alone."""
    check_words(plan)
    check_pins(plan, request["pins"])
    if not plan["ok"]:
        return
    check_toolkit(plan, request)
    if plan["accelerator"] == "cuda":
        check_driver(plan)
    stacks = [(m["python"], m["torch"], m["device"]) for m in plan["models"]]
    for python, torch, device in stacks or [(plan["python"], plan["torch"], plan["accelerator"])]:
        check_torch(torch, python, plan if device == "cuda" else {**plan, "accelerator": "cpu"}, request)
    for model in plan["models"]:
        check_model(model, plan)


# -------------------------------------------------------------------------------------------------------- properties


@examples
@given(requests())
def test_a_plan_never_violates_a_rule_that_it_states_and_never_overrides_a_pin(request: dict[str, Any]) -> None:
    check(solver.solve(request), request)


@examples
@given(requests(pins("driver_version", "driver_branch", "driver_flavour", "driver_method", "torch", "torch_variant")))
def test_a_plan_with_less_pinned_is_checked_more_often(request: dict[str, Any]) -> None:
    check(solver.solve(request), request)


@examples
@given(requests(), st.randoms(use_true_random=False))
def test_the_same_input_gives_the_same_bytes(request: dict[str, Any], random: Any) -> None:
    before = copy.deepcopy(request)
    first = json.dumps(solver.solve(request))
    assert request == before
    keys = list(request["pins"])
    random.shuffle(keys)
    again = {**request, "pins": {key: request["pins"][key] for key in keys}}
    assert json.dumps(solver.solve(again)) == first


@examples
@given(st.sampled_from([row["device"] for row in T["chips"]["devices"]]), st.sampled_from([None, *DRIVERS]))
def test_every_card_from_maxwell_on_has_a_plan_when_nothing_is_pinned(device: str, installed: str | None) -> None:
    request = {
        "node": "n", "os": {"kernel": "5.15.0-91-generic", "glibc": "2.35"}, "gpus": [{"pci_device": device}],
        "driver": {"version": installed, "loaded": bool(installed)},
    }  # fmt: skip
    plan = solver.solve(request)
    assert plan["ok"] == (number(plan["gpus"][0]["compute_capability"]) >= (3, 7))


# A "newer driver" is one of a higher version that drives the cards and compiles against the kernel. The order "not worse":
# no more conflicts, no model at a lower precision (float32, bfloat16 and float16 > int8 > int4 >
# none), and, where torch is left to the solver and the driver's action is the same, no older torch.


def quality(plan: dict[str, Any]) -> tuple[int, list[int]]:
    fits = [RANK[m["precision"]] if m["fits"] is not False else 0 for m in plan["models"]]
    return -len(plan["conflicts"]), fits


def not_worse(better: dict[str, Any], worse: dict[str, Any]) -> bool:
    a, b = quality(better), quality(worse)
    return a[0] >= b[0] and all(x >= y for x, y in zip(a[1], b[1]))


@examples
@given(requests(pins()), st.integers(0, 90), st.integers(0, 90))
def test_more_memory_never_makes_a_plan_worse(request: dict[str, Any], one: int, two: int) -> None:
    assume(request["gpus"])
    plans = []
    for gib in sorted((one, two)):
        cards = [{**card, "memory_total_bytes": 90 * GIB, "memory_free_bytes": gib * GIB} for card in request["gpus"]]
        memory = {"available_bytes": gib * GIB}
        plans.append(solver.solve({**request, "gpus": cards, "memory": memory}))
    assert not_worse(plans[1], plans[0])


def drives(plan: dict[str, Any], branch: int) -> bool:
    """Whether a branch drives every card of a plan, by the tables."""
    rows = [ARCH[cc] for card in plan["gpus"] for cc in card["possible_compute_capabilities"]]
    proprietary_only = any(row["module_flavours"] == ["proprietary"] for row in rows)
    return all(
        (row["first_branch"] or 0) <= branch <= (row["last_branch"] or 10**6) for row in rows
    ) and not (proprietary_only and branch >= 620)  # fmt: skip


def compiles(plan: dict[str, Any]) -> bool:
    """A late release of an old branch can know a kernel that an early one of a newer branch does not."""
    return "kernel-limit" not in {conflict["rule"] for conflict in plan["conflicts"]}


@examples
@given(
    requests(pins("driver_version", "driver_branch", "driver_flavour", "driver_method", "accelerator")),
    st.sampled_from(DRIVERS),
    st.sampled_from(DRIVERS),
)
def test_a_newer_pinned_driver_that_drives_the_cards_never_makes_a_plan_worse(
    request: dict[str, Any], one: str, two: str
) -> None:
    assume(request["gpus"])
    older, newer = sorted((one, two), key=number)
    request["driver"] = {"version": None, "flavour": None, "loaded": False}
    plans = [solver.solve({**request, "pins": {**request["pins"], "driver_version": d}}) for d in (older, newer)]
    assume(drives(plans[1], number(newer)[0]) and compiles(plans[1]))
    assert not_worse(plans[1], plans[0])
    if plans[0]["ok"] and "torch" not in request["pins"] and not any("torch" in m for m in request["models"]):
        assert number(plans[1]["torch"]["version"]) >= number(plans[0]["torch"]["version"])


@examples
@given(
    requests(pins("driver_version", "driver_branch", "driver_flavour", "accelerator")),
    st.sampled_from(DRIVERS),
    st.sampled_from(DRIVERS),
)
def test_a_newer_installed_driver_that_drives_the_cards_never_makes_a_plan_worse(
    request: dict[str, Any], one: str, two: str
) -> None:
    assume(request["gpus"])
    older, newer = sorted((one, two), key=number)
    plans = [
        solver.solve({**request, "driver": {"version": d, "flavour": None, "loaded": True}}) for d in (older, newer)
    ]
    assume(drives(plans[1], number(newer)[0]) and compiles(plans[1]))
    assert not_worse(plans[1], plans[0])
