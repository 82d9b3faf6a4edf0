# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read what the dynamic loader reads of an ELF file: needed libraries, search paths, symbols and their versions.

Formats: System V gABI chapters 4 and 5; symbol versions as in the Linux Standard Base, "Symbol Versioning".
Works from the program headers, as the loader does, so files without section headers are read too.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import Any

PT_LOAD, PT_DYNAMIC = 1, 2
DT_NEEDED, DT_HASH, DT_STRTAB, DT_SYMTAB, DT_SONAME, DT_RPATH = 1, 4, 5, 6, 14, 15
DT_RUNPATH, DT_GNU_HASH, DT_VERSYM = 29, 0x6FFFFEF5, 0x6FFFFFF0
DT_VERDEF, DT_VERDEFNUM, DT_VERNEED, DT_VERNEEDNUM = 0x6FFFFFFC, 0x6FFFFFFD, 0x6FFFFFFE, 0x6FFFFFFF
STB_LOCAL, SHN_UNDEF = 0, 0
VER_FLG_BASE = 1
VERSION_HIDDEN = 0x8000


class NotElfError(Exception):
    """The file is no ELF file that can be read; the message says why."""


class ElfFile:
    """One shared object or executable.

    ``soname`` (str or None), ``needed``, ``rpath`` and ``runpath`` (lists of str, raw, with ``$ORIGIN``), ``bits``,
    ``machine`` (e_machine), ``versions_defined`` (list of str), ``versions_needed`` ({library: [versions]}).
    Symbols are read on demand by :meth:`exported` and :meth:`undefined`.
    """

    def __init__(self, path: str) -> None:
        """Raises NotElfError for anything that is not a readable ELF file."""
        self.path = path
        self.soname: str | None = None
        self.needed: list[str] = []
        self.rpath: list[str] = []
        self.runpath: list[str] = []
        self.versions_defined: list[str] = []
        self.versions_needed: dict[str, list[str]] = {}
        self._tags: dict[int, int] = {}
        self._version_names: dict[int, str] = {}
        self._version_files: dict[int, str] = {}
        self._undefined: list[tuple[str, str, str]] | None = None
        try:
            if not os.path.isfile(path):
                raise NotElfError("no regular file")
            with open(path, "rb") as stream:
                self._data: Any = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            self._read()
        except (OSError, ValueError, struct.error, IndexError) as exc:
            raise NotElfError(f"{path}: {exc}") from exc

    # -- layout ------------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        data = self._data
        if data[:4] != b"\x7fELF":
            raise NotElfError(f"{self.path}: no ELF magic")
        self.bits = {1: 32, 2: 64}.get(data[4], 0)
        if not self.bits:
            raise NotElfError(f"{self.path}: unknown ELF class {data[4]}")
        self._order = ">" if data[5] == 2 else "<"
        wide = self.bits == 64
        self.type, self.machine = struct.unpack_from(self._order + "HH", data, 16)
        (offset,) = struct.unpack_from(self._order + ("Q" if wide else "I"), data, 32 if wide else 28)
        size, count = struct.unpack_from(self._order + "HH", data, 54 if wide else 42)
        self._loads: list[tuple[int, int, int]] = []
        dynamic = None
        for index in range(count):
            base = offset + index * size
            if wide:
                kind, _flags, file_offset, address, _physical, file_size = struct.unpack_from(
                    self._order + "IIQQQQ", data, base
                )
            else:
                kind, file_offset, address, _physical, file_size = struct.unpack_from(self._order + "IIIII", data, base)
            if kind == PT_LOAD:
                self._loads.append((address, file_offset, file_size))
            elif kind == PT_DYNAMIC:
                dynamic = (file_offset, file_size)
        if dynamic is not None:
            self._read_dynamic(*dynamic)

    def _offset(self, address: int) -> int:
        for start, file_offset, size in self._loads:
            if start <= address < start + size:
                return file_offset + address - start
        raise ValueError(f"address {address:#x} lies in no segment of the file")

    def _read_dynamic(self, offset: int, size: int) -> None:
        entry = struct.Struct(self._order + ("qQ" if self.bits == 64 else "iI"))
        pairs = []
        for base in range(offset, offset + size - entry.size + 1, entry.size):
            tag, value = entry.unpack_from(self._data, base)
            if tag == 0:
                break
            pairs.append((tag, value))
            self._tags.setdefault(tag, value)
        if DT_STRTAB not in self._tags:
            return
        self._strings = self._offset(self._tags[DT_STRTAB])
        for tag, value in pairs:
            if tag == DT_NEEDED:
                self.needed.append(self._string(value))
            elif tag == DT_SONAME:
                self.soname = self._string(value)
            elif tag == DT_RPATH:
                self.rpath = [part for part in self._string(value).split(":") if part]
            elif tag == DT_RUNPATH:
                self.runpath = [part for part in self._string(value).split(":") if part]
        self._read_versions()

    def _string(self, index: int) -> str:
        start = self._strings + index
        return self._data[start : self._data.find(b"\0", start)].decode("utf-8", "replace")

    def _read_versions(self) -> None:
        if DT_VERDEF in self._tags:
            base = self._offset(self._tags[DT_VERDEF])
            for _count in range(self._tags.get(DT_VERDEFNUM, 0)):
                _version, flags, index, _names, _hash, aux, following = struct.unpack_from(
                    self._order + "HHHHIII", self._data, base
                )
                (name,) = struct.unpack_from(self._order + "I", self._data, base + aux)
                self._version_names[index & ~VERSION_HIDDEN] = self._string(name)
                # The base definition is the file's own name, no version that a symbol has.
                if not flags & VER_FLG_BASE:
                    self.versions_defined.append(self._string(name))
                if not following:
                    break
                base += following
        if DT_VERNEED in self._tags:
            base = self._offset(self._tags[DT_VERNEED])
            for _count in range(self._tags.get(DT_VERNEEDNUM, 0)):
                _version, names, file, aux, following = struct.unpack_from(self._order + "HHIII", self._data, base)
                library = self._string(file)
                wanted = self.versions_needed.setdefault(library, [])
                place = base + aux
                for _name in range(names):
                    _hash, _flags, index, name, step = struct.unpack_from(self._order + "IHHII", self._data, place)
                    wanted.append(self._string(name))
                    self._version_names[index & ~VERSION_HIDDEN] = self._string(name)
                    self._version_files[index & ~VERSION_HIDDEN] = library
                    if not step:
                        break
                    place += step
                if not following:
                    break
                base += following

    # -- symbols -----------------------------------------------------------------------------------------------------

    def _symbol_count(self) -> int:
        if DT_HASH in self._tags:
            return struct.unpack_from(self._order + "II", self._data, self._offset(self._tags[DT_HASH]))[1]
        if DT_GNU_HASH not in self._tags:
            return 0
        base = self._offset(self._tags[DT_GNU_HASH])
        buckets, first, bloom, _shift = struct.unpack_from(self._order + "IIII", self._data, base)
        table = base + 16 + bloom * self.bits // 8
        last = max(struct.unpack_from(f"{self._order}{buckets}I", self._data, table), default=0)
        if last < first:
            return first
        chain = table + 4 * buckets
        # The lowest bit of a chain's last hash is set.
        while not struct.unpack_from(self._order + "I", self._data, chain + 4 * (last - first))[0] & 1:
            last += 1
        return last + 1

    def _symbols(self) -> Any:
        """Yield (name index, is defined, version index or None) of the global and weak dynamic symbols."""
        if DT_SYMTAB not in self._tags:
            return
        wide = self.bits == 64
        layout = struct.Struct(self._order + ("IBBHQQ" if wide else "IIIBBH"))
        base = self._offset(self._tags[DT_SYMTAB])
        count = self._symbol_count()
        versions = None
        if DT_VERSYM in self._tags:
            versions = struct.unpack_from(f"{self._order}{count}H", self._data, self._offset(self._tags[DT_VERSYM]))
        for index in range(1, count):
            fields = layout.unpack_from(self._data, base + index * layout.size)
            name, info, section = (fields[0], fields[1], fields[3]) if wide else (fields[0], fields[3], fields[5])
            if info >> 4 == STB_LOCAL:
                continue
            yield name, section != SHN_UNDEF, info >> 4, versions[index] if versions else None

    def exported(self) -> set[tuple[str, str]]:
        """The symbols that others can use: ``{(name, version)}``, version ``""`` where the file has none."""
        found = set()
        for name, defined, _binding, version in self._symbols():
            if defined:
                number = (version or 0) & ~VERSION_HIDDEN
                # 0 is local, 1 the base version: no version name.
                found.add((self._string(name), self._version_names.get(number, "") if number > 1 else ""))
        return found

    def undefined(self) -> list[tuple[str, str, str]]:
        """The symbols that this file needs and must find: ``[(name, version, library)]``.

        Version and library are ``""`` for a symbol without a version. Weak symbols may stay unresolved and are left out.
        """
        if self._undefined is not None:
            return self._undefined
        found = []
        for name, defined, binding, version in self._symbols():
            if not defined and binding == 1:
                number = (version or 0) & ~VERSION_HIDDEN
                found.append(
                    (self._string(name), self._version_names.get(number, ""), self._version_files.get(number, ""))
                    if number > 1
                    else (self._string(name), "", "")
                )
        self._undefined = found
        return found


def missing_symbols(consumer: ElfFile, provider: ElfFile, provider_name: str) -> list[str]:
    """Names that *consumer* needs from the library *provider_name* (a DT_NEEDED entry) and *provider* does not export.

    Only versioned symbols can be told to come from one library; each must be exported with that version, or without
    any when the provider has no versions at all (the loader then takes it).
    """
    exported = provider.exported()
    plain = {name for name, _version in exported}
    result = []
    for name, version, library in consumer.undefined():
        if library != provider_name:
            continue
        fits = (name, version) in exported if provider.versions_defined else name in plain
        if not fits:
            result.append(name)
    return sorted(result)
