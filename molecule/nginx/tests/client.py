#!/usr/bin/env python3
# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A browser for the tests, run on the node: JSON arguments in, one JSON object out.

{"what": "get" | "post" | "ws" | "stream", "port", "ca", "host", "path", "user", "password", "bytes"}
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
import ssl
import sys

ask = json.loads(sys.argv[1])
host = ask.get("host", "chat.gpufleet.test")
port = ask.get("port", 443)
context = ssl.create_default_context(cafile=ask["ca"]) if ask.get("ca") else None
headers = {"Host": host}
if ask.get("user"):
    login = f"{ask['user']}:{ask['password']}".encode()
    headers["Authorization"] = "Basic " + base64.b64encode(login).decode()


class Connection(http.client.HTTPConnection):
    """To this machine, with TLS for the name that was asked for."""

    def connect(self) -> None:
        """Connect, and check the certificate."""
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=20)
        if context:
            self.sock = context.wrap_socket(self.sock, server_hostname=host)


def request(method: str, path: str, body: bytes | None = None, more: dict | None = None) -> http.client.HTTPResponse:
    """Ask and return the answer as soon as its head is there."""
    connection = Connection("127.0.0.1", port)
    connection.request(method, path, body=body, headers={**headers, **(more or {})})
    return connection.getresponse()


what = ask["what"]
if what in ("get", "post"):
    answer = request(what.upper(), ask.get("path", "/"), b"x" * ask["bytes"] if what == "post" else None)
    result = {"status": answer.status, "headers": dict(answer.getheaders()), "body": answer.read().decode()}
elif what == "stream":
    answer = request("GET", "/stream")
    first = answer.readline().decode()
    request("GET", "/release").read()
    result = {"status": answer.status, "first": first.strip(), "rest": answer.read().decode().split()}
else:
    connection = Connection("127.0.0.1", port)
    connection.connect()
    lines = ["GET /ws HTTP/1.1", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13",
             "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]  # fmt: skip
    lines += [f"{name}: {value}" for name, value in headers.items()]
    connection.sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
    stream = connection.sock.makefile("rb")
    head = []
    while True:
        line = stream.readline().decode().strip()
        if not line:
            break
        head.append(line)
    echo = ""
    if " 101 " in head[0]:
        connection.sock.sendall(b"hello through nginx\n")
        echo = stream.readline().decode().strip()
    result = {"head": head, "echo": echo}
print(json.dumps(result))
