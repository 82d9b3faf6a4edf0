# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""model_snapshot run in this process against the test fleet's own hub (its ModelScope side; the Hugging Face side needs
huggingface_hub and is exercised on nodes, tests/fleet/test_model_faults.py)."""

from __future__ import annotations

import collections
import hashlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import basic
from ansible_collections.gpufleet.llm.plugins.modules import model_snapshot

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "fleet" / "depot"))

import server

BIG = bytes(range(256)) * 20000
REVISION = "a" * 40
FILES = {"w.safetensors": BIG, "config.json": b"{}", "sub/vocab.json": b"[1]", "old.bin": b"pickle"}


class Hub:
    """The depot's hub on the loopback."""

    def __init__(self, port: int, state: Path) -> None:
        self.endpoint = f"http://127.0.0.1:{port}/modelscope"
        self.other = f"http://localhost:{port}/modelscope"
        self.state = state
        self.number = 0

    def fault(self, *faults: dict[str, Any]) -> None:
        rows = []
        for fault in faults:
            self.number += 1
            rows.append({"id": str(self.number), **fault})
        (self.state / "part").write_text(json.dumps(rows))
        os.replace(self.state / "part", self.state / "faults.json")

    def sent(self, name: str) -> list[tuple[str, int]]:
        """(range, bytes) of every answer with that file."""
        rows = [json.loads(line) for line in (self.state / "access.jsonl").read_text().splitlines()]
        return [(row["range"], row["bytes"]) for row in rows if name in row["path"]]


@pytest.fixture
def hub(tmp_path):
    place = tmp_path / "models/team/tiny"
    entry: dict[str, Any] = {}
    for name, data in FILES.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
        sha = hashlib.sha256(data).hexdigest()
        entry[name] = {"size": len(data), "sha256": sha, "blob_id": "b" * 40, "lfs": len(data) > 100}
    (tmp_path / "models/index.json").write_text(json.dumps({"team/tiny": {"revision": REVISION, "files": entry}}))
    state = tmp_path / "state"
    state.mkdir()
    depot = server.Depot({"roots": {"models": str(tmp_path / "models")}, "base": "http://depot", "state": str(state)})
    httpd = server.Server(("127.0.0.1", 0), type("Handler", (server.Handler,), {"depot": depot}))
    threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield Hub(httpd.server_address[1], state)
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def call(monkeypatch, capsys, hub, tmp_path):
    """Run the module; returns what it prints."""

    def run(check=False, **args):
        args = {
            "path": str(tmp_path / "weights"), "revision": REVISION, "sources": ["modelscope"],
            "modelscope": [{"repo": "team/tiny"}], "modelscope_endpoints": [hub.endpoint], "ignore_patterns": ["*.bin"],
            "_ansible_check_mode": check, "_ansible_diff": True, "_ansible_tmpdir": str(tmp_path), **args,
        }  # fmt: skip
        monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps({"ANSIBLE_MODULE_ARGS": args}).encode())
        monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
        with pytest.raises(SystemExit):
            model_snapshot.main()
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def weights(tmp_path):
    return tmp_path / "weights"


def test_first_call_fetches_second_changes_nothing_and_reads_nothing(call, weights):
    first = call()
    assert first["changed"] and first["complete"], first
    assert first["fetched"] == ["config.json", "sub/vocab.json", "w.safetensors"]
    assert (weights / "w.safetensors").read_bytes() == BIG and not (weights / "old.bin").exists()
    record = json.loads((weights / ".gpufleet/verified.json").read_text())["files"]["w.safetensors"]
    found = (weights / "w.safetensors").stat()
    assert (record["size"], record["mtime_ns"], record["inode"]) == (found.st_size, found.st_mtime_ns, found.st_ino)
    second = call()
    assert not second["changed"] and second["hashed"] == [] and second["fetched"] == []
    assert second["diff"]["before"] == second["diff"]["after"]


def test_check_mode_tells_and_touches_nothing(call, weights):
    assert call(check=True)["changed"] and not weights.exists()
    call()
    (weights / "config.json").write_text("{ }")
    told = call(check=True)
    assert told["changed"] and "config.json" in told["diff"]["before"]["wrong"]
    assert (weights / "config.json").read_text() == "{ }"


def test_a_cut_transfer_goes_on_where_it_ended(call, hub, weights):
    hub.fault(
        {"path": "FilePath=w.safetensors", "cut_after_bytes": 2_000_000, "times": 1},
        {"path": "w.safetensors", "status": 404},
    )
    failed = call()
    assert failed["failed"] and "w.safetensors" in failed["msg"]
    assert not (weights / "w.safetensors").exists() and not (weights / ".gpufleet/verified.json").exists()
    kept = (weights / "w.safetensors.part").stat().st_size
    assert kept >= 1_000_000
    hub.fault()
    assert call()["complete"]
    assert hub.sent("FilePath=w.safetensors")[-1] == (f"bytes={kept}-", len(BIG) - kept)
    assert hub.sent("config.json") == [("", 2)]


def test_a_wrong_sha256_removes_the_file_and_the_next_place_is_asked(call, hub, weights):
    hub.fault({"path": "FilePath=w.safetensors", "corrupt": True, "times": 1})
    told = call(modelscope_endpoints=[hub.endpoint, hub.other])
    assert told["complete"] and told["sources"]["w.safetensors"] == hub.other
    assert "wrong sha256" in told["failures"][0]["error"]
    assert (weights / "w.safetensors").read_bytes() == BIG


def test_a_place_that_is_down_is_passed_over(call, hub):
    told = call(modelscope_endpoints=["http://127.0.0.1:9/modelscope", hub.endpoint])
    assert told["complete"] and "127.0.0.1:9" in told["failures"][0]["place"]


def test_wrong_everywhere_fails_and_leaves_no_wrong_file(call, hub, weights):
    hub.fault({"path": "FilePath=w.safetensors", "corrupt": True})
    told = call(modelscope_endpoints=[hub.endpoint, hub.other])
    assert told["failed"] and told["msg"].count("wrong sha256") == 2
    assert not (weights / "w.safetensors").exists() and not (weights / ".gpufleet/verified.json").exists()


def test_a_flipped_byte_is_found_by_time_or_by_deep_and_healed(call, weights):
    call()
    path = weights / "w.safetensors"
    before = path.stat()
    with path.open("r+b") as stream:
        stream.write(b"X")
    healed = call()
    assert healed["changed"] and healed["fetched"] == ["w.safetensors"] and path.read_bytes() == BIG
    before = path.stat()
    with path.open("r+b") as stream:
        stream.write(b"X")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not call()["changed"]
    assert call(deep=True)["fetched"] == ["w.safetensors"] and path.read_bytes() == BIG


def test_files_that_are_right_already_are_adopted_not_fetched(call, hub, weights):
    weights.mkdir()
    (weights / "w.safetensors").write_bytes(BIG)
    told = call()
    assert "w.safetensors" not in told["fetched"] and "w.safetensors" in told["hashed"]
    assert hub.sent("FilePath=w.safetensors") == []


def test_a_lost_record_is_a_change_without_a_transfer(call, weights):
    call()
    (weights / ".gpufleet/verified.json").unlink()
    told = call()
    assert told["changed"] and told["fetched"] == [] and len(told["hashed"]) == 3
    assert not call()["changed"]


def test_a_pointer_file_is_called_one(call, weights, hub):
    weights.mkdir()
    (weights / "w.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 5120000\n")
    told = call(check=True, manifest="complete", files={"w.safetensors": {"size": len(BIG), "sha256": "0" * 64}})
    assert "git-lfs pointer" in told["diff"]["before"]["wrong"]["w.safetensors"]


def test_extra_files_are_told_and_go_only_when_asked(call, weights):
    call()
    (weights / "notes.txt").write_text("mine")
    kept = call()
    assert not kept["changed"] and kept["extra"] == ["notes.txt"] and (weights / "notes.txt").exists()
    gone = call(exact=True)
    assert gone["changed"] and gone["removed"] == ["notes.txt"] and not (weights / "notes.txt").exists()
    assert not call(exact=True)["changed"]


def test_a_disk_that_is_too_small_is_refused_before_the_first_byte(call, hub, weights, monkeypatch):
    monkeypatch.setattr(model_snapshot, "free_bytes", lambda _path: 1_000_000)
    told = call()
    assert told["failed"] and "too small" in told["msg"] and "Nothing was fetched" in told["msg"]
    assert hub.sent("FilePath") == []


def test_what_a_pickle_does_is_said(call):
    told = call(ignore_patterns=[])
    assert told["failed"] and "old.bin" in told["msg"] and "run code" in told["msg"]
    assert call(ignore_patterns=[], allow_pickle=True)["complete"]


@pytest.mark.parametrize("revision", ["main", "v1", "A" * 40])
def test_a_revision_that_can_move_is_refused(call, hub, revision):
    told = call(revision=revision)
    assert told["failed"] and "40 lower-case hex" in told["msg"]
    assert not (hub.state / "access.jsonl").exists() or hub.sent("/") == []


def test_the_catalogue_must_agree_with_the_hub(call):
    told = call(files={"w.safetensors": {"sha256": "0" * 64}})
    assert told["failed"] and "not the same weights" in told["msg"]
    told = call(manifest="complete", files={"w.safetensors": {"size": len(BIG), "sha256": "0" * 64}})
    assert told["failed"] and "another sha256" in told["msg"]


def test_another_revision_replaces_what_differs(call, hub, weights, tmp_path):
    call()
    index = json.loads((tmp_path / "models/index.json").read_text())
    new = b"[2]"
    (tmp_path / "models/team/tiny/config.json").write_bytes(new)
    index["team/tiny"]["files"]["config.json"].update(size=len(new), sha256=hashlib.sha256(new).hexdigest())
    (tmp_path / "models/index.json").write_text(json.dumps(index))
    hub_again = server.Hub(tmp_path / "models")
    files = {
        name: {"size": row["size"], "sha256": row["sha256"]}
        for name, row in hub_again.index["team/tiny"]["files"].items()
    }
    files.pop("old.bin")
    told = call(revision="b" * 40, manifest="complete", files=files, check=True)
    assert told["changed"] and list(told["diff"]["before"]["wrong"]) == ["config.json"]


def test_removal_takes_only_what_the_module_made(call, weights, tmp_path):
    call()
    assert call(state="absent", check=True)["changed"] and weights.exists()
    assert call(state="absent")["changed"] and not weights.exists()
    assert not call(state="absent")["changed"]
    weights.mkdir()
    (weights / "mine").write_text("x")
    told = call(state="absent")
    assert told["failed"] and "Remove it by hand" in told["msg"] and (weights / "mine").exists()


def test_hugging_face_needs_a_tool(call):
    told = call(sources=["huggingface"], repos=["team/tiny"])
    assert told["failed"] and "tool_python" in told["msg"]


TOOL = """#!/bin/sh
env | grep -E '^(GPUFLEET|HF|REQUESTS|SSL)_' > {seen}
cat > /dev/null
printf '%s\\n' '-----BEGIN GPUFLEET HUB ANSWER-----' '{answer}' '-----END GPUFLEET HUB ANSWER-----'
"""


def tool(tmp_path, answer):
    """A stand-in for the tool environment's Python that writes down its environment."""
    path = tmp_path / "tool"
    path.write_text(TOOL.format(seen=tmp_path / "seen", answer=json.dumps(answer)))
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("endpoint", "token", "xet"),
    [
        ("https://huggingface.co", True, False),
        ("https://hf-mirror.com", False, True),
        ("https://own.example/", True, True),
    ],
)
def test_only_trusted_hubs_see_the_token_and_mirrors_no_content_store(call, tmp_path, endpoint, token, xet):
    trusted = ["https://huggingface.co", "https://own.example"]
    python = tool(tmp_path, {"error": {"type": "GatedRepoError", "status": 403, "message": "no"}})
    told = call(
        sources=["huggingface"], repos=["team/tiny"], endpoints=[endpoint], tool_python=python, token="hf_secret12345",
        token_endpoints=trusted,
    )  # fmt: skip
    assert told["failed"] and "accept it once" in told["msg"]
    assert "hf_secret12345" not in json.dumps(told)
    seen = dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().splitlines())
    assert ("GPUFLEET_HUB_TOKEN" in seen) is token
    assert ("HF_HUB_DISABLE_XET" in seen) is xet
    assert seen["HF_ENDPOINT"] == endpoint.rstrip("/") and seen["HF_TOKEN"] == ""


def test_a_hub_that_answers_with_another_commit_is_not_believed(call, tmp_path):
    python = tool(tmp_path, {"revision": "f" * 40, "files": {}})
    told = call(sources=["huggingface"], repos=["team/tiny"], endpoints=["https://own.example"], tool_python=python)
    assert told["failed"] and f"it answers with the commit {'f' * 40}" in told["msg"]


def test_a_tool_that_dies_is_told(call, tmp_path):
    told = call(
        sources=["huggingface"], repos=["team/tiny"], endpoints=["https://own.example"], tool_python="/bin/false"
    )
    assert told["failed"] and "/bin/false stopped" in told["msg"]


def test_two_places_of_one_name_are_asked_in_order(call):
    module = collections.namedtuple("Module", "params tmpdir")(
        {"path": "/x", "sources": ["huggingface", "modelscope"], "endpoints": ["e1", "e2"], "repos": ["a/b", "c/d"],
         "revision": REVISION, "modelscope": [{"repo": "m/s", "revision": "v1"}], "modelscope_endpoints": ["m1"]}, "/t",
    )  # fmt: skip
    places = model_snapshot.Snapshot(module).places()
    assert [(kind, endpoint, repo) for kind, endpoint, repo, _revision in places] == [
        ("huggingface", "e1", "a/b"), ("huggingface", "e1", "c/d"), ("huggingface", "e2", "a/b"), ("huggingface", "e2", "c/d"),
        ("modelscope", "m1", "m/s"),
    ]  # fmt: skip


def test_a_heal_that_fails_leaves_no_record_to_believe(call, hub, weights):
    call()
    with (weights / "w.safetensors").open("r+b") as stream:
        stream.write(b"X")
    hub.fault({"path": "FilePath=w.safetensors", "status": 404})
    assert call()["failed"]
    assert not (weights / ".gpufleet/verified.json").exists()
    hub.fault()
    assert call()["complete"] and (weights / "w.safetensors").read_bytes() == BIG
