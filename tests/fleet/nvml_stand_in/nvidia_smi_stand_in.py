#!/usr/bin/env python3
# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A STAND-IN for nvidia-smi: prints what the profile of the NVML stand-in says, in the shapes of the real tool.

Knows ``-q -x``, ``-L``, ``--query-gpu=… --format=csv[,noheader][,nounits]``, ``--query-compute-apps=…``, ``--version`` and
the plain table. The shapes follow nvidia-smi 535 to 590 (XML: nvsmi_device_v12.dtd); exit statuses are NVML's numbers, as
the manual of nvidia-smi says. Format of profiles: README.md. Python 3.9, stdlib only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from xml.sax.saxutils import escape

DEFAULT_PROFILE = "/etc/gpufleet-nvml-profile"
NA = "N/A"
ERRORS = {
    4: "Failed to initialize NVML: Insufficient Permissions",
    18: "Failed to initialize NVML: Driver/library version mismatch",
    999: "Failed to initialize NVML: Unknown Error",
}
NOT_LOADED = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
    "Make sure that the latest NVIDIA driver is installed and running.\n"
)
ARCHITECTURES = {"ada": "Ada Lovelace"}
COMPUTE_MODES = {"0": "Default", "1": "Exclusive_Thread", "2": "Prohibited", "3": "Exclusive_Process"}
THROTTLE = (
    (0x1, "gpu_idle"),
    (0x2, "applications_clocks_setting"),
    (0x4, "sw_power_cap"),
    (0x8, "hw_slowdown"),
    (0x40, "hw_thermal_slowdown"),
    (0x80, "hw_power_brake_slowdown"),
    (0x10, "sync_boost"),
    (0x20, "sw_thermal_slowdown"),
    (0x100, "display_clocks_setting"),
)


class Section(dict):
    """Keys of one section of a profile; ``kind`` is its name, ``below`` what belongs to it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.below: list[Section] = []

    def of(self, kind: str) -> list[Section]:
        return [section for section in self.below if section.kind == kind]

    def value(self, key: str) -> str | None:
        """None for a missing key and for an error."""
        text = self.get(key)
        return None if text is None or text.startswith("error ") or text == "hang" else text

    def error(self, key: str) -> int:
        """The number of "error N", else 0."""
        text = self.get(key, "")
        return int(text.split()[1]) if text.startswith("error ") else 0


def load(path: str) -> tuple[Section, list[Section]]:
    """``(node, gpus)`` of a profile."""
    node, gpus = Section("node"), []
    here = node
    with open(path, encoding="utf-8") as stream:
        for raw in stream:
            line = raw.strip()
            if not line or line.startswith("#"):
                continue
            if line.startswith("["):
                kind = line.strip("[]")
                here = node if kind == "node" else Section(kind)
                if kind == "gpu":
                    gpus.append(here)
                elif kind != "node":
                    (gpus[-1] if gpus else node).below.append(here)
                continue
            key, _equals, value = line.partition("=")
            here[key.strip()] = value.strip()
    return node, gpus


def profile_path() -> str:
    return os.environ.get("GPUFLEET_NVML_PROFILE") or DEFAULT_PROFILE


def smi_address(address: str) -> str:
    """``0000:3b:00.0`` -> ``00000000:3B:00.0``."""
    domain, bus, rest = address.split(":")
    return f"{int(domain, 16):08X}:{int(bus, 16):02X}:{rest.upper()}"


def main(arguments: list[str]) -> int:
    try:
        node, gpus = load(profile_path())
    except OSError:
        print(NOT_LOADED)
        return 9
    if arguments and arguments[0] == "--version":
        print(
            f"NVIDIA-SMI version  : {node['driver_version']}\nNVML version        : {node['driver_version'].rpartition('.')[0]}"
        )
        print(f"DRIVER version      : {node['driver_version']}\nCUDA Version        : {cuda(node)}")
        return 0
    code = node.error("init")
    if code == 9:
        print(NOT_LOADED)
        return 9
    if code:
        print(ERRORS.get(code, f"Failed to initialize NVML: error {code}"))
        if code == 18:
            # The library names itself by its first two numbers.
            print(f"NVML library version: {'.'.join(node.get('library_version', '').split('.')[:2])}")
        return code if code < 256 else 255
    if not gpus:
        print("No devices were found")
        return 6
    for gpu in gpus:
        if gpu.error("handle") == 15:
            where = f"Unable to determine the device handle for GPU {gpu['pci'].upper()}"
            print(f"{where}: GPU is lost.  Reboot the system to recover this GPU")
            return 15
        if gpu.error("handle"):
            print(f"Unable to determine the device handle for GPU{gpu['pci'].upper()}: Unknown Error")
            return 255
    if "-L" in arguments or "--list-gpus" in arguments:
        return list_gpus(gpus)
    if "-q" in arguments and "-x" in arguments:
        print(xml(node, gpus))
        return 0
    query = next((a.split("=", 1)[1] for a in arguments if a.startswith("--query-gpu=")), None)
    if query is not None:
        return query_gpu(node, gpus, query.split(","), formats(arguments))
    query = next((a.split("=", 1)[1] for a in arguments if a.startswith("--query-compute-apps=")), None)
    if query is not None:
        return query_apps(gpus, query.split(","), formats(arguments))
    if arguments:
        print(
            f"Invalid combination of input arguments. Please run 'nvidia-smi -h' for help. (stand-in: {' '.join(arguments)})"
        )
        return 2
    table(node, gpus)
    return 0


def formats(arguments: list[str]) -> list[str]:
    return next((a.split("=", 1)[1].split(",") for a in arguments if a.startswith("--format=")), [])


def cuda(node: Section) -> str:
    number = int(node.value("cuda_driver_api") or 0)
    return f"{number // 1000}.{number % 1000 // 10}" if number else NA


def list_gpus(gpus: list[Section]) -> int:
    for index, gpu in enumerate(gpus):
        print(f"GPU {index}: {gpu['name']} (UUID: {gpu['uuid']})")
        for number, mig in enumerate(gpu.of("mig")):
            print(f"  MIG {mig['profile']:<15} Device {number:>2}: (UUID: {mig['uuid']})")
    return 0


def enabled(value: str | None, yes: str = "Enabled", no: str = "Disabled") -> str:
    return NA if value is None else yes if value.lower() in ("on", "1", "yes") else no


def free_mib(gpu: Section) -> str | None:
    total = gpu.value("memory_total_mib")
    if total is None:
        return None
    return str(int(total) - int(gpu.value("memory_reserved_mib") or 0) - int(gpu.value("memory_used_mib") or 0))


def with_unit(value: str | None, unit: str, form: str = "{}") -> str:
    return NA if value is None else f"{form.format(float(value) if '.' in form else value)} {unit}"


def query_gpu(node: Section, gpus: list[Section], fields: list[str], options: list[str]) -> int:
    answers: dict[str, Callable[[Section, int], tuple[str | None, str]]] = {
        "index": lambda g, i: (str(i), ""),
        "name": lambda g, i: (g.value("name"), ""),
        "gpu_name": lambda g, i: (g.value("name"), ""),
        "uuid": lambda g, i: (g.value("uuid"), ""),
        "gpu_uuid": lambda g, i: (g.value("uuid"), ""),
        "serial": lambda g, i: (g.value("serial"), ""),
        "count": lambda g, i: (str(len(gpus)), ""),
        "driver_version": lambda g, i: (node.value("driver_version"), ""),
        "pci.bus_id": lambda g, i: (smi_address(g["pci"]), ""),
        "gpu_bus_id": lambda g, i: (smi_address(g["pci"]), ""),
        "compute_cap": lambda g, i: (g.value("compute_capability"), ""),
        "memory.total": lambda g, i: (g.value("memory_total_mib"), "MiB"),
        "memory.reserved": lambda g, i: (g.value("memory_reserved_mib"), "MiB"),
        "memory.used": lambda g, i: (g.value("memory_used_mib"), "MiB"),
        "memory.free": lambda g, i: (free_mib(g), "MiB"),
        "power.draw": lambda g, i: (decimal(g.value("power_draw_watts")), "W"),
        "power.limit": lambda g, i: (decimal(g.value("power_limit_watts")), "W"),
        "enforced.power.limit": lambda g, i: (decimal(g.value("power_limit_watts")), "W"),
        "temperature.gpu": lambda g, i: (g.value("temperature_celsius"), ""),
        "utilization.gpu": lambda g, i: (g.value("utilization_gpu_percent"), "%"),
        "persistence_mode": lambda g, i: (none(enabled(g.value("persistence_mode"))), ""),
        "compute_mode": lambda g, i: (COMPUTE_MODES.get(g.value("compute_mode") or ""), ""),
        "ecc.mode.current": lambda g, i: (none(enabled(g.value("ecc"))), ""),
        "ecc.errors.uncorrected.volatile.total": lambda g, i: (g.value("ecc_uncorrected_volatile"), ""),
        "mig.mode.current": lambda g, i: (none(enabled(g.value("mig"))), ""),
    }
    units = {"memory.": "MiB", "power.": "W", "enforced.power": "W", "utilization.": "%"}
    for field in fields:
        if field.strip() not in answers:
            print(f'Field "{field}" is not a valid field to query.\n')
            return 2
    if "noheader" not in options:
        print(", ".join(head(field.strip(), units) for field in fields))
    for index, gpu in enumerate(gpus):
        row = []
        for field in fields:
            value, unit = answers[field.strip()](gpu, index)
            row.append("[N/A]" if value is None else value if "nounits" in options or not unit else f"{value} {unit}")
        print(", ".join(row))
    return 0


def head(field: str, units: dict[str, str]) -> str:
    unit = next((unit for start, unit in units.items() if field.startswith(start)), None)
    return f"{field} [{unit}]" if unit else field


def none(text: str) -> str | None:
    return None if text == NA else text


def decimal(text: str | None) -> str | None:
    return None if text is None else f"{float(text):.2f}"


def query_apps(gpus: list[Section], fields: list[str], options: list[str]) -> int:
    if "noheader" not in options:
        print(
            ", ".join(
                "used_gpu_memory [MiB]" if field in ("used_memory", "used_gpu_memory") else field for field in fields
            )
        )
    for gpu in gpus:
        for process in gpu.of("process"):
            if "C" not in process.get("type", ""):
                continue
            mib = process.value("memory_used_mib")
            values = {
                "pid": process["pid"],
                "process_name": process["name"],
                "gpu_uuid": gpu["uuid"],
                "used_memory": "[N/A]" if mib is None else mib if "nounits" in options else f"{mib} MiB",
            }
            values["used_gpu_memory"], values["name"] = values["used_memory"], values["process_name"]
            print(", ".join(values.get(field.strip(), "[N/A]") for field in fields))
    return 0


class Xml:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.depth = 0

    def leaf(self, name: str, text: str | None) -> None:
        self.lines.append("\t" * self.depth + f"<{name}>{escape(NA if text is None else text)}</{name}>")

    def open(self, name: str, attributes: str = "") -> None:
        self.lines.append("\t" * self.depth + f"<{name}{attributes}>")
        self.depth += 1

    def close(self, name: str) -> None:
        self.depth -= 1
        self.lines.append("\t" * self.depth + f"</{name}>")

    def block(self, name: str, leaves: dict[str, str | None]) -> None:
        self.open(name)
        for key, value in leaves.items():
            self.leaf(key, value)
        self.close(name)


def xml(node: Section, gpus: list[Section]) -> str:
    out = Xml()
    out.lines += ['<?xml version="1.0" ?>', '<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">']
    out.open("nvidia_smi_log")
    out.leaf("timestamp", "Mon Jan  1 00:00:00 2024")
    out.leaf("driver_version", node.value("driver_version"))
    out.leaf("cuda_version", cuda(node))
    out.leaf("attached_gpus", str(len(gpus)))
    for gpu in gpus:
        xml_gpu(out, gpu)
    out.close("nvidia_smi_log")
    return "\n".join(out.lines)


def xml_gpu(out: Xml, gpu: Section) -> None:
    address = smi_address(gpu["pci"])
    vendor, device = (gpu.value("pci_id") or "10de:0000").upper().split(":")
    sub_vendor, sub_device = (gpu.value("pci_subsystem") or "10de:0000").upper().split(":")
    architecture = gpu.value("architecture")
    out.open("gpu", f' id="{address}"')
    out.leaf("product_name", gpu.value("name"))
    out.leaf("product_brand", "NVIDIA")
    out.leaf(
        "product_architecture", ARCHITECTURES.get(architecture, architecture.capitalize()) if architecture else None
    )
    out.leaf("display_mode", enabled(gpu.value("display_active")))
    out.leaf("display_active", enabled(gpu.value("display_active")))
    out.leaf("persistence_mode", enabled(gpu.value("persistence_mode")))
    out.leaf("addressing_mode", "None")
    mig = gpu.value("mig")
    out.block("mig_mode", {"current_mig": enabled(mig), "pending_mig": enabled(gpu.value("mig_pending") or mig)})
    xml_mig(out, gpu)
    out.leaf("serial", gpu.value("serial"))
    out.leaf("uuid", gpu.value("uuid"))
    out.leaf("minor_number", gpu.value("minor_number"))
    out.open("pci")
    for name, text in (
        ("pci_bus", address.split(":")[1]),
        ("pci_device", address.split(":")[2].split(".")[0]),
        ("pci_domain", address[4:8]),
        ("pci_device_id", device + vendor),
        ("pci_bus_id", address),
        ("pci_sub_system_id", sub_device + sub_vendor),
    ):
        out.leaf(name, text)
    out.close("pci")
    reasons = gpu.value("throttle_reasons")
    if reasons is None:
        out.leaf("clocks_event_reasons", None)
    else:
        bits = int(reasons, 0)
        out.block(
            "clocks_event_reasons",
            {f"clocks_event_reason_{name}": "Active" if bits & bit else "Not Active" for bit, name in THROTTLE},
        )
    out.block(
        "fb_memory_usage",
        {
            "total": with_unit(gpu.value("memory_total_mib"), "MiB"),
            "reserved": with_unit(gpu.value("memory_reserved_mib"), "MiB"),
            "used": with_unit(gpu.value("memory_used_mib"), "MiB"),
            "free": with_unit(free_mib(gpu), "MiB"),
        },
    )
    out.leaf("compute_mode", COMPUTE_MODES.get(gpu.value("compute_mode") or ""))
    out.block(
        "utilization",
        {
            "gpu_util": with_unit(gpu.value("utilization_gpu_percent"), "%"),
            "memory_util": with_unit(gpu.value("utilization_memory_percent"), "%"),
        },
    )
    ecc = gpu.value("ecc")
    out.block("ecc_mode", {"current_ecc": enabled(ecc), "pending_ecc": enabled(gpu.value("ecc_pending") or ecc)})
    out.open("ecc_errors")
    for counter in ("volatile", "aggregate"):
        corrected = gpu.value(f"ecc_corrected_{counter}")
        uncorrected = gpu.value(f"ecc_uncorrected_{counter}")
        out.block(
            counter,
            {
                "sram_correctable": None if corrected is None else "0",
                "sram_uncorrectable": None if uncorrected is None else "0",
                "dram_correctable": corrected,
                "dram_uncorrectable": uncorrected,
            },
        )
    out.close("ecc_errors")
    out.block("retired_pages", {"pending_retirement": enabled(gpu.value("retired_pages_pending"), "Yes", "No")})
    if gpu.value("remapped_rows_corrected") is None:
        out.leaf("remapped_rows", None)
    else:
        out.block(
            "remapped_rows",
            {
                "remapped_row_corr": gpu.value("remapped_rows_corrected"),
                "remapped_row_unc": gpu.value("remapped_rows_uncorrected") or "0",
                "remapped_row_pending": enabled(gpu.value("remapped_rows_pending") or "off", "Yes", "No"),
                "remapped_row_failure": enabled(gpu.value("remapped_rows_failed") or "off", "Yes", "No"),
            },
        )
    out.block(
        "temperature",
        {
            "gpu_temp": with_unit(gpu.value("temperature_celsius"), "C"),
            "gpu_temp_max_threshold": with_unit(gpu.value("temperature_shutdown_celsius"), "C"),
            "gpu_temp_slow_threshold": with_unit(gpu.value("temperature_slowdown_celsius"), "C"),
        },
    )
    out.block(
        "gpu_power_readings",
        {
            "power_draw": with_unit(gpu.value("power_draw_watts"), "W", "{:.2f}"),
            "current_power_limit": with_unit(gpu.value("power_limit_watts"), "W", "{:.2f}"),
            "default_power_limit": with_unit(gpu.value("power_limit_default_watts"), "W", "{:.2f}"),
            "max_power_limit": with_unit(gpu.value("power_limit_max_watts"), "W", "{:.2f}"),
        },
    )
    states = {"1": "Not Started", "2": "In Progress", "3": "Completed"}
    out.block("fabric", {"state": states.get(gpu.value("fabric_state") or ""), "status": None})
    xml_processes(out, gpu)
    out.close("gpu")


def xml_mig(out: Xml, gpu: Section) -> None:
    if not gpu.of("mig"):
        out.lines.append(
            "\t" * out.depth
            + "<mig_devices>\n"
            + "\t" * (out.depth + 1)
            + "None\n"
            + "\t" * out.depth
            + "</mig_devices>"
        )
        return
    out.open("mig_devices")
    for index, device in enumerate(gpu.of("mig")):
        out.open("mig_device")
        out.leaf("index", str(index))
        out.leaf("gpu_instance_id", device["gpu_instance_id"])
        out.leaf("compute_instance_id", device["compute_instance_id"])
        out.open("device_attributes")
        out.block("shared", {"multiprocessor_count": device["multiprocessor_count"]})
        out.close("device_attributes")
        used = device.value("memory_used_mib") or "0"
        out.block(
            "fb_memory_usage",
            {
                "total": f"{device['memory_total_mib']} MiB",
                "reserved": "0 MiB",
                "used": f"{used} MiB",
                "free": f"{int(device['memory_total_mib']) - int(used)} MiB",
            },
        )
        out.close("mig_device")
    out.close("mig_devices")


def xml_processes(out: Xml, gpu: Section) -> None:
    if gpu.value("processes") is None:
        out.leaf("processes", None)
        return
    out.open("processes")
    for process in gpu.of("process"):
        out.block(
            "process_info",
            {
                "gpu_instance_id": None,
                "compute_instance_id": None,
                "pid": process["pid"],
                "type": process["type"],
                "process_name": process["name"],
                "used_memory": with_unit(process.value("memory_used_mib"), "MiB"),
            },
        )
    out.close("processes")


def table(node: Section, gpus: list[Section]) -> None:
    bar = "+" + "-" * 89 + "+"
    print(bar)
    version = node["driver_version"]
    print(f"| NVIDIA-SMI {version:<22} Driver Version: {version:<15} CUDA Version: {cuda(node):<9}|")
    print(bar)
    for index, gpu in enumerate(gpus):
        used, total = gpu.value("memory_used_mib") or NA, gpu.value("memory_total_mib") or NA
        print(f"| {index:>3}  {gpu['name']:<32} {smi_address(gpu['pci'])} {used + 'MiB / ' + total + 'MiB':>30} |")
    print(bar)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
