# SPDX-License-Identifier: GPL-3.0-or-later
"""The role nvidia_driver on a machine with a kernel of its own: nouveau gone after a real reboot, a real initramfs, a real
module built by DKMS and loaded. A virtual machine under software emulation: slow, so only GPUFLEET_NIGHTLY=1 runs it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import NIGHTLY, PLAYBOOKS, ROOT, Fleet, Play, parse_stats

sys.path.insert(0, str(Path(__file__).resolve().parent / "vm"))

import machine

pytestmark = [
    pytest.mark.skipif(
        not NIGHTLY, reason="a virtual machine under emulation takes half an hour: GPUFLEET_NIGHTLY=1 runs it"
    ),
    pytest.mark.skipif(bool(machine.missing()), reason=f"not installed here: {', '.join(machine.missing())}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]
VERSION = "580.126.20"
WISHES: dict[str, Any] = {
    "nvidia_driver_mirror_profile": "depot",
    "nvidia_driver_method": "nvidia_repo",
    "nvidia_driver_version": VERSION,
    "nvidia_driver_reboot": "auto",
}


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[machine.Machine]:
    booted = machine.Machine(machine.build(), tmp_path_factory.mktemp("vm"))
    with machine.depot():
        try:
            booted.start()
            yield booted
        finally:
            booted.stop()


def key() -> str:
    """The fingerprint of the depot's fixture repository."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from fleetlib import depot

    return str(json.loads((depot.build_contents()["nvidia"] / "index.json").read_text())["fingerprint"])


def drive(vm: machine.Machine, playbook: str = "", **wishes: Any) -> Play:
    """Run the role in the machine, or a playbook that does."""
    variables = {**WISHES, "nvidia_driver_repo_key_fingerprints": [key()], "role": "nvidia_driver", **wishes}
    path = ROOT / playbook if playbook else PLAYBOOKS / "role.yml"
    done = subprocess.run(
        ["ansible-playbook", str(path), "-i", str(vm.inventory()), "-e", json.dumps(variables)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=Fleet.environment(),
        stdin=subprocess.DEVNULL,
        timeout=3600,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return Play(done.returncode, done.stdout + done.stderr, parse_stats(done.stdout))


def boot_id(vm: machine.Machine) -> str:
    """Another one after every boot of the kernel."""
    return vm.sh("cat /proc/sys/kernel/random/boot_id")


def initramfs_has(vm: machine.Machine, name: str) -> bool:
    """Whether the initramfs that the bootloader takes has a file."""
    return vm.sh(f'lsinitramfs "$(readlink -f /initrd.img)" | grep -c "{name}"; true') != "0"


def test_before(vm: machine.Machine) -> None:
    assert vm.sh("test -d /sys/module/nouveau && echo loaded") == "loaded"
    assert not initramfs_has(vm, "gpufleet-nouveau.conf")
    assert vm.sh("cat /sys/bus/pci/devices/*/vendor | sort -u") == "0x10de"


def test_the_role_brings_the_driver_and_reboots_once(vm: machine.Machine) -> None:
    before, kernels = boot_id(vm), vm.sh("ls /boot/vmlinuz-*")
    play = drive(vm)
    after = boot_id(vm)
    assert after != before, str(play)
    # the kernel is the same, nouveau is gone from it, and the initramfs knows why
    assert vm.sh("ls /boot/vmlinuz-*") == kernels
    assert vm.sh("test -d /sys/module/nouveau || echo gone") == "gone"
    assert initramfs_has(vm, "gpufleet-nouveau.conf")
    # built by DKMS for this kernel
    assert "installed" in vm.sh(f"dkms status -m nvidia -v {VERSION} -k $(uname -r)")
    assert vm.sh("modinfo -F version nvidia") == VERSION
    assert vm.sh("modinfo -F vermagic nvidia").startswith(vm.sh("uname -r"))


def test_the_module_is_loaded_and_a_second_run_leaves_all_alone(vm: machine.Machine) -> None:
    drive(vm)
    assert vm.sh("cat /sys/module/nvidia/version") == VERSION
    assert VERSION in vm.sh("cat /proc/driver/nvidia/version")
    before = boot_id(vm)
    again = drive(vm)
    assert again.changed("vm") == 0, str(again)
    assert boot_id(vm) == before


def test_the_rolling_upgrade_exchanges_it_without_a_reboot(vm: machine.Machine) -> None:
    """playbooks/upgrade_driver.yml with the role itself: drained with the old module, resumed with the new one."""
    before, old, new = boot_id(vm), VERSION, "580.105.08"
    note = "echo {} $(nvidia-smi --query-gpu=driver_version --format=csv,noheader) >> /var/lib/evidence"
    upgrade = {
        "nvidia_driver_version": new,
        "gpufleet_drain_command": note.format("drain"),
        "gpufleet_resume_command": note.format("resume"),
    }
    done = drive(vm, "playbooks/upgrade_driver.yml", **upgrade)
    assert "upgraded: vm" in done.output, str(done)
    assert vm.sh("cat /sys/module/nvidia/version") == new
    assert vm.sh("cat /var/lib/evidence").splitlines() == [f"drain {old}", f"resume {new}"]
    assert boot_id(vm) == before
    again = drive(vm, "playbooks/upgrade_driver.yml", **upgrade)
    assert "right already: vm" in again.output and again.changed("vm") == 0, str(again)


def test_removal_gives_nouveau_back(vm: machine.Machine) -> None:
    drive(vm, nvidia_driver_state="absent", nvidia_driver_nouveau_back=True)
    assert vm.sh("test -d /sys/module/nvidia || echo unloaded") == "unloaded"
    assert not initramfs_has(vm, "gpufleet-nouveau.conf")
    assert vm.sh("modinfo -F version nvidia 2>/dev/null; true") == ""
    before = boot_id(vm)
    vm.sh("systemctl reboot", check=False)
    asked = "cat /proc/sys/kernel/random/boot_id"
    machine.wait_for("the machine is back", lambda: vm.sh(asked, check=False) not in ("", before), 600, interval=3)
    assert vm.sh("test -d /sys/module/nouveau && echo loaded") == "loaded"
