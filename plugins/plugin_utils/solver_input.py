# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts, pins and wanted models as Ansible has them, made into the solver's plain request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.gpufleet.llm.plugins.plugin_utils.tables import Tables


def request(
    node: str,
    facts: Mapping[str, Any],
    pins: Mapping[str, Any],
    models: Sequence[Mapping[str, Any]],
    tables: Tables,
    *,
    models_path: str = "/",
    memory_basis: str = "free",
) -> dict[str, Any]:
    """The request of a node. C(facts) is C(ansible_facts) with C(gpufleet_gpu); whatever is missing is not known.

    C(models) are entries of C(catalog.wanted_models), or the solver's own plain dictionaries. With C(memory_basis) of
    C(total) a card counts with all its memory: for a node whose own models hold it while the plan is made.
    """
    gpu: Mapping[str, Any] = facts.get("gpufleet_gpu") or {}
    driver: Mapping[str, Any] = gpu.get("driver") or {}
    installed = driver.get("loaded_version") or driver.get("module_version") or driver.get("library_version")
    distribution = str(facts.get("distribution") or "")
    family = str(facts.get("os_family") or "")
    return {
        "node": node,
        "system": "Windows" if facts.get("os_family") == "Windows" else "Linux",
        "os": {
            "distribution": distribution,
            "version": str(facts.get("distribution_version") or ""),
            "family": family,
            "kernel": str((gpu.get("kernel") or {}).get("release") or facts.get("kernel") or ""),
            "machine": str(facts.get("architecture") or facts.get("machine") or "x86_64"),
            "glibc": tables.glibc(distribution, family, str(facts.get("distribution_version") or "")),
        },
        "gpus": cards(gpu, memory_basis),
        "driver": {
            "version": installed,
            "flavour": driver.get("flavour"),
            "loaded": bool(driver.get("loaded")),
            "cuda_api": driver.get("cuda_version"),
        },
        "toolkits": [t["version"] for t in gpu.get("toolkits") or [] if t.get("version")],
        "memory": memory(facts),
        "disk": {"free_bytes": disk_free(facts.get("mounts") or [], models_path)},
        "pins": dict(pins),
        "models": [model(entry) for entry in models],
        "notes": [
            f"{state['name']}: {str(state['detail']).rstrip('.')}. {state['remedy']}".strip()
            for state in gpu.get("states") or []
            if state.get("severity") in ("error", "warning") and state["name"] != "no_gpu"
        ],
    }


def cards(gpu: Mapping[str, Any], memory_basis: str = "free") -> list[dict[str, Any]]:
    """One entry per GPU, or per MIG device where MIG is on."""
    out: list[dict[str, Any]] = []
    for entry in gpu.get("gpus") or []:
        shared = {
            "pci_device": str(entry.get("pci_device_id") or ""),
            "name": str(entry.get("name") or ""),
            "chip": str(entry.get("chip") or ""),
            "compute_capability": entry.get("compute_capability"),
        }
        parts = entry.get("mig_devices") if entry.get("mig_enabled") else None
        for part in parts or [entry]:
            own = dict(shared)
            if part is not entry:
                own["name"] = f"{shared['name']} MIG {part.get('name') or part.get('index')}"
            own["memory_total_bytes"] = part.get("memory_total_bytes")
            own["memory_free_bytes"] = part.get("memory_free_bytes") if memory_basis == "free" else None
            out.append(own)
    return out


def memory(facts: Mapping[str, Any]) -> dict[str, int | None]:
    """The node's own memory. Available is what is free without the page cache, in bytes; nothing when not gathered."""
    mib = ((facts.get("memory_mb") or {}).get("nocache") or {}).get("free")
    total = facts.get("memtotal_mb")
    return {
        "available_bytes": None if mib is None else int(mib) * 2**20,
        "total_bytes": None if total is None else int(total) * 2**20,
    }


def disk_free(mounts: Sequence[Mapping[str, Any]], path: str) -> int | None:
    """Free bytes of the file system that holds a path, of C(ansible_facts.mounts)."""
    best: tuple[int, int] | None = None
    for mount in mounts:
        point = str(mount.get("mount") or "").rstrip("/")
        if mount.get("size_available") is None or not (path + "/").startswith(point + "/"):
            continue
        if best is None or len(point) >= best[0]:
            best = (len(point), int(mount["size_available"]))
    return best[1] if best else None


def model(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The solver's model: of a catalogue entry (it has C(weights) and C(smoke)), or as it is."""
    if "weights" not in entry or "smoke" not in entry:
        return dict(entry)
    python: Mapping[str, Any] = entry["python"]
    torch = str((python.get("requirements") or {}).get("torch") or "")
    dtype = str(entry["smoke"]["dtype"]["cuda"])
    weights = int(entry["weights"].get("total_bytes") or 0)
    installed = int(python.get("installed_bytes") or 0)
    precisions: dict[str, dict[str, Any]] = {}
    for name, row in entry["memory"].items():
        own = {"memory_bytes": int(row["device_bytes"]), "host_bytes": int(row["host_bytes"])}
        quantised = name.startswith("int")
        precisions[str(name)] = {**own, "method": "cpm_kernels"} if quantised else own
    out: dict[str, Any] = {
        "name": str(entry["name"]),
        "torch": torch,
        "python": str(python["version"]),
        "pythons": [str(p) for p in python.get("supported") or []],
        "precisions": precisions,
        "device": str(entry.get("device") or "auto"),
        "requires_gpu": entry.get("device") == "cuda",
        "download_bytes": weights or None,
        "disk_bytes": weights + installed if weights else None,
    }
    if torch and "+" not in torch:
        # Hashes of a lock without a local version are those of the Python index: the wheel is fixed.
        out["torch_index"] = "pypi"
    if dtype != "auto":
        out["preferred"] = dtype
    if entry.get("precision") not in (None, "auto"):
        out["precision"] = str(entry["precision"])
    return out
