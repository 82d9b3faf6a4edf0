# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's half of observe: what an item may say, what is sent, how versions compare, what a diff shows."""

from __future__ import annotations

import ast
import os
import stat
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.llm.plugins.plugin_utils import observe

COMMIT = "33953b119e08bbbed49fb2a1ab3a0bbb2d5b5a8b"
SHA = "ab" * 32
TOKEN = "0123456789abcdef"


# ---------------------------------------------------------------------------------------------------------------- items

BAD = [
    ("no dict", "package", "wants a dict"),
    ("no kind", {"name": "git"}, "unknown kind None"),
    ("unknown kind", {"kind": "pakage", "name": "git"}, "unknown kind 'pakage'; known: package,"),
    ("unknown key", {"kind": "package", "name": "git", "verion": "1"}, "unknown key 'verion'; known: key, name, state"),
    ("missing name", {"kind": "package"}, "name is missing"),
    ("missing target", {"kind": "link", "path": "/a"}, "target is missing"),
    ("null name", {"kind": "package", "name": None}, "name is missing"),
    ("empty version", {"kind": "package", "name": "git", "version": ""}, "version is empty: leave it out"),
    ("float version", {"kind": "package", "name": "git", "version": 1.1}, "put quotes around it"),
    ("state", {"kind": "package", "name": "git", "state": "latest"}, "state wants one of present, absent, got 'latest'"),
    ("manager", {"kind": "package", "name": "git", "manager": "zypper"}, "wants one of auto, dpkg, rpm, pacman"),
    ("bool", {"kind": "unit", "name": "a", "active": "started"}, "active wants true or false, got 'started'"),
    ("unit name", {"kind": "unit", "name": "ngin*"}, "is no name of a systemd unit"),
    ("mode as number", {"kind": "file", "path": "/a", "mode": 420}, 'wants an octal mode as a string, like "0644"'),
    ("mode in letters", {"kind": "directory", "path": "/a", "mode": "u=rw"}, "wants an octal mode as a string"),
    ("mode no octal", {"kind": "directory", "path": "/a", "mode": "0899"}, "wants an octal mode as a string"),
    ("relative path", {"kind": "file", "path": "etc/a"}, "path wants an absolute path, got 'etc/a'"),
    ("short sha256", {"kind": "file", "path": "/a", "sha256": "abc"}, "sha256 wants a sha256: 64 hex digits"),
    ("both", {"kind": "file", "path": "/a", "sha256": SHA, "content": "x"}, "wants content or sha256, not both"),
    ("content no text", {"kind": "file", "path": "/a", "content": ["x"]}, "content wants a string"),
    ("short commit", {"kind": "git", "path": "/a", "commit": "33953b1"}, "commit wants a full commit: 40 hex digits"),
    ("branch", {"kind": "git", "path": "/a", "commit": "main"}, "40 hex digits, got 'main'"),
    ("short key id", {"kind": "key", "path": "/a", "fingerprints": ["ABF5BD827BD9BF62"]}, "wants whole fingerprints"),
    ("no keys", {"kind": "key", "path": "/a", "fingerprints": []}, "wants at least one entry"),
    ("argv text", {"kind": "command", "argv": "ls /"}, "argv wants a list"),
    ("regex", {"kind": "command", "argv": ["ls"], "regex": "("}, "is no regular expression"),
    ("rc", {"kind": "command", "argv": ["ls"], "rc": True}, "rc wants a whole number"),
    ("packages list", {"kind": "conda_env", "prefix": "/a", "packages": ["git"]}, "wants a dict of name: version"),
    ("venv has no packages", {"kind": "venv", "prefix": "/a", "packages": {}}, "unknown key 'packages'"),
    ("python float", {"kind": "venv", "prefix": "/a", "python": 3.1}, "YAML reads 3.10 as the number 3.1"),
    ("manifest without files", {"kind": "manifest", "path": "/a"}, "files is missing"),
    ("manifest leaves", {"kind": "manifest", "path": "/a", "files": {"../b": {"size": 1, "sha256": SHA}}}, "leaves"),
    ("manifest no hash", {"kind": "manifest", "path": "/a", "files": {"b": {"size": 1}}}, "neither sha256 nor git_sha1"),
    ("manifest no size", {"kind": "manifest", "path": "/a", "files": {"b": {"sha256": SHA}}}, "wants {size,"),
    ("fingerprint alone", {"kind": "manifest", "path": "/a", "files": {"b": {"size": 1, "sha256": SHA}},
                           "fingerprint": "x"}, "fingerprint needs manifest"),
    ("read without key", {"kind": "read", "path": "/a"}, "key is missing"),
    ("read both", {"kind": "read", "key": "a", "path": "/a", "argv": ["ls"]}, "wants either path or argv"),
    ("nul", {"kind": "file", "path": "/a\0b"}, "NUL"),
]  # fmt: skip


@pytest.mark.parametrize(("item", "message"), [pytest.param(*one[1:], id=one[0]) for one in BAD])
def test_a_bad_item_is_refused_in_words_that_name_its_place(item: Any, message: str) -> None:
    with pytest.raises(observe.ObserveError) as error:
        observe.build_request([{"kind": "absent", "path": "/fine"}, item])
    assert message in str(error.value)
    assert "items[1]" in str(error.value)


def test_items_must_be_a_list() -> None:
    with pytest.raises(observe.ObserveError, match="items wants a list of dicts, got dict"):
        observe.build_request({"kind": "package", "name": "git"})


def test_a_secret_does_not_show_in_an_error() -> None:
    item = {"kind": "file", "path": "/a", "content": "hunter2", "no_log": True, "mode": "hunter2"}
    with pytest.raises(observe.ObserveError) as error:
        observe.build_request([item])
    assert "hunter2" not in str(error.value)


def test_what_templates_give_becomes_plain() -> None:
    class Tagged(str):
        __slots__ = ()

    items = observe.build_request(
        [
            {
                Tagged("kind"): Tagged("unit"),
                "name": Tagged("a"),
                "active": Tagged("True"),
                "enabled": "no",
                "masked": None,
            }
        ]
    )
    assert items == [{"kind": "unit", "name": "a", "active": True, "enabled": False, "key": "unit:a"}]
    assert type(items[0]["name"]) is str
    assert {type(key) for key in items[0]} == {str}


def test_modes_and_fingerprints_are_normalised() -> None:
    fingerprint = "0x4d64 fec1 19c2 0290 67d6 e791 f8d2 585b 8783 d481"
    items = observe.build_request(
        [
            {"kind": "directory", "path": "/a", "mode": "755"},
            {"kind": "key", "path": "/b", "fingerprints": [fingerprint], "mode": "00644"},
        ]
    )
    assert items[0]["mode"] == "0755"
    assert items[1]["mode"] == "0644"
    assert items[1]["fingerprints"] == ["4D64FEC119C2029067D6E791F8D2585B8783D481"]


def test_the_same_item_twice_is_one_and_two_different_ones_need_keys() -> None:
    one = {"kind": "package", "name": "git"}
    assert len(observe.build_request([one, dict(one)])) == 1
    with pytest.raises(observe.ObserveError, match="another item has the same key 'package:git'"):
        observe.build_request([one, {**one, "state": "absent"}])
    assert len(observe.build_request([one, {**one, "state": "absent", "key": "other"}])) == 2


def test_no_secret_and_no_content_travels() -> None:
    items = observe.build_request(
        [
            {"kind": "file", "path": "/a", "content": "hunter2", "no_log": True},
            {"kind": "file", "path": "/b", "content": "public"},
        ]
    )
    wire = [observe.wire_item(item) for item in items]
    assert wire[0] == {"kind": "file", "path": "/a", "strict": True, "hash": True}
    assert wire[1]["sha256"] == observe.content_sha256("public")[:16]
    assert "content" not in wire[1]


# ------------------------------------------------------------------------------------------------------ what is sent


class Unannotated(ast.NodeTransformer):
    """What is left of a function when nothing is annotated."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = None
        self.generic_visit(node)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        assert node.value is not None
        return ast.Assign(targets=[node.target], value=node.value)


def test_the_cut_script_means_what_its_source_means() -> None:
    """Every piece, docstrings and annotations aside, has the syntax tree of the source it came from."""
    source = observe.NODE_SCRIPT.read_text(encoding="utf-8")
    wanted = {}
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.Assign)):
            for one in ast.walk(node):
                if isinstance(one, ast.FunctionDef) and ast.get_docstring(one) is not None:
                    one.body = one.body[1:]
            name = node.name if isinstance(node, ast.FunctionDef) else node.targets[0].id  # type: ignore[attr-defined]
            wanted[name] = ast.dump(Unannotated().visit(node))
    pieces = observe.NodeScript(source).pieces
    assert {name: ast.dump(ast.parse(piece).body[0]) for name, piece in pieces.items()} == wanted


@pytest.mark.parametrize("kind", sorted([*observe.KINDS, "dpkg", "rpm", "pacman"]))
def test_each_kind_brings_all_it_needs(kind: str) -> None:
    """No name in the cut script is undefined: that would be a NameError on the node."""
    script = observe.load_script()
    source = script.select([kind])
    tree = ast.parse(source)
    defined = set(dir(__builtins__)) | set(__builtins__ if isinstance(__builtins__, dict) else ())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            defined.add(node.name)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            defined.update((one.asname or one.name).split(".")[0] for one in node.names)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            defined.add(node.name)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert f"look_{kind}" in defined
    assert used <= defined


def test_what_a_role_sends_stays_small() -> None:
    """A role like nginx's: the target of the issue is 10 KB for a whole run, half of it for one look."""
    items = observe.build_request(
        [
            {"kind": "package", "name": "nginx", "version": "1.24.0-1*", "hold": True},
            *({"kind": "file", "path": f"/etc/nginx/{n}", "content": f"{n}\n", "mode": "0644"} for n in range(12)),
            {"kind": "key", "path": "/etc/apt/keyrings/nginx.asc", "fingerprints": ["AB" * 20]},
            {"kind": "absent", "path": "/etc/nginx/conf.d/default.conf"},
            {"kind": "unit", "name": "nginx", "enabled": True, "active": True},
        ]
    )
    assert len(observe.build_payload(items, False, TOKEN)) < 8000


def test_only_the_code_of_the_nodes_own_package_manager_travels() -> None:
    items = observe.build_request(
        [{"kind": "package", "name": "git"}, {"kind": "package", "name": "x", "manager": "rpm"}]
    )
    sent = zlib.decompress(observe.build_payload(items, False, TOKEN, "dpkg"))
    assert b"def look_dpkg" in sent
    assert b"def look_rpm" in sent
    assert b"def look_pacman" not in sent
    small, whole = (observe.build_payload(items[:1], False, TOKEN, manager) for manager in ("dpkg", "auto"))
    assert len(small) < len(whole) - 1500


def start(
    items: list[dict[str, Any]], interpreter: str | None = None, argument: bool = False, **env: str
) -> subprocess.CompletedProcess[bytes]:
    """Run what would be sent by the shell, as the connection does."""
    payload = observe.build_payload(observe.build_request(items), False, TOKEN)
    command = observe.build_command(interpreter, TOKEN, payload if argument else None)
    return subprocess.run(
        ["/bin/sh", "-c", command],
        input=None if argument else payload,
        stdin=subprocess.DEVNULL if argument else None,
        capture_output=True,
        check=False,
        env={**os.environ, **env},
    )


@pytest.mark.parametrize("argument", [False, True], ids=["stdin", "argument"])
@pytest.mark.parametrize("interpreter", [None, sys.executable, f"/usr/bin/env {sys.executable}", "/no/such/python"])
def test_the_script_runs_by_a_shell(argument: bool, interpreter: str | None) -> None:
    done = start([{"kind": "command", "argv": ["printf", "grün\\377"]}], interpreter, argument, LC_ALL="C")
    answer = observe.parse_answer(done.stdout.decode(), TOKEN)
    assert done.returncode == 0
    assert answer is not None
    assert answer["seen"] == [{"rc": 0, "stdout": "grün\udcff", "stderr": ""}]


def test_a_name_that_is_not_ascii_is_found_in_any_locale(tmp_path: Path) -> None:
    path = tmp_path / "grün"
    path.write_text("größe\n", encoding="utf-8")
    item = {"kind": "file", "path": str(path), "content": "größe\n"}
    items = observe.build_request([item])
    for locale in ("C", "POSIX", "de_DE.ISO-8859-1"):
        answer = observe.parse_answer(start([item], LC_ALL=locale).stdout.decode("ascii"), TOKEN)
        assert answer is not None
        assert observe.compare(items, answer)["differs"] is False, locale


def fake_python(folder: Path, name: str, script: str) -> None:
    """A command that stands where a Python would: only its exit status matters to the bootstrap."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_no_python_is_said_and_an_old_one_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "PYTHONS", ("python3", "python3.8"))
    done = start([], PATH=str(tmp_path))
    assert observe.unusable_pythons(done.stdout.decode(), TOKEN) == []
    assert observe.parse_answer(done.stdout.decode(), TOKEN) is None
    fake_python(tmp_path, "python3", f"exit {observe.RC_OLD_PYTHON}")
    done = start([], PATH=str(tmp_path))
    assert observe.unusable_pythons(done.stdout.decode(), TOKEN) == ["python3"]


def test_an_old_or_broken_python_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "PYTHONS", ("python3", "python3.9", sys.executable))
    fake_python(tmp_path, "python3", f"exit {observe.RC_OLD_PYTHON}")
    fake_python(tmp_path, "python3.9", "exit 127")
    done = start([{"kind": "disk", "path": "/"}], PATH=str(tmp_path))
    assert observe.parse_answer(done.stdout.decode(), TOKEN) is not None


def test_noise_around_the_answer_does_not_matter() -> None:
    begin, end = observe.marks(TOKEN)
    noise = f'Welcome!\r\n<observe 1234>{{}}</observe 1234>\r\n\r\n{begin}{{"seen": []}}{end}\r\nlogout\r\n'
    assert observe.parse_answer(noise, TOKEN) == {"seen": []}


@pytest.mark.parametrize(
    ("body", "message"), [("{", "is no JSON"), ("[]", "no list `seen`"), ('{"seen": 1}', "no list `seen`")]
)
def test_a_damaged_answer_is_said_to_be_one(body: str, message: str) -> None:
    begin, end = observe.marks(TOKEN)
    with pytest.raises(observe.ObserveError, match=message):
        observe.parse_answer(begin + body + end, TOKEN)
    with pytest.raises(observe.ObserveError, match="cut off"):
        observe.parse_answer(begin + body, TOKEN)


def test_nothing_of_the_payload_is_code_from_an_item() -> None:
    """An item's text stays text, whatever quotes it has."""
    nasty = '\');import os;os._exit(3)#"""\\'
    done = start([{"kind": "command", "argv": ["printf", "%s", nasty]}])
    answer = observe.parse_answer(done.stdout.decode(), TOKEN)
    assert answer is not None
    assert answer["seen"][0]["stdout"] == nasty
    assert b"os._exit" in zlib.decompress(
        observe.build_payload(observe.build_request([{"kind": "command", "argv": [nasty]}]), False, TOKEN)
    )


# ----------------------------------------------------------------------------------------------------------- comparing


@pytest.mark.parametrize(
    ("wanted", "found", "manager", "matches"),
    [
        ("1.24.0-1~bookworm", "1.24.0-1~bookworm", "dpkg", True),
        ("1.24.0-1*", "1.24.0-1~bookworm", "dpkg", True),
        ("1.24.0*", "1.26.0-1", "dpkg", False),
        ("2.39.5-0+deb12u3", "1:2.39.5-0+deb12u3", "dpkg", False),
        ("1:2.39.5-0+deb12u3", "1:2.39.5-0+deb12u3", "dpkg", True),
        ("1.24.0", "1.24.0-1", "dpkg", False),
        ("1.24.0", "1:1.24.0-1.el9.ngx", "rpm", True),
        ("1.24.0-1.el9.ngx", "1:1.24.0-1.el9.ngx", "rpm", True),
        ("1:1.24.0-1.el9.ngx", "1:1.24.0-1.el9.ngx", "rpm", True),
        ("2:1.24.0-1.el9.ngx", "1:1.24.0-1.el9.ngx", "rpm", False),
        ("0:1.2.3-4.el9", "1.2.3-4.el9", "rpm", True),
        ("1.2", "1.2.3-4.el9", "rpm", False),
        ("1.2.*", "1.2.3-4.el9", "rpm", True),
        ("2.47.0-1", "2.47.0-1", "pacman", True),
        ("2.47.0", "1:2.47.0-1", "pacman", True),
        ("2.47", "2.47.0-1", "pacman", False),
    ],
)
def test_versions_of_packages(wanted: str, found: str, manager: str, matches: bool) -> None:
    assert observe.version_matches(wanted, {"version": found, "manager": manager}) is matches


def test_of_several_installed_kernels_any_may_be_the_wanted_one() -> None:
    found = {"version": "5.14.0-503.el9", "versions": ["5.14.0-427.el9", "5.14.0-503.el9"], "manager": "rpm"}
    assert observe.version_matches("5.14.0-427.el9", found)
    assert not observe.version_matches("5.14.0-611.el9", found)


@pytest.mark.parametrize(
    ("wanted", "found", "same"),
    [
        ("2.13.0", "2.13.0", True),
        ("2.13.0", "2.13.0+cpu", True),
        ("2.13.0+cpu", "2.13.0+cpu", True),
        ("2.13.0+cu121", "2.13.0+cpu", False),
        ("2.13.0+cpu", "2.13.0", False),
        ("2.13", "2.13.0", True),
        ("2.13.0", "2.13.1", False),
        ("2.13.0", "2.13.0.post1", False),
        ("1.0rc1", "1.0.rc1", True),
        ("1.0-1", "1.0.post1", True),
        ("2004d", "2004d", True),
        ("2004d", "2005d", False),
    ],
)
def test_versions_of_distributions(wanted: str, found: str, same: bool) -> None:
    assert observe.same_release(wanted, found) is same


@pytest.mark.parametrize(
    ("wanted", "found", "same"),
    [("3.10", "3.10.14", True), ("3.10.14", "3.10.14", True), ("3.1", "3.10.14", False), ("3.10", None, False)],
)
def test_versions_of_python(wanted: str, found: str | None, same: bool) -> None:
    assert observe.python_matches(wanted, found) is same


@pytest.mark.parametrize(
    ("wanted", "found", "same"),
    [
        ("3.10.13", "3.10.13=h955ad1f_0", True),
        ("3.10.13=h955ad1f_0", "3.10.13=h955ad1f_0", True),
        ("3.10.13=h955ad1f_1", "3.10.13=h955ad1f_0", False),
        ("3.10.*", "3.10.13=h955ad1f_0", True),
        ("3.10", "3.10.13=h955ad1f_0", False),
    ],
)
def test_versions_of_conda_packages(wanted: str, found: str, same: bool) -> None:
    assert observe.conda_matches(wanted, found) is same


UNITS = {
    "running": {"load_state": "loaded", "enabled": True, "active": True, "masked": False, "sub_state": "running"},
    "stopped": {"load_state": "loaded", "enabled": False, "active": False, "masked": False, "sub_state": "dead"},
    "static": {"load_state": "loaded", "enabled": None, "active": False, "masked": False, "sub_state": "dead"},
    "masked": {"load_state": "masked", "enabled": False, "active": False, "masked": True, "sub_state": "dead"},
    "none": {"load_state": "not-found", "enabled": False, "active": False, "masked": False, "sub_state": "dead"},
}


@pytest.mark.parametrize(
    ("unit", "wanted", "reasons"),
    [
        ("running", {"enabled": True, "active": True, "masked": False}, []),
        ("running", {"active": False}, ["active is true (running), wanted false"]),
        ("stopped", {"active": True}, ["active is false (dead), wanted true"]),
        ("stopped", {"enabled": True}, ["enabled is false (loaded), wanted true"]),
        ("static", {"enabled": True}, []),
        ("static", {"enabled": False}, []),
        ("masked", {"masked": True, "active": False, "enabled": False}, []),
        ("masked", {"enabled": True}, ["enabled is false (masked), wanted true"]),
        ("none", {"enabled": False, "active": False, "masked": False}, []),
        ("none", {"active": True}, ["active is false (not-found), wanted true"]),
        ("none", {"masked": True}, ["masked is false, wanted true"]),
    ],
)
def test_units(unit: str, wanted: dict[str, bool], reasons: list[str]) -> None:
    assert observe.compare_unit({"kind": "unit", "name": "a", **wanted}, UNITS[unit]) == reasons


def test_one_item_that_cannot_be_looked_at_does_not_hide_the_others() -> None:
    items = observe.build_request([{"kind": "file", "path": "/a"}, {"kind": "absent", "path": "/b"}])
    answer = {"platform": {}, "seen": [{"error": "PermissionError: /a"}, {"state": "absent"}]}
    result = observe.compare(items, answer)
    assert result["drift"] == ["file:/a"]
    assert result["items"][0]["reasons"] == ["could not be looked at: PermissionError: /a"]


def test_an_answer_without_the_keys_is_a_reason_and_no_crash() -> None:
    items = observe.build_request([{"kind": "package", "name": "git"}])
    result = observe.compare(items, {"seen": [{}]})
    assert result["differs"]
    assert "cannot be compared" in result["items"][0]["reasons"][0]
    with pytest.raises(observe.ObserveError, match="0 items of 1"):
        observe.compare(items, {"seen": []})


def test_without_python_everything_managed_differs_and_the_shape_stays() -> None:
    items = observe.build_request([{"kind": "package", "name": "git"}, {"kind": "read", "key": "os", "path": "/a"}])
    result = observe.result_without_python(items, ["python3"])
    assert result["python_missing"] is True
    assert result["drift"] == ["package:git"]
    assert "python3" in result["items"][0]["reasons"][0]
    usual = observe.compare(items, {"seen": [{"state": "absent"}, {"state": "absent"}], "platform": {}})
    assert set(result) == set(usual)
    assert set(result["items"][0]) == set(usual["items"][0])


# ---------------------------------------------------------------------------------------------------------- the diff


def diff(item: dict[str, Any], found: dict[str, Any]) -> list[dict[str, str]]:
    items = observe.build_request([item])
    return observe.build_diff(items, observe.compare(items, {"seen": [found]})["items"])


def test_a_file_is_shown_by_its_content_and_its_attributes_apart() -> None:
    found = {"state": "file", "sha256": SHA, "content": "old\n", "mode": "0600", "owner": "root", "uid": 0, "size": 4}
    shown = diff({"kind": "file", "path": "/a", "content": "new\n", "mode": "0644"}, found)
    assert [(one["before"], one["after"]) for one in shown] == [
        ("old\n", "new\n"),
        ("mode: 0600\nstate: file\n", "mode: 0644\nstate: file\n"),
    ]
    assert shown[0]["before_header"] == "file:/a"


def test_a_file_that_is_missing_is_shown_whole() -> None:
    shown = diff({"kind": "file", "path": "/a", "content": "new\n"}, {"state": "absent"})
    assert (shown[0]["before"], shown[0]["after"]) == ("", "new\n")


def test_what_is_as_wanted_is_not_shown() -> None:
    assert diff({"kind": "absent", "path": "/a"}, {"state": "absent"}) == []


def test_a_secret_is_never_shown() -> None:
    found = {"state": "file", "sha256": SHA, "content": "old secret", "mode": "0644", "size": 10}
    item = {"kind": "file", "path": "/a", "content": "hunter2", "no_log": True, "mode": "0600"}
    items = observe.build_request([item])
    result = observe.compare(items, {"seen": [found]})
    text = repr(result) + repr(observe.build_diff(items, result["items"]))
    assert result["differs"]
    for secret in ("hunter2", observe.content_sha256("hunter2"), SHA, "old secret"):
        assert secret not in text


def test_a_secret_command_shows_nothing_of_what_it_said() -> None:
    item = {"kind": "command", "argv": ["show"], "stdout": "hunter2", "no_log": True}
    items = observe.build_request([item])
    result = observe.compare(items, {"seen": [{"rc": 1, "stdout": "token", "stderr": "bad token"}]})
    assert result["differs"]
    assert "hunter2" not in repr(result)
    assert "token" not in repr(result)


def test_bytes_that_are_no_text_do_not_break_the_result() -> None:
    items = observe.build_request([{"kind": "glob", "pattern": "/a/*"}])
    result = observe.compare(items, {"seen": [{"paths": ["/a/\udcff"]}]})
    repr(result).encode("utf-8")
    assert result["seen"]["glob:/a/*"]["paths"] == ["/a/�"]
