# SPDX-License-Identifier: GPL-3.0-or-later
"""site.yml on real nodes: bare to an answer, a second run, check mode, a lost node, a killed run, an installed collection."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from pathlib import Path

import pytest
from harness import NIGHTLY, ROOT, Fleet, Play, images, running, vars_of, wait_for

NODES = {"n1": "debian12:t4", "n2": "debian12", "n3": "debian12"}
# The state of a node that a check run must leave alone. Logs, caches and what sshd and sudo touch are left out.
FINGERPRINT = (
    "(cat /var/lib/dpkg/status; rpm -qa; pacman -Q; getent passwd; systemctl list-unit-files --no-legend | grep -v transient;"
    " find /etc /opt /usr/local /srv /home -xdev -not -path '*/.ansible*'"
    r" \( -type d -printf '%p %m\n' -o -printf '%p %y %m %s %T@\n' \)) 2>/dev/null | sort"
)


@pytest.fixture(scope="module")
def fleet():
    with running("site", NODES) as started:
        yield started


def variables(tmp: Path) -> dict:
    return {
        **vars_of("inventories/demo/group_vars/all.yml"),
        "gpufleet_hosts": "nodes",
        "gpufleet_results_dir": str(tmp),
    }


def site(fleet: Fleet, tmp: Path, *args: str, ok: bool | None = True, env: dict | None = None, **more) -> Play:
    return fleet.play("site.yml", *args, ok=ok, env=env, **{**variables(tmp), **more})


def reports(tmp: Path) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in tmp.glob("*.json")}


def test_1_check_on_bare_nodes_changes_nothing(fleet: Fleet, tmp_path: Path) -> None:
    before = {node: fleet.sh(node, FINGERPRINT).splitlines() for node in NODES}
    play = site(fleet, tmp_path, "--check", "--diff")
    for node in NODES:
        after = fleet.sh(node, FINGERPRINT).splitlines()
        assert sorted(set(after) ^ set(before[node])) == []
    for node in NODES:
        assert play.drift(node), f"{node} is bare, and nothing was said to differ"
        assert play.stats[node]["failed"] == 0


def test_1_a_node_whose_plan_has_a_conflict_is_left_alone(fleet: Fleet, tmp_path: Path) -> None:
    before = fleet.sh("n2", FINGERPRINT).splitlines()
    pins = "{{ {'accelerator': 'cuda', 'torch': '2.1.2'} if inventory_hostname == 'n2' else {} }}"
    play = site(fleet, tmp_path, ok=False, gpufleet_pins=pins, gpufleet_roles=["git"])
    assert sorted(set(fleet.sh("n2", FINGERPRINT).splitlines()) ^ set(before)) == []
    found = reports(tmp_path)
    assert [node for node in NODES if found[node]["ok"]] == ["n1", "n3"], str(play)
    assert found["n2"]["plan"]["conflicts"][0]["remedy"] in found["n2"]["failures"][0]["message"]


def test_1_a_batch_without_a_good_node_is_the_last(fleet: Fleet, tmp_path: Path) -> None:
    play = site(fleet, tmp_path, ok=False, gpufleet_serial=2, llm_model_wanted=["no_such_model"])
    assert "0 of 3 nodes are ok" in play.output
    assert "n3: NOT OK" in play.output
    assert "this node's turn did not come" in play.output
    assert sorted(reports(tmp_path)) == ["n1", "n2"], "n3 was not touched"


def test_2_a_lost_node_leaves_the_others_running_and_is_named(fleet: Fleet, tmp_path: Path) -> None:
    fleet.sh("n3", "systemctl stop ssh.socket ssh.service; pkill -f '[s]shd: ops' || true")
    try:
        checked = site(fleet, tmp_path, "--check", ok=False)
        assert "n3: NOT OK" in checked.output
        assert checked.stats["n1"]["failed"] == checked.stats["n2"]["failed"] == 0
        # In batches, so that each node's turn comes and one recap names them all. n1 has git already, n2 has not: what only n2
        # has to run must not come behind what both have to.
        play = site(fleet, tmp_path, ok=False, gpufleet_serial=2)
        found = reports(tmp_path)
        assert found["n1"]["ok"] and found["n2"]["ok"], str(play)
        assert not found["n3"]["ok"]
        assert found["n3"]["reachable"] is False
        assert found["n3"]["failures"][0]["where"] == "connection"
        assert found["n3"]["failures"][0]["remedy"]
        assert play.output.count("2 of 3 nodes are ok") == 1
    finally:
        fleet.sh("n3", "systemctl start ssh")


def test_3_every_node_answers_and_says_so(fleet: Fleet, tmp_path: Path) -> None:
    site(fleet, tmp_path)
    found = reports(tmp_path)
    wanted = set(variables(tmp_path)["llm_model_wanted"])
    for node in NODES:
        assert found[node]["ok"], found[node]["failures"]
        assert set(found[node]["models"]) == wanted
        for name, model in found[node]["models"].items():
            assert model["load_seconds"] > 0, name
            assert model["peak_memory_bytes"] > 0, name
            assert "answer" in model, name
    assert found["n1"]["gpu"]["count"] == 1
    assert found["n1"]["gpu"]["names"] == ["Tesla T4"]
    assert found["n2"]["gpu"]["count"] == 0


def test_4_a_second_run_changes_nothing_and_costs_at_most_ten_calls(fleet: Fleet, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    wrapper = tmp_path / "ssh"
    # What really went over ssh, to check the number that the recap prints. Control commands (-O) are no calls.
    wrapper.write_text(f'#!/bin/sh\ncase " $* " in *" -O "*) ;; *) echo "$*" >> {calls} ;; esac\nexec ssh "$@"\n')
    wrapper.chmod(0o755)
    play = site(fleet, tmp_path, ansible_ssh_executable=str(wrapper))
    sent = calls.read_text().splitlines()
    addresses = {node: fleet.sh(node, "hostname -I").split()[0] for node in NODES}
    for node in NODES:
        assert play.changed(node) == 0, str(play)
        really = sum(1 for line in sent if f" {addresses[node]} " in line)
        assert play.calls[node] == really, f"the recap says {play.calls[node]}, ssh was called {really} times"
        assert play.calls[node] <= 10
    assert "TASK [gpufleet.llm." not in play.output, "a role ran although nothing differs"


def test_4_the_survey_comes_to_the_same_result_as_the_roles(fleet: Fleet, tmp_path: Path) -> None:
    seen = []
    for survey in (True, False):
        play = site(fleet, tmp_path, gpufleet_survey=survey)
        assert all(play.changed(node) == 0 for node in NODES), str(play)
        assert ("TASK [gpufleet.llm.llm_model : Say what was found]" in play.output) is not survey
        # The plan counts the memory that is free at the moment; the survey begins behind it.
        seen.append({node: {**report, "time": "", "plan": {}} for node, report in reports(tmp_path).items()})
    assert seen[0] == seen[1]


def test_4_from_the_first_role_that_differs_on_all_run(fleet: Fleet, tmp_path: Path) -> None:
    fleet.sh("n2", "chmod 0600 /etc/nginx/nginx.conf")
    play = site(fleet, tmp_path)
    assert {node: play.changed(node) > 0 for node in NODES} == {"n1": False, "n2": True, "n3": False}
    assert fleet.sh("n2", "stat -c %a /etc/nginx/nginx.conf").strip() == "644"
    ran = [
        role
        for role in ("git", "anaconda", "nginx", "cuda", "llm_model")
        if f"TASK [gpufleet.llm.{role} :" in play.output
    ]
    assert ran == ["nginx", "cuda", "llm_model"]


def test_5_check_and_diff_on_converged_nodes_show_nothing(fleet: Fleet, tmp_path: Path) -> None:
    play = site(fleet, tmp_path, "--check", "--diff")
    for node in NODES:
        assert play.changed(node) == 0
        assert not play.drift(node)
    assert "\n--- before" not in play.output
    assert "\n+++ after" not in play.output


@pytest.mark.parametrize(("name", "python"), [("core-2.18", "3.11"), ("core-2.21", "3.13")])
def test_7_other_versions_of_ansible_core_agree(fleet: Fleet, tmp_path: Path, name: str, python: str) -> None:
    made = subprocess.run([ROOT / "tools" / "setup", name, python], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no Python {python} on this machine")
    environment = Path(made.stdout.strip())
    path = f"{environment / 'bin'}:{os.environ['PATH']}"
    fleet.sh("n2", "rm -f /etc/gitconfig; apt-get purge -qy nginx nginx-common 2>/dev/null || true")
    play = site(fleet, tmp_path, env={"PATH": path})
    assert play.changed("n2") > 0, "the drift on n2 was healed by this version"
    again = site(fleet, tmp_path, env={"PATH": path})
    assert all(again.changed(node) == 0 for node in NODES), str(again)
    assert "[DEPRECATION WARNING]" not in again.output, again.output


def test_8_from_an_installed_collection(fleet: Fleet, tmp_path: Path) -> None:
    subprocess.run(
        ["ansible-galaxy", "collection", "build", "--output-path", str(tmp_path), "--force"], cwd=ROOT, check=True
    )
    tarball = next(tmp_path.glob("gpufleet-llm-*.tar.gz"))
    installed = tmp_path / "installed"
    (tmp_path / "ansible.cfg").write_text("[defaults]\nhost_key_checking = True\n")  # nothing of the clone's
    env = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(installed),
        "ANSIBLE_CONFIG": str(tmp_path / "ansible.cfg"),
    }
    install = ["ansible-galaxy", "collection", "install", "--offline", "-p", str(installed), str(tarball)]
    subprocess.run(install, cwd=tmp_path, env=env, check=True)
    extra = json.dumps(variables(tmp_path / "results"))
    done = subprocess.run(
        ["ansible-playbook", "gpufleet.llm.site", "-i", fleet.inventory, "-e", extra],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert set(reports(tmp_path / "results")) == set(NODES)


def test_9_bare_to_answer_on_every_distribution(tmp_path: Path) -> None:
    images = ["debian12", "debian13", "ubuntu22-like", "rhel9-like", "arch-like"]
    nodes = {image: image for image in images}
    with running("everywhere", nodes) as fleet:
        before = {node: fleet.sh(node, FINGERPRINT) for node in nodes}
        site(fleet, tmp_path, "--check", "--diff")
        for node in nodes:
            changed = set(fleet.sh(node, FINGERPRINT).splitlines()) ^ set(before[node].splitlines())
            assert sorted(changed) == [], f"{node} was only to be looked at"
        site(fleet, tmp_path)
        found = reports(tmp_path)
        for node in nodes:
            assert found[node]["ok"], found[node]["failures"]
            assert set(found[node]["models"]) == set(variables(tmp_path)["llm_model_wanted"])
        again = site(fleet, tmp_path)
        assert {node: again.changed(node) for node in nodes} == dict.fromkeys(nodes, 0), str(again)
        assert max(again.calls.values()) <= 10
        shown = site(fleet, tmp_path, "--check", "--diff")
        assert not any(shown.drift(node) for node in nodes)


# Where a run is killed: as the task of this name begins, with all before it done and nothing after it.
MOMENTS = [
    "git : Install the filters of git-lfs for every user",
    "anaconda : Run the installer",
    "anaconda : Write .condarc",
    "nginx : Install the package",
    "nginx : Write the configuration",
    "llm_model : Make the folders",
    "llm_model : Bring the clone to its commit",
    "llm_model : Make the environments",
    "llm_model : Wait for the weights",
    "llm_model : Ask each model one question",
]
DRAWN = os.environ.get("GPUFLEET_KILLED_AT") or random.choice(MOMENTS)
# By day one moment; at night every moment on Debian 12 and, dealt out, on the other distributions together.
OTHERS = [image for image in images() if image != "debian12"]
KILLED = [
    *[("debian12", moment) for moment in MOMENTS if "debian12" in images()],
    *[(OTHERS[number % len(OTHERS)], moment) for number, moment in enumerate(MOMENTS) if OTHERS],
]


@pytest.mark.parametrize(
    ("image", "moment"),
    KILLED if NIGHTLY else [("debian12", DRAWN)],
    ids=lambda value: value.replace(" ", "_"),
)
def test_10_a_run_killed_anywhere_is_healed_by_the_next(tmp_path: Path, image: str, moment: str) -> None:
    with running("killed", {"n1": image}) as fleet:
        log = tmp_path / "log"
        with log.open("w") as out:
            run = subprocess.Popen(
                fleet.argv("site.yml", **variables(tmp_path)),
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=fleet.environment(),
                start_new_session=True,
            )
            wait_for(
                f"{moment} or the end of the run",
                lambda: run.poll() is not None or f"TASK [gpufleet.llm.{moment}]" in log.read_text(),
                seconds=900,
            )
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
            run.wait()
        assert run.returncode == -signal.SIGKILL, log.read_text()[-4000:]
        site(fleet, tmp_path)
        again = site(fleet, tmp_path)
        assert again.changed("n1") == 0, str(again)
        assert reports(tmp_path)["n1"]["ok"]
