# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module artifact, run in this process, with files as its places."""

from __future__ import annotations

import hashlib
import json
import os
import stat

import pytest
from ansible.module_utils import basic
from ansible_collections.gpufleet.llm.plugins.modules import artifact

BODY = b"an installer"
SHA = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the module; returns what it prints."""

    def run(check=False, diff=True, **args):
        args = {"_ansible_check_mode": check, "_ansible_diff": diff, **args}
        monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps({"ANSIBLE_MODULE_ARGS": args}).encode())
        monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
        with pytest.raises(SystemExit):
            artifact.main()
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def source(tmp_path):
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "good").write_bytes(BODY)
    (tmp_path / "mirror" / "bad").write_bytes(b"evil")
    return (tmp_path / "mirror").as_uri()


def test_first_call_changes_second_does_not(call, source, tmp_path):
    args = {"urls": [f"{source}/bad", f"{source}/good"], "sha256": SHA, "dest": str(tmp_path / "x"), "mode": "0640"}
    first = call(**args)
    assert first["changed"] is True
    assert first["url"].endswith("/good")
    assert first["size_bytes"] == first["downloaded_bytes"] - 4 == len(BODY)
    assert "wrong sha256" in first["failures"][0]["error"]
    assert (tmp_path / "x").read_bytes() == BODY
    assert stat.S_IMODE(os.stat(tmp_path / "x").st_mode) == 0o640
    second = call(**args)
    assert second["changed"] is False
    assert second["diff"]["before"] == second["diff"]["after"]
    assert second["size_bytes"] == len(BODY)


def test_check_mode_tells_the_truth_and_touches_nothing(call, source, tmp_path):
    args = {"urls": [f"{source}/good"], "sha256": SHA, "dest": str(tmp_path / "sub" / "x"), "check": True}
    told = call(**args)
    assert told["changed"] is True
    assert told["diff"]["before"]["state"] == "absent"
    assert told["diff"]["after"]["sha256"] == SHA
    assert not (tmp_path / "sub").exists()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x").write_bytes(BODY)
    assert call(**args)["changed"] is False
    (tmp_path / "sub" / "x").write_bytes(b"other")
    assert call(**args)["changed"] is True
    assert (tmp_path / "sub" / "x").read_bytes() == b"other"


def test_only_the_mode_differs(call, source, tmp_path):
    (tmp_path / "x").write_bytes(BODY)
    (tmp_path / "x").chmod(0o600)
    args = {"urls": [f"{source}/gone"], "sha256": SHA.upper(), "dest": str(tmp_path / "x"), "mode": "0644"}
    told = call(check=True, **args)
    assert told["changed"] is True
    assert (told["diff"]["before"]["mode"], told["diff"]["after"]["mode"]) == ("0600", "0644")
    assert stat.S_IMODE(os.stat(tmp_path / "x").st_mode) == 0o600
    assert call(**args)["changed"] is True
    assert stat.S_IMODE(os.stat(tmp_path / "x").st_mode) == 0o644
    assert call(**args)["changed"] is False


def test_a_new_file_gets_ordinary_permissions(call, source, tmp_path):
    mask = os.umask(0o022)
    try:
        call(urls=[f"{source}/good"], sha256=SHA, dest=str(tmp_path / "x"))
    finally:
        os.umask(mask)
    assert stat.S_IMODE(os.stat(tmp_path / "x").st_mode) == 0o644


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"sha256": "latest"}, "64 hexadecimal digits, found 'latest'"),
        ({"urls": []}, "urls is empty"),
        ({"dest": "/"}, "/ is a directory"),
        ({"dest": "/no/such/directory/x"}, "directory of dest does not exist: /no/such/directory"),
    ],
)
def test_wrong_arguments_are_named(call, source, tmp_path, args, message):
    told = call(**{"urls": [f"{source}/good"], "sha256": SHA, "dest": str(tmp_path / "x"), **args})
    assert told["failed"] is True
    assert message in told["msg"]
    assert told["failures"] == []


def test_all_failures_are_listed_without_secrets(call, source, tmp_path):
    told = call(
        urls=[f"{source}/bad", "ftp://user:geheim@host.example/x?sig=s3cret"], sha256=SHA, dest=str(tmp_path / "x")
    )
    assert told["failed"] is True
    assert "wrong sha256" in told["msg"]
    assert "ftp://host.example/x" in told["msg"]
    assert len(told["failures"]) == 2
    assert "geheim" not in json.dumps(told)
    assert "s3cret" not in json.dumps(told)
    assert sorted(os.listdir(tmp_path)) == ["mirror"]
