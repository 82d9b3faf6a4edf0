# Copyright: Contributors to the gpufleet.llm project
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The machine that carries the fleet: where things lie, what it must have, and how podman is called on it."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLEET_DIR = Path(__file__).resolve().parent.parent
REPO_DIR = FLEET_DIR.parent.parent
CACHE = Path(os.environ.get("GPUFLEET_CACHE") or Path.home() / ".cache" / "gpufleet-llm")
FLEETS = CACHE / "fleets"
# All that the fleet keeps in the cache.
CACHE_ENTRIES = ("fleets", "roots", "build", "debs", "ca", "depot", "gpu", "containers.conf")
# The pinned mount namespace belongs to the running kernel, not to a cache that survives it.
NAMESPACE = Path("/run/gpufleet-llm")

# What has to be on PATH, and the Debian package that brings it.
TOOLS = {
    "podman": "podman",
    "runc": "runc",
    "debootstrap": "debootstrap",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "openssl": "openssl",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "tar": "tar",
    "git": "git",
    "iptables": "iptables",
}


class FleetError(Exception):
    """Something a person has to know: `str()` says what is wrong and what to do; `rc` is the exit status."""

    def __init__(self, message: str, rc: int = 1) -> None:
        super().__init__(message)
        self.rc = rc


def say(message: str) -> None:
    """Progress goes to stderr, so that stdout stays usable in `$(fleet inventory …)`."""
    print(f"fleet: {message}", file=sys.stderr, flush=True)


def run(
    argv: Sequence[str],
    *,
    check: bool = True,
    capture: bool = True,
    timeout: float | None = None,
    **kwargs: Any,
) -> subprocess.CompletedProcess[str]:
    """Run argv (text mode); on failure raise FleetError with the command and the end of what it said."""
    if capture:
        kwargs.setdefault("stdout", subprocess.PIPE)
        kwargs.setdefault("stderr", subprocess.PIPE)
    kwargs.setdefault("stdin", subprocess.DEVNULL)
    try:
        done = subprocess.run(list(argv), check=False, text=True, timeout=timeout, **kwargs)
    except FileNotFoundError as error:
        raise FleetError(f"{argv[0]} is not installed; `fleet doctor` says what this machine lacks", 2) from error
    except subprocess.TimeoutExpired as error:
        raise FleetError(f"no end after {timeout} s: {' '.join(argv)}") from error
    if check and done.returncode != 0:
        tail = ((done.stdout or "") + (done.stderr or "")).strip()[-3000:]
        raise FleetError(f"rc {done.returncode} from: {' '.join(argv)[:600]}\n{tail}")
    return done


def wait_for(what: str, probe: Callable[[], Any], seconds: float, interval: float = 0.15) -> Any:
    """Call probe until it answers something true; FleetError with its last failure after so many seconds."""
    deadline = time.monotonic() + seconds
    last = ""
    while True:
        try:
            answer = probe()
            if answer:
                return answer
        except FleetError as error:
            last = str(error)
        if time.monotonic() > deadline:
            raise FleetError(f"{what}: not within {seconds:.0f} s. {last}".strip())
        time.sleep(interval)


@contextmanager
def lock(name: str) -> Iterator[None]:
    """One builder at a time; the others wait and then find the result in the cache."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f".{name}.lock", "w", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another fleet command holds {name}; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def problems() -> list[str]:
    """What keeps a fleet from running here and cannot be mended by installing a package, in words."""
    found = []
    if not sys.platform.startswith("linux"):
        found.append(
            f"this is {sys.platform}, and the nodes are systemd containers: run it on Linux (a virtual machine will do)"
        )
        return found
    if os.geteuid() != 0:
        found.append("systemd containers with their own network need root: run it again with sudo")
    if os.uname().machine != "x86_64":
        found.append(f"the node images and fixtures are x86_64, this machine is {os.uname().machine}")
    free = shutil.disk_usage(_existing(CACHE)).free
    if free < 6 * 1024**3:
        found.append(
            f"{free / 1024**3:.1f} GiB free under {CACHE}, 6 GiB wanted: make room, or set GPUFLEET_CACHE to a larger "
            "disk"
        )
    return found


def missing_tools() -> dict[str, str]:
    """Commands that are not on PATH, each with its Debian package."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return {tool: package for tool, package in TOOLS.items() if not shutil.which(tool, path=path)}


def ensure_host(install: bool = True) -> None:
    """Make this machine able to carry a fleet, or say in words why it cannot (FleetError, rc 2)."""
    found = problems()
    missing = missing_tools()
    if missing and not found:
        if not shutil.which("apt-get"):
            found.append(
                "missing commands: " + ", ".join(sorted(missing)) + ". Install them with this distribution's package "
                "manager (they are only installed for you where there is apt)"
            )
        elif install:
            packages = sorted(set(missing.values()))
            # netavark is what podman's networks need; Debian only recommends it.
            packages += ["netavark"] if "podman" in packages else []
            say("installing " + " ".join(packages))
            env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            run(["apt-get", "update", "-q"], env=env)
            run(["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages], env=env)
            missing = missing_tools()
            if missing:
                found.append("still missing after apt-get install: " + ", ".join(sorted(missing)))
        else:
            found.append("missing commands: " + ", ".join(sorted(missing)) + " (apt-get install them)")
    if found:
        raise FleetError("a test fleet cannot run here:\n" + "\n".join(f"  - {line}" for line in found), 2)
    os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def _existing(path: Path) -> Path:
    while not os.path.exists(path):  # false, and no error, where this user may not look
        path = path.parent
    return path


def has_cgroup2() -> bool:
    """True where /sys/fs/cgroup is the unified hierarchy, which systemd in a container needs."""
    return run(["stat", "-fc", "%T", "/sys/fs/cgroup"]).stdout.strip() == "cgroup2fs"


def namespace_prefix() -> list[str]:
    """What goes before a podman command: nothing on a cgroup-v2 machine, else the way into a pinned namespace.

    A machine that mounts cgroup v1 and v2 side by side gets one mount namespace of its own in which only v2 is
    mounted. It is pinned to a file, because every later podman call has to see the mounts (root file systems, network
    namespaces) that the first one made.
    """
    if has_cgroup2():
        return []
    pin = NAMESPACE / "mnt"
    enter = ["nsenter", f"--mount={pin}", "--"]
    if pin.exists() and run([*enter, "stat", "-fc", "%T", "/sys/fs/cgroup"], check=False).stdout == "cgroup2fs\n":
        return enter
    with lock("namespace"):
        if pin.exists() and run([*enter, "true"], check=False).returncode == 0:
            return enter
        NAMESPACE.mkdir(exist_ok=True)
        if not os.path.ismount(NAMESPACE):
            run(["mount", "--bind", str(NAMESPACE), str(NAMESPACE)])
            run(["mount", "--make-private", str(NAMESPACE)])
        pin.touch()
        script = "umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup"
        run(["unshare", f"--mount={pin}", "--propagation", "private", "sh", "-c", script])
    return enter


def drop_namespace() -> None:
    """Undo what namespace_prefix left on the machine."""
    for path in (NAMESPACE / "mnt", NAMESPACE):
        run(["umount", "-l", str(path)], check=False)
    shutil.rmtree(NAMESPACE, ignore_errors=True)


INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")


def raise_limits() -> None:
    """Each systemd needs some inotify instances, and the kernel's 128 are root's on the whole machine: allow more.

    The value that was there comes back with the last fleet (restore_limits).
    """
    if int(INOTIFY.read_text(encoding="utf-8")) < 1024:
        NAMESPACE.mkdir(exist_ok=True)
        saved = NAMESPACE / "max_user_instances"
        if not saved.exists():
            saved.write_text(INOTIFY.read_text(encoding="utf-8"), encoding="utf-8")
        INOTIFY.write_text("1024\n", encoding="utf-8")


def restore_limits() -> None:
    """Undo raise_limits."""
    saved = NAMESPACE / "max_user_instances"
    if saved.exists():
        INOTIFY.write_text(saved.read_text(encoding="utf-8"), encoding="utf-8")
        saved.unlink()


def containers_conf() -> Path:
    """The podman configuration all calls share: limits this machine may set, and a runtime that runs systemd."""
    lines = [
        "[containers]",
        'default_ulimits = ["nofile=20000:20000", "nproc=8192:8192"]',
        "pids_limit = 0",
        "[engine]",
        'events_logger = "file"',
    ]
    if shutil.which("runc"):
        lines.append('runtime = "runc"')
    if not has_cgroup2():
        lines.append('cgroup_manager = "cgroupfs"')
    path = CACHE / "containers.conf"
    text = "\n".join(lines) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return path


_PODMAN: list[str] = []


def podman_argv(*args: str) -> list[str]:
    """The full command line of a podman call on this machine."""
    if not _PODMAN:
        _PODMAN.extend([*namespace_prefix(), "env", f"CONTAINERS_CONF={containers_conf()}", "podman"])
    return [*_PODMAN, *args]


def podman(*args: str, check: bool = True, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Call podman; see run()."""
    return run(podman_argv(*args), check=check, **kwargs)
