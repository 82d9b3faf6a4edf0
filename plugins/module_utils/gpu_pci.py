# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""NVIDIA functions on the PCI bus, from sysfs and the driver's files in /proc, without waking a GPU."""

from __future__ import annotations

import os
import re
from typing import Any

VENDOR = "10de"
# Display controllers (VGA, 3D, other) and processing accelerators. Matching 0300 and 0302 alone misses cards.
GPU_CLASSES = ("0300", "0302", "0380", "1200")
# NVSwitch is a bridge of class 0680; old nForce chipsets used that class with ids far below.
NVSWITCH_CLASS = "0680"
NVSWITCH_FIRST_ID = 0x1AC0

_ADDRESS = re.compile(r"^(?:([0-9a-f]{1,8}):)?([0-9a-f]{1,2}):([0-9a-f]{1,2})(?:\.([0-7]))?$")


def normalise_pci_address(text: Any) -> str | None:
    """``00000000:3B:00.0``, ``0000:3b:00.0``, ``3b:00.0`` -> ``0000:3b:00.0``; None for what is no PCI address.

    The domain keeps four digits and grows only when it needs more, as the kernel writes it.
    """
    match = _ADDRESS.match(str(text or "").strip().lower())
    if not match:
        return None
    domain, bus, device, function = match.groups()
    return f"{int(domain or '0', 16):04x}:{int(bus, 16):02x}:{int(device, 16):02x}.{function or '0'}"


def read_text(path: str, limit: int = 65536) -> str | None:
    """The start of a small text file, stripped; None when it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read(limit).strip()
    except OSError:
        return None


def under(root: str, *parts: str) -> str:
    """An absolute path of the node below ``root`` (``/`` on a real node)."""
    return os.path.join(root, *[part.lstrip("/") for part in parts])


def scan(root: str = "/") -> dict[str, list[dict[str, Any]]]:
    """``{"gpus": [...], "nvswitches": [...]}`` in the order of their addresses.

    Each entry: ``pci_address``, ``pci_vendor_id``, ``pci_device_id``, ``pci_subsystem_vendor_id``,
    ``pci_subsystem_device_id``, ``pci_class``, ``pci_driver``, ``numa_node`` and ``off_bus`` (the configuration space
    reads as all ones: the card is gone although the kernel still lists it).
    """
    bus = under(root, "/sys/bus/pci/devices")
    found: dict[str, list[dict[str, Any]]] = {"gpus": [], "nvswitches": []}
    try:
        names = sorted(os.listdir(bus))
    except OSError:
        return found
    for name in names:
        address = normalise_pci_address(name)
        folder = os.path.join(bus, name)
        if address is None or _hexadecimal(read_text(os.path.join(folder, "vendor")), 4) != VENDOR:
            continue
        pci_class = _hexadecimal(read_text(os.path.join(folder, "class")), 6) or ""
        device = _hexadecimal(read_text(os.path.join(folder, "device")), 4)
        is_switch = pci_class[:4] == NVSWITCH_CLASS and int(device or "0", 16) >= NVSWITCH_FIRST_ID
        if pci_class[:4] not in GPU_CLASSES and not is_switch:
            continue
        found["nvswitches" if is_switch else "gpus"].append(
            {
                "pci_address": address,
                "pci_vendor_id": VENDOR,
                "pci_device_id": device,
                "pci_subsystem_vendor_id": _hexadecimal(read_text(os.path.join(folder, "subsystem_vendor")), 4),
                "pci_subsystem_device_id": _hexadecimal(read_text(os.path.join(folder, "subsystem_device")), 4),
                "pci_class": pci_class or None,
                "pci_driver": _link_name(os.path.join(folder, "driver")),
                "numa_node": _numa_node(os.path.join(folder, "numa_node")),
                "off_bus": _off_bus(folder),
            }
        )
    return found


def proc_information(root: str, address: str) -> dict[str, Any]:
    """What ``/proc/driver/nvidia/gpus/<address>/information`` says: ``name``, ``uuid``, ``minor_number`` (each or None)."""
    text = read_text(under(root, "/proc/driver/nvidia/gpus", address, "information")) or ""
    values = {}
    for line in text.splitlines():
        key, _colon, value = line.partition(":")
        values[key.strip()] = value.strip()
    uuid = values.get("GPU UUID") or None
    minor = values.get("Device Minor", "")
    return {
        "name": values.get("Model") or None,
        # The driver prints question marks until the GPU was initialised once.
        "uuid": uuid if uuid and "?" not in uuid else None,
        "minor_number": int(minor) if minor.isdigit() else None,
    }


def _hexadecimal(text: str | None, digits: int) -> str | None:
    try:
        return format(int(text or "", 16), f"0{digits}x")
    except ValueError:
        return None


def _link_name(path: str) -> str | None:
    try:
        return os.path.basename(os.readlink(path))
    except OSError:
        return None


def _numa_node(path: str) -> int | None:
    text = read_text(path) or ""
    # The kernel writes -1 for "no node".
    return int(text) if text.isdigit() else None


def _off_bus(folder: str) -> bool:
    # A card that sleeps would be woken by reading its configuration space, and one that sleeps is there.
    if read_text(os.path.join(folder, "power", "runtime_status")) == "suspended":
        return False
    try:
        with open(os.path.join(folder, "config"), "rb") as stream:
            return stream.read(4) == b"\xff\xff\xff\xff"
    except OSError:
        return False
