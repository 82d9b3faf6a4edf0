# Copyright: Contributors to the gpufleet.llm project
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The depot's package repositories: made in a container of the depot's image by depot/packages/build_packages.py."""

from __future__ import annotations

import json
from pathlib import Path

from . import images
from .host import FLEET_DIR, podman

WORKSHOP = FLEET_DIR / "depot" / "packages"


def inputs() -> list[Path]:
    """What the repositories depend on."""
    return sorted(path for path in WORKSHOP.iterdir() if path.is_file())


def stage(folder: Path) -> None:
    """Write `apt/`, `rpm/`, `pacman/` and `keys/` below folder."""
    mounts = [f"--volume={WORKSHOP}:/workshop:ro", f"--volume={folder}:/out"]
    argv = ["/usr/bin/python3", "-B", "/workshop/build_packages.py", "/out"]
    podman("run", "--rm", *mounts, images.build("depot"), *argv)


def fingerprints(keys: Path) -> dict[str, list[str]]:
    """Key file → its fingerprints."""
    return json.loads((keys / "fingerprints.json").read_text(encoding="utf-8"))
