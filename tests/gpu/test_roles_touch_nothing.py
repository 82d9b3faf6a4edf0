# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles on a machine whose real GPU works: they find the driver, and touch nothing.

nvidia_driver, cuda (with no toolkit wanted) and the torch check of llm_model run on this very machine, in check mode first.
Only when check mode finds nothing to change do they run in earnest: a fault in a role must not cost anybody a driver.
Root is needed, since the roles are for root. GPUFLEET_TORCH_PYTHON names a Python with a PyTorch for CUDA.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
# Trees in which a driver, its modules, repositories, holds and services lie.
TREES = (
    "/etc",
    "/usr/local",
    "/usr/src",
    "/opt",
    "/lib/modules",
    "/usr/lib/systemd",
    "/var/lib/dkms",
    "/usr/share/keyrings",
)
# Written by a running system whatever anybody does.
LIVING = re.compile(
    r"^/etc/((mtab|resolv\.conf|hosts|hostname|adjtime|ld\.so\.cache)$|containers/)|/__pycache__/|/\.ansible"
)
OURS = re.compile(r"nvidia|cuda|nouveau|libnv", re.IGNORECASE)


@pytest.fixture(scope="module")
def rooted(working_driver: str) -> str:
    """nvidia-smi of a driver that works, seen by root."""
    if os.geteuid() != 0:
        pytest.skip("the roles are for root: run pytest tests/gpu as root")
    return working_driver


def said(*argv: str) -> list[str]:
    """Lines of a program's output, sorted; nothing where there is no such program."""
    if shutil.which(argv[0]) is None:
        return []
    return sorted(subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines())


def text_of(path: str) -> str:
    """A file's text, or nothing."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def files() -> dict[str, tuple[int, int, int, str]]:
    """Mode, size, time of change and target of every file in the trees that the roles could touch."""
    found = {}
    for tree in TREES:
        for folder, names, plain in os.walk(tree):
            for name in [*plain, *(one for one in names if os.path.islink(os.path.join(folder, one)))]:
                path = os.path.join(folder, name)
                if LIVING.search(path) or path.startswith(str(ROOT)):
                    continue
                try:
                    status = os.lstat(path)
                    target = os.readlink(path) if os.path.islink(path) else ""
                except OSError:
                    continue
                found[path] = (status.st_mode, status.st_size, status.st_mtime_ns, target)
    return found


def evidence() -> dict[str, Any]:
    """Everything that the roles could have changed: packages, holds, modules, libraries, units, files, and the boot."""
    return {
        "packages": [
            *said("dpkg-query", "-W", "-f", "${Package} ${Version} ${db:Status-Abbrev}\n"),
            *said("rpm", "-qa"),
            *said("pacman", "-Q"),
        ],
        "holds": [*said("apt-mark", "showhold"), *said("dnf", "-q", "versionlock", "list")],
        # Names only: how often a module is used changes with whoever computes.
        "modules": sorted(
            line.split()[0] for line in text_of("/proc/modules").splitlines() if OURS.search(line.split()[0])
        ),
        "module version": text_of("/sys/module/nvidia/version") + text_of("/proc/driver/nvidia/version"),
        "libraries": [line for line in said("ldconfig", "-p") if OURS.search(line)],
        "units": [line for line in said("systemctl", "list-unit-files", "--no-legend", "--plain") if OURS.search(line)],
        "boot": text_of("/proc/sys/kernel/random/boot_id"),
        "command line": text_of("/proc/cmdline"),
        "files": files(),
    }


def differing(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What is not as it was, in words."""
    found = [
        f"{what}: {before[what]!r} -> {after[what]!r}"
        for what in before
        if what != "files" and before[what] != after[what]
    ]
    paths = {
        path for path in {**before["files"], **after["files"]} if before["files"].get(path) != after["files"].get(path)
    }
    return found + sorted(paths)


def play(folder: Path, task: dict[str, Any], *arguments: str, **variables: Any) -> tuple[int, Any]:
    """Run one task on this machine; how many tasks changed something, and the variable ``told`` afterwards."""
    book = [{
        "name": "On this machine", "hosts": "localhost", "connection": "local", "gather_facts": False, "become": False,
        "vars": {"ansible_python_interpreter": sys.executable, **variables},
        "tasks": [
            {"name": "The role under test", **task},
            {"name": "Say what came of it", "ansible.builtin.debug": {"msg": "TOLD {{ told | to_json }}"}},
        ],
    }]  # fmt: skip
    path = folder / "play.yml"
    path.write_text(yaml.safe_dump(book, sort_keys=False), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", str(path), "-i", "localhost,", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
             "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default", "ANSIBLE_NOCOLOR": "1",
             "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".collections")},
    )  # fmt: skip
    stats = re.search(r"^localhost\s*: ok=\d+\s+changed=(\d+)\s+unreachable=0\s+failed=0", done.stdout, re.MULTILINE)
    assert done.returncode == 0 and stats, done.stdout[-6000:] + done.stderr[-2000:]
    message = re.search(r'^ +"msg": ("TOLD .*")$', done.stdout, re.MULTILINE)
    assert message, done.stdout[-6000:]
    return int(stats.group(1)), json.loads(json.loads(message.group(1)).removeprefix("TOLD "))


ROLES = {
    "nvidia_driver": "{{ nvidia_driver_result }}",
    "cuda": "{{ cuda_result }}",
}


@pytest.mark.parametrize("role", ROLES)
def test_a_role_finds_a_working_driver_and_touches_nothing(role: str, rooted: str, tmp_path: Path) -> None:
    include = {"ansible.builtin.include_role": {"name": f"gpufleet.llm.{role}"}}
    before = evidence()
    version = next(iter(said(rooted, "--query-gpu=driver_version", "--format=csv,noheader")), "")
    assert version

    changed, told = play(tmp_path, include, "--check", "--diff", told=ROLES[role])
    assert differing(before, evidence()) == [], "check mode changed the machine"
    assert changed == 0, f"check mode would change something, so {role} is not run in earnest: {told}"

    changed, told = play(tmp_path, include, told=ROLES[role])
    assert changed == 0
    assert told["changed"] is False and told["ok"] is True, told
    assert differing(before, evidence()) == []
    if role == "nvidia_driver":
        assert version in json.dumps(told), f"the role does not know of driver {version}: {told}"
    assert said(rooted, "--query-gpu=driver_version", "--format=csv,noheader")[0] == version


@pytest.fixture
def prefix(rooted: str) -> str:
    """An environment whose Python has a PyTorch for CUDA."""
    path = os.environ.get("GPUFLEET_TORCH_PYTHON", sys.executable)
    code = "import torch.version as v; print(v.cuda or '')"
    done = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0 or not done.stdout.strip():
        pytest.skip(f"{path} has no PyTorch for CUDA; set GPUFLEET_TORCH_PYTHON")
    return str(Path(path).parent.parent)


def test_the_torch_check_of_llm_model_computes_on_the_card_and_touches_nothing(
    rooted: str, prefix: str, tmp_path: Path
) -> None:
    """The role's own task file, with an environment that is there and no model to ask."""
    include = {
        "ansible.builtin.include_role": {"name": "gpufleet.llm.llm_model", "tasks_from": "smoke", "public": True}
    }
    work = {"torch": [{"name": "given", "prefix": prefix, "device": "cuda"}], "smoke": []}
    before = evidence()
    for mode in (["--check"], []):
        told = "{{ {'torch': __llm_model_torch.results, 'broken': __llm_model_broken} }}"
        changed, found = play(tmp_path, include, *mode, told=told, __llm_model_work=work)
        assert changed == 0
        (result,) = found["torch"]
        assert result["verdict"] == "ok", (result["cause"], result["explanation"])
        assert result["computation"]["device"] == "cuda"
        assert found["broken"] == []
        assert differing(before, evidence()) == []
