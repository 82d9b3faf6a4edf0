# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role nginx makes of nginx_sites, and what it refuses."""

from __future__ import annotations

import re
from typing import Any

import pytest
from ansible_collections.gpufleet.llm.plugins.plugin_utils.nginx_sites import (
    SITE,
    SiteError,
    complaints,
    endpoint,
    htpasswd,
    is_loopback,
    resolve_site,
    resolve_sites,
)

USERS = [{"name": "anna", "password": "s3cret words"}]
SAFE = {"name": "chat", "proxy_pass": "http://127.0.0.1:7860", "tls": {"self_signed": True}, "auth": {"users": USERS}}


def resolved(**changes: Any) -> dict[str, Any]:
    site = {key: value for key, value in {**SAFE, **changes}.items() if value is not ...}
    return resolve_site(site, "/etc/nginx", "www-data", "n1")


def test_a_resolved_site_has_all_keys() -> None:
    assert set(SITE) <= set(resolved())
    assert resolved()["listen"] == ["443"]
    assert resolved(tls=..., auth=..., listen=["127.0.0.1:80"])["listen"] == ["127.0.0.1:80"]


@pytest.mark.parametrize(
    ("listen", "loopback"),
    [
        ("80", False),
        ("*:80", False),
        ("0.0.0.0:80", False),
        ("[::]:80", False),
        ("10.1.2.3:80", False),
        ("127.example.org:80", False),
        ("127.0.0.1:80", True),
        ("127.0.0.53:80", True),
        ("localhost:80", True),
        ("[::1]:80", True),
        ("unix:/run/x.sock", True),
    ],
)
def test_loopback(listen: str, loopback: bool) -> None:
    assert is_loopback(listen) is loopback


@pytest.mark.parametrize("listen", ["", "0", "70000", "80 ssl", "80; root /", "127.0.0.1", "::1:80:"])
def test_what_is_no_place_to_listen(listen: str) -> None:
    with pytest.raises(SiteError, match="is not a port"):
        endpoint(listen)


@pytest.mark.parametrize(
    ("changes", "lacking"),
    [
        ({"auth": ...}, "auth"),
        ({"tls": ...}, "tls"),
        ({"tls": ..., "auth": ...}, "tls and auth"),
        ({"auth": ..., "listen": ["127.0.0.1:443", "443"]}, "auth"),
        ({"auth": ..., "listen": ["0.0.0.0:443"]}, "auth"),
    ],
)
def test_a_service_is_not_published_without_tls_and_login(changes: dict[str, Any], lacking: str) -> None:
    with pytest.raises(SiteError, match=f"without {lacking}\\. .*public_without_auth"):
        resolved(**changes)
    assert resolved(**changes, public_without_auth=True)["exposed"] is True


@pytest.mark.parametrize("listen", [["127.0.0.1:8080"], ["[::1]:8080", "unix:/run/ui.sock"]])
def test_on_loopback_it_may_be_open(listen: list[str]) -> None:
    assert resolved(tls=..., auth=..., listen=listen)["exposed"] is False


def test_a_directory_may_be_public() -> None:
    assert resolved(proxy_pass=..., root="/srv/www", tls=..., auth=...)["exposed"] is True


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "../etc"}, "needs a name"),
        ({"name": ""}, "needs a name"),
        ({"nmae": "x"}, "unknown nmae"),
        ({"proxy_pass": ...}, "either proxy_pass"),
        ({"root": "/srv"}, "either proxy_pass"),
        ({"proxy_pass": "127.0.0.1:7860"}, "must begin with http"),
        ({"proxy_pass": "http://a; root /"}, "ends a directive"),
        ({"server_names": ["a b"]}, "ends a directive"),
        ({"client_max_body_size": "1m;"}, "ends a directive"),
        ({"location": "/ {"}, "ends a directive"),
        ({"headers": {"X": 'a"b'}}, "cannot be sent"),
        ({"redirect_http": ["80"], "tls": ..., "listen": ["127.0.0.1:81"]}, "needs tls"),
        ({"tls": {"certificate": "/a"}}, "belong together"),
        ({"tls": {"certificate_content": "a"}}, "belong together"),
        ({"tls": {"certificate": "/a", "certificate_key": "/b", "self_signed": True}}, "exactly one of"),
        ({"tls": {"selfsigned": True}}, "unknown selfsigned"),
        ({"auth": {"users": []}}, "lets nobody in"),
        ({"auth": {"users": [{"name": "a:b", "password": "x"}]}}, "cannot be a user's name"),
        ({"auth": {"users": [{"name": "a"}]}}, "either a password or"),
        ({"auth": {"users": [{"name": "a", "password": "x", "password_hash": "$6$a$b"}]}}, "either a password or"),
        ({"auth": {"users": [{"name": "a", "password_hash": "plain"}]}}, "not one of crypt"),
        ({"auth": {"users": [{"name": "a", "password": "x"}] * 2}}, "is there twice"),
        ({"auth": {"users": USERS, "realm": 'a"; deny all'}}, "auth.realm"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SiteError, match=re.escape(words)):
        resolved(**changes)


def test_complaints_name_every_site_and_no_password() -> None:
    users = [{"name": "u:", "password": "s3cret"}]
    bad = [{**SAFE, "name": "a", "listen": ["x"]}, {**SAFE, "name": "b", "auth": {"users": users}}]
    said = complaints(bad)
    assert [line.split(":")[1].strip() for line in said] == ["a", "b"]
    assert "s3cret" not in " ".join(said)
    assert complaints([SAFE]) == []
    assert "chat is there twice" in complaints([SAFE, SAFE])[0]


def test_the_same_users_give_the_same_file() -> None:
    first = htpasswd(USERS, "n1\0chat")
    assert first == htpasswd(USERS, "n1\0chat")
    assert first != htpasswd(USERS, "n2\0chat")
    assert re.fullmatch(r"anna:\$6\$[./0-9A-Za-z]{16}\$[./0-9A-Za-z]{86}\n", first)


def test_a_given_hash_is_kept() -> None:
    assert htpasswd([{"name": "bert", "password_hash": "$2y$10$abc"}], "x") == "bert:$2y$10$abc\n"


def test_secrets_are_marked_and_closed() -> None:
    site = resolved(tls={"certificate_content": "CERT", "certificate_key_content": "KEY"})
    files = {file["path"].rsplit("/", 1)[1]: file for file in site["files"]}
    assert {name: (file["mode"], file["group"], file["no_log"]) for name, file in files.items()} == {
        "chat.crt": ("0644", "root", False),
        "chat.key": ("0600", "root", True),
        "chat": ("0640", "www-data", True),
    }
    assert "KEY" not in str(site["tls"])
    assert "s3cret" not in str(site)


def test_hsts_only_with_a_certificate_that_browsers_may_know() -> None:
    paths = {"certificate": "/a.pem", "certificate_key": "/a.key"}
    assert "Strict-Transport-Security" in resolved(tls=paths)["headers"]
    assert "Strict-Transport-Security" not in resolved()["headers"]
    assert "X-Frame-Options" not in resolved(headers={"X-Frame-Options": ""})["headers"]


def test_what_is_made_on_the_node_is_observed_and_reloaded() -> None:
    site = resolved()
    assert [item["kind"] for item in site["observed"]] == ["file", "file", "command"]
    assert site["reload_files"] == [
        site["conf"],
        "/etc/nginx/gpufleet/tls/chat.crt",
        "/etc/nginx/gpufleet/tls/chat.key",
    ]
    assert resolved(tls={"certificate": "/a.pem", "certificate_key": "/a.key"})["reload_files"][1:] == [
        "/a.pem",
        "/a.key",
    ]


def test_two_sites_of_one_name() -> None:
    with pytest.raises(SiteError, match="chat is there twice"):
        resolve_sites([SAFE, SAFE], "/etc/nginx", "nginx", "")
