# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The updater: canonical form, and rows out of recorded answers of pip and of files in the layout of the public pages."""

from __future__ import annotations

import copy
import http.server
import importlib.util
import io
import json
import os
import shutil
import socket
import sys
import threading
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import update_tables

TABLES = ("architectures", "chips", "cuda", "drivers", "precisions", "systems", "toolkits", "torch")
LINUX = ' ; platform_system == "Linux" and platform_machine == "x86_64"'
# Requires-Dist and file names as pip reported them in November 2026, cut to what the table reads.
WHEELS: dict[str, tuple[str, list[str]]] = {
    "torch==2.1.2": (
        "torch-2.1.2-cp38-cp38-manylinux1_x86_64.whl",
        [
            "filelock",
            f"nvidia-cuda-runtime-cu12 (==12.1.105){LINUX}",
            f"nvidia-cudnn-cu12 (==8.9.2.26){LINUX}",
            f"nvidia-nccl-cu12 (==2.18.1){LINUX}",
            f"triton (==2.1.0){LINUX}",
        ],
    ),
    "torchvision==0.16.2": ("torchvision-0.16.2-cp38-cp38-manylinux1_x86_64.whl", ["numpy", "torch (==2.1.2)"]),
    "torchaudio==2.1.2": ("torchaudio-2.1.2-cp38-cp38-manylinux1_x86_64.whl", ["torch (==2.1.2)"]),
    "torch==2.15.0": (
        "torch-2.15.0-cp311-cp311-manylinux_2_28_x86_64.whl",
        [
            'cuda-toolkit[cublas,cudart]==13.2.2; platform_system == "Linux"',
            'nvidia-cudnn-cu13==9.26.0.51; platform_system == "Linux"',
            'nvidia-nccl-cu13==2.30.7; platform_system == "Linux"',
            'triton~=3.9.0; platform_system == "Linux"',
        ],
    ),
    "torchvision==0.29.*": ("torchvision-0.29.2-cp311-cp311-manylinux_2_28_x86_64.whl", ["torch>=2.14.0"]),
}
PYTHONS = {
    "3.8": "2.4.1, 2.1.2", "3.9": "2.8.0, 2.1.2", "3.10": "2.14.1, 2.1.2", "3.11": "2.15.0, 2.1.2", "3.12": "2.15.0",
    "3.13": "2.15.0", "3.14": "2.15.0", "3.15": "2.15.0",
}  # fmt: skip


def recorded_pip(arguments: Sequence[str]) -> str:
    """Answers as pip does, from the records above."""
    if arguments[0] == "index":
        python = arguments[arguments.index("--python-version") + 1]
        return f"torch (2.15.0)\nAvailable versions: {PYTHONS[python]}\n" if python in PYTHONS else ""
    record = WHEELS.get(arguments[-1])
    if record is not None:
        version = record[0].split("-")[1]
        item = {
            "download_info": {"url": f"https://index.example/{record[0]}"},
            "metadata": {"version": version, "requires_dist": record[1]},
        }
        Path(arguments[arguments.index("--report") + 1]).write_text(json.dumps({"install": [item]}), encoding="utf-8")
    return ""


def committed(name: str) -> dict[str, Any]:
    return copy.deepcopy(update_tables.read(name)[1])


@pytest.mark.parametrize("name", TABLES)
def test_committed_tables_are_in_canonical_form(name: str) -> None:
    head, table, text = update_tables.read(name)
    assert update_tables.render(head, table) == text


def test_recorded_wheels_give_the_committed_rows() -> None:
    table = committed("torch")
    rows = {row["torch"]: copy.deepcopy(row) for row in table["releases"]}
    table["releases"] = [row for row in table["releases"] if row["torch"] not in ("2.1.2", "2.15.0")]
    update_tables.update_torch(table, ["2.1.2", "2.15.0"], recorded_pip)
    assert {row["torch"]: row for row in table["releases"]} == rows
    assert [row["torch"] for row in table["releases"]] == list(rows)


def test_what_metadata_cannot_tell_stays() -> None:
    WHEELS["torch==1.12.1"] = ("torch-1.12.1-cp38-cp38-manylinux1_x86_64.whl", ["typing-extensions"])
    old = next(row for row in committed("torch")["releases"] if row["torch"] == "1.12.1")
    row = update_tables.torch_row("1.12.1", ["3.8"], old, recorded_pip)
    assert row["pypi_cuda"] == "10.2"
    assert row["pins"]["runtime"] is None


def test_a_release_without_a_wheel_is_an_error() -> None:
    with pytest.raises(SystemExit, match=r"no wheel of torch 9\.0"):
        update_tables.torch_row("9.0.0", [], None, recorded_pip)


NOTES = """<table><thead><tr><th rowspan="2"><p>CUDA Toolkit</p></th><th>Toolkit Driver Version</th></tr>
<tr><th>Linux x86_64 Driver Version</th><th>Windows x86_64 Driver Version</th></tr></thead><tbody>
<tr><td><p>CUDA 13.9 GA</p></td><td><p>&gt;=650.10.01</p></td><td><p>N/A</p></td></tr>
<tr><td><p>CUDA 12.0 Update 1</p></td><td><p>&gt;=525.85.12</p></td><td><p>&gt;=528.33</p></td></tr>
<tr><td><p>CUDA 11.4.0 GA</p></td><td><p>&gt;=470.42.01</p></td><td><p>&gt;=471.11</p></td></tr>
<tr><td><p>CUDA 10.0.130</p></td><td><p>&gt;= 410.48</p></td><td><p>&gt;= 411.31</p></td></tr>
</tbody></table>"""


def test_toolkits_of_a_page_in_the_layout_of_the_release_notes() -> None:
    table = committed("toolkits")
    before = copy.deepcopy(table["toolkits"])
    update_tables.update_toolkits(table, NOTES)
    new = [row for row in table["toolkits"] if row not in before]
    assert {"cuda": "13.9.0", "linux": "650.10.01", "windows": None, "source": "relnotes", "verified": True} in new
    assert next(r for r in table["toolkits"] if r["cuda"] == "12.0.1") in before
    assert next(r for r in table["toolkits"] if r["cuda"] == "11.4.0") in before


SCRIPT = """case ${CUDA_VERSION} in
    12.6)
        TORCH_CUDA_ARCH_LIST="5.0;6.0;7.0;7.5;8.0;8.6;9.0"
        ;;
    13.2)
        # a comment
        TORCH_CUDA_ARCH_LIST="8.0;8.6;9.0;10.0;12.0+PTX"
        ;;
esac
"""


def test_gpu_code_of_a_build_script_extends_a_row_or_starts_one() -> None:
    table = committed("torch")
    update_tables.update_arch_lists(table, SCRIPT, "2.16")
    rows = [r for r in table["arch_lists"] if r["machine"] == "x86_64"]
    old = next(r for r in rows if r["variant"] == "cu126")
    assert (old["torch_from"], old["torch_to"]) == ("2.6", "2.16")
    new = next(r for r in rows if r["variant"] == "cu132" and r["torch_from"] == "2.16")
    assert (new["arch"], new["ptx"]) == (["8.0", "8.6", "9.0", "10.0", "12.0"], "12.0")


MATRIX = """| PyTorch version | Python | C++ | Stable CUDA | Experimental CUDA | Stable ROCm |
| --- | --- | --- | --- | --- | --- |
| 2.16 | >=3.11 | C++17 | CUDA 12.6 (CUDNN 9.10.2.21), CUDA 13.2 (CUDNN 9.26.0.51) | CUDA 13.3 (CUDNN 9.26.0.51) | ROCm 7.1 |
| 2.7 | >=3.9 | C++17 | CUDA 11.8 (CUDNN 9.1.0.70), CUDA 12.6 (CUDNN 9.5.1.17) | CUDA 12.8 (CUDNN 9.7.1.26) | ROCm 6.3 |
"""


def test_variants_of_a_compatibility_matrix() -> None:
    table = committed("torch")
    before = copy.deepcopy(table["variants"])
    update_tables.update_variants(table, MATRIX)
    assert [r["variant"] for r in table["variants"] if r["torch"] == "2.16"] == ["cu126", "cu132", "cu133"]
    assert [r for r in table["variants"] if r["torch"] != "2.16"] == before


def test_the_command_shows_the_difference_and_writes_only_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ROOT / "plugins" / "plugin_utils" / "data" / "toolkits.yml"
    (tmp_path / "toolkits.yml").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "notes.html").write_text(NOTES, encoding="utf-8")
    monkeypatch.setattr(update_tables, "DATA", str(tmp_path))
    assert update_tables.main(["toolkits", str(tmp_path / "notes.html")]) == 1
    assert "+  - {cuda: '13.9.0'" in capsys.readouterr().out
    assert (tmp_path / "toolkits.yml").read_text(encoding="utf-8") == source.read_text(encoding="utf-8")
    assert update_tables.main(["toolkits", str(tmp_path / "notes.html"), "--write"]) == 0
    assert "13.9.0" in (tmp_path / "toolkits.yml").read_text(encoding="utf-8")
    assert update_tables.main(["toolkits", str(tmp_path / "notes.html")]) == 0


# ------------------------------------------------------------------------------------------------- everything in one run

# The shape of RELEASE.md as it was in October 2026, cut to a few releases; 2.16 is made up in the same shape.
RELEASE_PAGE = """# Releasing PyTorch

## Release Compatibility Matrix

Following is the Release Compatibility Matrix for PyTorch releases:

| PyTorch version | Python | C++ | Stable CUDA | Experimental CUDA | Stable ROCm |
| --- | --- | --- | --- | --- | --- |
| 2.16 | >=3.11, <=(3.15, 3.15t experimental) | C++20 | CUDA 12.6 (CUDNN 9.10.2.21) (NCCL 2.29.3), CUDA 13.2 (CUDNN 9.26.0.51) (NCCL 2.30.7) | CUDA 13.3 (CUDNN 9.26.0.51) (NCCL 2.30.7) | ROCm 7.14 |
| 2.14 | >=3.10, <=(3.15, 3.15t experimental) | C++20 | CUDA 12.6 (CUDNN 9.10.2.21) (NCCL 2.29.3), CUDA 13.0 (CUDNN 9.24.0.43) (NCCL 2.30.7), CUDA 13.2 (CUDNN 9.24.0.43) (NCCL 2.30.7) | -- | ROCm 7.14 |
| 2.10 | >=3.10, <=(3.14, 3.14t experimental) | C++17 | CUDA 12.6 (CUDNN 9.10.2.21) (NCCL 2.27.5), CUDA 12.8 (CUDNN 9.10.2.21) (NCCL 2.27.5) | CUDA 13.0 (CUDNN 9.15.1.9) (NCCL 2.28.9) | ROCm 7.1 |
| 2.5 | >=3.9, <=3.12, (3.13 experimental) | C++17 | CUDA 11.8, CUDA 12.1, CUDA 12.4, CUDNN 9.1.0.70  | None | ROCm 6.2 |
| 1.13 | >=3.7, <=3.10 | C++14 | CUDA 11.6, CUDNN 8.3.2.44 | CUDA 11.7, CUDNN 8.5.0.96 | ROCm 5.2 |

### PyTorch CUDA Support Matrix

For Release 2.13, 2.14 and 2.16 PyTorch Supports following CUDA Architectures:

| CUDA | architectures supported for Linux x86 and Windows builds | notes |
| --- | --- | --- |
| 12.6.3 | Maxwell(5.0), Pascal(6.0), Volta(7.0), Turing(7.5), Ampere(8.0, 8.6), Hopper(9.0) | |
| 13.2.1 | Turing(7.5), Ampere(8.0, 8.6), Hopper(9.0), Blackwell(10.0, 12.0+PTX) | +PTX available on linux builds only |
| 13.3.0 | Ampere(8.0, 8.6), Hopper(9.0), Blackwell(10.0, 12.0+PTX) | +PTX available on linux builds only |

| CUDA | architectures supported for Linux aarch64 builds |
| --- | --- |
| 13.3.0 | Ampere(8.0), Hopper(9.0), Blackwell(10.0, 11.0, 12.0+PTX) |

### Release cadence table

| Minor Version | Release branch cut | Release date | First patch release date | Second patch release date|
| --- | --- | --- | --- | --- |
| 2.16 | 30 Nov 2026 | 22 Dec 2026 | (Jan 2027) | Not planned |
"""
# CUDA 14.0 and its branch are made up, in the layout of the release notes.
RELEASE_NOTES = NOTES.replace("CUDA 13.9 GA", "CUDA 14.0 GA")
DRIVERS_JSON = {
    "650": {"type": "lts branch", "driver_info": [{"release_version": "650.10.01", "release_date": "2027-01-11",
            "release_notes": "", "architectures": ["x86_64", "arm64-sbsa"], "runfile_url": {}}]},
    "580": {"type": "lts branch", "driver_info": [{"release_version": "580.65.06", "release_date": "2025-08-04",
            "release_notes": "", "architectures": ["x86_64", "arm64-sbsa"], "runfile_url": {}}]},
}  # fmt: skip
PCI_IDS = """# List of PCI ID's
#	Version: 2027.01.03
10dd  Evans & Sutherland
10de  NVIDIA Corporation
	10fe  TU104 High Definition Audio Controller
	1eb8  TU104GL [Tesla T4]
		10de 12a2  Tesla T4
	2684  AD102 [GeForce RTX 4090]
	3fa0  GB202 [RTX PRO 9999 Blackwell]
10df  Emulex Corporation
"""
HASH = "0123456789abcdef" * 4
SPACK_CUDA = f'''import os

_versions = {{
    "14.0.0": {{
        "Linux-x86_64": ("{HASH}",
            "https://developer.download.nvidia.com/compute/cuda/14.0.0/local_installers/cuda_14.0.0_650.10.01_linux.run"),
        "Linux-ppc64le": ("{HASH}", "https://example.org/cuda_14.0.0_650.10.01_linux_ppc64le.run"),
    }},
    "12.6.2": {{
        "Linux-aarch64": ("2249408848b705c18b9eadfb5161b52e4e36fcc5753647329cce93db141e5466",
            "https://developer.download.nvidia.com/compute/cuda/12.6.2/local_installers/cuda_12.6.2_560.35.03_linux_sbsa.run"),
    }},
    "10.1.243": {{"Linux-x86_64": ("{HASH}", "https://example.org/cuda_10.1.243_418.87.00_linux.run")}},
}}
os.makedirs("/this/must/never/run")
'''
SPACK_CUDNN = f'''_versions = {{
    "9.30.0.1-14": {{"Linux-x86_64": "{HASH}", "Linux-aarch64": "{HASH}"}},
    "9.2.0.82-11": {{"Linux-x86_64": "99dcb3fa2bf7eed7f35b0f8e58e7d1f04d9a52e01e382efc1de16fed230d3b26"}},
}}
'''
# Wheels of the index: name, version, tags, Requires-Dist.
INDEX = [
    ("torch", "2.15.0", "cp311-cp311", WHEELS["torch==2.15.0"][1]),
    ("torch", "2.15.0", "cp312-cp312", WHEELS["torch==2.15.0"][1]),
    ("torch", "2.16.0", "cp312-cp312", ["cuda-toolkit[cublas,cudart]==13.2.4", "nvidia-cudnn-cu13==9.26.0.60"]),
    ("torchvision", "0.29.2", "cp311-cp311", ["torch>=2.14.0"]),
    ("torchvision", "0.31.0", "cp312-cp312", ["torch==2.16.0"]),
]


def wheel_file(name: str, version: str, tags: str, requires: Sequence[str]) -> tuple[str, bytes]:
    """A wheel with nothing but its metadata."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        folder = f"{name}-{version}.dist-info"
        head = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
        archive.writestr(
            f"{folder}/METADATA", "\n".join([*head, *(f"Requires-Dist: {one}" for one in requires)]) + "\n"
        )
        archive.writestr(
            f"{folder}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tags}-manylinux_2_28_x86_64\n"
        )
        archive.writestr(f"{folder}/RECORD", "")
    return f"{name}-{version}-{tags}-manylinux_2_28_x86_64.whl", content.getvalue()


class Sources:
    """All public sources on this machine: pages by path, each of which can be taken away."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {
            "/RELEASE.md": RELEASE_PAGE.encode(), "/notes.html": RELEASE_NOTES.encode(),
            "/releases.json": json.dumps(DRIVERS_JSON).encode(), "/pci.ids": PCI_IDS.encode(),
            "/cuda.py": SPACK_CUDA.encode(), "/cudnn.py": SPACK_CUDNN.encode(),
        }  # fmt: skip
        links: dict[str, str] = {}
        for name, version, tags, requires in INDEX:
            file, content = wheel_file(name, version, tags, requires)
            self.pages[f"/files/{file}"] = content
            links[name] = links.get(name, "") + f'<a href="/files/{file}">{file}</a>\n'
        for name, text in links.items():
            self.pages[f"/simple/{name}/"] = f"<!DOCTYPE html><html><body>\n{text}</body></html>".encode()
        sources = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = sources.pages.get(self.path)
                self.send_response(404 if content is None else 200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, *_arguments: Any) -> None:
                """Say nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def places(self) -> list[str]:
        """The arguments that make the updater ask here."""
        paths = {"matrix": "RELEASE.md", "code": "RELEASE.md", "notes": "notes.html", "drivers": "releases.json",
                 "chips": "pci.ids", "names": "pci.ids", "runfiles": "cuda.py", "cudnn": "cudnn.py"}  # fmt: skip
        return [f"--source={name}={self.url}/{path}" for name, path in paths.items()]


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sources]:
    """The loopback sources, and pip (a real one) told to ask there and nowhere else."""
    found = Sources()
    for name in [key for key in os.environ if key.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_INDEX_URL", f"{found.url}/simple")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tables; torch's with two releases and two Pythons, one pip query for each."""
    data = tmp_path / "plugin_utils" / "data"
    shutil.copytree(ROOT / "plugins" / "plugin_utils" / "data", data)
    (tmp_path / "module_utils").mkdir()
    shutil.copy(ROOT / "plugins" / "module_utils" / "gpu_chips.py", tmp_path / "module_utils")
    monkeypatch.setattr(update_tables, "DATA", str(data))
    monkeypatch.setattr(update_tables, "NODE_TABLE", str(tmp_path / "module_utils" / "gpu_chips.py"))
    head, table, _text = update_tables.read("torch")
    table["releases"] = [row for row in table["releases"] if row["torch"] in ("2.14.1", "2.15.0")]
    for row in table["releases"]:
        row["pythons"] = ["3.11", "3.12"]
    table["releases"][0]["source"] = "known"
    (data / "torch.yml").write_text(update_tables.render(head, table), encoding="utf-8")
    return data


@pytest.fixture
def known_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index with nothing but what the table has, without a pip: for tests that are not about it."""

    def pip(arguments: Sequence[str]) -> str:
        return "Available versions: 2.15.0, 2.14.1" if arguments[0] == "index" else ""

    monkeypatch.setattr(update_tables, "run_pip", pip)


def texts(data: Path) -> dict[str, str]:
    return {
        path.name: path.read_text(encoding="utf-8")
        for path in [*data.glob("*.yml"), data.parents[1] / "module_utils" / "gpu_chips.py"]
    }


def rows(data: Path, name: str, section: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((data / f"{name}.yml").read_text(encoding="utf-8"))[section]
    return found


def test_one_run_brings_a_new_torch_and_a_new_cuda_into_every_table_and_a_second_changes_nothing(
    sources: Sources, tables: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = texts(tables)
    assert update_tables.main(["all", "--new-only", *sources.places()]) == 1
    shown = capsys.readouterr().out
    assert texts(tables) == before, "it wrote without being told"
    assert "+  - torch: '2.16.0'" in shown and "+  - {cuda: '14.0.0'" in shown

    assert update_tables.main(["all", "--write", *sources.places()]) == 0
    said = capsys.readouterr().out
    after = texts(tables)
    assert {name for name in after if after[name] != before[name]} == {
        "torch.yml", "toolkits.yml", "drivers.yml", "cuda.yml", "gpu_chips.py",
    }  # fmt: skip
    new = next(row for row in rows(tables, "torch", "releases") if row["torch"] == "2.16.0")
    assert (new["pypi_cuda"], new["pythons"], new["torchvision"]) == ("13.2", ["3.12"], "0.31.0")
    assert [r["variant"] for r in rows(tables, "torch", "variants") if r["torch"] == "2.16"] == [
        "cu126",
        "cu132",
        "cu133",
    ]
    codes = {
        (r["variant"], r["machine"], r["torch_from"], r["torch_to"]): r for r in rows(tables, "torch", "arch_lists")
    }
    assert codes[("cu133", "x86_64", "2.16", "2.16")]["arch"] == ["8.0", "8.6", "9.0", "10.0", "12.0"]
    assert codes[("cu133", "aarch64", "2.16", "2.16")]["ptx"] == "12.0"
    assert ("cu126", "x86_64", "2.6", "2.16") in codes
    assert rows(tables, "toolkits", "toolkits")[0]["cuda"] == "14.0.0"
    branch = rows(tables, "drivers", "branches")[-1]
    assert (branch["branch"], branch["cuda_api"], branch["type"], branch["verified"]) == (
        650,
        "14.0",
        "long term",
        False,
    )
    assert rows(tables, "drivers", "floors")[0] == {
        "cuda": "14", "linux": "650.10.01", "windows": "650.10.01", "compatibility": "minor", "source": "relnotes", "verified": True,
    }  # fmt: skip
    assert [r["machine"] for r in rows(tables, "cuda", "runfiles") if r["cuda"] == "14.0.0"] == ["x86_64"]
    assert [r["cudnn"] for r in rows(tables, "cuda", "cudnn")][:2] == ["9.30.0.1", "9.30.0.1"]
    assert '    "pci.ids 2027.01.03": """\n3fa0 GB202 RTX PRO 9999 Blackwell\n""",\n}\n' in after["gpu_chips.py"]
    assert "torch.yml      releases  1 new (2.16.0)" in said
    assert "cuda.yml       runfiles  1 new (14.0.0 x86_64)" in said
    assert "chips.yml      chips     nothing new" in said
    assert "by hand: architectures" in said

    assert update_tables.main(["all", "--write", "--new-only", *sources.places()]) == 0
    assert "nothing differs" in capsys.readouterr().out
    assert texts(tables) == after
    # What was written is what the solver and the roles read.
    for name in ("torch", "toolkits", "drivers", "cuda"):
        head, table, text = update_tables.read(name)
        assert update_tables.render(head, table) == text


def test_a_source_that_is_away_or_looks_different_is_named_and_the_others_are_used(
    sources: Sources, tables: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = texts(tables)
    del sources.pages["/notes.html"]
    sources.pages["/releases.json"] = b"<html>moved</html>"
    sources.pages["/cuda.py"] = b"class Cuda: pass"
    del sources.pages["/simple/torch/"]
    assert update_tables.main(["all", "--write", *sources.places()]) == 3
    said = capsys.readouterr()
    failed = [line.split(" ")[2] for line in said.err.splitlines() if line.startswith("not read: ")]
    assert failed == ["releases", "notes", "drivers", "runfiles"]
    assert f"{sources.url}/notes.html: Not Found" in said.err
    assert "pip finds no torch there" in said.err
    assert "not JSON of branches" in said.err
    assert "no table _versions" in said.err
    after = texts(tables)
    assert {name for name in after if after[name] != before[name]} == {"torch.yml", "cuda.yml", "gpu_chips.py"}
    assert "9.30.0.1" in after["cuda.yml"] and "14.0.0" not in after["cuda.yml"]
    assert rows(tables, "torch", "releases") == yaml.safe_load(before["torch.yml"])["releases"]


def test_a_machine_that_does_not_answer_is_named(
    sources: Sources, tables: Path, known_torch: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        assert update_tables.main(["all", "--new-only", *sources.places(), f"--source=cudnn={url}/cudnn.py"]) == 3
    said = capsys.readouterr()
    assert f"not read: cudnn ({url}/cudnn.py: [Errno 111] Connection refused)" in said.err
    assert "differs: " in said.out


def test_rows_by_hand_stay_and_it_says_so(
    sources: Sources, tables: Path, known_torch: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """A toolkit, a GPU's code, a chip and a hash that somebody put right by hand, each contradicted by its source."""
    corrected = [
        ("toolkits", "toolkits", {"cuda": "12.0.1"}, {"linux": "525.85.99", "source": "relnotes-by-hand"}),
        ("chips", "devices", {"device": "1eb8"}, {"chip": "TU104A", "source": "known"}),
        ("cuda", "cudnn", {"cudnn": "9.2.0.82", "cuda": "11"}, {"sha256": HASH, "source": "estimate"}),
    ]  # fmt: skip
    wanted = []
    for name, section, which, change in corrected:
        head, table, _text = update_tables.read(name)
        row = next(r for r in table[section] if which.items() <= r.items())
        row.update(change)
        wanted.append((name, section, dict(row)))
        (tables / f"{name}.yml").write_text(update_tables.render(head, table), encoding="utf-8")
    assert update_tables.main(["all", "--write", "--new-only", *sources.places()]) == 0
    for name, section, row in wanted:
        assert row in rows(tables, name, section), name
    said = capsys.readouterr().out
    assert "1 kept by hand though the source differs (12.0.1)" in said
    assert "1 kept by hand though the source differs (9.2.0.82 11 x86_64)" in said
    assert next(r for r in rows(tables, "torch", "releases") if r["torch"] == "2.14.1")["source"] == "known"


def test_a_checksum_that_changed_at_its_source_is_said(
    sources: Sources, tables: Path, known_torch: None, capsys: pytest.CaptureFixture[str]
) -> None:
    sources.pages["/cudnn.py"] = SPACK_CUDNN.replace("99dcb3fa", "00000000").encode()
    assert update_tables.main(["all", "--new-only", *sources.places()]) == 1
    assert "1 changed (9.2.0.82 11 x86_64)" in capsys.readouterr().out


def test_the_node_table_with_a_new_block_still_works_and_a_new_chip_is_named(
    sources: Sources, tables: Path, known_torch: None, capsys: pytest.CaptureFixture[str]
) -> None:
    sources.pages["/pci.ids"] = PCI_IDS.replace("10df  Emulex", "	3fff  ZZ100 [Next One]\n10df  Emulex").encode()
    assert update_tables.main(["all", "--write", "--new-only", *sources.places()]) == 3
    assert "chips that gpu_chips.py must be taught by hand first: ZZ100" in capsys.readouterr().err
    path = tables.parents[1] / "module_utils" / "gpu_chips.py"
    spec = importlib.util.spec_from_file_location("gpu_chips_updated", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.lookup("3fa0")
    assert (found["chip"], found["compute_capability"], found["name"]) == ("GB202", "12.0", "RTX PRO 9999 Blackwell")
    assert module.lookup("1eb8")["chip"] == "TU104"


def test_the_matrix_as_it_was_published_says_what_the_table_has() -> None:
    table = committed("torch")
    before = copy.deepcopy(table)
    published = RELEASE_PAGE.replace("\n| 2.16 |", "\n| x |").replace(", 2.14 and 2.16", " and 2.14")
    update_tables.update_variants(table, published)
    update_tables.update_support_matrix(table, published)
    assert table == before


@pytest.mark.parametrize("argument", ["--source=nothing=x", "--source=notes="])
def test_a_source_that_does_not_exist_is_refused(argument: str) -> None:
    with pytest.raises(SystemExit) as caught:
        update_tables.main(["all", argument])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("reader", "name"),
    [("update_variants", "torch"), ("update_support_matrix", "torch"), ("update_toolkits", "toolkits"),
     ("update_chips", "chips"), ("update_runfiles", "cuda"), ("update_cudnn", "cuda")],
)  # fmt: skip
def test_a_page_in_another_layout_does_not_pass_for_nothing_new(reader: str, name: str) -> None:
    for page in (
        "",
        "<html><body>moved</body></html>",
        "For Release 2.16 PyTorch supports following CUDA Architectures:\n",
    ):
        with pytest.raises(update_tables.SourceError):
            getattr(update_tables, reader)(committed(name), page)
