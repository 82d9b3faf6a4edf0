#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""A forward proxy that logs: `small_proxy.py PORT LOG`. CONNECT for https, absolute GET and HEAD for http.

Each request is a line of JSON in LOG: `method`, `target` (as it was asked for), `agent`. Only the standard library.
"""

from __future__ import annotations

import http.client
import json
import select
import socket
import sys
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "content-length"}


class Proxy(BaseHTTPRequestHandler):
    """One client."""

    protocol_version = "HTTP/1.1"
    log_path = ""

    def log_message(self, format: str, *args: Any) -> None:
        """What is logged is written by _note."""

    def _note(self) -> None:
        entry = {"method": self.command, "target": self.path, "agent": self.headers.get("User-Agent", "")}
        with open(self.log_path, "a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")

    def do_CONNECT(self) -> None:
        """A tunnel, until one side ends it."""
        self._note()
        host, _colon, port = self.path.rpartition(":")
        try:
            far = socket.create_connection((host, int(port)), timeout=30)
        except OSError as error:
            self.send_error(502, str(error))
            return
        self.send_response(200, "Connection established")
        self.end_headers()
        self.close_connection = True
        with far:
            other = {self.connection: far, far: self.connection}
            while True:
                for side in select.select(list(other), [], [], 300)[0]:
                    data = side.recv(65536)
                    if not data:
                        return
                    other[side].sendall(data)

    def do_GET(self) -> None:
        """Fetch it and hand it on."""
        self._note()
        url = urllib.parse.urlsplit(self.path)
        far = http.client.HTTPConnection(url.hostname or "", url.port or 80, timeout=60)
        headers = {key: value for key, value in self.headers.items() if key.lower() not in HOP_BY_HOP}
        try:
            far.request(
                self.command, urllib.parse.urlunsplit(("", "", url.path or "/", url.query, "")), headers=headers
            )
            answer = far.getresponse()
            body = answer.read()
        except OSError as error:
            self.send_error(502, str(error))
            return
        finally:
            far.close()
        self.send_response(answer.status, answer.reason)
        for key, value in answer.getheaders():
            if key.lower() not in HOP_BY_HOP:
                self.send_header(key, value)
        self.send_header("Content-Length", answer.getheader("Content-Length") or str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET


if __name__ == "__main__":
    Proxy.log_path = sys.argv[2]
    ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Proxy).serve_forever()
