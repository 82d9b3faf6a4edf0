# Copyright: Contributors to the gpufleet.llm project
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write .deb files and the indexes of apt repositories, without starting a process per package."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

DATE = 1_700_000_000


class File:
    """A file of a package: its bytes and mode, or where a link points to."""

    def __init__(self, data: bytes | str = b"", mode: int = 0o644, link: str = "") -> None:
        self.data = data.encode() if isinstance(data, str) else data
        self.mode = mode
        self.link = link


Tree = Mapping[str, File]  # path without the leading slash → file


def link(target: str) -> File:
    """A symbolic link."""
    return File(link=target)


def script(text: str) -> File:
    """An executable."""
    return File(text, 0o755)


def _tar(tree: Tree) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        seen = {""}
        for path, file in sorted(tree.items()):
            parts = path.split("/")
            for number in range(1, len(parts)):
                folder = "/".join(parts[:number])
                if folder not in seen:
                    seen.add(folder)
                    info = tarfile.TarInfo("./" + folder + "/")
                    info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o755, DATE
                    archive.addfile(info)
            info = tarfile.TarInfo("./" + path)
            info.mtime, info.mode = DATE, file.mode
            if file.link:
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, file.link, 0o777
                archive.addfile(info)
            else:
                info.size = len(file.data)
                archive.addfile(info, io.BytesIO(file.data))
    return gzip.compress(buffer.getvalue(), 6, mtime=0)


def _ar(members: list[tuple[str, bytes]]) -> bytes:
    out = b"!<arch>\n"
    for name, data in members:
        out += f"{name:<16}{DATE:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data
        out += b"\n" if len(data) % 2 else b""
    return out


def write(pool: Path, fields: Mapping[str, str], tree: Tree, scripts: Mapping[str, str] | None = None) -> str:
    """Write NAME_VERSION_ARCH.deb into pool; its stanza for Packages (paths relative to the folder above pool)."""
    installed = sum(len(file.data) for file in tree.values()) // 1024 + 1
    control = "".join(f"{key}: {value}\n" for key, value in fields.items() if value)
    lines = control.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("Description:"))
    lines.insert(at, f"Installed-Size: {installed}")
    control = "\n".join(lines) + "\n"
    members: dict[str, File] = {"control": File(control)}
    for name, text in (scripts or {}).items():
        members[name] = script("#!/bin/sh\nset -e\n" + text)
    conffiles = [f"/{path}\n" for path in sorted(tree) if path.startswith("etc/")]
    if conffiles:
        members["conffiles"] = File("".join(conffiles))
    data = _ar(
        [("debian-binary", b"2.0\n"), ("control.tar.gz", _tar(members)), ("data.tar.gz", _tar(tree))],
    )
    version = fields["Version"].partition(":")[2] or fields["Version"]
    name = f"{fields['Package']}_{version}_{fields['Architecture']}.deb"
    pool.mkdir(parents=True, exist_ok=True)
    (pool / name).write_bytes(data)
    sums = f"Size: {len(data)}\nMD5sum: {hashlib.md5(data).hexdigest()}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"
    return control + f"Filename: ./{name}\n" + sums


def index(folder: Path, stanzas: list[str]) -> None:
    """Packages and Packages.gz."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(stanzas).encode()
    (folder / "Packages").write_bytes(text)
    (folder / "Packages.gz").write_bytes(gzip.compress(text, mtime=0))
