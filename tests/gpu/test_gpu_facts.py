# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""gpu_facts on a real card agrees with nvidia-smi field by field; its time is printed beside nvidia-smi's."""

from __future__ import annotations

import csv
import io
import subprocess
import time
from typing import Any

import pytest
from ansible_collections.gpufleet.llm.plugins.module_utils import gpu_gather, gpu_smi
from ansible_collections.gpufleet.llm.plugins.module_utils.gpu_pci import normalise_pci_address

# Values that move between two readings, with how far.
MOVING = {
    "memory_free_bytes": 512 << 20,
    "memory_used_bytes": 512 << 20,
    "power_draw_watts": 150,
    "temperature_celsius": 10,
    "utilization_gpu_percent": 100,
    "utilization_memory_percent": 100,
}
# nvidia-smi -q -x rounds memory down to MiB.
ROUNDED = ("memory_total_bytes", "memory_reserved_bytes")
# Not in the XML, or different on purpose (who spoke; T.Limit instead of temperatures on newer cards; a moment's state).
ELSEWHERE = {
    "source",
    "nvlinks",
    "nvlink_active_count",
    "compute_capability_source",
    "throttle_reasons",
    "temperature_slowdown_celsius",
    "temperature_shutdown_celsius",
    "processes",
    "mig_devices",
}


def run(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def gather(**arguments: Any) -> dict[str, Any]:
    return gpu_gather.gather(gpu_gather.resolve_subset(["all"]), **arguments).facts


def run_command(argv: list[str]) -> tuple[int, str, str]:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def bindings() -> list[str]:
    try:
        import pynvml  # noqa: F401
    except ImportError:
        return ["ctypes"]
    return ["ctypes", "pynvml"]


@pytest.mark.parametrize("binding", bindings())
def test_agrees_with_the_xml(nvidia_smi: str, binding: str) -> None:
    facts = gather(nvml_binding=binding)
    assert facts["source"] == "nvml", facts["detail"]
    told = gpu_smi.parse(run(nvidia_smi, "-q", "-x"))
    assert facts["driver"]["loaded_version"] == told["driver_version"]
    assert facts["driver"]["cuda_driver_api"] == told["cuda_driver_api"]
    by_address = {gpu["pci_address"]: gpu for gpu in told["gpus"]}
    assert [gpu["pci_address"] for gpu in facts["gpus"] if gpu["state"] == "ok"] == sorted(by_address)
    differing = []
    for gpu in facts["gpus"]:
        for key, expected in by_address[gpu["pci_address"]].items():
            if key in ELSEWHERE or key not in gpu:
                continue
            value = gpu[key]
            print(f"{gpu['pci_address']} {key}: {value!r} (nvidia-smi: {expected!r})")
            if key in MOVING and value is not None and expected is not None:
                agrees = abs(value - expected) <= MOVING[key]
            elif key in ROUNDED and value is not None and expected is not None:
                agrees = abs(value - expected) <= 1 << 20
            elif expected is None:
                # The XML leaves out what it has no name for; the table or the kernel may know it.
                agrees = True
            else:
                agrees = value == expected
            if not agrees:
                differing.append(f"{gpu['pci_address']} {key}: {value!r}, nvidia-smi says {expected!r}")
    assert not differing, "\n".join(differing)


def test_agrees_with_the_query(nvidia_smi: str) -> None:
    fields = "index,name,uuid,pci.bus_id,compute_cap,driver_version,memory.total,enforced.power.limit"
    rows = list(
        csv.reader(
            io.StringIO(run(nvidia_smi, f"--query-gpu={fields}", "--format=csv,noheader,nounits")),
            skipinitialspace=True,
        )
    )
    facts = gather()
    gpus = {gpu["pci_address"]: gpu for gpu in facts["gpus"]}
    assert len(rows) == len([gpu for gpu in facts["gpus"] if gpu["index"] is not None])
    for index, name, uuid, bus_id, capability, version, total, limit in rows:
        gpu = gpus[str(normalise_pci_address(bus_id))]
        assert (gpu["index"], gpu["name"], gpu["uuid"]) == (int(index), name, uuid)
        assert (gpu["compute_capability"], facts["driver"]["loaded_version"]) == (capability, version)
        assert gpu["memory_total_bytes"] >> 20 == int(total)
        if gpu["power_limit_watts"] is not None:
            assert gpu["power_limit_watts"] == pytest.approx(float(limit), abs=0.01)


def test_the_chip_table_agrees_with_the_driver(nvidia_smi: str) -> None:
    """The card is in the table, and the table says of it what the driver says."""
    asked = {gpu["pci_address"]: gpu for gpu in gather()["gpus"]}
    for gpu in gather(sources=["pci"])["gpus"]:
        assert gpu["compute_capability_source"] in ("table", "range"), gpu
        assert gpu["compute_capability"] == asked[gpu["pci_address"]]["compute_capability"]
        assert gpu["architecture"] == asked[gpu["pci_address"]]["architecture"]


def test_nvidia_smi_as_the_source_describes_the_same_cards(nvidia_smi: str) -> None:
    by_smi = gather(sources=["nvidia_smi", "pci"], run_command=run_command)
    by_nvml = gather()
    assert by_smi["source"] == "nvidia_smi"
    for key in (
        "pci_address",
        "uuid",
        "name",
        "compute_capability",
        "architecture",
        "mig_enabled",
        "ecc_enabled",
        "state",
    ):
        assert [gpu[key] for gpu in by_smi["gpus"]] == [gpu[key] for gpu in by_nvml["gpus"]], key


def test_the_loaded_library_is_the_loaded_driver(nvidia_smi: str) -> None:
    driver = gather()["driver"]
    assert driver["versions_match"] is True, driver
    assert driver["flavour"] in ("open", "proprietary")


def test_time_beside_nvidia_smi(nvidia_smi: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Printed, not asserted: it depends on the machine and on whether a daemon keeps the driver initialised."""

    def best_of(call: Any) -> float:
        times = []
        for _attempt in range(5):
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
        return min(times) * 1000

    lines = [f"nvidia-smi -q -x: {best_of(lambda: run(nvidia_smi, '-q', '-x')):.1f} ms"]
    for binding in bindings():
        lines.append(f"gpu_facts, {binding}, all: {best_of(lambda: gather(nvml_binding=binding)):.1f} ms")
    minimum = gpu_gather.resolve_subset(["min"])
    lines.append(f"gpu_facts, ctypes, min: {best_of(lambda: gpu_gather.gather(minimum, nvml_binding='ctypes')):.1f} ms")
    lines.append(f"gpu_facts, pci alone, min: {best_of(lambda: gpu_gather.gather(minimum, sources=['pci'])):.1f} ms")
    with capsys.disabled():
        print("\n" + "\n".join(lines))
