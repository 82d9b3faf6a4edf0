# SPDX-License-Identifier: GPL-3.0-or-later
"""inventories/local as a newcomer uses it: this machine, an ordinary user, one folder, a venv; nothing outside that folder.

The hub, the index and the git server are the depot's, run on loopback; everything else is what a newcomer's machine has.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT, TOOL

USER = "gpufleet-newcomer"


@pytest.fixture
def newcomer(tmp_path_factory):
    """An ordinary user with an empty home, removed afterwards; the name is ours, so nobody else's account is touched."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a user to be the newcomer")
    home = tmp_path_factory.mktemp("newcomer-home")
    try:
        pwd.getpwnam(USER)
    except KeyError:
        subprocess.run(["useradd", "--no-create-home", "--home-dir", str(home), "--shell", "/bin/sh", USER], check=True)
    shutil.chown(home, USER, USER)
    for folder in (home, *list(home.parents)[:3]):
        if str(folder).startswith("/tmp/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    yield home
    subprocess.run(["userdel", USER], check=False)


@pytest.fixture
def depot():
    """The depot's server on loopback."""
    server = subprocess.Popen([TOOL, "depot-local", "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield json.loads(server.stdout.readline())
    finally:
        server.terminate()
        server.wait(timeout=20)


def test_a_newcomers_first_model_answers_without_root_and_container(
    newcomer: Path, depot: dict, tmp_path: Path
) -> None:
    url, ca = depot["url"], depot["ca"]
    overrides = {
        "exclusive": True,
        "ca_path": ca,
        "pypi": {"index_url": f"{url}/pypi/simple/"},
        "huggingface": {"endpoint": f"{url}/hub"},
        "rewrite": {"https://depot.gpufleet.test/": [f"{url}/"], "https://github.com/": [f"{url}/git/"]},
    }
    extra = {"gpufleet_mirror_overrides": overrides, "llm_model_wanted": ["tiny_qwen2"]}
    # The clone and the tool chain as the newcomer would have them: readable, not theirs.
    command = [
        "runuser", "-u", USER, "--", "env", "-i", f"HOME={newcomer}", f"PATH={Path(sys.executable).parent}:/usr/bin:/bin",
        "LANG=C.UTF-8", f"ANSIBLE_HOME={newcomer}/.ansible",
        "ansible-playbook", "site.yml", "-i", "inventories/local", "-e", json.dumps(extra),
    ]  # fmt: skip
    for run, changed in ((1, True), (2, False)):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, f"run {run}\n{done.stdout[-5000:]}{done.stderr[-2000:]}"
        assert ("changed=0" not in done.stdout) is changed, done.stdout[-3000:]
    report = json.loads((newcomer / "gpufleet" / "results" / "this_machine.json").read_text())
    assert report["ok"], report["failures"]
    assert report["models"]["tiny_qwen2"]["answer"]
    assert any("left out" in note and "nginx" in note for note in report["notes"])
    # Everything is under the one folder, but for Ansible's and the shell's own.
    assert {p.name for p in newcomer.iterdir()} <= {"gpufleet", ".ansible", ".cache", ".local", ".config"}
