# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gather ``gpufleet_gpu``: ask NVML, nvidia-smi or the PCI bus, read the node's files, merge, name the states."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any, Callable, NamedTuple

from ansible_collections.gpufleet.llm.plugins.module_utils import (
    gpu_chips,
    gpu_node,
    gpu_pci,
    gpu_smi,
    gpu_states,
    nvml_binding,
    nvml_read,
)
from ansible_collections.gpufleet.llm.plugins.module_utils.bounded import bounded

SCHEMA = 1
SOURCES = ("nvml", "nvidia_smi", "pci")
PARTS = ("memory", "power", "health", "mig", "nvlink", "processes", "node")
MINIMUM = frozenset(("memory",))

# Every key of an entry of ``gpus``, in the order of the documentation.
GPU_KEYS = (
    "pci_address",
    "state",
    "source",
    "index",
    "minor_number",
    "uuid",
    "serial",
    "name",
    "pci_vendor_id",
    "pci_device_id",
    "pci_subsystem_vendor_id",
    "pci_subsystem_device_id",
    "pci_class",
    "pci_driver",
    "numa_node",
    "chip",
    "architecture",
    "compute_capability",
    "compute_capability_source",
    "module_flavours",
    "last_driver_branch",
    "memory_total_bytes",
    "memory_free_bytes",
    "memory_used_bytes",
    "memory_reserved_bytes",
    "power_limit_watts",
    "power_limit_default_watts",
    "power_limit_max_watts",
    "power_draw_watts",
    "temperature_celsius",
    "temperature_slowdown_celsius",
    "temperature_shutdown_celsius",
    "throttle_reasons",
    "utilization_gpu_percent",
    "utilization_memory_percent",
    "ecc_enabled",
    "ecc_pending",
    "ecc_corrected_volatile_count",
    "ecc_uncorrected_volatile_count",
    "ecc_corrected_aggregate_count",
    "ecc_uncorrected_aggregate_count",
    "retired_pages_pending",
    "remapped_rows_count",
    "remapped_rows_pending",
    "remapped_rows_failed",
    "persistence_mode",
    "compute_mode",
    "display_active",
    "mig_enabled",
    "mig_pending",
    "mig_devices",
    "nvlinks",
    "nvlink_active_count",
    "fabric_state",
    "processes",
)
DRIVER_KEYS = (
    "loaded",
    "loaded_version",
    "library_version",
    "library_path",
    "versions_match",
    "branch",
    "flavour",
    "licence",
    "module_path",
    "module_version",
    "module_signed",
    "module_signer",
    "modules_loaded",
    "other_kernels",
    "use_count",
    "device_nodes",
    "nvidia_smi_path",
    "cuda_driver_api",
    "cuda_version",
    "persistence_daemon",
)
KERNEL_KEYS = (
    "release",
    "newest_installed",
    "headers_present",
    "headers_path",
    "nouveau_loaded",
    "nouveau_blacklisted",
    "secure_boot",
    "lockdown",
    "reboot_pending",
    "reboot_reasons",
)
NVSWITCH_KEYS = ("count", "fabric_manager_installed", "fabric_manager_running", "fabric_manager_version")
TOP_KEYS = (
    "schema",
    "source",
    "nvml_binding",
    "state",
    "detail",
    "remedy",
    "usable",
    "states",
    "subset",
    "gather_seconds",
    "gpu_count",
    "gpus",
    "driver",
    "kernel",
    "dkms",
    "toolkits",
    "nvswitch",
    "errors",
)
# Keys of a GPU that belong to a part, to be null when the part is not wanted though nvidia-smi told it.
_PART_OF = {
    "power": ("power_", "temperature_", "throttle_", "utilization_"),
    "health": ("ecc_", "retired_", "remapped_"),
    "mig": ("mig_",),
    "nvlink": ("nvlink", "fabric_"),
    "processes": ("processes",),
}

# run_command of AnsibleModule: (argv) -> (rc, stdout, stderr)
RunCommand = Callable[..., tuple[int, str, str]]


class Gathered(NamedTuple):
    """What gather() returns: the facts, and whether a thread still hangs in the driver's library."""

    facts: dict[str, Any]
    hung: bool = False


def resolve_subset(names: Iterable[str]) -> frozenset[str]:
    """``["all", "!processes"]`` -> the parts to gather. ValueError names a part that does not exist."""
    chosen: set[str] = set()
    excluded: set[str] = set()
    for name in names:
        plain = name.lstrip("!")
        if plain not in (*PARTS, "all", "min"):
            raise ValueError(
                f"subset has {name!r}; it takes all, min, {', '.join(PARTS)}, each also with a leading '!'"
            )
        parts = set(PARTS) if plain == "all" else set(MINIMUM) if plain == "min" else {plain}
        (excluded if name.startswith("!") else chosen).update(parts)
    if not chosen:
        # As with gather_subset: only exclusions mean "all but these".
        chosen = set(PARTS)
    return frozenset((chosen - excluded) | MINIMUM)


def gather(
    subset: frozenset[str],
    *,
    sources: Iterable[str] = SOURCES,
    nvml_binding: str = "auto",
    timeout_seconds: float = 60,
    run_command: RunCommand | None = None,
    root: str = "/",
    open_binding: Callable[[str, str], Any] | None = None,
) -> Gathered:
    """Gather everything. Never raises: what fails is in ``errors`` and in a state.

    ``root`` and ``open_binding`` (choice, library -> binding) are for tests on made-up trees.
    """
    return _Gatherer(
        subset=subset,
        sources=tuple(sources),
        binding=nvml_binding,
        timeout_seconds=timeout_seconds,
        run_command=run_command,
        root=root,
        open_binding=open_binding or _open_binding,
    ).gather()


def _open_binding(choice: str, library: str) -> Any:
    return nvml_binding.open_binding(choice, library)


def empty_gpu() -> dict[str, Any]:
    """An entry of ``gpus`` with every key and nothing known."""
    return {**dict.fromkeys(GPU_KEYS), "module_flavours": [], "state_detail": ""}


def normalise_gpu_facts(facts: Any) -> dict[str, Any]:
    """A complete ``gpufleet_gpu`` from a partial one (an older schema, a hand-written inventory, only PCI ids).

    Missing keys become None (lists: empty), PCI addresses are normalised, and what the device id tells is filled in:
    chip, architecture, compute capability, module flavours, last driver branch. Given values win. ``facts`` may be None.
    """
    given = facts if isinstance(facts, dict) else {}
    result: dict[str, Any] = {**_empty_facts(), **{key: given[key] for key in TOP_KEYS if given.get(key) is not None}}
    for part, keys in (("driver", DRIVER_KEYS), ("kernel", KERNEL_KEYS), ("nvswitch", NVSWITCH_KEYS)):
        result[part] = {**dict.fromkeys(keys), **(given.get(part) or {})}
    gpus = []
    for entry in given.get("gpus") or []:
        gpu = {**empty_gpu(), **entry}
        gpu["pci_address"] = gpu_pci.normalise_pci_address(gpu["pci_address"]) or gpu["pci_address"]
        gpu["state"] = gpu["state"] or "no_driver"
        gpu["source"] = gpu["source"] or "pci"
        _fill_from_chip(gpu)
        gpu.pop("state_detail")
        gpus.append(gpu)
    result["gpus"], result["gpu_count"] = gpus, len(gpus)
    return result


def leave_without_destructors() -> None:
    """End the process at the interpreter's exit without the destructors of shared libraries.

    A thread that hangs in libnvidia-ml holds its lock, and the library's destructor would wait for it for ever. Handlers
    run last in, first out, and after the module's own cleaning up, so nothing else is lost.
    """

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    atexit.register(leave)


def _empty_facts() -> dict[str, Any]:
    facts: dict[str, Any] = dict.fromkeys(TOP_KEYS)
    facts.update(
        schema=SCHEMA,
        source="none",
        state="ok",
        detail="",
        remedy="",
        states=[],
        subset=[],
        gather_seconds=0.0,
        gpu_count=0,
        gpus=[],
        driver=dict.fromkeys(DRIVER_KEYS),
        kernel=dict.fromkeys(KERNEL_KEYS),
        nvswitch=dict.fromkeys(NVSWITCH_KEYS),
        errors=[],
    )
    return facts


def _fill_from_chip(gpu: dict[str, Any]) -> None:
    """What the device id tells, where the driver did not."""
    row = gpu_chips.lookup(gpu["pci_device_id"] or "")
    gpu["chip"] = gpu["chip"] or row["chip"]
    gpu["name"] = gpu["name"] or (f"NVIDIA {row['name']}" if row["name"] else None)
    if gpu["compute_capability"]:
        gpu["compute_capability_source"] = gpu["compute_capability_source"] or "driver"
    else:
        gpu["compute_capability"] = row["compute_capability"]
        gpu["compute_capability_source"] = row["compute_capability_source"]
    gpu["architecture"] = gpu["architecture"] or row["architecture"]
    if not gpu["module_flavours"]:
        flavours, branch = gpu_chips.by_architecture(gpu["architecture"])
        # An architecture that this table does not know yet is newer than all of it.
        gpu["module_flavours"] = flavours or row["module_flavours"] or (["open"] if gpu["architecture"] else [])
        gpu["last_driver_branch"] = branch if flavours else row["last_driver_branch"]


class _Gatherer:
    def __init__(
        self,
        *,
        subset: frozenset[str],
        sources: tuple[str, ...],
        binding: str,
        timeout_seconds: float,
        run_command: RunCommand | None,
        root: str,
        open_binding: Callable[[str, str], Any],
    ) -> None:
        self._subset = subset
        self._sources = sources
        self._binding = binding
        self._timeout = timeout_seconds
        self._run_command = run_command
        self._root = root
        self._open_binding = open_binding
        self._facts = _empty_facts()
        self._outcome: dict[str, Any] = {
            "code": None,
            "text": None,
            "hung": False,
            "step": None,
            "waited_seconds": timeout_seconds,
        }
        self._answer: dict[str, Any] = {"gpus": []}

    def gather(self) -> Gathered:
        started = time.monotonic()
        facts = self._facts
        facts["subset"] = sorted(self._subset)
        bus: dict[str, list[dict[str, Any]]] = {"gpus": [], "nvswitches": []}
        for step in (
            lambda: bus.update(gpu_pci.scan(self._root)),
            self._driver_files,
            self._ask_driver,
            lambda: self._merge(bus),
            lambda: self._node_files(bus),
            self._finish_driver,
        ):
            self._guarded(step)
        failed = [error for error in facts["errors"] if error.startswith("gathering failed")]
        try:
            gpu_states.conclude(facts, self._outcome)
        except Exception as exc:
            failed.append(f"gathering failed: {type(exc).__name__}: {exc}")
            facts["errors"].append(failed[-1])
        for error in failed:
            entry = gpu_states.CATALOGUE["gather_failed"]
            facts["states"].append(
                {
                    "name": "gather_failed",
                    "severity": entry["severity"],
                    "detail": error,
                    "remedy": entry["remedy"],
                    "pci_address": None,
                }
            )
            if facts["state"] == "ok":
                facts.update(state="gather_failed", detail=error, remedy=entry["remedy"])
        for gpu in facts["gpus"]:
            gpu.pop("state_detail", None)
        facts["gpu_count"] = len(facts["gpus"])
        facts["gather_seconds"] = round(time.monotonic() - started, 4)
        return Gathered(facts, bool(self._outcome["hung"]))

    def _guarded(self, step: Callable[[], Any]) -> None:
        """One unforeseen failure costs its own part and nothing else."""
        try:
            step()
        except Exception as exc:
            self._facts["errors"].append(f"gathering failed: {type(exc).__name__}: {exc}")

    def _driver_files(self) -> None:
        driver = self._facts["driver"]
        driver.update(gpu_node.loaded_driver(self._root))
        driver.update(gpu_node.library(self._root))
        driver["device_nodes"] = gpu_node.device_nodes(self._root)
        driver["nvidia_smi_path"] = gpu_node.nvidia_smi(self._root)
        loaded = gpu_node.modules_loaded(self._root)
        driver["modules_loaded"] = loaded["nvidia"]
        self._facts["kernel"]["nouveau_loaded"] = loaded["nouveau"]
        self._facts["kernel"]["release"] = gpu_node.kernel_release(self._root)

    def _ask_driver(self) -> None:
        if "nvml" in self._sources:
            self._ask_nvml()
        if self._outcome["code"] in (None, nvml_binding.LIBRARY_NOT_FOUND) and "nvidia_smi" in self._sources:
            self._ask_nvidia_smi()

    def _ask_nvml(self) -> None:
        """NVML in a thread of its own, because nothing can interrupt a call into the driver."""
        shared: dict[str, Any] = {"reader": None}

        def work() -> None:
            try:
                binding = self._open()
                shared["binding"] = binding.name
                shared["reader"] = nvml_read.Reader(binding, self._subset, self._root)
                shared["result"] = shared["reader"].read()
                if shared["result"]["code"] == nvml_binding.LIBRARY_NOT_FOUND and binding.name == "pynvml":
                    self._again_by_path(shared)
            except nvml_binding.NvmlError as exc:
                shared["error"] = (exc.code, exc.text)
            except Exception as exc:
                shared["error"] = (nvml_binding.UNKNOWN, f"{type(exc).__name__}: {exc}")

        thread = threading.Thread(target=work, name="nvml", daemon=True)
        thread.start()
        thread.join(self._timeout)
        hung = thread.is_alive()
        reader = shared.get("reader")
        result = reader.result if reader is not None else {"gpus": [], "errors": []}
        if hung:
            # The thread may go on and write: keep a copy of what is complete, leave out the GPU it hangs at.
            result = {
                **result,
                "gpus": [dict(gpu) for gpu in list(result["gpus"])[:-1]],
                "errors": list(result["errors"]),
            }
            self._outcome.update(
                hung=True, step=(reader.result["step"] if reader is not None else "loading libnvidia-ml")
            )
        else:
            code, text = shared.get("error") or (result.get("code"), result.get("text"))
            self._outcome.update(code=code, text=text)
        self._facts["errors"].extend(result["errors"])
        loaded = self._outcome["code"] not in (None, nvml_binding.LIBRARY_NOT_FOUND) or hung
        self._facts["nvml_binding"] = shared.get("binding") if loaded else None
        self._take(result, "nvml")

    def _open(self) -> Any:
        try:
            return self._open_binding(self._binding, gpu_node.LIBRARY)
        except nvml_binding.NvmlError as exc:
            path = self._facts["driver"]["library_path"]
            if exc.code != nvml_binding.LIBRARY_NOT_FOUND or not path or self._binding == "pynvml":
                raise
            # Installed where the loader does not look (/usr/local/nvidia/lib64, WSL).
            return self._open_binding("ctypes", path)

    def _again_by_path(self, shared: dict[str, Any]) -> None:
        """The package looks only where the loader looks; the library may lie elsewhere."""
        path = self._facts["driver"]["library_path"]
        if self._binding == "pynvml" or not path:
            return
        binding = self._open_binding("ctypes", path)
        shared["binding"] = binding.name
        shared["reader"] = nvml_read.Reader(binding, self._subset, self._root)
        shared["result"] = shared["reader"].read()

    def _ask_nvidia_smi(self) -> None:
        path = self._facts["driver"]["nvidia_smi_path"]
        if not path or self._run_command is None:
            return
        # run_command has no timeout of its own, so coreutils' timeout holds the clock.
        rc, out, err = self._run_command([*bounded(int(self._timeout), 5), path, "-q", "-x"])
        if rc in (124, 137):
            self._outcome.update(code=None, hung=True, step="nvidia-smi -q -x")
            return
        if rc != 0:
            text = " ".join((out + " " + err).split())
            code = gpu_smi.failure_code(rc, text)
            self._outcome.update(code=code, text=f"nvidia-smi: {text[:400]}")
            self._facts["errors"].append(f"nvidia-smi -q -x returned {rc}: {text[:400]}")
            return
        try:
            result = gpu_smi.parse(out)
        except ValueError as exc:
            self._outcome.update(code=nvml_binding.UNKNOWN, text=str(exc))
            self._facts["errors"].append(str(exc))
            return
        self._outcome.update(code=nvml_binding.SUCCESS, text=None)
        self._take(result, "nvidia_smi")

    def _take(self, result: dict[str, Any], source: str) -> None:
        """Keep what a source answered for the merge."""
        for gpu in result["gpus"]:
            gpu["source"] = source
        self._answer = result
        if result["gpus"]:
            self._facts["source"] = source

    def _merge(self, bus: dict[str, list[dict[str, Any]]]) -> None:
        """One entry per PCI address: the bus says which cards there are, the driver describes those that it knows."""
        merged: dict[str, dict[str, Any]] = {}
        for function in bus["gpus"]:
            gpu = empty_gpu()
            gpu.update({key: value for key, value in function.items() if key in gpu})
            gpu["source"] = "pci"
            gpu.update(gpu_pci.proc_information(self._root, function["pci_address"]))
            gpu["state"] = "gpu_off_bus" if function["off_bus"] else None
            merged[function["pci_address"]] = gpu
        self._place_unnamed(merged)
        for told in self._answer["gpus"]:
            address = told.get("pci_address")
            if address is None:
                continue
            gpu = merged.setdefault(address, empty_gpu())
            off_bus = gpu["state"] == "gpu_off_bus"
            gpu.update({key: value for key, value in told.items() if value is not None})
            if off_bus:
                gpu["state"] = "gpu_off_bus"
        answered = self._outcome["code"] == nvml_binding.SUCCESS and not self._outcome["hung"]
        for gpu in merged.values():
            if gpu["state"] is None:
                gpu["state"] = "gpu_missing" if answered else self._silence()
            gpu["pci_vendor_id"] = gpu["pci_vendor_id"] or gpu_pci.VENDOR
            _fill_from_chip(gpu)
            self._drop_unwanted(gpu)
        self._facts["gpus"] = [merged[address] for address in sorted(merged, key=_address_key)]
        if self._facts["source"] == "none" and merged and "pci" in self._sources:
            self._facts["source"] = "pci"

    def _silence(self) -> str:
        """The state of a GPU of which no driver spoke."""
        code = self._outcome["code"]
        if self._outcome["hung"] or code not in (None, nvml_binding.DRIVER_NOT_LOADED, nvml_binding.LIBRARY_NOT_FOUND):
            return "no_answer"
        if not self._facts["driver"]["loaded"]:
            return "no_driver"
        return "not_asked" if code is None else "no_answer"

    def _place_unnamed(self, merged: dict[str, dict[str, Any]]) -> None:
        """A lost GPU often cannot say its address: when exactly as many cards are unclaimed, they are those.

        NVML orders by PCI address, so the order of both lists pairs them. Otherwise they keep no place and the node
        gets their state.
        """
        unnamed = [gpu for gpu in self._answer["gpus"] if gpu.get("pci_address") is None]
        claimed = {gpu.get("pci_address") for gpu in self._answer["gpus"]}
        free = [address for address in sorted(merged, key=_address_key) if address not in claimed]
        if len(unnamed) == len(free):
            for gpu, address in zip(unnamed, free):
                gpu["pci_address"] = address
            return
        for gpu in unnamed:
            self._facts["errors"].append(
                f"GPU {gpu['index']} of unknown PCI address: {gpu['state']}: {gpu['state_detail']}"
            )
            # One state for the node is enough; the worst of them is as good as any.
            self._outcome.update(code=nvml_binding.GPU_IS_LOST, text=gpu["state_detail"])

    def _drop_unwanted(self, gpu: dict[str, Any]) -> None:
        for part, prefixes in _PART_OF.items():
            if part not in self._subset:
                gpu.update({key: None for key in gpu if key.startswith(prefixes)})

    def _node_files(self, bus: dict[str, list[dict[str, Any]]]) -> None:
        facts, driver = self._facts, self._facts["driver"]
        facts["nvswitch"]["count"] = len(bus["nvswitches"])
        if "node" not in self._subset:
            return
        release = facts["kernel"]["release"] or gpu_node.kernel_release(self._root)
        flavour = driver["flavour"]
        driver.update(gpu_node.module_on_disk(self._root, release))
        self._modinfo()
        # What is loaded counts; the file may already be another.
        driver["flavour"] = flavour or driver["flavour"]
        facts["kernel"] = gpu_node.kernel_facts(self._root, release, facts["kernel"]["nouveau_loaded"])
        facts["dkms"] = gpu_node.dkms(self._root)
        facts["toolkits"] = gpu_node.toolkits(self._root)
        running = gpu_node.processes(self._root)
        driver["persistence_daemon"] = running["persistence_daemon"]
        manager = gpu_node.fabric_manager(self._root)
        facts["nvswitch"].update(
            fabric_manager_installed=manager["installed"],
            fabric_manager_version=manager["version"],
            fabric_manager_running=running["fabric_manager"],
        )

    def _modinfo(self) -> None:
        """A zstd-compressed module before Python 3.14: only modinfo can read it, and only where NVML did not answer."""
        driver = self._facts["driver"]
        path = driver["module_path"]
        if not path or driver["licence"] or self._run_command is None or self._outcome["code"] == nvml_binding.SUCCESS:
            return
        rc, out, _err = self._run_command(["modinfo", path])
        if rc != 0:
            return
        values = dict(line.partition(":")[::2] for line in out.splitlines() if ":" in line)
        told = {key: values.get(key, "").strip() for key in ("license", "version", "signer", "sig_id")}
        driver["licence"] = told["license"] or None
        driver["module_version"] = driver["module_version"] or told["version"] or None
        driver["module_signed"] = bool(told["signer"] or told["sig_id"])
        driver["module_signer"] = told["signer"] or None
        if told["license"]:
            driver["flavour"] = "open" if "GPL" in told["license"] else "proprietary"

    def _finish_driver(self) -> None:
        driver = self._facts["driver"]
        answer = self._answer
        version = answer.get("driver_version")
        if version:
            driver["loaded"], driver["loaded_version"] = True, driver["loaded_version"] or version
        if self._facts["nvml_binding"] and self._root == "/":
            mapped = gpu_node.mapped_library()
            if mapped:
                driver["library_path"] = mapped
                driver["library_version"] = gpu_node.version_of_library(mapped) or driver["library_version"]
        # "12.535.161.08": the first part is the version of the interface.
        nvml = (answer.get("nvml_version") or "").partition(".")[2]
        driver["library_version"] = driver["library_version"] or nvml or None
        driver["versions_match"] = gpu_states.versions_match(driver["loaded_version"], driver["library_version"])
        number = answer.get("cuda_driver_api")
        driver["cuda_driver_api"] = number
        driver["cuda_version"] = f"{number // 1000}.{number % 1000 // 10}" if number else None
        known = driver["loaded_version"] or driver["module_version"] or driver["library_version"] or ""
        driver["branch"] = int(known.split(".")[0]) if known.split(".")[0].isdigit() else None


def _address_key(address: str) -> tuple[int, ...]:
    domain, bus, rest = address.split(":")
    device, function = rest.split(".")
    return tuple(int(part, 16) for part in (domain, bus, device, function))
