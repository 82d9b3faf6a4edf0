# SPDX-License-Identifier: GPL-3.0-or-later
"""observe over ssh on real nodes: as an ordinary user and as root, whatever the shell says, and changed by hand for real."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Fleet, Play, running

Item = dict[str, Any]


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with running("observe", {"n1": "debian12"}, depot=False) as one:
        yield one


@pytest.fixture
def look(fleet: Fleet, tmp_path: Path) -> Any:
    """Look at items on n1 with a playbook of one task; the run, its C(looks[0]["result"]) is observe's."""

    def run(items: list[Item], *args: str, become: bool = True, ok: bool = True, **more: Any) -> Play:
        env = {key: str(value) for key, value in more.items() if key.isupper()}
        task = {
            "name": "look",
            "gpufleet.llm.observe": {"items": items, **{key: one for key, one in more.items() if key not in env}},
            "become": become,
        }
        book = tmp_path / "look.yml"
        book.write_text(json.dumps([{"hosts": "n1", "gather_facts": False, "tasks": [task]}]), encoding="utf-8")
        return fleet.play(str(book), *args, ok=ok, env=env)

    return run


def result(play: Play) -> dict[str, Any]:
    return play.looks[0]["result"]


WHO: list[Item] = [
    {"kind": "read", "key": "who", "argv": ["id", "-un"]},
    {"kind": "package", "name": "openssh-server"},
    {"kind": "unit", "name": "ssh", "enabled": True, "active": True, "masked": False},
    {"kind": "user", "name": "ops", "home": "/home/ops", "uid": 1000},
]


@pytest.mark.parametrize(("become", "who"), [(False, "ops\n"), (True, "root\n")])
@pytest.mark.parametrize("pipelining", ["true", "false"])
def test_one_call_as_user_and_as_root(look: Any, become: bool, who: str, pipelining: str) -> None:
    play = look(WHO, become=become, ANSIBLE_PIPELINING=pipelining, ANSIBLE_INJECT_FACT_VARS="false")
    assert result(play)["differs"] is False, result(play)
    assert result(play)["seen"]["who"]["content"] == who
    assert result(play)["platform"]["uid"] == (0 if become else 1000)
    assert result(play)["remote_calls"] == 1
    assert play.calls == {"n1": 1}


def test_what_an_ordinary_user_cannot_see_is_a_reason(look: Any) -> None:
    play = look([{"kind": "file", "path": "/etc/shadow", "content": "x"}, WHO[1]], become=False)
    assert result(play)["drift"] == ["file:/etc/shadow"]
    assert "Permission denied" in result(play)["items"][0]["reasons"][0]


def test_a_talkative_shell_start_up_does_not_matter(fleet: Fleet, look: Any) -> None:
    fleet.sh(
        "n1", "cp /home/ops/.bashrc /tmp/bashrc; sed -i '1i echo Welcome {to} n1; echo careful >&2' /home/ops/.bashrc"
    )
    try:
        assert fleet.sh("n1", "head -1 /home/ops/.bashrc").startswith("echo Welcome")
        assert result(look(WHO))["seen"]["who"]["content"] == "root\n"
    finally:
        fleet.sh("n1", "cp /tmp/bashrc /home/ops/.bashrc")


def test_names_and_contents_beyond_ascii_in_the_c_locale(fleet: Fleet, look: Any) -> None:
    fleet.sh(
        "n1", "mkdir -p /tmp/grün; printf 'größe\\n' > /tmp/grün/ß; printf '\\377' > \"/tmp/grün/$(printf 'b\\377')\""
    )
    items = [
        {"kind": "file", "path": "/tmp/grün/ß", "content": "größe\n"},
        {"kind": "glob", "pattern": "/tmp/grün/b*", "paths": []},
    ]
    play = look(items, LC_ALL="C.UTF-8")
    assert result(play)["drift"] == ["glob:/tmp/grün/b*"]
    assert result(play)["seen"]["glob:/tmp/grün/b*"]["paths"] == ["/tmp/grün/b�"]


def test_sudo_that_wants_a_terminal_or_a_password(fleet: Fleet, look: Any) -> None:
    fleet.sh("n1", "echo 'Defaults requiretty' > /etc/sudoers.d/tty; chmod 0440 /etc/sudoers.d/tty")
    try:
        play = look(WHO)
        assert (result(play)["seen"]["who"]["content"], result(play)["remote_calls"]) == ("root\n", 2)
    finally:
        fleet.sh("n1", "rm /etc/sudoers.d/tty")
    fleet.sh("n1", "echo 'ops ALL=(ALL:ALL) ALL' > /etc/sudoers.d/zz; echo ops:fixture-password | chpasswd")
    try:
        play = look(WHO, "-e", "ansible_become_password=fixture-password")
        assert (result(play)["seen"]["who"]["content"], result(play)["remote_calls"]) == ("root\n", 1)
        assert "Missing sudo password" in look(WHO, ok=False).output
    finally:
        fleet.sh("n1", "rm /etc/sudoers.d/zz")


HIDE = "for p in /usr/bin/python3*; do mv $p /root/hidden-$(basename $p); done"
SHOW = "for p in /root/hidden-*; do mv $p /usr/bin/${p#/root/hidden-}; done"


@pytest.mark.parametrize("check", [[], ["--check", "--diff"]], ids=["normal", "check"])
def test_a_node_without_python_is_told_in_words(fleet: Fleet, look: Any, check: list[str]) -> None:
    fleet.sh("n1", HIDE)
    try:
        play = look(WHO, *check, ok=False)
        assert "This node has no Python 3.9 or newer, so nothing on it can be looked at" in play.output
        assert result(play)["python_missing"] is True
        play = look(WHO, *check, missing_python="report")
        assert result(play)["python_missing"] is True
        assert result(play)["drift"] == ["package:openssh-server", "unit:ssh", "user:ops"]
        assert result(play)["changed"] is bool(check)
    finally:
        fleet.sh("n1", SHOW)
    assert result(look(WHO))["python_missing"] is False


def test_a_python_that_is_too_old_is_named(fleet: Fleet, look: Any) -> None:
    """The old Python is a stand-in that answers the version check as Python 3.6 would."""
    fleet.sh("n1", HIDE + "; printf '#!/bin/sh\\nexit 97\\n' > /usr/bin/python3; chmod +x /usr/bin/python3")
    try:
        assert "too old or broken: " in look(WHO, ok=False).output
    finally:
        fleet.sh("n1", "rm /usr/bin/python3; " + SHOW)


def test_an_interpreter_the_inventory_names(fleet: Fleet, look: Any) -> None:
    fleet.sh("n1", "mkdir -p '/opt/a place'; ln -sf /usr/bin/python3 '/opt/a place/py'")
    own = [{"kind": "command", "argv": ["true"]}]
    for interpreter in ("/usr/bin/python3.11", "'/opt/a place/py'", "/usr/bin/env python3", "/no/such/python"):
        play = look(own, "-e", json.dumps({"ansible_python_interpreter": interpreter}))
        assert result(play)["differs"] is False, interpreter


def test_an_unreachable_node_is_unreachable(look: Any) -> None:
    play = look(WHO, "-e", "ansible_host=127.0.0.9", "-e", "ansible_port=1", ok=False)
    assert play.stats["n1"]["unreachable"] == 1


# ------------------------------------------------------------------------------------ changed by hand, with real tools

UNIT = "[Service]\\nExecStart=/bin/sleep infinity\\n[Install]\\nWantedBy=multi-user.target\\n"
PREPARE = f"""
set -e
printf '{UNIT}' > /usr/lib/systemd/system/llm-fixture.service
systemctl daemon-reload; systemctl enable --now -q llm-fixture
groupadd -f render; id llm >/dev/null 2>&1 || useradd --system --create-home --home-dir /srv/llm --uid 990 \
  --shell /usr/sbin/nologin --groups render llm
"""
USER: Item = {
    "kind": "user", "name": "llm", "home": "/srv/llm", "shell": "/usr/sbin/nologin", "uid": 990, "group": "llm",
    "groups": ["render"],
}  # fmt: skip
SERVICE: Item = {"kind": "unit", "name": "llm-fixture", "enabled": True, "active": True, "masked": False}
PACKAGE: Item = {"kind": "package", "name": "less", "hold": True}

CHANGES = [
    (USER, "usermod -d /home/llm llm", "home is /home/llm, wanted /srv/llm", "usermod -d /srv/llm llm"),
    (USER, "usermod -s /bin/bash llm", "shell is /bin/bash", "usermod -s /usr/sbin/nologin llm"),
    (USER, "usermod -G '' llm", "is not in render", "usermod -G render llm"),
    (USER, "usermod -u 991 llm", "uid is 991, wanted 990", "usermod -u 990 llm"),
    (USER, "usermod -g ops llm", "group is ops, wanted llm", "usermod -g llm llm"),
    (USER, "userdel llm", "is absent, wanted present", PREPARE),
    (SERVICE, "systemctl stop llm-fixture", "active is false (dead)", "systemctl start llm-fixture"),
    (SERVICE, "systemctl kill -s KILL llm-fixture; while systemctl -q is-active llm-fixture; do sleep 0.1; done",
     "active is false (failed)", "systemctl start llm-fixture"),
    (SERVICE, "systemctl disable -q llm-fixture", "enabled is false (disabled)", "systemctl enable -q llm-fixture"),
    (SERVICE, "systemctl mask -q llm-fixture", "masked is true, wanted false", "systemctl unmask -q llm-fixture"),
    (SERVICE, "systemctl disable -q --now llm-fixture; rm /usr/lib/systemd/system/llm-fixture.service; "
     "systemctl daemon-reload", "active is false (not-found)", PREPARE),
]  # fmt: skip


@pytest.mark.parametrize(("item", "change", "reason", "undo"), CHANGES, ids=[one[1][:40] for one in CHANGES])
def test_accounts_and_units_changed_by_hand(
    fleet: Fleet, look: Any, item: Item, change: str, reason: str, undo: str
) -> None:
    fleet.sh("n1", PREPARE)
    before = look([item, WHO[1]])
    assert result(before)["differs"] is False, result(before)["items"][0]["reasons"]
    fleet.sh("n1", change)
    after = look([item, WHO[1]])
    fleet.sh("n1", undo)
    assert result(after)["drift"] == [result(before)["items"][0]["key"]]
    assert reason in "; ".join(result(after)["items"][0]["reasons"])
    assert result(look([item]))["differs"] is False


def test_an_account_and_a_unit_that_should_be_gone(fleet: Fleet, look: Any) -> None:
    fleet.sh("n1", PREPARE)
    gone = [
        {"kind": "user", "name": "llm", "state": "absent"},
        {"kind": "unit", "name": "llm-fixture", "enabled": False, "active": False},
    ]
    assert result(look(gone))["drift"] == ["user:llm", "unit:llm-fixture"]
    fleet.sh(
        "n1", "systemctl disable -q --now llm-fixture; rm /usr/lib/systemd/system/llm-fixture.service; userdel llm"
    )
    fleet.sh("n1", "systemctl daemon-reload")
    assert result(look(gone))["differs"] is False


def test_packages_by_the_real_dpkg(fleet: Fleet, look: Any) -> None:
    """A package built here, so that nothing is fetched."""
    build = "set -e; cd /tmp; rm -rf p; mkdir -p p/DEBIAN; printf 'Package: gpufleet-fixture\\nVersion: {v}\\n{more}"
    build += "Architecture: all\\nMaintainer: t <t@example.invalid>\\nDescription: x\\n' > p/DEBIAN/control; "
    build += "dpkg-deb -b p gpufleet-fixture.deb >/dev/null; dpkg -i gpufleet-fixture.deb >/dev/null {tail}"
    item: Item = {"kind": "package", "name": "gpufleet-fixture", "version": "1:1.24.0-1~*", "hold": True}
    bare = result(look([item], "--check", "--diff"))
    assert (bare["differs"], bare["changed"], bare["items"][0]["before"]["state"]) == (True, True, "absent")
    fleet.sh("n1", build.format(v="1:1.24.0-1~bookworm", more="", tail="; apt-mark hold gpufleet-fixture"))
    assert result(look([item]))["differs"] is False
    fleet.sh("n1", "apt-mark unhold gpufleet-fixture")
    assert result(look([item]))["items"][0]["reasons"] == ["hold is false, wanted true"]
    fleet.sh("n1", build.format(v="1:1.26.0-1~bookworm", more="", tail="; apt-mark hold gpufleet-fixture"))
    assert "version is 1:1.26.0-1~bookworm" in result(look([item]))["items"][0]["reasons"][0]
    fleet.sh("n1", build.format(v="1:1.24.0-1~x", more="Depends: no-such-package\\n", tail="2>/dev/null || true"))
    assert result(look([item]))["items"][0]["reasons"][0].startswith("is unpacked, wanted")
    fleet.sh("n1", "dpkg --purge gpufleet-fixture")
    assert result(look([item]))["items"][0]["reasons"] == ["is absent, wanted 1:1.24.0-1~*"]
