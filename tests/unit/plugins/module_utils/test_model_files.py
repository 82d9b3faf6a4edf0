# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Weights on a node: manifests, hashes, records."""

from __future__ import annotations

import hashlib
import os
import subprocess

import pytest
from ansible_collections.gpufleet.llm.plugins.module_utils import model_files as mf

BODY = b"weights " * 1000
SHA = hashlib.sha256(BODY).hexdigest()
ROW = {"size": len(BODY), "sha256": SHA}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_bytes(BODY)
    return tmp_path


@pytest.mark.parametrize("revision", ["main", "v1.0", "c814a72", "C" * 40, "c" * 39, "c" * 40 + "\n", ""])
def test_a_revision_that_can_move_is_refused(revision):
    with pytest.raises(mf.ManifestError, match="40 lower-case hex"):
        mf.check_revision(revision)


def test_a_commit_is_taken():
    assert mf.check_revision("c" * 40) == "c" * 40


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../a", "a/../b", "a//b", "", "./a", "a\\b", ".gpufleet/x", ".cache/huggingface/x"]
)
def test_paths_that_lead_out_are_refused(path):
    with pytest.raises(mf.ManifestError):
        mf.check_paths({path: ROW})


@pytest.mark.parametrize(
    ("allow", "ignore", "expected"),
    [
        ([], [], ["a.bin", "a.safetensors", "config.json", "onnx/b.json"]),
        (["*.json"], [], ["config.json", "onnx/b.json"]),
        (["*.json"], ["onnx/"], ["config.json"]),
        ([], ["*.bin", "onnx/*"], ["a.safetensors", "config.json"]),
    ],
)
def test_patterns_choose_as_the_hub_client_does(allow, ignore, expected):
    assert mf.selected(["a.bin", "a.safetensors", "config.json", "onnx/b.json"], allow, ignore) == expected


def test_hashes_are_those_of_sha256sum_and_git(folder):
    found = mf.file_hashes(str(folder / "sub" / "a"))
    assert found["sha256"] == SHA
    git = subprocess.run(["git", "hash-object", str(folder / "sub" / "a")], capture_output=True, text=True, check=True)
    assert found["git_sha1"] == git.stdout.strip()


@pytest.mark.parametrize(
    ("content", "row", "word"),
    [
        (BODY, ROW, ""),
        (BODY, {"size": len(BODY), "git_sha1": "0" * 40}, "git_sha1"),
        (BODY + b"x", ROW, "bytes, wanted are"),
        (b"x" + BODY[1:], ROW, "has the sha256"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 8000\n", ROW, "git-lfs pointer"),
        (BODY, {"size": len(BODY)}, "no hash"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(tmp_path, content, row, word):
    (tmp_path / "f").write_bytes(content)
    reason, _hashes = mf.wrong_with(str(tmp_path / "f"), row)
    assert (word in reason) if word else reason == ""


def test_a_file_is_believed_while_nobody_touched_it_and_read_after(folder):
    path = str(folder / "sub" / "a")
    first = mf.survey(str(folder), {"sub/a": ROW}, {}, False)
    assert first["hashed"] == ["sub/a"] and not first["wrong"]
    record = first["good"]
    assert mf.survey(str(folder), {"sub/a": ROW}, record, False)["hashed"] == []
    assert mf.survey(str(folder), {"sub/a": ROW}, record, True)["hashed"] == ["sub/a"]
    # the same bytes in a new file: another inode
    (folder / "sub" / "b").write_bytes(BODY)
    os.replace(folder / "sub" / "b", path)
    assert mf.survey(str(folder), {"sub/a": ROW}, record, False)["hashed"] == ["sub/a"]


def test_a_flipped_byte_with_the_old_time_is_found_only_by_reading(folder):
    path = folder / "sub" / "a"
    record = mf.survey(str(folder), {"sub/a": ROW}, {}, False)["good"]
    before = path.stat()
    with path.open("r+b") as stream:
        stream.write(b"X")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "sub/a" in mf.survey(str(folder), {"sub/a": ROW}, record, False)["good"]
    assert "has the sha256" in mf.survey(str(folder), {"sub/a": ROW}, record, True)["wrong"]["sub/a"]


def test_a_record_of_other_weights_is_not_believed(folder):
    record = mf.survey(str(folder), {"sub/a": ROW}, {}, False)["good"]
    other = {"size": len(BODY), "sha256": "0" * 64}
    assert "sub/a" in mf.survey(str(folder), {"sub/a": other}, record, False)["wrong"]


def test_missing_and_not_a_file(folder):
    (folder / "dir").mkdir()
    seen = mf.survey(str(folder), {"gone": ROW, "dir": ROW}, {}, False)
    assert seen["missing"] == ["gone"] and seen["wrong"] == {"dir": "is not a file"}


def test_extra_files_without_the_modules_own(folder):
    for name in (".gpufleet/lock", ".cache/huggingface/x", ".cache/other", "sub/extra", "sub/a.part"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    assert mf.extra_files(str(folder), {"sub/a": ROW}) == [".cache/other", "sub/extra"]


def test_catalogue_and_hub_must_agree():
    told = {"a": {"size": 1, "sha256": "a" * 64}, "b": {"size": 2, "git_sha1": "b" * 40}}
    assert mf.agreed({"a": {"sha256": "a" * 64}}, told, "hub")["b"]["size"] == 2
    assert mf.agreed({"b": {"sha256": "c" * 64}}, told, "hub")["b"] == {
        "size": 2,
        "git_sha1": "b" * 40,
        "sha256": "c" * 64,
    }
    with pytest.raises(mf.ManifestError, match="not the same weights"):
        mf.agreed({"a": {"sha256": "0" * 64}}, told, "hub")
    with pytest.raises(mf.ManifestError, match="has no such file"):
        mf.agreed({"c": {"sha256": "0" * 64}}, told, "hub")


def test_a_kept_list_answers_only_its_own_question(tmp_path):
    (tmp_path / ".gpufleet").mkdir()
    question = mf.request_fingerprint(["a/b"], "c" * 40, ["*.json"], [])
    mf.write_json(str(tmp_path / ".gpufleet" / "manifest.json"), {"fingerprint": question, "files": {"a": ROW}})
    assert mf.kept_manifest(str(tmp_path), question) == {"a": ROW}
    assert mf.kept_manifest(str(tmp_path), mf.request_fingerprint(["a/b"], "d" * 40, ["*.json"], [])) == {}
    (tmp_path / ".gpufleet" / "manifest.json").write_text("{")
    assert mf.kept_manifest(str(tmp_path), question) == {}


def test_what_an_earlier_run_left_counts_for_the_disk(tmp_path):
    files = {"a": {"size": 1000}, "b": {"size": 500}}
    assert mf.bytes_to_come(str(tmp_path), files, ["a", "b"]) == 1500
    (tmp_path / ".cache/huggingface/download").mkdir(parents=True)
    (tmp_path / ".cache/huggingface/download/x.incomplete").write_bytes(b"x" * 300)
    (tmp_path / "b.part").write_bytes(b"x" * 100)
    assert mf.bytes_to_come(str(tmp_path), files, ["a", "b"]) == 1100


@pytest.mark.parametrize(
    ("path", "expected"), [("a.bin", True), ("x/A.PT", True), ("a.safetensors", False), ("bin", False)]
)
def test_pickles_are_known_by_their_name(path, expected):
    assert mf.is_pickle(path) is expected
