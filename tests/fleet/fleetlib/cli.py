# Copyright: Contributors to the gpufleet.llm project
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line of the test fleet."""

from __future__ import annotations

import argparse
import shutil
import sys

from . import depot, host, images, nodes
from .host import FleetError, ensure_host, say


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fleet", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, fleet: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        if fleet:
            sub.add_argument("--name", required=True, help="the fleet's name")
        return sub

    doctor = add("doctor", "say whether a fleet can run on this machine, and install what is missing", False)
    doctor.add_argument("--no-install", action="store_true", help="only look")
    build = add("build", "build images (all of them, or those named)", False)
    build.add_argument("image", nargs="*")
    start = add("up", "start a fleet and print its inventory's path")
    start.add_argument("--depot", action="store_true", help="with the depot that serves everything nodes fetch")
    start.add_argument("node", nargs="+", metavar="NODE=IMAGE[:GPU]")
    stop = add("down", "remove a fleet, or all of them", False)
    which = stop.add_mutually_exclusive_group(required=True)
    which.add_argument("--name")
    which.add_argument("--all", action="store_true")
    add("purge", "remove all fleets, the images and the cache", False)
    execute = add("exec", "run a root command in a node, without ssh")
    execute.add_argument("node")
    execute.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- CMD …")
    add("inventory", "print the path of the fleet's inventory")
    at_depot = add("depot", "the depot's access log, and faults planned for it")
    actions = at_depot.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("log", help="print the access log, a JSON object per line")
    fault = actions.add_parser("fault", help="plan faults: a JSON object or a list of them")
    fault.add_argument("json")
    actions.add_parser("clear", help="forget all planned faults")
    actions.add_parser("clear-log", help="begin a new access log")
    local = add("depot-local", "serve the depot on this machine's loopback until interrupted", False)
    local.add_argument("--port", type=int, default=8443)
    add("list", "name the fleets that are up", False)
    return parser


def main(argv: list[str]) -> int:
    """Run one command; the exit status is 0, 2 for what the caller or the machine lacks, or 1."""
    args = _parser().parse_args(argv)
    try:
        return _dispatch(args)
    except FleetError as error:
        print(f"fleet: {error}", file=sys.stderr)
        return error.rc
    except KeyboardInterrupt:
        return 130


def _dispatch(args: argparse.Namespace) -> int:
    if args.command == "doctor":
        ensure_host(install=not args.no_install)
        host.podman("version", "--format", "{{.Client.Version}}")
        say("a fleet can run here")
        return 0
    ensure_host()
    if args.command == "build":
        for name in args.image or list(images.IMAGES):
            print(images.build(name))
            if name == "depot":
                depot.build_contents()
    elif args.command == "up":
        fleet = nodes.fleet_named(args.name)
        print(nodes.up(fleet, [nodes.parse_node(text) for text in args.node], args.depot))
    elif args.command == "down":
        if args.all:
            nodes.down_all()
        else:
            nodes.down(nodes.fleet_named(args.name))
    elif args.command == "purge":
        _purge()
    elif args.command == "exec":
        command = args.argv[1:] if args.argv[:1] == ["--"] else args.argv
        if not command:
            raise FleetError("no command: fleet exec --name NAME NODE -- CMD …", 2)
        return nodes.execute(nodes.fleet_named(args.name), args.node, command)
    elif args.command == "inventory":
        fleet = nodes.fleet_named(args.name)
        fleet.state()
        print(fleet.inventory)
    elif args.command == "depot":
        _depot(nodes.fleet_named(args.name), args)
    elif args.command == "depot-local":
        return depot.run_local(args.port)
    elif args.command == "list":
        for fleet in nodes.all_fleets():
            print(fleet.name)
    return 0


def _depot(fleet: nodes.Fleet, args: argparse.Namespace) -> None:
    if not fleet.state()["depot"]:
        raise FleetError(f"fleet {fleet.name} was started without --depot", 2)
    if args.action == "log":
        sys.stdout.write(depot.log_lines(fleet.depot_state))
    elif args.action == "fault":
        depot.plan_faults(fleet.depot_state, depot.check_fault(args.json))
    elif args.action == "clear":
        depot.plan_faults(fleet.depot_state, [], keep=False)
    elif args.action == "clear-log":
        (fleet.depot_state / "access.jsonl").unlink(missing_ok=True)


def _purge() -> None:
    nodes.down_all()
    listed = host.podman("images", "--format", "{{.Repository}}:{{.Tag}}").stdout.split()
    ours = [name for name in listed if name.startswith("localhost/gpufleet-")]
    if ours:
        host.podman("rmi", "--force", *ours)
    host.drop_namespace()
    for name in host.CACHE_ENTRIES:  # others keep tool chains in the same cache
        path = host.CACHE / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
