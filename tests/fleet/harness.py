# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests on real nodes share: a fleet to start and stop, playbooks to run on it, and what came of them.

A test module makes its fleet in a fixture: C(with running("name", {"n1": "debian12"}, depot=True) as fleet).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
TOOL = str(ROOT / "tests" / "fleet" / "fleet")
PLAYBOOKS = ROOT / "tests" / "fleet" / "playbooks"
NIGHTLY = bool(os.environ.get("GPUFLEET_NIGHTLY"))
# Roles whose long scenarios run although it is not night, since they changed (tools/test)
LONG = os.environ.get("GPUFLEET_LONG", "").split()


def long(role: str) -> bool:
    """Whether the long tests of a role run: at night, and when it has changed."""
    return NIGHTLY or role in LONG


def images() -> list[str]:
    """The node images to try: those of C(GPUFLEET_PLATFORMS), else all five at night and Debian 12 by day."""
    chosen = [name.strip() for name in os.environ.get("GPUFLEET_PLATFORMS", "").split(",") if name.strip()]
    platforms = vars_of(".config/molecule/platforms.yml")["platforms"]
    return [
        platform["image"]
        for platform in platforms
        if (platform["name"] in chosen if chosen else NIGHTLY or platform["name"] == "debian12")
    ]


def images_at_night() -> list[str]:
    """C(images()) at night, Debian 12 alone by day whatever is chosen: for tests that take minutes on each."""
    return images() if NIGHTLY else ["debian12"]


@dataclass
class Play:
    """A finished playbook run: exit status, output, the recap's numbers per host, and what observe saw."""

    rc: int
    output: str
    stats: dict[str, dict[str, int]] = field(default_factory=dict)
    looks: list[dict[str, Any]] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)

    def changed(self, node: str) -> int:
        """How many tasks changed something on a node."""
        return self.stats[node]["changed"]

    def drift(self, node: str) -> set[str]:
        """Keys of all items that differed at the first look of each role on a node."""
        return {key for look in self.looks if look["host"] == node for key in look["result"].get("drift", [])}

    def items(self, node: str) -> list[dict[str, Any]]:
        """The managed items of the last look on a node."""
        return [look["result"]["items"] for look in self.looks if look["host"] == node][-1]

    def __str__(self) -> str:
        return f"rc {self.rc}\n{self.output[-6000:]}"


def parse_stats(output: str) -> dict[str, dict[str, int]]:
    """The PLAY RECAP as numbers."""
    stats: dict[str, dict[str, int]] = {}
    for line in output.rpartition("PLAY RECAP")[2].splitlines():
        found = re.match(r"^(\S+)\s*:\s*(ok=.*)$", line)
        if found:
            stats[found[1]] = {k: int(v) for k, v in (pair.split("=") for pair in found[2].split())}
    return stats


def parse_calls(output: str) -> dict[str, int]:
    """The REMOTE CALLS of the recap callback."""
    part = output.rpartition("REMOTE CALLS")[2] if "REMOTE CALLS" in output else ""
    return {found[1]: int(found[2]) for found in re.finditer(r"(?m)^(\S+)\s+:\s+(\d+)\s*$", part)}


class Fleet:
    """A running fleet."""

    def __init__(self, name: str, nodes: dict[str, str]) -> None:
        self.name = name
        self.nodes = nodes

    @property
    def inventory(self) -> str:
        """Path of its inventory."""
        return self._tool("inventory", "--name", self.name).stdout.strip()

    def _tool(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([TOOL, *args], capture_output=True, text=True, check=False, timeout=900)
        if check and done.returncode:
            raise AssertionError(f"fleet {' '.join(args)}: rc {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def sh(self, node: str, script: str, check: bool = True) -> str:
        """Run a root shell script in a node; its output, stripped."""
        done = self._tool("exec", "--name", self.name, node, "--", "sh", "-c", script, check=check)
        return done.stdout.strip()

    def rc(self, node: str, script: str) -> int:
        """Exit status of a root shell script in a node."""
        return self._tool("exec", "--name", self.name, node, "--", "sh", "-c", script, check=False).returncode

    def tree(self, node: str) -> str:
        """All files below the folders that a driver touches, with their sizes and times, and the packages."""
        return self.sh(
            node,
            "{ dpkg-query -W || pacman -Q || rpm -qa | sort; } 2>/dev/null; "
            "find /etc /usr /boot /lib/modules /var/lib/dkms -xdev '(' -type f -o -type l ')' "
            "-not -path '*/__pycache__/*' -printf '%p %s %T@\\n' 2>/dev/null | sort",
        )

    def debs(self, node: str) -> set[str]:
        """Names of the packages that dpkg has installed."""
        return set(
            self.sh(node, "dpkg-query -W -f '${db:Status-Abbrev} ${Package}\\n' | awk '/^.i/ {print $2}'").split()
        )

    def nvidia_runfile(self, version: str) -> dict[str, Any]:
        """The wishes of the role nvidia_driver for a runfile of the depot."""
        with open(self.inventory, encoding="utf-8") as stream:
            known = json.load(stream)["all"]["vars"]["fleet_depot"]["nvidia"]["runfiles"]
        sha256 = known[f"XFree86/Linux-x86_64/{version}/NVIDIA-Linux-x86_64-{version}.run"]["sha256"]
        return {"method": "runfile", "version": version, "runfile_sha256": sha256}

    def arch_state(self, node: str, state: str) -> None:
        """Let the mirror of a node with pacman be at an older or the newest state, and the node know it, as `pacman -Sy` does.

        The fixtures of the two states are not the same bytes where they have the same version, as an archive's are; so what
        pacman has kept of those goes.
        """
        self.sh(node, "find /var/cache/pacman/pkg -type f -not -name 'nvidia*' -delete")
        extra = f"s#distribution/[a-z-]*/x86_64#distribution/{state}/x86_64#"
        self.sh(node, f"sed -i '{extra}' /etc/pacman.conf; pacman -Syy --noconfirm")

    def depot_log(self) -> list[dict[str, Any]]:
        """The depot's access log."""
        return [
            json.loads(line) for line in self._tool("depot", "--name", self.name, "log").stdout.splitlines() if line
        ]

    def fault(self, **plan: Any) -> None:
        """Plan a fault of the depot."""
        self._tool("depot", "--name", self.name, "fault", json.dumps(plan))

    def clear_faults(self) -> None:
        """The depot serves well again."""
        self._tool("depot", "--name", self.name, "clear")

    def argv(self, playbook: str | Path, *args: str, **variables: Any) -> list[str]:
        """The command line of a playbook run."""
        path = PLAYBOOKS / playbook if (PLAYBOOKS / playbook).exists() else ROOT / playbook
        extra = ["-e", json.dumps(variables)] if variables else []
        return ["ansible-playbook", str(path), "-i", self.inventory, *args, *extra]

    @staticmethod
    def environment(**more: str) -> dict[str, str]:
        """What a run gets: the shipped configuration, no colours, the test callback."""
        return {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".collections"),
            "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "tests" / "fleet" / "callback_plugins"),
            "ANSIBLE_CALLBACKS_ENABLED": "gpufleet.llm.recap,looks",
            "ANSIBLE_NOCOLOR": "1",
            **more,
        }

    def play(
        self,
        playbook: str | Path,
        *args: str,
        ok: bool | None = True,
        env: dict[str, str] | None = None,
        **variables: Any,
    ) -> Play:
        """Run a playbook on the fleet; with ok true or false its exit status is asserted."""
        with tempfile.NamedTemporaryFile("r", prefix="looks-", suffix=".jsonl") as looks:
            done = subprocess.run(
                self.argv(playbook, *args, **variables),
                capture_output=True,
                text=True,
                check=False,
                cwd=ROOT,
                env=self.environment(GPUFLEET_LOOKS=looks.name, **(env or {})),
                stdin=subprocess.DEVNULL,
                timeout=1800,
            )
            seen = [json.loads(line) for line in looks.read().splitlines()]
        output = done.stdout + done.stderr
        play = Play(done.returncode, output, parse_stats(done.stdout), seen, parse_calls(done.stdout))
        if ok is not None:
            assert (play.rc == 0) is ok, str(play)
        return play

    def module(self, node: str, name: str, **arguments: Any) -> dict[str, Any]:
        """What a module of the collection returns on a node, as root."""
        given = ["-a", json.dumps(arguments)] if arguments else []
        done = subprocess.run(
            ["ansible", node, "-i", self.inventory, "-b", "-m", f"gpufleet.llm.{name}", *given],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env=self.environment(ANSIBLE_CALLBACK_RESULT_FORMAT="json"),
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        told: dict[str, Any] = json.JSONDecoder().raw_decode(done.stdout.partition("=> ")[2])[0]
        return told

    def role(self, role: str, *args: str, ok: bool | None = True, **variables: Any) -> Play:
        """Run one role on the fleet's nodes."""
        return self.play("role.yml", *args, ok=ok, role=role, **variables)


# Waits until a fixture package's script reads the name of the kernel, then kills the package manager with all that it started,
# as a power failure does: a pipe is where that file would be (tests/fleet/depot/README.md).
KILLER = r"""
fifo=/etc/gpufleet-fixture/kernel
mkdir -p "${fifo%/*}"; rm -f "$fifo" /run/gpufleet-killed; mkfifo "$fifo"
cat > /run/gpufleet-killer <<'EOF'
tree() { echo "$1"; for child in $(pgrep -P "$1"); do tree "$child"; done; }
exec 3> "$1"
kill -9 $(for started in $(pgrep -x 'apt-get|dnf|dnf-3|pacman'); do tree "$started"; done)
rm -f "$1"
touch /run/gpufleet-killed
EOF
setsid sh /run/gpufleet-killer "$fifo" > /dev/null 2>&1 < /dev/null &
"""


@contextlib.contextmanager
def interrupted(fleet: Fleet, node: str) -> Iterator[None]:
    """Inside the block the node's package manager is killed while a driver package's script runs."""
    fleet.sh(node, KILLER)
    yield
    wait_for("the package manager is killed", lambda: fleet.rc(node, "test -e /run/gpufleet-killed") == 0, 10)


@contextlib.contextmanager
def gpu_in_use(fleet: Fleet, node: str) -> Iterator[str]:
    """A process has the card's device open; its id."""
    there = fleet.rc(node, "test -e /dev/nvidia0") == 0
    fleet.sh(node, "touch /dev/nvidia0")
    fleet.sh(
        node,
        "setsid sh -c 'echo $$ > /run/gpu-user; exec sleep 3600 3< /dev/nvidia0' > /dev/null 2>&1 < /dev/null &"
        " while [ ! -s /run/gpu-user ]; do :; done",
    )
    process = fleet.sh(node, "cat /run/gpu-user; rm /run/gpu-user")
    try:
        yield process
    finally:
        fleet.sh(node, f"kill {process} 2>/dev/null; {'true' if there else 'rm /dev/nvidia0'}")


@contextlib.contextmanager
def secure_boot(fleet: Fleet, node: str) -> Iterator[None]:
    """The node's firmware says that Secure Boot is on: a variable of its own in the place of the machine's."""
    folder = "/sys/firmware/efi/efivars"
    variable = f"{folder}/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    fleet.sh(node, f"mount -t tmpfs none /sys/firmware && mkdir -p {folder}; printf '\\006\\0\\0\\0\\001' > {variable}")
    try:
        yield
    finally:
        fleet.sh(node, "umount /sys/firmware")


class Driver:
    """The role nvidia_driver on the nodes of a fleet, each with wishes that its tests have in common."""

    def __init__(self, common: dict[str, dict[str, Any]]) -> None:
        # The containers' kernel goes on running when they reboot.
        self.common = {node: {"boot_time_command": "stat -c %Z /proc/1", **wishes} for node, wishes in common.items()}

    def variables(self, node: str, **wishes: Any) -> dict[str, Any]:
        """The role's variables for a node with these wishes."""
        return {f"nvidia_driver_{name}": wish for name, wish in {**self.common[node], **wishes}.items()}

    def drive(self, fleet: Fleet, node: str, *args: str, ok: bool | None = True, **wishes: Any) -> Play:
        """Run it on one node."""
        return fleet.role("nvidia_driver", "--limit", node, *args, ok=ok, **self.variables(node, **wishes))

    def settled(self, fleet: Fleet, node: str, **wishes: Any) -> None:
        """A second run changes nothing."""
        again = self.drive(fleet, node, **wishes)
        assert again.changed(node) == 0 and not again.drift(node), str(again)


def vars_of(*paths: str) -> dict[str, Any]:
    """Variables of YAML files of this repository, later ones win."""
    merged: dict[str, Any] = {}
    for path in paths:
        merged.update(yaml.safe_load((ROOT / path).read_text(encoding="utf-8")) or {})
    return merged


def wait_for(what: str, check: Any, seconds: float = 60.0) -> Any:
    """Poll until check() is true; AssertionError names what was waited for."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = check()
        if value:
            return value
        time.sleep(0.2)
    raise AssertionError(f"waited {seconds:.0f} s in vain for: {what}")


@contextlib.contextmanager
def running(name: str, nodes: dict[str, str], depot: bool = True) -> Iterator[Fleet]:
    """A fleet that is up inside the block and gone after it (GPUFLEET_KEEP=1 leaves it)."""
    subprocess.run([TOOL, "down", "--name", name], capture_output=True, check=False)
    argv = [
        TOOL,
        "up",
        "--name",
        name,
        *(["--depot"] if depot else []),
        *[f"{n}={image}" for n, image in nodes.items()],
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{shlex.join(argv)}\n{done.stdout}{done.stderr}")
    try:
        yield Fleet(name, nodes)
    finally:
        if not os.environ.get("GPUFLEET_KEEP"):
            subprocess.run([TOOL, "down", "--name", name], capture_output=True, check=False)
