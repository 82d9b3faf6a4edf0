# SPDX-License-Identifier: GPL-3.0-or-later
"""The node's half of observe, looked at from near: parsers, the child process, and that looking writes nothing."""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.llm.plugins.module_utils import observe_node

FIXTURES = Path(__file__).resolve().parent / "fixtures"
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")


def ctx(*items: dict[str, Any]) -> dict[str, Any]:
    return {"items": list(items), "deep": False}


# ------------------------------------------------------------------------------------------------------------- children


def test_a_command_that_runs_too_long_is_ended_with_its_children() -> None:
    began = time.monotonic()
    rc, out, _err = observe_node.run(["sh", "-c", "echo begun; sleep 600 & sleep 600"], timeout=1)
    assert (rc, out) == (124, b"begun\n")
    assert time.monotonic() - began < 30


def test_a_daemon_that_keeps_stdout_open_does_not_hold_the_look(tmp_path: Path) -> None:
    began = time.monotonic()
    rc, out, _err = observe_node.run(["sh", "-c", f"sleep 100 & echo $! > {tmp_path}/pid; echo started"], timeout=90)
    os.kill(int((tmp_path / "pid").read_text()), 9)
    assert (rc, out) == (0, b"started\n")
    assert time.monotonic() - began < 30


def test_more_output_than_wanted_is_read_to_the_end_and_cut() -> None:
    rc, out, err = observe_node.run(["sh", "-c", "head -c 3000000 /dev/zero; head -c 400000 /dev/zero >&2; exit 5"])
    assert (rc, len(out), len(err)) == (5, observe_node.OUTPUT_LIMIT, observe_node.OUTPUT_LIMIT)


def test_a_missing_command_and_a_signal_have_their_usual_status() -> None:
    rc, _out, err = observe_node.run(["/no/such/command"])
    assert rc == 127
    assert b"No such file or directory" in err
    assert observe_node.run(["sh", "-c", "kill -9 $$"])[0] == 137


def test_children_see_a_plain_environment_and_no_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    rc, out, _err = observe_node.run(["sh", "-c", "cat; echo $LC_ALL ${GIT_DIR:-none} $MORE"], {"MORE": "x"})
    assert (rc, out) == (0, b"C none x\n")


# ------------------------------------------------------------------------------------------------------------- packages

STANZA = "Package: {}\nStatus: {}\nArchitecture: {}\nVersion: {}\n\n"


def dpkg(root: Path, *stanzas: tuple[str, str, str, str]) -> None:
    path = root / "var/lib/dpkg/status"
    path.parent.mkdir(parents=True)
    path.write_text("".join(STANZA.format(*one) for one in stanzas), encoding="utf-8")


def test_of_two_architectures_the_native_one_counts_unless_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe_node, "ROOT", str(tmp_path))
    monkeypatch.setattr(observe_node, "machine_arch", lambda: "amd64")
    dpkg(
        tmp_path,
        ("libc6", "install ok installed", "i386", "2"),
        ("libc6", "install ok installed", "amd64", "1"),
        ("libgl1", "install ok installed", "i386", "7"),
        ("libgl1", "deinstall ok config-files", "amd64", "6"),
    )
    assert observe_node.dpkg_package("libc6", {})["version"] == "1"
    assert observe_node.dpkg_package("libc6:i386", {})["version"] == "2"
    assert observe_node.dpkg_package("libc6:arm64", {})["state"] == "absent"
    assert observe_node.dpkg_package("libgl1", {})["version"] == "7"


@pytest.mark.parametrize(
    ("release", "databases", "manager"),
    [
        ("ID=ubuntu\nID_LIKE=debian\n", [], "dpkg"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', ["var/lib/dpkg/status"], "rpm"),
        ("ID=arch\n", [], "pacman"),
        ("ID=unheard-of\n", ["var/lib/pacman/local"], "pacman"),
        (None, ["var/lib/rpm"], "rpm"),
    ],
)
def test_the_package_manager_is_the_distributions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str | None, databases: list[str], manager: str
) -> None:
    monkeypatch.setattr(observe_node, "ROOT", str(tmp_path))
    for name in databases:
        (tmp_path / name).mkdir(parents=True)
    if release:
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc/os-release").write_text(release, encoding="utf-8")
    assert observe_node.package_manager({}) == manager


@pytest.fixture
def rpmdb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The database rpm 4.18 wrote for gpufleet-plain, gpufleet-epoch and two versions of gpufleet-kernel."""
    monkeypatch.setattr(observe_node, "ROOT", str(tmp_path))
    path = tmp_path / "var/lib/rpm/rpmdb.sqlite"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.decompress((FIXTURES / "rpmdb.sqlite.gz").read_bytes()))
    return path


def rpm(name: str) -> dict[str, Any]:
    return observe_node.rpm_package(name, ctx({"kind": "package", "name": name}))


def test_rpms_own_database_is_read_and_not_touched(rpmdb: Path) -> None:
    before = rpmdb.read_bytes()
    assert rpm("gpufleet-plain") == {"state": "present", "version": "1.2.3-4.el9", "hold": False, "arch": "noarch"}
    assert rpm("gpufleet-epoch")["version"] == "1:1.24.0-1.el9.ngx"
    assert rpm("no-such")["state"] == "absent"
    kernel = rpm("gpufleet-kernel")
    assert kernel["version"] == "5.14.0-503.el9"
    assert kernel["versions"] == ["5.14.0-427.el9", "5.14.0-503.el9"]
    assert rpmdb.read_bytes() == before
    assert os.listdir(rpmdb.parent) == ["rpmdb.sqlite"]


def test_what_still_is_in_the_write_ahead_log_counts(rpmdb: Path) -> None:
    import sqlite3

    writer = sqlite3.connect(rpmdb)
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("PRAGMA wal_autocheckpoint=0")
    writer.execute("DELETE FROM Packages WHERE hnum IN (SELECT hnum FROM Name WHERE key = 'gpufleet-plain')")
    writer.commit()
    try:
        assert os.stat(f"{rpmdb}-wal").st_size > 0
        assert rpm("gpufleet-plain")["state"] == "absent"
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("lock", "held"),
    [
        ("gpufleet-plain-0:1.2.3-4.el9.*", True),
        ("gpufleet-plain-0:1.2.2-1.el9.*", False),
        ("gpufleet-plain", True),
        ("gpufleet-*", True),
        ("!gpufleet-plain-0:1.2.3-4.el9.*", False),
        ("# gpufleet-plain", False),
    ],
)
def test_versionlock_holds_the_version_it_names(rpmdb: Path, lock: str, held: bool) -> None:
    path = rpmdb.parents[3] / "etc/dnf/plugins/versionlock.list"
    path.parent.mkdir(parents=True)
    path.write_text(f"# Added lock\n{lock}\n", encoding="utf-8")
    assert rpm("gpufleet-plain")["hold"] is held


# ----------------------------------------------------------------------------------------------------------------- keys


def packet(tag: int, body: bytes) -> bytes:
    """A packet of the new format with a length of one byte."""
    return bytes([0xC0 | tag, len(body)]) + body


V4 = b"\x04" + b"\0\0\0\1" + b"\x16" + b"key material"
V6 = b"\x06" + b"\0\0\0\1" + b"\x1b" + b"\0\0\0\x0ckey material"


def test_fingerprints_of_version_4_and_6_are_those_of_rfc_9580() -> None:
    data = packet(6, V4) + packet(13, b"a name") + packet(14, V4) + packet(6, V6)
    assert observe_node.openpgp_fingerprints(data) == [
        hashlib.sha1(b"\x99" + len(V4).to_bytes(2, "big") + V4).hexdigest().upper(),
        hashlib.sha256(b"\x9b" + len(V6).to_bytes(4, "big") + V6).hexdigest().upper(),
    ]


def test_every_way_to_write_a_packets_length() -> None:
    body = V4 + bytes(600)
    wanted = observe_node.openpgp_fingerprints(b"\xc6\xff" + len(body).to_bytes(4, "big") + body)
    two = len(body) - 192
    assert observe_node.openpgp_fingerprints(b"\xc6" + bytes([192 + (two >> 8), two & 255]) + body) == wanted
    assert observe_node.openpgp_fingerprints(b"\x99" + len(body).to_bytes(2, "big") + body) == wanted
    assert observe_node.openpgp_fingerprints(b"\x9a" + len(body).to_bytes(4, "big") + body) == wanted
    partial = b"\xc6" + bytes([0xE9]) + body[:512] + bytes([len(body) - 512]) + body[512:]
    assert observe_node.openpgp_fingerprints(partial) == wanted


@pytest.mark.parametrize("header", ["", "Version: GnuPG v2\nComment: a\n\n", "\n"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_armour(header: str, line_end: str) -> None:
    import base64

    body = base64.b64encode(packet(6, V4)).decode()
    block = f"-----BEGIN PGP PUBLIC KEY BLOCK-----\n{header}{body}\n=AbCd\n-----END PGP PUBLIC KEY BLOCK-----\n"
    data = ("keys of ours\n" + block + block).replace("\n", line_end).encode()
    assert len(observe_node.openpgp_fingerprints(data)) == 2


@pytest.mark.parametrize("data", [b"<html>", b"\x99\x01", b"\xc6\xff\0\0\1\0short", b"\x05"])
def test_what_is_no_key_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        observe_node.openpgp_fingerprints(data)


# ------------------------------------------------------------------------------------------------------------------ git


def git(path: Path, *args: str) -> str:
    environment = {
        **os.environ,
        "GIT_CONFIG_GLOBAL": "/dev/null",
        **{f"GIT_{who}_{what}": "t@example.invalid" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }
    done = subprocess.run(["git", "-C", str(path), *args], env=environment, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    path = tmp_path / "clone"
    path.mkdir()
    git(path, "init", "-q", "-b", "main")
    (path / "a").write_text("a\n", encoding="utf-8")
    git(path, "add", ".")
    git(path, "commit", "-qm", "one")
    return path


def look_git(path: Path, **more: Any) -> dict[str, Any]:
    return observe_node.look_git({"kind": "git", "path": str(path), **more}, ctx())


def test_head_is_found_wherever_git_keeps_it(clone: Path, tmp_path: Path) -> None:
    head = git(clone, "rev-parse", "HEAD")
    assert look_git(clone)["commit"] == head
    git(clone, "worktree", "add", "-q", "-b", "side", str(tmp_path / "side"))
    assert look_git(tmp_path / "side") == {
        "state": "present", "commit": head, "clean": True, "dirty_files": [], "remote": None
    }  # fmt: skip
    git(clone, "pack-refs", "--all")
    assert look_git(clone)["commit"] == head
    git(clone, "checkout", "-q", "--detach")
    assert look_git(clone)["commit"] == head
    git(tmp_path, "clone", "-q", "--bare", str(clone), "bare")
    assert look_git(tmp_path / "bare")["commit"] == head
    assert look_git(tmp_path / "bare")["remote"] == str(clone)


def test_a_repository_without_a_commit(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    found = look_git(tmp_path)
    assert (found["state"], found["commit"], found["clean"]) == ("present", None, True)


def test_ignored_files_are_no_dirt_and_a_hidden_setting_hides_none(clone: Path) -> None:
    (clone / ".git/info/exclude").write_text("*.log\n", encoding="utf-8")
    (clone / "x.log").touch()
    assert look_git(clone)["clean"] is True
    git(clone, "config", "status.showUntrackedFiles", "no")
    (clone / "new").touch()
    assert look_git(clone)["dirty_files"] == ["?? new"]


def test_looking_leaves_the_index_alone(clone: Path) -> None:
    os.utime(clone / "a", ns=(1, 1))
    before = (clone / ".git/index").read_bytes()
    assert look_git(clone)["clean"] is True
    assert (clone / ".git/index").read_bytes() == before


@ROOT_ONLY
def test_roots_look_runs_nothing_of_a_users_repository_as_root(clone: Path, tmp_path: Path) -> None:
    """A clean filter runs during `git status`: it must run as the owner of the clone."""
    tmp_path.chmod(0o755)
    for folder in tmp_path.parents:
        if folder.stat().st_uid == 0 and folder.name.startswith("pytest"):
            folder.chmod(0o755)
    script = tmp_path / "filter"
    script.write_text(f"#!/bin/sh\nid -u > {clone}/.git/who\ncat\n", encoding="utf-8")
    script.chmod(0o755)
    git(clone, "config", "filter.x.clean", str(script))
    git(clone, "config", "core.fsmonitor", str(script))
    (clone / ".git/info/attributes").write_text("a filter=x\n", encoding="utf-8")
    os.utime(clone / "a")
    for folder, _names, files in os.walk(clone):
        for name in [".", *files]:
            os.chown(os.path.join(folder, name), 65534, 65534)
    found = look_git(clone)
    assert (found["state"], found["clean"]) == ("present", True)
    assert (clone / ".git/who").read_text().strip() == "65534"


def test_without_git_the_state_says_so_and_the_commit_is_still_read(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe_node, "PATH", "/nowhere")
    found = look_git(clone)
    assert found["state"] == "no_git"
    assert found["commit"] == git(clone, "rev-parse", "HEAD")
    assert look_git(clone, clean=False)["state"] == "present"


# ------------------------------------------------------------------------------------------------------------ the rest


def test_reading_brings_back_text_and_says_when_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"gr\xc3\xbcn\xff")
    assert observe_node.look_read({"path": str(path)}, ctx())["content"] == "grün\udcff"
    path.write_bytes(b"x" * (observe_node.OUTPUT_LIMIT + 1))
    found = observe_node.look_read({"path": str(path)}, ctx())
    assert found["truncated"]
    assert len(found["content"]) == observe_node.OUTPUT_LIMIT
    assert observe_node.look_read({"argv": ["sh", "-c", "echo a; exit 2"]}, ctx())["rc"] == 2
    assert observe_node.look_read({"path": "/dev/zero"}, ctx()) == {"state": "other", "content": None, "rc": None}
    assert observe_node.look_read({"path": "/proc/version"}, ctx())["content"].startswith("Linux")


def test_content_goes_back_only_when_it_differs_and_is_small_text(tmp_path: Path) -> None:
    path = tmp_path / "f"

    def content(data: bytes, sha256: str | None) -> Any:
        path.write_bytes(data)
        item = {"path": str(path), "strict": True, "hash": True}
        return observe_node.look_file(item if sha256 is None else {**item, "sha256": sha256}, ctx()).get("content")

    other = "0" * 64
    assert content(b"text\n", other) == "text\n"
    assert content(b"text\n", hashlib.sha256(b"text\n").hexdigest()) is None
    assert content(b"a secret: no hash was sent", None) is None
    assert content(b"\xff", other) is None
    assert content(b"a\0b", other) is None
    assert content(b"x" * (observe_node.CONTENT_LIMIT + 1), other) is None


def test_a_large_file_has_the_same_hash_as_a_small_one(tmp_path: Path) -> None:
    data = bytes(range(256)) * 20000
    (tmp_path / "f").write_bytes(data)
    assert observe_node.sha256_of(str(tmp_path / "f"), len(data)) == hashlib.sha256(data).hexdigest()


def test_disk_is_that_of_the_nearest_parent_and_in_bytes(tmp_path: Path) -> None:
    found = observe_node.look_disk({"path": str(tmp_path / "not/yet/there")}, ctx())
    assert found["path"] == str(tmp_path)
    assert 0 < found["free_bytes"] <= found["total_bytes"]
    assert found["total_bytes"] == os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize


def test_this_user_is_found() -> None:
    import pwd

    me = pwd.getpwuid(os.geteuid())
    found = observe_node.look_user({"name": me.pw_name}, ctx())
    assert (found["home"], found["shell"], found["uid"]) == (me.pw_dir, me.pw_shell, me.pw_uid)


def test_dump_is_json() -> None:
    import json
    from json.encoder import encode_basestring_ascii as quote

    value = {"a": [1, True, None, "grün\udcff\n\"'\\", {"b": {}}], "c": ()}
    assert json.loads(observe_node.dump(value, quote)) == {**value, "c": []}
