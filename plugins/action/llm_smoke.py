# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's half of C(llm_smoke): names the cause of a failure and what to do. Documentation: the module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.gpufleet.llm.plugins.plugin_utils import errors

# Ids of the error catalogue by what an operator has to look at.
CLASSES = {
    "E10": "out_of_memory",
    "host-out-of-memory": "out_of_memory",
    "E1": "wrong_wheel",
    "E3": "wrong_wheel",
    "E4": "wrong_wheel",
    "E5": "wrong_wheel",
    "E11": "wrong_wheel",
    "E12": "wrong_wheel",
    "glibc-too-old": "wrong_wheel",
    "libstdcxx-old": "wrong_wheel",
    "shadowed-library": "wrong_wheel",
    "undefined-symbol": "wrong_wheel",
    "E13": "missing_package",
    "module-missing": "missing_package",
    "torch-missing": "missing_package",
    "python-not-found": "missing_package",
    "remote-code-refused": "remote_code_refused",
    "timeout": "timeout",
    "lfs-pointer": "bad_weights",
    "safetensors-broken": "bad_weights",
    "E2": "driver",
    "E6": "driver",
    "E7": "driver",
    "E8": "driver",
    "E9": "driver",
    "cuda-forward-compat": "driver",
    "cuda-stub": "driver",
    "device-nodes": "driver",
    "devices-hidden": "driver",
    "fabric-manager": "driver",
    "no-gpu": "driver",
}


def explained(result: Mapping[str, Any], args: Mapping[str, Any]) -> dict[str, Any]:
    """A failed result with its cause: keys C(error) and a C(msg) that a person can act on."""
    context = {
        "rc": result.get("rc", 1),
        "python": args.get("python", ""),
        "path": args.get("model_path", ""),
        "seconds": args.get("timeout_seconds", 600),
    }
    if context["rc"] == 127:  # the module found no interpreter at that path
        found = errors.explain("python-not-found", context, str(result.get("error_text", "")))
    else:
        found = errors.classify(str(result.get("error_text", "")), context)
    error = {
        "id": found["id"],
        "class": CLASSES.get(found["id"], "other"),
        "title": found["title"],
        "cause": found["cause"],
        "remedy": found["remedy"],
        "matched": found["matched"],
    }
    msg = str(result.get("msg", ""))
    if found["id"] != "unknown":
        msg = f"{msg}\n{found['title']}. {found['cause']}\nRemedy: {found['remedy']}"
    return {"msg": msg, "error": error}


class ActionModule(ActionBase):
    """Runs the module and explains its failure."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        result.update(self._execute_module(module_name="gpufleet.llm.llm_smoke", task_vars=task_vars))
        if result.get("failed") and "error_text" in result:
            result.update(explained(result, self._task.args))
        return result
