# Copyright: Contributors to the gpufleet.llm project
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The depot's Python index: the wheels that hash-locked requirements name, fetched by pip as this machine has it set up."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

from .host import CACHE, FLEET_DIR, REPO_DIR, FleetError, run, say

PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "linux_x86_64")
MIRRORS = REPO_DIR / "plugins" / "plugin_utils" / "data" / "mirrors.yml"


def torch_cpu_index() -> str:
    """Where the build of torch that needs no card lies: it is not in the general index. Read from the mirror table."""
    match = re.search(r"(?ms)^upstream:.*?^  pytorch:\s+index_url:\s*(\S+)", MIRRORS.read_text(encoding="utf-8"))
    return f"{match[1]}/cpu" if match else ""


def locks() -> list[tuple[Path, tuple[str, ...]]]:
    """The lock files whose wheels the depot offers, each with the Pythons that install it on a node.

    Locks with CUDA wheels are left out: gigabytes that no node of a test fleet can use.
    """
    found: list[tuple[Path, tuple[str, ...]]] = []
    for path in sorted((REPO_DIR / "roles" / "llm_model").rglob("*.lock")):
        text = path.read_text(encoding="utf-8")
        if re.search(r"(?m)^nvidia-", text) or re.search(r"(?m)^torch==[^+\s]+(\+cu\d+)?\s", text):
            continue
        found.append((path, ("3.11",) if re.search(r"(?m)^torch==", text) else ("3.11", "3.13")))
    found.append((FLEET_DIR / "depot" / "conda.lock", ("3.11",)))
    found.append((FLEET_DIR / "depot" / "extra.lock", ("3.11",)))
    return found


def inputs() -> list[Path]:
    """What the index depends on."""
    return [path for path, _pythons in locks()] + [Path(__file__)]


def pip_argv() -> list[str]:
    """A pip to download with: this Python's, another's on PATH, or one in an environment made for it."""
    for python in (sys.executable, "/usr/bin/python3", "python3.11", str(REPO_DIR / ".venv/bin/python")):
        try:
            if run([python, "-m", "pip", "--version"], check=False).returncode == 0:
                return [python, "-m", "pip"]
        except FleetError:
            continue
    own = CACHE / "depot" / "pip"
    if run([sys.executable, "-m", "venv", str(own)], check=False).returncode != 0:
        raise FleetError("no pip found: install python3-pip (or python3-venv), the depot's index is filled with it", 2)
    return [str(own / "bin/python"), "-m", "pip"]


def download(lock: Path, python: str, folder: Path) -> None:
    """Fetch the wheels of a lock for one Python into folder."""
    text = lock.read_text(encoding="utf-8")
    argv = [
        *pip_argv(),
        "download",
        "--quiet",
        "--require-hashes",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(folder),
    ]
    argv += ["--python-version", python, "--implementation", "cp"]
    argv += [flag for platform in PLATFORMS for flag in ("--platform", platform)]
    done = run([*argv, "--requirement", str(lock)], check=False)
    if done.returncode != 0 and "torch==" in text:
        done = run([*argv, "--extra-index-url", torch_cpu_index(), "--requirement", str(lock)], check=False)
    if done.returncode != 0:
        raise FleetError(f"pip cannot fetch the wheels of {lock}:\n{done.stderr.strip()[-2000:]}")


def describe(wheel: Path) -> dict[str, str]:
    """The index entry of a wheel; its METADATA is written beside it (PEP 658)."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        metadata = archive.read(name)
    Path(f"{wheel}.metadata").write_bytes(metadata)
    requires = re.search(r"(?mi)^Requires-Python:\s*(.+?)\s*$", metadata.decode(errors="replace"))
    return {
        "file": wheel.name,
        "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "requires_python": requires[1] if requires else "",
        "metadata_sha256": hashlib.sha256(metadata).hexdigest(),
    }


def stage(folder: Path) -> None:
    """Write `files/` and `index.json` (project → entries) below folder."""
    files = folder / "files"
    files.mkdir(parents=True)
    for lock, pythons in locks():
        for python in pythons:
            say(f"wheels of {lock.parent.name}/{lock.name} for Python {python}")
            download(lock, python, files)
    index: dict[str, list[dict[str, Any]]] = {}
    for wheel in sorted(files.glob("*.whl")):
        project = re.sub(r"[-_.]+", "-", wheel.name.split("-")[0]).lower()
        index.setdefault(project, []).append(describe(wheel))
    (folder / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
