# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role anaconda and the modules artifact and conda_env on real nodes, with what goes wrong in the field."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[3]
FLEET = str(ROOT / "tests" / "fleet" / "fleet")
PREFIX = "/opt/gpufleet/conda"
ENVS = "/opt/gpufleet/test-envs"
DEPOT = "https://depot.gpufleet.test"
CA = "/etc/ssl/certs/ca-certificates.crt"


class Around:
    """The fleet around the nodes: modules and playbooks on one of them, and the depot's faults and log."""

    def __init__(self, inventory: str, node: str, folder: pathlib.Path, depot: Callable[..., str]) -> None:
        self.depot = depot
        self.inventory = inventory
        self.node = node
        self.folder = folder
        variables = yaml.safe_load(pathlib.Path(inventory).read_text(encoding="utf-8"))["all"]["vars"]
        self.facts: dict[str, Any] = variables["fleet_depot"]

    def command(self, task: dict[str, Any], become: bool = True) -> list[str]:
        """The command line that runs one task on the node."""
        playbook = self.folder / "task.yml"
        steps = [{**task, "register": "told", "ignore_errors": True}, {"ansible.builtin.copy": {
            "content": "{{ told | to_json }}", "dest": str(self.folder / "told.json")},
            "delegate_to": "localhost", "become": False,
            "vars": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}}]  # fmt: skip
        play = [{"hosts": self.node, "gather_facts": False, "become": become, "tasks": steps}]
        playbook.write_text(yaml.safe_dump(play), encoding="utf-8")
        return [sys.executable, "-m", "ansible", "playbook", "-i", self.inventory, str(playbook)]

    @property
    def environment(self) -> dict[str, str]:
        """As a user of the clone has it."""
        return {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".collections"),
            "ANSIBLE_NOCOLOR": "1",
        }

    def module(self, which: str, /, become: bool = True, **arguments: Any) -> dict[str, Any]:
        """Run a module on the node; what it returned, also when it failed."""
        told = self.folder / "told.json"
        told.unlink(missing_ok=True)
        done = subprocess.run(
            self.command({f"gpufleet.llm.{which}": arguments}, become),
            env=self.environment, cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert told.exists(), done.stdout + done.stderr
        return json.loads(told.read_text(encoding="utf-8"))

    def log(self, path: str) -> list[dict[str, Any]]:
        """The depot's log of requests for a path."""
        lines = [json.loads(line) for line in self.depot("log").splitlines() if line]
        return [line for line in lines if path in line["path"]]


@pytest.fixture
def around(node: Any, node_name: str, tmp_path: pathlib.Path, depot: Callable[..., str]) -> Around:
    inventory = os.environ.get("GPUFLEET_INVENTORY") or subprocess.run(
        [FLEET, "inventory", "--name", "mol-anaconda"], capture_output=True, text=True, check=True
    ).stdout.strip().splitlines()[-1]  # fmt: skip
    depot("clear")
    depot("clear-log")
    return Around(inventory, node_name, tmp_path, depot)


def wait_for(what: str, check: Callable[[], Any]) -> Any:
    """Poll until it is so; the limit only keeps a broken run from hanging."""
    for _ in range(600):
        value = check()
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError(f"waited in vain for {what}")


# -- the role ---------------------------------------------------------------------------------------------------------


def test_conda_works_and_belongs_to_root(node: Any) -> None:
    said = node.run(f"{PREFIX}/bin/conda --version")
    assert said.rc == 0
    assert said.stdout.startswith("conda 24.7.1")
    assert node.file(PREFIX).user == "root"
    assert node.file(f"{PREFIX}/conda-meta/history").exists


def test_conda_reads_our_condarc(node: Any) -> None:
    shown = json.loads(node.check_output(f"{PREFIX}/bin/conda config --show --json"))
    assert shown["channels"] == ["conda-forge"]
    assert shown["default_channels"] == []
    assert shown["auto_activate_base"] is False
    assert shown["ssl_verify"] == CA
    # where the mirror profile sends conda to
    alias, forge = shown["channel_alias"], shown["custom_channels"]["conda-forge"]
    assert f"{alias['scheme']}://{alias['location']}" == f"{DEPOT}/conda"
    assert f"{forge['scheme']}://{forge['location']}/{forge['name']}" == f"{DEPOT}/conda/conda-forge"


def test_nothing_is_left_of_the_installation(node: Any) -> None:
    assert not node.file(f"{PREFIX}.gpufleet-incomplete").exists
    assert not node.file(f"{PREFIX}.gpufleet-download").exists


@pytest.mark.parametrize(
    ("shell", "known"),
    [
        ("bash -ic", True),  # an interactive shell of a user who asked for it
        ("bash -lic", True),  # an interactive login shell
        ("bash -c", False),  # a script
        ("bash -lc", False),  # a script in a login shell, as cron and ssh run it
        ("sh -c", False),
    ],
)
def test_only_interactive_shells_know_conda(node: Any, shell: str, known: bool) -> None:
    said = node.run(f"su ops -s /bin/sh -c 'cd; {shell} \"type conda\" 2>/dev/null' </dev/null")
    assert (said.rc == 0) is known, said.stdout


def test_users_who_did_not_ask_are_left_alone(node: Any) -> None:
    assert "gpufleet" not in node.run("cat /root/.bashrc /root/.profile /etc/skel/.bashrc 2>/dev/null").stdout


def test_users_are_taken_out_again(node: Any, play: Any) -> None:
    before = node.file("/home/ops/.bashrc").content_string
    assert "gpufleet.llm" in before
    assert play({"anaconda_init_users": []}).rc == 0
    assert "gpufleet.llm" not in node.file("/home/ops/.bashrc").content_string
    assert play().rc == 0
    assert node.file("/home/ops/.bashrc").content_string == before
    assert node.file("/home/ops/.bashrc").user == "ops"


def test_a_killed_installation_is_done_again(node: Any, play: Any) -> None:
    node.check_output(f"mv {PREFIX} {PREFIX}.aside")
    try:
        # as a killed installer leaves it: some packages, no history, and the mark
        node.check_output(f"mkdir -p {PREFIX}/pkgs {PREFIX}/bin && echo install > {PREFIX}.gpufleet-incomplete")
        done = play()
        assert done.rc == 0, done
        assert node.run(f"{PREFIX}/bin/conda --version").rc == 0
        assert not node.file(f"{PREFIX}.gpufleet-incomplete").exists
        assert max(play().changed.values()) == 0
    finally:
        node.check_output(f"rm -rf {PREFIX} {PREFIX}.gpufleet-incomplete && mv {PREFIX}.aside {PREFIX}")


def test_another_distribution_and_version_in_place_and_back(node: Any, play: Any, around: Around) -> None:
    other = {"anaconda_distribution": "anaconda", "anaconda_version": "2023.09-0", "anaconda_min_free_mib": "512",
             "anaconda_sha256": around.facts["installers"]["Anaconda3-2023.09-0-Linux-x86_64.sh"]["sha256"]}  # fmt: skip
    node.check_output(f"mkdir -p {PREFIX}/envs/kept && touch {PREFIX}/envs/kept/file")
    try:
        assert play(other).rc == 0
        assert node.check_output(f"{PREFIX}/bin/conda --version") == "conda 23.7.4"
        assert max(play(other).changed.values()) == 0
        assert play().rc == 0
        assert node.check_output(f"{PREFIX}/bin/conda --version") == "conda 24.7.1"
        assert node.file(f"{PREFIX}/envs/kept/file").exists
    finally:
        node.check_output(f"rm -rf {PREFIX}/envs/kept")


def test_an_unmarked_half_made_prefix_is_replaced_and_a_foreign_one_is_not(node: Any, play: Any) -> None:
    other = "/opt/gpufleet/other"
    extra = {"anaconda_prefix": other, "anaconda_profile": False, "anaconda_init_users": []}
    node.check_output(f"mkdir -p {other} && echo work > {other}/thesis.txt")
    try:
        refused = play(extra)
        assert refused.rc != 0
        assert "holds something that is no conda installation" in refused.output
        assert node.file(f"{other}/thesis.txt").content_string == "work\n"
        assert not node.file(f"{other}.gpufleet-incomplete").exists
        node.check_output(f"rm {other}/thesis.txt && mkdir {other}/pkgs {other}/conda-meta")
        done = play(extra)
        assert done.rc == 0, done
        assert node.run(f"{other}/bin/conda --version").rc == 0
        gone = play({**extra, "anaconda_state": "absent"})
        assert gone.rc == 0, gone
        assert node.check_output("ls /opt/gpufleet").split().count("other") == 0
        assert max(play({**extra, "anaconda_state": "absent"}).changed.values()) == 0
    finally:
        node.check_output(f"rm -rf {other} {other}.gpufleet-incomplete {other}.gpufleet-download")


@pytest.fixture
def small(node: Any) -> Iterator[str]:
    """A directory on a filesystem (the node's own tmpfs of 64 MB) that has 8 MiB left."""
    node.check_output("mkdir /dev/shm/t && free=$(df --output=avail -B1M /dev/shm | tail -n 1) && "
                      "head -c $((free - 8))M /dev/zero > /dev/shm/ballast")  # fmt: skip
    yield "/dev/shm/t"  # noqa: S108
    node.check_output("rm -rf /dev/shm/t /dev/shm/ballast")


def test_a_disk_that_is_too_small_is_refused_before_the_first_byte(
    node: Any, play: Any, around: Around, small: str
) -> None:
    refused = play({"anaconda_prefix": f"{small}/conda", "anaconda_profile": False, "anaconda_init_users": []})
    assert refused.rc != 0
    assert "MiB free" in refused.output
    assert node.check_output(f"ls -A {small}") == ""
    assert around.log("/installers/") == []


def test_an_ordinary_user_installs_for_himself(node: Any, play: Any) -> None:
    extra = {"anaconda_prefix": "/home/ops/conda", "anaconda_user": "ops", "anaconda_profile": False,
             "anaconda_init_users": []}  # fmt: skip
    try:
        done = play(extra)
        assert done.rc == 0, done
        assert node.check_output("find /home/ops/conda ! -user ops | head -n 3") == ""
        assert max(play(extra).changed.values()) == 0
    finally:
        node.check_output("rm -rf /home/ops/conda /home/ops/conda.*")


def test_an_ordinary_user_needs_no_root_at_all(node: Any, around: Around) -> None:
    """A play without become: nothing is done by sudo, and nothing lies outside the user's home."""
    installer = around.facts["installers"]["Miniforge3-24.7.1-2-Linux-x86_64.sh"]
    variables = {"anaconda_prefix": "/home/ops/own", "anaconda_mirror_profile": "depot", "anaconda_version": "24.7.1-2",
                 "anaconda_sha256": installer["sha256"]}  # fmt: skip
    play = [{"hosts": around.node, "gather_facts": False, "vars": variables, "roles": ["gpufleet.llm.anaconda"]}]
    playbook = around.folder / "play.yml"
    playbook.write_text(yaml.safe_dump(play), encoding="utf-8")

    def run(*more: str) -> str:
        argv = [sys.executable, "-m", "ansible", "playbook", "-i", around.inventory, str(playbook), *more]
        done = subprocess.run(argv, env=around.environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    became = "journalctl --quiet --identifier sudo | grep -c BECOME[-]SUCCESS; true"  # not this line itself
    before = int(node.check_output(became))
    assert before > 0, "sudo of the other plays is in the journal"
    try:
        run()
        assert node.check_output("su ops -s /bin/sh -c '/home/ops/own/bin/conda --version'") == "conda 24.7.1"
        assert node.check_output("find /home/ops/own ! -user ops | head -n 3") == ""
        assert "changed=0 " in run()
        run("-e", "anaconda_state=absent")
        assert node.check_output("ls -A /home/ops | grep -c own; true") == "0"
        assert int(node.check_output(became)) == before
    finally:
        node.check_output("rm -rf /home/ops/own /home/ops/own.*")


def test_terms_of_service_are_accepted_only_when_the_inventory_says_so(node: Any, play: Any, around: Around) -> None:
    """With the fixture's stand-in for conda's plugin, and channels that have terms."""
    prefix = "/opt/gpufleet/terms"
    channels = [f"{DEPOT}/conda/pkgs/main", f"{DEPOT}/conda/pkgs/r"]

    def wanted(version: str, accept: bool) -> dict[str, Any]:
        installer = around.facts["installers"][f"Miniconda3-{version}-Linux-x86_64.sh"]
        return {"anaconda_prefix": prefix, "anaconda_profile": False, "anaconda_init_users": [],
                "anaconda_distribution": "miniconda", "anaconda_version": version, "anaconda_sha256": installer["sha256"],
                "anaconda_channels": ["defaults"], "anaconda_override_channels": False,
                "anaconda_accept_tos": accept, "anaconda_tos_channels": channels}  # fmt: skip

    def accepted() -> list[str]:
        found = node.check_output(f"cat {prefix}/conda-meta/tos/*/*.json 2>/dev/null; true").replace("}{", "}\n{")
        answers = [json.loads(line) for line in found.splitlines()]
        return sorted(answer["base_url"] for answer in answers if answer["tos_accepted"])

    use = f"{prefix}/bin/conda create --dry-run --yes --prefix /nowhere idna"
    try:
        old = play(wanted("py311_24.7.1-0", True))
        assert old.rc == 0, f"a conda that knows no terms needs no answer\n{old}"
        assert node.run(use).rc == 0
        new = play(wanted("py311_25.3.1-1", False))
        assert new.rc == 0, new
        assert node.check_output(f"{prefix}/bin/conda --version") == "conda 25.3.1"
        assert accepted() == []
        refused = node.run(use)
        assert refused.rc != 0 and "Terms of Service have not been accepted" in refused.stderr
        none = play({**wanted("py311_25.3.1-1", True), "anaconda_tos_channels": [f"{DEPOT}/conda/conda-forge"]})
        assert none.rc != 0 and "Terms of Service not found for" in none.output, none
        assert accepted() == []
        yes = play(wanted("py311_25.3.1-1", True))
        assert yes.rc == 0 and max(yes.changed.values()) > 0, yes
        assert accepted() == channels
        assert node.run(use).rc == 0
        again = play(wanted("py311_25.3.1-1", True))
        assert again.rc == 0 and max(again.changed.values()) == 0, again
    finally:
        node.check_output(f"rm -rf {prefix} {prefix}.*")


# -- artifact ---------------------------------------------------------------------------------------------------------

FILE = "Miniforge3-24.7.1-2-Linux-x86_64.sh"
URL = f"{DEPOT}/installers/{FILE}"


@pytest.fixture
def wanted(node: Any, around: Around) -> Iterator[dict[str, Any]]:
    node.check_output("rm -rf /opt/gpufleet/fetch && mkdir /opt/gpufleet/fetch")
    yield {"dest": "/opt/gpufleet/fetch/file", "sha256": around.facts["installers"][FILE]["sha256"], "urls": [URL]}
    node.check_output("rm -rf /opt/gpufleet/fetch")


def test_a_cut_download_is_resumed_by_the_next_run(node: Any, around: Around, wanted: dict[str, Any]) -> None:
    size = around.facts["installers"][FILE]["size"]
    cut = size // 2
    around.depot("fault", json.dumps({"path": FILE, "cut_after_bytes": cut, "times": 1}))
    told = around.module("artifact", **wanted, attempts=1)
    assert told["failed"] is True
    assert f"ended after {cut} of {size} bytes" in told["msg"]
    assert node.file("/opt/gpufleet/fetch/file.part").size == cut
    told = around.module("artifact", **wanted)
    assert (told["changed"], told["resumed_from_bytes"], told["downloaded_bytes"]) == (True, cut, size - cut)
    assert [line["status"] for line in around.log(FILE)] == [200, 206]
    assert around.log(FILE)[-1]["bytes"] == size - cut
    assert node.check_output("ls /opt/gpufleet/fetch") == "file"
    assert around.module("artifact", **wanted)["changed"] is False
    assert len(around.log(FILE)) == 2


def test_a_wrong_file_is_refused_and_the_next_place_asked(node: Any, around: Around, wanted: dict[str, Any]) -> None:
    around.depot("fault", json.dumps({"path": FILE, "corrupt": True, "times": 1}))
    told = around.module(
        "artifact", **{**wanted, "urls": [URL + "?first", "https://nowhere.gpufleet.test/x", URL]}, attempts=1
    )
    assert told["changed"] is True, told
    assert "wrong sha256" in told["failures"][0]["error"]
    assert "cannot be resolved" in told["failures"][1]["error"]
    assert node.check_output("sha256sum /opt/gpufleet/fetch/file").split()[0] == wanted["sha256"]


def test_a_small_disk_is_seen_before_the_first_byte(
    node: Any, around: Around, wanted: dict[str, Any], small: str
) -> None:
    told = around.module("artifact", **{**wanted, "dest": f"{small}/file"})
    assert told["failed"] is True
    assert "too small" in told["msg"]
    assert node.check_output(f"ls -A {small}") == ""
    around.depot("clear-log")
    told = around.module("artifact", **{**wanted, "dest": f"{small}/file"}, size_bytes=wanted_size(around))
    assert "too small" in told["msg"]
    assert around.log(FILE) == []


def wanted_size(around: Around) -> int:
    return int(around.facts["installers"][FILE]["size"])


# -- conda_env --------------------------------------------------------------------------------------------------------


@pytest.fixture
def env(node: Any) -> Iterator[dict[str, Any]]:
    yield {"prefix": f"{ENVS}/one", "conda": f"{PREFIX}/bin/conda", "python": "3.11", "packages": ["idna=3.10"]}
    node.check_output(f"rm -rf {ENVS}")


def test_an_environment_from_the_channel_by_prefix(node: Any, around: Around, env: dict[str, Any]) -> None:
    first = around.module("conda_env", **env)
    assert first["changed"] is True, first
    assert first["packages"]["idna"].startswith("3.10=")
    assert node.check_output(f"{ENVS}/one/bin/python -c 'import idna; print(idna.__version__)'") == "3.10"
    assert around.module("conda_env", **env)["changed"] is False
    other = around.module("conda_env", **{**env, "packages": ["idna=3.20"]})
    assert other["reasons"] == ["package idna is 3.10=pyhfixture_0, wanted =3.20"]
    assert other["packages"]["idna"].startswith("3.20=")
    assert node.check_output(f"ls -A {ENVS}") == "one"


def test_an_environment_by_name_is_idempotent(node: Any, around: Around, env: dict[str, Any]) -> None:
    wish = {**{key: env[key] for key in ("conda", "python")}, "name": "by-name"}
    try:
        assert around.module("conda_env", **wish)["prefix"] == f"{PREFIX}/envs/by-name"
        assert around.module("conda_env", **wish)["changed"] is False
        assert around.module("conda_env", **wish, state="absent")["changed"] is True
        assert around.module("conda_env", **wish, state="absent")["changed"] is False
    finally:
        node.check_output(f"rm -rf {PREFIX}/envs/by-name")


def test_a_creation_killed_half_way_is_healed(node: Any, around: Around, env: dict[str, Any]) -> None:
    around.depot("fault", json.dumps({"path": r"/conda/.*\.tar\.bz2", "bytes_per_second": 50, "times": 1}))
    run = subprocess.Popen(
        around.command({"gpufleet.llm.conda_env": env}), env=around.environment, cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for("conda to be at work", lambda: node.run(f"pgrep -f '[c]onda create --prefix {ENVS}/one'").rc == 0)
        assert node.file(f"{ENVS}/one/.gpufleet-incomplete").exists
        node.check_output(f"pkill -KILL -f '[c]onda create --prefix {ENVS}/one'; pkill -KILL -f '[A]nsiballZ'; true")
    finally:
        run.kill()
        run.wait()
    around.depot("clear")
    assert node.file(f"{ENVS}/one/.gpufleet-incomplete").exists, "the mark stays until the environment is verified"
    healed = around.module("conda_env", **env)
    assert (healed["changed"], healed["rebuilt"]) == (True, True), healed
    assert node.run(f"{ENVS}/one/bin/python -c 'import idna'").rc == 0
    assert around.module("conda_env", **env)["changed"] is False
    assert node.check_output(f"ls -A {ENVS}") == "one"


def test_a_channel_that_lacks_the_package_is_named(node: Any, around: Around, env: dict[str, Any]) -> None:
    told = around.module("conda_env", **{**env, "packages": ["no-such-thing=1"]})
    assert told["failed"] is True
    assert "no-such-thing" in told["msg"]
    assert around.module("conda_env", **env)["changed"] is True


def test_a_venv_by_uv_through_the_mirror(node: Any, around: Around, env: dict[str, Any]) -> None:
    lock = (ROOT / "roles/llm_model/files/tools.lock").read_text(encoding="utf-8")
    common = {"requirements": lock, "index_url": f"{DEPOT}/pypi/simple/", "ca_path": CA}
    tools = around.module("conda_env", prefix=env["prefix"], conda=env["conda"], python="3.11", **common)
    assert tools["changed"] is True, tools
    assert tools["installer"] == "pip"
    # By its full name: the fixture's conda copies the node's own Python, whose plain name is another one on Debian 13.
    wish = {"prefix": f"{ENVS}/two", "manager": "venv", "python": f"{env['prefix']}/bin/python3.11", "exact": True,
            "uv": f"{env['prefix']}/bin/uv", **common}  # fmt: skip
    made = around.module("conda_env", **wish)
    assert not made.get("failed"), made
    assert (made["changed"], made["installer"], made["manager"]) == (True, "uv", "venv"), made
    assert around.module("conda_env", **wish)["changed"] is False
    node.check_output(f"rm {ENVS}/two/lib/python3*/site-packages/tqdm-*.dist-info/RECORD")
    assert around.module("conda_env", **wish)["reasons"][0].startswith("tqdm:")
    assert around.module("conda_env", **wish)["changed"] is False
    assert around.module("conda_env", prefix=f"{ENVS}/two", state="absent")["changed"] is True
