#!/usr/bin/env python3
# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the kernel's files for a profile of the NVML stand-in: ``make_tree.py PROFILE OUTDIR``.

Writes, in a layout that can be bind-mounted piece by piece (README.md says where):

* ``pci/``: what /sys/bus/pci/devices shows: one folder per card (and NVSwitch) with vendor, device, class, subsystem ids,
  config (the first 64 bytes), numa_node and a link ``driver``
* ``proc-driver/``: what /proc/driver shows: nvidia/version and nvidia/gpus/<address>/information, when a module is loaded
* ``sys-module-nvidia/``: what /sys/module/nvidia shows: version, refcnt, when a module is loaded
"""

from __future__ import annotations

import os
import shutil
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from nvidia_smi_stand_in import Section, load


def write(path: str, text: str | bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as stream:
        stream.write(text if isinstance(text, bytes) else text.encode())


def pci_function(folder: str, section: Section) -> None:
    vendor, device = section["pci_id"].split(":")
    sub_vendor, sub_device = section.get("pci_subsystem", "10de:0000").split(":")
    pci_class = section.get("pci_class", "030200")
    write(f"{folder}/vendor", f"0x{vendor}\n")
    write(f"{folder}/device", f"0x{device}\n")
    write(f"{folder}/class", f"0x{pci_class}\n")
    write(f"{folder}/subsystem_vendor", f"0x{sub_vendor}\n")
    write(f"{folder}/subsystem_device", f"0x{sub_device}\n")
    write(f"{folder}/numa_node", f"{section.get('numa_node', '-1')}\n")
    header = bytes.fromhex(vendor)[::-1] + bytes.fromhex(device)[::-1]
    gone = section.get("off_bus", "off") == "on"
    write(f"{folder}/config", b"\xff" * 64 if gone else header + bytes(60))
    driver = section.get("kernel_driver", "nvidia")
    if driver != "none":
        os.symlink(f"../../../bus/pci/drivers/{driver}", f"{folder}/driver")


def make_tree(profile: str, out: str) -> None:
    """Make the folders anew under ``out``."""
    node, gpus = load(profile)
    for name in ("pci", "proc-driver", "sys-module-nvidia"):
        shutil.rmtree(os.path.join(out, name), ignore_errors=True)
        os.makedirs(os.path.join(out, name))
    # NVSwitch, and cards that the driver does not list.
    others = [section for above in (node, *gpus) for kind in ("nvswitch", "only_on_bus") for section in above.of(kind)]
    for section in [*gpus, *others]:
        pci_function(os.path.join(out, "pci", section["pci"]), section)
    version = node.get("loaded_version", node.get("driver_version"))
    if not version or node.get("module", "loaded") != "loaded":
        return
    if node.get("flavour", "proprietary") == "open":
        text = f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build  (stand-in)  Mon Jan  1 2024\n"
    else:
        text = f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Mon Jan  1 00:00:00 UTC 2024\n"
    write(os.path.join(out, "proc-driver/nvidia/version"), text + "GCC version:  gcc version 12.2.0 (stand-in)\n")
    write(os.path.join(out, "sys-module-nvidia/version"), f"{version}\n")
    write(os.path.join(out, "sys-module-nvidia/refcnt"), f"{node.get('use_count', '0')}\n")
    for gpu in gpus:
        lines = (
            f"Model: \t\t {gpu.get('name', 'Unknown')}",
            "IRQ:   \t\t 42",
            f"GPU UUID: \t {gpu.get('uuid', 'GPU-????????-????-????-????-????????????')}",
            "Bus Type: \t PCIe",
            f"Bus Location: \t {gpu['pci']}",
            f"Device Minor: \t {gpu.get('minor_number', '0')}",
            "GPU Excluded:\t No",
        )
        write(os.path.join(out, f"proc-driver/nvidia/gpus/{gpu['pci']}/information"), "\n".join(lines) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: make_tree.py PROFILE OUTDIR")
    make_tree(sys.argv[1], sys.argv[2])
