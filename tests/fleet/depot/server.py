#!/usr/bin/env python3
# Copyright: Contributors to the gpufleet.llm project
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The depot: one https server for everything that the nodes of a test fleet fetch.

`server.py CONFIG` with a JSON file::

    {"listen": "0.0.0.0", "port": 443, "certificate": "…", "key": "…", "state": "folder for log and faults",
     "base": "https://depot.gpufleet.test", "roots": {"pypi": "…", "conda": "…", "git": "…", "models": "…", …}}

Every request is a line of JSON in `<state>/access.jsonl`. `<state>/faults.json` holds the planned faults and is read
again at every request, so that a running depot obeys at once:

    [{"id": "1", "path": "regex", "times": 1, "status": 503}]

Kinds of fault: `status` (that status and nothing else), `drop` (the connection is closed without an answer),
`cut_after_bytes` (the whole length is promised, so many bytes are sent), `corrupt` (one byte of the body is flipped),
`bytes_per_second` (slow). The last three need a body and leave HEAD alone. Without `times` a fault stays.
"""

from __future__ import annotations

import html
import io
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from datetime import datetime, timezone
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

from hub import Hub

BLOCK = 64 * 1024
VARIANT = re.compile(r"cpu|cu\d+")
TYPES = {".json": "application/json", ".html": "text/html", ".asc": "text/plain", ".txt": "text/plain"}


class Answer(NamedTuple):
    """What a route gives back: a status, headers, and the body as bytes or as a file to send (ranges allowed)."""

    status: int
    headers: dict[str, str]
    body: bytes | Path = b""


def text_answer(status: int, text: str, headers: dict[str, str] | None = None) -> Answer:
    """A short answer in words."""
    return Answer(status, {"Content-Type": "text/plain; charset=utf-8", **(headers or {})}, text.encode())


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """`bytes=5-` of a file of that size → (first, last); None when there is no (single) range to honour.

    Raises ValueError for a range outside the file (status 416).
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if not match or not (match[1] or match[2]):
        return None
    if match[1]:
        first = int(match[1])
        last = min(int(match[2]), size - 1) if match[2] else size - 1
    else:
        first, last = max(size - int(match[2]), 0), size - 1
    if first >= size or first > last:
        raise ValueError(f"{header} of {size} bytes")
    return first, last


def normalized(name: str) -> str:
    """A project's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


class Faults:
    """The planned faults: `faults.json`, read again whenever it has changed, with a count of what is left of each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()
        self.stamp: tuple[int, int, int] | None = None
        self.plan: list[dict[str, Any]] = []
        self.used: dict[str, int] = {}

    def take(self, method: str, target: str) -> dict[str, Any]:
        """The first fault that applies to this request, counted; {} when there is none."""
        with self.lock:
            self._reload()
            for fault in self.plan:
                spent = self.used.get(fault["id"], 0)
                if "times" in fault and spent >= int(fault["times"]):
                    continue
                if method == "HEAD" and not ({"status", "drop"} & set(fault)):
                    continue
                if re.search(fault["path"], target):
                    self.used[fault["id"]] = spent + 1
                    return fault
        return {}

    def _reload(self) -> None:
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            self.plan, self.stamp = [], None
            return
        stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if stamp != self.stamp:
            self.plan = json.loads(self.path.read_text(encoding="utf-8"))
            self.stamp = stamp


class Depot:
    """The routes: which path is answered from which folder, and how."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.roots = {name: Path(folder) for name, folder in config["roots"].items()}
        self.base = config["base"].rstrip("/")
        self.state = Path(config["state"])
        self.faults = Faults(self.state / "faults.json")
        self.log_lock = threading.Lock()
        self.hub = Hub(self.roots["models"]) if "models" in self.roots else None
        self.projects = self._projects()

    def _projects(self) -> dict[str, list[dict[str, str]]]:
        index = self.roots.get("pypi", Path("/nonexistent")) / "index.json"
        return json.loads(index.read_text(encoding="utf-8")) if index.exists() else {}

    def log(self, entry: dict[str, Any]) -> None:
        """Add a line to the access log."""
        with self.log_lock, open(self.state / "access.jsonl", "a", encoding="utf-8") as handle:
            handle.write(json.dumps(entry) + "\n")

    def route(self, method: str, path: str, query: str, headers: dict[str, str], body: BinaryIO | None) -> Answer:
        """Answer a request."""
        area, _slash, rest = path.lstrip("/").partition("/")
        if area == "":
            return text_answer(200, "gpufleet.llm test depot: " + " ".join(sorted(self.roots)) + "\n")
        if area == "healthz":
            return text_answer(200, "ok\n")
        if area == "git" and "git" in self.roots:
            return self._git(method, rest, query, headers, body)
        if method not in ("GET", "HEAD"):
            return text_answer(405, f"{method} is not allowed here\n")
        if area == "pypi":
            return self._pypi(rest)
        if area == "hub" and self.hub:
            return Answer(*self.hub.huggingface(rest, query))
        if area == "modelscope" and self.hub:
            return Answer(*self.hub.modelscope(rest, query))
        if area in self.roots and area != "models":
            return self._static(self.roots[area], rest)
        return text_answer(404, f"nothing at /{area}; there is: {' '.join(sorted(self.roots))}\n")

    def _static(self, root: Path, rest: str) -> Answer:
        target = Path(os.path.normpath(root / rest))
        if root != target and root not in target.parents:
            return text_answer(400, "that path leads out of the depot\n")
        if target.is_dir():
            if rest and not rest.endswith("/"):
                return text_answer(301, "a folder\n", {"Location": f"{target.name}/"})
            names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in target.iterdir())
            links = "".join(f'<a href="{urllib.parse.quote(name)}">{html.escape(name)}</a><br>\n' for name in names)
            return Answer(
                200, {"Content-Type": "text/html; charset=utf-8"}, f"<html><body>\n{links}</body></html>\n".encode()
            )
        if not target.is_file():
            return text_answer(404, f"no such file: {rest}\n")
        stat = target.stat()
        return Answer(
            200,
            {
                "Content-Type": TYPES.get(target.suffix, "application/octet-stream"),
                "ETag": f'"{stat.st_size:x}-{stat.st_mtime_ns:x}"',
                "Last-Modified": formatdate(stat.st_mtime, usegmt=True),
            },
            target,
        )

    def _pypi(self, rest: str) -> Answer:
        """PEP 503 with hashes and PEP 658 metadata; `simple/cpu/…`, `simple/cu121/…` are the same, files in `files/cpu/…`."""
        parts = [part for part in rest.split("/") if part]
        if parts[:1] == ["files"] and "pypi" in self.roots:
            parts = [part for number, part in enumerate(parts) if number != 1 or not VARIANT.fullmatch(part)]
            return self._static(self.roots["pypi"] / "files", "/".join(parts[1:]))
        if parts[:1] != ["simple"]:
            return text_answer(404, "the index is at /pypi/simple/\n")
        parts = parts[1:]
        variant = ""
        if parts and VARIANT.fullmatch(parts[0]):
            variant = parts.pop(0) + "/"
        page = {"Content-Type": "text/html; charset=utf-8"}
        start = '<!DOCTYPE html><html><head><meta name="pypi:repository-version" content="1.0"></head><body>\n'
        if not parts:
            links = "".join(
                f'<a href="/pypi/simple/{variant}{name}/">{name}</a><br>\n' for name in sorted(self.projects)
            )
            return Answer(200, page, (start + links + "</body></html>\n").encode())
        name = normalized(parts[0])
        if name not in self.projects or len(parts) > 1:
            return text_answer(404, f"no project {name} in this index\n")
        lines = []
        for entry in self.projects[name]:
            url = f"/pypi/files/{variant}{urllib.parse.quote(entry['file'])}#sha256={entry['sha256']}"
            extra = (
                f' data-requires-python="{html.escape(entry["requires_python"])}"' if entry["requires_python"] else ""
            )
            if entry["metadata_sha256"]:
                # Not under its older name (data-dist-info-metadata): pip 23.0 reads that and stumbles over `_` and `-`.
                extra += f' data-core-metadata="sha256={entry["metadata_sha256"]}"'
            lines.append(f'<a href="{url}"{extra}>{entry["file"]}</a><br>\n')
        return Answer(200, page, (start + "".join(lines) + "</body></html>\n").encode())

    def _git(self, method: str, rest: str, query: str, headers: dict[str, str], body: BinaryIO | None) -> Answer:
        """Smart http by git's own `http-backend`; `owner/repo` and `owner/repo.git` are the same."""
        parts = rest.split("/")
        if len(parts) < 3:
            return text_answer(404, "git repositories are at /git/OWNER/REPOSITORY\n")
        owner, name = parts[0], parts[1].removesuffix(".git") + ".git"
        if not re.fullmatch(r"[\w.-]+", owner) or not (self.roots["git"] / owner / name).is_dir():
            return text_answer(404, f"no repository {owner}/{parts[1]}\n")
        # The repositories are trusted whoever owns them, and any commit may be asked for by its name.
        settings = {"safe.directory": "*", "uploadpack.allowAnySHA1InWant": "true", "http.receivepack": "false"}
        env = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "GIT_PROJECT_ROOT": str(self.roots["git"]),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": "/" + "/".join([owner, name, *parts[2:]]),
            "QUERY_STRING": query,
            "REQUEST_METHOD": method,
            "CONTENT_TYPE": headers.get("content-type", ""),
            "HTTP_CONTENT_ENCODING": headers.get("content-encoding", ""),
            "GIT_PROTOCOL": headers.get("git-protocol", ""),
            "GIT_CONFIG_COUNT": str(len(settings)),
        }
        for number, (key, value) in enumerate(settings.items()):
            env[f"GIT_CONFIG_KEY_{number}"], env[f"GIT_CONFIG_VALUE_{number}"] = key, value
        data = body.read() if body else b""
        env["CONTENT_LENGTH"] = str(len(data))
        done = subprocess.run(["git", "http-backend"], input=data, env=env, capture_output=True, check=False)
        head, _blank, content = done.stdout.partition(b"\r\n\r\n")
        given = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line)
        status = int(given.pop("Status", "200").split()[0])
        if done.returncode != 0 and not head:
            return text_answer(500, done.stderr.decode(errors="replace"))
        return Answer(status, given, content)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "gpufleet-depot"
    timeout = 60
    depot: Depot

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: Any) -> None:
        """The access log is written by _serve."""

    def _request_body(self) -> BinaryIO | None:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            data = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return io.BytesIO(data)
        length = int(self.headers.get("Content-Length") or 0)
        return io.BytesIO(self.rfile.read(length)) if length else None

    def _serve(self) -> None:
        started = time.monotonic()
        entry: dict[str, Any] = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "client": self.client_address[0],
            "method": self.command,
            "path": self.path,
            "range": self.headers.get("Range", ""),
            "agent": self.headers.get("User-Agent", ""),
            # Whether there was one; its value is nobody's business.
            "authorization": "yes" if self.headers.get("Authorization") else "",
            "status": 0,
            "bytes": 0,
            "fault": "",
        }
        try:
            body = self._request_body()
            fault = self.depot.faults.take(self.command, self.path)
            entry["fault"] = fault.get("id", "")
            if fault.get("drop"):
                self._log(entry, started)
                self._cut()
                return
            path, _mark, query = self.path.partition("?")
            if "status" in fault:
                answer = text_answer(int(fault["status"]), "a planned fault\n")
            else:
                headers = {key.lower(): value for key, value in self.headers.items()}
                answer = self.depot.route(self.command, urllib.parse.unquote(path), query, headers, body)
            self._send(answer, fault, entry, started)
        except (BrokenPipeError, ConnectionError, ssl.SSLError, TimeoutError):
            self.close_connection = True
            entry["fault"] = entry["fault"] or "client went away"
        except Exception as error:  # a bug of the depot must not look like a fault of the network
            self.close_connection = True
            entry["error"] = repr(error)
            raise
        finally:
            self._log(entry, started)

    def _log(self, entry: dict[str, Any], started: float) -> None:
        """Write the request's line, once, and before the client can know that its answer is complete."""
        if "seconds" not in entry:
            entry["seconds"] = round(time.monotonic() - started, 4)
            self.depot.log(entry)

    def _send(self, answer: Answer, fault: dict[str, Any], entry: dict[str, Any], started: float) -> None:
        headers = dict(answer.headers)
        status, first = answer.status, 0
        handle: BinaryIO | None = None
        if isinstance(answer.body, Path):
            size = answer.body.stat().st_size
            length = size
            headers["Accept-Ranges"] = "bytes"
            if headers.get("ETag") and headers["ETag"] in self.headers.get("If-None-Match", ""):
                status, length = 304, 0
            elif self.headers.get("If-Range", headers.get("ETag", "")) in (
                headers.get("ETag"),
                headers.get("Last-Modified"),
            ):
                try:
                    wanted = parse_range(self.headers.get("Range", ""), size)
                    if wanted:
                        first, length, status = wanted[0], wanted[1] - wanted[0] + 1, 206
                        headers["Content-Range"] = f"bytes {wanted[0]}-{wanted[1]}/{size}"
                except ValueError:
                    status, length = 416, 0
                    headers["Content-Range"] = f"bytes */{size}"
            if length and self.command != "HEAD":
                handle = answer.body.open("rb")
                handle.seek(first)
        else:
            handle, length = io.BytesIO(answer.body), len(answer.body)
        entry["status"] = status
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(length))
        end = min(length, int(fault.get("cut_after_bytes", length)))
        if handle is None or self.command == "HEAD" or end == 0:
            self._log(entry, started)
        self.end_headers()
        if handle is None or self.command == "HEAD":
            return
        with handle:
            for block in self._blocks(handle, end, fault):
                entry["bytes"] += len(block)
                if entry["bytes"] >= end:
                    self._log(entry, started)
                self.wfile.write(block)
        if end < length:
            self._cut()

    def _blocks(self, handle: BinaryIO, left: int, fault: dict[str, Any]) -> Iterator[bytes]:
        speed = int(fault.get("bytes_per_second", 0))
        corrupt = bool(fault.get("corrupt"))
        while left > 0:
            block = handle.read(min(left, BLOCK, max(speed // 10, 1) if speed else BLOCK))
            if not block:
                return
            if corrupt:
                block, corrupt = bytes([block[0] ^ 0xFF]) + block[1:], False
            left -= len(block)
            yield block
            if speed:
                time.sleep(len(block) / speed)

    def _cut(self) -> None:
        """End the connection in the middle, as a failing network does."""
        self.close_connection = True
        self.wfile.flush()
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


class Server(ThreadingHTTPServer):
    """Threads, and the TLS handshake in the connection's own thread, so that a silent client holds up nobody."""

    daemon_threads = True
    request_queue_size = 256
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Handshakes that fail are the client's business."""
        if not isinstance(sys.exc_info()[1], (ssl.SSLError, ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


def serve(config: dict[str, Any], folder: Path) -> None:
    """Serve until the process ends; the certificate and key are named relative to folder."""
    Path(config["state"]).mkdir(parents=True, exist_ok=True)
    depot = Depot(config)
    handler = type("DepotHandler", (Handler,), {"depot": depot})
    server = Server((config["listen"], int(config["port"])), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / config["certificate"], folder / config["key"])
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    print(f"depot answers at {depot.base}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    serve(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[1]).resolve().parent)
