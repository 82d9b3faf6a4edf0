# SPDX-License-Identifier: GPL-3.0-or-later
"""inventories/local as a newcomer uses it: this machine, an ordinary user, one folder, a venv; nothing outside that folder.

The hub, the index and the git server are the depot's, run on loopback; everything else is what a newcomer's machine has.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from harness import ROOT, TOOL

USER = "gpufleet-newcomer"
# What the newcomer's machine has: its own Python with venv, git, nothing of ours.
PATH = "/usr/local/bin:/usr/bin:/bin"


def as_newcomer(home: Path, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script as the newcomer, with a login's environment."""
    variables = [f"{k}={v}" for k, v in {"HOME": home, "PATH": PATH, "LANG": "C.UTF-8", **environment}.items()]
    command = ["runuser", "-u", USER, "--", "env", "-i", *variables, "sh", "-euc", script]
    return subprocess.run(
        command, cwd=home / "clone", capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=1500
    )


@pytest.fixture
def newcomer():
    """An ordinary user with a home and a clone of their own, removed afterwards; the name is ours, nobody else's."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a user to be the newcomer")
    if subprocess.run(["/usr/bin/python3", "-c", "import ensurepip"], check=False).returncode:
        subprocess.run(["apt-get", "install", "-y", "-qq", "python3-venv"], check=True, capture_output=True)
    home = Path("/home") / USER
    subprocess.run(["userdel", "--remove", USER], check=False, capture_output=True)
    subprocess.run(["useradd", "--create-home", "--home-dir", str(home), "--shell", "/bin/sh", USER], check=True)
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        ).stdout
        (home / "clone").mkdir()
        present = b"\0".join(name for name in listed.split(b"\0") if name and (ROOT / name.decode()).exists())
        archive = subprocess.run(
            ["tar", "-C", str(ROOT), "--null", "-T", "-", "-c"], input=present, capture_output=True, check=True
        ).stdout
        subprocess.run(["tar", "-C", str(home / "clone"), "-x"], input=archive, check=True)
        subprocess.run(["chown", "-R", f"{USER}:{USER}", str(home)], check=True)
        yield home
    finally:
        subprocess.run(["pkill", "-KILL", "-u", USER], check=False)
        subprocess.run(["userdel", "--remove", USER], check=False, capture_output=True)


@pytest.fixture
def depot():
    """The depot's server on loopback."""
    server = subprocess.Popen([TOOL, "depot-local", "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        words = dict(server.stdout.readline().strip().split(": ", 1) for _line in range(2))
        yield words
    finally:
        server.terminate()
        server.wait(timeout=20)


def test_a_newcomers_first_model_answers_without_root_and_container(newcomer: Path, depot: dict) -> None:
    url, ca = depot["base"], depot["ca"]
    readable = newcomer / "ca.pem"
    readable.write_bytes(Path(ca).read_bytes())
    readable.chmod(0o644)
    overrides = {
        "exclusive": True,
        "ca_path": str(readable),
        "pypi": {"index_url": f"{url}/pypi/simple/"},
        "huggingface": {"endpoint": f"{url}/hub"},
        "rewrite": {"https://depot.gpufleet.test/": [f"{url}/"], "https://github.com/": [f"{url}/git/"]},
    }
    extra = {"gpufleet_mirror_overrides": overrides, "llm_model_wanted": ["tiny_qwen2"], "llm_model_python": "3.11"}
    (newcomer / "extra.json").write_text(json.dumps(extra))
    (newcomer / "extra.json").chmod(0o644)
    certificates = {k: v for k, v in os.environ.items() if k in ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE")}
    made = as_newcomer(newcomer, "tools/setup", **certificates)
    assert made.returncode == 0, made.stdout + made.stderr
    before = {p.name for p in newcomer.iterdir()}
    run = ". .venv/bin/activate; ansible-playbook site.yml -i inventories/local -e @../extra.json"
    for number, changed in ((1, True), (2, False)):
        done = as_newcomer(newcomer, run)
        assert done.returncode == 0, f"run {number}\n{done.stdout[-5000:]}{done.stderr[-2000:]}"
        assert ("changed=0" not in done.stdout) is changed, done.stdout[-3000:]
    report = json.loads((newcomer / "gpufleet" / "results" / "this_machine.json").read_text())
    assert report["ok"], report["failures"]
    assert report["models"]["tiny_qwen2"]["answer"]
    assert any("left out" in note and "nginx" in note for note in report["notes"])
    # Everything is under the one folder, but for Ansible's own.
    assert {p.name for p in newcomer.iterdir()} - before <= {"gpufleet", ".ansible", ".ansible_async", ".cache"}
