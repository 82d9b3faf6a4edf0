# SPDX-License-Identifier: GPL-3.0-or-later
"""A node that knows no name but its own: everything that site.yml fetches has to pass the proxy of its environment."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT, Fleet, images_at_night, running, vars_of, wait_for

DEPOT = "https://depot.gpufleet.test"
LOG = "/run/proxy.jsonl"


# Which package manager fetches what: of nginx.org, or where that has no packages of the distribution
PACKAGES = {"rhel9-like": ("/rpm/nginx/", "libdnf"), "arch-like": ("/pacman/base/", "pacman/")}


@pytest.fixture(scope="module", params=images_at_night())
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """n1 resolves nothing, neither the depot nor the distribution's mirror; n2 is the proxy."""
    with running("proxy", {"n1": request.param, "n2": "debian12"}) as up:
        code = shlex.quote((ROOT / "tests/fleet/small_proxy.py").read_text(encoding="utf-8"))
        up.sh("n2", f"printf %s {code} > /run/proxy.py && systemd-run -q -u proxy python3 /run/proxy.py 3128 {LOG}")
        # Both files are mounted, so they are written in place.
        up.sh(
            "n1",
            "kept=$(grep -v depot /etc/hosts) && echo \"$kept\" > /etc/hosts; echo 'nameserver 127.0.0.1' > /etc/resolv.conf",
        )
        assert up.rc("n1", "getent hosts depot.gpufleet.test") != 0
        wait_for(
            "the proxy listens",
            lambda: up.rc("n2", "python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 3128))'") == 0,
        )
        yield up


def test_everything_from_bare_to_answer_passes_the_proxy(fleet: Fleet, tmp_path: Path) -> None:
    address = fleet.sh("n2", "hostname -I").split()[0]
    proxy = f"http://{address}:3128"
    variables: dict[str, Any] = {
        **vars_of("inventories/demo/group_vars/all.yml"),
        "gpufleet_hosts": "n1",
        "gpufleet_results_dir": str(tmp_path),
        "gpufleet_environment": {"http_proxy": proxy, "https_proxy": proxy, "no_proxy": "localhost,127.0.0.1"},
        # On the way: a conda channel that is down leads to the next one.
        "llm_model_mirror_overrides": {
            "conda": {"custom_channels": {"conda-forge": f"{DEPOT}/down"}, "fallback_aliases": [f"{DEPOT}/conda"]}
        },
    }
    fleet.fault(path="^/down/", status=503)
    since = len(fleet.depot_log())
    play = fleet.play("site.yml", **variables)
    report = json.loads((tmp_path / "n1.json").read_text(encoding="utf-8"))
    assert report["ok"] and set(report["models"]) == set(variables["llm_model_wanted"])
    rows = fleet.depot_log()[since:]
    assert {row["client"] for row in rows} == {address}
    # The package manager (the official nginx), conda, pip, uv, git, the hub's client, and the collection's own downloads
    for start, agent in (
        PACKAGES.get(fleet.nodes["n1"], ("/apt/nginx/", "APT")),
        *([("/keys/", "")] if fleet.nodes["n1"] != "arch-like" else []),  # pacman brings its keys itself
        ("/installers/", ""),
        ("/conda/conda-forge/", "conda/"),
        ("/pypi/", "pip/"),
        ("/pypi/", "uv/"),
        ("/git/", "git/"),
        ("/hub/", "hf_hub/"),
    ):
        assert [row for row in rows if row["path"].startswith(start) and agent in row["agent"]], (start, agent)
    if fleet.nodes["n1"] not in PACKAGES:  # the distribution's own packages come from its mirror, over http
        log = [json.loads(line) for line in fleet.sh("n2", f"cat {LOG}").splitlines()]
        plain = [row["target"] for row in log if row["method"] == "GET"]
        assert [target for target in plain if "/git_" in target and target.endswith(".deb")]
    assert [row for row in rows if row["path"].startswith("/down/conda-forge/") and row["status"] == 503]
    assert f"{DEPOT}/conda/conda-forge instead" in " ".join(play.output.split())
    # Nothing of it is left behind in the node's own configuration.
    assert fleet.sh("n1", f"grep -rl {address}:3128 /etc /root 2>/dev/null", check=False) == ""
