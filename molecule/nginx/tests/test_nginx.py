# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# ruff: noqa: E501, S105, S106, S108
"""The role nginx in front of a service: what a browser sees, what drifts and is healed, what is refused."""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import pytest
import yaml

HERE = pathlib.Path(__file__).resolve().parent
VARS = yaml.safe_load((HERE.parent / "vars.yml").read_text(encoding="utf-8"))
CONF = "/etc/nginx/conf.d/gpufleet-chat.conf"
PASSWORD = "correct horse battery"


def put(node: Any, script: str) -> str:
    """Copy a script of this folder to the node; its path there."""
    path = f"/tmp/{script}"
    text = (HERE / script).read_text(encoding="utf-8")
    done = node.run("sh -c %s", f"cat > {path} <<'END_OF_SCRIPT'\n{text}\nEND_OF_SCRIPT")
    assert done.rc == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def browser(node: Any) -> Any:
    """Ask nginx something, from the node itself; the service behind it runs."""
    client = put(node, "client.py")
    backend = put(node, "backend.py")
    node.run("systemctl stop gpufleet-test-backend; systemctl reset-failed gpufleet-test-backend")
    started = node.run(f"systemd-run --unit gpufleet-test-backend python3 {backend} 7860")
    assert started.rc == 0, started.stderr
    wait = "import socket,time\nfor _ in range(200):\n  try: socket.create_connection(('127.0.0.1',7860),1); break\n  except OSError: time.sleep(.05)"
    node.run("python3 -c %s", wait)

    def ask(what: str = "get", **more: Any) -> dict[str, Any]:
        given = {"what": what, "ca": "/etc/nginx/gpufleet/tls/chat.crt", **more}
        said = node.run(f"python3 {client} %s", json.dumps(given))
        assert said.rc == 0, said.stderr
        return json.loads(said.stdout)

    yield ask
    node.run("systemctl stop gpufleet-test-backend")


def anna(**more: Any) -> dict[str, Any]:
    return {"user": "anna", "password": PASSWORD, **more}


def master(node: Any) -> str:
    return node.run("systemctl show --property=MainPID --value nginx.service").stdout.strip()


def sha256(node: Any, path: str) -> str:
    return node.run("sha256sum %s", path).stdout.split()[0]


# ------------------------------------------------------------------------------------------------------- a browser


def test_the_service_runs_and_starts_at_boot(node: Any) -> None:
    assert node.service("nginx").is_running
    assert node.service("nginx").is_enabled


def test_without_a_login_nobody_gets_in(browser: Callable[..., Any]) -> None:
    answer = browser()
    assert answer["status"] == 401
    assert answer["headers"]["WWW-Authenticate"] == 'Basic realm="Models"'
    assert browser(user="anna", password="wrong")["status"] == 401
    assert browser(user="nobody", password=PASSWORD)["status"] == 401


@pytest.mark.parametrize(("user", "password"), [("anna", PASSWORD), ("bert", "hunter2")])
def test_with_a_login_the_service_answers(browser: Callable[..., Any], user: str, password: str) -> None:
    answer = browser(user=user, password=password)
    assert answer["status"] == 200
    seen = json.loads(answer["body"])
    assert seen["Host"] == "chat.gpufleet.test"
    assert seen["X-Forwarded-Proto"] == "https"
    assert seen["X-Forwarded-For"] == "127.0.0.1"


def test_the_password_stays_at_the_door(browser: Callable[..., Any]) -> None:
    assert "Authorization" not in json.loads(browser(**anna())["body"])


def test_security_headers(browser: Callable[..., Any]) -> None:
    headers = browser(**anna())["headers"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "SAMEORIGIN"
    assert headers["Server"] == "nginx"
    # a self-signed certificate and HSTS together would lock people out
    assert "Strict-Transport-Security" not in headers


def test_plain_http_is_sent_to_https(browser: Callable[..., Any]) -> None:
    answer = browser(ca=None, port=80)
    assert (answer["status"], answer["headers"]["Location"]) == (301, "https://chat.gpufleet.test/")


def test_a_websocket_goes_through(browser: Callable[..., Any]) -> None:
    answer = browser("ws", **anna())
    assert " 101 " in answer["head"][0]
    # the example of RFC 6455, so the service really computed it
    assert "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in answer["head"]
    assert answer["echo"] == "hello through nginx"
    assert " 401 " in browser("ws")["head"][0]


def test_a_stream_is_not_held_back(browser: Callable[..., Any]) -> None:
    # the service sends the rest only after the first piece was read here
    answer = browser("stream", **anna())
    assert answer == {"status": 200, "first": "data: first", "rest": ["data:", "last"]}


def test_uploads_are_limited(browser: Callable[..., Any]) -> None:
    assert browser("post", bytes=900_000, **anna())["body"] == '{"bytes": 900000}'
    assert browser("post", bytes=1_200_000, **anna())["status"] == 413


def test_a_site_on_loopback_needs_no_login(browser: Callable[..., Any]) -> None:
    assert browser(ca=None, port=8080)["status"] == 200


def test_only_this_machine_reaches_loopback(node: Any) -> None:
    listening = node.run("cat /proc/net/tcp").stdout
    assert "0100007F:1F90" in listening and "00000000:1F90" not in listening


# --------------------------------------------------------------------------------------------------------- secrets


def test_only_the_workers_read_the_hashes(node: Any) -> None:
    file = node.file("/etc/nginx/gpufleet/htpasswd/chat")
    assert (file.user, file.mode) == ("root", 0o640)
    workers = node.run("ps -o user= --ppid %s", master(node)).stdout.split()
    assert set(workers) == {file.group}
    assert PASSWORD not in file.content_string and "anna:$6$" in file.content_string
    assert node.file("/etc/nginx/gpufleet/tls/chat.key").mode == 0o600


def test_no_password_and_no_hash_in_the_log(node: Any, play: Callable[..., Any]) -> None:
    node.run("rm /etc/nginx/gpufleet/htpasswd/chat")
    done = play(None, "-vvv", "--diff")
    assert done.rc == 0, done
    for line in node.file("/etc/nginx/gpufleet/htpasswd/chat").content_string.splitlines():
        assert line.split(":")[1] not in done.output
    assert PASSWORD not in done.output


# ----------------------------------------------------------------------------------------------------------- drift

# What the fleet's own drift test does not know of; it changes packages, files, modes and units.
DRIFT = {
    "site of nobody": "cp /etc/nginx/conf.d/gpufleet-local.conf /etc/nginx/conf.d/gpufleet-nobody.conf",
    "certificate about to end": "cd /etc/nginx/gpufleet/tls && openssl req -x509 -newkey rsa:2048 -nodes -days 3 "
    "-subj /CN=old -keyout chat.key -out chat.crt",
    "key gone": "rm /etc/nginx/gpufleet/tls/chat.key",
    "killed": "systemctl kill --signal=KILL nginx; for i in 1 2 3 4 5 6 7 8 9; do systemctl is-active -q nginx || break; sleep .2; done",
    "welcome page": "printf 'server { listen 8099; }\\n' > /etc/nginx/conf.d/default.conf",
}


@pytest.mark.parametrize("case", DRIFT)
def test_drift_is_seen_and_healed(
    node: Any, node_name: str, play: Callable[..., Any], browser: Callable[..., Any], case: str
) -> None:
    broken = node.run("sh -c %s", DRIFT[case])
    assert broken.rc == 0, broken.stderr
    healed = play()
    assert healed.rc == 0 and healed.changed[node_name] > 0, healed
    assert browser(**anna())["status"] == 200
    again = play(None, "--check", "--diff")
    assert again.changed == {node_name: 0} and "+++ after" not in again.output, again


def test_a_good_certificate_survives_a_wrong_mode(node: Any, play: Callable[..., Any]) -> None:
    before = sha256(node, "/etc/nginx/gpufleet/tls/chat.crt")
    node.run("chmod 666 /etc/nginx/gpufleet/tls/chat.crt")
    assert play().rc == 0
    assert node.file("/etc/nginx/gpufleet/tls/chat.crt").mode == 0o644
    assert sha256(node, "/etc/nginx/gpufleet/tls/chat.crt") == before


def test_files_that_were_written_but_never_loaded_are_noticed(
    node: Any, node_name: str, play: Callable[..., Any], browser: Callable[..., Any]
) -> None:
    """A run that was killed between writing and reloading leaves the right files and the wrong server."""
    started = float(node.run("date +%s.%N").stdout)
    done = node.run(
        "sh -c %s",
        f"cp -p {CONF} /tmp/right.conf; sed -i 's/client_max_body_size 1m/client_max_body_size 1k/' {CONF}; nginx -s reload",
    )
    assert done.rc == 0, done.stderr
    while float(node.run("date +%s.%N").stdout) < started + 4:  # file times count whole seconds
        time.sleep(0.2)
    node.run("sh -c %s", f"cat /tmp/right.conf > {CONF}")
    assert browser("post", bytes=2000, **anna())["status"] == 413
    assert play(None, "--check").changed[node_name] == 1
    pid = master(node)
    assert play().rc == 0
    assert browser("post", bytes=2000, **anna())["status"] == 200
    assert master(node) == pid, "a reload was enough"
    assert play().changed == {node_name: 0}


# --------------------------------------------------------------------------------------------------------- refusal


def broken_sites(extra: str) -> dict[str, Any]:
    sites = json.loads(json.dumps(VARS["nginx_sites"]))
    sites[0]["extra_config"] = extra
    return {"nginx_sites": sites}


def test_a_broken_configuration_never_reaches_the_server(
    node: Any, node_name: str, play: Callable[..., Any], browser: Callable[..., Any]
) -> None:
    pid, before = master(node), sha256(node, CONF)
    failed = play(broken_sites("no_such_directive on;"))
    assert failed.rc != 0
    assert 'unknown directive "no_such_directive"' in failed.output
    assert "/etc/nginx/conf.d/gpufleet-chat.conf" in failed.output, "the message names the place, not the copy"
    assert sha256(node, CONF) == before
    assert master(node) == pid
    assert not node.file("/etc/nginx-gpufleet-stage").exists
    assert node.run("nginx -t").rc == 0
    assert browser(**anna())["status"] == 200
    assert play().changed == {node_name: 0}


def test_a_certificate_that_is_not_there_is_found_before_the_reload(
    node: Any, play: Callable[..., Any], browser: Callable[..., Any]
) -> None:
    sites = json.loads(json.dumps(VARS["nginx_sites"]))
    sites[0]["tls"] = {"certificate": "/etc/ssl/nobody.crt", "certificate_key": "/etc/ssl/nobody.key"}
    failed = play({"nginx_sites": sites})
    assert failed.rc != 0 and "/etc/ssl/nobody.crt" in failed.output
    assert browser(**anna())["status"] == 200


@pytest.mark.parametrize("lacking", ["auth", "tls"])
def test_a_service_is_not_published_without_tls_and_login(node: Any, play: Callable[..., Any], lacking: str) -> None:
    sites = json.loads(json.dumps(VARS["nginx_sites"][:1]))
    del sites[0][lacking]
    if lacking == "tls":
        del sites[0]["redirect_http"]
    before = sha256(node, CONF)
    failed = play({"nginx_sites": sites})
    assert failed.rc != 0
    assert f"without {lacking}" in failed.output and "public_without_auth" in failed.output
    assert sha256(node, CONF) == before
    sites[0]["public_without_auth"] = True
    assert play({"nginx_sites": sites}, "--check").rc == 0


def test_the_typing_error_of_the_book_is_named(node: Any, play: Callable[..., Any]) -> None:
    failed = play({"nginx_source": "official", "nginx_version": "1.24.0-1-jammy"})
    assert failed.rc != 0 and "follows a tilde" in failed.output


def test_sites_come_and_go(node: Any, node_name: str, play: Callable[..., Any], browser: Callable[..., Any]) -> None:
    one = {"nginx_sites": VARS["nginx_sites"][:1]}
    assert play(one).rc == 0
    assert not node.file("/etc/nginx/conf.d/gpufleet-local.conf").exists
    assert browser(**anna())["status"] == 200
    assert play(one).changed == {node_name: 0}
    assert play().rc == 0
    assert browser(ca=None, port=8080)["status"] == 200
