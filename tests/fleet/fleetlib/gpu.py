# Copyright: Contributors to the gpufleet.llm project
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A card on a node's PCI bus, and a driver that answers for it: the NVML stand-in, laid out as a driver's files are."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
from pathlib import Path

from . import images
from .host import CACHE, FLEET_DIR, lock, podman, say

SOURCE = FLEET_DIR / "nvml_stand_in"
# Where a driver's library lies: Debian's folder, which the root of every image searches, and the distribution's own.
LIBRARIES = {
    "rhel9-like": ("usr/lib/x86_64-linux-gnu", "usr/lib64"),
    "arch-like": ("usr/lib/x86_64-linux-gnu", "usr/lib"),
}
# A node mounts this over /proc/driver itself when it boots (images/common/…/gpufleet-stand-in.service): a container
# runtime does not mount anything over /proc.
PROC_DRIVER = "srv/gpufleet-stand-in/proc-driver"


def build() -> Path:
    """The stand-in's folder, one per profile in it; built in a container, once per version of its source."""
    digest = hashlib.sha256()
    for path in sorted(SOURCE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(str(path.relative_to(SOURCE)).encode() + b"\0" + path.read_bytes() + b"\0")
    folder = CACHE / "gpu" / digest.hexdigest()[:12]
    if not folder.exists():
        with lock("gpu"):
            if not folder.exists():
                say("building the NVML stand-in")
                partial = folder.with_name(folder.name + ".part")
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                mounts = [f"--volume={SOURCE}:/stand-in:ro", f"--volume={partial}:/out"]
                environment = "--env=PYTHONDONTWRITEBYTECODE=1"
                image = images.build("depot")
                podman("run", "--rm", "--network=none", *mounts, environment, image, "sh", "/stand-in/build.sh", "/out")
                os.replace(partial, folder)
    return folder


def mounts(profile: str, driver: bool, node_folder: Path) -> list[str]:
    """podman's arguments for a node with that card, and what its own bus looks like when no driver is bound."""
    source = build() / profile / "pci"
    if not driver:
        bare = node_folder / "pci"
        shutil.copytree(source, bare, symlinks=True, ignore=shutil.ignore_patterns("driver"))
        source = bare
    # for the node's own mount over /proc/driver, and for tests that put firmware's variables in place of the machine's
    return [f"--volume={source}:/sys/bus/pci/devices:ro", "--cap-add=SYS_ADMIN"]


def driver_files(profile: str, image: str) -> bytes:
    """A tar archive of what a driver puts on a node, to be unpacked at its root."""
    folder = build() / profile
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for place in LIBRARIES.get(image, ("usr/lib/x86_64-linux-gnu",)):
            for path in sorted((folder / "lib").iterdir()):
                archive.add(path, f"{place}/{path.name}")
        if (folder / "bin" / "nvidia-smi").exists():
            archive.add(folder / "bin" / "nvidia-smi", "usr/bin/nvidia-smi")
        archive.add(folder / "profile", "etc/gpufleet-nvml-profile")
        if (folder / "proc-driver").is_dir():
            archive.add(folder / "proc-driver", PROC_DRIVER)
    return buffer.getvalue()
