#!/usr/bin/env python3
# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Regenerate the solver's tables from their public sources; a new release is one run and one reviewed diff.

    tools/update_tables.py torch 2.15.0            # the rows of these releases, read with pip (metadata only)
    tools/update_tables.py torch 2.16.0 --write
    tools/update_tables.py variants RELEASE.md     # pytorch/pytorch RELEASE.md, a file or an https URL
    tools/update_tables.py arch-lists build_cuda.sh --torch 2.16   # pytorch/pytorch .ci/manywheel/build_cuda.sh
    tools/update_tables.py toolkits release-notes.html   # NVIDIA's CUDA Toolkit release notes, a file or an https URL

Without --write the difference to the committed table is printed and the exit status is 1 when there is one. Rows that
the source does not name stay as they are. `torch` asks the index that pip is configured for, through pip itself: one
query per release and companion, and one per Python version; nothing is downloaded but metadata.

Written from a saved copy of each page's layout: `toolkits` was tested with a file in that layout, not with the live page.
"""

from __future__ import annotations

import argparse
import datetime
import difflib
import html.parser
import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

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
Table = dict[str, Any]
Runner = Callable[[Sequence[str]], str]


def version_key(text: str) -> tuple[int, ...]:
    """``2.10.0`` -> ``(2, 10, 0)``."""
    return tuple(int(n) for n in re.findall(r"\d+", text))


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
    """Standard output of pip; empty when it found nothing. The interpreter is $UPDATE_TABLES_PYTHON or this one."""
    python = os.environ.get("UPDATE_TABLES_PYTHON", sys.executable)
    done = subprocess.run(
        [python, "-m", "pip", "--disable-pip-version-check", *arguments],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
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
    known = sorted({p for row in table["releases"] for p in row["pythons"]}, key=version_key)
    newest = version_key(known[-1])
    candidates = [*known, f"{newest[0]}.{newest[1] + 1}"]
    available = {python: releases_for(python, pip) for python in candidates}
    for torch in versions:
        old = next((row for row in table["releases"] if row["torch"] == torch), None)
        pythons = [python for python in candidates if torch in available[python]]
        row = torch_row(torch, pythons, old, pip)
        table["releases"] = [r for r in table["releases"] if r["torch"] != torch] + [row]
        missing = [p for p in pythons if p not in table["python_preference"]]
        table["python_preference"] = [*table["python_preference"], *missing]
    table["releases"].sort(key=lambda r: version_key(r["torch"]))


# ------------------------------------------------------------------------------- pytorch's repository, NVIDIA's pages


def update_variants(table: Table, text: str) -> None:
    """Variants per release of the compatibility matrix in RELEASE.md; a row it has anew is added, none is removed."""
    header: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if "PyTorch version" in cells and any("CUDA" in cell for cell in cells):
            header = cells
            continue
        if not header or not re.fullmatch(r"\d+\.\d+", cells[0]) or len(cells) != len(header):
            continue
        torch = cells[0]
        named = {
            "cu" + "".join(match)
            for title, cell in zip(header, cells)
            if "CUDA" in title
            for match in re.findall(r"CUDA (\d+)\.(\d)", cell)
        }
        have = {row["variant"] for row in table["variants"] if row["torch"] == torch}
        glibc = next((r["pypi_glibc"] for r in table["releases"] if r["torch"].startswith(torch + ".")), "2.28")
        for variant in sorted(named - have):
            row = {"torch": torch, "variant": variant, "glibc": glibc, "source": "release", "verified": True}
            table["variants"].append(row)
    table["variants"].sort(key=lambda r: (version_key(r["torch"]), version_key(r["variant"])))


def update_arch_lists(table: Table, text: str, torch: str) -> None:
    """GPU code per CUDA version of build_cuda.sh at a release's tag: a row grows by that release, or a new one starts."""
    for cuda, listed in re.findall(r"^\s*(\d+\.\d+)\)[^)]*?TORCH_CUDA_ARCH_LIST=\"([\d.;+PTX]+)\"", text, re.M | re.S):
        parts = listed.split(";")
        arch = [part.removesuffix("+PTX") for part in parts]
        ptx = next((part.removesuffix("+PTX") for part in parts if part.endswith("+PTX")), None)
        variant = "cu" + cuda.replace(".", "")
        rows = [r for r in table["arch_lists"] if r["variant"] == variant and r["machine"] == "x86_64"]
        key = version_key(torch)
        if any(version_key(r["torch_from"]) <= key <= version_key(r["torch_to"]) for r in rows):
            same = next(r for r in rows if version_key(r["torch_from"]) <= key <= version_key(r["torch_to"]))
            if (same["arch"], same["ptx"]) != (arch, ptx):
                print(f"{variant} at torch {torch}: the table has {same['arch']}, the file {arch}", file=sys.stderr)
                same.update(arch=arch, ptx=ptx)
            continue
        last = max(rows, key=lambda r: version_key(r["torch_to"]), default=None)
        if last is not None and (last["arch"], last["ptx"]) == (arch, ptx) and version_key(last["torch_to"]) < key:
            last["torch_to"] = torch
            continue
        table["arch_lists"].append(
            {
                "variant": variant, "torch_from": torch, "torch_to": torch, "machine": "x86_64", "system": "Linux",
                "arch": arch, "ptx": ptx, "source": "arch", "verified": True,
            }
        )  # fmt: skip


class _Cells(html.parser.HTMLParser):
    """Rows of all tables of a page as lists of the texts of their cells."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A row or a cell begins."""
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
            self._inside = True

    def handle_endtag(self, tag: str) -> None:
        """A cell ends."""
        if tag in ("td", "th"):
            self._inside = False

    def handle_data(self, data: str) -> None:
        """Text in a cell."""
        if self._inside and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def update_toolkits(table: Table, text: str) -> None:
    """Toolkits of the release notes' table "CUDA Toolkit and Corresponding Driver Versions"."""
    parser = _Cells()
    parser.feed(text)
    for cells in parser.rows:
        words = [" ".join(cell.split()) for cell in cells]
        match = re.match(r"CUDA (\d+\.\d+)(?:\.(\d+))?(?: (GA|Update (\d+)|RC))?\b", words[0]) if words else None
        linux = re.match(r">=\s*(\d[\d.]+)", words[1]) if len(words) > 1 else None
        if match is None or linux is None or match.group(3) == "RC":
            continue
        number = f"{match.group(1)}.{match.group(4) or match.group(2) or 0}"
        windows = re.match(r">=\s*(\d[\d.]+)", words[2]) if len(words) > 2 else None
        row = {"cuda": number, "linux": linux.group(1), "windows": windows.group(1) if windows else None}
        table["toolkits"] = [r for r in table["toolkits"] if r["cuda"] != number]
        table["toolkits"].append({**row, "source": "relnotes", "verified": True})
    table["toolkits"].sort(key=lambda r: version_key(r["cuda"]), reverse=True)


# ------------------------------------------------------------------------------------------------------- command line


def fetch(place: str) -> str:
    """The text of a file, or of an https URL."""
    if place.startswith("https://"):
        with urllib.request.urlopen(place, timeout=60) as response:  # noqa: S310  the scheme is checked above
            return str(response.read().decode("utf-8"))
    with open(place, encoding="utf-8") as handle:
        return handle.read()


def main(arguments: Sequence[str] | None = None) -> int:
    """Update one table; 0 when nothing differs or it was written, 1 when it differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
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
