# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One report per node: what it has, what answered, what is wrong and what to do about it.

Pure functions over what the roles published (C(<role>_result), see docs/explanation/contracts.md). The keys of a report
are stable: a consumer may rely on every key of C(EMPTY) being there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SCHEMA = 1

# The order in which site.yml runs the roles; also the order of a report.
ROLES = ("git", "anaconda", "nginx", "nvidia_driver", "cuda", "llm_model")

EMPTY: dict[str, Any] = {
    "schema": SCHEMA,
    "node": "",
    "time": "",
    "mode": "run",
    "ok": False,
    "changed": False,
    "reachable": True,
    "checks": [],
    "failures": [],
    "notes": [],
    "versions": {},
    "models": {},
    "gpu": {"count": 0, "state": "unknown", "names": []},
    "plan": {},
    "roles": {},
}


def failure(where: str, message: str, cause: str = "", remedy: str = "") -> dict[str, str]:
    """One entry of C(failures): where it happened, what was said, why, and what to do."""
    return {"where": where, "message": message, "cause": cause, "remedy": remedy}


def message_of(result: Any) -> str:
    """The words of a failed task's result, wherever the module put them."""
    if not isinstance(result, Mapping):
        return str(result)
    parts = [str(result.get("msg") or "").strip()]
    for key in ("stderr", "module_stderr"):
        text = str(result.get(key) or "").strip()
        if text and text not in parts[0]:
            parts.append(text[-2000:])
            break
    for item in result.get("results") or []:
        if isinstance(item, Mapping) and item.get("failed"):
            parts.append(message_of(item))
    return "\n".join(p for p in parts if p) or "the task failed without a message"


def _gpu(facts: Mapping[str, Any]) -> dict[str, Any]:
    gpus = facts.get("gpus") or []
    return {
        "count": len(gpus),
        "state": str(facts.get("state", "unknown")),
        "names": [str(g.get("name") or g.get("chip") or "") for g in gpus],
    }


def build(node: str, variables: Mapping[str, Any], *, time: str, check_mode: bool = False) -> dict[str, Any]:
    """The report of one node.

    @param node: its name in the inventory.
    @param variables: its variables and facts: C(<role>_result), C(gpufleet_failures), C(gpufleet_gpu), C(gpufleet_plan).
    @param time: when the run ended, ISO 8601 in UTC.
    @returns: a dict with all keys of C(EMPTY). C(ok) is true when nothing failed and no check is false.
    """
    report: dict[str, Any] = {
        key: (value.copy() if isinstance(value, (dict, list)) else value) for key, value in EMPTY.items()
    }
    report.update(node=node, time=time, mode="check" if check_mode else "run")
    for role in ROLES:
        result = variables.get(f"{role}_result")
        if not isinstance(result, Mapping):
            continue
        checks = [dict(c) for c in result.get("checks") or []]
        report["roles"][role] = {"ok": bool(result.get("ok")), "changed": bool(result.get("changed"))}
        report["changed"] = report["changed"] or bool(result.get("changed"))
        report["checks"] += [{"role": role, "name": "", "ok": False, "detail": "", "remedy": "", **c} for c in checks]
        report["notes"] += [f"{role}: {note}" for note in result.get("notes") or []]
        report["versions"].update(dict(result.get("versions") or {}))
        report["models"].update(dict(result.get("models") or {}))
        if not result.get("ok") and all(c.get("ok") for c in checks):
            report["failures"].append(failure(role, "the role did not reach its wanted state"))
    gpu = variables.get("gpufleet_gpu")
    if isinstance(gpu, Mapping):
        report["gpu"] = _gpu(gpu)
    plan = variables.get("gpufleet_plan")
    if isinstance(plan, Mapping):
        report["plan"] = dict(plan)
    report["notes"] += [str(note) for note in variables.get("gpufleet_notes") or []]
    said = [str(c["detail"]) for c in report["checks"] if not c["ok"] and c["detail"]]
    report["failures"] += [
        {**failure("", ""), **dict(f)}
        for f in variables.get("gpufleet_failures") or []
        if not any(detail in str(f.get("message", "")) for detail in said)  # the check says it better, below
    ]
    report["failures"] += [
        failure(c["role"], f"{c['name']}: {c['detail']}", remedy=str(c["remedy"]))
        for c in report["checks"]
        if not c["ok"]
    ]
    report["reachable"] = not any(f["where"] == "connection" for f in report["failures"])
    report["ok"] = not report["failures"]
    return report


def unreached(node: str, *, check_mode: bool = False) -> dict[str, Any]:
    """The report of a node whose turn did not come, as a whole batch before it failed."""
    why = failure(
        "batch",
        "this node's turn did not come",
        "no node of a batch before it is ok, and so no further batch was begun",
        "mend those nodes, then run the same command again",
    )
    return build(node, {"gpufleet_failures": [why]}, time="", check_mode=check_mode)


def faults(report: Mapping[str, Any]) -> list[str]:
    """What makes the exit status say that a node is not ok: its failures; in check mode not those that are mere differences."""
    return [
        str(f["message"])
        for f in report["failures"]
        if report["mode"] != "check" or str(f["where"]) not in report["roles"]
    ]


def _model_line(name: str, model: Mapping[str, Any]) -> str:
    answer = str(model.get("answer") or "").replace("\n", " ")
    speed = model.get("tokens_per_second")
    extra = [f"loaded in {model['load_seconds']:.1f} s"] if isinstance(model.get("load_seconds"), (int, float)) else []
    if isinstance(speed, (int, float)):
        extra.append(f"{speed:.1f} tokens/s")
    if model.get("device"):
        extra.append(f"on {model['device']}")
    tail = f" ({', '.join(extra)})" if extra else ""
    return f'    {name} answered "{answer[:160]}"{tail}'


def words(reports: list[dict[str, Any]], directory: str = "") -> str:
    """The recap as a person reads it: one block per node, the broken ones with their remedy, the sum at the end."""
    lines: list[str] = []
    for report in reports:
        gpu = report["gpu"]
        what = ", ".join(n for n in gpu["names"] if n) or (
            "no GPU" if gpu["state"] in ("no_gpu", "unknown") else gpu["state"]
        )
        state = "ok" if report["ok"] else "NOT OK"
        if report["mode"] == "check" and not faults(report):
            state = "would change" if report["changed"] or not report["ok"] else "nothing to change"
        lines.append(f"{report['node']}: {state} ({what})")
        lines += [_model_line(name, model) for name, model in sorted(report["models"].items())]
        lines += [f"    note: {note}" for note in report["notes"]]
        for item in report["failures"]:
            lines.append(f"    {item['where']}: {item['message']}".replace("\n", "\n      "))
            if item["cause"]:
                lines.append(f"      why: {item['cause']}")
            if item["remedy"]:
                lines.append(f"      do:  {item['remedy']}".replace("\n", "\n           "))
    good = sum(1 for r in reports if r["ok"])
    lines.append(f"{good} of {len(reports)} nodes are ok." + (f" Reports: {directory}" if directory else ""))
    return "\n".join(lines)
