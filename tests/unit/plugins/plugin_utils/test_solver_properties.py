# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for every plan. The checker reads the tables itself and knows nothing of the solver's own functions."""

from __future__ import annotations

import copy
import functools
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from ansible_collections.gpufleet.llm.plugins.plugin_utils import solver, solver_rules
from ansible_collections.gpufleet.llm.plugins.plugin_utils import tables as tables_module
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from .plan_checker import ALWAYS, ARCH, CONFLICTS, PRECISIONS, RELEASES, WARNINGS, T, check, check_words, number

RANK = {name: row["rank"] for name, row in PRECISIONS.items()} | {None: 0}
GIB = 2**30
examples = settings(max_examples=100, deadline=None, derandomize=True)


# -------------------------------------------------------------------------------------------------- what may be asked

DEVICES = [row["device"] for row in T["chips"]["devices"]] + ["1fff", "13ff", "0640", "zzzz"]
# What a working driver says of a card that no table lists.
ASKED = {"1fff": "8.9", "13ff": "6.1"}
# The nodes of a fleet are mostly of these kinds; drawing them more often makes more plans that have one thing wrong at most.
USUAL = ["15f8", "1c03", "1db4", "1eb8", "20b5", "2204", "2684", "2330", "2b85"]
DRIVERS = [
    "390.157", "450.51.05", "450.80.02", "470.256.02", "515.43.04", "520.61.05", "525.60.12", "525.60.13", "525.85.05",
    "525.147.05", "535.261.03", "550.163.01", "560.35.03", "570.124.06", "575.57.08", "580.65.06", "580.159.03",
    "590.48.01", "595.71.05", "610.43.02", "620.10.01",
]  # fmt: skip
# Their module compiles against a kernel before Linux 6.3 only, and against none of RHEL 9.5.
OLD_DRIVERS = ["390.157", "450.51.05", "450.80.02", "515.43.04", "520.61.05", "525.60.13", "525.85.05"]
# Before and after Linux 6.3, before and after what RHEL took over from it, and neither.
KERNELS = [
    "5.15.0-91-generic", "6.5.0-14-generic", "6.1.0-28-amd64", "5.14.0-503.11.1.el9_5.x86_64",
    "5.14.0-427.13.1.el9_4.x86_64", "4.18.0-553.el8_10.x86_64", "6.9.1-arch1-1", "",
]  # fmt: skip
PINS: dict[str, list[Any]] = {
    "driver_version": DRIVERS,
    "driver_branch": [410, 450, 515, 525, 550, "580", 595],
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
    "compute_capability": ["6.1", "8.9"],
    "models": [{"m": {"precision": "int4"}}, {"m": {"torch": "2.7.1"}, "n": {"python": "3.10"}}],
    "cuda_tolkit": ["12.0"],
}
DRIVER_PINS = ["driver_branch", "driver_method", "driver_version"]
# What only a slip of the hand makes: a number that YAML has read, a word that is none.
SLIPS = [{"python": 3.1}, {"torch_index": "conda"}, {"driver_flavour": "closed"}, {"models": {"m": {"gpu": "yes"}}}]


def pins(*without: str) -> st.SearchStrategy[dict[str, Any]]:
    """Some pins out of the pools."""
    pools = {k: st.sampled_from(v) for k, v in PINS.items() if k not in (*without, "cuda_tolkit")}
    return st.fixed_dictionaries({}, optional=pools)


@st.composite
def few_pins(draw: st.DrawFn) -> dict[str, Any]:
    """At most three pins: most plans then have one thing wrong at most. Those of the driver meet more often than by chance."""
    names = draw(st.sets(st.sampled_from(sorted(PINS)), max_size=3) | st.sets(st.sampled_from(DRIVER_PINS), max_size=2))
    alone = draw(st.sampled_from(["", "", "", "", "driver_version", "driver_version", "driver_method", "cuda_toolkit"]))
    if alone:
        old = {"driver_version": OLD_DRIVERS, "driver_method": ["none"], "cuda_toolkit": PINS["cuda_toolkit"]}
        return {alone: draw(st.sampled_from(old[alone]))}
    slip = draw(st.sampled_from([{}] * 12 + SLIPS))
    return {name: draw(st.sampled_from(PINS[name])) for name in sorted(names)} | slip


@st.composite
def models(draw: st.DrawFn) -> dict[str, Any]:
    """A model with or without a lock, a size, or figures of its own."""
    sizes = draw(st.sampled_from([5e8, 1.8e9, 6.2e9, 1.3e10, 7e10]))
    listed = draw(st.sets(st.sampled_from(["float16", "bfloat16", "float32", "int8", "int4"]), min_size=1))
    method = {
        "int8": draw(st.sampled_from(["bitsandbytes", "cpm_kernels", "gptq"])),
        "int4": draw(st.sampled_from(["gptq", "cpm_kernels", "awq"])),
    }
    bits = {"float16": 16, "bfloat16": 16, "float32": 32, "int8": 8, "int4": 4}
    stated, through_host = draw(st.booleans()), draw(st.booleans())
    precisions = {
        p: ({"method": method[p]} if p in method else {})
        | ({"memory_bytes": int(sizes * bits[p] / 8 * 1.2)} if stated else {})
        | ({"host_bytes": int(sizes * bits[p] / 8 * 1.4)} if through_host else {})
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
        "download_bytes": st.sampled_from([10**9, 10**10]), "disk_bytes": st.sampled_from([2 * 10**9, 2 * 10**10]),
        "embedding_parameters": st.just(10**8), "pythons": st.just(["3.9", "3.10", "3.11"]),
    }))  # fmt: skip
    if draw(st.booleans()):
        out |= {"layers": 28, "kv_heads": 2, "head_dim": 128, "context_tokens": 8192}
    return out


@st.composite
def requests(
    draw: st.DrawFn, asked: st.SearchStrategy[dict[str, Any]] | None = None, system: str | None = "Linux"
) -> dict[str, Any]:
    """A node: up to two cards, a driver or none, pins, up to two models."""
    cards = []
    for device in draw(st.lists(st.sampled_from(USUAL) | st.sampled_from(DEVICES), max_size=2)):
        total = draw(st.sampled_from([None, 6 * GIB, 15 * GIB, 80 * GIB]))
        free = None if total is None else draw(st.sampled_from([None, 0, total // 3, total]))
        cards.append({"pci_device": device, "memory_total_bytes": total, "memory_free_bytes": free})
        if device in ASKED and draw(st.booleans()):
            cards[-1]["compute_capability"] = ASKED[device]
    installed = draw(st.sampled_from([None, *DRIVERS]))
    system = system or draw(st.sampled_from(["Linux"] * 6 + ["Windows"]))
    flavour = draw(st.sampled_from([None, "open", "proprietary"])) if system == "Linux" else None
    return {
        "node": "n",
        "system": system,
        "os": {
            "distribution": "Ubuntu", "kernel": draw(st.sampled_from(KERNELS)),
            "machine": draw(st.sampled_from(["x86_64"] * 6 + ["aarch64"])),
            "glibc": draw(st.sampled_from(["2.17", "2.27", "2.35", None])),
        },
        "gpus": cards,
        "driver": {
            "version": installed, "flavour": flavour, "loaded": draw(st.booleans()),
        },
        "memory": {"available_bytes": draw(st.sampled_from([None, 4 * GIB, 8 * GIB, 64 * GIB]))},
        "disk": {"free_bytes": draw(st.sampled_from([None, 10**8, 5 * 10**9, 10**12]))},
        "pins": draw(few_pins() if asked is None else asked),
        "models": draw(st.lists(models(), max_size=2, unique_by=lambda m: m["name"])),
        "notes": draw(st.sampled_from([[], [], ["gpu_lost: GPU 0 is lost. Reboot."]])),
    }  # fmt: skip


# -------------------------------------------------------------------------------------------------------- properties


@examples
@given(requests(pins()))
def test_a_plan_never_violates_a_rule_that_it_states_and_never_overrides_a_pin(request: dict[str, Any]) -> None:
    plan = solver.solve(request)
    check_words(plan, solver_rules.RULES)
    check(plan, request)


@examples
@given(requests(pins("driver_version", "driver_branch", "driver_flavour", "driver_method", "torch", "torch_variant")))
def test_a_plan_with_less_pinned_is_checked_more_often(request: dict[str, Any]) -> None:
    check(solver.solve(request), request)


@functools.lru_cache(maxsize=1)
def pool() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Some hundred nodes of every kind and their plans, the same in every run."""
    found: list[dict[str, Any]] = []

    @settings(max_examples=900, deadline=None, derandomize=True, phases=[Phase.generate], database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(requests(system=None))
    def draw(request: dict[str, Any]) -> None:
        found.append(request)

    draw()
    return [(request, solver.solve(request)) for request in found]


def test_every_rule_has_its_checker() -> None:
    assert {rule for rule, _function in (*CONFLICTS, *WARNINGS, *ALWAYS)} == set(solver_rules.RULES)


# In at least so many of the 900 plans the rule bites: the plan names it, or gives up a precision for it. About half of what
# was seen, since a new row in a table makes other nodes.
FAIR_SHARE = {
    "kernel-limit": 25, "disk-space": 45, "host-memory": 25, "precision-memory": 75, "dtype-hardware": 30, "mvc-floor": 45,
    "driver-branch-status": 130, "driver-drives-card": 25, "one-driver-for-all-cards": 5, "module-flavour": 8,
    "driver-present": 4, "toolkit-architecture": 4, "toolkit-column": 10, "gpu-required": 35, "pin-understood": 40,
    "pins-hold": 10, "gpu-state": 90, "card-known": 8, "wheel-exists": 20, "wheel-python": 8, "wheel-glibc": 100,
    "wheel-windows": 4, "arch-coverage": 45,
}  # fmt: skip


def bites(plan: Mapping[str, Any]) -> set[str]:
    """Rules that decided something in a plan."""
    given_up = {row["violation"] for model in plan["models"] for row in model["considered"] if row["violation"]}
    return given_up | {entry["rule"] for entry in (*plan["conflicts"], *plan["warnings"])}


def test_the_plans_that_are_checked_really_reach_the_rules() -> None:
    bitten: Counter[str] = Counter()
    broken: Counter[str] = Counter()
    for request, plan in pool():
        check_words(plan, solver_rules.RULES)
        broken += check(plan, request)
        bitten.update(bites(plan))
    total, fine = len(pool()), sum(plan["ok"] for _request, plan in pool())
    print(
        f"{total} plans, {fine} without a conflict; the rule bites: {dict(bitten)}; broken by the node: {dict(broken)}"
    )
    assert total // 4 <= fine <= 3 * total // 4
    assert {rule: bitten[rule] for rule, share in FAIR_SHARE.items() if bitten[rule] < share} == {}
    # What a node can break whatever the solver does, the checker saw for itself, not only by the plan's words.
    assert all(
        broken[rule] >= FAIR_SHARE[rule] for rule in ("kernel-limit", "disk-space", "driver-present", "gpu-required")
    )


class Careless(solver._Solver):
    """The solver as it would be without one rule: nothing that breaks it is seen, said or avoided."""

    without = ""

    def _judge(self, *arguments: Any) -> solver.Build:
        build = super()._judge(*arguments)
        kept = tuple(v for v in build.violations if v.rule != self.without)
        return solver.dataclasses.replace(build, violations=kept)

    def _try(self, *arguments: Any) -> solver.Trial:
        trial = super()._try(*arguments)
        return solver.dataclasses.replace(
            trial, violations=tuple(v for v in trial.violations if v.rule != self.without)
        )

    def _hardware(self, *arguments: Any) -> solver_rules.Violation | None:
        found = super()._hardware(*arguments)
        return None if found is not None and found.rule == self.without else found

    def _candidate(self, *arguments: Any) -> dict[str, Any]:
        found = super()._candidate(*arguments)
        if self.without == "precision-memory" == getattr(found["violation"], "rule", None):
            found["violation"] = None
        return found

    def _conflict(self, violation: solver_rules.Violation, remedy: str) -> None:
        if violation.rule != self.without:
            super()._conflict(violation, remedy)

    def _warn(self, rule: str, message: str) -> None:
        if rule != self.without:
            super()._warn(rule, message)

    def _compat(self, driver: solver_rules.Driver, cuda: str) -> bool:
        if self.without == "forward-compatibility":
            return solver_rules.check_floor(self.tables, driver, cuda, "") is not None
        return super()._compat(driver, cuda)

    def _build_out(self, *arguments: Any) -> dict[str, Any]:
        out = super()._build_out(*arguments)
        if self.without == "companions":
            out["torchvision"] = T["torch"]["releases"][-1]["torchvision"]
        return out


@pytest.mark.parametrize("rule", solver_rules.RULES)
def test_a_solver_without_a_rule_is_caught(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Careless, "without", rule)

    def says(plan: Mapping[str, Any]) -> bool:
        return any(entry["rule"] == rule for entry in (*plan["conflicts"], *plan["warnings"]))

    tables = tables_module.load()
    for request, _plan in sorted(pool(), key=lambda pair: not says(pair[1])):
        plan = Careless(request, tables).solve()
        try:
            check(plan, request)
        except AssertionError as caught:
            # By that rule's own checker: another one may notice what the missing rule hid.
            if str(caught).startswith(f"{rule}:"):
                return
    pytest.fail(f"nobody noticed that the solver does not know {rule}")


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
