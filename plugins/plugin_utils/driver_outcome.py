# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role nvidia_driver says at its end: C(nvidia_driver_result) and whether a reboot is required. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def reboot_reason(plan: Mapping[str, Any], gpu: Mapping[str, Any], container: str, differs: bool) -> str:
    """Why only a reboot brings the driver into force, or nothing; C(differs): what is wanted is not there yet."""
    driver, kernel = gpu["driver"], gpu["kernel"]
    if plan["action"] not in ("install", "keep", "remove", "state"):
        return ""
    if plan["action"] == "remove":
        return (
            f"module {driver['loaded_version']} is still loaded"
            if driver["loaded"] and not plan["installed"]["version"]
            else ""
        )
    if kernel["nouveau_loaded"] and plan["action"] == "install":
        return "nouveau is loaded"
    if driver["versions_match"] is False:
        return f"module {driver['loaded_version']} is loaded, library {driver['library_version']} is installed"
    if plan["reboot_wanted"] and not differs:
        return f"{driver['flavour']} modules are loaded, {plan['flavour']} ones are installed"
    if (
        plan["action"] == "install"
        and gpu["gpu_count"]
        and not driver["loaded"]
        and not container
        and driver["module_path"]
    ):
        return "the module is installed and was not loaded"
    return ""


def outcome(
    plan: Mapping[str, Any],
    gpu: Mapping[str, Any],
    seen: Mapping[str, Any],
    *,
    container: str,
    reboot: str,
    changed: bool,
    rebooted: bool,
) -> dict[str, Any]:
    """Returns C({"result": the fact nvidia_driver_result, "reboot_required": bool})."""
    reason = reboot_reason(plan, gpu, container, bool(seen["differs"]))
    driver = gpu["driver"]
    action = plan["action"]
    notes = [note for note in plan["notes"] if " " in note]
    checks = [_state(plan, seen)]
    if action == "install":
        checks += [c for c in plan["preflight"] if not c["ok"]]
    if reason:
        how = {
            "auto": "nvidia_driver_reboot is auto, but this node is the controller itself, or the reboot did not help: "
            "reboot it by hand and read the kernel's log.",
            "never": "Reboot it when it suits; nvidia_driver_reboot is never, so this role does not.",
        }.get(reboot, "Reboot it when it suits, or set nvidia_driver_reboot: auto.")
        if action == "remove":
            how = "The module stays loaded until a reboot: reboot the node when it suits."
        checks.append({"name": "reboot", "ok": False, "detail": f"a reboot is wanted: {reason}", "remedy": how})
    elif action in ("install", "keep", "state") and gpu["gpu_count"]:
        checks.append(_gpu(gpu, container))
    if action == "keep":
        notes.append(plan["reason"])
    if action == "skip":
        notes.append(f"nothing to do: {plan['reason']}")
    if rebooted:
        notes.append("the node was rebooted")
    result = {
        "role": "nvidia_driver",
        "ok": all(check["ok"] for check in checks),
        "changed": changed,
        "checks": checks,
        "versions": {
            "driver": driver["library_version"] or driver["module_version"] or "",
            "loaded": driver["loaded_version"] or "",
            "flavour": driver["flavour"] or "",
        },
        "notes": notes,
    }
    return {"result": result, "reboot_required": bool(reason)}


def _state(plan: Mapping[str, Any], seen: Mapping[str, Any]) -> dict[str, Any]:
    action = plan["action"]
    if action == "state":
        return {
            "name": "driver",
            "ok": False,
            "detail": plan["reason"],
            "remedy": "Go to the machine; gpu_facts says what to do.",
        }
    if action in ("keep", "skip"):
        return {"name": "driver", "ok": True, "detail": plan["reason"], "remedy": ""}
    if seen["differs"]:
        return {
            "name": "driver",
            "ok": False,
            "detail": f"{plan['reason']}; differs: {', '.join(seen['drift'])}",
            "remedy": "Run the play without --check.",
        }
    version = plan["version"] or plan["installed"]["version"] or plan["branch"]
    words = f"{plan['flavour']} driver {version} by {plan['method']} is as wanted"
    return {
        "name": "driver",
        "ok": True,
        "detail": words if action == "install" else "there is no driver",
        "remedy": "",
    }


def _gpu(gpu: Mapping[str, Any], container: str) -> dict[str, Any]:
    if not gpu["usable"] and container and not gpu["driver"]["loaded"]:
        return {
            "name": "gpu",
            "ok": True,
            "detail": f"installed, not loaded: this node is a container ({container}) and its kernel is the host's",
            "remedy": "",
        }
    usable = gpu["usable"] is not False
    return {
        "name": "gpu",
        "ok": usable,
        "detail": f"{gpu['state']}: {gpu['detail']}",
        "remedy": "" if usable else gpu["remedy"],
    }
