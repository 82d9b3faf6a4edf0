# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the output of ``nvidia-smi -q -x`` (versions 11 to 13 of its DTD) into the shape of ``gpu_facts``."""

from __future__ import annotations

import re
from typing import Any

from ansible_collections.gpufleet.llm.plugins.module_utils import nvml_binding
from ansible_collections.gpufleet.llm.plugins.module_utils.gpu_pci import normalise_pci_address
from ansible_collections.gpufleet.llm.plugins.module_utils.nvml_read import THROTTLE_REASONS

MIB = 1024 * 1024
ABSENT = re.compile(
    r"^\[?(n/a|not supported|unknown error|insufficient permissions|gpu requires reset|gpu is lost|err!|none|not found"
    r"|not available|requested functionality has been deprecated|function not found)\.?\]?$",
    re.IGNORECASE,
)

# What nvidia-smi prints (on stdout) when NVML fails -> nvmlReturn_t. Not in all versions is its status that number too.
FAILURES = (
    (re.compile(r"Driver/library version mismatch", re.IGNORECASE), nvml_binding.LIB_RM_VERSION_MISMATCH),
    (re.compile(r"couldn't communicate with the NVIDIA driver", re.IGNORECASE), nvml_binding.DRIVER_NOT_LOADED),
    (re.compile(r"Insufficient Permissions", re.IGNORECASE), nvml_binding.NO_PERMISSION),
    (
        re.compile(r"GPU is lost|fallen off the bus|Unable to determine the device handle", re.IGNORECASE),
        nvml_binding.GPU_IS_LOST,
    ),
    (re.compile(r"couldn't find libnvidia-ml", re.IGNORECASE), nvml_binding.LIBRARY_NOT_FOUND),
)
_CODES = frozenset((4, 8, 9, 10, 11, 12, 14, 15, 16, 17, 18))


def failure_code(rc: int, text: str) -> int:
    """nvmlReturn_t for a failed nvidia-smi, 999 when neither its words nor its status tell. ``No devices``: 0."""
    if re.search(r"No devices were found", text, re.IGNORECASE):
        return nvml_binding.SUCCESS
    for pattern, code in FAILURES:
        if pattern.search(text):
            return code
    return rc if rc in _CODES else nvml_binding.UNKNOWN


def parse(xml: str) -> dict[str, Any]:
    """``{"driver_version", "cuda_driver_api", "gpus"}`` from the XML. Raises ValueError when it is no such XML."""
    # Only where it is needed: the parser costs more to import than NVML to ask.
    from xml.etree import ElementTree

    try:
        log = ElementTree.fromstring(xml)  # noqa: S314  the driver's own tool wrote it, no network is behind it
    except ElementTree.ParseError as exc:
        raise ValueError(f"nvidia-smi -q -x printed no XML: {exc}") from exc
    if log.tag != "nvidia_smi_log":
        raise ValueError(f"nvidia-smi -q -x printed <{log.tag}>, not <nvidia_smi_log>")
    cuda = _text(log, "cuda_version")
    match = re.match(r"^(\d+)\.(\d+)$", cuda or "")
    return {
        "driver_version": _text(log, "driver_version"),
        "cuda_driver_api": 1000 * int(match.group(1)) + 10 * int(match.group(2)) if match else None,
        "gpus": [_gpu(index, element) for index, element in enumerate(log.findall("gpu"))],
    }


def _gpu(index: int, gpu: Any) -> dict[str, Any]:
    device = _text(gpu, "pci/pci_device_id") or ""
    subsystem = _text(gpu, "pci/pci_sub_system_id") or ""
    architecture = (_text(gpu, "product_architecture") or "").lower().split(" ")[0] or None
    result: dict[str, Any] = {
        "index": index,
        "state": "ok",
        "state_detail": "",
        "pci_address": normalise_pci_address(_text(gpu, "pci/pci_bus_id") or gpu.get("id")),
        "pci_vendor_id": device[4:8].lower() or None,
        "pci_device_id": device[:4].lower() or None,
        "pci_subsystem_vendor_id": subsystem[4:8].lower() or None,
        "pci_subsystem_device_id": subsystem[:4].lower() or None,
        "name": _text(gpu, "product_name"),
        "uuid": _text(gpu, "uuid"),
        "serial": _text(gpu, "serial"),
        "minor_number": _integer(gpu, "minor_number"),
        "architecture": architecture,
        "persistence_mode": _enabled(gpu, "persistence_mode"),
        "compute_mode": (_text(gpu, "compute_mode") or "").lower().replace(" ", "_") or None,
        "display_active": _enabled(gpu, "display_active"),
        "memory_total_bytes": _bytes(gpu, "fb_memory_usage/total"),
        "memory_reserved_bytes": _bytes(gpu, "fb_memory_usage/reserved"),
        "memory_used_bytes": _bytes(gpu, "fb_memory_usage/used"),
        "memory_free_bytes": _bytes(gpu, "fb_memory_usage/free"),
        "temperature_celsius": _integer(gpu, "temperature/gpu_temp"),
        "temperature_slowdown_celsius": _integer(gpu, "temperature/gpu_temp_slow_threshold"),
        "temperature_shutdown_celsius": _integer(gpu, "temperature/gpu_temp_max_threshold"),
        "utilization_gpu_percent": _integer(gpu, "utilization/gpu_util"),
        "utilization_memory_percent": _integer(gpu, "utilization/memory_util"),
        "throttle_reasons": _throttle_reasons(gpu),
        "processes": _processes(gpu),
    }
    result.update(_power(gpu))
    result.update(_health(gpu))
    result.update(_mig(gpu))
    fabric = (_text(gpu, "fabric/state") or "").lower().replace(" ", "_")
    result["fabric_state"] = fabric or None
    return result


def _power(gpu: Any) -> dict[str, Any]:
    # DTD 11 has power_readings, 12 and 13 gpu_power_readings; the names inside changed too.
    block = next((name for name in ("gpu_power_readings", "power_readings") if gpu.find(name) is not None), "")
    first = (f"{block}/{name}" for name in ("power_draw", "instant_power_draw", "average_power_draw"))
    draw = next((value for value in (_float(gpu, path) for path in first) if value is not None), None)
    limits = (f"{block}/{name}" for name in ("enforced_power_limit", "current_power_limit", "power_limit"))
    return {
        "power_draw_watts": draw,
        "power_limit_watts": next(
            (value for value in (_float(gpu, path) for path in limits) if value is not None), None
        ),
        "power_limit_default_watts": _float(gpu, f"{block}/default_power_limit"),
        "power_limit_max_watts": _float(gpu, f"{block}/max_power_limit"),
    }


def _health(gpu: Any) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ecc_enabled": _enabled(gpu, "ecc_mode/current_ecc"),
        "ecc_pending": _enabled(gpu, "ecc_mode/pending_ecc"),
        "retired_pages_pending": _yes(gpu, "retired_pages/pending_retirement"),
        "remapped_rows_pending": _yes(gpu, "remapped_rows/remapped_row_pending"),
        "remapped_rows_failed": _yes(gpu, "remapped_rows/remapped_row_failure"),
    }
    rows = [_integer(gpu, f"remapped_rows/remapped_row_{kind}") for kind in ("corr", "unc")]
    result["remapped_rows_count"] = (
        sum(row for row in rows if row is not None) if any(r is not None for r in rows) else None
    )
    for counter in ("volatile", "aggregate"):
        for error, prefix in (("corrected", "correctable"), ("uncorrected", "uncorrectable")):
            result[f"ecc_{error}_{counter}_count"] = _ecc(gpu.find(f"ecc_errors/{counter}"), prefix)
    return result


def _ecc(block: Any, kind: str) -> int | None:
    """Sum over SRAM and DRAM; before Turing the totals are named after single and double bit errors."""
    if block is None:
        return None
    older = {"correctable": "single_bit", "uncorrectable": "double_bit"}[kind]
    if block.find(older) is not None:
        return _integer(block, f"{older}/total")
    values = [_integer(block, child.tag) for child in block if re.match(rf"^[sd]ram_{kind}(_|$)", child.tag)]
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _mig(gpu: Any) -> dict[str, Any]:
    enabled = _enabled(gpu, "mig_mode/current_mig")
    if enabled is None:
        return {"mig_enabled": None, "mig_pending": None, "mig_devices": None}
    devices = [
        {
            # nvidia-smi -q -x has no UUID of a MIG device; that is in nvidia-smi -L.
            "uuid": _text(device, "uuid"),
            "index": _integer(device, "index"),
            "name": None,
            "gpu_instance_id": _integer(device, "gpu_instance_id"),
            "compute_instance_id": _integer(device, "compute_instance_id"),
            "memory_total_bytes": _bytes(device, "fb_memory_usage/total"),
            "memory_free_bytes": _bytes(device, "fb_memory_usage/free"),
            "multiprocessor_count": _integer(device, "device_attributes/shared/multiprocessor_count"),
        }
        for device in gpu.findall("mig_devices/mig_device")
    ]
    return {"mig_enabled": enabled, "mig_pending": _enabled(gpu, "mig_mode/pending_mig"), "mig_devices": devices}


def _throttle_reasons(gpu: Any) -> list[str] | None:
    for block, prefix in (
        ("clocks_event_reasons", "clocks_event_reason_"),
        ("clocks_throttle_reasons", "clocks_throttle_reason_"),
    ):
        element = gpu.find(block)
        if element is None or not len(element):
            # Cards that cannot tell have N/A here instead of a list.
            continue
        active = {
            child.tag[len(prefix) :].replace("display_clocks_setting", "display_clock_setting")
            for child in element
            if (child.text or "").strip() == "Active"
        }
        return [name for _bit, name in THROTTLE_REASONS if name in active]
    return None


def _processes(gpu: Any) -> list[dict[str, Any]] | None:
    block = gpu.find("processes")
    if block is None or (ABSENT.match((block.text or "").strip()) and (block.text or "").strip().lower() != "none"):
        return None
    kinds = {"C": "compute", "G": "graphics", "C+G": "compute_graphics", "M+C": "compute"}
    found = []
    for process in block.findall("process_info"):
        pid = _integer(process, "pid")
        if pid is None:
            continue
        found.append(
            {
                "pid": pid,
                "type": kinds.get(_text(process, "type") or "", "compute"),
                "name": (_text(process, "process_name") or "").split(" ")[0] or None,
                "memory_used_bytes": _bytes(process, "used_memory"),
            }
        )
    return sorted(found, key=lambda entry: int(entry["pid"] or 0))


def _text(element: Any, path: str) -> str | None:
    text = (element.findtext(path) or "").strip()
    return None if not text or ABSENT.match(text) else text


def _float(element: Any, path: str) -> float | None:
    match = re.match(r"^-?\d+(\.\d+)?", _text(element, path) or "")
    return float(match.group(0)) if match else None


def _integer(element: Any, path: str) -> int | None:
    value = _float(element, path)
    return None if value is None else int(value)


def _bytes(element: Any, path: str) -> int | None:
    value = _integer(element, path)
    return None if value is None else value * MIB


def _enabled(element: Any, path: str) -> bool | None:
    return {"enabled": True, "on": True, "disabled": False, "off": False}.get((_text(element, path) or "").lower())


def _yes(element: Any, path: str) -> bool | None:
    return {"yes": True, "no": False}.get((_text(element, path) or "").lower())
