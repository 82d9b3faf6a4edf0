# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can go wrong with a model's parts on the way, with the real huggingface_hub, git and uv on a node.

On Debian 12; on every distribution at night.
"""

from __future__ import annotations

import re
import secrets
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from harness import Fleet, Play, images_at_night, running

BASE = "/opt/gpufleet"
DEPOT = "https://depot.gpufleet.test"
WEIGHTS = f"{BASE}/weights/tiny_whisper"
FILE = "model.safetensors"
SHA256 = "4a8e06e00efc968db265be50f5472b582699677f6b411dbd399a92f558fc5e23"
SIZE = 6258232
WANTED = {
    "llm_model_mirror_profile": "depot",
    "llm_model_env_manager": "venv",
    "llm_model_wanted": ["tiny_whisper", "tiny_qwen2"],
}


@pytest.fixture(scope="module", params=images_at_night())
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """One node on which both models answer."""
    with running("modelfaults", {"n1": request.param}) as up:
        up.role("git")
        up.role("llm_model", **WANTED)
        yield up


@pytest.fixture(autouse=True)
def served_well(fleet: Fleet) -> Iterator[None]:
    """Every test starts and ends with a depot that serves well, and leaves models that answer."""
    fleet.clear_faults()
    yield
    fleet.clear_faults()


def model(fleet: Fleet, *args: str, ok: bool | None = True, **more: Any) -> Play:
    return fleet.role("llm_model", *args, ok=ok, **{**WANTED, **more})


def transfers(fleet: Fleet, since: int, name: str = FILE) -> list[tuple[str, int]]:
    """(Range, bytes sent) of every answer with that file since a line of the log."""
    rows = [
        row for row in fleet.depot_log()[since:] if row["method"] == "GET" and row["path"].split("?")[0].endswith(name)
    ]
    return [(row["range"], row["bytes"]) for row in rows]


def whole(fleet: Fleet) -> None:
    assert fleet.sh("n1", f"sha256sum {WEIGHTS}/{FILE}").split()[0] == SHA256


def test_a_cut_transfer_is_continued_by_the_next_run(fleet: Fleet) -> None:
    fleet.sh("n1", f"rm {WEIGHTS}/{FILE}")
    fleet.fault(path=f"/hub/.*{FILE}", cut_after_bytes=1_200_000)
    fleet.fault(path="/modelscope", status=503)
    broken = model(fleet, ok=False)
    assert "could not be had" in broken.output and "the next run goes on from there" in broken.output
    assert fleet.rc("n1", f"test -e {WEIGHTS}/.gpufleet/verified.json") != 0
    fleet.clear_faults()
    since = len(fleet.depot_log())
    model(fleet)
    (asked, sent), *rest = transfers(fleet, since)
    assert rest == []
    start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])  # type: ignore[index]
    assert start > 1_000_000 and sent == SIZE - start
    whole(fleet)


def test_a_wrong_sha256_on_one_hub_leads_to_the_next(fleet: Fleet) -> None:
    fleet.sh("n1", f"rm {WEIGHTS}/{FILE}")
    fleet.fault(path=f"/hub/.*{FILE}", corrupt=True)
    since = len(fleet.depot_log())
    model(fleet)
    assert any(row["path"].startswith("/modelscope") for row in fleet.depot_log()[since:])
    whole(fleet)


def test_a_hub_that_is_down_leads_to_the_next(fleet: Fleet) -> None:
    fleet.sh("n1", f"rm {WEIGHTS}/{FILE}")
    fleet.fault(path="/hub/", status=503)
    model(fleet)
    whole(fleet)


def test_wrong_everywhere_is_an_error_in_words_and_leaves_no_wrong_file(fleet: Fleet) -> None:
    fleet.sh("n1", f"rm {WEIGHTS}/{FILE}")
    fleet.fault(path="safetensors", corrupt=True)
    broken = model(fleet, ok=False)
    assert "has the sha256" in broken.output and SHA256 in broken.output
    assert fleet.rc("n1", f"test -e {WEIGHTS}/{FILE}") != 0
    fleet.clear_faults()
    model(fleet)
    whole(fleet)


def test_a_list_of_files_that_only_the_hub_knows_is_fetched_once_and_kept(fleet: Fleet) -> None:
    partial = {"manifest": "partial", "files": {FILE: {"sha256": SHA256}}, "total_bytes": 7_000_000}
    wanted = [{"name": "tiny_whisper", "weights": partial}]
    fleet.sh("n1", f"rm -rf {WEIGHTS}")
    assert model(fleet, llm_model_wanted=wanted).changed("n1") > 0
    whole(fleet)
    since = len(fleet.depot_log())
    assert model(fleet, llm_model_wanted=wanted).changed("n1") == 0
    assert fleet.depot_log()[since:] == []


def test_a_torn_package_is_found_by_reading_every_file_and_healed(fleet: Fleet) -> None:
    fleet.sh("n1", f"rm -rf {BASE}/envs/tiny_cpu/lib/python3.11/site-packages/torch/lib")
    healed = model(fleet, llm_model_deep=True)
    assert "environment:tiny_cpu" in healed.drift("n1")
    assert (
        fleet.sh("n1", f"{BASE}/envs/tiny_cpu/bin/python -c 'import torch; print(torch.ones(2).sum().item())'") == "2.0"
    )
    assert model(fleet, llm_model_deep=True).changed("n1") == 0


def test_a_transfer_that_outlived_a_killed_run_is_waited_for_not_doubled(fleet: Fleet) -> None:
    fleet.sh("n1", f"rm {WEIGHTS}/{FILE}")
    # Another process holds the folder, as the transfer of a killed run does.
    fleet.sh(
        "n1",
        f"nohup flock {WEIGHTS}/.gpufleet/lock sh -c 'touch /tmp/held; while [ -e /tmp/held ]; do sleep 0.2; done'"
        " >/dev/null 2>&1 & while [ ! -e /tmp/held ]; do sleep 0.1; done",
    )
    since = len(fleet.depot_log())
    fleet.sh("n1", "(sleep 15; rm /tmp/held) >/dev/null 2>&1 &")
    model(fleet)
    assert len(transfers(fleet, since)) == 1
    whole(fleet)


def test_the_commit_can_be_moved_there_and_back(fleet: Fleet) -> None:
    first = "77b0e2273ffed5beb46b3ae61d5b7beeec3494ed"
    model(fleet, llm_model_wanted=["tiny_whisper", {"name": "tiny_qwen2", "code": {"commit": first}}])
    assert fleet.sh("n1", f"git -C {BASE}/code/tiny_qwen2 rev-parse HEAD") == first
    moved = model(fleet)
    assert moved.drift("n1") >= {"code:tiny_qwen2"}
    assert fleet.sh("n1", f"git -C {BASE}/code/tiny_qwen2 rev-parse HEAD") == "5bdc722c7a17fb864401e9b775805d438488eac4"


def test_indexes_and_places_of_code_that_are_down_or_wrong_lead_to_the_next(fleet: Fleet) -> None:
    # The same index under three names: the first is down, the files of the second are wrong, the third is well.
    indexes = [f"{DEPOT}/pypi/simple/cpu/", f"{DEPOT}/pypi/simple/cu121/", f"{DEPOT}/pypi/simple/"]
    overrides = {
        "pypi": {"index_url": indexes[0], "fallback_urls": indexes[1:]},
        "rewrite": {"https://github.com/": [f"{DEPOT}/down/", f"{DEPOT}/git/"]},
    }
    # One distribution of the tools (pip) and one of the models' environment (uv)
    for env in ("tools", "envs/tiny_cpu"):
        fleet.sh("n1", f"rm -rf {BASE}/{env}/lib/python3*/site-packages/tqdm*")
    fleet.sh("n1", f"rm -rf {BASE}/envs/.uv-cache {BASE}/code/tiny_qwen2")
    fleet.fault(path="^/pypi/simple/cpu/|^/down/", status=503)
    fleet.fault(path=r"^/pypi/files/cu121/.*\.whl$", corrupt=True)
    since = len(fleet.depot_log())
    play = model(fleet, llm_model_mirror_overrides=overrides)
    rows = [row for row in fleet.depot_log()[since:] if row["method"] == "GET"]
    for agent in ("pip/", "uv/"):
        seen = [row["path"] for row in rows if row["agent"].startswith(agent)]
        order = [next((i for i, path in enumerate(seen) if path.startswith(start)), None)
                 for start in ("/pypi/simple/cpu/", "/pypi/files/cu121/tqdm", "/pypi/files/tqdm")]  # fmt: skip
        assert None not in order and order == sorted(order), (agent, seen)
    said = " ".join(play.output.split())
    assert f"{indexes[0]}: " in said and f"{indexes[1]}: a file has another sha256" in said
    git = [row["path"] for row in rows if row["agent"].startswith("git/")]
    assert git[0].startswith("/down/") and git[-1].startswith("/git/")
    assert fleet.sh("n1", f"git -C {BASE}/code/tiny_qwen2 config remote.origin.url").startswith(f"{DEPOT}/git/")
    for env in ("tools", "envs/tiny_cpu"):
        assert fleet.sh("n1", f"{BASE}/{env}/bin/python -c 'import tqdm; print(tqdm.__name__)'") == "tqdm"
    assert model(fleet).changed("n1") == 0


def test_the_token_reaches_the_hub_and_nothing_else(fleet: Fleet) -> None:
    token = f"hf_{secrets.token_hex(16)}"
    fleet.sh("n1", f"rm {WEIGHTS}/{FILE}")
    fleet.fault(path=f"/hub/.*{FILE}", bytes_per_second=2_000_000)  # long enough to be seen at work
    watch = "while [ -e /run/watch ]; do cat /proc/[0-9]*/cmdline 2>/dev/null >> /run/argv; sleep 0.1; done"
    fleet.sh("n1", f"touch /run/watch; nohup sh -c '{watch}' >/dev/null 2>&1 &")
    since = len(fleet.depot_log())
    play = fleet.play(
        "role.yml",
        "-vvv",
        "--diff",
        env={"HF_TOKEN": token},
        role="llm_model",
        llm_model_hf_token_endpoints=[f"{DEPOT}/hub"],
        **WANTED,
    )
    fleet.sh("n1", "rm /run/watch")
    rows = fleet.depot_log()[since:]
    assert [row for row in rows if row["path"].split("?")[0].endswith(FILE) and row["authorization"] == "yes"]
    assert all(row["path"].startswith("/hub/") for row in rows if row["authorization"])
    whole(fleet)
    assert "model_snapshot" in play.output and token not in play.output
    assert fleet.rc("n1", "grep -qa model_hub.py /run/argv") == 0, "the process that asks the hub was not seen"
    places = f"/run/argv /root /home /tmp /var/tmp /var/log /etc {BASE}/results {WEIGHTS}"
    assert fleet.sh("n1", f"grep -rlaF {token} {places} 2>/dev/null", check=False) == ""
    assert fleet.rc("n1", f"journalctl --no-pager -o export | grep -qaF {token}") == 1
    mine = subprocess.run(
        ["sh", "-c", 'grep -rlaF "$0" "$HOME"/.ansible* "${GPUFLEET_CACHE:-$HOME/.cache/gpufleet-llm}"/fleets', token],
        capture_output=True,
        text=True,
        check=False,
    )
    assert mine.stdout == ""
