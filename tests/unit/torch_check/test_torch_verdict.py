# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The verdict, from findings as a node with a card returns them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from ansible_collections.gpufleet.llm.plugins.plugin_utils import torch_verdict
from hypothesis import given, settings
from hypothesis import strategies as st

ARCH_CU121 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]


def findings(**changes: Any) -> dict[str, Any]:
    """A Tesla T4 with driver 535 and torch 2.1.2+cu121 that computes; *changes* are dotted paths with ``__``."""
    raw: dict[str, Any] = {
        "device": "auto",
        "timeout_seconds": 180,
        "python": "/opt/env/bin/python",
        "problem": "",
        "cuda_visible_devices": None,
        "closed_device_files": [],
        "probe": {
            "rc": 0, "stdout": "", "stderr": "", "seconds": 6.5,
            "rows": [
                {"stage": "python", "version": "3.10.14", "prefix": "/opt/env", "sites": []},
                {"stage": "found", "torch_path": "/opt/env/lib/python3.10/site-packages/torch", "version": "2.1.2+cu121",
                 "cuda": "12.1"},
                {"stage": "torch", "version": "2.1.2+cu121", "cuda": "12.1", "cudnn": 8902, "arch_list": ARCH_CU121,
                 "build": "cuda"},
                {"stage": "device", "device": "cuda", "available": True, "warnings": [],
                 "cards": [{"name": "Tesla T4", "compute_capability": "7.5"}]},
                *[{"stage": "step", "step": step, "differs": ""} for step in ("add", "matmul", "conv2d", "sparse")],
                {"stage": "done", "libraries": [], "warnings": []},
            ],
        },
        "libraries": {"shadowed": [], "unresolved": [], "missing": [], "loaded": [], "foreign_loaded": [],
                      "conf_directories": []},
        "gpu": {
            "state": "ok", "detail": "", "remedy": "", "usable": True,
            "driver": {"loaded": True, "loaded_version": "535.161.08", "library_version": "535.161.08",
                       "library_path": "/usr/lib/libnvidia-ml.so.535.161.08", "versions_match": True, "cuda_version": "12.2"},
            "gpus": [{"name": "Tesla T4", "compute_capability": "7.5", "pci_device_id": "1eb8"}],
        },
    }  # fmt: skip
    for path, value in changes.items():
        place = raw
        *folders, last = path.split("__")
        for folder in folders:
            place = place[folder]
        place[last] = value
    return raw


def stopped(raw: dict[str, Any], step: str, error: str, device: str = "cuda", **driver: Any) -> dict[str, Any]:
    """The same, ended at *step* with *error*."""
    rows = raw["probe"]["rows"]
    keep = {"import": 2, "init": 3, "add": 4, "matmul": 5, "conv2d": 6, "sparse": 7}[step]
    raw["probe"]["rows"] = [*rows[:keep], {"stage": "error", "step": step, "error": error, "warnings": []}]
    for row in raw["probe"]["rows"]:
        if row["stage"] == "device":
            row["device"] = device
    raw["probe"]["rc"] = 3
    raw["gpu"]["driver"].update(driver)
    return raw


def fell_to_cpu(raw: dict[str, Any], warning: str = "") -> dict[str, Any]:
    """The same, computed on the CPU because PyTorch saw no card."""
    for row in raw["probe"]["rows"]:
        if row["stage"] == "device":
            row.update(device="cpu", available=False, cards=[], warnings=[warning] if warning else [])
    return raw


def test_it_computes() -> None:
    result = torch_verdict.decide(findings())
    assert (result["verdict"], result["cause"], result["remedy"]) == ("ok", "", "")
    assert "on the card (Tesla T4)" in result["explanation"]
    assert all(one["ok"] for one in result["checks"])


def test_e2_the_driver_is_too_old_with_both_versions() -> None:
    warning = "CUDA initialization: The NVIDIA driver on your system is too old (found version 12000)."
    raw = fell_to_cpu(findings(gpu__driver__cuda_version="12.0"), warning)
    for row in raw["probe"]["rows"]:
        if row["stage"] in ("found", "torch"):
            row.update(version="2.15.0", cuda="13.2")
    result = torch_verdict.decide(raw)
    assert (result["verdict"], result["cause"]) == ("failed", "E2")
    assert "CUDA 12.0" in result["explanation"]
    assert "CUDA 13.2" in result["explanation"]
    assert "too old" in result["matched"]
    assert {one["name"]: one["ok"] for one in result["checks"]}["driver_api"] is False


def test_a_higher_minor_of_the_same_major_is_fine() -> None:
    result = torch_verdict.decide(findings(gpu__driver__cuda_version="12.0"))
    assert result["verdict"] == "ok"
    assert {one["name"]: one["ok"] for one in result["checks"]}["driver_api"] is True


def test_e4_the_wheel_has_no_code_for_the_card() -> None:
    raw = findings(gpu__gpus=[{"name": "Tesla P100-PCIE-16GB", "compute_capability": "6.0"}])
    raw["probe"]["rows"][2]["arch_list"] = ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
    raw["probe"]["rows"][3]["cards"] = [{"name": "Tesla P100-PCIE-16GB", "compute_capability": "6.0"}]
    raw = stopped(raw, "add", "RuntimeError: CUDA error: no kernel image is available for execution on the device")
    result = torch_verdict.decide(raw)
    assert (result["verdict"], result["cause"]) == ("failed", "E4")
    assert "Tesla P100-PCIE-16GB of compute capability 6.0" in result["explanation"]
    assert "sm_70" in result["explanation"]


@pytest.mark.parametrize(
    ("capability", "arch_list", "covered"),
    [
        ("6.1", ARCH_CU121, True),
        ("8.9", ARCH_CU121, True),
        ("12.0", ARCH_CU121, False),
        ("12.0", ["sm_90", "compute_90"], True),
        ("3.7", ARCH_CU121, False),
        ("10.3", ["sm_100", "sm_120"], True),
    ],
)
def test_coverage_of_a_card(capability: str, arch_list: list[str], covered: bool) -> None:
    raw = findings(gpu__gpus=[{"name": "a card", "compute_capability": capability}])
    raw["probe"]["rows"][2]["arch_list"] = arch_list
    raw["probe"]["rows"][3]["cards"] = []
    check = next(one for one in torch_verdict.decide(raw)["checks"] if one["name"] == "architecture")
    assert check["ok"] is covered


def test_e6_names_both_versions_and_goes_before_all_that_follows_from_it() -> None:
    raw = fell_to_cpu(findings(gpu__state="driver_library_mismatch", gpu__usable=False), "Error 803")
    raw["gpu"]["driver"].update(library_version="580.95.05", versions_match=False, cuda_version=None)
    result = torch_verdict.decide(raw)
    assert (result["verdict"], result["cause"]) == ("failed", "E6")
    assert "535.161.08" in result["explanation"]
    assert "580.95.05" in result["explanation"]
    assert result["remedy"].startswith("Reboot")


@pytest.mark.parametrize(
    ("state", "cause"),
    [("module_not_loaded", "E8"), ("nouveau_bound", "E8"), ("driver_not_installed", "E7"), ("gpu_off_bus", "E9"),
     ("permission_denied", "device-nodes"), ("fabric_manager_not_running", "fabric-manager")],
)  # fmt: skip
def test_the_state_of_the_driver_names_the_cause_and_its_own_remedy(state: str, cause: str) -> None:
    raw = fell_to_cpu(findings(gpu__state=state, gpu__usable=False, gpu__detail="what was seen", gpu__remedy="do this"))
    raw["gpu"]["driver"].update(loaded_version=None, versions_match=None)
    result = torch_verdict.decide(raw)
    assert (result["verdict"], result["cause"], result["remedy"]) == ("failed", cause, "do this")
    assert "what was seen" in result["explanation"]


def test_every_state_of_gpu_facts_that_is_mapped_exists() -> None:
    from ansible_collections.gpufleet.llm.plugins.module_utils import gpu_states
    from ansible_collections.gpufleet.llm.plugins.plugin_utils import errors

    assert set(torch_verdict.CAUSE_OF_STATE) <= set(gpu_states.CATALOGUE)
    assert all(errors.entry(one) for one in torch_verdict.CAUSE_OF_STATE.values())


@pytest.mark.parametrize("value", ["", "-1", " "])
def test_hidden_cards(value: str) -> None:
    result = torch_verdict.decide(fell_to_cpu(findings(cuda_visible_devices=value)))
    assert (result["verdict"], result["cause"]) == ("failed", "devices-hidden")


def test_closed_device_files() -> None:
    result = torch_verdict.decide(fell_to_cpu(findings(closed_device_files=["/dev/nvidiactl"])))
    assert (result["verdict"], result["cause"]) == ("failed", "device-nodes")
    assert "/dev/nvidiactl" in result["explanation"]


def test_a_cpu_wheel_beside_a_card_is_e3() -> None:
    raw = fell_to_cpu(findings())
    raw["probe"]["rows"][1].update(version="2.1.2+cpu", cuda=None)
    raw["probe"]["rows"][2].update(version="2.1.2+cpu", cuda=None, build="cpu", arch_list=[])
    result = torch_verdict.decide(raw)
    assert (result["verdict"], result["cause"]) == ("failed", "E3")
    assert "2.1.2+cpu" in result["explanation"]


def test_a_full_card_is_e10_though_a_library_is_shadowed_harmlessly() -> None:
    raw = stopped(findings(), "matmul", "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB.")
    raw["libraries"]["shadowed"] = [CUDNN]
    result = torch_verdict.decide(raw)
    assert (result["verdict"], result["cause"]) == ("failed", "E10")
    assert "20.00 MiB" in result["explanation"]


CUDNN = {"name": "libcudnn.so.8", "path": "/usr/local/cuda/lib64/libcudnn.so.8", "via": "LD_LIBRARY_PATH",
         "own": "/opt/env/lib/python3.10/site-packages/nvidia/cudnn/lib/libcudnn.so.8", "requester": "x",
         "missing_symbols": []}  # fmt: skip


def test_e5_names_the_cudnn_that_stands_before_the_wheels() -> None:
    raw = stopped(findings(), "conv2d", "Could not load library libcudnn_cnn_infer.so.8. Error: undefined symbol: x")
    raw["libraries"]["shadowed"] = [CUDNN]
    result = torch_verdict.decide(raw)
    assert (result["verdict"], result["cause"]) == ("failed", "E5")
    assert "/usr/local/cuda/lib64/libcudnn.so.8" in result["explanation"]


def test_a_foreign_library_that_works_is_a_warning_by_what_was_really_loaded() -> None:
    raw = findings()
    raw["libraries"]["shadowed"] = [CUDNN]
    assert torch_verdict.decide(raw)["verdict"] == "ok", "PyTorch loaded its own by path; paper does not count then"
    raw["libraries"]["foreign_loaded"] = [CUDNN["path"]]
    result = torch_verdict.decide(raw)
    assert (result["verdict"], result["cause"]) == ("warning", "shadowed-library")
    assert str(CUDNN["path"]) in result["explanation"]


def test_a_wrong_result_is_no_success() -> None:
    raw = findings()
    raw["probe"]["rows"][5]["differs"] = "matmul gave 1.0, wanted 2.0"
    result = torch_verdict.decide(raw)
    assert (result["verdict"], result["cause"]) == ("failed", "wrong-result")
    assert result["computation"]["ok"] is False


def test_numpy_2_is_a_warning() -> None:
    raw = findings()
    raw["probe"]["rows"][-1]["warnings"] = ["Failed to initialize NumPy: _ARRAY_API not found (Triggered internally)"]
    assert (torch_verdict.decide(raw)["verdict"], torch_verdict.decide(raw)["cause"]) == ("warning", "E11")


def test_an_import_error_of_another_kind_is_not_blamed_on_libraries() -> None:
    raw = stopped(findings(), "import", "ModuleNotFoundError: No module named 'typing_extensions'")
    raw["libraries"]["shadowed"] = [CUDNN]
    result = torch_verdict.decide(raw)
    assert result["cause"] == "module-missing"
    assert "typing_extensions" in result["explanation"]


def test_a_crash_on_the_card_with_a_foreign_library_is_blamed_on_it() -> None:
    raw = findings(probe__stderr="Fatal Python error: Segmentation fault", probe__rc=-11)
    raw["probe"]["rows"] = raw["probe"]["rows"][:6]
    raw["libraries"]["shadowed"] = [CUDNN]
    result = torch_verdict.decide(raw)
    assert (result["verdict"], result["cause"]) == ("failed", "shadowed-library")
    assert result["computation"]["failed_step"] == "conv2d"


def test_device_cpu_asks_nothing_of_the_card() -> None:
    raw = fell_to_cpu(findings(device="cpu", gpu={}))
    result = torch_verdict.decide(raw)
    assert result["verdict"] == "ok"
    assert [one["ok"] for one in result["checks"][2:6]] == [None] * 4


ROWS = st.lists(
    st.one_of(
        st.sampled_from(findings()["probe"]["rows"]),
        st.builds(lambda step, error: {"stage": "error", "step": step, "error": error},
                  st.sampled_from(["find", "import", "init", "add", "sparse"]), st.text(max_size=60)),
    ),
    max_size=9,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(rows=ROWS, rc=st.sampled_from([0, 1, 3, 124, 137, -11]), stderr=st.text(max_size=40),
       device=st.sampled_from(["auto", "cpu", "cuda"]), gpu=st.booleans(), libraries=st.booleans())  # fmt: skip
def test_any_findings_give_one_complete_answer(
    rows: list[dict[str, Any]], rc: int, stderr: str, device: str, gpu: bool, libraries: bool
) -> None:
    raw = copy.deepcopy(findings(device=device))
    raw["probe"].update(rows=rows, rc=rc, stderr=stderr)
    if not gpu:
        raw["gpu"] = {}
    if not libraries:
        raw["libraries"] = {}
    result = torch_verdict.decide(raw)
    assert result["verdict"] in ("ok", "warning", "failed")
    assert [one["name"] for one in result["checks"]][-1] == "computation"
    assert bool(result["cause"]) == (result["verdict"] != "ok")
    assert bool(result["remedy"]) == (result["verdict"] != "ok")
    if result["verdict"] == "ok":
        assert result["computation"]["ok"] is True
