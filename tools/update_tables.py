#!/usr/bin/env python3
# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Regenerate the tables from their public sources; a new release is one run and one reviewed diff.

    tools/update_tables.py all --write             # every table in one run: this is `make tables`
    tools/update_tables.py all                     # only show what would change
    tools/update_tables.py all --source notes=notes.html --source matrix=https://mirror.example/RELEASE.md

    tools/update_tables.py torch 2.15.0            # one source alone: the rows of these releases, read with pip
    tools/update_tables.py variants RELEASE.md     # pytorch/pytorch RELEASE.md, a file or an https URL
    tools/update_tables.py arch-lists build_cuda.sh --torch 2.16   # pytorch/pytorch .ci/manywheel/build_cuda.sh
    tools/update_tables.py toolkits release-notes.html   # NVIDIA's CUDA Toolkit release notes, a file or an https URL

Without --write nothing is written and the difference is printed. Rows that a source does not name, and rows whose own
`source` says that they came from elsewhere (by hand), stay as they are. A source that cannot be reached, or whose layout
has changed, is named at the end; the others are used all the same.

Exit status: 0 nothing differs, or it was written; 1 something differs and was not written; 3 a source failed.

torch is asked for at the index that pip is configured for, through pip itself: one query per release and companion, and
one per Python version; nothing is downloaded but metadata.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import datetime
import difflib
import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import cached_env
from table_sources import (
    SourceError,
    Table,
    update_arch_lists,
    update_branches,
    update_chips,
    update_cudnn,
    update_node_table,
    update_runfiles,
    update_support_matrix,
    update_toolkits,
    update_variants,
    version_key,
)

DATA = os.path.join(os.path.dirname(__file__), "..", "plugins", "plugin_utils", "data")
# Tags of the wheels there have been, oldest first, and the C library that each asks for (PEP 513, 571, 599, 600).
PLATFORMS = {
    "manylinux1_x86_64": "2.5",
    "manylinux2010_x86_64": "2.12",
    "manylinux2014_x86_64": "2.17",
    "manylinux_2_17_x86_64": "2.17",
    "manylinux_2_27_x86_64": "2.27",
    "manylinux_2_28_x86_64": "2.28",
    "manylinux_2_34_x86_64": "2.34",
}
Runner = Callable[[Sequence[str]], str]


# ---------------------------------------------------------------------------------------------------- canonical form


def render(head: Sequence[str], table: Mapping[str, Any]) -> str:
    """The canonical text of a table: short rows on one line, long rows one key per line, so that diffs are small."""
    lines = ["---", *[f"# {line}" for line in head]]
    for key, value in table.items():
        if isinstance(value, dict) and all(not isinstance(v, (dict, list)) for v in value.values()):
            lines.append(f"{key}:")
            lines += [f"  {k}: {_scalar(v)}" for k, v in value.items()]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines.append(f"{key}:")
            for row in value:
                lines += _row(row)
        else:
            lines.append(f"{key}: {_flow(value)}")
    return "\n".join(lines) + "\n"


def _scalar(value: Any) -> str:
    return str(yaml.safe_dump(value, width=10000, default_flow_style=True)).removesuffix("\n").removesuffix("\n...")


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(v) for v in value) + "]"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        reserved = {"yes", "no", "on", "off", "true", "false", "null", "y", "n"}
        bare = re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", value) and value.lower() not in reserved
        return value if bare else "'" + value.replace("'", "''") + "'"
    return str(value)


def _row(row: Mapping[str, Any]) -> list[str]:
    one = f"  - {_flow(dict(row))}"
    if len(one) <= 150:
        return [one]
    return [f"  {'  ' if number else '- '}{key}: {_flow(value)}" for number, (key, value) in enumerate(row.items())]


def read(name: str) -> tuple[list[str], Table, str]:
    """Head comment, content and text of a committed table."""
    with open(os.path.join(DATA, f"{name}.yml"), encoding="utf-8") as handle:
        text = handle.read()
    head = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
    return head, yaml.safe_load(text), text


# -------------------------------------------------------------------------------------------------------------- torch


def run_pip(arguments: Sequence[str]) -> str:
    """Standard output of pip; empty when it found nothing. The interpreter is $UPDATE_TABLES_PYTHON, or the cache's pip."""
    python = os.environ.get("UPDATE_TABLES_PYTHON")
    pip = [python, "-m", "pip"] if python else cached_env.pip()
    done = subprocess.run(
        [*pip, "--disable-pip-version-check", *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    if "No module named pip" in done.stderr:
        raise SystemExit(f"{python} has no pip; set UPDATE_TABLES_PYTHON to one that has")
    return done.stdout if done.returncode == 0 else ""


def wheel(requirement: str, python: str, pip: Runner) -> dict[str, Any] | None:
    """Name, tag and requirements of the wheel that pip would take for Linux x86_64, or nothing when there is none."""
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "report.json")
        arguments = ["install", "--dry-run", "--quiet", "--no-deps", "--ignore-installed", "--only-binary=:all:"]
        arguments += ["--report", report, "--target", folder, "--python-version", python]
        for platform in PLATFORMS:
            arguments += ["--platform", platform]
        pip([*arguments, requirement])
        if not os.path.exists(report):
            return None
        with open(report, encoding="utf-8") as handle:
            item = json.load(handle)["install"][0]
    return {
        "file": str(item["download_info"]["url"]).rsplit("/", 1)[-1].partition("#")[0],
        "version": str(item["metadata"]["version"]),
        "requires": list(item["metadata"].get("requires_dist") or []),
    }


def releases_for(python: str, pip: Runner) -> set[str]:
    """Every torch release that has a wheel for a Python."""
    arguments = ["index", "versions", "torch", "--only-binary=:all:", "--python-version", python]
    for platform in PLATFORMS:
        arguments += ["--platform", platform]
    match = re.search(r"Available versions: (.*)", pip(arguments))
    return {text.strip().partition("+")[0] for text in match.group(1).split(",")} if match else set()


def pin(requires: Sequence[str], name: str) -> str | None:
    """The version that ``Requires-Dist`` pins for a distribution (a regular expression), or its specifier."""
    for line in requires:
        match = re.match(rf"(?:{name})(?:\[[^\]]*\])?\s*\(?((?:[=<>~!]=?|===)[^;)]*)\)?", line)
        if match:
            return match.group(1).strip().removeprefix("==").strip()
    return None


def glibc_of(file: str) -> str | None:
    """The C library that a wheel's file name asks for (the lowest of its tags)."""
    found = [glibc for tag, glibc in PLATFORMS.items() if tag in file]
    return min(found, key=version_key) if found else None


def companion(name: str, torch: str, python: str, pip: Runner) -> str | None:
    """The torchvision or torchaudio that was released with a torch: same minor, whose wheel does not refuse it."""
    major, minor, patch = (*version_key(torch), 0, 0)[:3]
    if name == "torchvision":
        series = f"0.{minor + (15 if major >= 2 else 1)}"
    else:
        series = f"{major}.{minor}" if major >= 2 else f"0.{minor}"
    loose = None
    for step in (patch + 1, patch):
        number = f"{series}.{step}"
        found = wheel(f"{name}=={number}", python, pip)
        wanted = pin(found["requires"], "torch(?![a-z_-])") if found else torch
        if found and wanted == torch:
            return number
        if found and (wanted is None or not re.match(r"\d", wanted)):
            loose = number
    if loose is not None:
        return loose
    if name == "torchvision":
        # From 0.29.1 on torchvision asks for a lower bound only, and its minor no longer follows torch's.
        found = wheel(f"torchvision==0.{minor + 14}.*", python, pip)
        if found is not None and str(pin(found["requires"], "torch(?![a-z_-])")).startswith(">="):
            return str(found["version"])
    return None


def torch_row(torch: str, pythons: Sequence[str], old: Mapping[str, Any] | None, pip: Runner) -> dict[str, Any]:
    """The table's row of a release. What metadata cannot tell (CUDA inside a wheel without nvidia packages) stays.

    :raises SystemExit: when there is no wheel of this release.
    """
    python = pythons[0] if pythons else "3.12"
    found = wheel(f"torch=={torch}", python, pip)
    if found is None:
        raise SystemExit(f"no wheel of torch {torch} for Linux x86_64 and Python {python}")
    requires = found["requires"]
    runtime = pin(requires, r"nvidia-cuda-runtime(?:-cu\d+)?") or pin(requires, "cuda-toolkit")
    previous = old or {}
    cuda = ".".join(runtime.split(".")[:2]) if runtime and re.match(r"\d", runtime) else previous.get("pypi_cuda")
    cudnn = pin(requires, r"nvidia-cudnn(?:-cu\d+)?")
    return {
        "torch": torch,
        "pypi_cuda": cuda,
        "pythons": list(pythons),
        "pypi_glibc": glibc_of(found["file"]),
        "torchvision": companion("torchvision", torch, python, pip),
        "torchaudio": companion("torchaudio", torch, python, pip),
        "pins": {
            "runtime": runtime,
            "nvjitlink": pin(requires, r"nvidia-nvjitlink(?:-cu\d+)?"),
            "cudnn": cudnn,
            "nccl": pin(requires, r"nvidia-nccl(?:-cu\d+)?"),
            "triton": pin(requires, "triton"),
        },
        "source": "wheel",
        "verified": True,
    }


def update_torch(table: Table, versions: Sequence[str], pip: Runner = run_pip) -> None:
    """Replace or add the rows of releases; Python versions are asked for once each."""
    _torch_rows(table, versions, _available(table, pip), pip)


def _available(table: Mapping[str, Any], pip: Runner) -> dict[str, set[str]]:
    """Per Python version (one more than the table knows) the torch releases that have a wheel for it."""
    known = sorted({p for row in table["releases"] for p in row["pythons"]}, key=version_key)
    newest = version_key(known[-1])
    return {python: releases_for(python, pip) for python in (*known, f"{newest[0]}.{newest[1] + 1}")}


def _torch_rows(table: Table, versions: Sequence[str], available: Mapping[str, set[str]], pip: Runner) -> None:
    for torch in versions:
        old = next((row for row in table["releases"] if row["torch"] == torch), None)
        pythons = [python for python in available if torch in available[python]]
        row = torch_row(torch, pythons, old, pip)
        for name in ("torchvision", "torchaudio") if old else ():
            # A companion does not go away again; an index that did not answer once must not take it out of the table.
            row[name] = row[name] or (old or {})[name]
        table["releases"] = [r for r in table["releases"] if r["torch"] != torch] + [row]
        missing = [p for p in pythons if p not in table["python_preference"]]
        table["python_preference"] = [*table["python_preference"], *missing]
    table["releases"].sort(key=lambda r: version_key(r["torch"]))


def update_releases(table: Table, pip: Runner = run_pip, *, new_only: bool = False) -> None:
    """Every release on the index from the oldest of the table on: new rows, and (unless new_only) those that pip gave once.

    :raises SourceError: when the index has no torch at all, which means that it was not reached.
    """
    available = _available(table, pip)
    offered = {torch for found in available.values() for torch in found if re.fullmatch(r"\d+\.\d+\.\d+", torch)}
    if not offered:
        raise SourceError("pip finds no torch there")
    oldest = min(version_key(row["torch"]) for row in table["releases"])
    known = {row["torch"]: row["source"] for row in table["releases"]}
    wanted = [
        torch for torch in sorted(offered, key=version_key)
        if version_key(torch) >= oldest and (torch not in known or (known[torch] == "wheel" and not new_only))
    ]  # fmt: skip
    try:
        _torch_rows(table, wanted, available, pip)
    except SystemExit as exc:
        raise SourceError(str(exc)) from exc


# ------------------------------------------------------------------------------------------------- everything in one run


@dataclasses.dataclass(frozen=True)
class Step:
    """One source of one table: what it is called, where it is, whose rows it may change, and how they are read."""

    name: str
    table: str
    place: str
    own: str
    read: Callable[[Table, str, Run], None]


# What makes a row the same row before and after, per list of a table.
KEYS = {
    "releases": ("torch", "version"), "variants": ("torch", "variant"),
    "arch_lists": ("variant", "machine", "system", "torch_from"), "toolkits": ("cuda",), "branches": ("branch",),
    "floors": ("cuda",), "devices": ("device",), "runfiles": ("cuda", "machine"), "cudnn": ("cudnn", "cuda", "machine"),
}  # fmt: skip
BY_HAND = (
    "architectures, precisions, systems, driver_packages, nvidia_repository, mirrors, errors; of drivers.yml the kernel"
    " limits, ends of support and checksums"
)
NODE_TABLE = os.path.join(os.path.dirname(DATA), "..", "module_utils", "gpu_chips.py")


class Run:
    """Tables and pages of one run: each table is read once, each page fetched once."""

    def __init__(self, places: Mapping[str, str], pip: Runner, new_only: bool) -> None:
        self.places, self.pip, self.new_only = places, pip, new_only
        self.heads: dict[str, list[str]] = {}
        self.tables: dict[str, Table] = {}
        self.before: dict[str, str] = {}
        self.code = self.code_before = ""
        self.failed: list[str] = []
        self._pages: dict[str, str] = {}

    def table(self, name: str) -> Table:
        """A committed table, as the steps before have changed it."""
        if name not in self.tables:
            self.heads[name], self.tables[name], self.before[name] = read(name)
        return self.tables[name]

    def page(self, place: str) -> str:
        """The text of a source.

        :raises SourceError: with the place and the reason.
        """
        if place not in self._pages:
            try:
                self._pages[place] = fetch(place)
            except (OSError, ValueError) as exc:
                reason = getattr(exc, "reason", None) or getattr(exc, "strerror", None) or exc
                raise SourceError(f"{place}: {reason}") from exc
        return self._pages[place]

    def do(self, step: Step) -> str:
        """One step on a copy of its table, which is kept only when the step came through. Returns a line of the summary."""
        place = self.places.get(step.name, step.place)
        after = copy.deepcopy(self.table(step.table))
        try:
            text = "" if step.name == "releases" else self.page(place)
            step.read(after, text, self)
        except SourceError as exc:
            reason = str(exc) if place in str(exc) else f"{place}: {exc}"
            self.failed.append(f"{step.name} ({reason})")
            return f"FAILED  {reason}"
        words = _settle(self.tables[step.table], after, step.own)
        self.tables[step.table] = after
        return words


def _settle(before: Mapping[str, Any], after: Table, own: str) -> str:
    """Put back what was changed of rows from elsewhere, and say what is new, changed and kept."""
    new: list[str] = []
    changed: list[str] = []
    kept: list[str] = []
    for section, keys in KEYS.items():
        old_rows = {_key(row, keys): row for row in before.get(section) or []}
        rows: list[Table] = []
        for row in after.get(section) or []:
            old = old_rows.pop(_key(row, keys), None)
            if old is None:
                new.append(_label(row, keys))
            elif old != row and old["source"] != own and not _fills_gaps(old, row):
                kept.append(_label(row, keys))
                rows.append(dict(old))
                continue
            elif old != row:
                changed.append(_label(row, keys))
            rows.append(row)
        if section in after:
            # No source takes a row away: what it no longer names may still run somewhere.
            after[section] = [*rows, *old_rows.values()]
    words = [f"{len(found)} {what} ({_few(found)})" for what, found in (("new", new), ("changed", changed)) if found]
    if kept:
        words.append(f"{len(kept)} kept by hand though the source differs ({_few(kept)})")
    return ", ".join(words) or "nothing new"


def _fills_gaps(old: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether only what was null has a value now (and the note that said so is gone)."""
    differing = [key for key in row if row[key] != old.get(key) and key != "note"]
    return bool(differing) and all(old.get(key) is None for key in differing)


def _key(row: Mapping[str, Any], keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(row.get(key, "")) for key in keys)


def _label(row: Mapping[str, Any], keys: Sequence[str]) -> str:
    return " ".join(part for part in _key(row, keys) if part)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _node_table(_table: Table, text: str, run: Run) -> None:
    run.code, unknown = update_node_table(run.code, text)
    if unknown:
        raise SourceError(f"chips that gpu_chips.py must be taught by hand first: {', '.join(unknown)}")


RAW = "https://raw.githubusercontent.com"
SPACK = f"{RAW}/spack/spack-packages/develop/repos/spack_repo/builtin/packages"
PCI_IDS = f"{RAW}/pciutils/pciids/master/pci.ids"
STEPS = [
    Step("releases", "torch", "the index that pip is configured for", "wheel",
         lambda table, _text, run: update_releases(table, run.pip, new_only=run.new_only)),
    Step("matrix", "torch", f"{RAW}/pytorch/pytorch/main/RELEASE.md", "release",
         lambda table, text, _run: update_variants(table, text)),
    Step("code", "torch", f"{RAW}/pytorch/pytorch/main/RELEASE.md", "arch",
         lambda table, text, _run: update_support_matrix(table, text)),
    Step("notes", "toolkits", "https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/index.html", "relnotes",
         lambda table, text, _run: update_toolkits(table, text)),
    Step("drivers", "drivers", "https://docs.nvidia.com/datacenter/tesla/drivers/releases.json", "releases",
         lambda table, text, run: update_branches(table, text, run.table("toolkits")["toolkits"])),
    Step("chips", "chips", PCI_IDS, "pci", lambda table, text, _run: update_chips(table, text)),
    Step("names", "chips", PCI_IDS, "pci", _node_table),
    Step("runfiles", "cuda", f"{SPACK}/cuda/package.py", "spack",
         lambda table, text, _run: update_runfiles(table, text)),
    Step("cudnn", "cuda", f"{SPACK}/cudnn/package.py", "spack", lambda table, text, _run: update_cudnn(table, text)),
]  # fmt: skip


def update_all(places: Mapping[str, str], *, write: bool, new_only: bool) -> int:
    """Every step of STEPS; prints a line per step, the difference, and what failed. Returns the exit status."""
    run = Run(places, run_pip, new_only)
    with open(NODE_TABLE, encoding="utf-8") as handle:
        run.code = run.code_before = handle.read()
    for step in STEPS:
        words = run.do(step)
        if step.name == "names" and run.code != run.code_before:
            added = len(run.code.splitlines()) - len(run.code_before.splitlines())
            words = f"{added} more lines" + (f"; {words}" if words.startswith("FAILED") else "")
        where = "gpu_chips.py" if step.name == "names" else f"{step.table}.yml"
        print(f"{where:14} {step.name:9} {words}")
    print(f"by hand: {BY_HAND}")
    files = {NODE_TABLE: (run.code_before, run.code)}
    for name, table in run.tables.items():
        if render(run.heads[name], table) != run.before[name] and write:
            table["as_of"] = datetime.date.today().isoformat()
        files[os.path.join(DATA, f"{name}.yml")] = (run.before[name], render(run.heads[name], table))
    differs = {path: texts for path, texts in files.items() if texts[0] != texts[1]}
    for path, (before, after) in differs.items():
        if write:
            with open(path, "w", encoding="utf-8") as handle:
                handle.write(after)
        else:
            name = os.path.basename(path)
            lines = difflib.unified_diff(before.splitlines(True), after.splitlines(True), name, f"{name} (source)")
            sys.stdout.writelines(lines)
    names = ", ".join(os.path.basename(path) for path in differs)
    print(
        f"written, to be reviewed: {names}"
        if write and differs
        else f"differs: {names}"
        if differs
        else "nothing differs"
    )
    for failure in run.failed:
        print(f"not read: {failure}", file=sys.stderr)
    return 3 if run.failed else 1 if differs and not write else 0


# ------------------------------------------------------------------------------------------------------- command line


def fetch(place: str) -> str:
    """The text of a file, of an https URL, or of an http URL of this very machine (a mirror, a test).

    :raises OSError: when it cannot be read (urllib's errors are such).
    """
    if re.match(r"https://|http://(127\.0\.0\.1|localhost)[:/]", place):
        with urllib.request.urlopen(place, timeout=60) as response:  # noqa: S310  the scheme is checked above
            return str(response.read().decode("utf-8"))
    with open(place, encoding="utf-8") as handle:
        return handle.read()


def main(arguments: Sequence[str] | None = None) -> int:
    """Update one table or all; see the exit status above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    every = commands.add_parser("all", help="every table from every source in one run")
    every.add_argument("--write", action="store_true", help="write the tables instead of only showing the difference")
    every.add_argument(
        "--new-only", action="store_true", help="do not ask again for torch releases that are in the table"
    )
    every.add_argument(
        "--source", action="append", default=[], metavar="NAME=PLACE",
        help=f"another place (file or URL) for one of {', '.join(step.name for step in STEPS[1:])}",
    )  # fmt: skip
    for name in ("torch", "variants", "arch-lists", "toolkits"):
        command = commands.add_parser(name)
        command.add_argument(
            "--write", action="store_true", help="write the table instead of only showing the difference"
        )
        if name == "torch":
            command.add_argument("versions", nargs="+", help="releases such as 2.15.0")
        else:
            command.add_argument("place", help="file or https URL")
        if name == "arch-lists":
            command.add_argument("--torch", required=True, help="the release whose build_cuda.sh this is, such as 2.16")
    options = parser.parse_args(arguments)
    if options.command == "all":
        places = dict(pair.partition("=")[::2] for pair in options.source)
        unknown = set(places) - {step.name for step in STEPS[1:]}
        if unknown or not all(places.values()):
            parser.error(f"--source: no such source, or no place for it: {', '.join(sorted(unknown or places))}")
        return update_all(places, write=options.write, new_only=options.new_only)
    name = "toolkits" if options.command == "toolkits" else "torch"
    head, table, before = read(name)
    if options.command == "torch":
        update_torch(table, options.versions)
    elif options.command == "variants":
        update_variants(table, fetch(options.place))
    elif options.command == "arch-lists":
        update_arch_lists(table, fetch(options.place), options.torch)
    else:
        update_toolkits(table, fetch(options.place))
    after = render(head, table)
    if after == before:
        print(f"{name}.yml: nothing differs")
        return 0
    if options.write:
        table["as_of"] = datetime.date.today().isoformat()
        after = render(head, table)
    sys.stdout.writelines(
        difflib.unified_diff(before.splitlines(True), after.splitlines(True), f"{name}.yml", f"{name}.yml (source)")
    )
    if not options.write:
        return 1
    with open(os.path.join(DATA, f"{name}.yml"), "w", encoding="utf-8") as handle:
        handle.write(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
