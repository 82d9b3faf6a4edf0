#!/usr/bin/env python3
# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# ruff: noqa: S108
"""One line per file of this machine and per running service, so that two snapshots can be compared."""

from __future__ import annotations

import os
import subprocess

# What changes by itself, or by somebody logging in
VOLATILE = (
    "/dev", "/home", "/proc", "/root/.ansible", "/run", "/sys", "/tmp", "/var/lib/sudo",
    "/var/lib/systemd", "/var/log", "/var/tmp",
)  # fmt: skip
# SQLite's index of its log, and its lock: whoever runs `rpm -qa` as root touches it. The database itself counts.
LOCKS = ("/var/lib/rpm/rpmdb.sqlite-shm",)


def walk(top: str) -> None:
    """Print everything below ``top`` that lies on the same file system."""
    device = os.lstat(top).st_dev
    for folder, folders, files in os.walk(top):
        folders[:] = sorted(
            name
            for name in folders
            if name != "__pycache__"
            and os.path.join(folder, name) not in VOLATILE
            and os.lstat(os.path.join(folder, name)).st_dev == device
        )
        for name in sorted(files + folders):
            path = os.path.join(folder, name)
            if path in LOCKS:
                continue
            info = os.lstat(path)
            # a folder's own time moves when a lock file comes and goes; its entries are what counts
            stamp = "" if name in folders else f" {info.st_size} {info.st_mtime_ns}"
            print(f"{path} {info.st_mode:o} {info.st_uid} {info.st_gid}{stamp}")


walk("/")
units = subprocess.run(
    ["systemctl", "list-units", "--type=service", "--state=running", "--plain", "--no-legend"],
    check=False, capture_output=True, text=True,
)  # fmt: skip
for line in sorted(units.stdout.splitlines()):
    name = line.split()[0]
    if not name.startswith(("user@", "systemd-", "session-")):
        print(f"service {name}")
