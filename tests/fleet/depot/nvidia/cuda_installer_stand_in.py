#!/usr/bin/env python3
# Copyright: Contributors to the gpufleet.llm project
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""STANDS IN for cuda-installer of a CUDA runfile: its options, log, exit status and files; the toolkit is a fixture.

`/etc/gpufleet-fixture/cuda-fails` on a node lets it fail; `cuda-killed-halfway` kills it in the middle.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIXTURE = Path("/etc/gpufleet-fixture")
FLAGS = {
    "silent", "driver", "toolkit", "override", "override-driver-check", "no-opengl-libs", "no-man-page", "no-drm",
    "kernelobjects", "help", "uninstall", "run-nvidia-xconfig", "librarypath-only",
}  # fmt: skip
VALUES = {
    "toolkitpath",
    "defaultroot",
    "installpath",
    "extract",
    "tmpdir",
    "librarypath",
    "kernel-source-path",
    "kernel-name",
    "m",
}


def say(log: Path, level: str, text: str) -> None:
    """A line of the log."""
    with log.open("a") as stream:
        stream.write(f"[{level}]: {text}\n")


def main(argv: list[str]) -> int:
    """Exit status."""
    if Path(sys.argv[0]).name == "cuda-uninstaller":
        return uninstall(argv)
    log = Path("/var/log/cuda-installer.log" if os.geteuid() == 0 else "/tmp/cuda-installer.log")
    given = {}
    for word in argv:
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or (name not in VALUES if equals else name not in FLAGS):
            print(f"Unrecognized option: {word}. See --help for more info.", file=sys.stderr)
            return 1
        given[name] = value if equals else True
    log.write_text("")
    say(log, "INFO", f"Driver not installed.\n[INFO]: Checking compiler version...\n[INFO]: started {time.ctime()}")
    told = json.loads((HERE / "fixture.json").read_text())
    minor = ".".join(told["release"].split(".")[:2])
    if not given.get("silent"):
        say(log, "ERROR", "The fixture has no user interface: use --silent.")
        return 1
    if not (given.get("toolkit") or given.get("driver")):
        print("Must specify at least one of --toolkit or --driver in silent mode.", file=sys.stderr)
        return 1
    if not shutil.which("gcc") and not given.get("override"):
        say(
            log,
            "ERROR",
            "Failed to verify gcc version. See log at /var/log/cuda-installer.log for details.\n[ERROR]: Missing gcc. gcc is required to continue.",
        )
        return 255
    if given.get("driver"):
        say(
            log,
            "ERROR",
            f"Install of driver component failed. Consult the driver log at /var/log/nvidia-installer.log for more details ({told['driver']}).",
        )
        return 1
    if (FIXTURE / "cuda-fails").exists():
        say(log, "ERROR", "Install of toolkit component failed: No space left on device")
        return 1
    target = Path(given.get("toolkitpath") or given.get("installpath") or f"/usr/local/cuda-{minor}")
    for number, path in enumerate(sorted((HERE / "builds/toolkit").rglob("*"))):
        place = target / path.relative_to(HERE / "builds/toolkit")
        if path.is_symlink() or path.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.is_symlink() or place.exists():
                place.unlink()
            if path.is_symlink():
                place.symlink_to(os.readlink(path))
            else:
                shutil.copy2(path, place)
        if number == 3 and (FIXTURE / "cuda-killed-halfway").exists():
            os.kill(os.getpid(), signal.SIGKILL)
    shutil.copy2(__file__, target / "bin/cuda-uninstaller")
    # The runfile, unlike packages, makes the link itself, and a file for the loader.
    if not given.get("defaultroot"):
        link = target.parent / "cuda"
        if link.is_symlink() or not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(target)
    conf = Path(f"/etc/ld.so.conf.d/cuda-{minor.replace('.', '-')}.conf")
    conf.parent.mkdir(exist_ok=True)
    conf.write_text(f"{target}/lib64\n")
    say(log, "INFO", "Finished with code: 0")
    return 0


def uninstall(argv: list[str]) -> int:
    """bin/cuda-uninstaller --silent."""
    if argv != ["--silent"]:
        print("usage: cuda-uninstaller --silent", file=sys.stderr)
        return 1
    prefix = HERE.parent
    link = prefix.parent / "cuda"
    if link.is_symlink() and os.readlink(link).rstrip("/") == str(prefix):
        link.unlink()
    minor = prefix.name.rpartition("-")[2]
    Path(f"/etc/ld.so.conf.d/cuda-{minor.replace('.', '-')}.conf").unlink(missing_ok=True)
    shutil.rmtree(prefix)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
