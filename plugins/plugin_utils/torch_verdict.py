# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what torch_cuda_check found on a node to one verdict, one cause and its remedy. Pure; no I/O but the catalogue."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from ansible_collections.gpufleet.llm.plugins.plugin_utils import errors, solver_rules

STEP_NAMES = {"add": "addition", "matmul": "matrix product", "conv2d": "convolution", "sparse": "sparse product"}
# States of gpu_facts that say why a card that is there cannot be used.
CAUSE_OF_STATE = {
    "driver_library_mismatch": "E6",
    "permission_denied": "device-nodes",
    "device_nodes_missing": "device-nodes",
    "driver_not_installed": "E7",
    "library_missing": "E7",
    "nouveau_bound": "E8",
    "gpu_passed_through": "E8",
    "module_rejected": "E8",
    "module_missing_for_kernel": "E8",
    "module_not_loaded": "E8",
    "module_wrong_flavour": "E9",
    "gpu_lost": "E9",
    "gpu_off_bus": "E9",
    "gpu_needs_reset": "E9",
    "gpu_insufficient_power": "E9",
    "gpu_interrupt_issue": "E9",
    "gpu_unsupported_by_driver": "E9",
    "gpu_missing": "E9",
    "gpu_error": "E9",
    "mig_without_instances": "E3",
    "fabric_manager_not_running": "fabric-manager",
    "fabric_manager_mismatch": "fabric-manager",
}
# What a broken set of libraries looks like from outside; then the libraries themselves are asked.
LIBRARY_CAUSES = ("E1", "E5", "undefined-symbol", "shadowed-library", "crash", "timeout", "unknown")


def major(version: Any) -> int | None:
    """``12.1`` -> 12; None for anything that is no version."""
    match = re.match(r"(\d+)", str(version or ""))
    return int(match.group(1)) if match else None


def architectures(arch_list: list[str]) -> tuple[list[str], str | None]:
    """``["sm_75", "sm_90a", "compute_120"]`` -> ``(["7.5"], "12.0")``: machine code for every card of its line, and PTX.

    ``sm_90a`` and ``sm_100f`` are code for one chip or family; they promise nothing to others and are taken for their own.
    """
    compiled, ptx = [], None
    for name in arch_list:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", name)
        if match:
            version = f"{match.group(2)}.{match.group(3)}"
            if match.group(1) == "sm":
                compiled.append(version)
            else:
                ptx = version
    return compiled, ptx


def _row(rows: list[dict[str, Any]], stage: str) -> dict[str, Any]:
    return next((row for row in reversed(rows) if row.get("stage") == stage), {})


class _Case:
    """One node's findings, read once."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw
        self.device = str(raw.get("device") or "auto")
        self.python = str(raw.get("python") or "")
        self.probe = raw.get("probe") or {}
        self.rows: list[dict[str, Any]] = self.probe.get("rows") or []
        self.start = _row(self.rows, "python")
        self.found = _row(self.rows, "found")
        self.torch = _row(self.rows, "torch")
        self.began = _row(self.rows, "device")
        self.error = _row(self.rows, "error")
        self.done = bool(_row(self.rows, "done"))
        self.steps = [row for row in self.rows if row.get("stage") == "step"]
        self.libraries = raw.get("libraries") or {}
        gpu = raw.get("gpu") or {}
        self.gpu = gpu
        self.gpus: list[dict[str, Any]] = gpu.get("gpus") or []
        self.driver: dict[str, Any] = gpu.get("driver") or {}
        self.cuda = self.torch.get("cuda") or self.found.get("cuda")
        self.version = str(self.torch.get("version") or self.found.get("version") or "")
        self.ran_on = str(self.began.get("device") or "")

    @property
    def differs(self) -> str:
        """What was computed wrongly, or an empty text."""
        return next((str(row["differs"]) for row in self.steps if row.get("differs")), "")

    @property
    def timed_out(self) -> bool:
        return self.probe.get("rc") in (124, 137) or "Timeout (" in str(self.probe.get("stderr"))

    @property
    def failed_step(self) -> str:
        """Where it stopped: ``import``, ``init``, a step, or an empty text."""
        if self.done:
            return ""
        if self.error.get("step"):
            return str(self.error["step"])
        if not self.torch:
            return "import" if self.found else ("find" if self.start else "")
        if not self.began:
            return "init"
        order = list(STEP_NAMES)
        return order[min(len(self.steps), len(order) - 1)]

    @property
    def text(self) -> str:
        """All that the program said about its end, the error itself last."""
        parts = [self.probe.get("stdout"), self.probe.get("stderr"), *self.warnings, self.error.get("error")]
        return "\n".join(str(part) for part in parts if part)

    @property
    def warnings(self) -> list[str]:
        for row in reversed(self.rows):
            if row.get("warnings"):
                return [str(one) for one in row["warnings"]]
        return []

    @property
    def driver_cuda(self) -> str:
        return str(self.driver.get("cuda_version") or "")

    @property
    def uncovered(self) -> list[dict[str, Any]]:
        """Cards that the build has no code for."""
        compiled, ptx = architectures(self.torch.get("arch_list") or [])
        if not compiled and not ptx:
            return []
        seen = self.began.get("cards") or [one for one in self.gpus if one.get("compute_capability")]
        return [one for one in seen if solver_rules.covers(str(one["compute_capability"]), compiled, ptx) is None]


def _check(name: str, ok: bool | None, found: str, wanted: str) -> dict[str, Any]:
    return {"name": name, "ok": ok, "found": found, "wanted": wanted}


def _shadow_words(row: Mapping[str, Any]) -> str:
    lacking = row.get("missing_symbols") or []
    words = f"{row['path']} ({row['via']})"
    if lacking:
        words += f", which lacks {lacking[0]}" + (f" and {len(lacking) - 1} more symbols" if len(lacking) > 1 else "")
    return words


def _checks(case: _Case) -> list[dict[str, Any]]:
    """All checks in the order of the documentation."""
    problem = str(case.raw.get("problem") or "")
    skipped = "not asked: device is cpu"
    checks = [
        _check(
            "python",
            bool(case.start),
            f"Python {case.start['version']} at {case.python}"
            if case.start
            else f"{case.python}: {problem or 'no answer as Python 3.7 or later'}",
            "an interpreter of Python 3.7 or later",
        ),
        _check(
            "torch",
            bool(case.found) if case.start else None,
            f"PyTorch {case.version or 'of an unknown version'} for {_build_words(case)}"
            if case.found
            else "no PyTorch",
            "PyTorch" if case.device != "cuda" else "PyTorch with CUDA",
        ),
    ]
    if case.device == "cuda" and case.found and case.torch and not case.cuda:
        checks[-1]["ok"] = False
    if case.device == "cpu":
        checks += [
            _check(name, None, skipped, wanted)
            for name, wanted in (
                ("card", "-"),
                ("kernel_module", "-"),
                ("driver_api", "-"),
                ("architecture", "-"),
            )
        ]
    else:
        names = ", ".join(
            f"{one.get('name') or one.get('pci_device_id')} ({one.get('compute_capability') or 'compute capability unknown'})"
            for one in case.gpus
        )
        needs_card = case.device == "cuda" or bool(case.cuda)
        checks.append(
            _check(
                "card",
                bool(case.gpus) if needs_card or case.gpus else None,
                names or "no NVIDIA card on the PCI bus",
                "an NVIDIA card" if needs_card else "-",
            )
        )
        module, library = case.driver.get("loaded_version"), case.driver.get("library_version")
        checks.append(
            _check(
                "kernel_module",
                (case.driver.get("versions_match") if module and library else (False if case.gpus else None)),
                f"kernel module {module or 'not loaded'}, libraries {library or 'not installed'}",
                "both of one version" if case.gpus else "-",
            )
        )
        wheel, api = major(case.cuda), major(case.driver_cuda)
        checks.append(
            _check(
                "driver_api",
                api >= wheel if wheel is not None and api is not None else None,
                f"driver for CUDA {case.driver_cuda or 'unknown'}",
                f"CUDA {wheel}.0 or later" if wheel is not None else "-",
            )
        )
        listed = case.torch.get("arch_list") or []
        uncovered = case.uncovered
        checks.append(
            _check(
                "architecture",
                not uncovered if listed and (case.gpus or case.began.get("cards")) else None,
                " ".join(listed) or "no list",
                ", ".join(sorted({str(one["compute_capability"]) for one in uncovered}))
                or ", ".join(
                    sorted({str(one.get("compute_capability")) for one in case.gpus if one.get("compute_capability")})
                )
                or "-",
            )
        )
    bad = _bad_libraries(case)
    checks.append(
        _check(
            "libraries",
            not bad if case.found else None,
            "; ".join(f"{row['name']} is {_shadow_words(row)}" for row in bad[:4]) or "the environment's own",
            "the environment's own, with all symbols",
        )
    )
    wanted_device = {"cpu": "cpu", "cuda": "cuda"}.get(case.device, "cuda" if case.gpus else "cpu")
    where = {"cuda": "the card", "cpu": "the CPU"}.get(case.ran_on, "no device")
    if case.done and not case.differs:
        words = f"{len(case.steps)} of {len(STEP_NAMES)} computations right on {where}"
    else:
        said = str(case.error.get("error") or "").splitlines()
        words = case.differs or (said[-1] if said else _end_words(case))
    checks.append(
        _check(
            "computation",
            (case.done and not case.differs and case.ran_on == wanted_device) if case.found else None,
            errors.redact(words)[:400],
            f"{len(STEP_NAMES)} right results on {'the card' if wanted_device == 'cuda' else 'the CPU'}",
        )
    )
    return checks


def _end_words(case: _Case) -> str:
    if not case.found:
        return "not run"
    if case.timed_out:
        return f"not finished after {case.raw.get('timeout_seconds')} seconds, at {case.failed_step}"
    return f"ended with exit status {case.probe.get('rc')} at {case.failed_step}"


def _build_words(case: _Case) -> str:
    if case.cuda:
        return f"CUDA {case.cuda}"
    return "the CPU" if (case.torch.get("build") or "cpu") == "cpu" else str(case.torch["build"])


def _bad_libraries(case: _Case) -> list[dict[str, Any]]:
    """Rows of shadowed and unresolved libraries that matter, those with missing symbols first.

    After a computation that worked, only what was really loaded counts: PyTorch loads some of its libraries by path,
    which the analysis on paper cannot know.
    """
    shadowed = list(case.libraries.get("shadowed") or [])
    unresolved = list(case.libraries.get("unresolved") or [])
    if case.done:
        foreign = {os.path.realpath(path) for path in case.libraries.get("foreign_loaded") or []}
        loaded = {os.path.basename(path) for path in foreign}
        kept = [row for row in shadowed if os.path.realpath(row["path"]) in foreign]
        known = {os.path.basename(os.path.realpath(row["path"])) for row in kept}
        kept += [
            {"name": os.path.basename(path), "path": path, "via": "loaded by the process", "own": "", "requester": ""}
            for path in sorted(foreign)
            if os.path.basename(path) not in known and os.path.basename(path) in loaded
        ]
        return kept
    rows: list[dict[str, Any]] = []
    for row in [*[one for one in unresolved if one.get("missing_symbols")], *shadowed]:
        if all(row["name"] != one["name"] for one in rows):
            rows.append(row)
    return rows


def _library_cause(case: _Case, text_cause: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """The cause that lies in the libraries, with the file that does it; None when they are as they should be."""
    rows = _bad_libraries(case)
    if not rows:
        return None
    matched = str((text_cause or {}).get("matched") or "")
    # The library that the message names goes before the others.
    row = next((one for one in rows if one["name"] in matched), rows[0])
    lacking = row.get("missing_symbols") or []
    named = re.search(r"undefined symbol: (\w+)", matched)
    own = next((one.get("own") for one in case.libraries.get("shadowed") or [] if one["name"] == row["name"]), "")
    context = {
        "library": row["name"],
        "soname": row["name"],
        "shadow": f"{row['path']} ({row['via']})",
        "own": own,
        "via": row["via"],
        "symbol": named.group(1) if named else (lacking[0] if lacking else ""),
    }
    if lacking or (text_cause or {}).get("id") in ("E1", "undefined-symbol"):
        cause = "E1" if "nvJitLink" in row["name"] else ("E5" if "cudnn" in row["name"] else "undefined-symbol")
    elif "cudnn" in row["name"] and (text_cause or {}).get("id") == "E5":
        cause = "E5"
    else:
        cause = "shadowed-library"
    found = errors.explain(cause, context, matched)
    return found


def _state_cause(case: _Case) -> dict[str, Any] | None:
    """Why the driver does not give the card to anybody, by what gpu_facts saw."""
    module, library = case.driver.get("loaded_version"), case.driver.get("library_version")
    if case.driver.get("versions_match") is False:
        return errors.explain("E6", {"module_version": module, "library_version": library})
    cause = CAUSE_OF_STATE.get(str(case.gpu.get("state")))
    if not case.gpus or case.gpu.get("usable", True) or cause is None:
        return None
    detail = str(case.gpu.get("detail") or "")
    found = errors.explain(cause, {"detail": detail}, detail)
    # What gpu_facts saw is nearer to the node than the catalogue's general words.
    if detail and detail not in found["cause"]:
        found["cause"] = f"{detail.rstrip('.')}. {found['cause']}"
    return {**found, "remedy": str(case.gpu.get("remedy") or found["remedy"])}


def _card_cause(case: _Case) -> dict[str, Any]:
    """Why the card does not compute, in the order of the checks."""
    text_cause = errors.classify(
        case.text, {"rc": case.probe.get("rc"), "seconds": _limit(case), "python": case.python}
    )
    if not case.cuda:
        return errors.explain("E3", {"build": f"{case.version}, a CPU build" if case.version else "a CPU build"})
    wheel_cuda = f"CUDA {case.cuda}"
    if not case.gpus and not case.began.get("cards"):
        return errors.explain("no-gpu", {"wheel_cuda": wheel_cuda}, str(text_cause["matched"]))
    state = _state_cause(case)
    if state is not None:
        return state
    wheel, api = major(case.cuda), major(case.driver_cuda)
    if wheel is not None and api is not None and api < wheel:
        return errors.explain(
            "E2", {"driver_cuda": f"CUDA {case.driver_cuda}", "wheel_cuda": wheel_cuda}, str(text_cause["matched"])
        )
    visible = case.raw.get("cuda_visible_devices")
    if visible is not None and (not str(visible).strip() or str(visible).strip().startswith("-")):
        return errors.explain("devices-hidden", {"value": visible})
    closed = case.raw.get("closed_device_files") or []
    if closed:
        return errors.explain("device-nodes", {"detail": f"{', '.join(closed[:4])} cannot be opened by this user"})
    if case.uncovered:
        card = case.uncovered[0]
        return errors.explain(
            "E4",
            {
                "capability": f"{card.get('name') or 'a card'} of compute capability {card['compute_capability']}",
                "arch_list": " ".join(case.torch.get("arch_list") or []),
            },
            str(text_cause["matched"]),
        )
    if text_cause["id"] in LIBRARY_CAUSES:
        found = _library_cause(case, text_cause)
        if found is not None:
            return found
    return text_cause


def _limit(case: _Case) -> str:
    return f"{case.raw.get('timeout_seconds')} seconds"


def _import_cause(case: _Case) -> dict[str, Any]:
    """Why ``import torch`` did not come back."""
    rc = 124 if case.timed_out else case.probe.get("rc")
    context = {"rc": rc, "seconds": _limit(case), "python": case.python}
    if case.timed_out:
        return errors.explain("timeout", context, _end_words(case))
    found = errors.classify(case.text, context)
    if found["id"] in LIBRARY_CAUSES:
        return _library_cause(case, found) or found
    return found


def _cause(case: _Case) -> tuple[str, dict[str, Any] | None]:
    """``(verdict, cause)``; the cause is None when all is well."""
    if not case.start:
        detail = str(case.raw.get("problem") or "")
        if not detail:
            last = next((line for line in reversed(str(case.probe.get("stderr")).splitlines()) if line.strip()), "")
            detail = f"it does not answer as Python 3.7 or later (exit status {case.probe.get('rc')}) {last}".strip()
            if case.timed_out:
                detail = f"it did not answer within {_limit(case)}"
        return "failed", errors.explain("python-not-found", {"python": case.python, "detail": detail})
    if not case.found:
        return "failed", errors.explain("torch-missing", {"python": case.python}, str(case.error.get("error") or ""))
    if not case.torch:
        return "failed", _import_cause(case)
    if case.differs:
        return "failed", errors.explain("wrong-result", {"detail": case.differs})
    if not case.done:
        if case.timed_out:
            return "failed", errors.explain("timeout", {"seconds": _limit(case)}, _end_words(case))
        if case.ran_on == "cpu" or case.device == "cpu":
            return "failed", _import_cause(case)
        return "failed", _card_cause(case)
    if case.ran_on == "cpu" and case.device == "auto":
        if case.gpus:
            return "failed", _card_cause(case)
        if case.cuda:
            return "warning", errors.explain("no-gpu", {"wheel_cuda": f"CUDA {case.cuda}"})
    return _afterthoughts(case)


def _afterthoughts(case: _Case) -> tuple[str, dict[str, Any] | None]:
    """It computes where it should; what is not as it should be all the same."""
    if case.ran_on == "cuda" and case.driver.get("versions_match") is False:
        return "warning", _state_cause(case)
    found = _library_cause(case)
    if found is not None:
        return "warning", found
    numpy = errors.classify("\n".join(one for one in case.warnings if "No module named 'numpy'" not in one))
    if numpy["id"] in ("E11", "E4"):
        return "warning", numpy
    return "ok", None


def _summary(case: _Case) -> str:
    """What was computed, for a verdict that is ok."""
    names = [STEP_NAMES.get(str(row["step"]), str(row["step"])) for row in case.steps]
    done = ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else "".join(names)
    if case.ran_on == "cuda":
        cards = ", ".join(sorted({str(one["name"]) for one in case.began.get("cards") or []}))
        return f"PyTorch {case.version} computed {done} on the card ({cards})."
    words = f"PyTorch {case.version} computed {done} on the CPU"
    if case.device == "cpu":
        return f"{words}, as asked; no card was tried."
    return f"{words}: it is a CPU build, and the node has no NVIDIA card."


def decide(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The documented result of torch_cuda_check from the module's raw findings. Never raises for what a node returns."""
    case = _Case(raw)
    verdict, cause = _cause(case)
    text = cause or {"id": "", "title": "", "cause": _summary(case), "remedy": "", "matched": ""}
    libraries = {
        key: case.libraries.get(key) or []
        for key in ("shadowed", "unresolved", "missing", "loaded", "conf_directories")
    }
    return {
        "verdict": verdict,
        "cause": text["id"],
        "title": text["title"],
        "explanation": text["cause"],
        "remedy": text["remedy"],
        "matched": text["matched"],
        "checks": _checks(case),
        "python": {
            "path": case.python,
            "version": str(case.start.get("version") or ""),
            "prefix": str(case.start.get("prefix") or ""),
        },
        "torch": {
            "version": case.version,
            "cuda": case.cuda,
            "cudnn": case.torch.get("cudnn"),
            "arch_list": case.torch.get("arch_list") or [],
            "build": str(case.torch.get("build") or ""),
            "path": str(case.found.get("torch_path") or ""),
        },
        "computation": {
            "device": case.ran_on,
            "ok": case.done and not case.differs,
            "steps": [str(row["step"]) for row in case.steps],
            "failed_step": case.failed_step if case.found else "",
            "error": errors.redact(str(case.error.get("error") or "") or ("" if case.done else _end_words(case)))[
                :4000
            ],
            "seconds": float(case.probe.get("seconds") or 0.0),
            "cards": case.began.get("cards") or [],
            "warnings": [errors.redact(one) for one in case.warnings],
        },
        "driver": {
            "module_version": str(case.driver.get("loaded_version") or ""),
            "library_version": str(case.driver.get("library_version") or ""),
            "cuda": case.driver_cuda,
        },
        "libraries": libraries,
    }
