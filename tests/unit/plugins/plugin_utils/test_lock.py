# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hash locks: what is read from them, and what is none."""

from __future__ import annotations

import pathlib

import pytest
from ansible_collections.gpufleet.llm.plugins.plugin_utils.lock import LockError, normal_name, parse_lock

ROOT = pathlib.Path(__file__).resolve().parents[4]
A, B = "a" * 64, "b" * 64


def test_names_versions_markers_and_comments():
    lock = parse_lock(
        f"# a comment\nTorch_Audio==2.0.2+cpu \\\n    --hash=sha256:{A} \\\n    --hash=sha256:{B}\n    # via x\n"
        f"colorama==0.4.6 ; sys_platform == 'win32' \\\n    --hash=sha256:{A}\nrequests[socks]==2.32.5 --hash=sha256:{B}\n"
    )
    assert lock.requirements == {"torch-audio": "2.0.2+cpu", "requests": "2.32.5"}
    assert lock.conditional == {"colorama": "0.4.6"}
    assert lock.hashes["torch-audio"] == (A, B)
    assert len(lock.sha256) == 64


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("torch==2.0.1", "no sha256 for torch"),
        (f"torch>=2.0 --hash=sha256:{A}", "torch>=2.0"),
        (f"torch==2.* --hash=sha256:{A}", "torch==2.*"),
        ("--index-url https://example.org/simple", "--index-url"),
        (f"a==1 --hash=sha256:{A}\nA==2 --hash=sha256:{A}", "twice"),
        ("-e .", "-e ."),
        (f"a @ https://example.org/a.whl --hash=sha256:{A}", "a @"),
        ("# nothing", "empty"),
        ("a==1 --hash=md5:aa", "no sha256 for a"),
    ],
)
def test_what_is_not_pinned_and_hashed_is_no_lock(text, word):
    with pytest.raises(LockError, match="no hash lock") as told:
        parse_lock(text)
    assert word in str(told.value)


@pytest.mark.parametrize(("name", "normal"), [("PyYAML", "pyyaml"), ("cpm_kernels", "cpm-kernels"), ("a.-_b", "a-b")])
def test_names_are_compared_as_pep_503_says(name, normal):
    assert normal_name(name) == normal


@pytest.mark.parametrize(
    "path", sorted((ROOT / "roles" / "llm_model").glob("**/*.lock")), ids=lambda path: path.parent.name
)
def test_every_lock_of_the_role_is_one_and_names_no_index(path):
    text = path.read_text(encoding="utf-8")
    assert len(parse_lock(text).requirements) > 5
    assert "://" not in text and "--index" not in text


def test_the_locks_of_the_real_models_hold_the_versions_that_were_found_to_work():
    lock = parse_lock((ROOT / "roles/llm_model/catalog/chatglm3_6b/requirements.lock").read_text(encoding="utf-8"))
    wanted = {
        "torch": "2.1.2", "transformers": "4.40.2", "tokenizers": "0.19.1", "accelerate": "0.30.1", "sentencepiece": "0.2.0",
        "cpm-kernels": "1.0.11", "protobuf": "4.25.9", "numpy": "1.26.4", "huggingface-hub": "0.36.2", "safetensors": "0.8.0",
        "triton": "2.1.0",
    }  # fmt: skip
    assert {name: lock.requirements[name] for name in wanted} == wanted
    assert int(lock.requirements["setuptools"].split(".")[0]) < 82
    # the sha256 of torch-2.1.2-cp310-cp310-manylinux1_x86_64.whl
    assert "3a871edd6c02dae77ad810335c0833391c1a4ce49af21ea8cf0f6a5d2096eea8" in lock.hashes["torch"]
