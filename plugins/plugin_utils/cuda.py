# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which CUDA toolkits a node shall have, how each gets there, and what that takes. Pure.

C(decide) turns the role's variables into a plan with the items for observe; C(work) turns what observe saw into what is to
be done, and into problems that stop the role before its first change. The dated data are data/cuda.yml,
data/nvidia_repository.yml and the solver's tables.
"""

from __future__ import annotations

import functools
import json
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.llm.plugins.plugin_utils import (
    driver_files,
    mirrors,
    nvidia_repository,
    observe,
    tables,
    yaml_file,
)

DATA = Path(__file__).resolve().parent / "data" / "cuda.yml"
STATE_DIR = "/var/lib/gpufleet/cuda"
PROFILE = "/etc/profile.d/gpufleet-cuda.sh"
LD_SO_CONF = "/etc/ld.so.conf.d/gpufleet-cuda.conf"
METHODS = ("auto", "repository", "runfile", "distribution")
TOOLKIT_KEYS = frozenset(
    "version method state path packages sha256 url size_bytes installed_bytes options cudnn".split()
)
CUDNN_KEYS = frozenset(("version", "sha256", "url"))
# Packages that bring nvcc; with none of them among `packages` nvcc is not looked for.
BRINGS_NVCC = re.compile(r"^(cuda-(toolkit|nvcc|compiler|minimal-build)-\d|nvidia-cuda-toolkit$|cuda$)")
RUNFILE_OPTIONS = ("--silent", "--toolkit", "--override", "--no-man-page", "--no-opengl-libs", "--no-drm")
# A driver in the transaction is what this role must never do; these options would put one there.
FORBIDDEN_OPTIONS = ("--driver", "--kernel-source-path", "--kernelobjects", "-m", "--kernel-module-build-directory")

# What is asked of a toolkit in one go: its version.json, its nvcc, and who installed it.
LOOK_TOOLKIT = r"""v=; n=; u=no
[ -f "$1/version.json" ] && v=$(sed -n '/"cuda" *:/,/}/s/.*"version" *: *"\([^"]*\)".*/\1/p' "$1/version.json" | head -n 1)
[ -x "$2" ] && n=$("$2" --version 2>/dev/null | sed -n 's/^Cuda compilation tools, release [0-9.]*, V\([0-9.]*\).*/\1/p')
[ -e "$1/bin/cuda-uninstaller" ] && u=yes
echo "version=$v nvcc=$n uninstaller=$u" """
LOOK_CUDNN = r"""h=$1/include/cudnn_version.h
[ -f "$h" ] || { echo absent; exit 0; }
n() { sed -n "s/^#define CUDNN_$1 *\([0-9]*\).*/\1/p" "$h" | head -n 1; }
v=$(n MAJOR).$(n MINOR).$(n PATCHLEVEL)
l=$1/lib64/libcudnn.so
[ -f "$l.${v%%.*}" ] && [ -f "$l.$v" ] && echo "$v" || echo "header $v without its library" """
# Real paths: /usr/local may itself be a link
LOOK_DEFAULT = r"""l=$(readlink -f "$1" 2>/dev/null)
[ -e "$1" ] && [ "$l" = "$(readlink -f "$2" 2>/dev/null)" ] && echo ok || echo "${l:-nothing}" """
# Whether the parts of a pinned update are there in the versions that were written down when it was installed.
LOOK_PINS = r"""[ "$(head -n 1 "$1" 2>/dev/null)" = "$2" ] || { echo "not known which parts $2 has"; exit 0; }
o=$(sed 1d "$1" | while read -r n v; do h=$(%s "$n" 2>/dev/null); [ "$h" = "$v" ] || echo "$n is $h, wanted $v"; done)
echo "${o:-ok}" """
# /etc/environment and what shells read at login; users' own files as far as they can be listed
LOOK_LD_LIBRARY_PATH = (
    "grep -HnE '^[^#]*LD_LIBRARY_PATH.*cuda' /etc/environment /etc/profile /etc/profile.d/*.sh /etc/bash.bashrc /etc/bashrc"
    " /root/.bashrc /root/.profile /root/.bash_profile /home/*/.bashrc /home/*/.profile /home/*/.bash_profile"
    " 2>/dev/null | head -n 20; true"
)
# The driver comes from NVIDIA's repository: by packages that only that has, or by the pin of the role nvidia_driver, which names
# the packages by their globs for this source and by src: for a distribution's.
LOOK_MARKS = {
    "apt": "{ dpkg-query -W -f '${db:Status-Abbrev} ${Package}\\n' %s 2>/dev/null | grep -q '^.i'"
    f" || grep -qs '^Package:.* [*]nvidia[*]' {driver_files.PREFERENCES}; }}",
    "dnf": "test -n \"$(rpm -qa %s 'nvidia-driver*' 'kmod-nvidia*')\"",
}


# The record of the distribution's toolkit: there is one at a time, whatever its release.
DISTRIBUTION = "distribution"


class CudaError(ValueError):
    """Wishes that make no sense; the text is for the user."""


@functools.lru_cache(maxsize=1)
def data() -> dict[str, Any]:
    """The table as read.

    :raises OSError: when the file is missing.
    """
    read: dict[str, Any] = yaml_file.read(DATA)
    return read


def bool_of(value: Any) -> bool:
    """true/false, or the words a template gives for them."""
    return value if isinstance(value, bool) else str(value).strip().lower() in ("true", "yes", "on", "1")


def _method(wanted: str, release: str, full: str, system: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    if wanted not in METHODS:
        raise CudaError(f"method {wanted!r} of toolkit {release} is not one of {', '.join(METHODS)}")
    if wanted != "auto":
        return wanted
    if _has_repository(system):
        return "repository"
    if given.get("sha256") or _runfile_row(release, full, str(system["machine"])):
        return "runfile"
    raise CudaError(
        f"CUDA {full or release}: NVIDIA has no packages for {system['distribution']} {system['version']}, and this "
        "collection knows no runfile of that version. Give the toolkit method: runfile with url and sha256, or "
        "method: distribution."
    )


def _has_repository(system: Mapping[str, Any]) -> bool:
    names = (str(system[key]) for key in ("distribution", "os_family", "version", "machine"))
    return nvidia_repository.has_repository(*names)


def _runfile_row(release: str, full: str, machine: str) -> Mapping[str, Any] | None:
    rows = [r for r in data()["runfiles"] if r["machine"] == machine and r["cuda"].startswith(f"{release}.")]
    rows = [r for r in rows if not full or r["cuda"] == full]
    return max(rows, key=lambda r: tables.version(r["cuda"]), default=None)


def normalise(given: Any) -> dict[str, Any]:
    """One entry of C(cuda_toolkits), a version or a dict, with all keys.

    :raises CudaError: for what cannot be a toolkit.
    """
    entry = {"version": given} if not isinstance(given, Mapping) else {str(k): v for k, v in given.items()}
    unknown = sorted(set(entry) - TOOLKIT_KEYS)
    if unknown:
        raise CudaError(
            f"cuda_toolkits: {', '.join(unknown)} is no key of a toolkit; known: {', '.join(sorted(TOOLKIT_KEYS))}"
        )
    version = entry.get("version")
    if isinstance(version, (int, float)) and not isinstance(version, bool):
        raise CudaError(
            f"cuda_toolkits: put quotes around the version: YAML reads 12.10 as the number 12.1, found {version}"
        )
    text = str(version or "").strip()
    if not re.fullmatch(r"\d+\.\d+(\.\d+)?", text):
        raise CudaError(
            f'cuda_toolkits: a toolkit needs an exact version such as "12.4" or "12.4.1", found {text!r}. '
            "`latest` and metapackages without a version are not offered: they move, and they bring a driver."
        )
    path = str(entry.get("path") or "")
    if path and not re.fullmatch(r"/[^/]+/.+", posixpath.normpath(path)):
        raise CudaError(
            f"cuda_toolkits: path of {text} must be an absolute path below a folder, for example /opt/cuda-12.0; found {path!r}"
        )
    state = str(entry.get("state") or "present")
    if state not in ("present", "absent"):
        raise CudaError(f"cuda_toolkits: state of {text} must be present or absent, found {state!r}")
    return {
        "version": text,
        "release": ".".join(text.split(".")[:2]),
        "full": text if text.count(".") == 2 else "",
        "method": str(entry.get("method") or "auto"),
        "state": state,
        "path": posixpath.normpath(path) if path else "",
        "packages": [str(p) for p in entry.get("packages") or []],
        "sha256": str(entry.get("sha256") or "").lower(),
        "url": str(entry.get("url") or ""),
        "size_bytes": int(entry.get("size_bytes") or 0),
        "installed_bytes": int(entry.get("installed_bytes") or 0),
        "options": [str(o) for o in entry.get("options") or []],
        "cudnn": _cudnn_wish(entry.get("cudnn"), text),
    }


def _cudnn_wish(given: Any, version: str) -> dict[str, str] | None:
    if not given:
        return None
    entry = dict(given) if isinstance(given, Mapping) else {"version": given}
    unknown = sorted(set(map(str, entry)) - CUDNN_KEYS)
    text = str(entry.get("version") or "")
    if unknown or not re.fullmatch(r"\d+\.\d+\.\d+\.\d+", text):
        raise CudaError(
            f'cuda_toolkits: cudnn of toolkit {version} must be an exact version such as "9.2.0.82", or a dict with '
            f"version, sha256 and url; found {given!r}"
        )
    return {"version": text, "sha256": str(entry.get("sha256") or "").lower(), "url": str(entry.get("url") or "")}


# ------------------------------------------------------------------------------------------------------------- decide


def _records(stem: str) -> dict[str, str]:
    """Where is written down what this role has done about a toolkit; C(stem) is its release, or C(distribution)."""
    return {kind: f"{STATE_DIR}/{stem}.{end}" for kind, end in _ENDINGS.items()}


# What is there (record), what is being installed, the files of its cuDNN, the parts of a pinned update, a proof that failed
_ENDINGS = {
    "record": "toolkit", "incomplete": "incomplete", "laid": "cudnn", "parts": "pins", "unproven": "unproven",
}  # fmt: skip


def _place(toolkit: Mapping[str, Any], settings: Mapping[str, Any], system: Mapping[str, Any]) -> tuple[str, str]:
    """Prefix and nvcc of a toolkit."""
    if toolkit["method"] == "distribution":
        prefix = str(system["distribution_prefix"])
        return prefix, f"{prefix}/bin/nvcc"
    prefix = toolkit["path"] or f"{str(settings['root']).rstrip('/')}/cuda-{toolkit['release']}"
    return prefix, f"{prefix}/bin/nvcc"


def _resolve(
    given: Any, settings: Mapping[str, Any], system: Mapping[str, Any], profile: Any, overrides: Any
) -> dict[str, Any]:
    wish = normalise(given)
    release, full, machine = wish["release"], wish["full"], str(system["machine"])
    absent = wish["state"] == "absent" or settings["state"] == "absent"
    if wish["method"] not in METHODS:
        _method(wish["method"], release, full, system, wish)
    if absent and wish["method"] == "auto":
        method = "repository" if _has_repository(system) and not wish["path"] else "runfile"
    else:
        method = _method(wish["method"], release, full, system, wish)
    toolkit: dict[str, Any] = {
        **wish,
        "state": "absent" if absent else "present",
        # Only an entry that says so names a toolkit whoever installed it; cuda_state: absent is about this role's.
        "named": wish["state"] == "absent",
        "method": method,
        "key": f"toolkit:{release}",
        **_records(DISTRIBUTION if method == "distribution" else release),
        "suffix": f"-{release.replace('.', '-')}",
        "runfile": None,
        "package_version": "",
    }
    toolkit["prefix"], toolkit["nvcc"] = _place(toolkit, settings, system)
    if wish["path"] and method != "runfile":
        raise CudaError(
            f"cuda_toolkits: only a runfile can be given a path; toolkit {release} comes by method {method}"
        )
    if absent:
        toolkit["packages"] = [f"cuda-toolkit{toolkit['suffix']}"] if method == "repository" else []
        if method == "distribution":
            toolkit["packages"] = list(system["distribution_packages"])
        toolkit["cudnn"], toolkit["has_nvcc"] = None, False
        return toolkit
    if method == "repository":
        if not _has_repository(system):
            raise CudaError(
                f"CUDA {wish['version']}: NVIDIA has no package repository for {system['distribution']} "
                f"{system['version']} on {machine} that this collection knows. Take method runfile."
            )
        toolkit["packages"] = wish["packages"] or [f"cuda-toolkit{toolkit['suffix']}"]
        toolkit["package_version"] = f"{full}-*" if full else ""
    elif method == "distribution":
        if not system["distribution_packages"]:
            raise CudaError(
                f"{system['distribution']} has no CUDA toolkit of its own; take method repository or runfile"
            )
        toolkit["packages"] = wish["packages"] or list(system["distribution_packages"])
    else:
        _runfile(toolkit, settings, machine, profile, overrides)
    if toolkit["cudnn"]:
        if method == "distribution":
            raise CudaError("cudnn goes into the folder of one toolkit; that of the distribution has none of its own")
        _cudnn(toolkit, machine, profile, overrides)
    toolkit["has_nvcc"] = method == "runfile" or any(BRINGS_NVCC.match(p) for p in toolkit["packages"])
    return toolkit


def _runfile(toolkit: dict[str, Any], settings: Mapping[str, Any], machine: str, profile: Any, overrides: Any) -> None:
    row = _runfile_row(toolkit["release"], toolkit["full"], machine)
    if row is None and not (toolkit["url"] and toolkit["sha256"]):
        known = sorted({r["cuda"] for r in data()["runfiles"] if r["machine"] == machine}, key=tables.version)
        raise CudaError(
            f"CUDA {toolkit['version']}: the SHA-256 of that runfile is not known here (known for {machine}: "
            f"{', '.join(known)}). Give the toolkit url and sha256."
        )
    if toolkit["sha256"] and not re.fullmatch(r"[0-9a-f]{64}", toolkit["sha256"]):
        raise CudaError(f"CUDA {toolkit['version']}: sha256 must be 64 hexadecimal digits, found {toolkit['sha256']!r}")
    bad = [o for o in toolkit["options"] if o.partition("=")[0] in FORBIDDEN_OPTIONS]
    if bad:
        raise CudaError(
            f"CUDA {toolkit['version']}: {', '.join(bad)} would install a driver; role nvidia_driver does that"
        )
    if row is not None:
        toolkit["full"] = str(row["cuda"])
    url = toolkit["url"] or (f"{data()['base_url']}/{row['cuda']}/local_installers/{row['file']}" if row else "")
    name = url.rsplit("/", 1)[-1]
    temporary = str(settings["tmpdir"])
    toolkit["runfile"] = {
        "urls": mirrors.candidates(url, profile, overrides),
        "sha256": toolkit["sha256"] or (str(row["sha256"]) if row else ""),
        "name": name,
        "path": f"{settings['cache']}/{name}",
        "size_bytes": toolkit["size_bytes"] or int(data()["sizes"]["runfile_bytes"]),
        "installed_bytes": toolkit["installed_bytes"] or int(data()["sizes"]["installed_bytes"]),
        "options": [
            *RUNFILE_OPTIONS, f"--toolkitpath={toolkit['prefix']}", f"--tmpdir={temporary}", *toolkit["options"],
        ],
    }  # fmt: skip


def _cudnn(toolkit: dict[str, Any], machine: str, profile: Any, overrides: Any) -> None:
    wish = toolkit["cudnn"]
    major = toolkit["release"].partition(".")[0]
    folder = {"x86_64": "linux-x86_64", "aarch64": "linux-sbsa"}.get(machine, machine)
    rows = [r for r in data()["cudnn"] if (r["cudnn"], r["cuda"], r["machine"]) == (wish["version"], major, machine)]
    if not rows and not wish["sha256"]:
        known = sorted({r["cudnn"] for r in data()["cudnn"] if r["cuda"] == major and r["machine"] == machine})
        raise CudaError(
            f"cuDNN {wish['version']} for CUDA {major}: its SHA-256 is not known here (known: {', '.join(known) or 'none'}). "
            "Give cudnn version, sha256 and, for a site's own copy, url."
        )
    name = f"cudnn-{folder}-{wish['version']}_cuda{major}-archive.tar.xz"
    url = wish["url"] or f"{data()['cudnn_base_url']}/{folder}/{name}"
    toolkit["cudnn"] = {
        "version": wish["version"],
        "short": wish["version"].rpartition(".")[0],
        "urls": mirrors.candidates(url, profile, overrides),
        "sha256": wish["sha256"] or str(rows[0]["sha256"]),
        "name": name,
        "key": f"cudnn:{toolkit['release']}",
        "files": toolkit["laid"],
    }


def _default(wanted: str, present: Sequence[Mapping[str, Any]]) -> str:
    """The release that /usr/local/cuda shall lead to, or nothing."""
    linkable = [t for t in present if t["method"] != "distribution"]
    if wanted == "none" or not linkable:
        if wanted not in ("none", "auto"):
            raise CudaError(f"cuda_default {wanted!r} is none of the toolkits in cuda_toolkits")
        return ""
    if wanted == "auto":
        return str(max(linkable, key=lambda t: tables.version(t["release"]))["release"])
    for toolkit in linkable:
        if wanted in (toolkit["release"], toolkit["version"], toolkit["full"]):
            return str(toolkit["release"])
    raise CudaError(
        f"cuda_default {wanted!r} is none of the toolkits in cuda_toolkits: {', '.join(t['version'] for t in linkable)}"
    )


def profile_script(link: str) -> str:
    """What /etc/profile.d gets: the default toolkit's programs, and no library path."""
    return (
        "# By the role gpufleet.llm.cuda.\n"
        "# LD_LIBRARY_PATH is left alone on purpose: the toolkit's libraries would shadow those that come with PyTorch\n"
        "# (undefined symbol: __nvJitLinkAddData_12_1).\n"
        f'case ":${{PATH}}:" in\n  *:{link}/bin:*) ;;\n  *) PATH="{link}/bin${{PATH:+:${{PATH}}}}"; export PATH ;;\nesac\n'
    )


def _shell(script: str, *args: str) -> list[str]:
    return ["/bin/sh", "-c", script, "sh", *args]


def _root_file(path: str, content: str) -> dict[str, Any]:
    return {"path": path, "content": content, "mode": "0644", "owner": "root", "group": "root"}


def toolkit_regex(toolkit: Mapping[str, Any]) -> str:
    """What the look at a toolkit must print.

    version.json has the release and its update (12.0.1), or in some releases a date (12.1.20230222).
    """
    release = re.escape(toolkit["release"])
    nvcc = rf"{release}\.\d+" if toolkit.get("has_nvcc") else r"[\d.]*"
    if toolkit["method"] == "runfile":
        full = re.escape(toolkit["full"]) if toolkit["full"] else rf"{release}\.\d+"
        return rf"^version=({full}|{release}\.\d{{8}}) nvcc={nvcc} uninstaller=yes$"
    if toolkit["method"] == "repository":
        return rf"^version=({release}\.\d+)? nvcc={nvcc} uninstaller=no$"
    return rf"^version=\S* nvcc={nvcc} "


def _record_text(toolkit: Mapping[str, Any]) -> str:
    text = f"method={toolkit['method']}\nprefix={toolkit['prefix']}\n"
    return text + (f"release={toolkit['release']}\n" if toolkit["method"] == "distribution" else "")


def _absent_items(toolkit: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Records always; the toolkit itself only when an entry names it: without a record it is not this role's."""
    paths = [toolkit["record"], toolkit["incomplete"], toolkit["laid"]]
    items: list[dict[str, Any]] = []
    if toolkit["named"]:
        items += [{"kind": "package", "name": p, "state": "absent"} for p in toolkit["packages"]]
        if toolkit["method"] != "distribution":
            paths.insert(0, toolkit["prefix"])
    return [*items, *({"kind": "absent", "path": p} for p in paths)]


def _toolkit_items(toolkit: Mapping[str, Any], manager: str, prove: bool) -> list[dict[str, Any]]:
    known = {"kind": "read", "key": f"record:{toolkit['release']}", "path": toolkit["record"]}
    if toolkit["state"] == "absent":
        return [*_absent_items(toolkit), known]
    items: list[dict[str, Any]] = []
    for name in toolkit["packages"]:
        item = {"kind": "package", "name": name, "state": "present"}
        if toolkit["package_version"] and name.startswith("cuda-toolkit-"):
            item["version"] = toolkit["package_version"]
        items.append(item)
    if toolkit["package_version"] and manager in _VERSION:
        argv = _shell(LOOK_PINS % _VERSION[manager], toolkit["parts"], toolkit["full"])
        items.append({"kind": "command", "key": f"pins:{toolkit['release']}", "argv": argv, "stdout": "ok"})
    if toolkit["method"] == "runfile":
        items.append({"kind": "absent", "path": toolkit["incomplete"]})
        items.append({"kind": "directory", "path": toolkit["prefix"], "owner": "root", "group": "root", "mode": "0755"})
        if manager in _LIST:
            # only looked at: packages of the same release in the same folder
            argv = _shell(_LIST[manager], f"cuda-*{toolkit['suffix']}")
            items.append({"kind": "read", "key": f"package:{toolkit['release']}", "argv": argv})
    look = _shell(LOOK_TOOLKIT, toolkit["prefix"], toolkit["nvcc"])
    items.append({"kind": "command", "key": toolkit["key"], "argv": look, "regex": toolkit_regex(toolkit)})
    items += [{"kind": "file", **_root_file(toolkit["record"], _record_text(toolkit))}, known]
    if prove and toolkit["has_nvcc"]:
        items.append({"kind": "read", "key": f"proof:{toolkit['release']}", "path": toolkit["unproven"]})
    if toolkit["cudnn"]:
        cudnn = {"key": toolkit["cudnn"]["key"], "argv": _shell(LOOK_CUDNN, toolkit["prefix"])}
        items.append({"kind": "command", **cudnn, "stdout": toolkit["cudnn"]["short"]})
        items.append({"kind": "file", "path": toolkit["laid"]})
    elif toolkit["method"] != "distribution":
        items.append({"kind": "absent", "path": toolkit["laid"]})
    return items


_VERSION = {"apt": "dpkg-query -W -f '${Version}'", "dnf": "rpm -q --qf '%{VERSION}-%{RELEASE}'"}
_LIST = {
    "apt": "dpkg-query -W -f '${db:Status-Abbrev}${Package}\\n' \"$1\" 2>/dev/null | sed -n 's/^.i.//p'; true",
    "dnf": 'rpm -qa --qf "%{NAME}\\n" "$1"; true',
}


def _repository_items(
    repository: Mapping[str, Any], settings: Mapping[str, Any], manager: str, packages: Iterable[str]
) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = [{"kind": "package", "name": p} for p in packages]
    items.append(
        {
            "kind": "key",
            "path": repository["key_path"],
            "fingerprints": repository["fingerprints"],
            "owner": "root",
            "group": "root",
            "mode": "0644",
        }
    )
    items.append({"kind": "file", **repository["file"]})
    pin = nvidia_repository.no_driver_pin(repository["host"])
    if manager == "apt":
        # In one look: is the driver from this repository? Then the pin must not be there, else it must.
        wanted = str(settings["block_driver_packages"])
        decide_shell = {"always": "false", "never": "true"}.get(wanted, _marks(manager))
        script = f'if {decide_shell}; then w=absent; else w=present; fi; [ -e "$1" ] && s=other || s=absent;' + (
            ' [ "$s" = other ] && [ "$(cat "$1")" = "$2" ] && s=present; [ "$s" = "$w" ] && echo ok || echo "$s, wanted $w"'
        )
        items.append(
            {
                "kind": "command",
                "key": "pin:no-driver",
                "argv": _shell(script, pin["path"], pin["content"].rstrip("\n")),
                "stdout": "ok",
            }
        )
    return items


def _marks(manager: str) -> str:
    marks = " ".join(f"'{mark}'" for mark in nvidia_repository.table()["driver_marks"])
    return LOOK_MARKS[manager] % marks


def _unused_repository_items(manager: str) -> list[dict[str, Any]]:
    """The repository goes with the last toolkit, unless the driver comes from it."""
    if manager not in LOOK_MARKS:
        return []
    paths = nvidia_repository.PATHS["apt" if manager == "apt" else "rpm"]
    script = f'if {_marks(manager)}; then echo ok; elif [ -e "$1" ] || [ -e "$2" ]; then echo present; else echo ok; fi'
    items: list[dict[str, Any]] = [
        {
            "kind": "command",
            "key": "repository:unused",
            "argv": _shell(script, paths["file"], paths["key"]),
            "stdout": "ok",
        }
    ]
    if manager == "apt":
        items.append({"kind": "absent", "path": nvidia_repository.NO_DRIVER_PIN})
    return items


def decide(settings: Mapping[str, Any], system: Mapping[str, Any]) -> dict[str, Any]:
    """The plan of a node, always with all keys.

    @param settings: C({state, toolkits, method, default, path, ld_so_conf, exclusive, block_driver_packages, root, tmpdir,
        cache, repo_base_url, repo_key_url, repo_key_fingerprints, mirror_profile, mirror_overrides, verify_compile}).
    @param system: C({distribution, os_family, version, machine, package_manager, distribution_packages,
        distribution_prefix, repository_packages, runfile_packages}).
    @returns: C({toolkits, default, link, target, repository, pin, files, absent_files, items, packages, nothing,
        unused_keys}).
    @raises CudaError, nvidia_repository.RepositoryError, mirrors.MirrorError: the text is for the user.
    """
    profile, overrides = settings["mirror_profile"], settings["mirror_overrides"]
    manager = str(system["package_manager"])
    raw = settings["toolkits"]
    if isinstance(raw, (str, Mapping)) or not isinstance(raw, Iterable):
        raise CudaError(f'cuda_toolkits must be a list, for example ["12.4"]; found {raw!r}')
    toolkits = [
        _resolve(one, {**settings, "method": settings["method"]}, system, profile, overrides)
        for one in _with(raw, settings)
    ]
    _refuse_pairs(toolkits)
    present = [t for t in toolkits if t["state"] == "present"]
    away = settings["state"] == "absent"
    default = "" if away else _default(str(settings["default"]), present)
    link = f"{str(settings['root']).rstrip('/')}/cuda"
    target = next((t["prefix"] for t in present if t["release"] == default), "")
    from_repository = [t for t in present if t["method"] == "repository"]
    repository = None
    if from_repository:
        repository = nvidia_repository.repository(
            *(str(system[key]) for key in ("distribution", "os_family", "version", "machine")),
            base_url=str(settings["repo_base_url"]),
            key_url=str(settings["repo_key_url"]),
            fingerprints=settings["repo_key_fingerprints"],
            profile=profile,
            overrides=overrides,
        )
    files, absent = [], []
    for wanted, file in (
        (bool_of(settings["path"]), _root_file(PROFILE, profile_script(link))),
        (bool_of(settings["ld_so_conf"]), _root_file(LD_SO_CONF, f"# By the role gpufleet.llm.cuda\n{link}/lib64\n")),
    ):
        if wanted and default:
            files.append(file)
        else:
            absent.append(file["path"])
    packages = [
        *(system["repository_packages"] if repository else []),
        *(system["runfile_packages"] if any(t["method"] == "runfile" for t in present) else []),
    ]
    exclusive = bool_of(settings["exclusive"]) or away
    items: list[dict[str, Any]] = []
    if toolkits or exclusive:
        if repository:
            items += _repository_items(repository, settings, manager, [])
        elif exclusive:
            items += _unused_repository_items(manager)
        items += [{"kind": "package", "name": p} for p in dict.fromkeys(packages)]
        for toolkit in toolkits:
            own = _toolkit_items(toolkit, manager, bool_of(settings["verify_compile"]))
            toolkit["keys"] = [item.get("key") or f"{item['kind']}:{observe.item_name(item)}" for item in own]
            items += own
        if default:
            argv = _shell(LOOK_DEFAULT, link, target)
            items.append({"kind": "command", "key": "default:cuda", "argv": argv, "stdout": "ok"})
        items += [{"kind": "file", **file} for file in files] + [{"kind": "absent", "path": p} for p in absent]
        if exclusive:
            # what was begun and never ended has no record yet
            items.append({"kind": "glob", "pattern": f"{STATE_DIR}/*.incomplete"})
            records = [t["record"] for t in present]
            items.append({"kind": "glob", "pattern": f"{STATE_DIR}/*.toolkit", "paths": records})
        if away:
            items.append({"kind": "absent", "path": STATE_DIR})
        items.append({"kind": "read", "key": "ld_library_path", "argv": _shell(LOOK_LD_LIBRARY_PATH)})
        folders = [t["prefix"] for t in present if t["method"] == "runfile"]
        for path in dict.fromkeys((settings["tmpdir"], settings["cache"], *folders) if folders else ()):
            items.append({"kind": "disk", "key": f"disk:{path}", "path": str(path)})
        if manager in ("apt", "dnf"):
            items.append({"kind": "read", "key": "installed", "path": f"{STATE_DIR}/packages"})
    return {
        "toolkits": toolkits,
        "default": default,
        "link": link,
        "target": target,
        "repository": repository,
        "pin": nvidia_repository.no_driver_pin(repository["host"]) if repository and manager == "apt" else None,
        "files": files,
        "absent_files": absent,
        "packages": list(dict.fromkeys(packages)),
        "items": items,
        "nothing": not items,
        "unused_keys": [] if repository else _unused_keys(settings, system),
    }


def _unused_keys(settings: Mapping[str, Any], system: Mapping[str, Any]) -> list[str]:
    """Fingerprints of the repository's keys, which rpm keeps in its own database."""
    try:
        repository = nvidia_repository.repository(
            *(str(system[key]) for key in ("distribution", "os_family", "version", "machine")),
            fingerprints=settings["repo_key_fingerprints"],
        )
    except nvidia_repository.RepositoryError:
        return []
    return list(repository["fingerprints"])


def _refuse_pairs(toolkits: Iterable[Mapping[str, Any]]) -> None:
    """Two entries that are about one and the same toolkit."""
    seen: dict[str, Mapping[str, Any]] = {}
    for toolkit in toolkits:
        other = seen.setdefault(toolkit["release"], toolkit)
        if other is not toolkit:
            raise CudaError(
                f"cuda_toolkits has {other['version']} and {toolkit['version']}, which are one release and live in the same "
                f"folder {toolkit['prefix']}: keep one of them"
            )
        if toolkit["method"] == "distribution":
            other = seen.setdefault(DISTRIBUTION, toolkit)
            if other is not toolkit:
                raise CudaError(
                    f"cuda_toolkits has {other['version']} and {toolkit['version']} by method distribution, which has one "
                    "toolkit at a time: keep one of them"
                )


def _with(raw: Iterable[Any], settings: Mapping[str, Any]) -> list[Any]:
    """Entries that name no method take the role's."""
    found = []
    for one in raw:
        entry = dict(one) if isinstance(one, Mapping) else {"version": one}
        entry.setdefault("method", settings["method"])
        found.append(entry)
    return found


# --------------------------------------------------------------------------------------------------------------- work


def parse_look(stdout: str) -> dict[str, str]:
    """C(version=12.0.1 nvcc=12.0.140 uninstaller=yes) as a dict."""
    return dict(re.findall(r"(\w+)=(\S*)", stdout or ""))


def _found_method(toolkit: Mapping[str, Any], seen: Mapping[str, Any]) -> str:
    """By what means a toolkit of that release got to where it lies: repository, runfile, other or nothing."""
    look = parse_look(str((seen.get(toolkit["key"]) or {}).get("stdout") or ""))
    packages = [seen.get(f"package:{p}") or {} for p in toolkit["packages"]]
    foreign = (seen.get(f"package:{toolkit['release']}") or {}).get("content") or ""
    if look.get("uninstaller") == "yes":
        return "runfile"
    # also one that is only unpacked: what was interrupted is finished, not removed
    if any(p.get("state") not in (None, "absent") for p in packages) or str(foreign).strip():
        return "distribution" if toolkit["method"] == "distribution" else "repository"
    if look.get("nvcc") or look.get("version"):
        return "other"
    return ""


def _recorded(toolkit: Mapping[str, Any], seen: Mapping[str, Any]) -> dict[str, str]:
    return parse_look(str((seen.get(f"record:{toolkit['release']}") or {}).get("content") or ""))


def _touched(toolkit: Mapping[str, Any], drift: Iterable[str]) -> list[str]:
    own = {toolkit["key"], f"absent:{toolkit['incomplete']}", f"pins:{toolkit['release']}"}
    own |= {f"package:{p}" for p in toolkit["packages"]}
    return [key for key in drift if key in own]


def work(
    plan: Mapping[str, Any],
    look: Mapping[str, Any],
    gpu: Mapping[str, Any] | None,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """What is to be done about what was seen.

    @param plan: of C(decide). @param look: the result of observe. @param gpu: C(gpufleet_gpu) or nothing.
    @param settings: C({switch_method, force, force_unsupported, tmpdir, cache, root}).
    @returns: C({remove: [{release, prefix, method, suffix, record, …}], install: {repository, runfile, distribution:
        [toolkit]}, cudnn, cudnn_remove, problems: [{name, detail, remedy}], notes, recorded_packages}).
    """
    seen, drift = look.get("seen") or {}, list(look.get("drift") or [])
    force = bool_of(settings["force"])
    remove: list[dict[str, str]] = []
    install: dict[str, list[Any]] = {"repository": [], "runfile": [], "distribution": []}
    problems: list[dict[str, str]] = []
    cudnn = []
    undo = []
    for toolkit in plan["toolkits"]:
        record, found = _recorded(toolkit, seen), _found_method(toolkit, seen)
        begun = f"absent:{toolkit['incomplete']}" in drift
        if toolkit["state"] == "absent":
            gone = _removals(toolkit, record, begun, drift)
            remove += gone
            undo += [toolkit] if f"absent:{toolkit['laid']}" in drift and not gone else []
            continue
        touched = _touched(toolkit, drift)
        moved = _elsewhere(toolkit, record)
        if moved:
            # by another method or path than before: the old folder is this role's
            remove.append(_removal(toolkit, record["prefix"], record.get("method") or ""))
        if touched or force:
            other = found not in ("", toolkit["method"])
            # a runfile lays files over files: another update of the release, or a broken one, goes first
            stale = toolkit["method"] == "runfile" and bool(found or begun)
            ours = begun or (bool(record) and not moved)
            if (other or stale) and touched:
                if ours or bool_of(settings["switch_method"]):
                    remove.append(_removal(toolkit, toolkit["prefix"], found))
                else:
                    problems.append(_foreign(toolkit, found, look))
            install[toolkit["method"]].append(toolkit)
        if f"absent:{toolkit['laid']}" in drift:
            undo.append({**toolkit, "prefix": record.get("prefix") or toolkit["prefix"]})
        if toolkit["cudnn"] and (
            touched or force or moved or {toolkit["cudnn"]["key"], f"file:{toolkit['cudnn']['files']}"} & set(drift)
        ):
            cudnn.append(toolkit)
    remove += _unlisted(plan, look, settings)
    problems += _disk(install["runfile"], seen, settings)
    rules, notes = gpu_rules(
        [t for t in plan["toolkits"] if t["state"] == "present"], gpu, bool_of(settings["force_unsupported"])
    )
    shadows = str((seen.get("ld_library_path") or {}).get("content") or "").strip()
    if shadows:
        notes.append(
            "LD_LIBRARY_PATH leads to a CUDA toolkit, whose libraries then shadow those of PyTorch (undefined symbol "
            "__nvJitLinkAddData_12_1): remove these lines: " + " | ".join(shadows.splitlines())
        )
    return {
        "remove": remove,
        "install": install,
        "cudnn": cudnn,
        "cudnn_remove": undo,
        "problems": problems + rules,
        "notes": notes,
        "recorded_packages": str((seen.get("installed") or {}).get("content") or "").split(),
    }


def _elsewhere(toolkit: Mapping[str, Any], record: Mapping[str, str]) -> bool:
    """Whether this role has put that toolkit into another folder."""
    prefix = record.get("prefix") or ""
    return bool(prefix) and posixpath.normpath(prefix) != toolkit["prefix"]


def _removals(
    toolkit: Mapping[str, Any], record: Mapping[str, str], begun: bool, drift: Sequence[str]
) -> list[dict[str, Any]]:
    """What goes of a toolkit that shall not be there: what is written down, and what lies where an entry names it."""
    found = []
    if record or begun or f"absent:{toolkit['record']}" in drift:
        found.append(_removal(toolkit, record.get("prefix") or toolkit["prefix"], record.get("method") or ""))
    there = [f"absent:{toolkit['prefix']}", *(f"package:{p}" for p in toolkit["packages"])]
    if toolkit["named"] and (not found or _elsewhere(toolkit, record)) and set(there) & set(drift):
        found.append(_removal(toolkit, toolkit["prefix"], toolkit["method"]))
    return found


def _unlisted(plan: Mapping[str, Any], look: Mapping[str, Any], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Toolkits of this role that no entry is about. Where they lie stands in their records."""
    listed = {t["record"].rpartition(".")[0] for t in plan["toolkits"]}
    stems: dict[str, None] = {}
    for item in look.get("items") or []:
        if item["kind"] == "glob" and item["differs"]:
            for path in (item.get("before") or {}).get("paths") or []:
                stem = str(path).rpartition(".")[0]
                if stem not in listed:
                    stems[stem.rpartition("/")[2]] = None
    found = []
    for stem in stems:
        one = {"release": stem, "suffix": "-" + stem.replace(".", "-"), **_records(stem)}
        distribution = stem == DISTRIBUTION
        found.append(
            _removal(one, "" if distribution else f"{settings['root']}/cuda-{stem}", stem if distribution else "")
        )
    return found


def _removal(toolkit: Mapping[str, Any], prefix: str, method: str) -> dict[str, Any]:
    return {
        "release": toolkit["release"], "prefix": prefix, "method": method, "suffix": toolkit["suffix"],
        **{kind: toolkit[kind] for kind in _ENDINGS},
    }  # fmt: skip


def _foreign(toolkit: Mapping[str, Any], found: str, look: Mapping[str, Any]) -> dict[str, str]:
    said = str((look["seen"].get(toolkit["key"]) or {}).get("stdout") or "").strip()
    by = "by unknown means" if found == "other" else f"by {found}"
    wanted = toolkit["full"] or toolkit["version"]
    return {
        "name": f"toolkit {toolkit['version']}",
        "detail": f"{toolkit['prefix']} holds a toolkit that this role did not install, {by} ({said}); "
        f"wanted is {wanted} by {toolkit['method']}",
        "remedy": "Remove it, ask for what is there, or set cuda_switch_method: true to let the role remove it.",
    }


def _disk(
    runfiles: Sequence[Mapping[str, Any]], seen: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[dict[str, str]]:
    """The installer unpacks itself into the temporary folder (twice its size in all), then copies into the prefix."""
    if not runfiles:
        return []
    largest = max(int(t["runfile"]["size_bytes"]) for t in runfiles)
    needs = [
        (str(settings["tmpdir"]), 2 * largest, "to unpack the installer"),
        (str(settings["cache"]), sum(int(t["runfile"]["size_bytes"]) for t in runfiles), "for the installers"),
        *((str(t["prefix"]), int(t["runfile"]["installed_bytes"]), "for the toolkit") for t in runfiles),
    ]
    # Folders whose file systems have the same size and the same room are on one file system.
    groups: dict[tuple[int, int], list[tuple[str, int, str]]] = {}
    for path, size, why in needs:
        disk = seen.get(f"disk:{path}") or {}
        if disk.get("free_bytes") is None:
            continue
        groups.setdefault((int(disk["free_bytes"]), int(disk.get("total_bytes") or 0)), []).append((path, size, why))
    problems = []
    for (free, _total), parts in groups.items():
        wanted = sum(size for _path, size, _why in parts)
        if wanted > free:
            words = ", ".join(f"{size / 1e9:.1f} GB in {path} {why}" for path, size, why in parts)
            problems.append(
                {
                    "name": "disk",
                    "detail": f"{free / 1e9:.1f} GB are free, {wanted / 1e9:.1f} GB are needed: {words}",
                    "remedy": "Make room, or set cuda_runfile_tmpdir or cuda_cache_dir to a larger disk; toolkits[].size_bytes "
                    "and installed_bytes name the real sizes.",
                }
            )
    return problems


def gpu_rules(
    toolkits: Sequence[Mapping[str, Any]], gpu: Mapping[str, Any] | None, forced: bool
) -> tuple[list[dict[str, str]], list[str]]:
    """Whether the toolkits fit the node's cards and driver: problems, and notes.

    A toolkit that can compile for none of the cards is a problem, unless forced or no driver is there (a build host, or a
    driver still to come); everything else is a note: compiling needs no driver at all.
    """
    problems: list[dict[str, str]] = []
    notes: list[str] = []
    cards = [g for g in (gpu or {}).get("gpus") or [] if g.get("compute_capability")]
    driver = (gpu or {}).get("driver") or {}
    installed = str(driver.get("loaded_version") or driver.get("library_version") or "")
    known = tables.load()
    for toolkit in toolkits:
        release = tables.release(toolkit["release"])
        late, early = [], []
        for card in cards:
            row = known.architecture(str(card["compute_capability"]))
            if row is None:
                continue
            words = f"{card.get('name') or card.get('chip')} ({row['architecture']}, {card['compute_capability']})"
            last, first = row.get("last_toolkit"), row.get("first_toolkit")
            if last and re.search(r"\d", str(last)) and release > tables.release(last):
                late.append((words, str(last)))
            elif first and re.search(r"\d", str(first)) and release < tables.release(first):
                early.append((words, str(first)))
        if late:
            cards_said = ", ".join(words for words, _last in late)
            detail = (
                f"CUDA {toolkit['version']} no longer compiles for {cards_said}; the last that does is {late[0][1]}"
            )
            if len(late) == len(cards) and installed and not forced:
                problems.append(
                    {
                        "name": f"toolkit {toolkit['version']}",
                        "detail": detail,
                        "remedy": f"Take CUDA {late[0][1]} or older, or set cuda_force_unsupported: true, to build for others.",
                    }
                )
            else:
                notes.append(detail)
        if early:
            cards_said = ", ".join(words for words, _first in early)
            notes.append(
                f"CUDA {toolkit['version']} does not know {cards_said} yet; the first that does is {early[0][1]}"
            )
        floor = known.floor(toolkit["release"])
        if installed and floor and tables.version(installed) < tables.version(floor["linux"]):
            notes.append(
                f"what CUDA {toolkit['version']} builds does not run here: it needs driver {floor['linux']} or newer, "
                f"installed is {installed}"
            )
    return problems, notes


# ------------------------------------------------------------------------------------------------------------- result


def expected_runtime(release: str) -> str:
    """What C(cudaRuntimeGetVersion) says of a release: C(12.4) -> C("12040")."""
    major, minor = tables.release(release)
    return str(1000 * major + 10 * minor)


def _compiled(toolkit: Mapping[str, Any], said: Mapping[str, Any] | None) -> tuple[bool, str, str]:
    """Whether a compiled program is a proof, with words and remedy."""
    if said is None:
        return True, "", ""
    rc, out = int(said.get("rc") or 0), str(said.get("stdout") or "").strip()
    err = str(said.get("stderr") or "").strip()
    if rc == 77:
        return True, f"; nothing compiled: {out}", ""
    wanted = expected_runtime(toolkit["release"])
    if rc == 0 and out.endswith(wanted):
        return True, f"; a compiled program runs with runtime {wanted}", ""
    words = (err or out).splitlines()
    told = next((w for w in words if "error" in w.lower()), words[-1] if words else f"exit status {rc}")
    if "unsupported GNU version" in err:
        return (
            False,
            f"; nvcc refuses the host compiler: {told}",
            "Install an older g++ and build with nvcc -ccbin g++-<version>.",
        )
    return (
        False,
        f"; a small program does not compile or run: {told}",
        "Run the role with cuda_force: true to install it again.",
    )


def unproven(toolkit: Mapping[str, Any], said: Mapping[str, Any]) -> str:
    """What is written down of a proof that failed, so that the next run tries again; nothing for one that succeeded."""
    if _compiled(toolkit, said)[0]:
        return ""
    kept = {"rc": int(said.get("rc") or 0), **{key: str(said.get(key) or "")[-2000:] for key in ("stdout", "stderr")}}
    return json.dumps(kept) + "\n"


def _unproven(toolkit: Mapping[str, Any], seen: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was written down of it."""
    text = str((seen.get(f"proof:{toolkit['release']}") or {}).get("content") or "").strip()
    if not text:
        return None
    try:
        kept = json.loads(text)
    except ValueError:
        kept = None
    return kept if isinstance(kept, dict) else {"rc": 1, "stderr": f"{toolkit['unproven']} cannot be read"}


def result(
    plan: Mapping[str, Any],
    first: Mapping[str, Any],
    last: Mapping[str, Any],
    done: Mapping[str, Any],
    compiled: Mapping[str, Any],
    check_mode: bool,
) -> dict[str, Any]:
    """The fact C(cuda_result).

    @param plan: of C(decide). @param first, last: observe's results before and after. @param done: of C(work).
    @param compiled: release -> C({rc, stdout, stderr}) of the compiled program.
    """
    seen, drift = last.get("seen") or {}, set(last.get("drift") or [])
    checks: list[dict[str, Any]] = []
    versions: dict[str, str] = {}
    notes = list(done.get("notes") or [])
    rest = set(drift)
    for toolkit in plan["toolkits"]:
        own = drift & set(toolkit["keys"])
        rest -= own
        look = parse_look(str((seen.get(toolkit["key"]) or {}).get("stdout") or ""))
        if toolkit["state"] == "absent":
            nothing = "absent" if toolkit["named"] else "nothing of this role's is there"
            detail, ok, remedy = (f"differs: {', '.join(sorted(own))}" if own else nothing), not own, ""
        else:
            version = look.get("version") or toolkit["full"] or toolkit["release"]
            said = compiled.get(toolkit["release"]) or _unproven(toolkit, seen)
            proof, words, remedy = _compiled(toolkit, said)
            ok = not own and proof
            detail = (
                f"differs: {', '.join(sorted(own))}"
                if own
                else f"{version} by {toolkit['method']} in {toolkit['prefix']}, nvcc {look.get('nvcc') or 'not asked for'}{words}"
            )
            if not own:
                versions[f"cuda-{toolkit['release']}"] = version
                if toolkit["cudnn"]:
                    versions[f"cudnn-{toolkit['release']}"] = toolkit["cudnn"]["version"]
        checks.append(
            {"name": f"toolkit {toolkit['version']}", "ok": ok, "detail": detail, "remedy": remedy or _rerun(ok)}
        )
    if not plan["toolkits"]:
        notes.append(
            "no CUDA toolkit is asked for (cuda_toolkits); running models needs none, PyTorch brings its own libraries"
        )
    if rest or not checks:
        ok = not rest
        detail = f"differs: {', '.join(sorted(rest))}" if rest else "nothing to do"
        checks.append({"name": "cuda", "ok": ok, "detail": detail, "remedy": _rerun(ok)})
    return {
        "role": "cuda",
        "ok": all(c["ok"] for c in checks),
        "changed": bool(first.get("differs")) and not check_mode,
        "checks": checks,
        "versions": versions,
        "notes": notes,
        "toolkits": {t["release"]: t["prefix"] for t in plan["toolkits"] if t["state"] == "present"},
        "default": plan["default"],
    }


def _rerun(ok: bool) -> str:
    return "" if ok else "Run the play without --check."
