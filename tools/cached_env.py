#!/usr/bin/env python3
# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Environments and wheels that tests share, made once under ${GPUFLEET_CACHE:-$HOME/.cache/gpufleet-llm}.

tools/cached_env.py torch-cpu           path of a venv with PyTorch 2.13.0 for the CPU (about 900 MB)
tools/cached_env.py wheel NAME==VERSION path of a wheel, downloaded by pip without its dependencies
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
from collections.abc import Iterator
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


def torch_cpu() -> Path:
    """The shared venv with PyTorch for the CPU. Raises subprocess.CalledProcessError when pip cannot install it.

    Nobody installs anything else into it.
    """
    target = cache() / "venvs" / f"torch-{TORCH}-cpu"
    done = target / ".gpufleet-complete"
    with locked(f"torch-{TORCH}-cpu"):
        if not done.is_file():
            shutil.rmtree(target, ignore_errors=True)
            venv.create(target, with_pip=True, symlinks=True)
            subprocess.run(
                [str(target / "bin" / "python"), "-m", "pip", "install", "-q", f"torch=={TORCH}"], check=True
            )
            done.touch()
    return target


def pip() -> list[str]:
    """A command that is pip: the tool chain's venv has none, so the cache holds one of its own (ensurepip)."""
    target = cache() / "venvs" / "pip"
    with locked("pip"):
        if not (target / ".gpufleet-complete").is_file():
            shutil.rmtree(target, ignore_errors=True)
            venv.create(target, with_pip=True, symlinks=True)
            (target / ".gpufleet-complete").touch()
    return [str(target / "bin" / "python"), "-m", "pip"]


def wheel(requirement: str) -> Path:
    """A wheel of the cache, downloaded when it is not there. *requirement* is ``name==version``."""
    name, _equals, version = requirement.partition("==")
    folder = cache() / "wheels"
    folder.mkdir(exist_ok=True)
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    with locked("wheels"):
        if not list(folder.glob(pattern)):
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "pip",
                    "download",
                    "-q",
                    "--no-deps",
                    "--only-binary=:all:",
                    "-d",
                    str(folder),
                    requirement,
                ],
                check=True,
            )
    return next(folder.glob(pattern))


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
    folder = cache() / "unpacked" / source.stem
    with locked(source.stem):
        if not (folder / ".gpufleet-complete").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            with zipfile.ZipFile(source) as archive:
                archive.extractall(folder)
            (folder / ".gpufleet-complete").touch()
    shutil.copytree(folder, target, copy_function=_link, dirs_exist_ok=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["torch-cpu"]:
        print(torch_cpu())
    elif sys.argv[1:2] == ["wheel"] and len(sys.argv) == 3:
        print(wheel(sys.argv[2]))
    else:
        sys.exit(__doc__)
