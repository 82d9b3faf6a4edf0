# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""gpu_facts as a whole on made-up nodes: both bindings and nvidia-smi against the compiled NVML stand-in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.gpufleet.llm.plugins.module_utils import gpu_gather, gpu_node, nvml_binding

sys.path.insert(0, str(Path(__file__).parent))
from gpu_stand_in import REPOSITORY, built, facts_of, no_library, open_stand_in, put, root_of, run_stand_in_smi

MIB = 1024 * 1024
BINDINGS = ("ctypes", "pynvml")


def documented(kind: str) -> Any:
    """DOCUMENTATION, EXAMPLES or RETURN of the module."""
    text = (REPOSITORY / "plugins/modules/gpu_facts.py").read_text()
    return yaml.safe_load(text.split(f'{kind} = r"""')[1].split('"""')[0])


def keys_of(contains: dict[str, Any]) -> set[str]:
    return set(contains)


@pytest.mark.parametrize("binding", BINDINGS)
def test_a_t4_is_described_in_full(tmp_path: Path, binding: str) -> None:
    facts = facts_of(root_of(tmp_path, "t4"), "t4", binding)
    assert (facts["source"], facts["nvml_binding"], facts["state"], facts["usable"]) == ("nvml", binding, "ok", True)
    (gpu,) = facts["gpus"]
    assert gpu == {
        "pci_address": "0000:3b:00.0",
        "state": "ok",
        "source": "nvml",
        "index": 0,
        "minor_number": 0,
        "uuid": "GPU-b2a6c1f0-3d52-4d0e-9a6f-2f1f5b7c0a01",
        "serial": "0320219000001",
        "name": "Tesla T4",
        "pci_vendor_id": "10de",
        "pci_device_id": "1eb8",
        "pci_subsystem_vendor_id": "10de",
        "pci_subsystem_device_id": "12a2",
        "pci_class": "030200",
        "pci_driver": "nvidia",
        "numa_node": 0,
        "chip": "TU104",
        "architecture": "turing",
        "compute_capability": "7.5",
        "compute_capability_source": "driver",
        "module_flavours": ["open", "proprietary"],
        "last_driver_branch": None,
        "memory_total_bytes": 15360 * MIB,
        "memory_free_bytes": (15360 - 388 - 3) * MIB,
        "memory_used_bytes": 3 * MIB,
        "memory_reserved_bytes": 388 * MIB,
        "power_limit_watts": 70.0,
        "power_limit_default_watts": 70.0,
        "power_limit_max_watts": 70.0,
        "power_draw_watts": 29.13,
        "temperature_celsius": 41,
        "temperature_slowdown_celsius": 93,
        "temperature_shutdown_celsius": 96,
        "throttle_reasons": ["gpu_idle"],
        "utilization_gpu_percent": 0,
        "utilization_memory_percent": 0,
        "ecc_enabled": True,
        "ecc_pending": True,
        "ecc_corrected_volatile_count": 0,
        "ecc_uncorrected_volatile_count": 0,
        "ecc_corrected_aggregate_count": 2,
        "ecc_uncorrected_aggregate_count": 0,
        "retired_pages_pending": False,
        "remapped_rows_count": None,
        "remapped_rows_pending": None,
        "remapped_rows_failed": None,
        "persistence_mode": False,
        "compute_mode": "default",
        "display_active": False,
        "mig_enabled": None,
        "mig_pending": None,
        "mig_devices": None,
        "nvlinks": None,
        "nvlink_active_count": None,
        "fabric_state": None,
        "processes": [],
    }
    driver = facts["driver"]
    assert (driver["loaded_version"], driver["library_version"], driver["versions_match"]) == ("535.261.03",) * 2 + (
        True,
    )
    assert (driver["flavour"], driver["branch"], driver["cuda_version"], driver["cuda_driver_api"]) == (
        "proprietary",
        535,
        "12.2",
        12020,
    )
    assert [state["name"] for state in facts["states"]] == ["persistence_off"]


@pytest.mark.parametrize(
    "profile", ["t4", "p100", "gtx1060", "h100", "h100-mig", "two-t4", "none-supported", "hgx-h100", "lost-one-of-two"]
)
def test_both_bindings_say_the_same(tmp_path: Path, profile: str) -> None:
    root = root_of(tmp_path, profile)
    first, second = (facts_of(root, profile, binding) for binding in BINDINGS)
    for facts in (first, second):
        facts.pop("nvml_binding")
        facts.pop("gather_seconds")
    assert first == second
    assert first["errors"] == [] or profile.startswith("lost")


@pytest.mark.parametrize("profile", ["t4", "p100", "gtx1060", "h100", "two-t4", "none-supported"])
def test_nvidia_smi_says_what_nvml_says(tmp_path: Path, profile: str) -> None:
    root = root_of(tmp_path, profile)
    put(root, "usr/bin/nvidia-smi", "").chmod(0o755)
    by_nvml = facts_of(root, profile)
    by_smi = facts_of(root, profile, open_binding=no_library, run_command=run_stand_in_smi(profile))
    assert (by_smi["source"], by_smi["nvml_binding"]) == ("nvidia_smi", None)
    # nvidia-smi -q -x says nothing of NVLink, and the compute capability comes from the table.
    for gpu in by_nvml["gpus"] + by_smi["gpus"]:
        for key in ("source", "nvlinks", "nvlink_active_count", "compute_capability_source"):
            gpu.pop(key)
    assert by_smi["gpus"] == by_nvml["gpus"]
    assert by_smi["driver"] == by_nvml["driver"]


@pytest.mark.parametrize("source", ["nvml", "nvidia_smi", "pci"])
@pytest.mark.parametrize("profile", ["t4", "two-t4", "h100-mig", "hgx-h100", "lost", "mismatch", "missing"])
def test_a_gpu_is_never_listed_twice(tmp_path: Path, profile: str, source: str) -> None:
    """The regression of the other GPU facts module, which told cards apart by name and listed each of them twice."""
    root = root_of(tmp_path, profile)
    put(root, "usr/bin/nvidia-smi", "").chmod(0o755)
    facts = facts_of(root, profile, sources=[source, "pci"], run_command=run_stand_in_smi(profile))
    addresses = [gpu["pci_address"] for gpu in facts["gpus"]]
    assert addresses == sorted(set(addresses))
    assert len(addresses) == facts["gpu_count"] == {"two-t4": 2, "hgx-h100": 2}.get(profile, 1)


def test_the_smi_form_of_an_address_and_the_kernel_form_are_one_card(tmp_path: Path) -> None:
    root = root_of(tmp_path, "t4")
    assert (
        "00000000:3B:00.0"
        in subprocess.run(
            [sys.executable, built() / "t4/bin/nvidia-smi", "-q", "-x"],
            env={"GPUFLEET_NVML_PROFILE": str(built() / "t4/profile")},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    assert (root / "sys/bus/pci/devices/0000:3b:00.0").is_dir()
    assert [gpu["pci_address"] for gpu in facts_of(root, "t4")["gpus"]] == ["0000:3b:00.0"]


@pytest.mark.parametrize("binding", BINDINGS)
def test_mig_devices(tmp_path: Path, binding: str) -> None:
    facts = facts_of(root_of(tmp_path, "h100-mig"), "h100-mig", binding)
    (gpu,) = facts["gpus"]
    assert (facts["state"], gpu["mig_enabled"], gpu["utilization_gpu_percent"]) == ("ok", True, None)
    assert [
        (d["name"], d["gpu_instance_id"], d["memory_total_bytes"], d["multiprocessor_count"])
        for d in gpu["mig_devices"]
    ] == [
        ("3g.40gb", 2, 40448 * MIB, 60),
        ("1g.10gb", 9, 9984 * MIB, 16),
    ]
    assert gpu["mig_devices"][1]["uuid"] == "MIG-7f2f9a3c-0d2e-5b6c-8a1f-9e4d2c3b1102"
    assert gpu["mig_devices"][1]["memory_free_bytes"] == (9984 - 15) * MIB


def test_mig_devices_by_nvidia_smi(tmp_path: Path) -> None:
    root = root_of(tmp_path, "h100-mig")
    put(root, "usr/bin/nvidia-smi", "").chmod(0o755)
    facts = facts_of(root, "h100-mig", open_binding=no_library, run_command=run_stand_in_smi("h100-mig"))
    assert [(d["gpu_instance_id"], d["memory_free_bytes"]) for d in facts["gpus"][0]["mig_devices"]] == [
        (2, (40448 - 44) * MIB),
        (9, (9984 - 15) * MIB),
    ]


def test_nvlink_processes_and_open_modules(tmp_path: Path) -> None:
    facts = facts_of(root_of(tmp_path, "h100"), "h100")
    (gpu,) = facts["gpus"]
    assert gpu["nvlink_active_count"] == len(gpu["nvlinks"]) == 18
    assert gpu["nvlinks"][17] == {"link": 17, "active": True, "version": 4, "remote_pci_address": "0000:1d:00.0"}
    assert gpu["processes"] == [
        {"pid": 4711, "type": "compute", "name": "/opt/gpufleet/envs/qwen/bin/python", "memory_used_bytes": 14108 * MIB}
    ]
    assert (facts["driver"]["flavour"], gpu["fabric_state"]) == ("open", "completed")


@pytest.mark.parametrize("binding", BINDINGS)
def test_what_a_card_does_not_have_is_null(tmp_path: Path, binding: str) -> None:
    facts = facts_of(root_of(tmp_path, "none-supported"), "none-supported", binding)
    (gpu,) = facts["gpus"]
    assert (facts["state"], facts["usable"], facts["errors"]) == ("ok", True, [])
    for key, value in gpu.items():
        if key.startswith(("memory_", "power_", "temperature_", "ecc_", "mig_", "remapped_", "utilization_")):
            assert value is None, key
    assert (gpu["processes"], gpu["nvlinks"], gpu["throttle_reasons"]) == (None, None, None)
    # What the driver does not tell, the device id does.
    assert (gpu["chip"], gpu["compute_capability"], gpu["compute_capability_source"]) == ("TU104", "7.5", "table")


STATES = {
    # profile: (state, usable, state of the GPU, address in the state)
    "mismatch": ("driver_library_mismatch", False, "no_answer", None),
    "permission": ("permission_denied", False, "no_answer", None),
    "lost": ("gpu_off_bus", False, "gpu_off_bus", "0000:3b:00.0"),
    "needs-reset": ("gpu_needs_reset", False, "gpu_needs_reset", "0000:3b:00.0"),
    "missing": ("gpu_missing", False, "gpu_missing", "0000:3b:00.0"),
    "nouveau": ("nouveau_bound", False, "no_driver", "0000:3b:00.0"),
    "not-loaded": ("driver_not_installed", False, "no_driver", None),
    "h100-mig-empty": ("mig_without_instances", False, "ok", "0000:19:00.0"),
    "hgx-h100": ("fabric_manager_not_running", False, "ok", None),
}


@pytest.mark.parametrize("binding", BINDINGS)
@pytest.mark.parametrize("profile", sorted(STATES))
def test_each_profile_has_its_state(tmp_path: Path, profile: str, binding: str) -> None:
    facts = facts_of(root_of(tmp_path, profile), profile, binding)
    state, usable, of_gpu, address = STATES[profile]
    assert (facts["state"], facts["usable"]) == (state, usable)
    assert facts["remedy"] and facts["detail"]
    assert facts["states"][0]["pci_address"] == address
    assert facts["gpus"][0]["state"] == of_gpu


def test_a_mismatch_names_both_versions(tmp_path: Path) -> None:
    facts = facts_of(root_of(tmp_path, "mismatch"), "mismatch")
    assert facts["detail"] == "the loaded kernel module is 535.247.01, libnvidia-ml is 535.261.03"
    assert facts["driver"]["versions_match"] is False
    # The card is known all the same, from the bus and from the loaded module's files.
    assert (facts["source"], facts["gpus"][0]["name"], facts["gpus"][0]["compute_capability"]) == (
        "pci",
        "Tesla T4",
        "7.5",
    )


def test_a_mismatch_by_nvidia_smi(tmp_path: Path) -> None:
    root = root_of(tmp_path, "mismatch")
    put(root, "usr/bin/nvidia-smi", "").chmod(0o755)
    facts = facts_of(root, "mismatch", open_binding=no_library, run_command=run_stand_in_smi("mismatch"))
    assert facts["state"] == "driver_library_mismatch"
    assert "returned 18" in facts["errors"][0]


@pytest.mark.parametrize("binding", BINDINGS)
def test_one_lost_gpu_leaves_the_other_usable(tmp_path: Path, binding: str) -> None:
    facts = facts_of(root_of(tmp_path, "lost-one-of-two"), "lost-one-of-two", binding)
    assert [(gpu["pci_address"], gpu["state"]) for gpu in facts["gpus"]] == [
        ("0000:3b:00.0", "ok"),
        ("0000:af:00.0", "gpu_lost"),
    ]
    assert (facts["state"], facts["usable"], facts["states"][0]["pci_address"]) == ("gpu_lost", True, "0000:af:00.0")
    assert facts["gpus"][1]["name"] == "Tesla T4"


def test_heat_and_memory_errors_are_warnings(tmp_path: Path) -> None:
    facts = facts_of(root_of(tmp_path, "two-t4"), "two-t4")
    assert [(state["name"], state["severity"], state["pci_address"]) for state in facts["states"]] == [
        ("memory_errors", "warning", "0000:af:00.0"),
        ("thermal_slowdown", "warning", "0000:af:00.0"),
    ]
    assert facts["usable"] is True
    assert facts["gpus"][1]["throttle_reasons"] == ["hw_slowdown", "hw_thermal_slowdown"]


@pytest.mark.parametrize("binding", BINDINGS)
def test_a_process_of_unknown_memory_and_with_arguments(tmp_path: Path, binding: str) -> None:
    facts = facts_of(root_of(tmp_path, "two-t4"), "two-t4", binding)
    # NVML says "not known" with all ones; arguments can carry secrets and are not reported.
    assert facts["gpus"][1]["processes"] == [
        {"pid": 901, "type": "compute", "name": "/usr/bin/python3", "memory_used_bytes": None}
    ]


def test_no_gpu(tmp_path: Path) -> None:
    put(tmp_path, "proc/sys/kernel/osrelease", "6.1.0-28-amd64")
    facts = facts_of(tmp_path, "not-loaded", open_binding=no_library)
    assert (facts["state"], facts["source"], facts["gpus"], facts["usable"]) == ("no_gpu", "none", [], False)


def test_pci_alone_never_asks_the_driver(tmp_path: Path) -> None:
    def must_not(_choice: str, _library: str) -> Any:
        raise AssertionError("NVML was opened")

    facts = facts_of(root_of(tmp_path, "t4"), "t4", sources=["pci"], open_binding=must_not)
    (gpu,) = facts["gpus"]
    # The driver's files in /proc name and number the card without waking it.
    assert (gpu["name"], gpu["uuid"], gpu["minor_number"]) == (
        "Tesla T4",
        "GPU-b2a6c1f0-3d52-4d0e-9a6f-2f1f5b7c0a01",
        0,
    )
    assert (facts["source"], facts["state"], facts["usable"], gpu["state"]) == ("pci", "ok", None, "not_asked")


def test_parts_that_are_not_gathered_are_null(tmp_path: Path) -> None:
    facts = facts_of(root_of(tmp_path, "h100"), "h100", subset=["min"])
    (gpu,) = facts["gpus"]
    assert gpu["memory_total_bytes"] == 81559 * MIB
    assert (gpu["processes"], gpu["nvlinks"], gpu["power_draw_watts"], gpu["ecc_enabled"]) == (None,) * 4
    assert (facts["dkms"], facts["toolkits"], facts["kernel"]["headers_present"]) == (None,) * 3
    assert facts["driver"]["versions_match"] is True


def test_subsets() -> None:
    everything = frozenset(gpu_gather.PARTS)
    assert gpu_gather.resolve_subset(["all"]) == everything
    assert gpu_gather.resolve_subset(["!processes"]) == everything - {"processes"}
    assert gpu_gather.resolve_subset(["power", "!memory"]) == {"power", "memory"}
    with pytest.raises(ValueError, match="disks"):
        gpu_gather.resolve_subset(["disks"])


def test_every_key_is_documented_and_every_documented_key_is_there(tmp_path: Path) -> None:
    contains = documented("RETURN")["ansible_facts"]["contains"]["gpufleet_gpu"]["contains"]
    (tmp_path / "empty").mkdir()
    full = facts_of(root_of(tmp_path, "h100-mig"), "h100-mig")
    empty = facts_of(tmp_path / "empty", "t4", open_binding=no_library)
    for facts in (full, empty, gpu_gather.normalise_gpu_facts(None)):
        assert keys_of(facts) == keys_of(contains)
        for part in ("driver", "kernel", "nvswitch"):
            assert set(facts[part]) == keys_of(contains[part]["contains"]), part
    assert set(full["gpus"][0]) == keys_of(contains["gpus"]["contains"])
    assert set(full["gpus"][0]["mig_devices"][0]) == keys_of(contains["gpus"]["contains"]["mig_devices"]["contains"])
    linked = facts_of(root_of(tmp_path / "b", "h100"), "h100")["gpus"][0]
    assert set(linked["nvlinks"][0]) == keys_of(contains["gpus"]["contains"]["nvlinks"]["contains"])
    assert set(linked["processes"][0]) == keys_of(contains["gpus"]["contains"]["processes"]["contains"])
    assert set(empty["states"][0]) == keys_of(contains["states"]["contains"])


def test_a_hang_costs_one_gpu_and_is_a_state(tmp_path: Path) -> None:
    """In a process of its own, because the thread that hangs stays."""
    root = root_of(tmp_path, "hang")
    script = (
        "import sys, json; sys.path.insert(0, sys.argv[1])\n"
        "from gpu_stand_in import open_stand_in\n"
        "from ansible_collections.gpufleet.llm.plugins.module_utils import gpu_gather\n"
        "done = gpu_gather.gather(gpu_gather.resolve_subset(['min']), root=sys.argv[2], nvml_binding='ctypes',"
        " timeout_seconds=3, open_binding=open_stand_in)\n"
        "gpu_gather.leave_without_destructors()\n"
        "print(json.dumps([done.hung, done.facts]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent), str(root)],
        env={
            **os.environ,
            "GPUFLEET_NVML_PROFILE": str(built() / "hang/profile"),
            "GPUFLEET_NVML_BUILT": str(built()),
            "PYTHONPATH": str(REPOSITORY / ".collections"),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    hung, facts = yaml.safe_load(done.stdout)
    assert hung is True
    assert (facts["state"], facts["usable"]) == ("driver_timeout", False)
    assert "nvmlDeviceGetMemoryInfo" in facts["detail"]
    # The card that had answered is there in full, the other from the bus.
    assert [(gpu["state"], gpu["memory_total_bytes"]) for gpu in facts["gpus"]] == [
        ("ok", 15360 * MIB),
        ("no_answer", None),
    ]


def test_an_unforeseen_failure_is_a_state_and_not_an_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: Any) -> Any:
        raise RuntimeError("planted")

    monkeypatch.setattr(gpu_node, "toolkits", broken)
    facts = facts_of(root_of(tmp_path, "t4"), "t4")
    assert (facts["state"], facts["gpu_count"]) == ("gather_failed", 1)
    assert "RuntimeError: planted" in facts["detail"]


def test_a_binding_that_explodes_is_a_state(tmp_path: Path) -> None:
    class Exploding:
        name = "ctypes"

        def call(self, function: str, *_arguments: Any) -> Any:
            raise MemoryError(function)

    facts = facts_of(root_of(tmp_path, "t4"), "t4", open_binding=lambda *_: Exploding())
    assert (facts["state"], facts["usable"]) == ("nvml_error", False)
    assert "MemoryError" in facts["detail"]


@pytest.mark.parametrize("name", ["nvmlDeviceGetMemoryInfo", "nvmlDeviceGetPciInfo", "nvmlDeviceGetName"])
def test_gpu_is_lost_half_way(tmp_path: Path, name: str) -> None:
    """A card can fall off the bus between two questions."""

    class Losing:
        name = "ctypes"

        def __init__(self, real: Any) -> None:
            self.real = real

        def call(self, function: str, *arguments: Any) -> Any:
            if function == name:
                raise nvml_binding.NvmlError(nvml_binding.GPU_IS_LOST)
            return self.real.call(function, *arguments)

    facts = facts_of(root_of(tmp_path, "t4"), "t4", open_binding=lambda *a: Losing(open_stand_in(*a)))
    assert (facts["state"], facts["gpu_count"], facts["gpus"][0]["state"]) == ("gpu_lost", 1, "gpu_lost")
    assert name in facts["detail"]


def test_normalise_fills_in_what_the_device_id_tells() -> None:
    facts = gpu_gather.normalise_gpu_facts({"gpus": [{"pci_device_id": "15f8", "pci_address": "00000000:82:00.0"}]})
    (gpu,) = facts["gpus"]
    assert (gpu["pci_address"], gpu["compute_capability"], gpu["architecture"]) == ("0000:82:00.0", "6.0", "pascal")
    assert (gpu["module_flavours"], gpu["last_driver_branch"], gpu["state"]) == (["proprietary"], 580, "no_driver")
    assert set(facts["driver"]) == set(gpu_gather.DRIVER_KEYS)


def test_normalise_leaves_complete_facts_as_they_are(tmp_path: Path) -> None:
    facts = facts_of(root_of(tmp_path, "h100"), "h100")
    assert gpu_gather.normalise_gpu_facts(facts) == facts


CHILDREN = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system")


@pytest.mark.parametrize("binding", BINDINGS)
def test_no_child_process_when_nvml_answers(tmp_path: Path, binding: str) -> None:
    root = root_of(tmp_path, "h100")
    facts_of(root, "h100", binding)  # builds the stand-in outside of what is watched
    seen: list[str] = []
    watching = True
    sys.addaudithook(lambda event, _arguments: seen.append(event) if watching and event in CHILDREN else None)

    def must_not(argv: list[str]) -> tuple[int, str, str]:
        raise AssertionError(argv)

    facts = facts_of(root, "h100", binding, run_command=must_not)
    watching = False
    assert (facts["source"], seen, facts["errors"]) == ("nvml", [], [])


def test_the_library_is_found_where_the_loader_does_not_look(tmp_path: Path) -> None:
    """nvidia-ml-py knows only the loader's folders; container images and WSL put the library elsewhere."""
    root = root_of(tmp_path, "t4")
    opened = []

    class Blind:
        name = "pynvml"

        def call(self, _function: str, *_arguments: Any) -> Any:
            raise nvml_binding.NvmlError(nvml_binding.LIBRARY_NOT_FOUND)

    def choose(choice: str, library: str) -> Any:
        opened.append((choice, library))
        return Blind() if choice == "auto" else open_stand_in(choice, library)

    facts = facts_of(root, "t4", "auto", open_binding=choose)
    assert opened == [
        ("auto", "libnvidia-ml.so.1"),
        ("ctypes", "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.535.261.03"),
    ]
    assert (facts["source"], facts["nvml_binding"], facts["state"]) == ("nvml", "ctypes", "ok")


def test_library_gone_but_driver_loaded(tmp_path: Path) -> None:
    root = root_of(tmp_path, "t4")
    shutil.rmtree(root / "usr/lib/x86_64-linux-gnu")
    facts = facts_of(root, "t4", open_binding=no_library)
    assert (facts["state"], facts["usable"], facts["gpus"][0]["state"]) == ("library_missing", False, "no_answer")


def test_the_package_pynvml_that_is_broken_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package of that name, or one that raises while it is imported, is as good as none."""
    put(tmp_path, "site/pynvml.py", "raise RuntimeError('broken')\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    binding = nvml_binding.open_binding("auto", str(built() / "t4/lib/libnvidia-ml.so.1"))
    assert binding.name == "ctypes"
    with pytest.raises(nvml_binding.NvmlError, match="broken"):
        nvml_binding.open_binding("pynvml")
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
