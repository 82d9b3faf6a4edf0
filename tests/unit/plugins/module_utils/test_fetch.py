# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetching from a real HTTP server on the loopback that misbehaves as told."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import json
import os
import random
import re
import threading

import pytest
from ansible_collections.gpufleet.llm.plugins.module_utils import fetch

BODY = random.Random(7).randbytes(300_000)
SHA = hashlib.sha256(BODY).hexdigest()


@dataclasses.dataclass
class Behaviour:
    """How one path of the server answers."""

    body: bytes = BODY
    etag: str = '"one"'
    ranges: bool = True
    cut_after: int | None = None
    cut_times: int = 0
    status: int = 200
    status_times: int = 0
    location: str = ""
    length: bool = True
    wrong_start: bool = False


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.paths: dict[str, Behaviour] = {}
        self.log: list[dict] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def url(self, path, **behaviour):
        self.paths[path] = Behaviour(**behaviour)
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args):
        pass

    def do_GET(self):
        how = self.server.paths.get(self.path.partition("?")[0])
        entry = {"path": self.path, "headers": dict(self.headers), "status": 0, "sent": 0}
        self.server.log.append(entry)
        if how is None:
            entry["status"] = 404
            self.send_error(404)
            return
        if how.location:
            entry["status"] = how.status
            self.send_response(how.status)
            self.send_header("Location", how.location)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if how.status != 200 and how.status_times > 0:
            how.status_times -= 1
            entry["status"] = how.status
            self.send_error(how.status)
            return
        start, status = 0, 200
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        fits = self.headers.get("If-Range", how.etag) == how.etag
        if asked and how.ranges and fits:
            start, status = int(asked[1]), 206
            if start >= len(how.body):
                entry["status"] = 416
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(how.body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        body = how.body[start:]
        entry["status"] = status
        self.send_response(status)
        if status == 206:
            first = start + 1 if how.wrong_start else start
            self.send_header("Content-Range", f"bytes {first}-{len(how.body) - 1}/{len(how.body)}")
        if how.length:
            self.send_header("Content-Length", str(len(body)))
        if how.etag:
            self.send_header("ETag", how.etag)
        self.end_headers()
        if how.cut_after is not None and how.cut_times > 0:
            how.cut_times -= 1
            body = body[: how.cut_after]
            self.close_connection = True
        entry["sent"] = len(body)
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = Server()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def dest(tmp_path):
    return str(tmp_path / "file.bin")


def run(urls, dest, **options):
    waits = options.pop("waits", [])
    options.setdefault("sha256", SHA)
    sha256 = options.pop("sha256")
    urls = [urls] if isinstance(urls, str) else urls
    return fetch.Fetch(urls, dest, sha256, sleep=waits.append, **options).run()


def content(path):
    with open(path, "rb") as stream:
        return stream.read()


def names(path):
    return sorted(os.listdir(os.path.dirname(path)))


def test_plain_download_leaves_only_the_file(server, dest):
    got = run(server.url("/a"), dest)
    assert content(dest) == BODY
    assert names(dest) == ["file.bin"]
    assert (got.size_bytes, got.downloaded_bytes, got.resumed_from_bytes, got.failures) == (300_000, 300_000, 0, [])
    assert got.url.endswith("/a")
    assert server.log[0]["headers"]["Accept-Encoding"] == "identity"


def test_a_cut_is_resumed_in_the_same_run_and_only_the_rest_is_sent(server, dest):
    run(server.url("/a", cut_after=100_000, cut_times=1), dest)
    assert content(dest) == BODY
    assert [(entry["status"], entry["sent"]) for entry in server.log] == [(200, 100_000), (206, 200_000)]
    assert server.log[1]["headers"]["Range"] == "bytes=100000-"
    assert server.log[1]["headers"]["If-Range"] == '"one"'


def test_a_cut_is_resumed_by_the_next_run(server, dest):
    url = server.url("/a", cut_after=100_000, cut_times=1)
    with pytest.raises(fetch.FetchError, match=r"ended after 100000 of 300000 bytes.*\n.*next run goes on"):
        run(url, dest, attempts=1)
    assert not os.path.exists(dest)
    assert os.path.getsize(dest + ".part") == 100_000
    got = run(url, dest)
    assert content(dest) == BODY
    assert names(dest) == ["file.bin"]
    assert (got.downloaded_bytes, got.resumed_from_bytes) == (200_000, 100_000)
    assert server.log[-1]["sent"] == 200_000


def test_a_cut_is_resumed_from_another_mirror_without_its_validator(server, dest):
    urls = [server.url("/a", cut_after=100_000, cut_times=9), server.url("/b", etag='"two"')]
    got = run(urls, dest, attempts=1)
    assert content(dest) == BODY
    assert server.log[-1]["sent"] == 200_000
    assert "If-Range" not in server.log[-1]["headers"]
    assert len(got.failures) == 1


def test_as_long_as_it_moves_it_goes_on(server, dest):
    waits = []
    run(server.url("/a", cut_after=40_000, cut_times=7), dest, attempts=2, waits=waits)
    assert content(dest) == BODY
    assert waits == [1.0] * 7


def test_a_changed_file_is_fetched_anew(server, dest):
    url = server.url("/a", body=b"x" * 300_000, cut_after=100_000, cut_times=1, etag='"old"')
    with pytest.raises(fetch.FetchError):
        run(url, dest, attempts=1)
    server.url("/a", etag='"new"')
    run(url, dest)
    assert content(dest) == BODY
    assert server.log[-1]["status"] == 200


def test_a_server_that_ignores_range_starts_anew(server, dest):
    with open(dest + ".part", "wb") as stream:
        stream.write(BODY[:1000])
    got = run(server.url("/a", ranges=False), dest)
    assert content(dest) == BODY
    assert (got.downloaded_bytes, got.resumed_from_bytes) == (300_000, 0)


def test_wrong_kept_bytes_are_not_blamed_on_the_mirror(server, dest):
    with open(dest + ".part", "wb") as stream:
        stream.write(b"rubbish")
    got = run(server.url("/a"), dest)
    assert content(dest) == BODY
    assert got.failures == []
    assert [entry["status"] for entry in server.log] == [206, 200]


def test_a_wrong_position_in_the_answer_starts_anew(server, dest):
    with open(dest + ".part", "wb") as stream:
        stream.write(BODY[:1000])
    run(server.url("/a", wrong_start=True), dest)
    assert content(dest) == BODY
    assert [entry["status"] for entry in server.log] == [206, 200]


def test_416_with_more_kept_than_there_is_starts_anew(server, dest):
    with open(dest + ".part", "wb") as stream:
        stream.write(BODY + b"more")
    run(server.url("/a"), dest)
    assert content(dest) == BODY
    assert [entry["status"] for entry in server.log] == [416, 200]


def test_416_with_all_bytes_kept_but_wrong_starts_anew(server, dest):
    with open(dest + ".part", "wb") as stream:
        stream.write(b"y" * len(BODY))
    run(server.url("/a"), dest)
    assert content(dest) == BODY
    assert [entry["status"] for entry in server.log] == [416, 200]


def test_all_bytes_kept_and_right_needs_no_server(dest):
    with open(dest + ".part", "wb") as stream:
        stream.write(BODY)
    got = run("http://127.0.0.1:1/never", dest)
    assert content(dest) == BODY
    assert got.downloaded_bytes == 0
    assert names(dest) == ["file.bin"]


def test_wrong_sha256_is_refused_removed_and_the_next_place_asked(server, dest):
    urls = [server.url("/bad", body=b"evil" * 1000), server.url("/a")]
    got = run(urls, dest)
    assert content(dest) == BODY
    assert got.url.endswith("/a")
    assert "wrong sha256: found " + hashlib.sha256(b"evil" * 1000).hexdigest() in got.failures[0]["error"]
    assert server.log[-1]["status"] == 200, "nothing of the wrong file may be kept"


def test_wrong_everywhere_leaves_nothing_and_lists_all(server, dest):
    urls = [
        server.url("/bad", body=b"evil"),
        server.url("/worse", body=b"worse"),
        server.url("/no", status=403, status_times=9),
    ]
    with pytest.raises(fetch.FetchError) as caught:
        run(urls, dest)
    assert names(dest) == []
    message = str(caught.value)
    assert message.count("wrong sha256") == 2
    assert "HTTP 403" in message
    assert [item["url"] for item in caught.value.failures] == urls


def test_an_old_file_stays_until_the_new_one_is_verified(server, dest):
    with open(dest, "w") as stream:
        stream.write("old")
    with pytest.raises(fetch.FetchError):
        run(server.url("/bad", body=b"evil"), dest)
    assert content(dest) == b"old"
    run(server.url("/a"), dest)
    assert content(dest) == BODY


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_errors_are_tried_again_with_bounded_waits(server, dest, status):
    waits = []
    run(server.url("/a", status=status, status_times=2), dest, waits=waits)
    assert content(dest) == BODY
    assert waits == [1.0, 2.0]


def test_lasting_errors_are_not_tried_again(server, dest):
    waits = []
    with pytest.raises(fetch.FetchError, match="HTTP 404"):
        run(server.url("/a")[:-1] + "gone", dest, waits=waits)
    assert waits == []
    assert len(server.log) == 1


def test_first_mirror_down(server, dest):
    got = run(["http://127.0.0.1:1/a", server.url("/a")], dest, attempts=2)
    assert content(dest) == BODY
    assert "refused" in got.failures[0]["error"]


def test_a_body_without_length_that_ends_early_is_noticed(server, dest):
    url = server.url("/a", length=False, cut_after=1000, cut_times=99)
    with pytest.raises(fetch.FetchError, match="wrong sha256"):
        run(url, dest, attempts=1)
    url = server.url("/b", length=False, cut_after=1000, cut_times=1)
    run(url, dest, size_bytes=len(BODY))
    assert content(dest) == BODY


def test_another_size_is_refused_before_the_body_and_keeps_what_is_here(server, dest):
    with open(dest + ".part", "wb") as stream:
        stream.write(BODY[:1000])
    urls = [server.url("/portal", body=b"<html>please log in</html>", ranges=False), server.url("/a")]
    got = run(urls, dest, size_bytes=len(BODY))
    assert content(dest) == BODY
    assert "has 26 bytes there, wanted are 300000" in got.failures[0]["error"]
    assert server.log[-1]["sent"] == 299_000


def test_disk_is_checked_before_anything_is_asked_for(server, dest, monkeypatch):
    monkeypatch.setattr(fetch, "free_bytes", lambda path: 100_000)
    with pytest.raises(fetch.DiskTooSmallError, match=r"too small.*needed .*1348576 bytes.*free .*100000 bytes"):
        run(server.url("/a"), dest, size_bytes=len(BODY))
    assert server.log == []
    assert names(dest) == []


def test_disk_is_checked_by_the_servers_size_before_the_first_byte(server, dest, monkeypatch):
    monkeypatch.setattr(fetch, "free_bytes", lambda path: 100_000)
    with pytest.raises(fetch.DiskTooSmallError):
        run([server.url("/a"), server.url("/b")], dest)
    assert len(server.log) == 1, "another mirror does not make the disk larger"
    assert names(dest) == []


def test_only_what_is_missing_must_fit(server, dest, monkeypatch):
    with open(dest + ".part", "wb") as stream:
        stream.write(BODY[:250_000])
    monkeypatch.setattr(fetch, "free_bytes", lambda path: 50_000 + fetch.RESERVE_BYTES)
    run(server.url("/a"), dest, size_bytes=len(BODY))
    assert content(dest) == BODY


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_followed_and_keep_the_range(server, dest, status):
    with open(dest + ".part", "wb") as stream:
        stream.write(BODY[:1000])
    target = server.url("/a") + "?signature=s3cret"
    run(server.url("/r", status=status, location=target), dest)
    assert content(dest) == BODY
    assert server.log[-1]["headers"]["Range"] == "bytes=1000-"


def test_headers_do_not_go_to_another_host(server, dest):
    other = Server()
    try:
        target = other.url("/a").replace("127.0.0.1", "localhost")
        run(server.url("/r", status=302, location=target), dest, headers={"X-Token": "s3cret"})
        assert server.log[0]["headers"]["X-Token"] == "s3cret"
        assert "X-Token" not in other.log[0]["headers"]
    finally:
        other.shutdown()
        other.server_close()


def test_credentials_are_sent_as_a_header_and_never_shown(server, dest):
    url = server.url("/gone").replace("127.0.0.1", "user:pass%20word@127.0.0.1") + "?token=s3cret"
    server.paths.clear()
    with pytest.raises(fetch.FetchError) as caught:
        run(url, dest)
    assert server.log[0]["headers"]["Authorization"] == "Basic dXNlcjpwYXNzIHdvcmQ="
    shown = str(caught.value) + json.dumps(caught.value.failures)
    assert "s3cret" not in shown
    assert "pass" not in shown


def test_signed_urls_leave_no_trace_on_the_disk(server, dest):
    url = server.url("/a", cut_after=10, cut_times=1) + "?token=s3cret"
    with pytest.raises(fetch.FetchError):
        run(url, dest, attempts=1)
    assert b"s3cret" not in content(dest + ".part.json")


def test_progress_is_told(server, dest, tmp_path):
    path = str(tmp_path / "progress.json")
    run(server.url("/a") + "?token=s3cret", dest, progress_path=path)
    told = json.loads(content(path))
    assert told["bytes"] == told["total"] == len(BODY)
    assert told["url"].endswith("/a")
    assert told["started"] > 0


def test_progress_is_told_at_most_once_a_second(tmp_path, monkeypatch):
    path = tmp_path / "progress.json"
    clock = iter([100.0, 100.5, 101.5])
    monkeypatch.setattr(fetch.time, "monotonic", lambda: next(clock))
    progress = fetch.Progress(str(path))
    seen = []
    for done in (1, 2, 3):
        progress.tell("u", done, None, 0.0)
        seen.append(json.loads(path.read_text())["bytes"])
    assert seen == [1, 1, 3]


def test_an_unwritable_progress_file_stops_nothing(server, dest):
    run(server.url("/a"), dest, progress_path="/nonexistent/progress.json")
    assert content(dest) == BODY


def test_two_at_once_fetch_it_once(server, dest, monkeypatch):
    url = server.url("/a")
    asked = threading.Semaphore(0)
    release = threading.Event()
    real, opened = fetch.fcntl.flock, fetch.Fetch._open

    def flock(handle, how):
        asked.release()
        real(handle, how)

    def held(self, request, private):
        assert release.wait(30)
        return opened(self, request, private)

    monkeypatch.setattr(fetch.fcntl, "flock", flock)
    monkeypatch.setattr(fetch.Fetch, "_open", held)
    threads = [threading.Thread(target=run, args=(url, dest)) for _ in range(3)]
    for thread in threads:
        thread.start()
    everybody = all(asked.acquire(timeout=30) for _ in threads)  # before the first byte is asked for
    release.set()
    for thread in threads:
        thread.join()
    assert everybody
    assert content(dest) == BODY
    assert len(server.log) == 1
    assert names(dest) == ["file.bin"]


def test_local_files_and_unknown_schemes(tmp_path, dest):
    source = tmp_path / "source"
    source.mkdir()
    (source / "x").write_bytes(BODY)
    run(source.joinpath("x").as_uri(), dest)
    assert content(dest) == BODY
    with pytest.raises(fetch.FetchError, match="scheme 'ftp'"):
        run("ftp://x/y", dest + "2")


def test_missing_ca_bundle_is_named(server, dest):
    with pytest.raises(fetch.FetchError, match=r"/no/such\.pem cannot be used"):
        run(server.url("/a"), dest, ca_path="/no/such.pem")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:secret@host.example:8443/a/b?sig=1#x", "https://host.example:8443/a/b"),
        ("https://[::1]:8443/a?x", "https://[::1]:8443/a"),
        ("https://host:port/a", "(not a URL)"),
        ("file:///a/b", "file:///a/b"),
    ],
)
def test_redact(url, shown):
    assert fetch.redact(url) == shown


def test_secrets_of():
    assert fetch.secrets_of("https://u:p@h/a?sig=1") == {"p", "u:p", "sig=1"}
    assert fetch.secrets_of("https://t0ken@h/a") == {"t0ken"}
    assert fetch.secrets_of("https://h/a") == set()


@pytest.mark.parametrize(
    ("header", "start", "total"),
    [("bytes 5-9/10", 5, 10), ("bytes */10", None, 10), ("bytes 5-9/*", 5, None), ("", None, None), ("x", None, None)],
)
def test_content_range(header, start, total):
    assert fetch.start_of(header) == start
    assert fetch.total_of(header) == total
