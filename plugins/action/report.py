# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the report of a node, or the recap of all of them, on the controller. Documentation: plugins/modules/report.py."""

from __future__ import annotations

import datetime
import json
import os
import tempfile
from collections.abc import Mapping
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.gpufleet.llm.plugins.plugin_utils import errors, report
from ansible_collections.gpufleet.llm.plugins.plugin_utils.untag import plain


def write_report(directory: str, content: dict[str, Any]) -> str:
    """Write C(<directory>/<node>.json) by rename, so that a reader never sees half a file; returns its path."""
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, content["node"].replace(os.sep, "_") + ".json")
    handle, temporary = tempfile.mkstemp(dir=directory, prefix=".report-")
    with os.fdopen(handle, "w", encoding="utf-8") as out:
        json.dump(content, out, indent=2, sort_keys=True, ensure_ascii=False)
        out.write("\n")
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
    return path


class ActionModule(ActionBase):
    """C(report) runs on the controller only; no connection to the node is made."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables: dict[str, Any] = task_vars or {}
        _dummy, args = self.validate_argument_spec(
            argument_spec={
                "directory": {"type": "path", "required": True},
                "recap": {"type": "bool", "default": False},
                "failed_result": {"type": "raw"},
                "failed_task": {"type": "str", "default": ""},
            }
        )
        directory = os.path.abspath(os.path.expanduser(args["directory"]))
        if args["recap"]:
            check_mode = bool(self._task.check_mode)
            reports = []
            for host in sorted(variables.get("ansible_play_hosts_all") or []):
                written = plain((variables["hostvars"][host].get("ansible_facts") or {}).get("gpufleet_report") or {})
                reports.append(written or report.unreached(host, check_mode=check_mode))
            words = report.words(reports, directory)
            # Not by a debug task: YAML or JSON would fold and quote what a person is to read.
            Display().display(f"\n{words}\n")
            bad = {r["node"]: report.faults(r) for r in reports if report.faults(r)}
            result.update(changed=False, msg=words, ok=all(r["ok"] for r in reports), bad=bad)
            return result

        node = str(variables.get("inventory_hostname", ""))
        facts = variables.get("ansible_facts") or {}
        seen = {
            name: plain(variables[name])
            for name in variables
            if name.endswith("_result") or name.startswith("gpufleet_")
        }
        for name in ("gpufleet_gpu", "gpufleet_plan"):
            if name not in seen and name in facts:
                seen[name] = plain(facts[name])
        if args["failed_result"] is not None:
            # A play that ignores unreachable nodes goes on to a task that lacks what the lost one would have registered.
            looks = [variables[name] for name in variables if name.startswith("__")]
            lost = next((look for look in looks if isinstance(look, Mapping) and look.get("unreachable") is True), None)
            seen["gpufleet_failures"] = [*(seen.get("gpufleet_failures") or []), self._failure(args, lost)]
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        content = report.build(node, seen, time=now, check_mode=bool(self._task.check_mode))
        path = write_report(directory, content)
        result.update(changed=False, path=path, report=content, ansible_facts={"gpufleet_report": content})
        return result

    def _failure(self, args: dict[str, Any], lost: Mapping[str, Any] | None) -> dict[str, str]:
        failed = plain(args["failed_result"] if lost is None else lost)
        name = str(args["failed_task"])
        message = report.message_of(failed)
        if isinstance(failed, Mapping) and failed.get("unreachable"):
            return report.failure(
                "connection",
                message,
                "the controller got no connection to this node",
                "check that the node is up, its address, the ssh key and the user; then run the same command again",
            )
        known = errors.classify(message)
        if known["id"] == "unknown":
            return report.failure(name, message)
        return report.failure(name, message, str(known["cause"]), str(known["remedy"]))
