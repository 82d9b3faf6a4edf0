# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The updater: canonical form, and rows out of recorded answers of pip and of files in the layout of the public pages."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import update_tables

TABLES = ("architectures", "chips", "drivers", "precisions", "systems", "toolkits", "torch")
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
