# Copyright: Contributors to the gpufleet.llm project
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The depot's server, really serving (plain http on the loopback: TLS is the fleet's business)."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DEPOT = Path(__file__).resolve().parents[2] / "fleet" / "depot"
sys.path.insert(0, str(DEPOT))

import server

DATA = bytes(range(256)) * 1000
REVISION = "a" * 40


class Client:
    """A depot on the loopback, what to ask it, and where its plan of faults lies."""

    def __init__(self, port: int, state: Path) -> None:
        self.port = port
        self.state = state

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers in lower case, and body of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request(method, path, headers={key.replace("_", "-"): value for key, value in headers.items()})
        answer = connection.getresponse()
        body = answer.read()
        return answer.status, {key.lower(): value for key, value in answer.getheaders()}, body

    def fault(self, *faults: dict[str, Any]) -> None:
        """Plan these faults and no others."""
        part = self.state / "part"
        part.write_text(json.dumps([{"id": str(number), **fault} for number, fault in enumerate(faults)]))
        os.replace(part, self.state / "faults.json")

    def log(self) -> list[dict[str, Any]]:
        """The access log."""
        return [json.loads(line) for line in (self.state / "access.jsonl").read_text().splitlines()]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    """A depot with one file, one project and one model."""
    (tmp_path / "files/sub").mkdir(parents=True)
    (tmp_path / "files/data.bin").write_bytes(DATA)
    (tmp_path / "files/sub/x.txt").write_text("x")
    (tmp_path / "secret").write_text("not served")
    (tmp_path / "pypi/files").mkdir(parents=True)
    entry = {
        "file": "a_b-1.0-py3-none-any.whl",
        "sha256": "0" * 64,
        "requires_python": ">=3.9",
        "metadata_sha256": "1" * 64,
    }
    (tmp_path / "pypi/index.json").write_text(json.dumps({"a-b": [entry]}))
    model = tmp_path / "models/team/tiny"
    model.mkdir(parents=True)
    (model / "w.safetensors").write_bytes(DATA)
    (model / "config.json").write_text("{}")
    files = {
        "w.safetensors": {
            "size": len(DATA),
            "sha256": hashlib.sha256(DATA).hexdigest(),
            "blob_id": "b" * 40,
            "lfs": True,
        },
        "config.json": {"size": 2, "sha256": "c" * 64, "blob_id": "d" * 40, "lfs": False},
    }
    (tmp_path / "models/index.json").write_text(json.dumps({"team/tiny": {"revision": REVISION, "files": files}}))
    state = tmp_path / "state"
    state.mkdir()
    roots = {"files": str(tmp_path / "files"), "pypi": str(tmp_path / "pypi"), "models": str(tmp_path / "models")}
    depot = server.Depot({"roots": roots, "base": "http://depot", "state": str(state)})
    handler = type("DepotHandler", (server.Handler,), {"depot": depot})
    httpd = server.Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield Client(httpd.server_address[1], state)
    httpd.shutdown()
    httpd.server_close()


def test_a_file_comes_whole_and_is_logged(client: Client) -> None:
    status, headers, body = client.get("/files/data.bin")
    assert (status, body) == (200, DATA)
    assert headers["accept-ranges"] == "bytes"
    assert [(line["path"], line["status"], line["bytes"]) for line in client.log()] == [
        ("/files/data.bin", 200, len(DATA))
    ]


@pytest.mark.parametrize(
    ("header", "expected"),
    [("bytes=10-19", DATA[10:20]), ("bytes=255990-", DATA[255990:]), ("bytes=-5", DATA[-5:]), ("bytes=0-", DATA)],
)
def test_a_range_brings_just_that(client: Client, header: str, expected: bytes) -> None:
    status, headers, body = client.get("/files/data.bin", Range=header)
    assert (status, body) == (206, expected)
    assert headers["content-range"].endswith(f"/{len(DATA)}")


def test_a_range_outside_the_file_is_refused(client: Client) -> None:
    status, headers, _body = client.get("/files/data.bin", Range=f"bytes={len(DATA)}-")
    assert (status, headers["content-range"]) == (416, f"bytes */{len(DATA)}")


def test_a_range_of_another_edition_brings_the_whole_file(client: Client) -> None:
    status, _headers, body = client.get("/files/data.bin", Range="bytes=10-", If_Range='"another"')
    assert (status, body) == (200, DATA)


def test_an_unchanged_file_is_not_sent_again(client: Client) -> None:
    _status, headers, _body = client.get("/files/data.bin")
    assert client.get("/files/data.bin", If_None_Match=headers["etag"])[0] == 304


def test_head_has_the_length_and_no_body(client: Client) -> None:
    status, headers, body = client.get("/files/data.bin", method="HEAD")
    assert (status, headers["content-length"], body) == (200, str(len(DATA)), b"")


@pytest.mark.parametrize(
    "path", ["/files/../secret", "/files/%2e%2e/secret", "/files/sub/../../secret", "/secret", "/models/index.json"]
)
def test_nothing_outside_the_contents_is_served(client: Client, path: str) -> None:
    status, _headers, body = client.get(path)
    assert status in (400, 404) and b"not served" not in body


def test_a_status_fault_counts_down(client: Client) -> None:
    client.fault({"path": r"^/files/data", "status": 503, "times": 2})
    assert [client.get("/files/data.bin")[0] for _ in range(3)] == [503, 503, 200]
    assert client.get("/files/sub/x.txt")[0] == 200
    assert [line["fault"] for line in client.log()] == ["0", "0", "", ""]


def test_a_cut_promises_the_whole_and_sends_the_part_and_the_rest_can_be_fetched(client: Client) -> None:
    client.fault({"path": "data", "cut_after_bytes": 100_000, "times": 1})
    with pytest.raises(http.client.IncompleteRead) as caught:
        client.get("/files/data.bin")
    assert caught.value.partial == DATA[:100_000]
    assert client.get("/files/data.bin", Range="bytes=100000-")[2] == DATA[100_000:]


def test_a_corrupt_answer_has_the_right_length_and_one_wrong_byte(client: Client) -> None:
    client.fault({"path": "data", "corrupt": True, "times": 1})
    _status, _headers, body = client.get("/files/data.bin")
    assert len(body) == len(DATA) and sum(one != other for one, other in zip(body, DATA, strict=True)) == 1


def test_a_dropped_connection_has_no_answer(client: Client) -> None:
    client.fault({"path": "data", "drop": True, "times": 1})
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        client.get("/files/data.bin")
    assert client.get("/files/data.bin")[0] == 200


def test_a_fault_of_the_body_leaves_head_alone(client: Client) -> None:
    client.fault({"path": "data", "cut_after_bytes": 1, "times": 1})
    assert client.get("/files/data.bin", method="HEAD")[0] == 200
    with pytest.raises(http.client.IncompleteRead):
        client.get("/files/data.bin")


@pytest.mark.parametrize(
    "path", ["/pypi/simple/a-b/", "/pypi/simple/A_B/", "/pypi/simple/cpu/a-b/", "/pypi/simple/cu121/a.b/"]
)
def test_the_index_has_hashes_and_metadata(client: Client, path: str) -> None:
    status, _headers, body = client.get(path)
    assert status == 200
    assert b"a_b-1.0-py3-none-any.whl#sha256=" + b"0" * 64 in body
    assert b'data-requires-python="&gt;=3.9"' in body and b'data-core-metadata="sha256=' + b"1" * 64 in body


@pytest.mark.parametrize("revision", [REVISION, "main"])
def test_the_hub_names_commit_sizes_and_hashes(client: Client, revision: str) -> None:
    info = json.loads(client.get(f"/hub/api/models/team/tiny/revision/{revision}?blobs=True")[2])
    assert info["sha"] == REVISION
    lfs = next(sibling for sibling in info["siblings"] if sibling["rfilename"] == "w.safetensors")
    assert lfs["lfs"]["sha256"] == hashlib.sha256(DATA).hexdigest() and lfs["size"] == len(DATA)
    _status, headers, _body = client.get(f"/hub/team/tiny/resolve/{revision}/w.safetensors", method="HEAD")
    assert headers["x-repo-commit"] == REVISION
    assert headers["x-linked-etag"].strip('"') == hashlib.sha256(DATA).hexdigest()
    assert headers["x-linked-size"] == headers["content-length"] == str(len(DATA))


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/hub/api/models/team/tiny/revision/" + "e" * 40, 404, "RevisionNotFound"),
        ("/hub/api/models/team/none/revision/main", 401, "RepoNotFound"),
        ("/hub/team/tiny/resolve/main/none.json", 404, "EntryNotFound"),
    ],
)
def test_the_hub_says_what_is_missing_as_the_real_one_does(client: Client, path: str, status: int, code: str) -> None:
    answer = client.get(path)
    assert (answer[0], answer[1]["x-error-code"]) == (status, code)


def test_modelscope_lists_and_sends_the_same_files(client: Client) -> None:
    listed = json.loads(client.get("/modelscope/api/v1/models/team/tiny/repo/files?Revision=v1.0&Recursive=true")[2])
    assert {row["Path"]: row["Size"] for row in listed["Data"]["Files"]} == {
        "w.safetensors": len(DATA),
        "config.json": 2,
    }
    path = "/modelscope/api/v1/models/team/tiny/repo?Revision=v1.0&FilePath=w.safetensors"
    assert client.get(path, Range="bytes=5-9")[2] == DATA[5:10]
    assert client.get("/modelscope/models/team/tiny/resolve/master/w.safetensors")[2] == DATA
