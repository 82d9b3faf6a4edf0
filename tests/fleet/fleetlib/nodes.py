# Copyright: Contributors to the gpufleet.llm project
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet: one podman network, its node containers with fixed addresses, keys of its own, and an inventory."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import depot, gpu, host, images, pki
from .host import FLEETS, FleetError, drop_namespace, podman, podman_argv, run, say, wait_for

GPUS = ("none", "t4", "p100", "gtx1060", "h100", "h100-mig", "hgx-h100", "mismatch", "lost")
NAME = re.compile(r"^[a-z][a-z0-9-]{0,30}$")


@dataclass(frozen=True)
class Node:
    """A node as asked for: its name, image, GPU profile, and whether a driver answers for that GPU."""

    name: str
    image: str
    gpu: str = "none"
    driver: bool = True

    @property
    def gpu_label(self) -> str:
        """The GPU part as it was written: t4, t4-nodriver, none."""
        return self.gpu if self.driver or self.gpu == "none" else f"{self.gpu}-nodriver"


def parse_node(text: str) -> Node:
    """`n1=debian12:t4-nodriver` → Node; FleetError says what is wrong with it."""
    match = re.match(r"^([^=]+)=([^:]+)(?::(.+))?$", text)
    if not match:
        raise FleetError(f"{text!r} is not NODE=IMAGE[:GPU], for example n1=debian12:t4", 2)
    name, image, gpu = match[1], match[2], match[3] or "none"
    if not NAME.match(name) or name == "depot":
        raise FleetError(f"{name!r} cannot be a node's name (a-z, 0-9, -; not depot)", 2)
    images.image_named(image)
    driver = not gpu.endswith("-nodriver")
    gpu = gpu.removesuffix("-nodriver")
    if gpu not in GPUS:
        raise FleetError(f"no GPU profile {gpu!r}; there are {', '.join(GPUS)}, each but none also as NAME-nodriver", 2)
    return Node(name, image, gpu, driver)


@dataclass(frozen=True)
class Fleet:
    """What a fleet is called and where it keeps its state."""

    name: str

    @property
    def folder(self) -> Path:
        """The fleet's state on this machine."""
        return FLEETS / self.name

    @property
    def network(self) -> str:
        """Its podman network."""
        return f"gpufleet-{self.name}"

    def container(self, node: str) -> str:
        """The podman name of a node."""
        return f"gpufleet-{self.name}-{node}"

    @property
    def inventory(self) -> Path:
        """The inventory file, written when the fleet is up."""
        return self.folder / "inventory.yml"

    @property
    def depot_state(self) -> Path:
        """Where its depot keeps the access log and reads the planned faults."""
        return self.folder / "depot"

    def state(self) -> dict[str, Any]:
        """What `up` wrote down; FleetError when there is no such fleet."""
        path = self.folder / "state.json"
        if not path.exists():
            there = sorted(entry.name for entry in FLEETS.glob("*")) if FLEETS.exists() else []
            raise FleetError(f"no fleet {self.name!r} is up (there are: {', '.join(there) or 'none'})", 2)
        return json.loads(path.read_text(encoding="utf-8"))


def fleet_named(name: str) -> Fleet:
    """Check the name."""
    if not NAME.match(name):
        raise FleetError(f"{name!r} cannot be a fleet's name (a-z, 0-9, -)", 2)
    return Fleet(name)


def up(fleet: Fleet, nodes: list[Node], with_depot: bool) -> Path:
    """Start the fleet; return the inventory's path. A failed start is taken down again."""
    if (fleet.folder / "state.json").exists():
        raise FleetError(f"fleet {fleet.name!r} is already up; `fleet down --name {fleet.name}` first", 2)
    names = [node.name for node in nodes]
    if len(set(names)) != len(names):
        raise FleetError("two nodes have the same name", 2)
    tags = {image: images.build(image) for image in {node.image for node in nodes}}
    roots = depot.build_contents() if with_depot else {}
    down(fleet)  # whatever a killed start has left
    host.raise_limits()
    fleet.folder.mkdir(parents=True)
    try:
        podman("network", "create", "--disable-dns", "--label", f"gpufleet.fleet={fleet.name}", fleet.network)
        addresses = _addresses(fleet, [*names, "depot"])
        _keys(fleet, [*names, "depot"] if with_depot else names, addresses)
        hosts = [f"--add-host={name}:{address}" for name, address in addresses.items() if name != "depot"]
        hosts.append(f"--add-host={pki.DEPOT_HOST}:{addresses['depot']}")

        def start(node: Node) -> None:
            _start(fleet, node, tags[node.image], addresses[node.name], hosts)

        everyone = [*names]
        if with_depot:
            everyone.append("depot")
            _start_depot(fleet, addresses["depot"], hosts, roots)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(start, nodes))
            list(pool.map(lambda name: _wait_ready(fleet, name, addresses[name]), everyone))
        if with_depot:
            wait_for("the depot answers", lambda: depot.answers(addresses["depot"]), 30)
        _write_inventory(fleet, nodes, addresses, depot.facts(roots) if with_depot else {})
        state = {
            "name": fleet.name,
            "depot": with_depot,
            "addresses": addresses,
            "nodes": {node.name: {"image": node.image, "gpu": node.gpu_label} for node in nodes},
        }
        (fleet.folder / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    except BaseException:
        if not os.environ.get("GPUFLEET_KEEP_FAILED"):
            down(fleet)
        raise
    return fleet.inventory


def _addresses(fleet: Fleet, names: list[str]) -> dict[str, str]:
    """A fixed address for each node, so that it is the same after a reboot."""
    network = json.loads(podman("network", "inspect", fleet.network).stdout)[0]
    subnet = ipaddress.ip_network(network["subnets"][0]["subnet"])
    hosts = subnet.hosts()
    next(hosts)  # the gateway
    return dict(zip(names, map(str, hosts), strict=False))


def _keys(fleet: Fleet, names: list[str], addresses: dict[str, str]) -> None:
    """The fleet's own login key, one host key per node, and the known_hosts that goes with them."""
    keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", ""]
    login = fleet.folder / "id_ed25519"
    run([*keygen, "-C", f"fleet {fleet.name}", "-f", str(login)])
    known = []
    for name in names:
        folder = fleet.folder / "nodes" / name
        folder.mkdir(parents=True)
        run([*keygen, "-C", name, "-f", str(folder / "ssh_host_ed25519_key")])
        shutil.copyfile(f"{login}.pub", folder / "authorized_keys")
        public = (folder / "ssh_host_ed25519_key.pub").read_text(encoding="utf-8").split()
        known.append(f"{addresses[name]},{name} {public[0]} {public[1]}\n")
    (fleet.folder / "known_hosts").write_text("".join(known), encoding="utf-8")


def _container(fleet: Fleet, name: str, address: str, hosts: list[str], image: str, extra: list[str]) -> None:
    """Create the container of a node, not started yet."""
    podman(
        "create", "--systemd=always", "--restart=always", "--pull=never", "--stop-timeout=5",
        f"--name={fleet.container(name)}", f"--hostname={name}",
        f"--network={fleet.network}", f"--ip={address}", *hosts,
        f"--label=gpufleet.fleet={fleet.name}", f"--label=gpufleet.node={name}",
        "--cap-add=AUDIT_WRITE", "--cap-add=NET_RAW", f"--volume={fleet.folder}/nodes/{name}:/etc/gpufleet:ro",
        # A disk that is too small for anything, for the tests that need one.
        "--tmpfs=/mnt/small:size=64m,mode=1777",
        *extra, image,
    )  # fmt: skip


def _start(fleet: Fleet, node: Node, image: str, address: str, hosts: list[str]) -> None:
    """Start a node, with its card and that card's driver when it has them."""
    extra = gpu.mounts(node.gpu, node.driver, fleet.folder / "nodes" / node.name) if node.gpu != "none" else []
    _container(fleet, node.name, address, hosts, image, extra)
    container = fleet.container(node.name)
    if node.gpu != "none" and node.driver:
        files = gpu.driver_files(node.gpu, node.image)
        done = subprocess.run(podman_argv("cp", "-", f"{container}:/"), input=files, capture_output=True, check=False)
        if done.returncode != 0:
            raise FleetError(f"the driver's files did not get into {node.name}: {done.stderr.decode().strip()}")
    podman("start", container)


def _start_depot(fleet: Fleet, address: str, hosts: list[str], roots: dict[str, Path]) -> None:
    """The depot's container: contents and server code mounted, log and faults in the fleet's folder."""
    folder = fleet.folder / "nodes" / "depot"
    state = fleet.depot_state
    state.mkdir()
    inside = {area: f"/srv/depot/{area}" for area in roots}
    depot.write_config(
        folder / "depot.json", inside, "/var/lib/depot", 443, [pki.DEPOT_HOST, "depot", address], "0.0.0.0"
    )
    mounts = [f"--volume={source}:{inside[area]}:ro" for area, source in roots.items()]
    mounts += [f"--volume={state}:/var/lib/depot", f"--volume={depot.SERVER}:/srv/depot-code:ro"]
    _container(fleet, "depot", address, hosts, images.build("depot"), mounts)
    podman("start", fleet.container("depot"))


def ssh_argv(fleet: Fleet, address: str) -> list[str]:
    """How this machine logs in to a node as `ops`, with nothing taken from the user's own configuration."""
    options = [f"UserKnownHostsFile={fleet.folder}/known_hosts", "StrictHostKeyChecking=yes", "IdentitiesOnly=yes"]
    options += ["BatchMode=yes", "ConnectTimeout=5"]
    flags = [flag for option in options for flag in ("-o", option)]
    return ["ssh", "-F", "none", "-i", str(fleet.folder / "id_ed25519"), *flags, f"ops@{address}"]


def _wait_ready(fleet: Fleet, name: str, address: str) -> None:
    """Until systemd has finished starting and ops can log in and become root."""
    container = fleet.container(name)

    def booted() -> bool:
        state = podman("exec", container, "systemctl", "is-system-running", "--wait", check=False, timeout=60)
        word = state.stdout.strip()
        if word == "degraded":
            failed = podman("exec", container, "systemctl", "--failed", "--plain", "--no-legend", check=False).stdout
            raise FleetError(f"units failed in {name}: {failed.strip()}")
        if word != "running":
            raise FleetError(f"systemd says {word or state.stderr.strip()[-300:]!r}")
        return True

    wait_for(f"{name} boots", booted, 60)
    wait_for(f"{name} takes a login", lambda: run([*ssh_argv(fleet, address), "sudo", "-n", "true"], timeout=20), 40)


def _write_inventory(fleet: Fleet, nodes: list[Node], addresses: dict[str, str], depot_facts: dict[str, Any]) -> None:
    """The inventory; `fleet_depot` in it says what only this depot's contents can tell (keys, sums of installers)."""
    # JSON is YAML, and every value below is a plain string: no quoting to get wrong.
    common = (
        f"-F none -o UserKnownHostsFile={fleet.folder}/known_hosts -o StrictHostKeyChecking=yes -o IdentitiesOnly=yes"
    )
    hosts: dict[str, Any] = {
        node.name: {"ansible_host": addresses[node.name], "fleet_image": node.image, "fleet_gpu": node.gpu_label}
        for node in nodes
    }
    children: dict[str, Any] = {"nodes": {"hosts": hosts}}
    # Not called `depot`: a host and a group of one name confuse ansible.
    children["depot"] = {"hosts": {pki.DEPOT_HOST: {"ansible_host": addresses["depot"]}} if depot_facts else {}}
    inventory = {
        "all": {
            "vars": {
                "ansible_user": "ops",
                "ansible_python_interpreter": "/usr/bin/python3",
                "ansible_ssh_private_key_file": str(fleet.folder / "id_ed25519"),
                "ansible_ssh_common_args": common,
                **depot_facts,
            },
            "children": children,
        }
    }
    fleet.inventory.write_text(json.dumps(inventory, indent=2) + "\n", encoding="utf-8")


def down(fleet: Fleet) -> None:
    """Remove the fleet's containers, network and state; nothing is an error when it is not there."""
    label = f"label=gpufleet.fleet={fleet.name}"
    containers = podman("ps", "--all", "--quiet", "--filter", label).stdout.split()
    if containers:
        podman("rm", "--force", "--time=0", "--volumes", *containers)
    if podman("network", "exists", fleet.network, check=False).returncode == 0:
        podman("network", "rm", "--force", fleet.network)
    if fleet.folder.exists():
        shutil.rmtree(fleet.folder)
    if not podman("ps", "--all", "--quiet", "--filter", "label=gpufleet.fleet").stdout.strip():
        host.restore_limits()


def all_fleets() -> list[Fleet]:
    """Every fleet that left a trace: state, container or network."""
    names = {path.name for path in FLEETS.glob("*")} if FLEETS.exists() else set()
    for command in (("ps", "--all"), ("network", "ls")):
        listed = podman(*command, "--filter", "label=gpufleet.fleet", "--format", "json").stdout
        for entry in json.loads(listed or "[]"):
            names.add((entry.get("Labels") or entry.get("labels") or {}).get("gpufleet.fleet", ""))
    return [Fleet(name) for name in sorted(names) if NAME.match(name)]


def down_all() -> None:
    """Take all fleets down and give back the pinned namespace."""
    for fleet in all_fleets():
        say(f"taking down {fleet.name}")
        down(fleet)
    if FLEETS.exists():
        shutil.rmtree(FLEETS)
    drop_namespace()


def execute(fleet: Fleet, node: str, argv: list[str]) -> int:
    """A root command in a node, without ssh; stdin is passed on when it is not a terminal. Returns its exit status."""
    state = fleet.state()
    if node not in state["nodes"] and not (node == "depot" and state["depot"]):
        raise FleetError(f"no node {node!r} in fleet {fleet.name}: {', '.join(state['nodes'])}", 2)
    sys.stdout.flush()
    return subprocess.run(podman_argv("exec", "--interactive", fleet.container(node), *argv), check=False).returncode
