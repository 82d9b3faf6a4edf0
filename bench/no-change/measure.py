#!/usr/bin/env python3
"""What a run that changes nothing costs: site.yml with all its roles against two plain roles, on the same nodes.

site.yml is run as it is, and with gpufleet_survey=false, which runs every role task by task. All are converged first, then run
in turn C(--rounds) times over warm ssh connections. Wall time, CPU of the controller (this process's children) and CPU of the
nodes (their cgroups) are read around each run. Printed: median and minimum of each, and the ratios. Needs what `make demo`
needs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FLEET = str(ROOT / "tests" / "fleet" / "fleet")
NAME = "bench"


def fleet(*args: str) -> str:
    """Call the fleet's tool; its output."""
    return subprocess.run([FLEET, *args], check=True, capture_output=True, text=True).stdout


def node_cpu(nodes: list[str]) -> float:
    """CPU seconds that all nodes have used since they started."""
    used = 0.0
    for node in nodes:
        stat = fleet("exec", "--name", NAME, node, "--", "cat", "/sys/fs/cgroup/cpu.stat")
        used += int(dict(line.split() for line in stat.splitlines())["usage_usec"]) / 1e6
    return used


def play(argv: list[str], nodes: list[str], must_not_change: bool) -> dict[str, float]:
    """Run one playbook and read what it cost."""
    node_before, own_before, begin = node_cpu(nodes), resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, check=False)
    wall, own = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(argv)}\n{done.stdout[-6000:]}{done.stderr[-2000:]}")
    if must_not_change and any(f"changed={n}" in done.stdout for n in range(1, 10)):
        sys.exit(f"a run that should change nothing changed something\n{done.stdout[-3000:]}")
    spent = own.ru_utime + own.ru_stime - own_before.ru_utime - own_before.ru_stime
    return {"wall": wall, "controller_cpu": spent, "node_cpu": node_cpu(nodes) - node_before}


def main() -> None:
    """Bring the nodes up, converge, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", action="store_true", help="leave the nodes up")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    nodes = [f"n{i + 1}" for i in range(args.nodes)]
    os.environ["ANSIBLE_CONFIG"] = str(ROOT / "ansible.cfg")
    fleet("build", "debian12", "depot")
    subprocess.run([FLEET, "down", "--name", NAME], check=False, capture_output=True)
    fleet("up", "--name", NAME, "--depot", *[f"{n}=debian12" for n in nodes])
    inventory = fleet("inventory", "--name", NAME).strip()
    demo_vars = [
        arg for path in sorted((ROOT / "inventories/demo/group_vars").rglob("*.yml")) for arg in ("-e", f"@{path}")
    ]
    ours = ["ansible-playbook", "site.yml", "-i", inventory, *demo_vars, "-e", "gpufleet_hosts=nodes"]
    ours += ["-e", f"gpufleet_results_dir={ROOT / 'results' / 'bench'}"]
    in_full = [*ours, "-e", "gpufleet_survey=false"]
    plain = ["ansible-playbook", str(HERE / "plain.yml"), "-i", inventory]
    os.environ["ANSIBLE_ROLES_PATH"] = str(HERE / "roles")
    try:
        for argv in (ours, plain, ours, plain):
            play(argv, nodes, must_not_change=False)
        sides = {"site.yml, all roles": ours, "the same, in full": in_full, "two plain roles": plain}
        seen: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for _round in range(args.rounds):
            for name, argv in sides.items():
                seen[name].append(play(argv, nodes, must_not_change=True))
    finally:
        if not args.keep:
            fleet("down", "--name", NAME)
    figures = {
        name: {
            key: {"median": statistics.median(r[key] for r in runs), "min": min(r[key] for r in runs)}
            for key in runs[0]
        }
        for name, runs in seen.items()
    }
    print(f"{args.nodes} nodes over ssh, {args.rounds} rounds in turn, seconds: median (minimum)")
    for name, row in figures.items():
        print(f"{name:<22}" + "".join(f"  {k} {v['median']:7.2f} ({v['min']:.2f})" for k, v in row.items()))
    first, in_full_row, second = figures.values()
    ratios = {
        name: {key: row[key]["median"] / max(first[key]["median"], 1e-9) for key in first}
        for name, row in {"plain : ours": second, "in full : ours": in_full_row}.items()
    }
    for name, row_of in ratios.items():
        print(f"{name:<22}" + "".join(f"  {key} {value:6.1f} x" for key, value in row_of.items()))
    if args.json:
        args.json.write_text(json.dumps({"figures": figures, "ratios": ratios}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
