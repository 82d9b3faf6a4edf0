# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which file the dynamic loader takes for a library, and why, without loading anything.

The order is that of ld.so(8): what is loaded already (LD_PRELOAD first), DT_RPATH of the requester and its loaders
(unless the requester has DT_RUNPATH), LD_LIBRARY_PATH, DT_RUNPATH of the requester, /etc/ld.so.cache, the system's
directories. glibc-hwcaps sub-directories are not searched: no CUDA library is installed there.
"""

from __future__ import annotations

import glob
import os
import re
import struct
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.gpufleet.llm.plugins.module_utils.elf import ElfFile, NotElfError, missing_symbols

CACHE_MAGIC = b"glibc-ld.so.cache1.1"
SYSTEM_DIRECTORIES = (
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
)
# The libraries whose wrong copy breaks a wheel, and that a CUDA toolkit, a cuDNN package or another framework brings.
WATCHED = re.compile(
    r"^lib(nvJitLink|cudnn\w*|cublas(Lt)?|cusparse(Lt)?|cudart|cufft|curand|cusolver|nvrtc[\w-]*|nccl|cupti|cuda)\.so"
)
# Brought by the driver, never by a wheel.
DRIVER_LIBRARIES = re.compile(r"^lib(cuda|nvidia-[\w-]+)\.so")


def split_path(value: str) -> list[str]:
    """The directories of an LD_LIBRARY_PATH. An empty element is the current directory (``.``); an empty value is none."""
    return [part or "." for part in re.split("[:;]", value)] if value else []


def read_cache(path: str = "/etc/ld.so.cache") -> dict[str, list[str]]:
    """``{soname: [paths]}`` of the loader's cache, in its order; empty when there is none or it is of an old kind.

    Layout: struct cache_file_new of glibc (sysdeps/generic/dl-cache.h): 48 bytes of header, 24 bytes per entry.
    """
    try:
        with open(path, "rb") as stream:
            data = stream.read()
        start = data.index(CACHE_MAGIC)
        order = ">" if data[start + 28] & 3 == 3 else "<"
        (count,) = struct.unpack_from(order + "I", data, start + 20)
        found: dict[str, list[str]] = {}
        for index in range(count):
            _flags, key, value = struct.unpack_from(order + "iII", data, start + 48 + 24 * index)
            name = data[start + key : data.index(b"\0", start + key)].decode("utf-8", "replace")
            target = data[start + value : data.index(b"\0", start + value)].decode("utf-8", "replace")
            found.setdefault(name, []).append(target)
    except (OSError, ValueError, struct.error, IndexError):
        return {}
    return found


def conf_directories(path: str = "/etc/ld.so.conf", _depth: int = 0) -> list[tuple[str, str]]:
    """``[(directory, the file that names it)]`` of ld.so.conf and the files that it includes."""
    found: list[tuple[str, str]] = []
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            lines = stream.read().splitlines()
    except OSError:
        return found
    for line in lines:
        text = line.partition("#")[0].strip()
        if text.startswith("include") and _depth < 8:
            for pattern in text.split()[1:]:
                absolute = pattern if pattern.startswith("/") else os.path.join(os.path.dirname(path), pattern)
                for name in sorted(glob.glob(absolute)):
                    found.extend(conf_directories(name, _depth + 1))
        elif text.startswith("/"):
            found.append((text.partition("=")[0].rstrip(), path))
    return found


class Loaded:
    """One library as the loader would have it: ``name`` (as asked for), ``path``, ``via``, ``requester`` (path)."""

    def __init__(self, name: str, elf: ElfFile, via: str, loader: Loaded | None) -> None:
        self.name, self.elf, self.via, self.loader = name, elf, via, loader

    def as_dict(self) -> dict[str, Any]:
        """For a module's result."""
        return {
            "name": self.name,
            "path": self.elf.path,
            "via": self.via,
            "requester": self.loader.elf.path if self.loader else "",
        }


class Loader:
    """The dynamic loader of one process, by paper: :meth:`load` files in the order in which the program would."""

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        cache: Mapping[str, list[str]] | None = None,
        system: Iterable[str] = SYSTEM_DIRECTORIES,
        cwd: str = "/",
        machine: tuple[int, int] | None = None,
    ) -> None:
        """*environ* gives LD_LIBRARY_PATH and LD_PRELOAD; *machine* (bits, e_machine) is taken from the first file."""
        self._cwd = cwd
        self._machine = machine
        self._cache = read_cache() if cache is None else cache
        self._system = tuple(system)
        self._library_path = split_path(environ.get("LD_LIBRARY_PATH", ""))
        self._preload = [part for part in re.split("[: ]", environ.get("LD_PRELOAD", "")) if part]
        self.loaded: list[Loaded] = []
        self.missing: list[dict[str, str]] = []
        self._by_name: dict[str, Loaded] = {}
        self._started = False

    def load(self, path: str) -> Loaded | None:
        """Load a file by its path, with all that it needs, breadth first. None when it is no ELF file."""
        try:
            elf = ElfFile(path)
        except NotElfError:
            return None
        if self._machine is None:
            self._machine = (elf.bits, elf.machine)
        program = None
        if not self._started:
            self._started = True
            program = Loaded(os.path.basename(path), elf, "path", None)
            self._add(program)
            queue = deque([program])
            for name in self._preload:
                preloaded = self._find(name, program, preload=True)
                if preloaded is not None:
                    queue.append(preloaded)
            self._walk(queue)
            return program
        known = self._by_name.get(elf.soname or os.path.basename(path))
        if known is not None:
            return known
        root = Loaded(elf.soname or os.path.basename(path), elf, "path", self.loaded[0])
        self._add(root)
        self._walk(deque([root]))
        return root

    def _walk(self, queue: deque[Loaded]) -> None:
        while queue:
            one = queue.popleft()
            for name in one.elf.needed:
                if name in self._by_name:
                    continue
                found = self._find(name, one)
                if found is not None:
                    queue.append(found)

    def _add(self, one: Loaded) -> None:
        self.loaded.append(one)
        for name in (one.name, one.elf.soname):
            if name:
                self._by_name.setdefault(name, one)

    def _expand(self, directory: str, requester: ElfFile) -> str:
        # The directory under which the file was opened; links are not followed (give the program itself resolved).
        origin = os.path.dirname(os.path.abspath(requester.path))
        text = re.sub(r"\$(ORIGIN|\{ORIGIN\})", lambda _match: origin, directory)
        text = re.sub(r"\$(LIB|\{LIB\})", "lib64" if requester.bits == 64 else "lib", text)
        return os.path.normpath(os.path.join(self._cwd, text))

    def _candidates(self, requester: Loaded) -> Iterable[tuple[str, str]]:
        """(directory, via) in the loader's order."""
        if not requester.elf.runpath:
            one: Loaded | None = requester
            while one is not None:
                if not one.elf.runpath:
                    for directory in one.elf.rpath:
                        yield self._expand(directory, one.elf), f"RPATH of {one.elf.path}"
                one = one.loader
        for directory in self._library_path:
            yield self._expand(directory, requester.elf), "LD_LIBRARY_PATH"
        for directory in requester.elf.runpath:
            yield self._expand(directory, requester.elf), f"RUNPATH of {requester.elf.path}"

    def _find(self, name: str, requester: Loaded, preload: bool = False) -> Loaded | None:
        tried = []
        if "/" in name:
            tried.append((os.path.join(self._cwd, name), "LD_PRELOAD" if preload else "path"))
        else:
            tried += [(os.path.join(folder, name), via) for folder, via in self._candidates(requester)]
            tried += [(path, "ld.so.cache") for path in self._cache.get(name, [])]
            tried += [(os.path.join(folder, name), "system directory") for folder in self._system]
        for path, via in tried:
            try:
                elf = ElfFile(path)
            except NotElfError:
                continue
            # Libraries for another machine are passed over, as the loader does.
            if self._machine is not None and (elf.bits, elf.machine) != self._machine:
                continue
            known_as = (elf.soname or os.path.basename(name)) if "/" in name else name
            one = Loaded(known_as, elf, "LD_PRELOAD" if preload else via, requester)
            self._add(one)
            return one
        self.missing.append({"name": name, "requester": requester.elf.path})
        return None

    def get(self, name: str) -> Loaded | None:
        """What was loaded under this name or soname."""
        return self._by_name.get(name)


def inside(path: str, folders: Iterable[str]) -> bool:
    """Whether *path*, or the file behind its links, lies below one of *folders*."""
    for one in (os.path.abspath(path), os.path.realpath(path)):
        for folder in folders:
            for base in (os.path.abspath(folder), os.path.realpath(folder)):
                if one == base or one.startswith(base.rstrip("/") + "/"):
                    return True
    return False


def own_copy(name: str, site_packages: Iterable[str]) -> str:
    """The wheel's own file of this name in an environment (torch/lib, nvidia/*/lib); ``""`` when it has none."""
    for folder in site_packages:
        for pattern in ("torch/lib", "nvidia/*/lib"):
            for path in sorted(glob.glob(os.path.join(glob.escape(folder), pattern, name))):
                return path
    return ""


def watched_roots(torch_folder: str) -> list[str]:
    """The files that ``import torch`` and its first computation load, in that order."""
    library = os.path.join(torch_folder, "lib")
    roots = [os.path.join(library, "libtorch_global_deps.so")]
    roots += sorted(glob.glob(os.path.join(glob.escape(torch_folder), "_C*.so")))
    roots += [
        os.path.join(library, name) for name in ("libtorch_python.so", "libtorch_cuda.so", "libtorch_cuda_linalg.so")
    ]
    return [path for path in roots if os.path.isfile(path)]


def consumers(site_packages: Iterable[str]) -> list[str]:
    """CUDA libraries of the environment's own wheels, each of which is loaded sooner or later."""
    found = []
    for folder in site_packages:
        for path in sorted(glob.glob(os.path.join(glob.escape(folder), "nvidia", "*", "lib", "lib*.so*"))):
            if WATCHED.match(os.path.basename(path)):
                found.append(path)
    return found


def analyse(
    python: str,
    roots: Iterable[str],
    environ: Mapping[str, str],
    own: Iterable[str],
    site_packages: Iterable[str],
    *,
    cache: Mapping[str, list[str]] | None = None,
    system: Iterable[str] = SYSTEM_DIRECTORIES,
) -> dict[str, Any]:
    """Load *python* and *roots* on paper under *environ*, and say what is not as the wheels mean it.

    *own* are folders whose files are the environment's own. Returns ``libraries`` (the watched ones), ``shadowed``
    (``[{name, path, via, own, requester, missing_symbols}]``, foreign files in the place of own ones), ``unresolved``
    (``[{name, path, via, requester, missing_symbols}]``, a copy that lacks symbols, foreign or not) and ``missing``
    (needed, found nowhere; the driver's libraries among them).
    """
    site_packages = list(site_packages)
    own = [*own, *site_packages]
    loader = Loader(environ, cache=cache, system=system)
    loader.load(python)
    for path in [*roots, *consumers(site_packages)]:
        loader.load(path)
    result: dict[str, Any] = {"libraries": [], "shadowed": [], "unresolved": [], "missing": []}
    result["missing"] = [one for one in loader.missing if WATCHED.match(one["name"])]
    for one in loader.loaded:
        if not WATCHED.match(one.name):
            continue
        result["libraries"].append(one.as_dict())
        if DRIVER_LIBRARIES.match(one.name):
            continue
        lacking: list[str] = []
        user = ""
        for consumer in loader.loaded:
            if one.name in consumer.elf.versions_needed:
                names = missing_symbols(consumer.elf, one.elf, one.name)
                if names:
                    lacking, user = names, consumer.elf.path
                    break
        row = {**one.as_dict(), "missing_symbols": lacking[:20]}
        if user:
            row["requester"] = user
            result["unresolved"].append(row)
        mine = own_copy(one.name, site_packages)
        if mine and not inside(one.elf.path, own):
            result["shadowed"].append({**row, "own": mine})
    return result
