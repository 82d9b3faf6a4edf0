# SPDX-License-Identifier: GPL-3.0-or-later
"""The role nvidia_driver on nodes that are in a state already: a GPU that works, one that wants a reboot, one that is lost, none.

The GPUs are the NVML stand-in's (tests/fleet/nvml_stand_in); what the role does with what it is told is real.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.llm.plugins.plugin_utils.driver import MOK_SCRIPT
from ansible_collections.gpufleet.llm.plugins.plugin_utils.sha512_crypt import sha512_crypt
from harness import Fleet, Play, gpu_in_use, running, secure_boot

NODES = {
    "works": "debian12:t4",
    "mismatch": "debian12:mismatch",
    "lost": "debian12:lost",
    "none": "debian12",
}
BOOTED = "stat -c %Z /proc/1"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with running("driver-states", NODES, depot=False) as fleet:
        yield fleet


def drive(fleet: Fleet, node: str, *args: str, ok: bool | None = True, **wishes: Any) -> tuple[Play, dict[str, Any]]:
    fleet.sh(node, "rm -f /root/nvidia_driver_result.json")
    wishes = {"boot_time_command": BOOTED, **wishes}
    play = fleet.play(
        "nvidia_driver_result.yml",
        "--limit",
        node,
        *args,
        ok=ok,
        **{f"nvidia_driver_{k}": v for k, v in wishes.items()},
    )
    said = fleet.sh(node, "cat /root/nvidia_driver_result.json 2>/dev/null || echo '{}'")
    return play, json.loads(said)


def tree(fleet: Fleet, node: str) -> str:
    """What a driver could have changed: packages, files, units."""
    return fleet.sh(
        node,
        "dpkg-query -W; find /etc /usr/lib/systemd /usr/local /lib/modules -xdev -type f -printf '%p %s %T@\\n' | sort",
    )


def failing(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {c["name"]: c for c in told["result"]["checks"] if not c["ok"]}


@pytest.mark.parametrize("wishes", [{}, {"branch": "535"}, {"reboot": "auto"}], ids=str)
def test_a_gpu_that_works_is_left_alone(fleet: Fleet, wishes: dict[str, Any]) -> None:
    before, booted = tree(fleet, "works"), fleet.sh("works", BOOTED)
    play, told = drive(fleet, "works", **wishes)
    assert tree(fleet, "works") == before
    assert fleet.sh("works", BOOTED) == booted
    assert play.changed("works") == 1  # the test's own file
    assert told["result"]["ok"] and not told["reboot_required"]
    assert "works" in told["result"]["checks"][0]["detail"]
    # facts of the distribution and of the GPU, one look of the role, the test's own file
    assert play.calls["works"] <= 5


def test_another_branch_that_is_asked_for_is_not_kept(fleet: Fleet) -> None:
    play, _told = drive(fleet, "works", "--check", branch="570")
    assert play.drift("works")


def test_a_driver_that_nobody_installed_is_not_touched(fleet: Fleet) -> None:
    """The stand-in belongs to no package: the role cannot remove it, so it refuses, and says so."""
    before = tree(fleet, "works")
    play, _told = drive(fleet, "works", ok=False, branch="570", method="nvidia_repo", switch_method=True)
    assert "one-method" in play.output
    assert tree(fleet, "works") == before


# What stands in the way, each with the words of the way out that the refusal must have.
OBSTACLES = {
    "one-method": ["by nothing that this role knows"],
    "kernel-headers": ["linux-headers-", "nvidia_driver_kernel_headers"],
    "build-tools": ["gcc can neither be found nor be had"],
    "secure-boot": ["Key was rejected by service", "stage_mok", "signed"],
    "gpu-in-use": ["sleep (", "nvidia_driver_reboot: auto"],
    "display": ["nvidia_driver_stop_display: true"],
}
MAKE_OBSTACLES = r"""
set -e
printf 'Package: gcc\nPin: version *\nPin-Priority: -1\n' > /etc/apt/preferences.d/no-gcc
printf '[Service]\nExecStart=/bin/sleep infinity\n' > /etc/systemd/system/display-manager.service
systemctl daemon-reload
systemctl start display-manager
"""
AWAY_WITH_THEM = """
rm -f /etc/apt/preferences.d/no-gcc
systemctl stop display-manager
rm -f /etc/systemd/system/display-manager.service
systemctl daemon-reload
"""


def test_all_that_stands_in_the_way_is_told_at_once_and_nothing_is_touched(fleet: Fleet) -> None:
    node = "works"
    fleet.sh(node, MAKE_OBSTACLES)
    try:
        with secure_boot(fleet, node), gpu_in_use(fleet, node) as process:
            before = tree(fleet, node)
            play, _told = drive(fleet, node, ok=False, branch="570", method="nvidia_repo")
            assert tree(fleet, node) == before
            said = " ".join(play.output.split())
            for problem, words in OBSTACLES.items():
                assert f"{problem}: " in said, (problem, str(play))
                assert [word for word in words if word not in said] == [], (problem, str(play))
            assert fleet.sh(node, "systemctl is-active display-manager") == "active"
            assert fleet.rc(node, f"kill -0 {process}") == 0
    finally:
        fleet.sh(node, AWAY_WITH_THEM)


MODPROBE_STAND_IN = """#!/bin/sh
# Stands in for modprobe: the containers' kernel is the host's. It writes down what it was asked.
echo "$*" >> /run/modprobe-stand-in
exit 1
"""


def test_modules_are_exchanged_only_when_nothing_uses_the_gpu(fleet: Fleet) -> None:
    node, asked = "mismatch", "cat /run/modprobe-stand-in 2>/dev/null; true"
    fleet.sh(
        node, f"cat > /usr/local/sbin/modprobe <<'EOF'\n{MODPROBE_STAND_IN}EOF\nchmod 755 /usr/local/sbin/modprobe"
    )
    try:
        with gpu_in_use(fleet, node) as process:
            _play, told = drive(fleet, node)
            assert fleet.sh(node, asked) == ""
            assert told["reboot_required"] is True
            assert fleet.rc(node, f"kill -0 {process}") == 0, "and nobody was killed"
        drive(fleet, node)
        assert {"--remove nvidia", "nvidia"} <= set(fleet.sh(node, asked).splitlines())
    finally:
        fleet.sh(node, "rm -f /usr/local/sbin/modprobe /run/modprobe-stand-in")


SEES_THE_DAEMON = """#!/bin/sh
# Stands in for modprobe, which cannot unload what the daemon holds: whether it runs while the module is to go.
[ "$*" != "--remove nvidia" ] || systemctl is-active nvidia-persistenced >> /run/modprobe-stand-in
exit 1
"""
DAEMON = "/usr/local/bin/nvidia-persistenced"
DAEMON_UNIT = "/etc/systemd/system/nvidia-persistenced.service"


def test_a_daemon_that_somebody_else_runs_makes_room_for_a_reload_and_comes_back(fleet: Fleet) -> None:
    """With and without a unit to stop it by, on a node whose driver this role leaves alone."""
    node = "mismatch"
    fleet.sh(node, f"cp /bin/sleep {DAEMON}")
    fleet.sh(node, f"cat > /usr/local/sbin/modprobe <<'EOF'\n{SEES_THE_DAEMON}EOF\nchmod 755 /usr/local/sbin/modprobe")
    try:
        process = fleet.sh(node, f"setsid {DAEMON} infinity >/dev/null 2>&1 </dev/null & echo $!")
        drive(fleet, node)
        assert fleet.rc(node, f"kill {process}") == 0
        fleet.sh(
            node, f"rm /run/modprobe-stand-in; printf '[Service]\\nExecStart={DAEMON} infinity\\n' > {DAEMON_UNIT}"
        )
        fleet.sh(node, "systemctl daemon-reload; systemctl start nvidia-persistenced")
        _play, told = drive(fleet, node)
        assert fleet.sh(node, "cat /run/modprobe-stand-in") == "inactive"
        assert fleet.sh(node, "systemctl is-active nvidia-persistenced") == "active"
        assert fleet.sh(node, "systemctl is-enabled nvidia-persistenced", check=False) == "static"
        assert "waits to be loaded" in " ".join(told["result"]["notes"])
    finally:
        fleet.sh(node, "systemctl stop nvidia-persistenced; true")
        fleet.sh(
            node,
            f"rm -f {DAEMON} {DAEMON_UNIT} /usr/local/sbin/modprobe /run/modprobe-stand-in; systemctl daemon-reload",
        )


def test_the_controller_is_not_rebooted(fleet: Fleet) -> None:
    """A node with the controller's own machine-id is the controller, whatever connection leads there."""
    own = Path("/etc/machine-id")
    if not own.exists() or not own.read_text().strip():
        pytest.skip("this machine has no machine-id")
    node, booted = "mismatch", fleet.sh("mismatch", BOOTED)
    nodes_own = fleet.sh(node, "cat /etc/machine-id")
    fleet.sh(node, f"echo {own.read_text().strip()} > /etc/machine-id")
    try:
        _play, told = drive(fleet, node, reboot="auto", reload_modules=False)
    finally:
        fleet.sh(node, f"echo {nodes_own} > /etc/machine-id")
    assert fleet.sh(node, BOOTED) == booted
    assert told["reboot_required"] is True and list(failing(told)) == ["reboot"]


@pytest.mark.parametrize("reboot", ["required_fact", "never"])
def test_a_reboot_that_is_not_allowed_is_a_state_each_time(fleet: Fleet, reboot: str) -> None:
    booted, before = fleet.sh("mismatch", BOOTED), tree(fleet, "mismatch")
    for _run in (1, 2):
        _play, told = drive(fleet, "mismatch", reboot=reboot, reload_modules=False)
        assert told["reboot_required"] is True
        assert list(failing(told)) == ["reboot"] and failing(told)["reboot"]["remedy"]
    assert fleet.sh("mismatch", BOOTED) == booted
    assert tree(fleet, "mismatch") == before


def test_a_reboot_that_is_allowed_happens(fleet: Fleet) -> None:
    """The node really reboots; the stand-in's module is still another one afterwards, and the role says so and goes on."""
    booted = fleet.sh("mismatch", BOOTED)
    _play, told = drive(fleet, "mismatch", reboot="auto", reload_modules=False)
    assert fleet.sh("mismatch", BOOTED) != booted
    assert told["reboot_required"] is True and "the node was rebooted" in told["result"]["notes"]


def test_a_reboot_that_did_not_help_is_not_tried_again(fleet: Fleet) -> None:
    booted = fleet.sh("mismatch", BOOTED)
    _play, told = drive(fleet, "mismatch", reboot="auto", reload_modules=False)
    assert fleet.sh("mismatch", BOOTED) == booted
    assert told["reboot_required"] is True and list(failing(told)) == ["reboot"]


def test_a_lost_gpu_is_reported_and_nothing_is_installed(fleet: Fleet) -> None:
    before = tree(fleet, "lost")
    _play, told = drive(fleet, "lost")
    assert tree(fleet, "lost") == before
    assert not told["result"]["ok"] and failing(told)


def test_no_gpu_no_driver(fleet: Fleet) -> None:
    before = tree(fleet, "none")
    play, told = drive(fleet, "none")
    assert tree(fleet, "none") == before
    assert told["result"]["ok"] and "no NVIDIA GPU" in told["result"]["notes"][0]
    assert play.calls["none"] <= 3


MOKUTIL_STAND_IN = r"""#!/bin/sh
# Stands in for mokutil: a container has no firmware. It keeps what it is given.
kept=/var/lib/mokutil-stand-in
mkdir -p $kept
case "$1" in
  --test-key)
    if [ -e $kept/key ]; then echo "$2 is already in the enrollment request"; exit 1; fi
    echo "$2 is not enrolled" ;;
  --import) cp "$2" $kept/key; stat -c %a "$4" > $kept/mode; cp "$4" $kept/hash ;;
esac
"""


def test_a_key_is_staged_once_with_the_hash_of_the_password(fleet: Fleet) -> None:
    node, password = "none", "of this test"
    fleet.sh(node, "mkdir -p /var/lib/dkms; echo key > /var/lib/dkms/mok.pub")
    fleet.sh(node, f"cat > /usr/local/bin/mokutil <<'EOF'\n{MOKUTIL_STAND_IN}EOF\nchmod 755 /usr/local/bin/mokutil")
    look = f"/bin/sh -c {shlex.quote(MOK_SCRIPT)}"
    assert fleet.sh(node, look).strip() == "not staged"
    wishes = {"target": node, "nvidia_driver_mok_password": password}
    first = fleet.play("nvidia_driver_mok.yml", "-vvv", **wishes)
    assert first.changed(node) > 0
    kept = "/var/lib/mokutil-stand-in"
    assert fleet.sh(node, f"cat {kept}/key").strip() == "key"
    assert fleet.sh(node, f"cat {kept}/mode").strip() == "600"
    written = fleet.sh(node, f"cat {kept}/hash").strip()
    assert written == sha512_crypt(password, written.split("$")[2])
    assert fleet.sh(node, "ls /run | grep -c mok || true").strip() == "0", "the hash is not left behind"
    assert written not in first.output
    assert fleet.sh(node, look).strip() == "staged"
    assert fleet.play("nvidia_driver_mok.yml", **wishes).changed(node) == 0
