#!/usr/bin/env python3
# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Environments and wheels that tests share, made once under ${GPUFLEET_CACHE:-$HOME/.cache/gpufleet-llm}.

tools/cached_env.py torch-cpu           path of a venv with PyTorch 2.13.0 for the CPU (about 900 MB)
tools/cached_env.py wheel NAME==VERSION path of a wheel, downloaded by pip without its dependencies
tools/cached_env.py nvidia-userland     path of a directory with Debian's real nvidia-smi and libnvidia-ml (1 MB)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

TORCH = "2.13.0"


def cache() -> Path:
    """The root of the cache; it exists afterwards."""
    root = Path(os.environ.get("GPUFLEET_CACHE") or Path.home() / ".cache" / "gpufleet-llm")
    root.mkdir(parents=True, exist_ok=True)
    return root


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Only one process at a time makes the thing of this name."""
    with (cache() / f".{name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def once(name: str, target: Path, make: Callable[[Path], None]) -> Path:
    """*target*, made by *make* unless it is there and whole: a mark inside says so. Raises what *make* raises."""
    done = target / ".gpufleet-complete"
    with locked(name):
        if not done.is_file():
            shutil.rmtree(target, ignore_errors=True)
            make(target)
            done.touch()
    return target


def torch_cpu() -> Path:
    """The shared venv with PyTorch for the CPU. Raises subprocess.CalledProcessError when pip cannot install it.

    Nobody installs anything else into it.
    """

    def make(target: Path) -> None:
        venv.create(target, with_pip=True, symlinks=True)
        subprocess.run([str(target / "bin" / "python"), "-m", "pip", "install", "-q", f"torch=={TORCH}"], check=True)

    return once(f"torch-{TORCH}-cpu", cache() / "venvs" / f"torch-{TORCH}-cpu", make)


def pip() -> list[str]:
    """A command that is pip: the tool chain's venv has none, so the cache holds one of its own (ensurepip)."""
    target = once("pip", cache() / "venvs" / "pip", lambda path: venv.create(path, with_pip=True, symlinks=True))
    return [str(target / "bin" / "python"), "-m", "pip"]


def wheel(requirement: str) -> Path:
    """A wheel of the cache, downloaded when it is not there. *requirement* is ``name==version``.

    Raises subprocess.CalledProcessError, whose stderr says why, when pip has none for this Python and machine.
    """
    name, _equals, version = requirement.partition("==")
    folder = cache() / "wheels"
    folder.mkdir(exist_ok=True)
    start = f"{name.replace('-', '_')}-{version}-".lower()

    def here() -> list[Path]:
        fits = f"-cp{sys.version_info.major}{sys.version_info.minor}-"
        found = [path for path in folder.glob("*.whl") if path.name.lower().startswith(start)]
        return [path for path in found if fits in path.name or "-py3-" in path.name or "-py2.py3-" in path.name]

    with locked("wheels"):
        if not here():
            subprocess.run(
                [*pip(), "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder), requirement],
                check=True, capture_output=True, text=True,
            )  # fmt: skip
    return here()[0]


def nvidia_userland() -> Path:
    """Debian's real nvidia-smi and libnvidia-ml.so.1, unpacked and not installed: ``bin/nvidia-smi``, ``lib/``.

    They come through apt from the mirror of this machine's own sources, out of the component non-free, with lists and
    cache of their own. Raises OSError where there is no Debian, subprocess.CalledProcessError when apt has them not.
    """
    return once("nvidia-userland", cache() / "nvidia-userland", _userland)


def _userland(target: Path) -> None:
    if "ID=debian" not in Path("/etc/os-release").read_text(encoding="utf-8").splitlines():
        raise OSError("this machine is no Debian")
    for folder in ("lists/partial", "apt/archives/partial", "debs", "files", "bin", "lib"):
        (target / folder).mkdir(parents=True)
    (target / "non-free.list").write_text("\n".join(_non_free()) + "\n", encoding="utf-8")
    options = {
        "Dir::Etc::sourcelist": target / "non-free.list", "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": target / "lists", "Dir::Cache": target / "apt", "APT::Sandbox::User": "root",
    }  # fmt: skip
    apt = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in options.items())]
    for command in (["update"], ["download", "nvidia-smi", "libnvidia-ml1"]):
        subprocess.run([*apt, *command], check=True, capture_output=True, text=True, cwd=target / "debs")
    for deb in (target / "debs").glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(deb), str(target / "files")], check=True)
    for path in (target / "files" / "usr" / "lib").rglob("*"):
        if path.name == "nvidia-smi" and path.is_file():
            shutil.copy2(path, target / "bin")
        elif path.name.startswith("libnvidia-ml.so."):
            shutil.copy2(path, target / "lib", follow_symlinks=False)
    for folder in ("lists", "apt", "debs", "files"):
        shutil.rmtree(target / folder)


def _non_free() -> list[str]:
    """One-line sources of the component non-free for every Debian archive that this machine's apt uses."""
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Origin: Debian", "Created-By: Packages"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    found = sorted(set(done.stdout.splitlines()))
    if not found:
        raise OSError("apt has no Debian archive here")
    return [f"deb {site} {suite} non-free" for site, _space, suite in (line.partition(" ") for line in found)]


def _link(source: str, target: str) -> None:
    """A hard link, which costs nothing; a copy where the file systems differ. What is there gives way."""
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def unpack(requirement: str, target: Path) -> None:
    """Lay the files of a wheel out as pip would in a site-packages directory. They are links: nobody writes to them."""
    source = wheel(requirement)

    def make(folder: Path) -> None:
        with zipfile.ZipFile(source) as archive:
            archive.extractall(folder)

    folder = once(source.stem, cache() / "unpacked" / source.stem, make)
    shutil.copytree(folder, target, copy_function=_link, dirs_exist_ok=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["torch-cpu"]:
        print(torch_cpu())
    elif sys.argv[1:2] == ["wheel"] and len(sys.argv) == 3:
        print(wheel(sys.argv[2]))
    elif sys.argv[1:] == ["nvidia-userland"]:
        print(nvidia_userland())
    else:
        sys.exit(__doc__)
