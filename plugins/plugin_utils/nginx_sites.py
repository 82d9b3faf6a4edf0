# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The virtual servers of the role nginx: defaults filled in, what cannot work or is not safe refused.

Pure. A *resolved site* always has all keys of SITE and, besides, ``ssl`` (bool), ``exposed`` (bool: reachable from
other machines), ``endpoints`` ([{"host", "port"}]), ``conf`` (path), ``files`` (what the site needs besides its conf:
[{"path", "content", "owner", "group", "mode", "no_log"}]), ``observed`` (items of gpufleet.llm.observe for what is made
on the node itself) and ``reload_files`` (paths that the running server has read).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.gpufleet.llm.plugins.plugin_utils.sha512_crypt import derived_salt, sha512_crypt

SITE: dict[str, Any] = {
    "name": "",
    "server_names": ["_"],
    "listen": [],
    "default_server": False,
    "redirect_http": [],
    "location": "/",
    "proxy_pass": "",
    "root": "",
    "websocket": True,
    "streaming": True,
    "read_timeout_seconds": 3600,
    "client_max_body_size": "64m",
    "tls": {},
    "auth": {},
    "headers": {},
    "extra_config": "",
    "public_without_auth": False,
}
TLS: dict[str, Any] = {
    "certificate": "",
    "certificate_key": "",
    "certificate_content": "",
    "certificate_key_content": "",
    "self_signed": False,
}
AUTH: dict[str, Any] = {"realm": "Login", "users": []}

# What a browser is told; an empty value takes a header away.
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "strict-origin-when-cross-origin",
}
HSTS = {"Strict-Transport-Security": "max-age=31536000"}

# A self-signed certificate is made anew this long before its end.
RENEW_SECONDS = 30 * 24 * 3600
# Is it of this key, for this name, and does it last? openssl's own exit status says nothing about names.
CERTIFICATE_IS_GOOD = (
    'openssl x509 -in "$1" -noout -checkend "$3" >/dev/null || { echo "ends soon"; exit 0; }; '
    'openssl x509 -in "$1" -noout "$4" "$5" | grep -q "does match" || { echo "is not for $5"; exit 0; }; '
    'theirs=$(openssl x509 -in "$1" -noout -pubkey); ours=$(openssl pkey -in "$2" -pubout); '
    'if [ "$theirs" = "$ours" ]; then echo good; else echo "is of another key"; fi'
)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
USER = re.compile(r"[^:\s\x00-\x1f]+\Z")
# crypt(3) methods that need no module: SHA-256, SHA-512, bcrypt, yescrypt, and nginx's own apr1
HASH = re.compile(r"\$(5|6|2[abxy]|y|apr1)\$[^\s:]+\Z")
# Anything that would end the directive in which the value stands
UNSAFE = re.compile(r"[;{}\"'\\\s\x00-\x1f]")
LISTEN = re.compile(r"(?:(?P<host>\[[0-9A-Fa-f:.]+\]|\*|[A-Za-z0-9.-]+):)?(?P<port>\d+)\Z")


class SiteError(ValueError):
    """A site that cannot be served or must not be; the message names the site, the value and what would be right."""


def _filled(given: Mapping[str, Any], known: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``given`` over the defaults in ``known``; a key that nobody knows is a typing error, not a wish."""
    strange = sorted(set(given) - set(known))
    if strange:
        raise SiteError(f"{where}: unknown {', '.join(strange)}; known are {', '.join(sorted(known))}")
    merged = dict(known)
    merged.update({key: value for key, value in given.items() if value is not None})
    return merged


def endpoint(listen: str) -> dict[str, Any] | None:
    """``listen`` of nginx as {"host", "port"}; None for a socket in the file system. Raises SiteError."""
    if listen.startswith("unix:"):
        return None
    found = LISTEN.match(listen)
    if not found or not 0 < int(found["port"]) < 65536:
        raise SiteError(f"listen {listen!r} is not a port, address:port, [IPv6]:port or unix:path")
    return {"host": found["host"] or "*", "port": int(found["port"])}


def is_loopback(listen: str) -> bool:
    """Whether only this machine can reach ``listen``."""
    place = endpoint(listen)
    if place is None:
        return True
    host = place["host"].strip("[]")
    return host in ("localhost", "::1") or re.match(r"127\.\d+\.\d+\.\d+\Z", host) is not None


def htpasswd(users: Iterable[Mapping[str, Any]], seed: str) -> str:
    """Lines ``name:hash``; a plain ``password`` is hashed with a salt derived from ``seed`` and the name.

    The same input gives the same text, so that a second run sees no difference. 5000 rounds, libc's default: nginx
    hashes again for every single request of a page.
    """
    lines = []
    seen = set()
    for user in users:
        filled = _filled(user, {"name": "", "password": "", "password_hash": ""}, "auth.users")
        name = str(filled["name"])
        if not USER.match(name):
            raise SiteError(f"auth.users: {name!r} cannot be a user's name: no colon, no blank, not empty")
        if name in seen:
            raise SiteError(f"auth.users: {name} is there twice")
        seen.add(name)
        if bool(filled["password"]) == bool(filled["password_hash"]):
            raise SiteError(f"auth.users: {name} needs either a password or a password_hash")
        if filled["password"]:
            hashed = sha512_crypt(str(filled["password"]), derived_salt(seed, name))
        else:
            hashed = str(filled["password_hash"])
            if not HASH.match(hashed):
                raise SiteError(
                    f"auth.users: the password_hash of {name} is not one of crypt(3): $6$, $5$, $2y$, $y$, $apr1$"
                )
        lines.append(f"{name}:{hashed}\n")
    return "".join(lines)


def is_ip(name: str) -> bool:
    """Whether a server's name is an address."""
    return bool(re.match(r"[0-9.]+\Z", name)) or ":" in name


def _tls(site: dict[str, Any], directory: str, where: str, seed: str) -> None:
    """Fill ``site["tls"]`` with the paths that nginx reads, and add the files whose content was given."""
    if not site["tls"]:
        site["ssl"] = False
        return
    site["ssl"] = True
    tls = _filled(site["tls"], TLS, f"{where}: tls")
    by_path = bool(tls["certificate"] or tls["certificate_key"])
    by_content = bool(tls["certificate_content"] or tls["certificate_key_content"])
    if by_path + by_content + bool(tls["self_signed"]) != 1:
        raise SiteError(
            f"{where}: tls needs exactly one of: certificate and certificate_key (paths on the node), "
            "certificate_content and certificate_key_content, or self_signed: true"
        )
    if by_path and not (tls["certificate"] and tls["certificate_key"]):
        raise SiteError(f"{where}: tls.certificate and tls.certificate_key belong together")
    if by_content and not (tls["certificate_content"] and tls["certificate_key_content"]):
        raise SiteError(f"{where}: tls.certificate_content and tls.certificate_key_content belong together")
    if not by_path:
        tls["certificate"] = f"{directory}/gpufleet/tls/{site['name']}.crt"
        tls["certificate_key"] = f"{directory}/gpufleet/tls/{site['name']}.key"
    root = {"owner": "root", "group": "root"}
    if tls["self_signed"]:
        # "_" stands for no name at all, "~" begins a regular expression
        names = [str(name) for name in site["server_names"] if str(name) != "_" and not str(name).startswith("~")]
        names = names or [seed or "localhost"]
        asked = names[0].replace("*", "any")
        tls["subject"] = f"/CN={names[0][:64]}"
        tls["subject_alt_name"] = ",".join(f"{'IP' if is_ip(name) else 'DNS'}:{name}" for name in names)
        site["observed"] = [
            {"kind": "file", "path": tls["certificate"], "mode": "0644", **root},
            {"kind": "file", "path": tls["certificate_key"], "mode": "0600", **root},
            {
                "kind": "command",
                "key": f"certificate:{site['name']}",
                "argv": ["/bin/sh", "-c", CERTIFICATE_IS_GOOD, "sh", tls["certificate"], tls["certificate_key"],
                         str(RENEW_SECONDS), "-checkip" if is_ip(asked) else "-checkhost", asked],
                "stdout": "good",
            },
        ]  # fmt: skip
    if by_content:
        content = str(tls["certificate_content"]).strip() + "\n"
        site["files"].append({"path": tls["certificate"], "content": content, "mode": "0644", "no_log": False, **root})
        content = str(tls["certificate_key_content"]).strip() + "\n"
        site["files"].append(
            {"path": tls["certificate_key"], "content": content, "mode": "0600", "no_log": True, **root}
        )
    for key in ("certificate_content", "certificate_key_content"):
        del tls[key]
    site["tls"] = tls
    site["reload_files"] += [tls["certificate"], tls["certificate_key"]]


def resolve_site(given: Mapping[str, Any], directory: str, group: str, seed: str) -> dict[str, Any]:
    """One site with all keys. ``directory``: nginx's configuration; ``group``: the workers' group; ``seed``: for salts."""
    where = f"nginx_sites: {given.get('name') or '(no name)'}"
    site = _filled(given, SITE, where)
    site["name"] = str(site["name"])
    if not NAME.match(site["name"]):
        raise SiteError(f"{where}: a site needs a name of letters, digits, dot, dash and underscore: it names its file")
    site["conf"] = f"{directory}/conf.d/gpufleet-{site['name']}.conf"
    site["files"] = []
    site["observed"] = []
    site["reload_files"] = [site["conf"]]
    if bool(site["proxy_pass"]) == bool(site["root"]):
        raise SiteError(f"{where}: needs either proxy_pass (a service) or root (a directory)")
    if site["proxy_pass"] and not re.match(r"https?://", site["proxy_pass"]):
        raise SiteError(f"{where}: proxy_pass {site['proxy_pass']!r} must begin with http:// or https://")
    for key in ("proxy_pass", "root", "location", "client_max_body_size"):
        if UNSAFE.search(str(site[key])):
            raise SiteError(f"{where}: {key} {site[key]!r} holds a character that ends a directive")
    for name in site["server_names"]:
        if UNSAFE.search(str(name)):
            raise SiteError(f"{where}: server name {name!r} holds a character that ends a directive")

    _tls(site, directory, where, seed)
    site["listen"] = [str(listen) for listen in site["listen"]] or ["443" if site["ssl"] else "80"]
    site["redirect_http"] = [str(listen) for listen in site["redirect_http"]]
    if site["redirect_http"] and not site["ssl"]:
        raise SiteError(f"{where}: redirect_http leads to https, which needs tls")
    try:
        places = [endpoint(listen) for listen in site["listen"] + site["redirect_http"]]
    except SiteError as error:
        raise SiteError(f"{where}: {error}") from error
    site["endpoints"] = [place for place in places if place is not None]
    site["exposed"] = not all(is_loopback(listen) for listen in site["listen"])

    site["auth"] = _filled(site["auth"], AUTH, f"{where}: auth") if site["auth"] else {}
    if site["auth"]:
        if not site["auth"]["users"]:
            raise SiteError(f"{where}: auth without users lets nobody in")
        if re.search(r"[\"\\$\x00-\x1f]", str(site["auth"]["realm"])):
            raise SiteError(f"{where}: auth.realm cannot hold quotes, backslashes or dollar signs")
        path = f"{directory}/gpufleet/htpasswd/{site['name']}"
        try:
            content = htpasswd(site["auth"]["users"], f"{seed}\0{site['name']}")
        except SiteError as error:
            raise SiteError(f"{where}: {error}") from error
        site["files"].append(
            {"path": path, "content": content, "owner": "root", "group": group, "mode": "0640", "no_log": True}
        )
        site["auth"] = {"realm": str(site["auth"]["realm"]), "file": path}

    headers = dict(HEADERS)
    # A browser that was told HSTS lets nobody past a certificate that it does not know.
    if site["ssl"] and not site["tls"]["self_signed"]:
        headers.update(HSTS)
    headers.update({str(key): str(value) for key, value in site["headers"].items()})
    for name, value in headers.items():
        if not re.match(r"[A-Za-z0-9-]+\Z", name) or re.search(r"[\"\\\x00-\x1f]", value):
            raise SiteError(f"{where}: header {name!r} cannot be sent")
    site["headers"] = {name: value for name, value in headers.items() if value}

    if (
        site["proxy_pass"]
        and site["exposed"]
        and not site["public_without_auth"]
        and not (site["ssl"] and site["auth"])
    ):
        lacking = " and ".join(word for word, there in (("tls", site["ssl"]), ("auth", site["auth"])) if not there)
        raise SiteError(
            f"{where}: would publish {site['proxy_pass']} on {', '.join(site['listen'])} without {lacking}. "
            "Add what is missing, listen on 127.0.0.1, or say public_without_auth: true"
        )
    return site


def resolve_sites(sites: Iterable[Mapping[str, Any]], directory: str, group: str, seed: str) -> list[dict[str, Any]]:
    """All sites with all keys; see resolve_site. Raises SiteError, also for two sites of one name."""
    resolved = [resolve_site(site, directory, group, seed) for site in sites]
    names = [site["name"] for site in resolved]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SiteError(f"nginx_sites: {', '.join(twice)} is there twice")
    return resolved


def complaints(sites: Iterable[Mapping[str, Any]]) -> list[str]:
    """What is wrong with the sites, each in one sentence that holds no password; empty when nothing is."""
    said = []
    for site in sites:
        try:
            resolve_site(site, "/etc/nginx", "nginx", "")
        except SiteError as error:
            said.append(f"{error}.")
    if not said:
        try:
            resolve_sites(sites, "/etc/nginx", "nginx", "")
        except SiteError as error:
            said.append(f"{error}.")
    return said
