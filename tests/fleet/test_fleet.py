# Copyright: Contributors to the gpufleet.llm project
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet itself: nodes that are like machines, a depot that serves real clients, and nothing left behind."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest
from harness import NIGHTLY, TOOL, Fleet, running, wait_for

pytestmark = pytest.mark.skipif(not NIGHTLY, reason="what all other fleet tests stand on, tested for itself: nightly")

NAME = "itself"
# Node → image and card, what Ansible must take it for, and how its package manager is asked for git.
NODES = {
    "deb12": ("debian12:t4", ("Debian", "12", "apt"), "apt-get update -q && apt-get install -yq git"),
    "deb13": ("debian13:t4-nodriver", ("Debian", "13", "apt"), "apt-get update -q && apt-get install -yq git"),
    "jammy": ("ubuntu22-like", ("Ubuntu", "22", "apt"), "apt-get update -q && apt-get install -yq git"),
    "rhel9": ("rhel9-like:h100", ("Rocky", "9", "dnf"), "dnf install -y git"),
    "arch1": ("arch-like", ("Archlinux", "NA", "pacman"), "pacman -Sy --noconfirm git"),
}
LM = "https://depot.gpufleet.test/git/gpufleet-fixtures/tiny-lm"
INSTALLER = "Miniforge3-24.7.1-2-Linux-x86_64.sh"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """A node of every image, and a depot."""
    with running(NAME, {name: image for name, (image, _facts, _git) in NODES.items()}) as up:
        yield up


@pytest.fixture(autouse=True)
def _no_faults(fleet: Fleet) -> Iterator[None]:
    yield
    fleet.clear_faults()


@pytest.mark.parametrize("node", NODES)
def test_a_node_is_bare_and_healthy(fleet: Fleet, node: str) -> None:
    assert fleet.sh(node, "systemctl is-system-running") == "running"
    assert fleet.sh(node, "command -v git nginx conda || echo nothing") == "nothing"
    assert fleet.sh(node, "df -k --output=size /mnt/small | tail -1").strip() == "65536"


def test_ansible_reaches_every_node_by_ssh_and_takes_it_for_what_it_stands_for(fleet: Fleet) -> None:
    play = "filter=ansible_distribution,ansible_distribution_major_version,ansible_pkg_mgr,ansible_user_id"
    argv = ["ansible", "-i", fleet.inventory, "nodes", "-m", "ansible.builtin.setup", "-a", play, "-b", "--one-line"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=fleet.environment())
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split(" | SUCCESS => ") for line in done.stdout.splitlines() if " | SUCCESS => " in line]
    hosts = {host: json.loads(result) for host, result in lines}
    for node, (_image, facts, _git) in NODES.items():
        seen = hosts[node]["ansible_facts"]
        keys = ("ansible_distribution", "ansible_distribution_major_version", "ansible_pkg_mgr")
        assert tuple(seen[key] for key in keys) == facts
        assert seen["ansible_user_id"] == "root"


@pytest.mark.parametrize("node", NODES)
def test_the_package_manager_installs_git_and_git_clones_from_the_depot(fleet: Fleet, node: str) -> None:
    fleet.sh(node, NODES[node][2])
    first, _second, third, _fourth = fleet_commits()
    fleet.sh(node, f"rm -rf /tmp/c && mkdir /tmp/c && cd /tmp/c && git init -q && git fetch -q --depth 1 {LM} {third}")
    assert fleet.sh(node, "cd /tmp/c && git rev-parse FETCH_HEAD") == third
    assert fleet.rc(node, f"cd /tmp/c && git fetch -q {LM} {first[:-1]}0") != 0


def fleet_commits() -> list[str]:
    """The commits of tiny-lm, from the inventory."""
    inventory = subprocess.run([TOOL, "inventory", "--name", NAME], capture_output=True, text=True, check=True)
    with open(inventory.stdout.strip(), encoding="utf-8") as handle:
        return json.load(handle)["all"]["vars"]["fleet_depot"]["git"]["gpufleet-fixtures/tiny-lm"]


@pytest.mark.parametrize(
    ("node", "device", "driver"), [("deb12", "0x1eb8", True), ("deb13", "0x1eb8", False), ("rhel9", "0x2330", True)]
)
def test_a_card_is_on_the_bus_and_a_driver_answers_where_there_is_one(
    fleet: Fleet, node: str, device: str, driver: bool
) -> None:
    assert device in fleet.sh(node, "cat /sys/bus/pci/devices/*/device")
    assert (fleet.rc(node, "nvidia-smi") == 0) is driver
    assert (fleet.rc(node, "test -e /proc/driver/nvidia/version") == 0) is driver
    nvml = 'import ctypes; raise SystemExit(ctypes.CDLL("libnvidia-ml.so.1").nvmlInit_v2())'
    assert (fleet.rc(node, f"python3 -c '{nvml}'") == 0) is driver


def test_a_node_without_a_card_has_none(fleet: Fleet) -> None:
    assert fleet.rc("jammy", "grep -l 0x10de /sys/bus/pci/devices/*/vendor") != 0


def test_a_reboot_brings_the_same_node_back(fleet: Fleet) -> None:
    fleet.sh("deb12", "touch /var/lib/was-here")
    before = fleet.sh("deb12", "stat -c %Y%z /proc/1")
    fleet.sh("deb12", "systemctl reboot", check=False)
    wait_for("another PID 1", lambda: fleet.sh("deb12", "stat -c %Y%z /proc/1", check=False) not in ("", before))
    wait_for("running", lambda: fleet.sh("deb12", "systemctl is-system-running", check=False) == "running")
    fleet.sh("deb12", "test -e /var/lib/was-here && test -e /proc/driver/nvidia/version")
    argv = ["ansible", "-i", fleet.inventory, "deb12", "-m", "ansible.builtin.ping"]
    wait_for(
        "ssh", lambda: subprocess.run(argv, capture_output=True, check=False, env=fleet.environment()).returncode == 0
    )


@pytest.mark.parametrize("node", NODES)
def test_the_fixture_installer_brings_a_conda_that_makes_environments(fleet: Fleet, node: str) -> None:
    base = "https://depot.gpufleet.test"
    fleet.sh(
        node, f"cd /tmp && curl -sSfO {base}/installers/{INSTALLER} && curl -sSf {base}/installers/SHA256SUMS -o sums"
    )
    fleet.sh(node, "cd /tmp && sha256sum --check --ignore-missing --status sums && rm -rf /opt/c /opt/e")
    fleet.sh(node, f"cd /tmp && sh {INSTALLER} -b -p /opt/c")
    assert fleet.sh(node, "/opt/c/bin/conda --version") == "conda 24.7.1"
    channel = f"--override-channels -c {base}/conda/conda-forge"
    bundle = "export REQUESTS_CA_BUNDLE=/etc/ssl/certs/ca-certificates.crt"
    fleet.sh(node, f"{bundle}; /opt/c/bin/conda create -yq -p /opt/e {channel} python=3.11 pip idna=3.10")
    assert (
        fleet.sh(node, "/opt/e/bin/python -c 'import idna, sys; print(idna.__version__, sys.prefix)'") == "3.10 /opt/e"
    )
    fleet.sh(
        node,
        f"/opt/e/bin/pip install -q --index-url {base}/pypi/simple/ --cert /etc/ssl/certs/ca-certificates.crt idna==3.20",
    )
    listed = json.loads(fleet.sh(node, "/opt/c/bin/conda list -p /opt/e --json"))
    assert {row["name"]: row["channel"] for row in listed}["idna"] == "pypi"


def test_a_running_depot_obeys_a_planned_fault_and_logs_it(fleet: Fleet) -> None:
    url = "https://depot.gpufleet.test/keys/nginx_signing.key"
    get = f"curl -sS -o /tmp/key -w '%{{http_code}}' {url}"
    fleet.fault(path="^/keys/", status=503, times=1, id="busy")
    assert [fleet.sh("jammy", get), fleet.sh("jammy", get)] == ["503", "200"]
    assert [row["fault"] for row in fleet.depot_log() if row["path"].startswith("/keys/")] == ["busy", ""]
    fleet.fault(path=INSTALLER, cut_after_bytes=1_000_000, times=1)
    installer = f"https://depot.gpufleet.test/installers/{INSTALLER}"
    assert fleet.rc("jammy", f"rm -f /tmp/i && curl -sS -o /tmp/i {installer}") != 0
    assert fleet.sh("jammy", "stat -c %s /tmp/i") == "1000000"
    fleet.sh("jammy", f"curl -sS -C - -o /tmp/i {installer}")
    assert [row for row in fleet.depot_log() if row["path"].endswith(INSTALLER)][-1]["range"] == "bytes=1000000-"
    with open(fleet.inventory, encoding="utf-8") as handle:
        sums = json.load(handle)["all"]["vars"]["fleet_depot"]["installers"]
    assert fleet.sh("jammy", "sha256sum /tmp/i").split()[0] == sums[INSTALLER]["sha256"]


def test_a_fleet_that_is_up_is_not_started_over(fleet: Fleet) -> None:
    done = subprocess.run([TOOL, "up", "--name", NAME, "x=debian12"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "already up" in done.stderr
    assert fleet.sh("deb12", "hostname") == "deb12"


def test_down_leaves_nothing_and_the_neighbour_alone() -> None:
    with running("itself-a", {"n1": "debian12"}, depot=False) as keep:
        with running("itself-b", {"n1": "debian12"}, depot=False) as gone:
            folder = gone.inventory.rsplit("/", 1)[0]
        listed = subprocess.run([TOOL, "list"], capture_output=True, text=True, check=True).stdout.split()
        assert "itself-b" not in listed and "itself-a" in listed
        assert subprocess.run(["test", "-e", folder], check=False).returncode != 0
        assert keep.sh("n1", "hostname") == "n1"
