# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read GPUs through an NVML binding into the shape of ``gpu_facts``. A value that a card does not have is None."""

from __future__ import annotations

import os
import re
from ctypes import byref
from typing import Any

from ansible_collections.gpufleet.llm.plugins.module_utils import gpu_chips, nvml_binding
from ansible_collections.gpufleet.llm.plugins.module_utils.gpu_pci import normalise_pci_address
from ansible_collections.gpufleet.llm.plugins.module_utils.nvml_binding import NvmlError

# nvmlClocksEventReason*: bit -> name. Source: nvml.h.
THROTTLE_REASONS = (
    (0x1, "gpu_idle"),
    (0x2, "applications_clocks_setting"),
    (0x4, "sw_power_cap"),
    (0x8, "hw_slowdown"),
    (0x10, "sync_boost"),
    (0x20, "sw_thermal_slowdown"),
    (0x40, "hw_thermal_slowdown"),
    (0x80, "hw_power_brake_slowdown"),
    (0x100, "display_clock_setting"),
)
COMPUTE_MODES = {0: "default", 1: "exclusive_thread", 2: "prohibited", 3: "exclusive_process"}
FABRIC_STATES = {0: "not_supported", 1: "not_started", 2: "in_progress", 3: "completed"}
MAX_NVLINKS = 36
# Values with which NVML says "not available" inside a structure or counter.
NO_32 = 0xFFFFFFFF
NO_64 = 0xFFFFFFFFFFFFFFFF

# These mean that the GPU as a whole is out of reach, so no further question is asked.
FATAL = (nvml_binding.GPU_IS_LOST, nvml_binding.RESET_REQUIRED)
# These mean "this card or this driver does not have it".
ABSENT = (
    nvml_binding.NOT_SUPPORTED,
    nvml_binding.NO_PERMISSION,
    nvml_binding.NOT_FOUND,
    nvml_binding.FUNCTION_NOT_FOUND,
    2,  # invalid argument: a sensor or link that the card lacks
    21,  # no data
    22,  # ECC is not to be had in a virtual GPU
    25,  # the structure's version is not known to this driver
    26,  # deprecated
    27,  # not ready
)


class Reader:
    """Reads one node. ``result`` is filled step by step, so that a caller can use what is there when a call hangs.

    ``result``: ``gpus`` (list of partial entries of gpu_facts, each with ``pci_address`` or None, ``state``,
    ``state_detail``), ``driver_version``, ``nvml_version``, ``cuda_driver_api``, ``code`` (nvmlReturn_t of the step that
    ended reading, 0 when all went well, None while reading), ``text``, ``step`` (what is being asked now), ``errors``.
    """

    def __init__(self, binding: Any, parts: frozenset[str], root: str = "/") -> None:
        self._binding = binding
        self._parts = parts
        self._root = root
        self.result: dict[str, Any] = {
            "gpus": [],
            "driver_version": None,
            "nvml_version": None,
            "cuda_driver_api": None,
            "code": None,
            "text": None,
            "step": "nvmlInit",
            "errors": [],
        }

    def read(self) -> dict[str, Any]:
        """Initialise NVML, read every GPU, shut NVML down. Never raises."""
        result = self.result
        try:
            self._binding.call("nvmlInit")
        except NvmlError as exc:
            result["code"], result["text"] = exc.code, exc.text
            return result
        try:
            result["driver_version"] = self._ask("nvmlSystemGetDriverVersion")
            result["nvml_version"] = self._ask("nvmlSystemGetNVMLVersion")
            result["cuda_driver_api"] = self._ask("nvmlSystemGetCudaDriverVersion")
            result["step"] = "nvmlDeviceGetCount"
            for index in range(self._binding.call("nvmlDeviceGetCount")):
                self._read_gpu(index)
            result["code"] = nvml_binding.SUCCESS
        except NvmlError as exc:
            result["code"], result["text"] = exc.code, exc.text
        finally:
            result["step"] = "nvmlShutdown"
            try:
                self._binding.call("nvmlShutdown")
            except NvmlError as exc:
                result["errors"].append(f"nvmlShutdown: {exc}")
        return result

    def _ask(self, function: str, *arguments: Any) -> Any:
        """The value, or None when the card or the driver does not have it."""
        self.result["step"] = function
        try:
            return self._binding.call(function, *arguments)
        except NvmlError as exc:
            if exc.code in FATAL:
                raise
            if exc.code not in ABSENT:
                self.result["errors"].append(f"{function}: {exc}")
            return None

    def _read_gpu(self, index: int) -> None:
        gpu: dict[str, Any] = {"index": index, "pci_address": None, "state": "ok", "state_detail": ""}
        self.result["gpus"].append(gpu)
        self.result["step"] = f"nvmlDeviceGetHandleByIndex({index})"
        try:
            handle = self._binding.call("nvmlDeviceGetHandleByIndex", index)
            self._identity(gpu, handle)
            for part, read in (
                ("memory", self._memory),
                ("power", self._power),
                ("health", self._health),
                ("mig", self._mig),
                ("nvlink", self._nvlink),
                ("processes", self._processes),
            ):
                if part in self._parts:
                    read(gpu, handle)
        except NvmlError as exc:
            gpu["state"] = {
                nvml_binding.GPU_IS_LOST: "gpu_lost",
                nvml_binding.RESET_REQUIRED: "gpu_needs_reset",
                nvml_binding.NO_PERMISSION: "permission_denied",
                nvml_binding.INSUFFICIENT_POWER: "gpu_insufficient_power",
                nvml_binding.IRQ_ISSUE: "gpu_interrupt_issue",
            }.get(exc.code, "gpu_error")
            gpu["state_detail"] = f"{self.result['step']}: {exc}"

    def _identity(self, gpu: dict[str, Any], handle: Any) -> None:
        pci = self._ask("nvmlDeviceGetPciInfo", handle)
        if pci is not None:
            bus_id = pci.busId or pci.busIdLegacy
            gpu["pci_address"] = normalise_pci_address(_text(bus_id))
            # Device id in the upper half, vendor id in the lower.
            gpu["pci_vendor_id"] = f"{pci.pciDeviceId & 0xFFFF:04x}"
            gpu["pci_device_id"] = f"{pci.pciDeviceId >> 16:04x}"
            if pci.pciSubSystemId not in (0, NO_32):
                gpu["pci_subsystem_vendor_id"] = f"{pci.pciSubSystemId & 0xFFFF:04x}"
                gpu["pci_subsystem_device_id"] = f"{pci.pciSubSystemId >> 16:04x}"
        gpu["name"] = _text(self._ask("nvmlDeviceGetName", handle))
        gpu["uuid"] = _text(self._ask("nvmlDeviceGetUUID", handle))
        gpu["serial"] = _text(self._ask("nvmlDeviceGetSerial", handle))
        gpu["minor_number"] = _number(self._ask("nvmlDeviceGetMinorNumber", handle))
        gpu["architecture"] = gpu_chips.NVML_ARCHITECTURES.get(self._ask("nvmlDeviceGetArchitecture", handle) or -1)
        capability = self._ask("nvmlDeviceGetCudaComputeCapability", handle)
        if capability:
            gpu["compute_capability"] = f"{capability[0]}.{capability[1]}"
        gpu["persistence_mode"] = _flag(self._ask("nvmlDeviceGetPersistenceMode", handle))
        gpu["compute_mode"] = COMPUTE_MODES.get(self._ask("nvmlDeviceGetComputeMode", handle))
        gpu["display_active"] = _flag(self._ask("nvmlDeviceGetDisplayActive", handle))

    def _memory(self, gpu: dict[str, Any], handle: Any) -> None:
        # v2 tells the reservation apart as nvidia-smi does; drivers before R510 have only v1.
        memory = self._ask("nvmlDeviceGetMemoryInfo", handle, nvml_binding.MEMORY_V2)
        if memory is None:
            memory = self._ask("nvmlDeviceGetMemoryInfo", handle)
        if memory is None:
            return
        gpu["memory_total_bytes"] = _number(memory.total)
        gpu["memory_free_bytes"] = _number(memory.free)
        gpu["memory_used_bytes"] = _number(memory.used)
        gpu["memory_reserved_bytes"] = _number(getattr(memory, "reserved", None))

    def _power(self, gpu: dict[str, Any], handle: Any) -> None:
        gpu["power_limit_watts"] = _watts(self._ask("nvmlDeviceGetEnforcedPowerLimit", handle))
        gpu["power_limit_default_watts"] = _watts(self._ask("nvmlDeviceGetPowerManagementDefaultLimit", handle))
        limits = self._ask("nvmlDeviceGetPowerManagementLimitConstraints", handle)
        gpu["power_limit_max_watts"] = _watts(limits[1]) if limits else None
        gpu["power_draw_watts"] = _watts(self._ask("nvmlDeviceGetPowerUsage", handle))
        gpu["temperature_celsius"] = _number(self._ask("nvmlDeviceGetTemperature", handle, 0))
        gpu["temperature_shutdown_celsius"] = _number(self._ask("nvmlDeviceGetTemperatureThreshold", handle, 0))
        gpu["temperature_slowdown_celsius"] = _number(self._ask("nvmlDeviceGetTemperatureThreshold", handle, 1))
        reasons = self._ask("nvmlDeviceGetCurrentClocksEventReasons", handle)
        if reasons is None:
            # The name before R535.
            reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        if reasons is not None:
            gpu["throttle_reasons"] = [name for bit, name in THROTTLE_REASONS if reasons & bit]
        rates = self._ask("nvmlDeviceGetUtilizationRates", handle)
        if rates is not None:
            gpu["utilization_gpu_percent"] = _number(rates.gpu)
            gpu["utilization_memory_percent"] = _number(rates.memory)

    def _health(self, gpu: dict[str, Any], handle: Any) -> None:
        mode = self._ask("nvmlDeviceGetEccMode", handle)
        if mode:
            gpu["ecc_enabled"], gpu["ecc_pending"] = bool(mode[0]), bool(mode[1])
        for error, error_type in (("corrected", 0), ("uncorrected", 1)):
            for counter, counter_type in (("volatile", 0), ("aggregate", 1)):
                gpu[f"ecc_{error}_{counter}_count"] = _number(
                    self._ask("nvmlDeviceGetTotalEccErrors", handle, error_type, counter_type)
                )
        gpu["retired_pages_pending"] = _flag(self._ask("nvmlDeviceGetRetiredPagesPendingStatus", handle))
        rows = self._ask("nvmlDeviceGetRemappedRows", handle)
        if rows:
            gpu["remapped_rows_count"] = rows[0] + rows[1]
            gpu["remapped_rows_pending"], gpu["remapped_rows_failed"] = bool(rows[2]), bool(rows[3])

    def _mig(self, gpu: dict[str, Any], handle: Any) -> None:
        mode = self._ask("nvmlDeviceGetMigMode", handle)
        if not mode:
            return
        gpu["mig_enabled"], gpu["mig_pending"] = bool(mode[0]), bool(mode[1])
        devices: list[dict[str, Any]] = []
        gpu["mig_devices"] = devices
        if not mode[0]:
            return
        for index in range(self._ask("nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
            device = self._ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, index)
            if device is None:
                continue
            attributes = self._ask("nvmlDeviceGetAttributes_v2", device)
            memory = self._ask("nvmlDeviceGetMemoryInfo", device)
            name = re.search(r"MIG (\S+)", _text(self._ask("nvmlDeviceGetName", device)) or "")
            devices.append(
                {
                    "uuid": _text(self._ask("nvmlDeviceGetUUID", device)),
                    "index": index,
                    "name": name.group(1) if name else _mig_profile(attributes),
                    "gpu_instance_id": _number(self._ask("nvmlDeviceGetGpuInstanceId", device)),
                    "compute_instance_id": _number(self._ask("nvmlDeviceGetComputeInstanceId", device)),
                    "memory_total_bytes": _number(memory.total) if memory else None,
                    "memory_free_bytes": _number(memory.free) if memory else None,
                    "multiprocessor_count": attributes.multiprocessorCount if attributes else None,
                }
            )

    def _nvlink(self, gpu: dict[str, Any], handle: Any) -> None:
        links = []
        for link in range(MAX_NVLINKS):
            active = self._ask("nvmlDeviceGetNvLinkState", handle, link)
            if active is None:
                # Cards without NVLink say so at link 0, others behind their last link.
                break
            remote = self._ask("nvmlDeviceGetNvLinkRemotePciInfo", handle, link) if active else None
            links.append(
                {
                    "link": link,
                    "active": bool(active),
                    "version": _number(self._ask("nvmlDeviceGetNvLinkVersion", handle, link)),
                    "remote_pci_address": normalise_pci_address(_text(remote.busId)) if remote else None,
                }
            )
        if links:
            gpu["nvlinks"] = links
            gpu["nvlink_active_count"] = sum(1 for entry in links if entry["active"])
        gpu["fabric_state"] = self._fabric(handle)

    def _fabric(self, handle: Any) -> str | None:
        newer = nvml_binding.FabricInfoV2(version=nvml_binding.FABRIC_V2)
        older = nvml_binding.FabricInfo()
        for function, info in (("nvmlDeviceGetGpuFabricInfoV", newer), ("nvmlDeviceGetGpuFabricInfo", older)):
            self.result["step"] = function
            try:
                code = self._binding.call(function, handle, byref(info))
            except NvmlError as exc:
                if exc.code in FATAL:
                    raise
                continue
            if code in (None, nvml_binding.SUCCESS):
                return FABRIC_STATES.get(info.state)
        return None

    def _processes(self, gpu: dict[str, Any], handle: Any) -> None:
        found: dict[int, dict[str, Any]] = {}
        answered = False
        for kind in ("Compute", "Graphics"):
            running = None
            for version in ("_v3", "_v2"):
                running = self._ask(f"nvmlDeviceGet{kind}RunningProcesses{version}", handle)
                if running is not None:
                    break
            if running is None:
                continue
            answered = True
            for process in running:
                entry = found.setdefault(
                    process.pid,
                    {
                        "pid": process.pid,
                        "type": kind.lower(),
                        "name": self._process_name(process.pid),
                        "memory_used_bytes": _number(process.usedGpuMemory),
                    },
                )
                if entry["type"] != kind.lower():
                    entry["type"] = "compute_graphics"
        if answered:
            gpu["processes"] = [found[pid] for pid in sorted(found)]

    def _process_name(self, pid: int) -> str | None:
        name = _text(self._ask("nvmlSystemGetProcessName", pid))
        if name:
            # The first word only: arguments can carry secrets.
            return name.split(" ")[0]
        try:
            with open(os.path.join(self._root, f"proc/{pid}/comm"), encoding="utf-8", errors="replace") as stream:
                return stream.read(64).strip() or None
        except OSError:
            return None


def _mig_profile(attributes: Any) -> str | None:
    if attributes is None or not attributes.gpuInstanceSliceCount:
        return None
    slices, computes = attributes.gpuInstanceSliceCount, attributes.computeInstanceSliceCount
    prefix = "" if slices == computes else f"{computes}c."
    return f"{prefix}{slices}g.{round(attributes.memorySizeMB / 1024)}gb"


def _text(value: Any) -> str | None:
    if value is None:
        return None
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    text = text.strip()
    return None if text in ("", "N/A", "[N/A]", "Unknown Error") else text


def _number(value: Any) -> int | None:
    return None if value is None or value in (NO_32, NO_64) else int(value)


def _flag(value: Any) -> bool | None:
    return None if value is None else bool(value)


def _watts(milliwatts: Any) -> float | None:
    number = _number(milliwatts)
    return None if number is None else round(number / 1000, 3)
