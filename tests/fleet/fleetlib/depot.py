# Copyright: Contributors to the gpufleet.llm project
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The depot's contents, staged once into the cache, and its configuration, log and faults."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from . import pki, stage_conda, stage_models, stage_nvidia, stage_packages, stage_python
from .host import CACHE, FLEET_DIR, FleetError, lock, podman, say, wait_for

SERVER = FLEET_DIR / "depot"
STORE = CACHE / "depot"
FAULT_KEYS = {"id", "path", "times", "status", "drop", "cut_after_bytes", "corrupt", "bytes_per_second"}


class Part(NamedTuple):
    """One part of the depot's contents: who writes it, what it depends on, and which folders of it are served."""

    stage: Callable[[Path], None]
    inputs: Callable[[], list[Path]]
    folders: dict[str, str]  # area of the server → folder of this part


PARTS = {
    "python": Part(stage_python.stage, stage_python.inputs, {"pypi": "."}),
    "models": Part(stage_models.stage, stage_models.inputs, {"models": "models", "git": "git"}),
    "conda": Part(stage_conda.stage, stage_conda.inputs, {"conda": "conda", "installers": "installers"}),
    "packages": Part(
        stage_packages.stage,
        stage_packages.inputs,
        {"apt": "apt", "rpm": "rpm", "pacman": "pacman", "keys": "keys"},
    ),
    "nvidia": Part(stage_nvidia.stage, stage_nvidia.inputs, {"nvidia": "."}),
}


def part_folder(name: str) -> Path:
    """Where a part lies, or will lie, as its inputs are now."""
    digest = hashlib.sha256(name.encode())
    for path in PARTS[name].inputs():
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return STORE / f"{name}-{digest.hexdigest()[:12]}"


def build_contents() -> dict[str, Path]:
    """Stage what is missing; area of the server → folder with its contents."""
    roots: dict[str, Path] = {}
    for name, part in PARTS.items():
        folder = part_folder(name)
        if not folder.exists():
            with lock(f"depot-{name}"):
                if not folder.exists():
                    _stage(name, part, folder)
        roots |= {area: (folder / inside).resolve() for area, inside in part.folders.items()}
    return roots


def _stage(name: str, part: Part, folder: Path) -> None:
    say(f"staging the depot's {name}")
    partial = folder.with_name(folder.name + ".part")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    part.stage(partial)
    os.replace(partial, folder)
    # Older contents may still be mounted in a depot that is up.
    if not podman("ps", "--quiet", "--filter", "label=gpufleet.node=depot").stdout.strip():
        for old in STORE.glob(f"{name}-*"):
            if old != folder:
                shutil.rmtree(old)


def facts(roots: dict[str, Path]) -> dict[str, Any]:
    """Inventory variables that only these contents can tell.

    `fleet_depot`: {"installers": {file: {"sha256", "size", "conda"}}, "keys": {file: [fingerprint]}, "git": {repository:
    [commits, oldest first]}, "models": {repository: revision}, "nvidia": {"fingerprint", "runfiles": {path: {"sha256",
    "size"}}, "versions"}}. The signing key of the nginx repositories is made with
    them, so its fingerprint is handed to the role by its own variable, as any site with its own repository does.
    """
    keys = stage_packages.fingerprints(roots["keys"])
    nvidia = stage_nvidia.facts(roots["nvidia"])
    models = json.loads((roots["models"] / "index.json").read_text(encoding="utf-8"))
    return {
        "fleet_depot": {
            "installers": json.loads((roots["installers"] / "index.json").read_text(encoding="utf-8")),
            "keys": keys,
            "git": json.loads((roots["git"] / "index.json").read_text(encoding="utf-8")),
            "models": {name: entry["revision"] for name, entry in models.items()},
            "nvidia": nvidia,
        },
        "nginx_key_fingerprints": keys["nginx_signing.key"],
        "nvidia_driver_repo_key_fingerprints": [nvidia["fingerprint"]],
    }


def write_config(path: Path, roots: dict[str, str], state: str, port: int, names: list[str], listen: str) -> None:
    """Write the server's certificate and configuration below the folder of path."""
    certificate, key = pki.server_certificate(path.parent, names)
    config = {
        "listen": listen,
        "port": port,
        "base": f"https://{names[0]}" + ("" if port == 443 else f":{port}"),
        "certificate": certificate.name,
        "key": key.name,
        "state": state,
        "roots": roots,
    }
    path.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def check_fault(text: str) -> list[dict[str, Any]]:
    """The faults in a JSON object or list of objects, checked; FleetError says what is wrong."""
    try:
        given = json.loads(text)
    except ValueError as error:
        raise FleetError(f"not JSON: {error}", 2) from error
    faults = given if isinstance(given, list) else [given]
    for fault in faults:
        if not isinstance(fault, dict) or "path" not in fault or set(fault) - FAULT_KEYS:
            raise FleetError(f"a fault has a path and some of {', '.join(sorted(FAULT_KEYS))}; this is {fault!r}", 2)
        if len(fault.keys() - {"id", "path", "times"}) == 0:
            raise FleetError(
                "a fault says what goes wrong: status, drop, cut_after_bytes, corrupt or bytes_per_second", 2
            )
        try:
            re.compile(fault["path"])
        except re.error as error:
            raise FleetError(f"{fault['path']!r} is not a regular expression: {error}", 2) from error
        fault.setdefault("id", uuid.uuid4().hex[:8])
    return faults


def plan_faults(state: Path, faults: list[dict[str, Any]], keep: bool = True) -> None:
    """Add faults to the plan of a running depot, or replace it."""
    path = state / "faults.json"
    old = json.loads(path.read_text(encoding="utf-8")) if keep and path.exists() else []
    part = path.with_suffix(".part")
    part.write_text(json.dumps(old + faults) + "\n", encoding="utf-8")
    os.replace(part, path)


def log_lines(state: Path) -> str:
    """The access log so far."""
    path = state / "access.jsonl"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def run_local(port: int) -> int:
    """Serve on this machine's loopback until interrupted (port 0: any free one)."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise FleetError(
                f"port {port} of the loopback cannot be had ({error.strerror}): choose another --port", 2
            ) from error
        port = probe.getsockname()[1]
    roots = {area: str(folder) for area, folder in build_contents().items()}
    folder = STORE / f"local-{port}"
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / "state"
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir()
    config = folder / "depot.json"
    write_config(config, roots, str(state), port, ["localhost", "127.0.0.1", pki.DEPOT_HOST], "127.0.0.1")
    # A terminated command takes its server with it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    argv = [sys.executable, "-B", str(SERVER / "server.py"), str(config)]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as server:
        try:
            wait_for("the depot answers", lambda: server.poll() is not None or answers("localhost", port), 30)
            if server.poll() is None:
                log = state / "access.jsonl"
                print(f"base: https://localhost:{port}\nca: {pki.ca_certificate()}\nlog: {log}", flush=True)
            return server.wait()
        finally:
            server.terminate()
            shutil.rmtree(folder)


def answers(host: str, port: int = 443) -> bool:
    """True if a depot answers there; FleetError with the reason if not."""
    context = ssl.create_default_context(cafile=str(pki.ca_certificate()))
    try:
        with urllib.request.urlopen(f"https://{host}:{port}/healthz", context=context, timeout=5) as answer:
            return answer.status == 200
    except OSError as error:
        raise FleetError(str(error)) from error
