# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Python environments: what is really in one, what a lock and conda specs ask of it, and what the tools' errors mean.

Standard library only, Python 3.9, no I/O at import. Everything is read from the environment itself (conda-meta,
dist-info and its RECORD, pyvenv.cfg); what a tool's own lists say is not asked. The reading of single distributions is
that of observe_node, so that both see the same damage.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.gpufleet.llm.plugins.module_utils import observe_node

# Untyped on purpose (it is sent to nodes function by function); these four are what both sides share.
_node: Any = observe_node
distribution_damage = _node.distribution_damage
interpreter_damage = _node.interpreter_damage
normal_name = _node.normal_name
site_folders = _node.site_folders

# Written into a prefix before it is created or changed, removed after it was verified.
MARKER = ".gpufleet-incomplete"

# What a virtual environment is born with; never counted as superfluous.
SEEDS = ("pip", "setuptools", "wheel")


class CondaError(ValueError):
    """A lock, a spec or a marker that cannot be understood; the message shows it."""


# -- versions ---------------------------------------------------------------------------------------------------------

_VERSION = re.compile(
    r"""^\s*v?(?:(?P<epoch>\d+)!)?(?P<release>\d+(?:\.\d+)*)
    (?:[-_.]?(?P<pre>a|b|c|rc|alpha|beta|pre|preview)[-_.]?(?P<pre_n>\d*))?
    (?:-(?P<post_short>\d+)|[-_.]?(?P<post>post|rev|r)[-_.]?(?P<post_n>\d*))?
    (?:[-_.]?(?P<dev>dev)[-_.]?(?P<dev_n>\d*))?
    (?:\+(?P<local>[a-z0-9]+(?:[-_.][a-z0-9]+)*))?\s*$""",
    re.VERBOSE | re.IGNORECASE,
)
_PRE = {"alpha": "a", "beta": "b", "c": "rc", "pre": "rc", "preview": "rc"}


def version_key(version: str) -> tuple[Any, ...]:
    """A key by which versions sort as PEP 440 says; what is no such version sorts by its parts, before all others."""
    match = _VERSION.match(version)
    if match is None:
        parts = re.findall(r"\d+|[a-z]+", version.lower())
        return (-1, tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts), (), (), (), ())
    release = [int(part) for part in match["release"].split(".")]
    while len(release) > 1 and release[-1] == 0:
        release.pop()
    pre = (_PRE.get(match["pre"].lower(), match["pre"].lower()), int(match["pre_n"] or 0)) if match["pre"] else None
    post = int(match["post_short"] or match["post_n"] or 0) if match["post_short"] or match["post"] else None
    dev = int(match["dev_n"] or 0) if match["dev"] else None
    if pre is not None:
        before: tuple[Any, ...] = (0, *pre)
    elif dev is not None and post is None:
        before = (-1,)
    else:
        before = (1,)
    local = tuple(
        (1, int(part), "") if part.isdigit() else (0, 0, part)
        for part in re.split(r"[-_.]", (match["local"] or "").lower())
        if part
    )
    return (
        int(match["epoch"] or 0),
        tuple((1, part, "") for part in release),
        before,
        (-1,) if post is None else (post,),
        (1,) if dev is None else (0, dev),
        local,
    )


def same_version(wanted: str, found: str) -> bool:
    """Whether `found` is what `==wanted` asks for: 2.0 is 2.0.0, and 2.13.0 is also 2.13.0+cpu (PEP 440)."""
    if "+" not in wanted:
        found = found.split("+", 1)[0]
    return version_key(wanted) == version_key(found)


def _starts(prefix: str, found: str) -> bool:
    return found == prefix or found.startswith(prefix + ".")


def satisfies(constraint: str, found: str) -> bool:
    """Whether version `found` is what a constraint of conda or PEP 440 asks for ('1.26', '=1.26', '>=1.2,<2|3.*').

    Raises CondaError for a constraint that cannot be understood.
    """
    options = constraint.split("|")
    return any(all(_satisfies_one(term.strip(), found) for term in option.split(",")) for option in options)


def _satisfies_one(term: str, found: str) -> bool:
    match = re.match(r"^(===|==|>=|<=|!=|~=|=|>|<)?\s*([0-9a-zA-Z.*+!_-]*)$", term)
    if match is None:
        raise CondaError(f"the version constraint {term!r} cannot be understood")
    operator, version = match[1] or "", match[2]
    if version in ("", "*"):
        return True
    if operator in ("", "=", "==", "!=") and (version.endswith("*") or operator == "="):
        stem = version.rstrip("*").rstrip(".")
        hit = _starts(stem, found) if version.endswith(".*") or operator == "=" else found.startswith(stem)
        return hit != (operator == "!=")
    have, want = version_key(found.split("+", 1)[0] if "+" not in version else found), version_key(version)
    if operator == "~=":
        return have >= want and _starts(version.rsplit(".", 1)[0], found)
    return {
        "": have == want,
        "==": have == want,
        "===": found == version,
        "!=": have != want,
        ">=": have >= want,
        "<=": have <= want,
        ">": have > want,
        "<": have < want,
    }[operator]


def parse_spec(spec: str) -> dict[str, str]:
    """A conda spec in its parts: {"name", "version" (constraint or ""), "build" (glob or ""), "channel"}.

    Raises CondaError for a spec in brackets, or one that is no spec.
    """
    match = re.match(
        r"^\s*(?:(?P<channel>[^\s:]+(?:://[^\s]+?)?)::)?(?P<name>[A-Za-z0-9_][A-Za-z0-9_.-]*)\s*(?P<rest>.*?)\s*$", spec
    )
    if match is None or "[" in spec:
        raise CondaError(f"the conda spec {spec!r} cannot be understood; write name, name=version or name>=version")
    rest, build = match["rest"], ""
    parts = re.match(r"^(={1,2}|)\s*([^=<>!~\s,|]+)\s*(?:=|\s)\s*([^=<>!~\s,|]+)$", rest)
    if parts:
        rest, build = f"=={parts[2]}", parts[3]
    if rest.startswith("=") and not rest.startswith("==") and rest.endswith("*"):
        rest = rest[1:]
    if rest:
        satisfies(rest, "0")
    return {"name": match["name"].lower(), "version": rest, "build": build, "channel": match["channel"] or ""}


def spec_met(spec: Mapping[str, str], package: Mapping[str, Any] | None) -> bool:
    """Whether an installed package ({"version", "build"} of conda-meta) is what the parsed spec asks for."""
    if package is None:
        return False
    if spec["version"] and not satisfies(spec["version"], str(package["version"])):
        return False
    pattern = re.escape(spec["build"]).replace(r"\*", ".*")
    return not spec["build"] or re.fullmatch(pattern, str(package["build"])) is not None


def superfluous(packages: Mapping[str, Mapping[str, Any]], roots: Iterable[str]) -> list[str]:
    """Names of conda packages that neither are in `roots` nor are needed by one of them."""
    needed: set[str] = set()
    todo = [name for name in roots if name in packages]
    while todo:
        name = todo.pop()
        if name in needed:
            continue
        needed.add(name)
        todo += [one.split()[0].lower() for one in packages[name].get("depends", ()) if one.split()[0] in packages]
    return sorted(set(packages) - needed)


# -- locks ------------------------------------------------------------------------------------------------------------

# Where an option in a lock would override what the caller asked for; the caller's word counts.
_INDEX_OPTIONS = ("-i", "--index-url", "--extra-index-url", "--no-index", "-f", "--find-links", "--trusted-host")
_KEPT_OPTIONS = ("--no-binary", "--only-binary", "--prefer-binary", "--pre", "--use-feature", "--require-hashes")


def parse_lock(text: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The entries of a requirements file as a lock, and the options that are handed on.

    An entry is {"name" (normalised), "version" (of ``==``, of a wheel's URL, or ""), "constraint", "marker",
    "hashes" (int), "text" (as written)}. Raises CondaError for a line that is no requirement, or nests files.
    """
    entries: list[dict[str, Any]] = []
    options: list[str] = []
    for raw in re.sub(r"\\\r?\n", " ", text).splitlines():
        line = re.sub(r"(^|\s)#.*$", "", raw).strip()
        if not line:
            continue
        if line.startswith("-"):
            option = re.split(r"[\s=]", line, maxsplit=1)[0]
            if option in _KEPT_OPTIONS:
                options.append(line)
            elif option not in _INDEX_OPTIONS:
                raise CondaError(f"a lock must be flat and complete; {line!r} has no place in it")
            continue
        entries.append(_entry(line))
    return entries, options


def _entry(line: str) -> dict[str, Any]:
    hashes = re.findall(r"--hash[=\s]\S+", line)
    bare = re.sub(r"\s*--[a-z-]+[=\s]\S+", "", line).strip()
    match = re.match(r"^([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?:\[[^\]]*\])?\s*(.*)$", bare)
    if match is None:
        raise CondaError(f"the line {shlex.quote(bare)} of the lock is no requirement")
    name, rest = normal_name(match[1]), match[2]
    marker = ""
    if rest.startswith("@"):
        url, _sep, marker = rest[1:].strip().partition(" ;")
        wheel = urllib.parse.unquote(urllib.parse.urlsplit(url.strip()).path.rsplit("/", 1)[-1])
        version = wheel.split("-")[1] if wheel.endswith(".whl") and wheel.count("-") >= 4 else ""
        constraint = f"=={version}" if version else ""
    else:
        constraint, _sep, marker = rest.partition(";")
        constraint = constraint.strip().strip("()").replace(" ", "")
        exact = re.fullmatch(r"={2,3}([^*,]+)", constraint)
        version = exact[1] if exact else ""
        if constraint and not version:
            satisfies(constraint, "0")
    return {
        "name": name,
        "version": version,
        "constraint": constraint,
        "marker": marker.strip(),
        "hashes": len(hashes),
        "text": line,
    }


def entry_met(entry: Mapping[str, Any], version: str) -> bool:
    """Whether an installed version is what the entry of a lock asks for."""
    if entry["version"]:
        return same_version(entry["version"], version)
    return not entry["constraint"] or satisfies(entry["constraint"], version)


# -- environment markers ----------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"\s*(?:(\(|\))|(<=|>=|==|!=|~=|<|>)|'([^']*)'|\"([^\"]*)\"|([A-Za-z_][A-Za-z0-9_.]*))")


def marker_holds(marker: str, environment: Mapping[str, str]) -> bool:
    """Evaluate an environment marker (PEP 508) for an interpreter. Raises CondaError when it cannot be understood."""
    if not marker:
        return True
    tokens: list[tuple[str, str]] = []
    position = 0
    while position < len(marker.rstrip()):
        match = _TOKEN.match(marker, position)
        if match is None:
            raise CondaError(f"the marker {marker!r} cannot be understood at {marker[position:]!r}")
        position = match.end()
        kinds = ("bracket", "operator", "string", "string", "word")
        tokens.append(next((kind, value) for kind, value in zip(kinds, match.groups()) if value is not None))
    value, rest = _either(tokens, environment, marker)
    if rest:
        raise CondaError(f"the marker {marker!r} does not end after {len(tokens) - len(rest)} words")
    return value


def _either(tokens: list[tuple[str, str]], environment: Mapping[str, str], marker: str) -> tuple[bool, list[Any]]:
    value, tokens = _both(tokens, environment, marker)
    while tokens and tokens[0] == ("word", "or"):
        other, tokens = _both(tokens[1:], environment, marker)
        value = value or other
    return value, tokens


def _both(tokens: list[tuple[str, str]], environment: Mapping[str, str], marker: str) -> tuple[bool, list[Any]]:
    value, tokens = _one(tokens, environment, marker)
    while tokens and tokens[0] == ("word", "and"):
        other, tokens = _one(tokens[1:], environment, marker)
        value = value and other
    return value, tokens


def _one(tokens: list[tuple[str, str]], environment: Mapping[str, str], marker: str) -> tuple[bool, list[Any]]:
    if tokens and tokens[0] == ("bracket", "("):
        value, tokens = _either(tokens[1:], environment, marker)
        if not tokens or tokens[0] != ("bracket", ")"):
            raise CondaError(f"the marker {marker!r} lacks a closing bracket")
        return value, tokens[1:]
    words = [token[1] for token in tokens[:4]]
    size = 4 if words[1:3] == ["not", "in"] else 3
    if len(tokens) < size:
        raise CondaError(f"the marker {marker!r} is not complete")
    left, right = tokens[0], tokens[size - 1]
    operator = " ".join(words[1 : size - 1])
    sides: list[str] = []
    for kind, word in (left, right):
        if kind == "word" and word not in environment:
            raise CondaError(f"the marker {marker!r} asks for {word!r}, which is not known")
        sides.append(environment[word] if kind == "word" else word)
    if operator in ("in", "not in"):
        return (sides[0] in sides[1]) == (operator == "in"), tokens[size:]
    names = [word for kind, word in (left, right) if kind == "word"]
    if operator not in ("==", "!=", "<", "<=", ">", ">=", "~="):
        raise CondaError(f"the marker {marker!r} has the unknown operator {operator!r}")
    if any(name in ("python_version", "python_full_version", "implementation_version") for name in names):
        flipped = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}.get(operator, operator)
        if left[0] == "word":
            return satisfies(operator + sides[1], sides[0]), tokens[size:]
        return satisfies(flipped + sides[0], sides[1]), tokens[size:]
    compared = {"==": sides[0] == sides[1], "!=": sides[0] != sides[1]}
    compared.update({"<": sides[0] < sides[1], "<=": sides[0] <= sides[1]})
    compared.update({">": sides[0] > sides[1], ">=": sides[0] >= sides[1], "~=": sides[0] == sides[1]})
    return compared[operator], tokens[size:]


def marker_environment(python: str, machine: str, release: str) -> dict[str, str]:
    """The values of PEP 508 for CPython `python` (X.Y.Z or X.Y) on Linux."""
    short = ".".join(python.split(".")[:2])
    return {
        "python_version": short,
        "python_full_version": python if python.count(".") == 2 else f"{short}.0",
        "os_name": "posix",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": machine,
        "platform_release": release,
        "platform_version": "",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "implementation_version": python,
        "extra": "",
    }


# -- what is really there ---------------------------------------------------------------------------------------------


def read_marker(prefix: str) -> str:
    """The phase that an interrupted run was in: 'create', 'packages', or '' when there was none."""
    path = os.path.join(prefix, MARKER)
    try:
        with open(path, encoding="utf-8") as stream:
            return "packages" if json.load(stream).get("phase") == "packages" else "create"
    except (ValueError, AttributeError):
        return "create"
    except OSError:
        return ""


def read_conda_meta(prefix: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """({name: {"version", "build", "channel", "depends"}}, [damage]) of the conda packages in a prefix."""
    packages: dict[str, dict[str, Any]] = {}
    damage: list[str] = []
    folder = os.path.join(prefix, "conda-meta")
    for name in sorted(os.listdir(folder)):
        if not name.endswith(".json"):
            continue
        try:
            with open(os.path.join(folder, name), encoding="utf-8") as stream:
                record = json.load(stream)
            packages[str(record["name"]).lower()] = {
                "version": str(record["version"]),
                "build": str(record.get("build", "")),
                "channel": str(record.get("channel", "")),
                "depends": [str(one) for one in record.get("depends", ())],
            }
        except (OSError, ValueError, KeyError, TypeError):
            damage.append(f"conda-meta/{name} is torn")
    return packages, damage


def read_distributions(prefix: str, deep: bool) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """({normalised name: {"version", "infos" [(folder, path)], "installer", "damage" (str)}}, [leftover paths]).

    `deep` compares each file with the sha256 in its RECORD. A leftover is what an interrupted pip renamed to ``~name``.
    """
    found: dict[str, dict[str, Any]] = {}
    leftovers: list[str] = []
    for _version, folder in site_folders(prefix):
        for entry in sorted(os.listdir(folder)):
            path = os.path.join(folder, entry)
            if entry.startswith("~"):
                leftovers.append(path)
                continue
            stem, kind = os.path.splitext(entry)
            if kind not in (".dist-info", ".egg-info"):
                continue
            words = stem.rsplit("-", 1) if kind == ".dist-info" else stem.split("-")
            name, version = words[0], words[1] if len(words) > 1 else ""
            if not name:
                continue
            try:
                with open(os.path.join(path, "INSTALLER"), encoding="utf-8") as stream:
                    installer = stream.read().strip()
            except OSError:
                installer = ""
            damage = distribution_damage(folder, path, False) or ""
            if deep and not damage and installer != "conda":
                damage = distribution_damage(folder, path, True) or ""
            known = found.get(normal_name(name))
            if known is not None:
                damage = f"is there twice ({known['version']} and {version})"
            infos = [*(known["infos"] if known else []), (folder, path)]
            found[normal_name(name)] = {"version": version, "infos": infos, "installer": installer, "damage": damage}
    return found, leftovers


def look(prefix: str, deep: bool = False) -> dict[str, Any]:
    """What is at `prefix`, always with all keys.

    ``state`` is absent, foreign (something that is no environment: never touched), broken (only building it anew
    helps; ``reasons`` says why) or present. ``packages`` are conda's, ``distributions`` those of site-packages.
    """
    found: dict[str, Any] = {
        "prefix": prefix,
        "state": "absent",
        "reasons": [],
        "marker": "",
        "manager": "",
        "python": "",
        "packages": {},
        "distributions": {},
        "leftovers": [],
    }
    if not os.path.isdir(prefix):
        if os.path.lexists(prefix):
            found.update(state="foreign", reasons=["it is no directory"])
        return found
    found["marker"] = read_marker(prefix)
    conda, venv = os.path.isdir(os.path.join(prefix, "conda-meta")), os.path.isfile(os.path.join(prefix, "pyvenv.cfg"))
    if not conda and not venv:
        if found["marker"]:
            found.update(state="broken", reasons=["its creation was interrupted"])
        elif os.listdir(prefix):
            found.update(state="foreign", reasons=["the directory holds files but no environment"])
        return found
    reasons: list[str] = []
    if found["marker"] == "create":
        reasons.append("its creation was interrupted")
    if conda:
        found["manager"] = "conda"
        found["packages"], damage = read_conda_meta(prefix)
        reasons += damage
        if not os.path.isfile(os.path.join(prefix, "conda-meta", "history")):
            reasons.append("conda-meta/history is missing")
        found["python"] = found["packages"].get("python", {}).get("version", "")
    else:
        found["manager"] = "venv"
        found["python"] = _venv_python(prefix)
        if not site_folders(prefix):
            reasons.append("it has no site-packages")
    if found["python"] or not conda:
        broken = interpreter_damage(prefix, found["python"] or None)
        if broken:
            reasons.append(broken)
    found["distributions"], found["leftovers"] = read_distributions(prefix, deep)
    found.update(state="broken" if reasons else "present", reasons=reasons)
    return found


def _venv_python(prefix: str) -> str:
    try:
        with open(os.path.join(prefix, "pyvenv.cfg"), encoding="utf-8") as stream:
            lines = [line.partition("=") for line in stream]
    except OSError:
        return ""
    values = {parts[0].strip().lower(): parts[2].strip() for parts in lines}
    return ".".join((values.get("version") or values.get("version_info") or "").split(".")[:3])


def compare(
    found: Mapping[str, Any],
    *,
    manager: str,
    python: str,
    specs: Iterable[Mapping[str, str]],
    entries: Iterable[Mapping[str, Any]],
    exact: bool,
) -> dict[str, Any]:
    """What separates an environment from what is wanted, always with all keys.

    {"rebuild": [reasons why only building anew helps], "specs": [parsed conda specs to install],
     "entries": [lock entries to install], "damaged": [distributions to remove first], "extra_packages": [str],
     "extra_distributions": [str], "reasons": [all of it in words]}. `python` is a version or the beginning of one.
    """
    result: dict[str, Any] = {
        "rebuild": list(found["reasons"]) if found["state"] == "broken" else [],
        "specs": [],
        "entries": [],
        "damaged": [],
        "extra_packages": [],
        "extra_distributions": [],
        "reasons": [],
    }
    specs, entries = list(specs), list(entries)
    if found["state"] == "present":
        if found["manager"] != manager:
            result["rebuild"].append(f"it was made by {found['manager']}, wanted is {manager}")
        if python and not _starts(python, found["python"]):
            result["rebuild"].append(f"its Python is {found['python'] or 'missing'}, wanted is {python}")
    if found["state"] in ("absent", "broken") or result["rebuild"]:
        result["specs"], result["entries"] = specs, entries
        result["reasons"] = result["rebuild"] or ["it is absent"]
        return result
    reasons: list[str] = ["an earlier run was interrupted"] if found["marker"] else []
    wanted = {entry["name"] for entry in entries}
    for spec in specs:
        package = found["packages"].get(spec["name"])
        if not spec_met(spec, package):
            result["specs"].append(spec)
            have = f"is {package['version']}={package['build']}" if package else "is missing"
            asked = f", wanted {spec['version']} {spec['build']}".rstrip() if spec["version"] else ""
            reasons.append(f"package {spec['name']} {have}{asked}")
    result["damaged"] = sorted(
        name
        for name, one in found["distributions"].items()
        if one["damage"] and (name in wanted or one["installer"] != "conda")
    )
    reasons += [f"{name}: {found['distributions'][name]['damage']}" for name in result["damaged"]]
    reasons += [f"{os.path.basename(path)} is left of an interrupted pip" for path in found["leftovers"]]
    for entry in entries:
        have = found["distributions"].get(entry["name"])
        if have is None or have["damage"] or not entry_met(entry, have["version"]):
            result["entries"].append(entry)
            if have is None:
                reasons.append(f"{entry['name']} is missing, wanted {entry['version'] or entry['constraint'] or 'any'}")
            elif not have["damage"]:
                reasons.append(
                    f"{entry['name']} is {have['version']}, wanted {entry['version'] or entry['constraint']}"
                )
    if exact:
        roots = [spec["name"] for spec in specs] + ["python", "pip"]
        result["extra_packages"] = superfluous(found["packages"], roots) if specs or python else []
        result["extra_distributions"] = sorted(
            name
            for name, one in found["distributions"].items()
            if name not in wanted and name not in SEEDS and one["installer"] != "conda" and not one["damage"]
        )
        reasons += [f"{name} is superfluous" for name in result["extra_packages"] + result["extra_distributions"]]
    result["reasons"] = reasons
    return result


# -- what the tools' errors mean --------------------------------------------------------------------------------------


def explain_conda(stdout: str, stderr: str, rc: int, seconds: int) -> str:
    """What a failed conda said, in words with a remedy. `stdout` is that of ``--json``."""
    text = f"{stdout}\n{stderr}"
    said = _said(stdout)
    name = str(said.get("exception_name", ""))
    if rc in (124, 137):
        return f"conda did not end within {seconds} seconds (timeout_seconds); the next run starts over"
    if "CondaToS" in name or "Terms of Service have not been accepted" in text:
        channels = sorted(set(re.findall(r"https?://[^\s'\"\]),\\]+", text.split("Terms of Service", 1)[-1])))
        channels = [one for one in channels if "/pkgs/" in one or "anaconda.com" not in one] or channels
        return (
            "conda refuses: the terms of service of these channels have not been accepted: "
            f"{', '.join(channels) or '(see stderr)'}. Use conda-forge alone (channels: [conda-forge],"
            " override_channels: true), or, if your organisation may, let the role anaconda accept them:"
            " anaconda_accept_tos: true"
        )
    if name in ("PackagesNotFoundError", "ResolvePackageNotFound", "UnsatisfiableError") or (
        "PackagesNotFoundError" in text or "nothing provides" in text or "LibMambaUnsatisfiable" in text
    ):
        packages = said.get("packages") or said.get("bad_deps") or []
        shown = ", ".join(str(one) for one in packages) if isinstance(packages, list) else str(packages)
        channels = [str(one) for one in said.get("channel_urls", ())]
        where = f" in {', '.join(channels)}" if channels else ""
        return f"conda cannot find or combine {shown or 'what was asked for'}{where}: {_last(said, stderr, stdout)}"
    if "HTTP" in name or "CondaHTTPError" in text or "CondaSSLError" in text:
        return (
            f"conda cannot reach its channel: {_last(said, stderr, stdout)}. Check the mirror profile, the proxy"
            " (http_proxy, https_proxy, no_proxy in the environment) and ca_path"
        )
    if "NoSpaceLeft" in name or "No space left" in text or "DiskSpace" in text:
        return f"the disk is full: {_last(said, stderr, stdout)}"
    return f"conda failed with rc {rc}: {_last(said, stderr, stdout)}"


def _said(stdout: str) -> dict[str, Any]:
    """The last JSON object that conda printed; before it come progress reports, each ended by a NUL."""
    decoder = json.JSONDecoder()
    for piece in reversed(re.split(r"\0|^(?=\{)", stdout, flags=re.MULTILINE)):
        start = piece.find("{")
        if start >= 0:
            try:
                said = decoder.raw_decode(piece[start:])[0]
            except ValueError:
                continue
            if isinstance(said, dict):
                return said
    return {}


def _last(said: Mapping[str, Any], stderr: str, stdout: str) -> str:
    message = said.get("message") or said.get("error") or ""
    if not message:
        lines = [line for line in (stderr or stdout).strip().splitlines() if line.strip()]
        message = "\n".join(lines[-12:])
    return " ".join(str(message).split())[:1500]


def explain_installer(stdout: str, stderr: str, rc: int, seconds: int) -> str:
    """What a failed pip or uv said, in words with a remedy."""
    text = f"{stdout}\n{stderr}"
    tail = " ".join("\n".join(text.strip().splitlines()[-12:]).split())[:1500]
    if rc in (124, 137):
        return f"the installation did not end within {seconds} seconds (timeout_seconds); the next run goes on"
    if "DO NOT MATCH THE HASHES" in text or re.search(r"[Hh]ash mismatch", text):
        names = re.findall(r"^\s{4}(\S+==\S+|\S+) from ", text, re.MULTILINE) or re.findall(
            r"[Hh]ash mismatch for `?([^`\s]+)`?", text
        )
        return (
            f"a file has another sha256 than the lock says and was refused: {', '.join(sorted(set(names))) or tail}."
            f" The mirror is wrong or was tampered with; try another mirror profile. {tail}"
        )
    if "require-hashes" in text or "hashes are required" in text.lower():
        return f"the lock lacks hashes for some of its lines: {tail}"
    missing = re.findall(r"No matching distribution found for ([^\s(]+)", text) or re.findall(
        r"[Bb]ecause ([A-Za-z0-9_.-]+) was not found", text
    )
    if missing:
        return (
            f"the index has no file for {', '.join(sorted(set(missing)))} that fits this Python and platform;"
            f" check index_url and the lock's Python version. {tail}"
        )
    if "no version of" in text or "No solution found" in text:
        return f"the index has no version that the lock asks for: {tail}"
    if "No space left" in text:
        return f"the disk is full: {tail}"
    if re.search(r"CERTIFICATE_VERIFY_FAILED|UnknownIssuer|certificate verify failed", text):
        return f"the index's certificate is not trusted (see ca_path): {tail}"
    return f"the installer failed with rc {rc}: {tail}"


# What pip, uv and conda say when it is the place that is at fault: not there, without the file, or with a wrong one.
_PLACE_AT_FAULT = re.compile(
    r"DO NOT MATCH THE HASHES|[Hh]ash mismatch|ChecksumMismatch"
    r"|No matching distribution found|was not found in the|no version of|No solution found"
    r"|PackagesNotFoundError|ResolvePackageNotFound|UnavailableInvalidChannel|nothing provides"
    r"|CERTIFICATE_VERIFY_FAILED|certificate verify failed|UnknownIssuer|CondaSSLError"
    r"|HTTP ?[Ee]rror|HTTP [Ss]tatus|CondaHTTPError|HTTPSConnectionPool|HTTPConnectionPool|ConnectionFailed"
    r"|Failed to fetch|[Ff]ailed to download|error sending request|Could not fetch URL"
    r"|Max retries exceeded|NewConnectionError|ConnectionError|ProtocolError|[Cc]onnection (?:refused|reset|broken|aborted)"
    r"|IncompleteRead|[Rr]ead timed out|ReadTimeout|ConnectTimeout|dns error|Name or service not known|Temporary failure in name"
)
_NODE_AT_FAULT = re.compile(r"No space left|NoSpaceLeft|Permission denied|Read-only file system")


def elsewhere_may_help(stdout: str, stderr: str) -> bool:
    """Whether what failed may work with another index or channel: the place was at fault, not the node or the lock."""
    text = f"{stdout}\n{stderr}"
    return bool(_PLACE_AT_FAULT.search(text)) and not _NODE_AT_FAULT.search(text)
