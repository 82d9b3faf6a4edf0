# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Readers of the public sources that tools/update_tables.py takes rows from: a page's text in, changed rows in the table.

Each function changes the table that it is given and leaves alone what its source does not name. A text in another layout
than the one read here raises ``SourceError``: an empty answer must not pass for "nothing is new".
"""

from __future__ import annotations

import ast
import html.parser
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

Table = dict[str, Any]


class SourceError(Exception):
    """A source that cannot be reached, or that does not look as it did."""


def version_key(text: str) -> tuple[int, ...]:
    """``2.10.0`` -> ``(2, 10, 0)``."""
    return tuple(int(n) for n in re.findall(r"\d+", str(text)))


# ------------------------------------------------------------------------------------------------- pytorch's RELEASE.md


def update_variants(table: Table, text: str) -> None:
    """Variants per release of the compatibility matrix in RELEASE.md; a row it has anew is added, none is removed."""
    header: list[str] = []
    read = 0
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if "PyTorch version" in cells and any("CUDA" in cell for cell in cells):
            header = cells
            continue
        if not header or not re.fullmatch(r"\d+\.\d+", cells[0]) or len(cells) != len(header):
            continue
        read += 1
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
    if not read:
        raise SourceError("there is no table with the columns PyTorch version and CUDA in it")
    table["variants"].sort(key=lambda r: (version_key(r["torch"]), version_key(r["variant"])))


def set_arch_list(table: Table, torch: str, variant: str, machine: str, arch: Sequence[str], ptx: str | None) -> None:
    """What one wheel is compiled for: the row of that variant grows by the release, is corrected, or a new one starts.

    Only rows that were read in pytorch's repository (``source: arch``) are changed.
    """
    key = version_key(torch)
    rows = [r for r in table["arch_lists"] if r["variant"] == variant and r["machine"] == machine]
    same = next((r for r in rows if version_key(r["torch_from"]) <= key <= version_key(r["torch_to"])), None)
    if same is not None:
        if same["source"] == "arch":
            same.update(arch=list(arch), ptx=ptx)
        return
    last = max(rows, key=lambda r: version_key(r["torch_to"]), default=None)
    if last is not None and last["source"] == "arch" and (last["arch"], last["ptx"]) == (list(arch), ptx):
        # Between the two lie releases that had this variant too, or that did not have it at all.
        between = [
            r for r in table["variants"]
            if r["variant"] == variant and version_key(last["torch_to"]) < version_key(r["torch"]) < key
        ]  # fmt: skip
        if version_key(last["torch_to"]) < key and not between:
            last["torch_to"] = torch
            return
    row = {
        "variant": variant, "torch_from": torch, "torch_to": torch, "machine": machine, "system": "Linux",
        "arch": list(arch), "ptx": ptx, "source": "arch", "verified": True,
    }  # fmt: skip
    table["arch_lists"].append(row)


def update_arch_lists(table: Table, text: str, torch: str) -> None:
    """GPU code per CUDA version of .ci/manywheel/build_cuda.sh at a release's tag."""
    found = re.findall(r"^\s*(\d+\.\d+)\)[^)]*?TORCH_CUDA_ARCH_LIST=\"([\d.;+PTX]+)\"", text, re.M | re.S)
    if not found:
        raise SourceError("it sets no TORCH_CUDA_ARCH_LIST per CUDA version")
    for cuda, listed in found:
        parts = listed.split(";")
        arch = [part.removesuffix("+PTX") for part in parts]
        ptx = next((part.removesuffix("+PTX") for part in parts if part.endswith("+PTX")), None)
        set_arch_list(table, torch, "cu" + cuda.replace(".", ""), "x86_64", arch, ptx)


def update_support_matrix(table: Table, text: str) -> None:
    """GPU code per CUDA version and machine of the CUDA support matrix in RELEASE.md, for the releases that it names.

    It has code for every variant of its table; a release counts for a variant only if the compatibility matrix (which
    must have been read first) lists it.
    """
    named = re.search(r"(?m)^For Releases? (\d+\.\d+[^\n]*?) PyTorch [Ss]upports", text)
    if named is None:
        raise SourceError("it does not say for which releases its CUDA support matrix holds")
    releases = re.findall(r"\d+\.\d+", named.group(1))
    machine = ""
    read = 0
    for line in text[named.end() :].splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if cells[0] == "CUDA" and len(cells) > 1:
            machine = "aarch64" if "aarch64" in cells[1] else "x86_64" if "x86" in cells[1] else ""
        match = re.fullmatch(r"(\d+)\.(\d)(?:\.\d+)?", cells[0])
        if line.startswith("#"):
            break
        if match is None or not machine or len(cells) < 2:
            continue
        read += 1
        codes = re.findall(r"(\d+\.\d)(\+PTX)?", cells[1])
        arch, ptx = [code for code, _plus in codes], next((code for code, plus in codes if plus), None)
        variant = f"cu{match.group(1)}{match.group(2)}"
        has = {row["torch"] for row in table["variants"] if row["variant"] == variant}
        for torch in sorted(set(releases) & has, key=version_key):
            set_arch_list(table, torch, variant, machine, arch, ptx)
    if not read:
        raise SourceError("there is no table of architectures per CUDA version in it")


# --------------------------------------------------------------------------------------------------------------- NVIDIA


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
    read = 0
    for cells in parser.rows:
        words = [" ".join(cell.split()) for cell in cells]
        match = re.match(r"CUDA (\d+\.\d+)(?:\.(\d+))?(?: (GA|Update (\d+)|RC))?\b", words[0]) if words else None
        linux = re.match(r">=\s*(\d[\d.]+)", words[1]) if len(words) > 1 else None
        if match is None or linux is None or match.group(3) == "RC":
            continue
        read += 1
        number = f"{match.group(1)}.{match.group(4) or match.group(2) or 0}"
        windows = re.match(r">=\s*(\d[\d.]+)", words[2]) if len(words) > 2 else None
        row = {"cuda": number, "linux": linux.group(1), "windows": windows.group(1) if windows else None}
        table["toolkits"] = [r for r in table["toolkits"] if r["cuda"] != number]
        table["toolkits"].append({**row, "source": "relnotes", "verified": True})
    if not read:
        raise SourceError("there is no table of toolkits and driver versions in it")
    table["toolkits"].sort(key=lambda r: _release_order(r["cuda"]))


def _release_order(cuda: str) -> tuple[int, ...]:
    """Newest minor first; within one minor as the committed table has it, by number."""
    return tuple(-n for n in version_key(cuda))


BRANCH_TYPES = {"production branch": "production", "lts branch": "long term", "new feature branch": "new feature"}
RELEASES_JSON = "NVIDIA's releases.json of data-centre drivers: branches and their types"


def update_branches(table: Table, text: str, toolkits: Sequence[Mapping[str, Any]]) -> None:
    """New driver branches of releases.json, and what a table of toolkits tells of any branch.

    The CUDA driver API of a branch is that of the toolkit which was released with a driver of that branch; the floor of a
    new CUDA major is the driver of its first release. Ends of support and module flavours are in neither source: a new
    row takes the flavour of the branch before it and says so.
    """
    try:
        data = json.loads(text)
        types = {int(branch): BRANCH_TYPES[entry["type"]] for branch, entry in data.items() if entry["driver_info"]}
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise SourceError(f"it is not JSON of branches with type and driver_info: {exc!r}") from exc
    known = {row["branch"]: row for row in table["branches"]}
    newest = max(known)
    for branch in sorted(set(types) - set(known)):
        if branch < min(known):
            continue
        before = known[max(b for b in known if b < branch)]
        table["sources"].setdefault("releases", RELEASES_JSON)
        row = {
            "branch": branch, "cuda_api": None, "type": types[branch], "status": "supported" if branch > newest else "ended",
            "end_of_support": None if branch > newest else "ended", "open_modules": before["open_modules"],
            "source": "releases", "verified": False,
            "note": f"module flavours as of branch {before['branch']}, end of support not read",
        }  # fmt: skip
        table["branches"].append(row)
    table["branches"].sort(key=lambda r: int(r["branch"]))
    apis: dict[int, str] = {}
    for toolkit in toolkits:
        cuda = ".".join(str(n) for n in version_key(toolkit["cuda"])[:2])
        branch = version_key(toolkit["linux"])[0]
        apis[branch] = max(cuda, apis.get(branch, cuda), key=version_key)
    for row in table["branches"]:
        if row["cuda_api"] is None and row["branch"] in apis:
            row["cuda_api"] = apis[row["branch"]]
            row["note"] = row["note"] if "API" not in row["note"] else ""
    _floors(table, toolkits)


def _floors(table: Table, toolkits: Sequence[Mapping[str, Any]]) -> None:
    majors = {version_key(row["cuda"])[0] for row in table["floors"]}
    first: dict[int, Mapping[str, Any]] = {}
    for row in sorted(toolkits, key=lambda r: version_key(r["cuda"])):
        first.setdefault(version_key(row["cuda"])[0], row)
    for major in sorted(set(first) - majors):
        if major < max(majors):
            continue
        floor = {
            "cuda": str(major), "linux": first[major]["linux"], "windows": first[major]["windows"] or first[major]["linux"],
            "compatibility": "minor", "source": "relnotes", "verified": True,
        }  # fmt: skip
        table["floors"].insert(0, floor)


# -------------------------------------------------------------------------------------------------------------- pci.ids

GPU_ROW = re.compile(r"^\t([0-9a-f]{4})  ([A-Z]{2}\d{2}[0-9A-F])([A-Z]*)\b(.*)$")
NOT_A_GPU = re.compile(r"Audio|NVSwitch|USB|Controller|PCI|Root|Reserved|Dev ?I[Dd]")
# The node's table has names from Maxwell on; older chips are known by their blocks.
FIRST_ID = 0x1340


def pci_gpus(text: str) -> list[tuple[str, str, str]]:
    """``(device id, chip, name)`` of NVIDIA's GPUs in a pci.ids; the name is ``-`` where there is none."""
    section = re.search(r"(?ms)^10de  .*?(?=^[0-9a-f]{4}  |\Z)", text)
    found = []
    for line in (section.group(0) if section else "").splitlines():
        match = GPU_ROW.match(line)
        if match is None or NOT_A_GPU.search(line):
            continue
        name = re.search(r"\[(.+?)\s*\]", match.group(4))
        found.append((match.group(1), match.group(2), name.group(1) if name else "-"))
    if not found:
        raise SourceError("it has no section of NVIDIA's GPUs (10de)")
    return found


def update_chips(table: Table, text: str) -> None:
    """The chip of each listed device, by pci.ids. Memory and market are general knowledge: a device is added by hand."""
    chips = {device: chip for device, chip, _name in pci_gpus(text)}
    for row in table["devices"]:
        if row["source"] == "pci" and row["device"] in chips:
            row["chip"] = chips[row["device"]]


def update_node_table(code: str, text: str) -> tuple[str, list[str]]:
    """gpu_chips.py with the GPUs that it lacks as one more block, and the chips that it must be taught by hand first."""
    listed = set(re.findall(r"(?m)^([0-9a-f]{4}) [A-Z]{2}\d", code))
    chips = set(re.findall(r'(?m)^    "([A-Z]{2}\d{2}[0-9A-F])": \(', code))
    new = [row for row in pci_gpus(text) if int(row[0], 16) >= FIRST_ID and row[0] not in listed]
    unknown = sorted({chip for _id, chip, _name in new if chip not in chips})
    block = [" ".join(row) for row in new if row[1] in chips]
    if not block:
        return code, unknown
    dated = re.search(r"(?m)^#\s+Version:\s+(\S+)", text)
    key = f"pci.ids {dated.group(1) if dated else 'of an unknown date'}"
    start = f'    "{key}": """\n'
    rows = "\n".join(block) + "\n"
    if start in code:
        return code.replace(start, start + rows), unknown
    head, tail = code.split('""",\n}\n', 1)
    return f'{head}""",\n{start}{rows}""",\n}}\n{tail}', unknown


# ---------------------------------------------------------------------------------------------------------------- Spack

MACHINES = {"Linux-x86_64": "x86_64", "Linux-aarch64": "aarch64"}


def spack_versions(text: str) -> dict[str, Any]:
    """The literal ``_versions`` of a Spack recipe. The recipe is read, never run."""
    try:
        for node in ast.parse(text).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_versions":
                found = ast.literal_eval(node.value)
                if isinstance(found, dict) and found:
                    return found
    except (SyntaxError, ValueError) as exc:
        raise SourceError(f"it is no Spack recipe: {exc}") from exc
    raise SourceError("it has no table _versions")


def _merge(rows: list[Table], new: list[Table], keys: Sequence[str]) -> list[Table]:
    """Rows replaced where the keys are the same, else added: newest version first, x86_64 before the others."""
    merged = {tuple(row[key] for key in keys): row for row in [*rows, *new]}
    machines = ["x86_64", "aarch64"]
    return sorted(
        merged.values(),
        key=lambda r: (*([-n for n in version_key(r[key])] for key in keys if key != "machine"), machines.index(r["machine"])),
    )  # fmt: skip


def update_runfiles(table: Table, text: str) -> None:
    """Toolkit installers of Spack's cuda recipe from the oldest that the table has on."""
    oldest = min((version_key(row["cuda"]) for row in table["runfiles"]), default=(0,))
    new = []
    for cuda, machines in spack_versions(text).items():
        for name, entry in machines.items():
            if name not in MACHINES or version_key(cuda) < oldest:
                continue
            sha256, url = entry
            file = url.rsplit("/", 1)[-1]
            if not re.fullmatch("[0-9a-f]{64}", sha256) or not re.fullmatch(
                rf"cuda_{re.escape(cuda)}_[\w.]+\.run", file
            ):
                raise SourceError(f"cuda {cuda} for {name} has {file} with {sha256}")
            new.append({
                "cuda": cuda, "machine": MACHINES[name], "file": file, "sha256": sha256, "source": "spack", "verified": False,
            })  # fmt: skip
    table["runfiles"] = _merge(table["runfiles"], new, ("cuda", "machine"))


def update_cudnn(table: Table, text: str) -> None:
    """cuDNN archives of Spack's cudnn recipe from the oldest that the table has on. Keys there are C(9.2.0.82-12)."""
    oldest = min((version_key(row["cudnn"]) for row in table["cudnn"]), default=(0,))
    new = []
    for key, machines in spack_versions(text).items():
        cudnn, _dash, cuda = key.partition("-")
        for name, sha256 in machines.items():
            if name not in MACHINES or version_key(cudnn) < oldest:
                continue
            if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256) or not cuda:
                raise SourceError(f"cudnn {key} for {name} has {sha256!r}")
            new.append({
                "cudnn": cudnn, "cuda": cuda, "machine": MACHINES[name], "sha256": sha256, "source": "spack", "verified": False,
            })  # fmt: skip
    table["cudnn"] = _merge(table["cudnn"], new, ("cudnn", "cuda", "machine"))
