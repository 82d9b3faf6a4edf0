# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The states that ``gpu_facts`` can report: a catalogue, and the function that finds them in gathered facts.

The catalogue is in the order of severity: the first of the states found is the node's ``state``.
``docs/reference/gpu_facts-states.md`` is made from it (``tests/unit/module_utils/test_gpu_states.py`` compares them).
"""

from __future__ import annotations

import re
from typing import Any

from ansible_collections.gpufleet.llm.plugins.module_utils import nvml_binding

ERROR = "error"
WARNING = "warning"
INFO = "info"

# name, severity, cause, remedy
_CATALOGUE = (
    (
        "driver_timeout",
        ERROR,
        "The driver's library did not answer in the time allowed. A GPU hangs, or the driver initialises many GPUs anew.",
        "Look for Xid lines in the kernel's log (dmesg). With many GPUs run nvidia-persistenced and raise timeout_seconds; "
        "otherwise reset the GPU or reboot.",
    ),
    (
        "driver_library_mismatch",
        ERROR,
        "The loaded kernel module and the installed library differ in version, usually after an upgrade without a reboot.",
        "Reboot, or stop every user of the GPU and reload the modules: rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia, then "
        "modprobe nvidia. Hold the driver's packages so that an unattended upgrade cannot do it again.",
    ),
    (
        "permission_denied",
        ERROR,
        "The user may not open the driver's devices (/dev/nvidiactl, /dev/nvidiaN), or a cgroup forbids it.",
        "Run as root, add the user to the group that owns /dev/nvidia* (often video), or give the container the devices.",
    ),
    (
        "gpu_lost",
        ERROR,
        "The driver lost contact with a GPU (Xid 79): overheating, power, a loose card or cable, or a broken card.",
        "Read the kernel's log for Xid 79, check temperature, power supply and seating, then power the node off and on. "
        "When it comes back, exchange the card.",
    ),
    (
        "gpu_off_bus",
        ERROR,
        "A card no longer answers on the PCI bus (its configuration space reads as all ones): overheating, power or a bad seat.",
        "Power the node off (a warm reboot often does not help), check cooling, power cables and seating, then power on.",
    ),
    (
        "gpu_needs_reset",
        ERROR,
        "A GPU needs a reset before it can be used again, usually after an uncorrectable error.",
        "Stop its users and run nvidia-smi --gpu-reset -i <index>, or reboot.",
    ),
    (
        "gpu_insufficient_power",
        ERROR,
        "The card's external power cables are not properly attached.",
        "Power the node off and attach the power cables.",
    ),
    (
        "gpu_interrupt_issue",
        ERROR,
        "The kernel detected an interrupt problem with a GPU.",
        "Check the firmware's settings for interrupts (MSI, IOMMU) and the kernel's log, then reboot.",
    ),
    (
        "gpu_unsupported_by_driver",
        ERROR,
        "The installed driver branch no longer drives this generation of GPU.",
        "Install the last driver branch that does; it is in last_driver_branch.",
    ),
    (
        "module_wrong_flavour",
        ERROR,
        "The kernel module's flavour cannot drive this GPU: open modules need Turing or newer, Blackwell needs open modules.",
        "Install the flavour that module_flavours names and reload the modules or reboot.",
    ),
    (
        "gpu_missing",
        ERROR,
        "The GPU is on the PCI bus and the driver is loaded, but the driver does not list it: it failed to initialise.",
        "Read the kernel's log for NVRM lines about this PCI address. Check temperature and power; then reboot.",
    ),
    (
        "gpu_error",
        ERROR,
        "The driver answered a question about this GPU with an error that is not one of the others.",
        "Look in the kernel's log for NVRM and Xid lines of this PCI address. If it stays, reset the GPU or reboot.",
    ),
    (
        "device_nodes_missing",
        ERROR,
        "The kernel module is loaded, but /dev/nvidiactl is not there.",
        "Install nvidia-modprobe or run nvidia-smi once as root; in a container give it the devices (CDI, "
        "nvidia-container-toolkit).",
    ),
    (
        "library_missing",
        ERROR,
        "The kernel module is loaded, but the driver's libraries (libnvidia-ml.so.1, libcuda.so.1) are not installed.",
        "Install the driver's user-space part in the module's version. The CUDA toolkit does not contain it. In a container "
        "use the NVIDIA container toolkit.",
    ),
    (
        "nouveau_bound",
        ERROR,
        "The free driver nouveau holds the GPU, so NVIDIA's driver cannot take it.",
        "Blacklist nouveau in /etc/modprobe.d, rebuild the initramfs, reboot. The role nvidia_driver does it.",
    ),
    (
        "gpu_passed_through",
        ERROR,
        "The GPU is bound to vfio-pci for a virtual machine, so this host does not use it.",
        "Nothing, if that is meant. Otherwise unbind it from vfio-pci and load NVIDIA's driver.",
    ),
    (
        "module_rejected",
        ERROR,
        "The module is installed but unsigned, and Secure Boot or kernel lockdown lets in only signed modules.",
        "Sign the module with a key that is enrolled (mokutil --import, confirmed on the console at the next boot), install a "
        "signed module of the distribution, or turn Secure Boot off.",
    ),
    (
        "module_missing_for_kernel",
        ERROR,
        "The module is installed for other kernels, or known to DKMS, but not built for the running one.",
        "Install the running kernel's headers and run dkms autoinstall, or boot the kernel that has the module.",
    ),
    (
        "module_not_loaded",
        ERROR,
        "The module for the running kernel is installed but not loaded.",
        "Run modprobe nvidia and read the kernel's log if it fails; a reboot loads it too.",
    ),
    (
        "driver_not_installed",
        ERROR,
        "There is an NVIDIA GPU but no driver.",
        "Install the driver. The role nvidia_driver picks branch and flavour; playbooks/plan.yml shows them first.",
    ),
    (
        "operating_system_blocked",
        ERROR,
        "The operating system or a cgroup blocks the driver's control device.",
        "Allow /dev/nvidiactl in the container's or the unit's device rules (DeviceAllow, --device, CDI).",
    ),
    (
        "nvml_error",
        ERROR,
        "NVML, or nvidia-smi, failed with an error that is not one of the others.",
        "The detail has its number and words. Read the kernel's log for NVRM lines and report the number.",
    ),
    (
        "no_gpu",
        ERROR,
        "There is no NVIDIA GPU on the PCI bus.",
        "Nothing, if the node is not meant to have one. Otherwise check that the card is seated and powered, that the firmware "
        "enables the slot, and in a virtual machine that the GPU is passed through.",
    ),
    (
        "fabric_manager_not_running",
        ERROR,
        "The node has NVSwitch and its fabric is not up, so CUDA fails with error 802 (system not yet initialized).",
        "Install nvidia-fabricmanager in exactly the driver's version, then enable and start it.",
    ),
    (
        "fabric_manager_mismatch",
        ERROR,
        "Fabric manager and driver are of different versions; they must match to the last digit.",
        "Install nvidia-fabricmanager in exactly the driver's version and restart it.",
    ),
    (
        "mig_without_instances",
        ERROR,
        "MIG is on, but the GPU has no MIG device, so CUDA sees none.",
        "Create instances (nvidia-smi mig -cgi <profiles> -C), or turn MIG off (nvidia-smi -mig 0).",
    ),
    (
        "compute_prohibited",
        ERROR,
        "The GPU's compute mode is prohibited, so no CUDA program may use it.",
        "Run nvidia-smi -c DEFAULT -i <index>.",
    ),
    (
        "remapping_failed",
        WARNING,
        "A faulty memory row of the GPU could not be remapped.",
        "Exchange the card.",
    ),
    (
        "memory_errors",
        WARNING,
        "The GPU had uncorrected memory errors since the driver was loaded, or a page or row waits for a reset.",
        "Stop its users and reset the GPU or reboot; if errors come back, test and exchange the card.",
    ),
    (
        "thermal_slowdown",
        WARNING,
        "The GPU slows down because it is too hot or because its power supply brakes it.",
        "Check fans, airflow and inlet temperature; cards without a fan need the chassis' airflow.",
    ),
    (
        "reboot_pending",
        INFO,
        "The node wants a reboot.",
        "Reboot when it suits; the reasons are in kernel.reboot_reasons.",
    ),
    (
        "mig_change_pending",
        INFO,
        "MIG or ECC mode changes at the next reset of the GPU.",
        "Reset the GPU or reboot when it suits.",
    ),
    (
        "persistence_off",
        INFO,
        "Nothing keeps the driver initialised, so every first call costs 1 to 3 seconds per GPU.",
        "Enable and start nvidia-persistenced.",
    ),
    (
        "gather_failed",
        WARNING,
        "Reading this part of the node failed in an unforeseen way; all other facts are there.",
        "Report the detail as a bug of this module.",
    ),
)

CATALOGUE: dict[str, dict[str, str]] = {
    name: {"severity": severity, "cause": cause, "remedy": remedy} for name, severity, cause, remedy in _CATALOGUE
}
_RANK = {name: rank for rank, (name, *_rest) in enumerate(_CATALOGUE)}
_SEVERITY_RANK = {ERROR: 0, WARNING: 1, INFO: 2}

# States of one GPU that come straight from what the driver said of it.
_OF_GPU = frozenset(
    (
        "gpu_lost",
        "gpu_off_bus",
        "gpu_needs_reset",
        "gpu_insufficient_power",
        "gpu_interrupt_issue",
        "gpu_error",
        "permission_denied",
        "gpu_missing",
    )
)
# nvmlReturn_t of nvmlInit -> state of the node.
_OF_CODE = {
    nvml_binding.LIB_RM_VERSION_MISMATCH: "driver_library_mismatch",
    nvml_binding.NO_PERMISSION: "permission_denied",
    nvml_binding.GPU_IS_LOST: "gpu_lost",
    nvml_binding.RESET_REQUIRED: "gpu_needs_reset",
    nvml_binding.INSUFFICIENT_POWER: "gpu_insufficient_power",
    nvml_binding.IRQ_ISSUE: "gpu_interrupt_issue",
    nvml_binding.TIMEOUT: "driver_timeout",
    nvml_binding.OPERATING_SYSTEM: "operating_system_blocked",
}
_HOT = frozenset(("hw_thermal_slowdown", "sw_thermal_slowdown", "hw_power_brake_slowdown"))


class Finder:
    """Collects states of one set of facts."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self._facts = facts
        self.found: list[dict[str, Any]] = []

    def add(self, name: str, detail: str, pci_address: str | None = None) -> None:
        """Note that ``name`` holds; said twice of the same GPU, the first detail stays."""
        if any(state["name"] == name and state["pci_address"] == pci_address for state in self.found):
            return
        entry = CATALOGUE[name]
        self.found.append(
            {
                "name": name,
                "severity": entry["severity"],
                "detail": detail,
                "remedy": entry["remedy"],
                "pci_address": pci_address,
            }
        )

    def find(self, outcome: dict[str, Any]) -> list[dict[str, Any]]:
        """All states, the worst first. ``outcome`` is what asking the driver came to.

        Keys of ``outcome``: ``code`` (nvmlReturn_t, 0 when the driver answered, None when it was not asked), ``text``,
        ``hung`` (bool), ``step``, ``waited_seconds``.
        """
        facts = self._facts
        code = outcome.get("code")
        if outcome.get("hung"):
            self.add("driver_timeout", f"no answer within {outcome.get('waited_seconds')} s to {outcome.get('step')}")
        elif code == nvml_binding.LIB_RM_VERSION_MISMATCH:
            self.add("driver_library_mismatch", self._versions())
        elif code in _OF_CODE:
            self.add(_OF_CODE[code], f"NVML {code}: {outcome.get('text')}")
        elif code not in (None, 0, nvml_binding.DRIVER_NOT_LOADED, nvml_binding.LIBRARY_NOT_FOUND):
            self.add("nvml_error", f"NVML {code}: {outcome.get('text')}")
        answered = code == 0 and not outcome.get("hung")
        if not answered:
            # The two versions differ although NVML said something else (or was not asked).
            if facts["driver"]["versions_match"] is False:
                self.add("driver_library_mismatch", self._versions())
            if not self.found:
                self._without_driver(code)
        elif not facts["gpus"]:
            self.add("no_gpu", "the driver is loaded and lists no GPU")
        for gpu in facts["gpus"]:
            self._of_gpu(gpu, answered)
        self._of_node(answered)
        self.found.sort(key=lambda state: (_SEVERITY_RANK[state["severity"]], _RANK[state["name"]]))
        return self.found

    def _versions(self) -> str:
        driver = self._facts["driver"]
        return (
            f"the loaded kernel module is {driver['loaded_version'] or 'of an unknown version'}, "
            f"libnvidia-ml is {driver['library_version'] or 'of an unknown version'}"
        )

    def _without_driver(self, code: int | None) -> None:
        """Why there is no working driver, the first reason that holds."""
        driver, kernel = self._facts["driver"], self._facts["kernel"]
        gpus = self._facts["gpus"]
        bound = {gpu["pci_driver"] for gpu in gpus}
        if not gpus:
            self.add("no_gpu", "no display controller or accelerator of vendor 10de under /sys/bus/pci/devices")
            return
        if bound == {"nouveau"} or ("nouveau" in bound and not driver["loaded"]):
            for gpu in gpus:
                if gpu["pci_driver"] == "nouveau":
                    self.add("nouveau_bound", "nouveau is bound to the card", gpu["pci_address"])
        elif bound == {"vfio-pci"}:
            for gpu in gpus:
                self.add("gpu_passed_through", "vfio-pci is bound to the card", gpu["pci_address"])
        elif driver["loaded"]:
            self._loaded_but_silent(code)
        elif driver["module_path"] is None:
            others = driver["other_kernels"] or []
            known = [f"{entry['module']}/{entry['version']} {entry['state']}" for entry in self._facts["dkms"] or []]
            if others or known:
                self.add(
                    "module_missing_for_kernel",
                    f"running kernel {kernel['release']}; module installed for: {', '.join(others) or 'none'}; "
                    f"DKMS: {', '.join(known) or 'nothing'}",
                )
            else:
                self.add("driver_not_installed", self._names(gpus) + "; no kernel module nvidia is installed or loaded")
        elif driver["module_signed"] is False and (
            kernel["secure_boot"] or kernel["lockdown"] in ("integrity", "confidentiality")
        ):
            self.add(
                "module_rejected",
                f"{driver['module_path']} is unsigned; Secure Boot is {'on' if kernel['secure_boot'] else 'off'}, "
                f"lockdown is {kernel['lockdown'] or 'unknown'}",
            )
        elif not self._unfit(gpus):
            self.add(
                "module_not_loaded",
                f"{driver['module_path']} {driver['module_version'] or ''} is installed".replace("  ", " "),
            )

    def _loaded_but_silent(self, code: int | None) -> None:
        driver = self._facts["driver"]
        if driver["device_nodes"] is not None and "/dev/nvidiactl" not in driver["device_nodes"]:
            self.add("device_nodes_missing", f"module {driver['loaded_version']} is loaded, there is no /dev/nvidiactl")
        if code == nvml_binding.LIBRARY_NOT_FOUND:
            self.add(
                "library_missing", f"module {driver['loaded_version']} is loaded, libnvidia-ml.so.1 cannot be loaded"
            )
        elif not self.found and code is not None:
            self.add("nvml_error", f"NVML {code} although module {driver['loaded_version']} is loaded")

    def _unfit(self, gpus: list[dict[str, Any]]) -> bool:
        """Cards that the installed module cannot drive, by flavour or by branch."""
        driver = self._facts["driver"]
        before = len(self.found)
        for gpu in gpus:
            if gpu["state"] == "ok":
                # The driver speaks for it, so it drives it.
                continue
            last = gpu["last_driver_branch"]
            if last is not None and driver["branch"] is not None and driver["branch"] > last:
                self.add(
                    "gpu_unsupported_by_driver",
                    f"{gpu['name'] or gpu['pci_device_id']} ends at branch {last}, installed is {driver['branch']}",
                    gpu["pci_address"],
                )
            elif driver["flavour"] and gpu["module_flavours"] and driver["flavour"] not in gpu["module_flavours"]:
                self.add(
                    "module_wrong_flavour",
                    f"{gpu['name'] or gpu['pci_device_id']} needs {' or '.join(gpu['module_flavours'])} modules, "
                    f"installed is {driver['flavour']}",
                    gpu["pci_address"],
                )
        return len(self.found) > before

    def _of_gpu(self, gpu: dict[str, Any], answered: bool) -> None:
        address = gpu["pci_address"]
        name = gpu["name"] or gpu["pci_device_id"] or "GPU"
        if gpu["state"] == "gpu_missing" and self._unfit([gpu]):
            return
        if gpu["state"] == "gpu_missing" and gpu["pci_driver"] in ("nouveau", "vfio-pci"):
            other = "nouveau_bound" if gpu["pci_driver"] == "nouveau" else "gpu_passed_through"
            self.add(other, f"{gpu['pci_driver']} is bound to {name}", address)
        elif gpu["state"] in _OF_GPU:
            self.add(gpu["state"], f"{name}: {gpu['state_detail'] or 'see the cause of this state'}", address)
        if gpu["state"] != "ok" or not answered:
            return
        if gpu["mig_enabled"] and gpu["mig_devices"] == []:
            self.add("mig_without_instances", f"MIG is on for {name}, it has no MIG device", address)
        if gpu["compute_mode"] == "prohibited":
            self.add("compute_prohibited", f"compute mode of {name} is prohibited", address)
        if gpu["remapped_rows_failed"]:
            self.add("remapping_failed", f"{name} could not remap a memory row", address)
        errors = gpu["ecc_uncorrected_volatile_count"] or 0
        if errors or gpu["retired_pages_pending"] or gpu["remapped_rows_pending"]:
            waits = gpu["retired_pages_pending"] or gpu["remapped_rows_pending"]
            self.add(
                "memory_errors",
                f"{name}: {errors} uncorrected memory errors{', a page or row waits for a reset' if waits else ''}",
                address,
            )
        hot = sorted(_HOT.intersection(gpu["throttle_reasons"] or ()))
        if hot:
            self.add("thermal_slowdown", f"{name} at {gpu['temperature_celsius']} degrees: {', '.join(hot)}", address)
        for mode in ("mig", "ecc"):
            if gpu[f"{mode}_pending"] is not None and gpu[f"{mode}_pending"] != gpu[f"{mode}_enabled"]:
                self.add("mig_change_pending", f"{mode.upper()} of {name} changes at the next reset", address)

    def _of_node(self, answered: bool) -> None:
        switch, driver, kernel = self._facts["nvswitch"], self._facts["driver"], self._facts["kernel"]
        started = [
            gpu["pci_address"] for gpu in self._facts["gpus"] if gpu["fabric_state"] in ("not_started", "in_progress")
        ]
        if answered and switch["count"] and switch["fabric_manager_running"] is False:
            installed = "installed" if switch["fabric_manager_installed"] else "not installed"
            self.add(
                "fabric_manager_not_running",
                f"{switch['count']} NVSwitch, fabric manager is {installed} and does not run",
            )
        elif answered and started and (switch["count"] or switch["fabric_manager_installed"]):
            self.add("fabric_manager_not_running", f"not registered with the fabric: {', '.join(started)}")
        versions = (switch["fabric_manager_version"], driver["loaded_version"])
        if switch["count"] and all(versions) and versions[0] != versions[1]:
            self.add("fabric_manager_mismatch", f"fabric manager is {versions[0]}, the loaded module {versions[1]}")
        if kernel["reboot_pending"]:
            self.add("reboot_pending", "; ".join(kernel["reboot_reasons"] or []))
        off = [gpu["pci_address"] for gpu in self._facts["gpus"] if gpu["persistence_mode"] is False]
        if answered and off and not driver["persistence_daemon"]:
            self.add("persistence_off", f"persistence mode is off for {', '.join(off)}")

    @staticmethod
    def _names(gpus: list[dict[str, Any]]) -> str:
        return ", ".join(
            f"{gpu['name'] or gpu['chip'] or gpu['pci_device_id']} at {gpu['pci_address']}" for gpu in gpus
        )


def conclude(facts: dict[str, Any], outcome: dict[str, Any]) -> None:
    """Fill ``state``, ``detail``, ``remedy``, ``usable`` and ``states`` of ``facts`` in place."""
    states = Finder(facts).find(outcome)
    facts["states"] = states
    worst = next((state for state in states if state["severity"] != INFO), None)
    facts["state"] = worst["name"] if worst else "ok"
    facts["detail"] = worst["detail"] if worst else summary(facts)
    facts["remedy"] = worst["remedy"] if worst else ""
    of_gpus = {state["pci_address"] for state in states if state["severity"] == ERROR and state["pci_address"]}
    node_broken = any(state["severity"] == ERROR and state["pci_address"] is None for state in states)
    good = [gpu for gpu in facts["gpus"] if gpu["state"] == "ok" and gpu["pci_address"] not in of_gpus]
    asked = outcome.get("hung") or outcome.get("code") is not None
    # Nothing speaks against it, and nobody was asked.
    facts["usable"] = None if facts["gpus"] and not asked and not states else bool(good) and not node_broken


def summary(facts: dict[str, Any]) -> str:
    """One line for a node where all is well: ``2 x Tesla T4, driver 535.161.08, CUDA 12.2``."""
    counts: dict[str, int] = {}
    for gpu in facts["gpus"]:
        counts[gpu["name"] or "GPU"] = counts.get(gpu["name"] or "GPU", 0) + 1
    parts = [f"{count} x {name}" for name, count in counts.items()]
    if facts["driver"]["loaded_version"]:
        parts.append(f"driver {facts['driver']['loaded_version']}")
    if facts["driver"]["cuda_version"]:
        parts.append(f"CUDA {facts['driver']['cuda_version']}")
    return ", ".join(parts)


def versions_match(loaded: str | None, library: str | None) -> bool | None:
    """Whether module and library are one version. nvidia-smi prints only two parts, which then decide."""
    if not loaded or not library:
        return None
    first, second = (re.split(r"[.-]", version) for version in (loaded, library))
    shared = min(len(first), len(second))
    return first[:shared] == second[:shared] if shared >= 2 else first == second
