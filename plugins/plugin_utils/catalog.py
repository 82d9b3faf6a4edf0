# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The models' catalogue: one folder per model with C(model.yml) and C(requirements.lock).

This file reads and checks the folders and turns them, with what an inventory wants, into what a node shall have. It
changes nothing and asks no network. The keys of C(model.yml) are described in C(docs/howto/add-a-model.md).
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from ansible_collections.gpufleet.llm.plugins.plugin_utils import yaml_file
from ansible_collections.gpufleet.llm.plugins.plugin_utils.lock import Lock, LockError, parse_lock

SCHEMA = 1
SMOKE_KINDS = ("text_generation", "chatglm", "speech_recognition")
PRECISIONS = ("float32", "float16", "bfloat16", "int8", "int4")
# Only ChatGLM's own code can quantize while loading; other quantized models are repositories of their own.
QUANTIZING_KINDS = ("chatglm",)
DEVICES = ("auto", "cpu", "cuda")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

_NAME = re.compile(r"[a-z0-9][a-z0-9_]*\Z")
_HEX40 = re.compile(r"[0-9a-f]{40}\Z")
_HEX64 = re.compile(r"[0-9a-f]{64}\Z")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+\Z")
_PYTHON = re.compile(r"3\.\d+\Z")

_TOP = {"schema", "title", "source", "licence", "code", "python", "weights", "memory", "smoke"}
_WEIGHTS = {"revision", "repos", "allow", "ignore", "manifest", "files", "total_bytes", "pickle"}
_SMOKE = {
    "kind",
    "prompt",
    "max_new_tokens",
    "timeout_seconds",
    "trust_remote_code",
    "dtype",
    "language",
    "enabled",
    "library_path",
}
# What an entry of llm_model_wanted may say besides the name; these are no keys of model.yml.
_WANTED = {"name", "precision", "device", "lock"}


class CatalogError(ValueError):
    """A catalogue folder, or what an inventory wants of it, is not right; the text says what and where."""


# ------------------------------------------------------------------------------------------------------- checking


def _strings(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) and item for item in value)


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def safe_path(path: Any) -> bool:
    """Whether this is a relative path that stays below its folder."""
    if not isinstance(path, str) or not path or path.startswith("/") or "\\" in path:
        return False
    parts = path.split("/")
    return not any(part in ("", ".", "..") for part in parts) and parts[0] != ".gpufleet"


def _code_problems(code: Any) -> list[str]:
    if not isinstance(code, Mapping):
        return ["code must be a mapping with urls and commit"]
    wrong = [f"code has an unknown key {key!r}" for key in code if key not in ("urls", "commit")]
    if not _strings(code.get("urls")) or not all(str(url).startswith("https://") for url in code["urls"]):
        wrong.append("code.urls must be a list of https URLs")
    if not _HEX40.match(str(code.get("commit", ""))):
        wrong.append(f"code.commit must be 40 lower-case hex digits, found {code.get('commit')!r}")
    return wrong


def _python_problems(python: Any) -> list[str]:
    if not isinstance(python, Mapping):
        return ["python must be a mapping with version and supported"]
    known = ("version", "supported", "environment", "installed_bytes")
    wrong = [f"python has an unknown key {key!r}" for key in python if key not in known]
    supported = python.get("supported")
    if not isinstance(python.get("version"), str) or not _PYTHON.match(python["version"]):
        wrong.append(f'python.version must be quoted, like "3.11", found {python.get("version")!r}')
    if not _strings(supported) or not all(_PYTHON.match(item) for item in supported or []):
        wrong.append('python.supported must be a list of quoted versions, like ["3.10", "3.11"]')
    elif python.get("version") not in (supported or []):
        wrong.append(f"python.version {python.get('version')!r} is not in python.supported")
    if not _NAME.match(str(python.get("environment", "x"))):
        wrong.append("python.environment must be lower-case letters, digits and underscores")
    return wrong


def _repo_problems(repos: Any) -> list[str]:
    if not isinstance(repos, Mapping) or not repos:
        return ["weights.repos must name a repository for at least one of huggingface, modelscope"]
    wrong = [f"weights.repos has an unknown hub {hub!r}" for hub in repos if hub not in ("huggingface", "modelscope")]
    hugging = repos.get("huggingface", [])
    if "huggingface" in repos and not (_strings(hugging) and all(_REPO.match(item) for item in hugging)):
        wrong.append("weights.repos.huggingface must be a list of namespace/name")
    for item in repos.get("modelscope", []):
        if not isinstance(item, Mapping) or not _REPO.match(str(item.get("repo", ""))) or not item.get("revision"):
            wrong.append("weights.repos.modelscope must be a list of {repo: namespace/name, revision: tag or branch}")
            break
    return wrong


def _file_problems(weights: Mapping[str, Any]) -> list[str]:
    wrong: list[str] = []
    files = weights.get("files", {})
    if not isinstance(files, Mapping):
        return ["weights.files must be a mapping of paths"]
    complete = weights.get("manifest") == "complete"
    if complete and not files:
        wrong.append("weights.manifest is complete but weights.files is empty")
    for path, row in files.items():
        if not safe_path(path):
            wrong.append(f"weights.files: {path!r} is not a relative path below the folder")
        if not isinstance(row, Mapping) or set(row) - {"size", "sha256", "git_sha1"}:
            wrong.append(f"weights.files: {path} must have size and sha256 (or git_sha1)")
            continue
        if "sha256" in row and not _HEX64.match(str(row["sha256"])):
            wrong.append(f"weights.files: the sha256 of {path} must be 64 lower-case hex digits")
        if "git_sha1" in row and not _HEX40.match(str(row["git_sha1"])):
            wrong.append(f"weights.files: the git_sha1 of {path} must be 40 lower-case hex digits")
        if "size" in row and (not isinstance(row["size"], int) or isinstance(row["size"], bool) or row["size"] < 0):
            wrong.append(f"weights.files: the size of {path} must be a number of bytes")
        if complete and ("size" not in row or not ("sha256" in row or "git_sha1" in row)):
            wrong.append(f"weights.files: {path} needs size and sha256, since weights.manifest is complete")
        if isinstance(path, str) and path.lower().endswith(PICKLES) and not weights.get("pickle", False):
            wrong.append(
                f"weights.files: {path} is a pickle, which runs code when loaded; set weights.pickle to allow it"
            )
    return wrong


def _weights_problems(weights: Any) -> list[str]:
    if not isinstance(weights, Mapping):
        return ["weights must be a mapping"]
    wrong = [f"weights has an unknown key {key!r}" for key in weights if key not in _WEIGHTS]
    if not _HEX40.match(str(weights.get("revision", ""))):
        wrong.append(
            f"weights.revision must be 40 lower-case hex digits (a branch or tag can move), found"
            f" {weights.get('revision')!r}"
        )
    wrong += _repo_problems(weights.get("repos"))
    if not _strings(weights.get("allow")):
        wrong.append("weights.allow must be a list of file patterns")
    if "ignore" in weights and weights["ignore"] and not _strings(weights["ignore"]):
        wrong.append("weights.ignore must be a list of file patterns")
    if weights.get("manifest") not in ("complete", "partial"):
        wrong.append("weights.manifest must be complete or partial")
    if weights.get("manifest") == "partial" and not _positive(weights.get("total_bytes")):
        wrong.append("weights.total_bytes (a good estimate) is needed when weights.manifest is partial")
    return wrong + _file_problems(weights)


def _memory_problems(memory: Any) -> list[str]:
    if not isinstance(memory, Mapping) or not memory:
        return ["memory must say device_bytes, host_bytes and source for at least one precision"]
    wrong: list[str] = []
    for precision, row in memory.items():
        if precision not in PRECISIONS:
            wrong.append(f"memory: {precision!r} is none of {', '.join(PRECISIONS)}")
        if (
            not isinstance(row, Mapping)
            or not _positive(row.get("device_bytes"))
            or not _positive(row.get("host_bytes"))
            or not row.get("source")
        ):
            wrong.append(f"memory.{precision} must have device_bytes, host_bytes and source")
    return wrong


def _smoke_problems(smoke: Any) -> list[str]:
    if not isinstance(smoke, Mapping):
        return ["smoke must be a mapping"]
    wrong = [f"smoke has an unknown key {key!r}" for key in smoke if key not in _SMOKE]
    if smoke.get("kind") not in SMOKE_KINDS:
        wrong.append(f"smoke.kind must be one of {', '.join(SMOKE_KINDS)}, found {smoke.get('kind')!r}")
    if smoke.get("kind") != "speech_recognition" and not smoke.get("prompt"):
        wrong.append("smoke.prompt is missing")
    for key in ("max_new_tokens", "timeout_seconds"):
        if not _positive(smoke.get(key)):
            wrong.append(f"smoke.{key} must be a positive number")
    dtype = smoke.get("dtype")
    if not isinstance(dtype, Mapping) or set(dtype) != {"cpu", "cuda"}:
        wrong.append("smoke.dtype must name a precision for cpu and for cuda")
    else:
        wrong += [
            f"smoke.dtype.{device}: {precision!r} is none of auto, {', '.join(PRECISIONS)}"
            for device, precision in dtype.items()
            if precision not in (*PRECISIONS, "auto")
        ]
    if not isinstance(smoke.get("trust_remote_code", False), bool):
        wrong.append("smoke.trust_remote_code must be true or false")
    return wrong


def problems(model: Any) -> list[str]:
    """Everything that is wrong with the content of a C(model.yml); an empty list when it is right."""
    if not isinstance(model, Mapping):
        return ["model.yml must be a mapping"]
    wrong = [f"unknown key {key!r}" for key in model if key not in _TOP]
    if model.get("schema") != SCHEMA:
        wrong.append(f"schema must be {SCHEMA}, found {model.get('schema')!r}")
    wrong += [f"{key} is missing" for key in ("title", "source") if not isinstance(model.get(key), str)]
    licence = model.get("licence")
    if not isinstance(licence, Mapping) or not licence.get("name") or not isinstance(licence.get("gated"), bool):
        wrong.append("licence must have name and gated (true when the hub asks for a token and a click)")
    if "code" in model and model["code"] is not None:
        wrong += _code_problems(model["code"])
    wrong += _python_problems(model.get("python"))
    wrong += _weights_problems(model.get("weights"))
    wrong += _memory_problems(model.get("memory"))
    return wrong + _smoke_problems(model.get("smoke"))


# -------------------------------------------------------------------------------------------------------- reading


def names(dirs: Iterable[str]) -> dict[str, str]:
    """Model name to folder, of all catalogue folders; an earlier one of C(dirs) wins over a later one."""
    found: dict[str, str] = {}
    for base in dirs:
        if not os.path.isdir(base):
            raise CatalogError(f"the catalogue folder {base} does not exist")
        for name in sorted(os.listdir(base)):
            if os.path.isfile(os.path.join(base, name, "model.yml")):
                found.setdefault(name, os.path.join(base, name))
    return found


def read_folder(folder: str) -> dict[str, Any]:
    """The content of a folder's C(model.yml), checked. Raises CatalogError with everything that is wrong."""
    path = os.path.join(folder, "model.yml")
    try:
        model = yaml_file.read(path)
    except (OSError, yaml.YAMLError) as error:
        raise CatalogError(f"{path}: {error}") from error
    wrong = problems(model)
    if not _NAME.match(os.path.basename(folder)):
        wrong.append("the folder's name must be lower-case letters, digits and underscores")
    if wrong:
        raise CatalogError(f"{path}: {'; '.join(wrong)}")
    return dict(model)


def read_lock(path: str) -> tuple[Lock, str]:
    """The lock and its text. Raises CatalogError."""
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read()
        return parse_lock(text, path), text
    except (OSError, LockError) as error:
        raise CatalogError(str(error)) from error


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """C(base) with the entries of C(over), mappings merged key by key, lists replaced."""
    out = copy.deepcopy(dict(base))
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(out.get(key), Mapping):
            out[key] = merged(out[key], value)
        else:
            out[key] = copy.deepcopy(value)
    return out


def fingerprint(model: Mapping[str, Any]) -> str:
    """The sha256 of everything that a smoke result depends on; another value means that the test must run again."""
    smoke = {key: value for key, value in model["smoke"].items() if key not in ("enabled", "timeout_seconds")}
    inputs = [
        SCHEMA,
        model["name"],
        (model.get("code") or {}).get("commit", ""),
        model["weights"]["revision"],
        model["python"]["lock_sha256"],
        model["precision"],
        model["device"],
        smoke,
    ]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _one(entry: Any, folders: Mapping[str, str], precisions: Mapping[str, str]) -> dict[str, Any]:
    """One model as an inventory wants it."""
    wanted: dict[str, Any] = {"name": entry} if isinstance(entry, str) else dict(entry or {})
    name = wanted.get("name")
    if wanted.get("precision", "auto") == "auto" and name in precisions:
        wanted["precision"] = precisions[str(name)]
    if not isinstance(name, str) or name not in folders:
        raise CatalogError(
            f"there is no model {name!r} in the catalogue; it has: {', '.join(sorted(folders)) or 'none'}"
        )
    unknown = [key for key in wanted if key not in _TOP | _WANTED]
    if unknown:
        raise CatalogError(f"model {name}: unknown key {unknown[0]!r}; known are {', '.join(sorted(_TOP | _WANTED))}")
    catalogued = read_folder(folders[name])
    model = merged(catalogued, {key: value for key, value in wanted.items() if key in _TOP})
    if model["weights"].get("revision") != catalogued["weights"]["revision"] and not wanted["weights"].get("files"):
        # The catalogue's hashes belong to its own revision; those of another one are read from the hub.
        known = sum(row.get("size", 0) for row in catalogued["weights"].get("files", {}).values())
        estimate = wanted["weights"].get("total_bytes") or catalogued["weights"].get("total_bytes") or known
        model["weights"].update(files={}, manifest="partial", total_bytes=estimate)
    wrong = problems(model)
    precision, device = wanted.get("precision", "auto"), wanted.get("device", "auto")
    if precision not in (*PRECISIONS, "auto"):
        wrong.append(f"precision must be auto or one of {', '.join(PRECISIONS)}, found {precision!r}")
    elif precision in ("int8", "int4") and model["smoke"]["kind"] not in QUANTIZING_KINDS:
        wrong.append(f"precision {precision} is only for smoke kinds {', '.join(QUANTIZING_KINDS)}")
    if device not in DEVICES:
        wrong.append(f"device must be one of {', '.join(DEVICES)}, found {device!r}")
    if wrong:
        raise CatalogError(f"model {name}: {'; '.join(wrong)}")
    lock_path = wanted.get("lock") or os.path.join(folders[name], "requirements.lock")
    lock, _text = read_lock(lock_path)
    model["code"] = model.get("code") or None
    model["python"] = {
        "environment": name,
        "installed_bytes": 0,
        **model["python"],
        "lock": lock_path,
        "lock_sha256": lock.sha256,
        "requirements": lock.requirements,
    }
    model["weights"] = {"ignore": [], "files": {}, "pickle": False, "total_bytes": 0, **model["weights"]}
    model["weights"]["repos"] = {"huggingface": [], "modelscope": [], **model["weights"]["repos"]}
    if model["weights"]["manifest"] == "complete":
        model["weights"]["total_bytes"] = sum(row["size"] for row in model["weights"]["files"].values())
    model["smoke"] = {
        "prompt": "",
        "trust_remote_code": False,
        "language": "",
        "enabled": True,
        "library_path": "",
        **model["smoke"],
    }
    model.update(name=name, folder=folders[name], precision=precision, device=device)
    model["fingerprint"] = fingerprint(model)
    return model


def wanted_models(
    wanted: Any, dirs: Iterable[str], precisions: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """The models that an inventory wants, each with every key, in the order of the inventory.

    C(wanted) is a list of names, or of mappings with C(name) and whatever shall differ from the catalogue. Models that
    name the same C(python.environment) share it and must have the same lock. C(precisions) (name to precision) is what a
    plan chose; it counts where the inventory leaves the precision open. Raises CatalogError.
    """
    if not isinstance(wanted, (list, tuple)):
        raise CatalogError(f"a list of models is wanted, found {type(wanted).__name__}")
    folders = names(dirs)
    models = [_one(entry, folders, precisions or {}) for entry in wanted]
    seen: dict[str, str] = {}
    environments: dict[str, dict[str, Any]] = {}
    for model in models:
        if model["name"] in seen:
            raise CatalogError(f"the model {model['name']} is wanted twice")
        seen[model["name"]] = model["name"]
        first = environments.setdefault(model["python"]["environment"], model)
        if first["python"]["lock_sha256"] != model["python"]["lock_sha256"]:
            raise CatalogError(
                f"the models {first['name']} and {model['name']} share the environment"
                f" {model['python']['environment']} but their locks differ"
            )
    return models
