# Copyright: Contributors to the gpufleet.llm project
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runfiles by makeself, with NVIDIA's changes to its header: options that it does not know go to the installer inside."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import content
from deb import Tree

HERE = Path(__file__).resolve().parent
# 525.85.05 is the book's; 580 in two versions, to go up and down.
VERSIONS = ("525.85.05", "580.105.08", "580.126.20")
# The toolkit of the book, and the update before it; each with the driver in its name.
CUDA = {"12.0.0": "525.60.13", "12.0.1": "525.85.12"}
MAKESELF = Path("/tmp/makeself")


def run(*argv: str, cwd: Path | None = None) -> str:
    """Run argv; its output, or an exception with what it said."""
    done = subprocess.run(argv, cwd=cwd, capture_output=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"rc {done.returncode} from {' '.join(argv)}\n{(done.stdout + done.stderr).decode()[-3000:]}")
    return done.stdout.decode()


def makeself() -> tuple[Path, Path]:
    """Debian's makeself, and its header with NVIDIA's handling of options."""
    if not MAKESELF.exists():
        MAKESELF.mkdir()
        run("apt-get", "update", "-q")
        run("apt-get", "download", "-q", "makeself", cwd=MAKESELF)
        run("dpkg-deb", "--extract", str(next(MAKESELF.glob("*.deb"))), str(MAKESELF / "root"))
    share = MAKESELF / "root/usr/share/makeself"
    header = (share / "makeself-header.sh").read_text(encoding="utf-8")
    unknown = re.compile(r"(?m)^ {4}-\*\)\n.*?;;\n", re.S)
    if not unknown.search(header):
        raise SystemExit("makeself's header has changed: no case for unknown options in it")
    more = "    -x | --extract-only)\n\tnoexec=y\n\tkeep=y\n\ttargetdir=./\\$(basename \\$0 .run)\n\tmkdir -p \\$targetdir\n\tshift\n\t;;\n"
    header = unknown.sub(lambda _found: more + "    -*)\n\tbreak\n\t;;\n", header, count=1)
    changed = MAKESELF / "header.sh"
    changed.write_text(header, encoding="utf-8")
    return MAKESELF / "root/usr/bin/makeself", changed


def unpack(tree: Tree, root: Path) -> None:
    """Write a tree."""
    for path, file in tree.items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if file.link:
            place.symlink_to(file.link)
        else:
            place.write_bytes(file.data)
            place.chmod(file.mode)


def archive(folder: Path, target: Path, label: str, start: str) -> None:
    """Make the runfile and the sum that NVIDIA publishes beside it."""
    tool, header = makeself()
    target.parent.mkdir(parents=True, exist_ok=True)
    run(
        "sh",
        str(tool),
        "--nox11",
        "--nowait",
        "--sha256",
        "--header",
        str(header),
        str(folder),
        str(target),
        label,
        start,
    )
    target.chmod(0o644)
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    target.with_name(target.name + ".sha256sum").write_text(f"{digest}  {target.name}\n")


def driver(out: Path, work: Path, version: str, library: bytes, modules: dict[str, bytes]) -> None:
    """NVIDIA-Linux-x86_64-VERSION.run, at both places where NVIDIA has it."""
    folder = work / version
    unpack(content.libraries(version, "lib", library) | content.smi(version) | content.persistenced(version), folder)
    shutil.rmtree(folder / "usr/lib")  # a runfile brings no unit
    for flavour, source in modules.items():
        place = folder / ("kernel" if flavour == "proprietary" else "kernel-open")
        place.mkdir()
        (place / "nvidia.ko").write_bytes(source)
    shutil.copyfile(HERE / "nvidia_installer_stand_in.py", folder / "nvidia-installer")
    (folder / "nvidia-installer").chmod(0o755)
    (folder / "fixture.json").write_text(json.dumps({"version": version}) + "\n")
    name = f"NVIDIA-Linux-x86_64-{version}.run"
    label = f"NVIDIA Accelerated Graphics Driver for Linux-x86_64 {version}"
    archive(folder, out / "tesla" / version / name, label, "./nvidia-installer")
    for suffix in ("", ".sha256sum"):
        other = out / "XFree86/Linux-x86_64" / version / (name + suffix)
        other.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(out / "tesla" / version / (name + suffix), other)


def toolkit(out: Path, work: Path, release: str) -> None:
    """cuda_RELEASE_DRIVER_linux.run."""
    with_driver = CUDA[release]
    folder = work / f"cuda-{release}"
    unpack(content.toolkit(release, "builds/toolkit"), folder)
    shutil.copyfile(HERE / "cuda_installer_stand_in.py", folder / "cuda-installer")
    (folder / "cuda-installer").chmod(0o755)
    (folder / "fixture.json").write_text(json.dumps({"release": release, "driver": with_driver}) + "\n")
    target = out / "compute/cuda" / release / "local_installers" / f"cuda_{release}_{with_driver}_linux.run"
    archive(folder, target, "CUDA Toolkit and driver", "./cuda-installer")


def build(out: Path, work: Path, library: bytes, modules: dict[str, dict[str, bytes]]) -> None:
    """Write all runfiles below out."""
    for version in VERSIONS:
        driver(out, work, version, library, modules[version])
    for release in CUDA:
        toolkit(out, work, release)
