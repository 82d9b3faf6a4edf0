#!/usr/bin/env python3
# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# ruff: noqa: S324
"""A service as the models' user interfaces are: echoes what it was asked, streams, and speaks the WebSocket handshake.

The stream sends its second half only after /release was asked for, so a proxy that buffers never sends the first half.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import sys
import threading

released = threading.Event()


class Handler(http.server.BaseHTTPRequestHandler):
    """GET /, /stream, /release and a WebSocket upgrade on /ws."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer."""
        if self.path == "/ws":
            self.upgrade()
        elif self.path == "/stream":
            released.clear()
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.chunk(b"data: first\n\n")
            released.wait(30)
            self.chunk(b"data: last\n\n")
            self.chunk(b"")
        elif self.path == "/release":
            released.set()
            self.answer({})
        else:
            self.answer(dict(self.headers.items()))

    def do_POST(self) -> None:
        """Say how much came."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer({"bytes": len(body)})

    def answer(self, what: dict) -> None:
        """JSON."""
        body = json.dumps(what).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def chunk(self, data: bytes) -> None:
        """One piece of a chunked answer, sent at once."""
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def upgrade(self) -> None:
        """RFC 6455's handshake, then every byte comes back."""
        if "upgrade" not in self.headers.get("Connection", "").lower():
            self.send_error(426, "no upgrade asked for")
            return
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.wfile.write(self.rfile.readline())
        self.wfile.flush()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
