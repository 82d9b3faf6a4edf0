# SPDX-License-Identifier: GPL-3.0-or-later
"""playbooks/upgrade_driver.yml on four nodes: canary first, batches, drain and resume, threshold, resumable.

The cards are the NVML stand-in's, so the driver is one too: playbooks/roles/driver_stand_in changes what it tells. What is
asserted is what the drain and resume commands wrote on each node, and what nvidia-smi says there. What needs no ssh and no
root is in tests/unit/playbooks/test_upgrade_playbook.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import PLAYBOOKS, Fleet, Play, running

OLD, NEW = "535.261.03", "580.126.20"
NODES = ["n1", "n2", "n3", "n4"]
NOTE = "echo {what} $(nvidia-smi --query-gpu=driver_version --format=csv,noheader) $GPUFLEET_NODE >> /var/lib/evidence"
# Ends the ssh connection that it came by: the task is lost, and the next one finds the node again.
DROP = "pkill -KILL -f 'sshd: [o]ps'; true"


@pytest.fixture(scope="module")
def started():
    with running("upgrade", dict.fromkeys(NODES, "debian12:t4"), depot=False) as fleet:
        yield fleet


@pytest.fixture
def fleet(started: Fleet):
    """All nodes with the old driver, nothing drained, no faults."""
    for node in NODES:
        started.sh(
            node,
            "rm -rf /etc/gpufleet-fixture /var/lib/evidence /var/lib/driver-stand-in /var/lib/gpufleet/upgrade_driver;"
            f"mkdir /etc/gpufleet-fixture; sed -i 's/^driver_version *=.*/driver_version = {OLD}/' /etc/gpufleet-nvml-profile",
        )
    return started


def upgrade(fleet: Fleet, *args: str, ok: bool = True, **more) -> Play:
    variables = {
        "gpufleet_hosts": "nodes",
        "gpufleet_upgrade_role": "driver_stand_in",
        "nvidia_driver_version": NEW,
        "gpufleet_drain_command": NOTE.format(what="drain"),
        "gpufleet_resume_command": NOTE.format(what="resume"),
        "gpufleet_batch": 2,
        **more,
    }
    roles = {"ANSIBLE_ROLES_PATH": str(PLAYBOOKS / "roles")}
    return fleet.play("playbooks/upgrade_driver.yml", *args, ok=ok, env=roles, **variables)


def version(fleet: Fleet, node: str) -> str:
    return fleet.sh(node, "nvidia-smi --query-gpu=driver_version --format=csv,noheader")


def versions(fleet: Fleet) -> list[str]:
    return ["new" if version(fleet, node) == NEW else "old" for node in NODES]


def evidence(fleet: Fleet, node: str) -> list[str]:
    return fleet.sh(node, "cat /var/lib/evidence 2>/dev/null; true").splitlines()


def fault(fleet: Fleet, node: str, name: str) -> None:
    fleet.sh(node, f"touch /etc/gpufleet-fixture/driver-{name}")


def test_one_node_then_batches_each_drained_and_resumed(fleet: Fleet) -> None:
    done = upgrade(fleet)
    assert versions(fleet) == ["new"] * 4
    for node in NODES:
        assert evidence(fleet, node) == [f"drain {OLD} {node}", f"resume {NEW} {node}"]
    assert [fleet.sh(n, "cut -d' ' -f1 /var/lib/driver-stand-in") for n in NODES] == [
        "batch=n1", "batch=n2,n3", "batch=n2,n3", "batch=n4",
    ]  # fmt: skip
    assert fleet.sh("n1", "cut -d' ' -f2- /var/lib/driver-stand-in") == "keep_working=False reboot=auto"
    assert "upgraded: n1, n2, n3, n4" in done.output
    again = upgrade(fleet)
    assert set(again.calls.values()) == {1}, again
    assert all(again.changed(node) == 0 and len(evidence(fleet, node)) == 2 for node in NODES)
    assert "right already: n1, n2, n3, n4" in again.output


def test_a_canary_that_fails_stops_everything(fleet: Fleet) -> None:
    fault(fleet, "n1", "fails")
    done = upgrade(fleet, ok=False, gpufleet_max_failures=4)
    assert versions(fleet) == ["old"] * 4
    assert evidence(fleet, "n1") == [f"drain {OLD} n1"], "a node that failed stays drained"
    assert [evidence(fleet, node) for node in NODES[1:]] == [[], [], []]
    assert (
        "failed: n1" in done.output
        and "not started: n2, n3, n4" in done.output
        and "the canary failed: n1" in done.output
    )


def test_a_driver_that_does_not_answer_is_a_failure(fleet: Fleet) -> None:
    fault(fleet, "n1", "stays")
    done = upgrade(fleet, ok=False)
    assert f"nvidia-smi says {OLD}" in " ".join(done.output.split())
    assert evidence(fleet, "n1") == [f"drain {OLD} n1"] and versions(fleet) == ["old"] * 4


@pytest.mark.parametrize(("allowed", "last"), [(0, "old"), (1, "new"), ("30%", "new"), ("20%", "old")])
def test_it_stops_at_the_threshold(fleet: Fleet, allowed: object, last: str) -> None:
    fault(fleet, "n2", "fails")
    done = upgrade(fleet, ok=False, gpufleet_max_failures=allowed)
    assert versions(fleet) == ["new", "old", "new", last], "the others of a batch that has begun end it"
    assert (evidence(fleet, "n4") == []) is (last == "old")
    assert ("1 nodes failed" in done.output) is (last == "old")
    assert "upgraded: n1, n3" in done.output


def test_it_goes_on_where_it_was_stopped(fleet: Fleet) -> None:
    fault(fleet, "n2", "fails")
    upgrade(fleet, ok=False)
    fleet.sh("n2", "rm /etc/gpufleet-fixture/driver-fails")
    done = upgrade(fleet)
    assert versions(fleet) == ["new"] * 4
    assert evidence(fleet, "n1") == [f"drain {OLD} n1", f"resume {NEW} n1"]
    assert evidence(fleet, "n2") == [f"drain {OLD} n2", f"drain {OLD} n2", f"resume {NEW} n2"]
    assert "right already: n1, n3" in done.output and "upgraded: n2, n4" in done.output


def test_a_node_that_was_left_drained_is_resumed(fleet: Fleet) -> None:
    upgrade(fleet, ok=False, gpufleet_resume_command="exit 1")
    assert versions(fleet) == ["new", "old", "old", "old"] and evidence(fleet, "n1") == [f"drain {OLD} n1"]
    done = upgrade(fleet)
    assert evidence(fleet, "n1") == [f"drain {OLD} n1", f"resume {NEW} n1"], "resumed, and not drained again"
    assert "resumed: n1" in done.output and versions(fleet) == ["new"] * 4
    assert fleet.rc("n1", "test -e /var/lib/gpufleet/upgrade_driver") != 0


def test_a_drain_that_fails_changes_no_driver(fleet: Fleet) -> None:
    upgrade(fleet, ok=False, gpufleet_drain_command="echo busy >&2; exit 3")
    assert versions(fleet) == ["old"] * 4


def test_a_check_of_ones_own_decides_before_the_resume(fleet: Fleet) -> None:
    upgrade(fleet, ok=False, gpufleet_upgrade_check_command="test $GPUFLEET_NODE != n1")
    assert versions(fleet) == ["new", "old", "old", "old"] and evidence(fleet, "n1") == [f"drain {OLD} n1"]


def test_the_canary_can_be_chosen(fleet: Fleet) -> None:
    fault(fleet, "n3", "fails")
    upgrade(fleet, ok=False, gpufleet_canary="n3")
    assert versions(fleet) == ["old"] * 4 and evidence(fleet, "n3") and not evidence(fleet, "n1")


def test_drain_may_run_elsewhere(fleet: Fleet) -> None:
    upgrade(fleet, "--limit", "n1", gpufleet_drain_host="n4", gpufleet_drain_become=True)
    assert evidence(fleet, "n1") == []
    assert evidence(fleet, "n4") == [f"drain {OLD} n1", f"resume {OLD} n1"]


def test_who_drains_is_root_on_the_node_and_the_user_of_ssh_elsewhere(fleet: Fleet) -> None:
    who = {"gpufleet_drain_command": "id -un >> /tmp/drained", "gpufleet_resume_command": "id -un >> /tmp/resumed"}
    fleet.sh("n1", "rm -f /tmp/drained /tmp/resumed")
    fleet.sh("n4", "rm -f /tmp/drained /tmp/resumed")
    upgrade(fleet, "--limit", "n1", **who)
    assert fleet.sh("n1", "cat /tmp/drained /tmp/resumed").split() == ["root", "root"]
    upgrade(fleet, "--limit", "n1", nvidia_driver_version=OLD, gpufleet_drain_host="n4", **who)
    assert fleet.sh("n4", "cat /tmp/drained /tmp/resumed").split() == ["ops", "ops"]
    assert version(fleet, "n1") == OLD, "and this is the way back"


def test_a_drain_host_that_is_lost_drains_nothing(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("controller ansible_host=127.0.0.1 ansible_port=1 ansible_user=ops\n")
    more = ("-i", str(tmp_path / "hosts"))
    done = upgrade(fleet, *more, ok=False, gpufleet_drain_host="controller", gpufleet_max_failures=4)
    assert versions(fleet) == ["old"] * 4
    assert "n1: failed, it stays drained. Drain it: unreachable:" in " ".join(done.output.split())
    assert fleet.rc("n1", "test -e /var/lib/gpufleet/upgrade_driver") == 0
    done = upgrade(fleet, "--limit", "n1")
    assert "upgraded: n1" in done.output and evidence(fleet, "n1") == [f"drain {OLD} n1", f"resume {NEW} n1"]


@pytest.mark.parametrize("step", ["role", "check"])
def test_a_connection_that_breaks_is_neither_an_upgrade_nor_a_proof(fleet: Fleet, step: str) -> None:
    """The task that was on its way is lost, those after it would come through."""
    if step == "role":
        fault(fleet, "n2", "drops")
    done = upgrade(
        fleet,
        ok=False,
        gpufleet_max_failures=1,
        gpufleet_upgrade_check_command=f"test $GPUFLEET_NODE != n2 || {{ {DROP}; }}" if step == "check" else "true",
    )
    assert evidence(fleet, "n2") == [f"drain {OLD} n2"] and versions(fleet) == ["new"] * 4
    assert "upgraded: n1, n3, n4" in done.output and "failed: n2" in done.output
    names = {"role": "driver_stand_in : Lose the connection", "check": "Prove that it does its work"}
    assert f"n2: failed, it stays drained. {names[step]}: unreachable:" in " ".join(done.output.split())
    done = upgrade(fleet)
    assert "resumed: n2" in done.output and evidence(fleet, "n2") == [f"drain {OLD} n2", f"resume {NEW} n2"]


def test_check_mode_drains_nothing(fleet: Fleet) -> None:
    done = upgrade(fleet, "--check")
    assert versions(fleet) == ["old"] * 4 and not any(evidence(fleet, node) for node in NODES)
    assert "would be upgraded: n1, n2, n3, n4" in done.output


def test_check_mode_has_the_role_itself_look() -> None:
    """The role nvidia_driver, with packages in the shape of NVIDIA's: it looks and decides, and is not drained for it."""
    wishes = {
        "nvidia_driver_mirror_profile": "depot",
        "nvidia_driver_method": "nvidia_repo",
        # The containers' kernel is the host's: no repository has headers of it.
        "nvidia_driver_kernel_headers": "",
    }
    asked = {"gpufleet_hosts": "n1", "gpufleet_drain_command": "touch /var/lib/drained"}
    with running("upgrade-role", {"n1": "debian12:t4-nodriver"}) as fleet:
        fleet.role("nvidia_driver", nvidia_driver_version="580.105.08", **wishes)
        before = fleet.tree("n1")
        for version, ok in (("580.126.20", True), ("latest", False)):
            done = fleet.play(
                "playbooks/upgrade_driver.yml", "--check", ok=ok, nvidia_driver_version=version, **asked, **wishes
            )
            assert ("would be upgraded: n1" if ok else "failed: n1") in done.output, str(done)
        said = " ".join(done.output.rpartition("PLAY [Say")[2].split())
        assert "n1: failed. " in said and "wanted is the first number of a version" in said, said
        assert fleet.tree("n1") == before and fleet.rc("n1", "test -e /var/lib/drained") != 0


def test_an_unreachable_node_counts_as_failed(fleet: Fleet) -> None:
    fleet.sh("n2", "systemctl stop ssh.socket ssh.service sshd 2>/dev/null; true", check=False)
    fleet.sh("n2", "pkill -f 'sshd: ops'; true", check=False)
    try:
        done = upgrade(fleet, ok=False)
    finally:
        fleet.sh("n2", "systemctl start ssh.service || systemctl start sshd.service")
    assert versions(fleet) == ["new", "old", "new", "old"]
    assert "failed: n2" in done.output and "not started: n4" in done.output
