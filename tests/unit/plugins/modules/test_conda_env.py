# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module conda_env on real virtual environments with a real pip, from wheels made here. No network."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pathlib
import shutil
import sys
import zipfile

import pytest
from ansible.module_utils import basic
from ansible_collections.gpufleet.llm.plugins.modules import conda_env

PYTHON = os.path.realpath(sys.executable)


def make_wheel(folder: pathlib.Path, name: str, version: str) -> str:
    """A wheel with one package; returns its line for a lock."""
    info = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    files = {
        f"{name}/__init__.py": f"version = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"{info}/RECORD,,\n"
    for one, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{one},sha256={digest},{len(text)}\n"
    with zipfile.ZipFile(path, "w") as archive:
        for one, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(zipfile.ZipInfo(one, (2024, 1, 1, 0, 0, 0)), text)
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheels")
    lines = {
        (name, version): make_wheel(folder, name, version) for name in ("alpha", "beta") for version in ("1.0", "2.0")
    }
    return folder, lines


@pytest.fixture(scope="module")
def born(tmp_path_factory, wheels):
    """One environment made for real; tests work on copies (a copied venv still has its own prefix)."""
    prefix = tmp_path_factory.mktemp("born") / "env"
    patch = pytest.MonkeyPatch()
    try:
        told = call_module(patch, arguments(prefix, wheels))
    finally:
        patch.undo()
    assert told["changed"] is True, told
    return prefix, told


def arguments(prefix, wheels, names=(("alpha", "1.0"), ("beta", "1.0")), **more):
    folder, lines = wheels
    return {
        "prefix": str(prefix),
        "manager": "venv",
        "python": PYTHON,
        "requirements": "\n".join(lines[one] for one in names),
        "find_links": [str(folder)],
        "no_index": True,
        **more,
    }


def call_module(patch, args, check=False):
    """Run the module in this process; returns what it prints."""
    args = {"_ansible_check_mode": check, "_ansible_diff": True, **args}
    patch.setattr(basic, "_ANSIBLE_ARGS", json.dumps({"ANSIBLE_MODULE_ARGS": args}).encode())
    patch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
    printed: list[str] = []
    patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(str(word) for word in words)))
    try:
        conda_env.main()
    except SystemExit:
        pass
    return json.loads(printed[-1])


@pytest.fixture
def call(monkeypatch):
    def run(args, check=False):
        with monkeypatch.context() as patch:
            return call_module(patch, args, check)

    return run


@pytest.fixture
def env(born, tmp_path):
    prefix = tmp_path / "env"
    shutil.copytree(born[0], prefix, symlinks=True)
    return prefix


def site(prefix):
    return next(pathlib.Path(prefix).glob("lib/python3*/site-packages"))


def test_made_for_real_and_nothing_left_beside(born):
    prefix, told = born
    assert told["distributions"]["alpha"] == "1.0"
    assert told["python"] == ".".join(str(part) for part in sys.version_info[:3])
    assert (told["manager"], told["installer"], told["rebuilt"]) == ("venv", "pip", False)
    assert told["diff"]["before"]["state"] == "absent"
    assert "alpha==1.0" in told["diff"]["after"]["distributions"]
    assert sorted(os.listdir(prefix.parent)) == ["env"]
    assert not (prefix / ".gpufleet-incomplete").exists()


def test_second_run_and_check_change_nothing(call, env, wheels):
    for check in (True, False):
        told = call(arguments(env, wheels, exact=True), check)
        assert told["changed"] is False, told
        assert told["diff"]["before"] == told["diff"]["after"]


def test_check_mode_on_a_bare_node_says_what_would_be(call, tmp_path, wheels):
    told = call(arguments(tmp_path / "env", wheels), check=True)
    assert told["changed"] is True
    assert told["diff"]["after"]["distributions"] == ["alpha==1.0", "beta==1.0"]
    assert told["reasons"] == ["it is absent"]
    assert list(tmp_path.iterdir()) == []


def test_another_version_is_noticed_and_healed(call, env, wheels):
    wanted = arguments(env, wheels, [("alpha", "2.0"), ("beta", "1.0")])
    told = call(wanted, check=True)
    assert (told["changed"], told["reasons"]) == (True, ["alpha is 1.0, wanted 2.0"])
    assert "alpha==2.0" in told["diff"]["after"]["distributions"]
    assert (site(env) / "alpha" / "__init__.py").read_text() == "version = '1.0'\n"
    assert call(wanted)["distributions"]["alpha"] == "2.0"
    assert (site(env) / "alpha" / "__init__.py").read_text() == "version = '2.0'\n"
    assert call(wanted)["changed"] is False


@pytest.mark.parametrize(
    "damage",
    [
        lambda where: (where / "alpha-1.0.dist-info" / "RECORD").unlink(),
        lambda where: shutil.rmtree(where / "alpha"),
        lambda where: (where / "alpha" / "__init__.py").write_text("changed by hand\n"),
        lambda where: (where / "~lpha").mkdir(),
    ],
    ids=["no RECORD", "package gone", "file changed", "leftover"],
)
def test_torn_distributions_are_healed(call, env, wheels, damage):
    damage(site(env))
    told = call(arguments(env, wheels))
    assert told["changed"] is True
    assert told["rebuilt"] is False
    assert (site(env) / "alpha" / "__init__.py").read_text() == "version = '1.0'\n"
    assert not list(site(env).glob("~*"))
    assert call(arguments(env, wheels))["changed"] is False


def test_exact_removes_the_rest(call, env, wheels):
    wanted = arguments(env, wheels, [("alpha", "1.0")])
    assert call(wanted)["changed"] is False
    told = call({**wanted, "exact": True})
    assert told["reasons"] == ["beta is superfluous"]
    assert "beta" not in told["distributions"]
    assert "pip" in told["distributions"]
    assert not (site(env) / "beta").exists()


def test_a_killed_creation_is_started_over(call, env, wheels):
    (env / ".gpufleet-incomplete").write_text('{"phase": "create"}')
    (env / "half").write_text("")
    told = call(arguments(env, wheels))
    assert (told["changed"], told["rebuilt"]) == (True, True)
    assert not (env / "half").exists()
    assert call(arguments(env, wheels))["changed"] is False


def test_a_killed_installation_goes_on(call, env, wheels):
    (env / ".gpufleet-incomplete").write_text('{"phase": "packages"}')
    (env / "kept").write_text("")
    shutil.rmtree(site(env) / "beta-1.0.dist-info")
    told = call(arguments(env, wheels))
    assert (told["changed"], told["rebuilt"]) == (True, False)
    assert (env / "kept").exists()
    assert not (env / ".gpufleet-incomplete").exists()


def test_a_dead_interpreter_is_made_anew(call, env, wheels):
    (env / "bin" / "python").unlink()
    (env / "bin" / "python").symlink_to("/nonexistent/python3")
    told = call(arguments(env, wheels))
    assert told["rebuilt"] is True
    assert "bin/python is not there" in told["reasons"][0]


def test_a_wrong_hash_is_refused_and_the_next_run_can_go_on(call, env, wheels, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    make_wheel(other, "alpha", "2.0")
    with zipfile.ZipFile(other / "alpha-2.0-py3-none-any.whl", "a") as archive:
        archive.writestr("alpha/evil.py", "import os")
    wanted = arguments(env, wheels, [("alpha", "2.0"), ("beta", "1.0")], find_links=[str(other)])
    told = call(wanted)
    assert told["failed"] is True
    assert "another sha256" in told["msg"]
    assert not (site(env) / "alpha" / "evil.py").exists()
    assert call(arguments(env, wheels))["changed"] is True
    assert call(arguments(env, wheels))["changed"] is False


@pytest.fixture
def indexes(tmp_path, wheels):
    """Three indexes as files: one that is not there, one with a wrong alpha 2.0, one that is well."""
    made = {"down": (tmp_path / "no-such-index").as_uri()}
    wrong = tmp_path / "wrong-wheels"
    wrong.mkdir()
    for name in ("alpha", "beta"):
        make_wheel(wrong, name, "2.0")
        with zipfile.ZipFile(wrong / f"{name}-2.0-py3-none-any.whl", "a") as archive:
            archive.writestr(f"{name}/evil.py", "import os")
    for kind, folder in (("wrong", wrong), ("well", wheels[0])):
        for name in ("alpha", "beta"):
            page = tmp_path / kind / name / "index.html"
            page.parent.mkdir(parents=True)
            links = [f'<a href="{one.as_uri()}">{one.name}</a>' for one in folder.glob(f"{name}-*.whl")]
            page.write_text("<!DOCTYPE html><html><body>" + "".join(links) + "</body></html>")
        made[kind] = (tmp_path / kind).as_uri()
    return made


@pytest.fixture
def said(monkeypatch):
    """The warnings as they are given; where ansible-core puts them depends on what else this process has loaded."""
    given: list[str] = []
    monkeypatch.setattr(basic.AnsibleModule, "warn", lambda _self, text, **_: given.append(text))
    return given


def from_indexes(env, wheels, *urls, **more):
    wanted = arguments(env, wheels, [("alpha", "2.0"), ("beta", "1.0")], find_links=[], no_index=False, **more)
    return {**wanted, "index_url": urls[0], "fallback_index_urls": list(urls[1:])}


def test_an_index_that_is_down_or_wrong_leads_to_the_next(call, env, wheels, indexes, said):
    told = call(from_indexes(env, wheels, indexes["down"], indexes["wrong"], indexes["well"]))
    assert told["distributions"]["alpha"] == "2.0", told
    assert not (site(env) / "alpha" / "evil.py").exists()
    assert [one.split(": ")[0] for one in said] == [indexes["down"], indexes["wrong"]]
    assert "another sha256" in said[1]


def test_when_no_index_serves_each_is_named_and_none_is_trusted(call, env, wheels, indexes):
    told = call(from_indexes(env, wheels, indexes["wrong"], indexes["down"]))
    assert told["failed"] is True
    assert told["msg"].startswith("2 places were tried in vain. ")
    assert indexes["wrong"] in told["msg"] and indexes["down"] in told["msg"]
    assert "another sha256" in told["msg"]
    assert not (site(env) / "alpha" / "evil.py").exists()


CONDA_STAND_IN = """#!/bin/sh
# Stands in for conda: it knows one channel, and leaves half an environment behind when it is given another.
echo "$@" >> {log}
for word; do [ "$before" != --prefix ] || prefix=$word; before=$word; done
mkdir -p "$prefix/conda-meta"
case " $* " in
    *" https://well.example/conda-forge "*) touch "$prefix/conda-meta/history" ;;
    *) touch "$prefix/half"; echo '{{"exception_name": "CondaHTTPError", "message": "HTTP 503"}}'; exit 1 ;;
esac
"""


def test_channels_that_are_down_lead_to_the_next(call, tmp_path, said):
    conda = tmp_path / "conda"
    conda.write_text(CONDA_STAND_IN.format(log=tmp_path / "log"))
    conda.chmod(0o755)
    wanted = {
        "prefix": str(tmp_path / "env"),
        "conda": str(conda),
        "channels": ["https://down.example/conda-forge"],
        "fallback_channels": [["https://well.example/conda-forge"], ["https://unasked.example/conda-forge"]],
    }
    told = call(wanted)
    assert told["changed"] is True and not told.get("failed"), told
    assert said[0].startswith("https://down.example/conda-forge: conda cannot reach its channel")
    assert not (tmp_path / "env" / "half").exists()
    assert "unasked" not in (tmp_path / "log").read_text()
    told = call({**wanted, "prefix": str(tmp_path / "two"), "fallback_channels": [["https://b.example/c"]]})
    assert told["failed"] is True
    assert "https://down.example/conda-forge" in told["msg"] and "https://b.example/c" in told["msg"]


def test_foreign_directories_are_never_touched(call, tmp_path, wheels):
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "thesis.txt").write_text("years of work")
    for state in ("present", "absent"):
        for check in (True, False):
            told = call(arguments(tmp_path / "env", wheels, state=state), check)
            assert told["failed"] is True
            assert "is left alone" in told["msg"]
    assert (tmp_path / "env" / "thesis.txt").read_text() == "years of work"


def test_absent(call, env, wheels):
    assert call({"prefix": str(env), "state": "absent"}, check=True)["changed"] is True
    assert env.exists()
    told = call({"prefix": str(env), "state": "absent"})
    assert (told["changed"], told["diff"]["after"]["state"]) == (True, "absent")
    assert list(env.parent.iterdir()) == []
    assert call({"prefix": str(env), "state": "absent"})["changed"] is False


def test_an_interrupted_removal_is_finished(call, tmp_path):
    (tmp_path / ".env.gpufleet-removed" / "lib").mkdir(parents=True)
    assert call({"prefix": str(tmp_path / "env"), "state": "absent"})["changed"] is True
    assert list(tmp_path.iterdir()) == []


def test_noise_of_the_callers_session_is_not_heard(call, env, wheels, monkeypatch, tmp_path):
    (tmp_path / "evil" / "alpha").mkdir(parents=True)
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "evil"))
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")
    told = call(arguments(env, wheels, [("alpha", "2.0"), ("beta", "1.0")]))
    assert told["distributions"]["alpha"] == "2.0"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"requirements": "alpha==1.0"}, "no hash for alpha"),
        ({"requirements": "-r other.txt"}, "flat"),
        ({"packages": ["numpy"]}, "manager: venv"),
        ({"python": "/nonexistent/python3"}, "no interpreter '/nonexistent/python3'"),
        ({"installer": "uv"}, "path of the uv executable"),
        ({"manager": "conda", "conda": "/nonexistent/conda", "python": "3.10"}, "conda is missing: /nonexistent/conda"),
        ({"manager": "conda", "channels": ["https://u:p4ss@x.example/c"]}, "credentials"),
        ({"extra_index_urls": ["https://x.example"], "require_hashes": False}, "anybody's"),
        ({"fallback_index_urls": [""], "require_hashes": False}, "any of these indexes"),
        ({"manager": "conda", "fallback_channels": [["https://u:p4ss@x.example/c"]]}, "credentials"),
        ({"requirements": "gamma==1.0 --hash=sha256:" + "0" * 64}, "no file for gamma==1.0"),
    ],
)
def test_wrong_wishes_are_named(call, tmp_path, wheels, args, message):
    told = call({**arguments(tmp_path / "env", wheels), **args})
    assert told["failed"] is True
    assert message in told["msg"]
    assert "p4ss" not in json.dumps(told)


def test_markers_of_the_lock_are_for_the_environments_python(call, env, wheels):
    lines = wheels[1]
    lock = f"{lines['alpha', '1.0']}\n" + lines["beta", "2.0"].replace(" ", " ; python_version < '3.0' ", 1)
    assert call({**arguments(env, wheels), "requirements": lock}, check=True)["changed"] is False
