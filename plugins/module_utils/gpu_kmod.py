# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read a kernel module file: version, licence, signature. What ``modinfo`` does, without starting it.

A plain ``.ko`` is read by its ELF section table, a few kilobytes of a file of up to 100 MB. A compressed one (xz, gzip,
and zstd where Python has it, 3.14 and later) is streamed until both strings were seen.
"""

from __future__ import annotations

import os
import re
import struct
from typing import Any, BinaryIO

SIGNATURE_MAGIC = b"~Module signature appended~\n"
_CHUNK = 1 << 20


def read_module(path: str) -> dict[str, Any]:
    """``{"version", "licence", "signed", "signer"}``, each None when it cannot be told. Never raises."""
    result: dict[str, Any] = {"version": None, "licence": None, "signed": None, "signer": None}
    try:
        if path.endswith(".ko"):
            with open(path, "rb") as stream:
                _fill(result, _modinfo_section(stream))
                result.update(_signature_at_end(stream))
        else:
            opened = _decompressed(path)
            if opened is not None:
                with opened as compressed:
                    _scan_stream(compressed, result)
    except Exception:
        # A file that is cut short or no module (OSError, EOFError, struct.error, LZMAError, zlib.error): what was found so
        # far stands.
        return result
    return result


def _decompressed(path: str) -> Any:
    if path.endswith(".xz"):
        import lzma

        return lzma.open(path, "rb")
    if path.endswith(".gz"):
        import gzip

        return gzip.open(path, "rb")
    if path.endswith(".zst"):
        try:
            from compression import zstd  # Python 3.14
        except ImportError:
            return None
        return zstd.open(path, "rb")
    return None


def _fill(result: dict[str, Any], section: bytes | None) -> None:
    for entry in (section or b"").split(b"\0"):
        key, _equals, value = entry.partition(b"=")
        if key == b"version":
            result["version"] = value.decode("utf-8", "replace")
        elif key == b"license":
            result["licence"] = value.decode("utf-8", "replace")


def _modinfo_section(stream: BinaryIO) -> bytes | None:
    """The bytes of section ``.modinfo`` of an ELF file, 32 or 64 bit, either byte order."""
    header = stream.read(64)
    if len(header) < 64 or header[:4] != b"\x7fELF":
        return None
    wide = header[4] == 2
    order = "<" if header[5] == 1 else ">"
    if wide:
        (offset,) = struct.unpack_from(order + "Q", header, 0x28)
        size, count, names_index = struct.unpack_from(order + "HHH", header, 0x3A)
        fields = order + "IIQQQQ"
    else:
        (offset,) = struct.unpack_from(order + "I", header, 0x20)
        size, count, names_index = struct.unpack_from(order + "HHH", header, 0x2E)
        fields = order + "IIIIII"
    stream.seek(offset)
    table = stream.read(size * count)
    sections = [struct.unpack_from(fields, table, index * size) for index in range(count)]
    stream.seek(sections[names_index][4])
    names = stream.read(sections[names_index][5])
    for section in sections:
        start = section[0]
        if names[start : names.index(b"\0", start)] == b".modinfo":
            stream.seek(section[4])
            return stream.read(section[5])
    return None


def _signature_at_end(stream: BinaryIO) -> dict[str, Any]:
    stream.seek(0, os.SEEK_END)
    total = stream.tell()
    stream.seek(max(0, total - 65536))
    return _signature(stream.read())


def _signature(tail: bytes) -> dict[str, Any]:
    """From the last bytes of a module. Source: struct module_signature, include/linux/module_signature.h."""
    if not tail.endswith(SIGNATURE_MAGIC):
        return {"signed": False, "signer": None}
    end = len(tail) - len(SIGNATURE_MAGIC)
    (length,) = struct.unpack(">I", tail[end - 4 : end])
    blob = tail[max(0, end - 12 - length) : end - 12]
    return {"signed": True, "signer": _common_name(blob)}


def _common_name(blob: bytes) -> str | None:
    """The first common name (OID 2.5.4.3) in a PKCS#7 signature: the issuer of the signing certificate."""
    match = re.search(rb"\x06\x03\x55\x04\x03[\x0c\x13\x14\x16](.)", blob, re.DOTALL)
    if not match:
        return None
    length = match.group(1)[0]
    return blob[match.end() : match.end() + length].decode("utf-8", "replace") if length < 128 else None


def _scan_stream(stream: Any, result: dict[str, Any]) -> None:
    tail = b""
    while True:
        chunk = stream.read(_CHUNK)
        if not chunk:
            break
        window = tail + chunk
        for key, name in (("version", b"version"), ("licence", b"license")):
            if result[key] is None:
                match = re.search(rb"\0" + name + rb"=([\x20-\x7e]{1,80})\0", window)
                if match:
                    result[key] = match.group(1).decode("ascii")
        # A signature is at most some kilobytes, and both strings are short, so 64 KiB bridge two chunks.
        tail = window[-65536:]
    result.update(_signature(tail))
