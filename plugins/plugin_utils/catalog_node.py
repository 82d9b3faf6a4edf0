# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the models that are wanted to one node: what to look at, what to do about what differs, what came of it.

Pure functions over the models of C(catalog.wanted_models) and the result of C(gpufleet.llm.observe). C(settings) is the
role's own: C(root), C(manager) (C(conda) or C(venv)), C(python) (of the node, C(3.11)), C(interpreter) (for a venv, may be
empty), C(user), C(group), C(smoke) (bool), C(exact) (bool), C(tools) (name to version), C(tools_python) (for conda),
C(removed) (name and environment), C(packages) (of the distribution).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.gpufleet.llm.plugins.plugin_utils.catalog import CatalogError

Model = Mapping[str, Any]
Settings = Mapping[str, Any]
Item = dict[str, Any]

# Everything that the role makes below its root. What other roles put there (conda) is not its to remove.
FOLDERS = ("code", "weights", "envs", "results", "tools", "home")
HUB = "https://huggingface.co"
# Where conda's channels are at home; what `defaults` stands for is what conda itself has built in.
CONDA = "https://conda.anaconda.org"
UPSTREAM_CHANNELS = {"defaults": ["https://repo.anaconda.com/pkgs/main", "https://repo.anaconda.com/pkgs/r"]}
DEEP = "A run with llm_model_deep=true reads every file of the environment and the weights and heals what was changed."
# What must stay free beside everything that is still to come.
RESERVE_BYTES = 256 << 20
_VERSION = re.compile(r"3\.\d+\Z")


def paths(name: str, environment: str, root: str) -> dict[str, str]:
    """Where the parts of a model are on a node."""
    return {
        "code": f"{root}/code/{name}",
        "environment": f"{root}/envs/{environment}",
        "weights": f"{root}/weights/{name}",
        "result": f"{root}/results/{name}.json",
    }


def python_of(model: Model, settings: Settings) -> str:
    """The Python version (C(3.11)) of a model's environment on this node.

    conda brings the version that the catalogue prefers. A venv takes the interpreter that is asked for, else the node's
    own where the model supports it, else looks for the preferred one. Raises CatalogError.
    """
    python = model["python"]
    if settings["manager"] == "conda":
        return str(python["version"])
    asked = str(settings.get("interpreter", ""))
    if _VERSION.match(asked):
        if asked not in python["supported"]:
            raise CatalogError(
                f"the model {model['name']} runs on Python {', '.join(python['supported'])}, not on {asked} (llm_model_python)"
            )
        return asked
    if asked:
        return ""
    return str(settings["python"] if settings.get("python") in python["supported"] else python["version"])


def _environment_item(key: str, prefix: str, settings: Settings, python: str, requirements: Mapping[str, str]) -> Item:
    item: Item = {
        "key": key,
        "kind": "conda_env" if settings["manager"] == "conda" else "venv",
        "prefix": prefix,
        "requirements": dict(requirements),
    }
    if python:
        item["python"] = python
    if settings.get("exact"):
        item["exact"] = True
    return item


def _weights_item(model: Model, root: str) -> Item:
    from ansible_collections.gpufleet.llm.plugins.module_utils.model_files import request_fingerprint

    where = paths(model["name"], "", root)["weights"]
    weights = model["weights"]
    item: Item = {"key": f"weights:{model['name']}", "kind": "manifest", "path": where}
    if weights["manifest"] == "complete":
        item["files"] = {path: dict(row) for path, row in weights["files"].items()}
        return item
    names = weights["repos"]["huggingface"] or [row["repo"] for row in weights["repos"]["modelscope"]]
    item["manifest"] = f"{where}/.gpufleet/manifest.json"
    item["fingerprint"] = request_fingerprint(names, weights["revision"], weights["allow"], weights["ignore"])
    return item


def _smoke_items(model: Model, root: str) -> list[Item]:
    path = paths(model["name"], "", root)["result"]
    pattern = f'"fingerprint": "{model["fingerprint"]}"'
    return [
        # Not a stamp: the answer itself is in that file, and the pattern is what it was the answer to.
        {
            "key": f"smoke:{model['name']}",
            "kind": "command",
            "argv": ["grep", "-q", "-s", "-F", "-e", pattern, path],
        },
        {"key": f"result:{model['name']}", "kind": "read", "path": path},
    ]


def removed_paths(models: Iterable[Model], settings: Settings) -> list[str]:
    """What must not be there: the parts of models that are wanted no more."""
    kept = list(models)
    wanted = {model["name"] for model in kept}
    environments = {model["python"]["environment"] for model in kept}
    out: list[str] = []
    for entry in settings.get("removed") or []:
        name, environment = str(entry["name"]), str(entry["environment"])
        if name in wanted:
            raise CatalogError(f"the model {name} is in llm_model_wanted and in llm_model_removed")
        where = paths(name, environment, settings["root"])
        out += [where["code"], where["weights"], where["result"]]
        if environment not in environments:
            out.append(where["environment"])
    return list(dict.fromkeys(out))


def items(models: Iterable[Model], settings: Settings) -> list[Item]:
    """Everything that the role manages on a node, for one C(observe)."""
    models = list(models)
    root, user, group = settings["root"], settings.get("user", ""), settings.get("group", "")
    if settings.get("state", "present") == "absent":
        gone: list[Item] = [{"key": f"removed:{name}", "kind": "absent", "path": f"{root}/{name}"} for name in FOLDERS]
        return gone + ([{"kind": "user", "name": user, "state": "absent"}] if user else [])
    out: list[Item] = [{"key": "disk", "kind": "disk", "path": root}]
    out += [{"kind": "package", "name": name} for name in settings.get("packages") or []]
    if user:
        out.append({"kind": "user", "name": user, "group": group, "home": f"{root}/home"})
    if models:
        out.append({"key": "directory:root", "kind": "directory", "path": root})
        out += [
            {"key": f"directory:{name}", "kind": "directory", "path": f"{root}/{name}"}
            for name in FOLDERS
            if name not in ("home", "tools")
        ]
        home: Item = {"key": "directory:home", "kind": "directory", "path": f"{root}/home", "mode": "0750"}
        if user:
            home.update(owner=user, group=group)
        out.append(home)
        tools = {**settings, "exact": False}
        version = settings["tools_python"] if settings["manager"] == "conda" else ""
        out.append(_environment_item("tools", f"{root}/tools", tools, version, settings["tools"]))
    environments: set[str] = set()
    for model in models:
        environment = model["python"]["environment"]
        where = paths(model["name"], environment, root)
        if model["code"]:
            out.append(
                {
                    "key": f"code:{model['name']}",
                    "kind": "git",
                    "path": where["code"],
                    "commit": model["code"]["commit"],
                }
            )
        if environment not in environments:
            environments.add(environment)
            out.append(
                _environment_item(
                    f"environment:{environment}",
                    where["environment"],
                    settings,
                    python_of(model, settings),
                    model["python"]["requirements"],
                )
            )
        out.append(_weights_item(model, root))
        if settings["smoke"] and model["smoke"]["enabled"]:
            out += _smoke_items(model, root)
    return out + [
        {"key": f"removed:{path[len(root) + 1 :]}", "kind": "absent", "path": path}
        for path in removed_paths(models, settings)
    ]


def _missing_bytes(model: Model, found: Mapping[str, Any]) -> int:
    """Bytes of weights that are still to come."""
    weights = model["weights"]
    if weights["manifest"] == "complete":
        wrong = [*found.get("missing", []), *found.get("changed", [])]
        return sum(int(weights["files"][path]["size"]) for path in wrong if path in weights["files"])
    return max(0, int(weights["total_bytes"]) - int(found.get("bytes", 0)))


def _device(environment: str, models: Iterable[Model]) -> str:
    """Where an environment's torch is to be tried: C(cpu) when its build or all its models know no card, else C(auto)."""
    users = [model for model in models if model["python"]["environment"] == environment]
    builds = {str(model["python"]["requirements"].get("torch", "")) for model in users}
    return "cpu" if all(b.endswith("+cpu") for b in builds) or all(m["device"] == "cpu" for m in users) else "auto"


def work(models: Iterable[Model], settings: Settings, seen: Mapping[str, Any], force: bool = False) -> dict[str, Any]:
    """What to do about what C(observe) found: C(code), C(environments), C(weights), C(smoke) (lists), C(tools) (bool).

    C(torch) lists the environments whose torch is to be tried: those that are made anew and those of the models that are
    asked, whatever the reason. C(needed_bytes), C(free_bytes) and C(too_small) (a sentence, or empty) are for the check
    before the first byte.
    """
    models = list(models)
    drift, found = set(seen.get("drift") or []), seen.get("seen") or {}
    environments: dict[str, Item] = {}
    code, weights, smoke = [], [], []
    needed = 0
    for model in models:
        name, environment = model["name"], model["python"]["environment"]
        where = paths(name, environment, settings["root"])
        parts = {part for part in ("code", "weights", "smoke") if f"{part}:{name}" in drift}
        healed = bool(parts & {"weights"}) or f"environment:{environment}" in drift
        if model["code"] and (force or "code" in parts):
            code.append({"name": name, **model["code"], "dest": where["code"], "found": found.get(f"code:{name}", {})})
        if environment not in environments and (force or f"environment:{environment}" in drift):
            environments[environment] = {
                "name": environment,
                "prefix": where["environment"],
                "python": _python_argument(model, settings),
                "lock": model["python"]["lock"],
            }
            if found.get(f"environment:{environment}", {}).get("state") in (None, "absent"):
                needed += int(model["python"]["installed_bytes"])
        if force or "weights" in parts:
            weights.append({**model["weights"], "name": name, "dest": where["weights"]})
            needed += _missing_bytes(model, found.get(f"weights:{name}", {}))
        if settings["smoke"] and model["smoke"]["enabled"] and (force or "smoke" in parts or healed):
            smoke.append(
                {
                    **model["smoke"],
                    "name": name,
                    "environment": environment,
                    "precision": model["precision"],
                    "device": model["device"],
                    "fingerprint": model["fingerprint"],
                    "pickle": model["weights"]["pickle"],
                    "environment_prefix": where["environment"],
                    "weights_path": where["weights"],
                    "result_path": where["result"],
                    "again": force or healed,
                }
            )
    tried = {environment: row["prefix"] for environment, row in environments.items()}
    tried.update({row["environment"]: row["environment_prefix"] for row in smoke})
    free = int(found.get("disk", {}).get("free_bytes") or 0)
    too_small = ""
    if needed and free < needed + RESERVE_BYTES:
        too_small = (
            f"the filesystem of {settings['root']} has {gigabytes(free)} free, {gigabytes(needed)} are still to come"
            f" ({', '.join(sorted({*(row['name'] for row in weights), *environments}))}). Nothing was changed. Free some"
            " space, or put llm_model_root on a larger filesystem."
        )
    return {
        "code": code,
        "environments": list(environments.values()),
        "weights": weights,
        "smoke": smoke,
        "torch": [
            {"name": environment, "prefix": prefix, "device": _device(environment, models)}
            for environment, prefix in tried.items()
        ],
        "tools": force or "tools" in drift,
        "needed_bytes": needed,
        "free_bytes": free,
        "too_small": too_small,
    }


def _python_argument(model: Model, settings: Settings) -> str:
    """What conda_env takes as its C(python): a version, or the path that the inventory gives."""
    asked = str(settings.get("interpreter", ""))
    return asked if settings["manager"] == "venv" and "/" in asked else python_of(model, settings)


def gigabytes(count: int) -> str:
    """A number of bytes for people, in units of 10^9: '12.5 GB'."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def kept_result(found: Mapping[str, Any]) -> dict[str, Any]:
    """The smoke result that a C(read) item brought back; an empty one when there is none."""
    try:
        result = json.loads(found.get("content") or "")
    except ValueError:
        return {}
    return result if isinstance(result, dict) else {}


def _failed_smoke(tests: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    out: dict[str, Mapping[str, Any]] = {}
    for test in tests:
        model = test.get("__llm_model_test") or {}
        if model and not test.get("ok", False) and not test.get("skipped", False):
            out[str(model["name"])] = test
    return out


def _model_fact(model: Model, settings: Settings, found: Mapping[str, Any]) -> dict[str, Any]:
    where = paths(model["name"], model["python"]["environment"], settings["root"])
    answered = kept_result(found.get(f"result:{model['name']}", {}))
    current = answered.get("fingerprint") == model["fingerprint"]
    fact = {
        "title": model["title"],
        "commit": (model["code"] or {}).get("commit", ""),
        "revision": model["weights"]["revision"],
        "lock_sha256": model["python"]["lock_sha256"],
        "fingerprint": model["fingerprint"],
        "code_path": where["code"] if model["code"] else "",
        "environment_path": where["environment"],
        "weights_path": where["weights"],
        "result_path": where["result"],
        "smoke": "off"
        if not (settings["smoke"] and model["smoke"]["enabled"])
        else "passed"
        if current
        else "not passed",
    }
    if current:
        fact.update(
            {key: value for key, value in answered.items() if key not in ("fingerprint", "asked", "changed", "ok")}
        )
    return fact


def outcome(
    models: Iterable[Model],
    settings: Settings,
    last: Mapping[str, Any],
    *,
    tests: Iterable[Mapping[str, Any]] = (),
    torch: Iterable[Mapping[str, Any]] = (),
    changed: bool = False,
) -> dict[str, Any]:
    """The role's result: C(last) is its last look, C(tests) and C(torch) the results of the checks that it ran.

    Keys C(role), C(ok), C(changed), C(checks), C(versions), C(notes) as every role, and C(models): name to what is where
    and what it answered.
    """
    models, torch = list(models), list(torch)
    found, rows = last.get("seen") or {}, {row["key"]: row for row in last.get("items") or []}
    failed = _failed_smoke(tests)
    broken = {
        str((test.get("__llm_model_environment") or {}).get("name", "")): test
        for test in torch
        if test.get("verdict") == "failed"
    }
    unasked = {m["name"]: m["python"]["environment"] for m in models if m["python"]["environment"] in broken}
    checks: list[dict[str, Any]] = []
    for environment, test in broken.items():
        detail = f"{test.get('title', '')}: {test.get('explanation', '')}"
        remedy = str(test.get("remedy", ""))
        checks.append({"name": f"torch:{environment}", "ok": False, "detail": detail, "remedy": remedy})
    for key, row in rows.items():
        name = key.partition(":")[2]
        if not row["differs"] or (key.startswith("smoke:") and name in failed):
            continue
        if key.startswith("smoke:") and name in unasked:
            # Its torch says why and what to do; the model itself has nothing to add.
            detail = f"not asked, because the torch of its environment {unasked[name]} does not compute"
            checks.append({"name": key, "ok": False, "detail": detail, "remedy": ""})
            continue
        reasons = "; ".join(row["reasons"])
        checks.append({"name": key, "ok": False, "detail": reasons, "remedy": "Run the play without --check."})
    for name, test in failed.items():
        error = test.get("error") or {}
        detail = str(test.get("msg", "")).splitlines()[0] if test.get("msg") else "the model did not answer"
        known = error.get("id", "unknown") != "unknown"
        cause = f" {error['title']}: {error['cause']}" if known else ""
        remedy = str(error.get("remedy", ""))
        checks.append(
            {
                "name": f"smoke:{name}",
                "ok": False,
                "detail": detail + cause,
                "remedy": remedy if known else f"{remedy} {DEEP}".strip(),
                "class": str(error.get("class", "other")),
            }
        )
    notes = [
        f"{environment.get('name', '')}: {test.get('title', '')}. {test.get('remedy', '')}".strip()
        for test in torch
        for environment in [test.get("__llm_model_environment") or {}]
        if test.get("verdict") == "warning"
    ]
    facts = {model["name"]: _model_fact(model, settings, found) for model in models}
    bad = {check["name"].partition(":")[2] for check in checks}
    for model in models:
        fact = facts[model["name"]]
        if model["name"] in bad or model["python"]["environment"] in bad:
            continue
        said = f"answers: {fact['answer'][:80]!r}" if fact.get("answer") else f"smoke test {fact['smoke']}"
        checks.append({"name": model["name"], "ok": True, "detail": said, "remedy": ""})
        if model["licence"]["gated"] or model["licence"].get("note"):
            note = model["licence"].get("note") or "behind a licence on the hub"
            notes.append(f"{model['name']}: licence {model['licence']['name']}, {note}")
    versions = {
        f"{name} {part}": str(version)
        for name, fact in facts.items()
        for part, version in (fact.get("versions") or {}).items()
        if part in ("python", "torch", "transformers", "cuda")
    }
    return {
        "role": "llm_model",
        "ok": all(check["ok"] for check in checks),
        "changed": changed,
        "checks": checks,
        "versions": versions,
        "notes": notes,
        "models": facts,
    }


def _upstream(channel: str) -> str:
    return channel if "/" in channel else f"{CONDA}/{channel}"


def sources(mirror: Mapping[str, Any], channels: Iterable[str]) -> dict[str, Any]:
    """Where weights, packages and conda packages come from under a resolved mirror profile.

    Keys C(sources), C(endpoints), C(modelscope_endpoints) (as C(model_snapshot) takes them), C(channels), C(index_url),
    C(trusted_hosts), C(ca_path), and C(fallback_channels), C(fallback_index_urls): what is asked when the former do not
    serve, upstream last unless the profile is exclusive. ModelScope is asked only where the profile names it, and first
    where it names no other hub.
    """
    channels = list(channels)
    endpoint, scope = mirror["huggingface"]["endpoint"].rstrip("/"), mirror["modelscope"]["endpoint"].rstrip("/")
    only_scope = bool(scope) and not endpoint
    endpoints = [endpoint] if endpoint else []
    if not mirror["exclusive"]:
        endpoints.append(HUB)
    order = ["modelscope", "huggingface"] if only_scope else ["huggingface", "modelscope"]
    custom, alias = mirror["conda"]["custom_channels"], mirror["conda"]["channel_alias"].rstrip("/")
    mirrored = [
        channel
        if "/" in channel
        else f"{custom[channel].rstrip('/')}/{channel}"
        if channel in custom
        else f"{alias}/{channel}"
        if alias
        else channel
        for channel in channels
    ]
    # URLs, since conda's own configuration makes the mirror out of a name.
    elsewhere = [
        [channel if "/" in channel else f"{base.rstrip('/')}/{channel}" for channel in channels]
        for base in mirror["conda"]["fallback_aliases"]
    ]
    indexes = list(mirror["pypi"]["fallback_urls"])
    if not mirror["exclusive"]:
        if mirrored != channels:
            elsewhere.append(
                [one for channel in channels for one in UPSTREAM_CHANNELS.get(channel, [_upstream(channel)])]
            )
        if mirror["pypi"]["index_url"]:
            indexes.append("")  # the installer's own
    return {
        "sources": [name for name in order if (scope if name == "modelscope" else endpoints)],
        "endpoints": list(dict.fromkeys(endpoints)),
        "modelscope_endpoints": [scope] if scope else [],
        "channels": mirrored,
        "fallback_channels": [one for one in elsewhere if one != mirrored],
        "index_url": mirror["pypi"]["index_url"],
        "fallback_index_urls": [one for one in dict.fromkeys(indexes) if one != mirror["pypi"]["index_url"]],
        "trusted_hosts": list(mirror["pypi"]["trusted"]),
        "ca_path": mirror["ca_path"],
    }
