# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mirror profiles: one name decides which hosts stand in for the upstream ones.

Pure functions over the dated table ``data/mirrors.yml``. A *resolved profile* is a dict that always has all keys::

    {"name": str, "exclusive": bool, "ca_path": str,
     "pypi": {"index_url": str, "fallback_urls": [str], "trusted": [str]},
     "pytorch": {"index_url": str},
     "conda": {"channel_alias": str, "fallback_aliases": [str], "custom_channels": {str: str}, "default_channels": [str]},
     "huggingface": {"endpoint": str}, "modelscope": {"endpoint": str},
     "rewrite": {url prefix: [url prefix or url prefix ending in "{name}"]}}

Every function raises MirrorError, whose message names what was found and what would have been right.
"""

from __future__ import annotations

import copy
import functools
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.gpufleet.llm.plugins.plugin_utils import yaml_file

DATA = pathlib.Path(__file__).parent / "data" / "mirrors.yml"

BLANK: dict[str, Any] = {
    "name": "",
    "exclusive": False,
    "ca_path": "",
    "pypi": {"index_url": "", "fallback_urls": [], "trusted": []},
    "pytorch": {"index_url": ""},
    "conda": {"channel_alias": "", "fallback_aliases": [], "custom_channels": {}, "default_channels": []},
    "huggingface": {"endpoint": ""},
    "modelscope": {"endpoint": ""},
    "rewrite": {},
}

# Keys of the table that explain a profile and are no part of it.
NOTES = ("description", "checked", "sources")

# Dicts whose keys are the user's own (names of channels, URL prefixes).
OPEN = (("conda", "custom_channels"), ("rewrite",))


class MirrorError(ValueError):
    """A profile, an override or a URL that cannot be used; the message says which and what would be right."""


@functools.lru_cache(maxsize=1)
def profiles() -> dict[str, dict[str, Any]]:
    """The table as it is in data/mirrors.yml: profile name -> its entries, with their sources."""
    table: dict[str, dict[str, Any]] = yaml_file.read(DATA)
    return table


def merge(base: Mapping[str, Any], over: Mapping[str, Any], where: tuple[str, ...] = ()) -> dict[str, Any]:
    """Put `over` on top of `base`: dicts entry by entry, everything else replaced whole.

    Raises MirrorError for an entry that no profile can have, or one of the wrong type.
    """
    result = dict(copy.deepcopy(dict(base)))
    for key, value in over.items():
        path = (*where, str(key))
        label = ".".join(path)
        if where in OPEN:
            result[str(key)] = value
            continue
        if key not in result:
            raise MirrorError(f"a mirror profile has no entry {label!r}; known here: {', '.join(sorted(result))}")
        known = result[key]
        if isinstance(known, dict):
            if not isinstance(value, Mapping):
                raise MirrorError(f"the mirror entry {label!r} is a dict, found {type(value).__name__}: {value!r}")
            result[key] = merge(known, value, path)
        elif isinstance(known, bool):
            if not isinstance(value, bool):
                raise MirrorError(f"the mirror entry {label!r} is true or false, found {value!r}")
            result[key] = value
        elif isinstance(known, list):
            if not isinstance(value, (str, list, tuple)):
                raise MirrorError(f"the mirror entry {label!r} is a list, found {type(value).__name__}: {value!r}")
            result[key] = [value] if isinstance(value, str) else [str(item) for item in value]
        elif value is None or isinstance(value, str):
            result[key] = value or ""
        else:
            raise MirrorError(f"the mirror entry {label!r} is a string, found {type(value).__name__}: {value!r}")
    return result


def _targets(prefix: str, value: Any) -> list[str]:
    if value is None or value == "":
        return []
    targets = [value] if isinstance(value, str) else value
    if not isinstance(targets, (list, tuple)) or not all(isinstance(item, str) and item for item in targets):
        raise MirrorError(f"the rewrite of {prefix!r} must be a URL prefix or a list of them, found {value!r}")
    return [str(item) for item in targets]


def resolve(profile: str | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The profile named `profile` with the user's `overrides` on top, always with all keys.

    Several names joined with ``+`` are laid over each other, the later one wins (``tuna+hf_mirror``). An already
    resolved profile may be given instead of a name. An override of a rewrite with an empty list takes it out.
    """
    table = profiles()
    result = copy.deepcopy(BLANK)
    if isinstance(profile, Mapping):
        result = merge(result, profile)
    else:
        names = [name.strip() for name in str(profile).split("+")]
        unknown = [name for name in names if name not in table]
        if unknown:
            raise MirrorError(
                f"unknown mirror profile {', '.join(map(repr, unknown))}; there are: {', '.join(sorted(table))}"
                " (several may be joined with +)"
            )
        if not any(table[name].get("exclusive", False) for name in names) and "upstream" not in names:
            names.insert(0, "upstream")
        for name in names:
            result = merge(result, {key: value for key, value in table[name].items() if key not in NOTES})
        result["name"] = str(profile)
    if overrides:
        if not isinstance(overrides, Mapping):
            raise MirrorError(f"mirror overrides must be a dict, found {type(overrides).__name__}: {overrides!r}")
        result = merge(result, overrides)
    rewrite = {str(prefix): _targets(str(prefix), value) for prefix, value in result["rewrite"].items()}
    result["rewrite"] = {prefix: targets for prefix, targets in sorted(rewrite.items()) if targets}
    result["conda"]["custom_channels"] = {
        str(name): str(base) for name, base in sorted(result["conda"]["custom_channels"].items()) if base
    }
    return result


def _rewritten(url: str, prefix: str, target: str) -> str:
    tail = url[len(prefix) :]
    if target.endswith("{name}"):
        return target[: -len("{name}")] + tail.rstrip("/").rsplit("/", 1)[-1]
    return target + tail


def candidates(
    urls: str | Iterable[str], profile: str | Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> list[str]:
    """Where to fetch each of `urls` from, best first: the profile's mirrors, then the URL itself.

    The longest matching prefix decides. An exclusive profile never falls back to upstream; a URL that it neither
    rewrites nor already serves is an error rather than a silent way around it.
    """
    resolved = resolve(profile, overrides)
    wanted = [urls] if isinstance(urls, str) else list(urls)
    served = [target.replace("{name}", "") for targets in resolved["rewrite"].values() for target in targets]
    mirrored: list[str] = []
    upstream: list[str] = []
    for url in wanted:
        matches = [prefix for prefix in resolved["rewrite"] if url.startswith(prefix)]
        targets = resolved["rewrite"][max(matches, key=len)] if matches else []
        mirrored += [_rewritten(url, max(matches, key=len), target) for target in targets]
        if not resolved["exclusive"] or any(url.startswith(prefix) for prefix in served):
            upstream.append(url)
        elif not targets:
            raise MirrorError(
                f"the mirror profile {resolved['name']!r} is exclusive and has no rewrite for {url};"
                f" it has: {', '.join(resolved['rewrite']) or 'none'}"
            )
    return list(dict.fromkeys(mirrored + upstream))
