# Copyright: Contributors to the gpufleet.llm project
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The depot's fixtures in the shape of NVIDIA's repositories and runfiles: made by depot/nvidia/build_nvidia.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import images
from .host import FLEET_DIR, podman

WORKSHOP = FLEET_DIR / "depot" / "nvidia"
STAND_IN = FLEET_DIR / "nvml_stand_in" / "nvml_stand_in.c"


def inputs() -> list[Path]:
    """What the fixtures depend on."""
    return [*sorted(path for path in WORKSHOP.iterdir() if path.suffix == ".py"), STAND_IN]


def stage(folder: Path) -> None:
    """Write what developer.download.nvidia.com and us.download.nvidia.com have below folder."""
    mounts = [f"--volume={FLEET_DIR}:/fleet:ro", f"--volume={folder}:/out"]
    argv = ["/usr/bin/python3", "-B", "/fleet/depot/nvidia/build_nvidia.py", "/out"]
    podman("run", "--rm", *mounts, images.build("depot"), *argv)


def facts(folder: Path) -> dict[str, Any]:
    """{"fingerprint", "runfiles": {path: {"sha256", "size"}}, "versions"}."""
    return json.loads((folder / "index.json").read_text(encoding="utf-8"))
