# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""NVIDIA's package repository, written the same way for every role that needs it.

The roles nvidia_driver and cuda may both want the repository on one node. They take its source file and its key from
here, byte for byte the same, so neither undoes the other's. Pure; the dated data are data/nvidia_repository.yml.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.llm.plugins.plugin_utils import mirrors, yaml_file

DATA = Path(__file__).resolve().parent / "data" / "nvidia_repository.yml"

PATHS = {
    "apt": {
        "file": "/etc/apt/sources.list.d/gpufleet-nvidia.sources",
        "key": "/usr/share/keyrings/gpufleet-nvidia.asc",
    },
    "rpm": {"file": "/etc/yum.repos.d/gpufleet-nvidia.repo", "key": "/etc/pki/rpm-gpg/RPM-GPG-KEY-gpufleet-nvidia"},
}
# apt reads preferences in alphabetical order and takes the first record that names a package: this one comes last, so
# whatever an operator or nvidia-driver-pinning-* says about the driver's packages wins.
NO_DRIVER_PIN = "/etc/apt/preferences.d/zz-gpufleet-cuda-no-driver"


class RepositoryError(ValueError):
    """There is no such repository, or its key is not known; the text is for the user."""


@functools.lru_cache(maxsize=1)
def table() -> dict[str, Any]:
    """The table as read.

    :raises OSError: when the file is missing.
    """
    data: dict[str, Any] = yaml_file.read(DATA)
    return data


def _row(distribution: str, os_family: str, version: str) -> Mapping[str, Any] | None:
    for name in (distribution, f"{os_family} family"):
        for row in table()["repositories"]:
            wanted = str(row["version"])
            if row["distribution"] == name and (version == wanted or version.startswith(wanted + ".")):
                return dict(row)
    return None


def has_repository(distribution: str, os_family: str, version: str, machine: str = "x86_64") -> bool:
    """Whether NVIDIA has packages for a distribution (its full version) and `uname -m`."""
    return _row(distribution, os_family, version) is not None and machine in table()["machines"]


def repository(
    distribution: str,
    os_family: str,
    version: str,
    machine: str = "x86_64",
    *,
    base_url: str = "",
    key_url: str = "",
    fingerprints: Iterable[str] = (),
    profile: str | Mapping[str, Any] = "upstream",
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The repository of a node, with the files that make it known.

    @param distribution, os_family, version, machine: as ansible says them (C(distribution_version), C(architecture)).
    @param base_url, key_url, fingerprints: a site's own copy; empty takes NVIDIA's.
    @param profile, overrides: the mirror profile that rewrites the URLs.
    @returns: C({kind, folder, url, host, key_urls, key_path, fingerprints, file: {path, content, mode, owner, group}});
        C(kind) is apt or rpm.
    @raises RepositoryError: for a distribution without one, or a key that is not known.
    """
    row = _row(distribution, os_family, version)
    if row is None or machine not in table()["machines"]:
        raise RepositoryError(
            f"NVIDIA has no package repository for {distribution} {version} on {machine} that this collection knows; "
            f"known: {', '.join(r['folder'] for r in table()['repositories'])} on {', '.join(table()['machines'])}. "
            "Take the method runfile or distribution, or add a row to nvidia_repository.yml."
        )
    folder_url = f"{(base_url or table()['base_url']).rstrip('/')}/{row['folder']}/{table()['machines'][machine]}/"
    key = next(k for k in table()["keys"] if k["key"] == row["key"])
    wanted = [str(one).replace(" ", "").upper() for one in fingerprints] or (
        [str(key["fingerprint"])] if key["fingerprint"] else []
    )
    if not wanted:
        raise RepositoryError(
            f"The fingerprint of the key {row['key']} of NVIDIA's repository for {distribution} {version} is not known here. "
            f"Read it from NVIDIA's installation guide and name it in the inventory, then the key is trusted."
        )
    url = mirrors.candidates(folder_url, profile, overrides)[0]
    kind = str(row["kind"])
    paths = PATHS[kind]
    content = _apt_source(url, paths["key"]) if kind == "apt" else _rpm_source(url, paths["key"])
    return {
        "kind": kind,
        "folder": str(row["folder"]),
        "url": url,
        "host": url.partition("://")[2].partition("/")[0].partition(":")[0],
        "key_urls": mirrors.candidates(key_url or f"{folder_url}{row['key']}.pub", profile, overrides),
        "key_path": paths["key"],
        "fingerprints": wanted,
        "file": {"path": paths["file"], "content": content, "mode": "0644", "owner": "root", "group": "root"},
    }


def _apt_source(url: str, key_path: str) -> str:
    # A flat repository: the suite is a path that ends in a slash, and there are no components.
    return (
        "# NVIDIA's packages, by the collection gpufleet.llm (roles nvidia_driver and cuda)\n"
        f"Types: deb\nURIs: {url}\nSuites: /\nSigned-By: {key_path}\n"
    )


def _rpm_source(url: str, key_path: str) -> str:
    return (
        "# NVIDIA's packages, by the collection gpufleet.llm (roles nvidia_driver and cuda)\n"
        "[gpufleet-nvidia]\nname=NVIDIA\n"
        f"baseurl={url}\nenabled=1\ngpgcheck=1\ngpgkey=file://{key_path}\n"
    )


def no_driver_pin(host: str) -> dict[str, Any]:
    """The apt preferences that keep the driver's packages of this repository away: ``{path, content, mode, ...}``.

    For a node whose driver comes from elsewhere (or that has none): without it, the next C(apt upgrade) would exchange
    the distribution's driver for NVIDIA's, package by package.
    """
    names = [name for name in table()["driver_packages"] if not name.startswith("cuda-[")]
    content = (
        "# By the role gpufleet.llm.cuda: toolkits come from this repository, the driver does not.\n"
        f"Package: {' '.join(names)}\nPin: origin {host}\nPin-Priority: -1\n"
    )
    return {"path": NO_DRIVER_PIN, "content": content, "mode": "0644", "owner": "root", "group": "root"}


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def driver_packages(names: Iterable[str], toolkits: Iterable[str] = ()) -> list[str]:
    """Those of `names` (``name``, ``name:amd64``, ``name.x86_64``) that belong to a driver, in their order.

    @param toolkits: names that are a toolkit here whatever the table says (Arch Linux calls its toolkit C(cuda)).
    """
    data = table()
    spared = [*data["not_driver_packages"], *toolkits]
    found = []
    for given in names:
        name = str(given).partition(":")[0]
        for arch in (".x86_64", ".noarch", ".aarch64", ".i686"):
            name = name.removesuffix(arch)
        if _matches(name, data["driver_packages"]) and not _matches(name, spared):
            found.append(name)
    return found
