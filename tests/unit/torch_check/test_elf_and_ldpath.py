# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ELF reader and the loader on paper, against files made by gcc, against readelf and against the real ld.so."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.gpufleet.llm.plugins.module_utils import elf, ldpath

Gcc = Callable[..., Path]

LINK_1 = "int answer(void){return 1;}"
LINK_2 = "int answer(void){return 1;} int answer_new(void){return 2;}"
MAP_1 = "liblink.so.12 { global: answer; local: *; };"
MAP_2 = "liblink.so.12 { global: answer; answer_new; local: *; };"


def make_link(gcc: Gcc, folder: Path, new: bool) -> Path:
    """A library with a version script: the old one lacks ``answer_new``, as an old libnvJitLink lacks new symbols."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "link.map"
    script.write_text(MAP_2 if new else MAP_1)
    return gcc(folder / "liblink.so.12", LINK_2 if new else LINK_1, "-shared", "-fPIC", "-Wl,-soname,liblink.so.12",
               f"-Wl,--version-script={script}")  # fmt: skip


def make_user(
    gcc: Gcc, path: Path, against: Path, search: str, runpath: bool = True, soname: str = "libuser.so.1"
) -> Path:
    """A library that needs ``answer_new`` of the new liblink."""
    tags = "--enable-new-dtags" if runpath else "--disable-new-dtags"
    return gcc(path, "int answer_new(void); int use(void){return answer_new();}", "-shared", "-fPIC", str(against),
               f"-Wl,-soname,{soname}", f"-Wl,{tags}", f"-Wl,-rpath,{search}")  # fmt: skip


@pytest.fixture
def house(gcc: Gcc, tmp_path: Path) -> dict[str, Path]:
    """new/ and old/ liblink, a user with RUNPATH, a user with RPATH, a program."""
    new = make_link(gcc, tmp_path / "new", True)
    old = make_link(gcc, tmp_path / "old", False)
    return {
        "new": new,
        "old": old,
        "runpath": make_user(gcc, tmp_path / "u" / "libuser.so.1", new, "$ORIGIN/../new"),
        "rpath": make_user(gcc, tmp_path / "u" / "librpath.so.1", new, "$ORIGIN/../new", False, "librpath.so.1"),
        "program": gcc(tmp_path / "u" / "main", "int main(void){return 0;}"),
    }


def paper(program: Path, library: Path, environ: dict[str, str]) -> ldpath.Loaded | None:
    loader = ldpath.Loader(environ, cwd="/")
    loader.load(str(program))
    loader.load(str(library))
    return loader.get("liblink.so.12")


def reality(library: Path, environ: dict[str, str]) -> str:
    """The file that the real loader takes for liblink.so.12, lazily bound so that a missing symbol does not end it."""
    code = (
        "import ctypes, os, sys; ctypes.CDLL(sys.argv[1], mode=os.RTLD_LAZY)\n"
        "print([l.split()[-1] for l in open('/proc/self/maps') if 'liblink' in l][0])"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code, str(library)], env={**os.environ, **environ}, cwd="/",
                          capture_output=True, text=True, check=True)  # fmt: skip
    return done.stdout.strip()


@pytest.mark.parametrize("kind", ["runpath", "rpath"])
@pytest.mark.parametrize("variable", ["", "LD_LIBRARY_PATH", "LD_PRELOAD"])
def test_the_paper_loader_agrees_with_the_real_one(house: dict[str, Path], kind: str, variable: str) -> None:
    environ = {}
    if variable:
        environ[variable] = str(house["old"] if variable == "LD_PRELOAD" else house["old"].parent)
    found = paper(Path(os.path.realpath(sys.executable)), house[kind], environ)
    assert found is not None
    assert os.path.realpath(found.elf.path) == reality(house[kind], environ)
    shadowed = variable == "LD_PRELOAD" or (variable and kind == "runpath")
    assert (found.elf.path == str(house["old"])) == bool(shadowed)
    if shadowed:
        assert found.via == variable
        assert elf.missing_symbols(elf.ElfFile(str(house[kind])), found.elf, "liblink.so.12") == ["answer_new"]
    else:
        assert elf.missing_symbols(elf.ElfFile(str(house[kind])), found.elf, "liblink.so.12") == []


@pytest.mark.parametrize(("inner", "wanted"), [("runpath", "new"), ("none", "old"), ("rpath", "new")])
def test_the_rpath_of_those_who_asked(
    house: dict[str, Path], gcc: Gcc, tmp_path: Path, inner: str, wanted: str
) -> None:
    """RPATH is inherited by what a library loads, unless that has a RUNPATH of its own; its own RPATH goes first."""
    if inner == "none":
        user = gcc(tmp_path / "u" / "libnone.so.1", "int answer_new(void); int use(void){return answer_new();}", "-shared",
                   "-fPIC", str(house["new"]), "-Wl,-soname,libnone.so.1")  # fmt: skip
    else:
        user = house[inner]
    top = gcc(tmp_path / "t" / "libtop.so", "int use(void); int top(void){return use();}", "-shared", "-fPIC", str(user),
              "-Wl,--disable-new-dtags", "-Wl,-rpath,$ORIGIN/../u:$ORIGIN/../old", "-Wl,--allow-shlib-undefined")  # fmt: skip
    found = paper(Path(os.path.realpath(sys.executable)), top, {})
    assert found is not None
    assert os.path.realpath(found.elf.path) == reality(top, {})
    assert found.elf.path == str(house[wanted])


def test_origin_does_not_follow_links(house: dict[str, Path], tmp_path: Path) -> None:
    link = tmp_path / "far" / "away" / "libuser.so.1"
    link.parent.mkdir(parents=True)
    link.symlink_to(house["runpath"])
    with pytest.raises(subprocess.CalledProcessError):
        reality(link, {})
    assert paper(Path(os.path.realpath(sys.executable)), link, {}) is None


def test_what_the_file_says(house: dict[str, Path]) -> None:
    link, user = elf.ElfFile(str(house["new"])), elf.ElfFile(str(house["runpath"]))
    assert link.soname == "liblink.so.12"
    assert link.versions_defined == ["liblink.so.12"]
    exported = link.exported()
    assert ("answer", "liblink.so.12") in exported
    assert ("answer_new", "liblink.so.12") in exported
    assert ("answer_new", "liblink.so.12") not in elf.ElfFile(str(house["old"])).exported()
    assert user.runpath == ["$ORIGIN/../new"]
    assert user.rpath == []
    assert user.needed[0] == "liblink.so.12"
    assert user.versions_needed["liblink.so.12"] == ["liblink.so.12"]
    assert ("answer_new", "liblink.so.12", "liblink.so.12") in user.undefined()
    old_style = elf.ElfFile(str(house["rpath"]))
    assert (old_style.rpath, old_style.runpath) == (["$ORIGIN/../new"], [])


def test_sysv_hash_only(gcc: Gcc, tmp_path: Path) -> None:
    library = gcc(
        tmp_path / "libold.so",
        "int a(void){return 1;} int b(void){return 2;}",
        "-shared",
        "-fPIC",
        "-Wl,--hash-style=sysv",
    )
    assert {"a", "b"} <= {name for name, _version in elf.ElfFile(str(library)).exported()}


def test_a_stripped_file_without_section_headers_is_read(house: dict[str, Path], tmp_path: Path) -> None:
    data = bytearray(house["new"].read_bytes())
    data[40:48] = bytes(8)
    data[58:64] = bytes(6)
    bare = tmp_path / "bare.so"
    bare.write_bytes(data)
    assert ("answer_new", "liblink.so.12") in elf.ElfFile(str(bare)).exported()


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"#!/bin/sh\n", b"INPUT(libm.so.6)", b"\x7fELF" + bytes(200)],
                         ids=["empty", "short", "script", "linker-script", "zeros"])  # fmt: skip
def test_what_is_no_elf_file_is_refused_not_crashed_on(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.so"
    path.write_bytes(content)
    with pytest.raises(elf.NotElfError):
        elf.ElfFile(str(path))


@pytest.mark.parametrize("cut", [70, 200, 1000, 5000, 9000])
def test_a_truncated_library_raises_only_its_own_error(house: dict[str, Path], tmp_path: Path, cut: int) -> None:
    path = tmp_path / "cut.so"
    path.write_bytes(house["new"].read_bytes()[:cut])
    try:
        elf.ElfFile(str(path)).exported()
    except elf.NotElfError:
        pass


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not here")
@pytest.mark.parametrize("name", ["libc.so.6", "libstdc++.so.6", "libcrypto.so.3", "libz.so.1"])
def test_the_same_as_readelf(name: str) -> None:
    paths = ldpath.read_cache().get(name)
    if not paths:
        pytest.skip(f"{name} is not here")
    mine = elf.ElfFile(paths[0])
    text = subprocess.run(
        ["readelf", "-dW", paths[0]],
        capture_output=True,
        text=True,
        check=True,
        env={"LC_ALL": "C", "PATH": os.environ["PATH"]},
    ).stdout
    assert mine.needed == re.findall(r"\(NEEDED\).*\[(.*)\]", text)
    assert mine.soname in re.findall(r"\(SONAME\).*\[(.*)\]", text)
    table = subprocess.run(["readelf", "-W", "--dyn-syms", paths[0]], capture_output=True, text=True, check=True).stdout
    exported, undefined = set(), set()
    for line in table.splitlines():
        fields = line.split()
        if len(fields) < 8 or not fields[0].rstrip(":").isdigit() or fields[4] not in ("GLOBAL", "WEAK", "UNIQUE"):
            continue
        plain, _at, version = fields[7].partition("@")
        version = version.lstrip("@")
        if fields[6] == "ABS" and not version:
            # The name of a version itself: readelf prints it without one.
            exported.add((plain, plain if plain in mine.versions_defined else ""))
        elif fields[6] == "UND":
            if fields[4] == "GLOBAL":
                undefined.add((plain, version))
        else:
            exported.add((plain, version))
    assert mine.exported() == exported
    assert {(symbol, version) for symbol, version, _library in mine.undefined()} == undefined


def test_the_loaders_cache_is_read() -> None:
    cache = ldpath.read_cache()
    listed = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    wanted: dict[str, list[str]] = {}
    for name, path in re.findall(r"^\s+(\S+) \(.*\) => (\S+)$", listed, re.MULTILINE):
        wanted.setdefault(name, []).append(path)
    assert cache
    assert cache == wanted


def test_a_broken_cache_is_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    path.write_bytes(ldpath.CACHE_MAGIC + b"\xff" * 40)
    assert ldpath.read_cache(str(path)) == {}
    assert ldpath.read_cache(str(tmp_path / "none")) == {}


def test_ld_so_conf_with_includes(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "cuda.conf").write_text("/usr/local/cuda/lib64  # toolkit\n")
    (tmp_path / "ld.so.conf").write_text("include d/*.conf\n/opt/lib\n")
    assert ldpath.conf_directories(str(tmp_path / "ld.so.conf")) == [
        ("/usr/local/cuda/lib64", str(tmp_path / "d" / "cuda.conf")),
        ("/opt/lib", str(tmp_path / "ld.so.conf")),
    ]


@pytest.mark.parametrize(
    ("value", "wanted"), [("", []), ("/a:/b", ["/a", "/b"]), (":/x", [".", "/x"]), ("/a;/b", ["/a", "/b"])]
)
def test_an_empty_element_is_the_current_directory(value: str, wanted: list[str]) -> None:
    assert ldpath.split_path(value) == wanted


def test_a_library_of_another_machine_is_passed_over(house: dict[str, Path], tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    data = bytearray(house["old"].read_bytes())
    data[18:20] = b"\xb7\x00"  # EM_AARCH64
    (wrong / "liblink.so.12").write_bytes(data)
    found = paper(house["program"], house["runpath"], {"LD_LIBRARY_PATH": str(wrong)})
    assert found is not None
    assert found.elf.path == str(house["new"])
