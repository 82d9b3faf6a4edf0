# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# ruff: noqa: E501
"""Nodes for the scenarios' tests, from the inventory of the fleet ``mol-<scenario>``; works with and without molecule."""

from __future__ import annotations

import atexit
import functools
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import testinfra
import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
FLEET = ROOT / "tests" / "fleet" / "fleet"


def scenario_of(path: pathlib.Path) -> str:
    """molecule/<scenario>/tests/test_x.py -> scenario."""
    return path.resolve().relative_to(ROOT / "molecule").parts[0]


@functools.cache
def inventory_path(scenario: str) -> pathlib.Path:
    """GPUFLEET_INVENTORY, else the inventory of the scenario's own fleet."""
    given = os.environ.get("GPUFLEET_INVENTORY")
    if given:
        return pathlib.Path(given)
    said = subprocess.run(
        [str(FLEET), "inventory", "--name", f"mol-{scenario}".replace("_", "-")],
        capture_output=True,
        text=True,
        check=False,
    )
    if said.returncode:
        pytest.exit(f"no fleet is up for the scenario {scenario}: molecule create -s {scenario}\n{said.stderr}", 2)
    return pathlib.Path(said.stdout.strip().splitlines()[-1])


@functools.cache
def inventory(scenario: str) -> dict[str, Any]:
    """The fleet's inventory."""
    return yaml.safe_load(inventory_path(scenario).read_text(encoding="utf-8"))


def node_names(scenario: str) -> list[str]:
    """Names of the nodes, without the depot."""
    return sorted(inventory(scenario)["all"]["children"]["nodes"]["hosts"])


@functools.cache
def sockets() -> str:
    """A folder for ssh's shared connections, gone with the tests."""
    folder = tempfile.mkdtemp(prefix="gpufleet-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def connect(scenario: str, name: str) -> Any:
    """A testinfra host over ssh, as root by sudo."""
    everything = inventory(scenario)["all"]
    variables = {**everything.get("vars", {}), **everything["children"]["nodes"]["hosts"][name]}
    extra = variables.get("ansible_ssh_common_args", "").replace("-F none", "").strip()
    return testinfra.host.Host.get_host(
        f"ssh://{variables['ansible_user']}@{variables['ansible_host']}:{variables.get('ansible_port', 22)}",
        sudo=True,
        ssh_identity_file=variables["ansible_ssh_private_key_file"],
        ssh_extra_args=f"{extra} -o ControlMaster=auto -o ControlPath={sockets()}/%C -o ControlPersist=60s",
        ssh_config="none",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that ask for ``node`` run once per node."""
    if "node" in metafunc.fixturenames:
        scenario = scenario_of(pathlib.Path(str(metafunc.definition.path)))
        metafunc.parametrize("node_name", node_names(scenario), scope="module")


# Fixtures of tests that run the role (or a module) again themselves: minutes, where a look at the node takes a second.
RUNS_AGAIN = {"play", "around"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Looks run on every node. Tests that run the role again do so on one node, on all with GPUFLEET_NIGHTLY=1."""
    if os.environ.get("GPUFLEET_NIGHTLY"):
        return
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is None or not RUNS_AGAIN & set(getattr(item, "fixturenames", ())):
            continue
        names = node_names(scenario_of(pathlib.Path(str(item.path))))
        first = "debian12" if "debian12" in names else names[0]
        if callspec.params.get("node_name", first) != first:
            item.add_marker(
                pytest.mark.skip(reason=f"runs the role again: here on {first}, everywhere in `make nightly`")
            )


@pytest.fixture(scope="module")
def scenario(request: pytest.FixtureRequest) -> str:
    """The name of the scenario that this test belongs to."""
    return scenario_of(pathlib.Path(str(request.path)))


@pytest.fixture(scope="module")
def node(scenario: str, node_name: str) -> Any:
    """A testinfra host."""
    return connect(scenario, node_name)


@pytest.fixture
def depot(scenario: str) -> Iterator[Callable[..., str]]:
    """The depot of the scenario's fleet: ``depot("fault", '{"path": ...}')``, ``depot("log")``. Serves well afterwards."""

    def ask(*words: str) -> str:
        name = inventory_path(scenario).parent.name
        done = subprocess.run([str(FLEET), "depot", "--name", name, *words], capture_output=True, text=True, check=True)
        return done.stdout

    yield ask
    ask("clear")


class Run:
    """What one run of ansible-playbook ended with."""

    def __init__(self, process: subprocess.CompletedProcess[str]) -> None:
        self.rc = process.returncode
        self.output = process.stdout + process.stderr
        self.changed = {
            name: int(count) for name, count in re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", self.output, re.M)
        }

    def __repr__(self) -> str:
        return f"<rc {self.rc}, changed {self.changed}>\n{self.output}"


@pytest.fixture
def play(scenario: str, node_name: str, tmp_path: pathlib.Path) -> Iterator[Callable[..., Run]]:
    """Run the scenario's role on this one node: ``play({"nginx_version": "1.24.0"}, "--check")``."""
    playbook = ROOT / "molecule" / "shared" / "converge.yml"
    variables = os.environ.get("GPUFLEET_SCENARIO_VARS", str(ROOT / "molecule" / scenario / "vars.yml"))

    def run(extra: dict[str, Any] | None = None, *arguments: str) -> Run:
        given = tmp_path / "extra.yml"
        given.write_text(yaml.safe_dump(extra or {}), encoding="utf-8")
        environment = {
            **os.environ,
            "PATH": f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".collections"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_FORCE_COLOR": "0",
            "MOLECULE_SCENARIO_NAME": scenario,
            "GPUFLEET_SCENARIO_VARS": variables,
        }
        command = [
            sys.executable, "-m", "ansible", "playbook", "-i", str(inventory_path(scenario)), "--limit", node_name, "-e", f"@{given}",
            *arguments, str(playbook),
        ]  # fmt: skip
        return Run(subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT))

    yield run
