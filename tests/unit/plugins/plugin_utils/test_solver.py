# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans of the cards, drivers and models that the project's founding documents name, and of each rule's edge."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.llm.plugins.plugin_utils import (
    catalog,
    estimator,
    solver,
    solver_input,
    solver_render,
    solver_rules,
    tables,
)

ROOT = Path(__file__).resolve().parents[4]
sys.path.insert(0, str(ROOT / "tools"))
import plans_of_the_seeds

SEEDS = plans_of_the_seeds.seeds()
T4, P100, GTX1060, RTX4090, H100, RTX5090, GTX1080 = "1eb8", "15f8", "1c03", "2684", "2331", "2b85", "1b80"
GIB = 2**30
CHAT = {
    "name": "chat", "parameters": 6243584000, "embedding_parameters": 532676608, "layers": 28, "kv_heads": 2,
    "head_dim": 128, "context_tokens": 8192,
    "precisions": {"float16": {}, "int8": {"method": "cpm_kernels"}, "int4": {"method": "cpm_kernels"}},
}  # fmt: skip


def plan(*devices: str, **request: Any) -> dict[str, Any]:
    """A plan of cards known by PCI id, on a node that is Ubuntu 22.04 unless said otherwise."""
    system = {"distribution": "Ubuntu", "kernel": "5.15.0-91-generic", "machine": "x86_64", "glibc": "2.35"}
    gpus = [{"pci_device": device} for device in devices]
    return solver.solve({"node": "n", "gpus": gpus, **request, "os": {**system, **request.get("os", {})}})


def rules(result: dict[str, Any]) -> set[str]:
    return {conflict["rule"] for conflict in result["conflicts"]}


def noted(result: dict[str, Any]) -> set[str]:
    return {warning["rule"] for warning in result["warnings"]}


# ------------------------------------------------------------------------------------------------------------- seeds


@pytest.mark.parametrize("entry", SEEDS["combinations"], ids=lambda e: e["title"])
def test_a_combination_of_the_seeds_works_or_is_refused_for_its_reason(entry: dict[str, Any]) -> None:
    result = plans_of_the_seeds.combination_plan(SEEDS, entry)
    assert result["ok"] is entry["ok"], result["conflicts"]
    if not entry["ok"]:
        assert rules(result) == {entry["rule"]}


def test_the_book_is_reproduced_to_the_letter() -> None:
    pins = {"driver_version": "525.85.05", "cuda_toolkit": "12.0.1", "python": "3.10", "torch": "2.1.2+cu121"}
    result = plan(T4, pins=pins)
    assert result["ok"]
    assert result["driver"] == {
        "action": "install", "branch": 525, "version": "525.85.05", "version_floor": "525.60.13", "flavour": "proprietary",
        "method": "runfile", "cuda_api": "12.0", "installed": None, "forward_compatibility": None,
        "sha256": "ea63b4253403b224bb7313a8977a920dfe9d203d661dd5f6fc26585a70179140",
    }  # fmt: skip
    assert result["cuda_toolkit"] == {"version": "12.0.1", "needed": True}
    assert result["torch"]["requirements"] == [
        "torch==2.1.2+cu121", "torchvision==0.16.2+cu121", "torchaudio==2.1.2+cu121",
    ]  # fmt: skip
    # 525.85.05 is older than the 525.85.12 of the toolkit's own table: a note, because the floor is 525.60.13.
    assert "toolkit-column" in noted(result)


def test_the_books_mirror_gives_the_cuda_11_7_build() -> None:
    result = plan(T4, pins={"driver_version": "525.85.05", "torch": "2.0.1", "torch_index": "pypi"})
    assert result["ok"]
    assert (result["torch"]["variant"], result["torch"]["requirements"]) == (
        "cu117", ["torch==2.0.1", "torchvision==0.15.2", "torchaudio==2.0.2"],
    )  # fmt: skip


def test_todays_unpinned_torch_on_the_books_driver_is_refused_with_two_ways_out() -> None:
    result = plan(T4, pins={"driver_version": "525.85.05", "torch": "unpinned"})
    (conflict,) = result["conflicts"]
    assert (conflict["rule"], conflict["found"]) == ("mvc-floor", "driver 525.85.05")
    assert "580.65.06" in conflict["wanted"]
    assert "driver 580.65.06 or newer" in conflict["remedy"]
    assert "+cu126" in conflict["remedy"]


def test_the_default_wheel_on_a_p100_is_refused_and_the_remedy_works() -> None:
    refused = plan(P100, pins={"torch": "2.8.0", "torch_index": "pypi"})
    assert rules(refused) == {"arch-coverage"}
    assert "torch==2.8.0+cu126" in refused["conflicts"][0]["remedy"]
    assert plan(P100, pins={"torch": "2.8.0+cu126"})["ok"]


def test_cuda_13_on_pascal_is_refused_and_the_remedy_works() -> None:
    refused = plan(P100, pins={"cuda_toolkit": "13.0"})
    assert rules(refused) == {"toolkit-architecture"}
    assert "12.9" in refused["conflicts"][0]["remedy"]
    assert plan(P100, pins={"cuda_toolkit": "12.9"})["ok"]


@pytest.mark.parametrize("card", SEEDS["cards"], ids=plans_of_the_seeds.title)
@pytest.mark.parametrize("model", plans_of_the_seeds.models(SEEDS), ids=lambda m: m["name"])
def test_every_card_with_every_model_has_a_plan_or_a_reason(card: dict[str, Any], model: dict[str, Any]) -> None:
    result = plans_of_the_seeds.card_plan(SEEDS, card, [model])
    (entry,) = result["models"]
    assert (entry["fits"] is True) is result["ok"]
    assert rules(result) <= {"precision-memory", "dtype-hardware", "gpu-required"}


@pytest.mark.parametrize(
    ("card", "model", "wanted"),
    [
        (T4, "chatglm3_6b", "float16"),  # the book: 13 GB, a 16 GB card
        ("2803", "chatglm3_6b", "int4"),  # the book's author: an 8 GB card, 4-bit load
        (T4, "Llama-2-7b-chat", "float16"),  # the book: 7B fits into 16 GB
        (GTX1060, "Qwen-1.8B-Chat", "float16"),  # the blog: 6 GB for 1.8B (bfloat16 there, impossible before Ampere)
        (RTX4090, "Qwen-7B-Chat", "bfloat16"),  # the blog: 24 GB for 7B
        (GTX1060, "Qwen-7B-Chat", None),
        ("2805", "gemma-2b-it", "bfloat16"),  # the Arch blog's RTX 4060 Ti
        (T4, "gemma-2b-it", "float32"),  # float16 can overflow, bfloat16 needs 8.0
        (T4, "Qwen-VL-Chat-Int4", "int4"),
        (GTX1060, "Qwen-VL-Chat-Int4", None),
    ],
)
def test_what_the_seeds_say_of_cards_and_models(card: str, model: str, wanted: str | None) -> None:
    entry = next(m for m in plans_of_the_seeds.models(SEEDS) if m["name"] == model)
    result = plan(card, models=[entry])["models"][0]
    assert (result["precision"] if result["fits"] else None) == wanted


def test_the_page_of_plans_is_up_to_date() -> None:
    text = (ROOT / "docs" / "reference" / "plans-of-the-seeds.md").read_text(encoding="utf-8")
    assert text == plans_of_the_seeds.page(), "run tools/plans_of_the_seeds.py"


# ------------------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("cc", "compiled", "ptx", "how"),
    [
        ("8.9", ["8.0", "8.6", "9.0"], None, "sm_86"),
        ("6.1", ["5.0", "6.0", "7.0"], None, "sm_60"),
        ("8.7", ["8.0", "8.6"], None, "sm_86"),
        ("6.0", ["7.0", "7.5"], None, None),
        ("8.0", ["8.6"], None, None),
        ("7.5", ["5.0", "6.0", "8.0"], None, None),
        ("12.1", ["10.0", "12.0"], None, "sm_120"),
        ("12.1", ["10.0"], "10.0", "compute_100 PTX"),
        ("9.0", ["8.0"], "12.0", None),
    ],
)
def test_code_runs_on_the_same_major_from_its_minor_on(
    cc: str, compiled: list[str], ptx: str | None, how: str | None
) -> None:
    assert solver_rules.covers(cc, compiled, ptx) == how


@pytest.mark.parametrize(
    ("driver", "torch", "ok"),
    [
        ("525.60.13", "2.1.2", True), ("525.60.12", "2.1.2", False), ("580.65.06", "2.11.0", True),
        ("580.65.05", "2.11.0", False), ("575.57.08", "2.10.0", True), ("450.80.02", "2.0.1", True),
        ("450.51.06", "2.0.1", False), ("440.33", "1.12.1", True), ("418.39", "1.12.1", False), ("620.1", "2.0.1", True),
    ],
)  # fmt: skip
def test_the_floor_of_minor_version_compatibility(driver: str, torch: str, ok: bool) -> None:
    result = plan(T4, pins={"driver_version": driver, "torch": torch, "torch_index": "pypi"})
    assert ("mvc-floor" in rules(result)) is not ok


def test_ptx_needs_a_driver_that_is_not_older() -> None:
    # No wheel of the tables serves a card by PTX alone: one is made up that does.
    data = tables.load()
    rows = [
        {**row, "arch": ["9.0"], "ptx": "10.0"} if row["variant"] == "cu129" else row
        for row in data.torch["arch_lists"]
    ]
    made_up = dataclasses.replace(data, torch={**data.torch, "arch_lists": rows})
    request = {"gpus": [{"pci_device": RTX5090}], "os": {"glibc": "2.35"}}
    pins = {"torch": "2.8.0+cu129"}
    refused = solver.solve({**request, "pins": {**pins, "driver_branch": 570}}, made_up)
    assert rules(refused) == {"arch-coverage"}
    assert "PTX" in refused["conflicts"][0]["wanted"]
    assert solver.solve({**request, "pins": {**pins, "driver_branch": 575}}, made_up)["ok"]


@pytest.mark.parametrize(
    ("device", "toolkit", "ok"), [(RTX5090, "12.6", False), (RTX5090, "12.8", True), (T4, "9.2", False)]
)
def test_a_toolkit_older_than_the_card_is_refused(device: str, toolkit: str, ok: bool) -> None:
    assert plan(device, pins={"cuda_toolkit": toolkit})["ok"] is ok


@pytest.mark.parametrize("cc", ["5.0", "5.2", "5.3", "6.0", "6.1", "6.2", "7.0", "7.2"])
def test_maxwell_to_volta_end_at_branch_580_and_cuda_12_9(cc: str) -> None:
    row = tables.load().architecture(cc)
    assert row is not None
    assert (row["last_branch"], row["last_toolkit"], row["module_flavours"]) == (580, "12.9", ["proprietary"])


def test_a_machine_without_known_wheels_is_told() -> None:
    assert rules(plan(T4, os={"machine": "ppc64le"})) == {"wheel-exists"}
    arm = plan("2342", os={"machine": "aarch64"})
    assert arm["ok"]
    assert (arm["torch"]["index"], arm["torch"]["variant"]) == ("pytorch", "cu130")


def test_forward_compatibility_lifts_data_centre_cards_only() -> None:
    pins = {"driver_version": "535.261.03", "torch": "2.15.0", "forward_compatibility": True}
    lifted = plan(T4, pins=pins)
    assert lifted["ok"]
    assert lifted["driver"]["forward_compatibility"] == {
        "package": "cuda-compat-13-2", "library_path": "/usr/local/cuda-13.2/compat",
    }  # fmt: skip
    assert rules(plan(RTX4090, pins=pins)) == {"mvc-floor"}
    assert rules(plan(T4, pins={**pins, "driver_version": "525.85.05"})) == {"mvc-floor"}
    assert rules(plan(T4, pins={**pins, "forward_compatibility": False})) == {"mvc-floor"}


@pytest.mark.parametrize(
    ("device", "branch", "flavour"),
    [
        (P100, 580, "proprietary"),
        (GTX1060, 580, "proprietary"),
        (T4, 580, "open"),
        (RTX5090, 580, "open"),
        (H100, 580, "open"),
    ],
)
def test_branch_and_flavour_of_a_card(device: str, branch: int, flavour: str) -> None:
    result = plan(device)
    assert (result["driver"]["branch"], result["driver"]["flavour"]) == (branch, flavour)


@pytest.mark.parametrize(
    ("device", "pins", "rule"),
    [
        (P100, {"driver_branch": 590}, "driver-drives-card"),
        (P100, {"driver_flavour": "open"}, "module-flavour"),
        (RTX5090, {"driver_flavour": "proprietary"}, "module-flavour"),
        (RTX5090, {"driver_branch": 560}, "driver-drives-card"),
        (T4, {"driver_branch": 620, "driver_flavour": "proprietary"}, "module-flavour"),
        (T4, {"driver_branch": 510, "driver_flavour": "open"}, "module-flavour"),
        (T4, {"python": "3.7", "torch": "2.1.2"}, "wheel-python"),
        (T4, {"driver_method": "none"}, "driver-present"),
        (T4, {"driver_version": "525.85.05", "driver_branch": 580}, "pins-hold"),
        (T4, {"torch": "9.9.9"}, "pin-understood"),
        (T4, {"cuda_toolkit": "99"}, "pin-understood"),
        (T4, {"colour": "red"}, "pin-understood"),
        (T4, {"driver_version": "newest"}, "pin-understood"),
    ],
)
def test_a_pin_that_cannot_be_is_a_conflict(device: str, pins: dict[str, Any], rule: str) -> None:
    assert rule in rules(plan(device, pins=pins))


def test_a_version_that_yaml_made_a_number_is_told() -> None:
    result = plan(T4, pins={"python": 3.10})
    assert rules(result) >= {"pin-understood"}
    assert "quotes" in result["conflicts"][0]["remedy"]


def test_two_cards_that_no_driver_drives_together() -> None:
    result = plan(P100, RTX5090)
    assert "one-driver-for-all-cards" in rules(result)
    together = plan(P100, T4)
    assert together["ok"]
    assert together["driver"]["flavour"] == "proprietary"


@pytest.mark.parametrize(("device", "flavour"), [("1fff", "open"), ("13ff", "proprietary")])
def test_of_an_unlisted_card_the_generation_decides(device: str, flavour: str) -> None:
    result = plan(device)
    assert result["ok"]
    assert result["driver"]["flavour"] == flavour
    assert result["gpus"][0]["compute_capability"] is None


def test_a_card_out_of_every_range_is_a_conflict_until_it_is_pinned() -> None:
    assert rules(plan("zzzz")) >= {"card-known"}
    assert plan("zzzz", pins={"compute_capability": "8.6"})["ok"]


def test_an_installed_driver_is_kept_while_it_does() -> None:
    kept = plan(T4, driver={"version": "525.85.05", "flavour": "proprietary", "loaded": True})
    assert (kept["driver"]["action"], kept["driver"]["method"], kept["torch"]["variant"]) == ("keep", "none", "cu126")
    assert "driver-branch-status" in noted(kept)
    needs = {**CHAT, "torch": "2.15.0", "torch_index": "pypi"}
    raised = plan(T4, driver={"version": "525.85.05", "flavour": "proprietary", "loaded": True}, models=[needs])
    assert raised["ok"]
    assert (raised["driver"]["action"], raised["driver"]["branch"]) == ("upgrade", 580)
    lowered = plan(P100, driver={"version": "590.48.01", "flavour": "open", "loaded": False})
    assert (lowered["driver"]["action"], lowered["driver"]["branch"]) == ("downgrade", 580)
    other = plan(RTX5090, driver={"version": "580.65.06", "flavour": "proprietary", "loaded": False})
    assert (other["driver"]["action"], other["driver"]["flavour"]) == ("reinstall", "open")


def test_the_runfile_that_a_pinned_branch_means_must_compile_too() -> None:
    result = plan(T4, os={"kernel": "6.5.0-14-generic"}, pins={"driver_branch": 525, "driver_method": "runfile"})
    assert result["driver"]["version"] == "525.85.05"
    assert rules(result) == {"kernel-limit"}


def test_a_branch_of_which_no_release_compiles_is_refused_without_a_version() -> None:
    new, old = {"kernel": "6.5.0-14-generic"}, {"kernel": "5.15.0-91-generic"}
    pins = {"driver_branch": 450, "torch": "2.0.1", "python": "3.10"}
    assert rules(plan(T4, os=new, pins=pins)) == {"kernel-limit"}
    assert rules(plan(T4, os=old, pins=pins)) == set()
    # Of 525 only releases up to 525.85.05 are limited; the branch stands for its newest.
    assert rules(plan(T4, os=new, pins={"driver_branch": 525})) == set()


def test_an_installed_driver_of_unknown_flavour_does_not_drive_cards_that_share_none() -> None:
    volta_and_blackwell = plan("1db4", RTX5090, driver={"version": "580.65.06", "flavour": None, "loaded": True})
    assert "one-driver-for-all-cards" in rules(volta_and_blackwell)


def test_a_running_driver_needs_no_kernel_check() -> None:
    hwe = {"kernel": "6.5.0-14-generic"}
    running = {"version": "525.85.05", "flavour": "proprietary", "loaded": True}
    assert plan(T4, os=hwe, driver=running, pins={"driver_version": "525.85.05"})["ok"]
    assert rules(plan(T4, os=hwe, pins={"driver_version": "525.85.05"})) == {"kernel-limit"}


@pytest.mark.parametrize(
    ("glibc", "ok", "torch"), [("2.17", True, "2.6.0"), ("2.27", True, "2.6.0"), ("2.28", True, "2.15.0")]
)
def test_an_old_c_library_gets_the_last_wheel_that_runs_on_it(glibc: str, ok: bool, torch: str) -> None:
    result = plan(T4, os={"glibc": glibc})
    assert (result["ok"], result["torch"]["version"]) == (ok, torch)
    assert rules(plan(T4, os={"glibc": "2.27"}, pins={"torch": "2.7.1"})) == {"wheel-glibc"}


def test_bfloat16_only_from_8_0() -> None:
    both = {**CHAT, "precisions": {"bfloat16": {}, "float16": {}}}
    assert plan(T4, models=[both])["models"][0]["precision"] == "float16"
    assert plan(RTX4090, models=[both])["models"][0]["precision"] == "bfloat16"
    assert rules(plan(T4, models=[both], pins={"precision": "bfloat16"})) == {"dtype-hardware"}


def test_a_nominal_size_gets_its_tolerance() -> None:
    fits = {"name": "m", "precisions": {"float16": {"memory_bytes": int(16 * GIB * 0.93 * 0.95) - 10}}}
    short = {"name": "m", "precisions": {"float16": {"memory_bytes": int(16 * GIB * 0.93 * 0.95) + 10**7}}}
    assert plan(T4, models=[fits])["ok"]
    assert rules(plan(T4, models=[short])) == {"precision-memory"}


def test_free_memory_decides_not_the_total() -> None:
    card = {"pci_device": T4, "memory_total_bytes": 15 * GIB, "memory_free_bytes": 7 * GIB}
    result = solver.solve({"gpus": [card], "os": {"glibc": "2.35"}, "models": [CHAT]})
    assert result["models"][0]["precision"] == "int4"
    busy = {**card, "memory_free_bytes": 1 * GIB}
    refused = solver.solve({"gpus": [busy], "os": {"glibc": "2.35"}, "models": [CHAT]})
    assert "stop what uses" in refused["conflicts"][0]["remedy"].lower()


def test_quantising_while_loading_needs_the_nodes_own_memory() -> None:
    result = plan("2803", models=[CHAT], memory={"available_bytes": 8 * GIB})
    assert rules(result) == {"host-memory"}
    assert plan("2803", models=[CHAT], memory={"available_bytes": 16 * GIB})["models"][0]["precision"] == "int4"


def test_a_node_without_a_card_plans_for_its_processor() -> None:
    result = plan(models=[CHAT], memory={"available_bytes": 64 * GIB})
    assert result["ok"]
    assert (result["accelerator"], result["driver"]["action"], result["driver"]["branch"]) == ("cpu", "none", None)
    assert (result["models"][0]["precision"], result["torch"]["requirement"]) == ("float32", "torch==2.15.0+cpu")
    assert rules(plan(models=[CHAT], memory={"available_bytes": 8 * GIB})) == {"precision-memory"}
    assert rules(plan(models=[{**CHAT, "requires_gpu": True}])) == {"gpu-required"}


def test_a_cpu_wheel_in_a_models_lock_runs_on_the_processor_of_a_node_with_a_card() -> None:
    result = plan(T4, models=[{"name": "tiny", "torch": "2.13.0+cpu", "precisions": {"float32": {}}}])
    assert result["ok"]
    assert (result["models"][0]["device"], result["driver"]["branch"]) == ("cpu", 580)


def test_a_pin_against_a_models_own_lock_is_a_conflict() -> None:
    locked = {**CHAT, "torch": "2.1.2", "python": "3.10"}
    assert rules(plan(T4, models=[locked], pins={"torch": "2.2.0"})) == {"pins-hold"}
    assert (
        plan(T4, models=[locked], pins={"models": {"chat": {"precision": "int4"}}})["models"][0]["precision"] == "int4"
    )


def test_bytes_are_unknown_unless_every_part_is_known() -> None:
    result = plan(T4, models=[{**CHAT, "download_bytes": 5}])
    assert result["download_bytes"] is None
    assert result["download"]["known_bytes"] == 5
    assert any(name.startswith("torch ") for name in result["download"]["unknown"])
    full = plan(T4, models=[{**CHAT, "download_bytes": 5 * 10**9}], disk={"free_bytes": 10**9})
    assert rules(full) == {"disk-space"}


def test_a_model_that_compiles_gets_the_toolkit_of_its_wheel() -> None:
    result = plan(T4, models=[{**CHAT, "torch": "2.1.2", "needs_nvcc": True}])
    assert result["cuda_toolkit"] == {"version": "12.1.1", "needed": True}


# --------------------------------------------------------------------------------------------------------- estimator


@pytest.mark.parametrize(("bits", "precision", "gigabytes"), [(16, "float16", 13), (4, "int4", 5)])
def test_the_estimate_reproduces_the_books_table(bits: int, precision: str, gigabytes: int) -> None:
    constants = tables.load().precisions["estimator"]
    need = estimator.need(CHAT, precision, bits, constants)
    assert need is not None
    assert need.low_bytes / 1e9 == pytest.approx(gigabytes, abs=0.7)
    assert need.high_bytes - need.low_bytes == 600_000_000


def test_the_key_value_cache_of_a_context() -> None:
    assert estimator.kv_bytes(CHAT, 2) == 2 * 28 * 2 * 128 * 8192 * 2
    assert estimator.need({"name": "m"}, "float16", 16, tables.load().precisions["estimator"]) is None


# ------------------------------------------------------------------------------------------------ facts and catalogue


def test_facts_of_a_node_become_a_request() -> None:
    facts = {
        "distribution": "Rocky", "os_family": "RedHat", "distribution_version": "9.4", "architecture": "x86_64",
        "kernel": "5.14.0-427", "memory_mb": {"nocache": {"free": 1000}},
        "mounts": [{"mount": "/", "size_available": 5}, {"mount": "/srv", "size_available": 7}],
        "gpufleet_gpu": {
            "gpus": [{
                "pci_device_id": "2331", "name": "H100", "compute_capability": "9.0", "mig_enabled": True,
                "memory_total_bytes": 80 * GIB, "memory_free_bytes": 80 * GIB,
                "mig_devices": [{"name": "1g.10gb", "memory_total_bytes": 10 * GIB, "memory_free_bytes": 9 * GIB}],
            }],
            "driver": {"loaded": True, "loaded_version": "580.65.06", "flavour": "open", "cuda_version": "13.0"},
            "kernel": {"release": "5.14.0-427.el9"}, "toolkits": [{"version": "12.0.1"}],
            "states": [{"name": "no_gpu", "severity": "info", "detail": "d", "remedy": "r"},
                       {"name": "secure_boot", "severity": "warning", "detail": "d.", "remedy": "r"}],
        },
    }  # fmt: skip
    request = solver_input.request("n", facts, {"a": 1}, [], tables.load(), models_path="/srv/models")
    assert request["os"]["glibc"] == "2.34"
    assert request["os"]["kernel"] == "5.14.0-427.el9"
    assert request["gpus"] == [{
        "pci_device": "2331", "name": "H100 MIG 1g.10gb", "chip": "", "compute_capability": "9.0",
        "memory_total_bytes": 10 * GIB, "memory_free_bytes": 9 * GIB,
    }]  # fmt: skip
    assert request["driver"] == {"version": "580.65.06", "flavour": "open", "loaded": True, "cuda_api": "13.0"}
    assert (request["memory"]["available_bytes"], request["disk"], request["toolkits"]) == (
        1000 * 2**20, {"free_bytes": 7}, ["12.0.1"],
    )  # fmt: skip
    assert request["notes"] == ["secure_boot: d. r"]
    total = solver_input.request("n", facts, {}, [], tables.load(), memory_basis="total")
    assert total["gpus"][0]["memory_free_bytes"] is None


def test_every_model_of_the_catalogue_can_be_planned() -> None:
    folder = str(ROOT / "roles" / "llm_model" / "catalog")
    for name in catalog.names([folder]):
        (entry,) = catalog.wanted_models([name], [folder])
        result = plan("20b2", models=[solver_input.model(entry)])
        assert result["ok"], (name, result["conflicts"])
        assert result["models"][0]["fits"] or result["models"][0]["device"] == "cpu"


def test_a_lock_without_a_local_version_fixes_the_python_index() -> None:
    folder = str(ROOT / "roles" / "llm_model" / "catalog")
    (entry,) = catalog.wanted_models(["chatglm3_6b"], [folder])
    model = solver_input.model(entry)
    assert (model["torch_index"], model["precisions"]["int4"]["method"], model["preferred"]) == (
        "pypi",
        "cpm_kernels",
        "float16",
    )


# ------------------------------------------------------------------------------------------------------------ tables


@pytest.mark.parametrize("name", tables.NAMES)
def test_every_row_has_a_known_source_and_says_whether_it_was_verified(name: str) -> None:
    data = getattr(tables.load(), name)
    assert data["as_of"]
    rows = [row for value in data.values() if isinstance(value, list) for row in value if isinstance(row, dict)]
    assert rows
    for row in rows:
        assert row["source"] in data["sources"], row
        assert isinstance(row["verified"], bool), row
        assert row["verified"] is (row["source"] != "known") or row["source"] != "known", row


def test_the_nodes_chip_table_says_the_same() -> None:
    from ansible_collections.gpufleet.llm.plugins.module_utils import gpu_chips

    for chip, (_architecture, cc) in gpu_chips.CHIPS.items():
        row = tables.load().chip(chip)
        if row is not None:
            assert row["compute_capability"] == cc, chip


def test_every_variant_has_code_and_every_release_is_on_its_own_index() -> None:
    data = tables.load()
    for row in data.torch["variants"]:
        assert data.arch_list(row["variant"], row["torch"], "x86_64") is not None, row
    for row in data.torch["releases"]:
        variant = tables.cuda_variant(row["pypi_cuda"])
        assert variant in {v["variant"] for v in data.torch_variants(row["torch"])}, row


def test_numbers_compare_as_numbers() -> None:
    assert tables.version("2.10.0") > tables.version("2.9.1")
    assert tables.version("525.85.05") < tables.version("525.85.12")
    assert tables.variant_cuda("cu121") == "12.1" and tables.cuda_variant("13.0") == "cu130"


# ------------------------------------------------------------------------------------------------------------- words


def test_the_table_groups_nodes_that_say_the_same() -> None:
    plans = [{**plan(T4), "node": f"gpu-{n}"} for n in range(5)]
    text = solver_render.table(plans, missing=["gone"])
    assert "gpu-0, gpu-1, gpu-2 and 2 more" in text
    assert text.count("Tesla T4") == 1
    assert "gone: no plan" in text
    assert "5 nodes planned; 5 ready; 1 without a plan" in text


def test_the_table_says_conflict_remedy_and_reasons() -> None:
    refused = plan(P100, pins={"cuda_toolkit": "13.0"})
    assert "CONFLICT" in solver_render.table([refused])
    assert "because" not in solver_render.table([refused])
    assert "[toolkit-architecture;" in solver_render.table([refused], reasons=True)


def test_json_is_stable() -> None:
    one, two = {**plan(T4), "node": "a"}, {**plan(P100), "node": "b"}
    assert solver_render.as_json([one, two]) == solver_render.as_json([two, one])
    assert json.loads(solver_render.as_json([one, two]))["summary"]["nodes"] == 2


def test_the_page_about_the_solver_lists_every_rule_and_every_pin() -> None:
    text = (ROOT / "docs" / "explanation" / "solver.md").read_text(encoding="utf-8")
    for rule, words in solver_rules.RULES.items():
        assert f"| `{rule}` | {words} |" in text
    for pin in solver.PINS:
        assert f"`{pin}`" in text
