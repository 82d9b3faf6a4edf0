# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every state of the catalogue is found in the facts that mean it, and in no others."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.llm.plugins.module_utils import gpu_gather, gpu_states

REPOSITORY = Path(__file__).resolve().parents[4]
OK = {"code": 0}
NOT_LOADED = {"code": 9, "text": "Driver Not Loaded"}
NO_LIBRARY = {"code": 12, "text": "NVML Shared Library Not Found"}


def node(gpu: dict[str, Any] | None = None, gpus: int = 1, **parts: dict[str, Any]) -> dict[str, Any]:
    """Facts of a node with healthy T4s and a loaded driver, with what a test changes."""
    healthy = {
        "pci_device_id": "1eb8",
        "pci_driver": "nvidia",
        "state": "ok",
        "source": "nvml",
        "persistence_mode": True,
        "throttle_reasons": [],
    }
    facts = gpu_gather.normalise_gpu_facts(
        {"gpus": [{**healthy, "pci_address": f"0000:{index + 1:02x}:00.0", **(gpu or {})} for index in range(gpus)]}
    )
    facts["driver"].update(
        loaded=True,
        loaded_version="535.261.03",
        library_version="535.261.03",
        versions_match=True,
        branch=535,
        flavour="proprietary",
        device_nodes=["/dev/nvidia0", "/dev/nvidiactl"],
        persistence_daemon=True,
        other_kernels=[],
    )
    facts["kernel"].update(release="6.1.0-28-amd64", reboot_pending=False, reboot_reasons=[])
    facts["nvswitch"].update(count=0, fabric_manager_installed=False, fabric_manager_running=False)
    facts["dkms"] = []
    for part, values in parts.items():
        facts[part] = values if isinstance(values, list) else {**facts[part], **values}
    for entry in facts["gpus"]:
        entry["state_detail"] = ""
    return facts


UNLOADED: dict[str, Any] = {
    "loaded": False,
    "loaded_version": None,
    "versions_match": None,
    "device_nodes": [],
    "branch": None,
    "flavour": None,
}
SILENT = {"state": "no_driver", "source": "pci", "pci_driver": None}
ON_DISK = {
    **UNLOADED,
    "module_path": "/lib/modules/k/updates/dkms/nvidia.ko",
    "module_version": "535.261.03",
    "branch": 535,
}

# state -> (facts, outcome)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "driver_timeout": (node(SILENT), {"code": None, "hung": True, "step": "nvmlInit", "waited_seconds": 60}),
    "driver_library_mismatch": (
        node(SILENT, driver={"loaded_version": "535.247.01", "versions_match": False}),
        {"code": 18, "text": "Driver/library version mismatch"},
    ),
    "permission_denied": (node(SILENT), {"code": 4, "text": "Insufficient Permissions"}),
    "operating_system_blocked": (node(SILENT), {"code": 17, "text": "blocked"}),
    "nvml_error": (node(SILENT), {"code": 999, "text": "Unknown Error"}),
    "gpu_lost": (node({"state": "gpu_lost"}), OK),
    "gpu_off_bus": (node({"state": "gpu_off_bus"}), OK),
    "gpu_needs_reset": (node({"state": "gpu_needs_reset"}), OK),
    "gpu_insufficient_power": (node({"state": "gpu_insufficient_power"}), OK),
    "gpu_interrupt_issue": (node({"state": "gpu_interrupt_issue"}), OK),
    "gpu_error": (node({"state": "gpu_error"}), OK),
    "gpu_missing": (node({"state": "gpu_missing"}), OK),
    # A P100 under branch 590.
    "gpu_unsupported_by_driver": (node({"state": "gpu_missing", "pci_device_id": "15f8"}, driver={"branch": 590}), OK),
    # A Blackwell card under proprietary modules.
    "module_wrong_flavour": (node({"state": "gpu_missing", "pci_device_id": "2bb1"}), OK),
    "device_nodes_missing": (node(SILENT, driver={"device_nodes": []}), NOT_LOADED),
    "library_missing": (node(SILENT, driver={"library_version": None, "versions_match": None}), NO_LIBRARY),
    "nouveau_bound": (node({**SILENT, "pci_driver": "nouveau"}, driver=UNLOADED), NOT_LOADED),
    "gpu_passed_through": (node({**SILENT, "pci_driver": "vfio-pci"}, driver=UNLOADED), NO_LIBRARY),
    "module_rejected": (
        node(SILENT, driver={**ON_DISK, "module_signed": False}, kernel={"secure_boot": True}),
        NOT_LOADED,
    ),
    "module_missing_for_kernel": (node(SILENT, driver={**UNLOADED, "other_kernels": ["6.1.0-27-amd64"]}), NOT_LOADED),
    "module_not_loaded": (node(SILENT, driver=ON_DISK), NOT_LOADED),
    "driver_not_installed": (node(SILENT, driver=UNLOADED), NO_LIBRARY),
    "no_gpu": (node(gpus=0, driver=UNLOADED), NO_LIBRARY),
    "fabric_manager_not_running": (node(nvswitch={"count": 4}), OK),
    "fabric_manager_mismatch": (
        node(nvswitch={"count": 4, "fabric_manager_running": True, "fabric_manager_version": "535.247.01"}),
        OK,
    ),
    "mig_without_instances": (node({"mig_enabled": True, "mig_pending": True, "mig_devices": []}), OK),
    "compute_prohibited": (node({"compute_mode": "prohibited"}), OK),
    "remapping_failed": (node({"remapped_rows_failed": True}), OK),
    "memory_errors": (node({"remapped_rows_pending": True}), OK),
    "thermal_slowdown": (node({"throttle_reasons": ["hw_thermal_slowdown"], "temperature_celsius": 93}), OK),
    "reboot_pending": (
        node(kernel={"reboot_pending": True, "reboot_reasons": ["kernel 6.1.0-29-amd64 is installed"]}),
        OK,
    ),
    "mig_change_pending": (node({"ecc_enabled": False, "ecc_pending": True}), OK),
    "persistence_off": (node({"persistence_mode": False}, driver={"persistence_daemon": False}), OK),
}


def concluded(facts: dict[str, Any], outcome: dict[str, Any]) -> dict[str, Any]:
    gpu_states.conclude(facts, outcome)
    return facts


def test_every_state_has_a_case() -> None:
    # gather_failed comes from gathering itself: test_gpu_gather.py has it.
    assert set(CASES) | {"gather_failed"} == set(gpu_states.CATALOGUE)


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_state_is_found_and_no_other(name: str) -> None:
    facts = concluded(*CASES[name])
    assert [state["name"] for state in facts["states"]] == [name]
    entry = gpu_states.CATALOGUE[name]
    (state,) = facts["states"]
    assert (state["severity"], state["remedy"]) == (entry["severity"], entry["remedy"])
    assert state["detail"]
    if entry["severity"] == "info":
        assert (facts["state"], facts["remedy"], facts["usable"]) == ("ok", "", True)
    else:
        assert (facts["state"], facts["detail"], facts["remedy"]) == (name, state["detail"], entry["remedy"])
        assert facts["usable"] is (entry["severity"] == "warning")


def test_a_healthy_node_has_no_state() -> None:
    facts = concluded(node(gpus=2), OK)
    assert (facts["state"], facts["states"], facts["usable"]) == ("ok", [], True)
    assert facts["detail"] == "2 x NVIDIA Tesla T4, driver 535.261.03"


def test_the_worst_comes_first() -> None:
    facts = node(
        {"throttle_reasons": ["sw_thermal_slowdown"]}, gpus=2, kernel={"reboot_pending": True, "reboot_reasons": ["x"]}
    )
    facts["gpus"][1]["state"] = "gpu_lost"
    concluded(facts, OK)
    assert [state["name"] for state in facts["states"]] == ["gpu_lost", "thermal_slowdown", "reboot_pending"]
    assert facts["usable"] is True


def test_both_versions_are_named_also_when_nvml_was_not_asked() -> None:
    facts = node(SILENT, driver={"loaded_version": "550.54.14", "versions_match": False})
    concluded(facts, {"code": None})
    assert facts["detail"] == "the loaded kernel module is 550.54.14, libnvidia-ml is 535.261.03"


def test_lockdown_rejects_an_unsigned_module_without_secure_boot() -> None:
    facts = node(
        SILENT, driver={**ON_DISK, "module_signed": False}, kernel={"secure_boot": None, "lockdown": "integrity"}
    )
    assert concluded(facts, NOT_LOADED)["state"] == "module_rejected"


def test_a_signed_module_is_only_not_loaded_under_secure_boot() -> None:
    facts = node(SILENT, driver={**ON_DISK, "module_signed": True}, kernel={"secure_boot": True})
    assert concluded(facts, NOT_LOADED)["state"] == "module_not_loaded"


def test_an_open_module_on_a_p100_is_the_reason_before_it_is_loaded() -> None:
    facts = node({**SILENT, "pci_device_id": "15f8"}, driver={**ON_DISK, "flavour": "open"})
    concluded(facts, NOT_LOADED)
    assert (facts["state"], facts["states"][0]["pci_address"]) == ("module_wrong_flavour", "0000:01:00.0")
    assert "needs proprietary modules, installed is open" in facts["detail"]


@pytest.mark.parametrize(
    ("loaded", "library", "expected"),
    [
        ("535.161.08", "535.161.08", True),
        ("535.161.08", "535.183.01", False),
        ("535.161.08", "535.161", True),
        ("535.161.08", "550.54.14", False),
        ("535.161.08", None, None),
        (None, "535.161.08", None),
        ("580.65", "580.65.06", True),
    ],
)
def test_versions(loaded: str | None, library: str | None, expected: bool | None) -> None:
    assert gpu_states.versions_match(loaded, library) is expected


def test_the_reference_page_is_the_catalogue() -> None:
    path = REPOSITORY / "tests/gpu/states_page.py"
    spec = importlib.util.spec_from_file_location("states_page", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), (
        "run PYTHONPATH=.collections tests/gpu/states_page.py"
    )
