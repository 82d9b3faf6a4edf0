# Copyright: Contributors to the gpufleet.llm project
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Installers with a real conda inside, and a conda channel of a few real packages.

conda itself is the copy that the wheel `conda-lock` carries. Its Python is the node's own 3.11, as in a virtual
environment: an installer of a few megabytes instead of a hundred.
"""

from __future__ import annotations

import base64
import bz2
import hashlib
import io
import json
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from . import images
from .host import FLEET_DIR, podman
from .stage_python import download

CONDA_DIR = FLEET_DIR / "depot" / "conda"
LOCK = FLEET_DIR / "depot" / "conda.lock"
EXTRA = FLEET_DIR / "depot" / "extra.lock"  # a second version of a few packages
PYLIB = "python3.11"
SITE = f"lib/{PYLIB}/site-packages"
MTIME = 1_700_000_000
# The installers that have the plugin for terms of service (a stand-in), as the real ones of 2025 do
WITH_TERMS = {"Miniconda3-py311_25.3.1-1-Linux-x86_64.sh"}
TOS = "conda_anaconda_tos_stand_in"
# What of the lock only the channel needs, or nobody.
NOT_IN_BASE = {"wheel"}


class Installer(NamedTuple):
    """An installer on offer: the name and version in its file name, and the version its conda says it is."""

    name: str
    version: str
    conda: str
    channels: tuple[str, ...]

    @property
    def file(self) -> str:
        """Its file name, as the real one is called."""
        return f"{self.name}-{self.version}-Linux-x86_64.sh"


INSTALLERS = (
    Installer("Miniforge3", "24.7.1-2", "24.7.1", ("conda-forge",)),
    Installer("Miniforge3", "25.3.1-0", "25.3.1", ("conda-forge",)),
    Installer("Miniconda3", "py311_24.7.1-0", "24.7.1", ("defaults",)),
    Installer("Miniconda3", "py311_25.3.1-1", "25.3.1", ("defaults",)),
    Installer("Anaconda3", "2023.09-0", "23.7.4", ("defaults",)),
    Installer("Anaconda3", "2024.10-1", "24.9.2", ("defaults",)),
)
# Channel folders: conda-forge by name, and Anaconda's `defaults`, which have terms.
CHANNELS = ("conda-forge", "pkgs/main", "pkgs/r")
TERMS = {
    "version": "2025-07-15T00:00:00Z",
    "text": "Terms of a channel of the gpufleet.llm test fleet; they mean nothing.\n",
    "support": "https://depot.gpufleet.test/",
}

Files = dict[str, "bytes | str"]  # path → content, or "-> target" for a link


def inputs() -> list[Path]:
    """What the installers and the channel depend on."""
    return [
        Path(__file__),
        LOCK,
        EXTRA,
        *(CONDA_DIR / name for name in ("conda.sh", "installer.sh", "tos_stand_in.py")),
    ]


def stage(folder: Path) -> None:
    """Write `installers/` and `conda/` below folder."""
    wheels = folder / "wheels"
    wheels.mkdir()
    download(LOCK, "3.11", wheels)
    python = node_python()
    base = base_files(sorted(wheels.glob("*.whl")))
    download(EXTRA, "3.11", wheels)
    base |= pycosat()
    installers = folder / "installers"
    installers.mkdir()
    index = {}
    for installer in INSTALLERS:
        data = build_installer(installer, base, python)
        (installers / installer.file).write_bytes(data)
        index[installer.file] = {
            "sha256": hashlib.sha256(data).hexdigest(),
            "size": len(data),
            "conda": installer.conda,
        }
    (installers / "index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    sums = "".join(f"{entry['sha256']}  {name}\n" for name, entry in index.items())
    (installers / "SHA256SUMS").write_text(sums, encoding="utf-8")
    packages = [python_package(python)]
    packages += [
        noarch_package(wheel) for wheel in sorted(wheels.glob("*-none-any.whl")) if "conda_lock" not in wheel.name
    ]
    for channel in CHANNELS:
        write_channel(folder / "conda" / channel, packages)
        if channel.startswith("pkgs/"):
            (folder / "conda" / channel / "terms.json").write_bytes(_json(TERMS))
    for wheel in wheels.glob("*"):
        wheel.unlink()
    wheels.rmdir()


def node_python() -> str:
    """The version of the nodes' python3.11 (3.11.x), which the channel's package of Python stands for."""
    said = podman("run", "--rm", "--network=none", images.build("depot"), f"/usr/bin/{PYLIB}", "-V").stdout
    return said.split()[1]


def pycosat() -> Files:
    """Debian's build of conda's SAT solver (there is no wheel of it) with the library it needs beside it."""
    code = "import base64, pycosat; print(base64.b64encode(open(pycosat.__file__, 'rb').read()).decode())"
    library = "import base64; print(base64.b64encode(open('/usr/lib/x86_64-linux-gnu/libpicosat.so.1', 'rb').read()).decode())"
    found = []
    for program in (code, library):
        argv = ["run", "--rm", "--network=none", images.build("depot"), f"/usr/bin/{PYLIB}", "-c", program]
        found.append(base64.b64decode(podman(*argv).stdout))
    return {
        f"{SITE}/pycosat/__init__.py": (
            b"import ctypes\nimport pathlib\n\n"
            b'ctypes.CDLL(str(pathlib.Path(__file__).with_name("libpicosat.so.1")), mode=ctypes.RTLD_GLOBAL)\n'
            b"from .pycosat import *  # noqa: E402, F403\n"
        ),
        f"{SITE}/pycosat/pycosat.cpython-311-x86_64-linux-gnu.so": found[0],
        f"{SITE}/pycosat/libpicosat.so.1": found[1],
    }


def wheel_files(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel as they lie in site-packages (data folders left out)."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/") and ".data/" not in name]
        return {name: archive.read(name) for name in names}


def base_files(wheels: list[Path]) -> Files:
    """All of the base environment's site-packages but pycosat."""
    files: Files = {}
    for wheel in wheels:
        if wheel.name.split("-")[0] in NOT_IN_BASE:
            continue
        for name, data in wheel_files(wheel).items():
            if wheel.name.startswith("conda_lock"):
                if not name.startswith("conda_lock/_vendor/conda/"):
                    continue
                name = name.removeprefix("conda_lock/_vendor/")
                # conda-lock has renamed conda's own imports; here conda is itself again.
                if name.endswith(".py"):
                    data = data.replace(b"conda_lock._vendor.conda", b"conda")
                # What was to go in a version that an installer only says it has must not go.
                if name == "conda/deprecations.py":
                    data = data.replace(b"DeprecationHandler(__version__)", b'DeprecationHandler("24.7.1")')
            files[f"{SITE}/{name}"] = data
    return files


def build_installer(installer: Installer, base: Files, python: str) -> bytes:
    """The bytes of an installer: a shell script followed by a tar archive."""
    files = dict(base)
    files[f"{SITE}/conda/_version.py"] = f'__version__ = version = "{installer.conda}"\n'.encode()
    files |= {
        "bin/python": f"-> /usr/bin/{PYLIB}",
        "bin/python3": "-> python",
        f"bin/{PYLIB}": "-> python",
        "pyvenv.cfg": b"home = /usr/bin\ninclude-system-site-packages = false\n",
        "condabin/conda": "-> ../bin/conda",
        "etc/profile.d/conda.sh": (CONDA_DIR / "conda.sh").read_bytes(),
        # Without the guard every process that conda spawns would start conda again. The solver's choice is not left
        # to .condarc, because the other one (libmamba) is not in here.
        "bin/conda": (
            b"#!@PREFIX@/bin/python\n"
            b"import os\nimport sys\n\n"
            b'os.environ.setdefault("CONDA_SOLVER", "classic")\n'
            b'os.environ.setdefault("CONDA_ADD_PIP_AS_PYTHON_DEPENDENCY", "false")\n'
            b"from conda.cli import main  # noqa: E402\n\n"
            b'if __name__ == "__main__":\n    sys.exit(main())\n'
        ),
        ".condarc": ("channels:\n" + "".join(f"  - {name}\n" for name in installer.channels)).encode(),
        "conda-meta/history": b"==> 2023-11-14 22:13:20 <==\n# cmd: constructor\n",
    }
    records = [_meta("conda", installer.conda, "py311_0", files), _meta("python", python, "0_fixture", {})]
    if installer.file in WITH_TERMS:
        files |= terms_plugin()
        records.append(_meta("conda-anaconda-tos", "0.2.2", "stand_in_0", {}))
    for record in records:
        files[f"conda-meta/{record['name']}-{record['version']}-{record['build']}.json"] = _json(record)
    script = (CONDA_DIR / "installer.sh").read_text(encoding="utf-8")
    values = {
        "@NAME@": installer.name,
        "@VERSION@": installer.version,
        "@CONDA@": installer.conda,
        "@PYLIB@": PYLIB,
        "@DEFAULT_PREFIX@": f"${{HOME:-/opt}}/{installer.name.lower()}",
    }
    for key, value in values.items():
        script = script.replace(key, value)
    return script.encode() + _tar(files)


def terms_plugin() -> Files:
    """The stand-in for conda-anaconda-tos, which conda finds by its entry point."""
    info = f"{SITE}/{TOS}-0.2.2.dist-info"
    return {
        f"{SITE}/{TOS}.py": (CONDA_DIR / "tos_stand_in.py").read_bytes(),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {TOS.replace('_', '-')}\nVersion: 0.2.2\n".encode(),
        f"{info}/INSTALLER": b"conda\n",
        f"{info}/RECORD": f"{TOS}.py,,\n".encode(),
        f"{info}/entry_points.txt": f"[conda]\n{TOS} = {TOS}\n".encode(),
    }


def _meta(name: str, version: str, build: str, files: Files) -> dict[str, Any]:
    paths = sorted(path for path in files if "/site-packages/conda/" in path or path == "bin/conda")
    return {
        "name": name, "version": version, "build": build, "build_number": 0, "subdir": "linux-64", "arch": "x86_64",
        "platform": "linux", "depends": [], "constrains": [], "files": paths, "fn": f"{name}-{version}-{build}.tar.bz2",
        "channel": "conda-forge/linux-64", "url": "", "license": "", "timestamp": MTIME * 1000,
    }  # fmt: skip


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _tar(files: Files) -> bytes:
    """An uncompressed tar archive, the same bytes for the same files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path, data in sorted(files.items()):
            entry = tarfile.TarInfo(path)
            entry.mtime = MTIME
            if isinstance(data, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, data.removeprefix("-> ")
                entry.mode = 0o777
                archive.addfile(entry)
            else:
                executable = path.startswith(("bin/", "condabin/")) or ".so" in path
                entry.mode, entry.size = (0o755 if executable else 0o644), len(data)
                archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


class Package(NamedTuple):
    """A conda package: its index entry, subdir, and bytes."""

    entry: dict[str, Any]
    subdir: str
    data: bytes

    @property
    def file(self) -> str:
        """Its file name."""
        return f"{self.entry['name']}-{self.entry['version']}-{self.entry['build']}.tar.bz2"


def _package(index: dict[str, Any], files: Files, extra: Files | None = None) -> Package:
    rows = []
    for path, data in sorted(files.items()):
        link = isinstance(data, str)
        content = data.encode() if isinstance(data, str) else data
        row: dict[str, Any] = {"_path": path, "path_type": "softlink" if link else "hardlink"}
        row |= {"sha256": hashlib.sha256(content).hexdigest(), "size_in_bytes": 0 if link else len(content)}
        rows.append(row)
    info: Files = {
        "info/index.json": _json(index),
        "info/files": ("".join(f"{path}\n" for path in sorted(files))).encode(),
        "info/paths.json": _json({"paths": rows, "paths_version": 1}),
        **(extra or {}),
    }
    return Package(index, index["subdir"], bz2.compress(_tar({**files, **info})))


def python_package(version: str) -> Package:
    """The channel's `python`: the node's own interpreter, as a virtual environment uses it."""
    files: Files = {
        "bin/python": f"-> /usr/bin/{PYLIB}",
        "bin/python3": "-> python",
        f"bin/{PYLIB}": "-> python",
        "pyvenv.cfg": b"home = /usr/bin\ninclude-system-site-packages = false\n",
        f"{SITE}/README.txt": b"Packages of this environment.\n",
    }
    index = {
        "name": "python", "version": version, "build": "0_fixture", "build_number": 0, "subdir": "linux-64",
        "arch": "x86_64", "platform": "linux", "depends": [], "license": "PSF-2.0", "timestamp": MTIME * 1000,
    }  # fmt: skip
    return _package(index, files)


def noarch_package(wheel: Path) -> Package:
    """A pure-Python wheel as a `noarch: python` package."""
    name, version = wheel.name.split("-")[:2]
    inside = wheel_files(wheel)
    files: Files = {f"site-packages/{path}": data for path, data in inside.items()}
    # conda lists what has an INSTALLER of its own name as its package, everything else as pip's.
    dist_info = next(path.split("/")[0] for path in inside if path.endswith(".dist-info/METADATA"))
    files[f"site-packages/{dist_info}/INSTALLER"] = b"conda\n"
    scripts = inside.get(f"{dist_info}/entry_points.txt", b"").decode()
    section = re.search(r"(?ms)^\[console_scripts\]\s*(.*?)(?=^\[|\Z)", scripts)
    entry_points = re.findall(r"(?m)^\s*([^\s=]+\s*=\s*\S+)", section[1]) if section else []
    index = {
        "name": name.replace("_", "-").lower(), "version": version, "build": "pyhfixture_0", "build_number": 0,
        "subdir": "noarch", "noarch": "python", "arch": None, "platform": None, "depends": ["python"],
        "license": "", "timestamp": MTIME * 1000,
    }  # fmt: skip
    link = {"noarch": {"type": "python", "entry_points": entry_points}, "package_metadata_version": 1}
    return _package(index, files, {"info/link.json": _json(link)})


def write_channel(folder: Path, packages: list[Package]) -> None:
    """Write the packages and each subdir's repodata.json."""
    for subdir in ("linux-64", "noarch"):
        place = folder / subdir
        place.mkdir(parents=True)
        listed = {}
        for package in packages:
            if package.subdir == subdir:
                (place / package.file).write_bytes(package.data)
                sums: dict[str, Any] = {
                    "md5": hashlib.md5(package.data, usedforsecurity=False).hexdigest(),
                    "sha256": hashlib.sha256(package.data).hexdigest(),
                    "size": len(package.data),
                }
                listed[package.file] = {**package.entry, **sums}
        repodata = {
            "info": {"subdir": subdir},
            "packages": listed,
            "packages.conda": {},
            "removed": [],
            "repodata_version": 1,
        }
        (place / "repodata.json").write_bytes(_json(repodata))
