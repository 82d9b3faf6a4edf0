# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""llm_model tries torch before it asks a model: what breaks torch is named with its remedy, and no model is asked.

The cause is one that a node without a card can have: the libstdc++ of an old compiler, made known to the loader in
/etc/ld.so.conf.d, stands before the system's. PyTorch, the loader and the message are the real ones.
"""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Fleet, Play, running, vars_of

BASE = "/opt/gpufleet"
RESULT = f"{BASE}/results/tiny_qwen2.json"
OLD = "/opt/old-compiler/lib"
CONF = "/etc/ld.so.conf.d/0-old-compiler.conf"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with running("torchcheck", {"n1": "debian12"}) as started:
        yield started


def site(fleet: Fleet, results: Path, *args: str, ok: bool = True, **more: Any) -> Play:
    """site.yml as far as a model needs it: git and llm_model, with a virtual environment."""
    variables = {
        **vars_of("inventories/demo/group_vars/all.yml"),
        "gpufleet_hosts": "nodes",
        "gpufleet_results_dir": str(results),
        "gpufleet_roles": ["git", "llm_model"],
        "llm_model_env_manager": "venv",
        "llm_model_wanted": ["tiny_qwen2"],
        **more,
    }
    return fleet.play("site.yml", *args, ok=ok, **variables)


def report(results: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((results / "n1.json").read_text(encoding="utf-8"))
    return found


def failures(results: Path) -> dict[str, dict[str, str]]:
    """What the node's report calls wrong, by the part of the role that says so."""
    return {one["message"].split(": ")[0]: one for one in report(results)["failures"]}


def plant(fleet: Fleet, tmp: Path) -> None:
    """The libstdc++ of a compiler of long ago, with its directory in the loader's configuration."""
    (tmp / "versions").write_text("GLIBCXX_3.4 { one; };\nCXXABI_1.3 { two; };\n", encoding="utf-8")
    (tmp / "old.c").write_text("int one; int two;\n", encoding="utf-8")
    library = tmp / "libstdc++.so.6"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-Wl,-soname,libstdc++.so.6", f"-Wl,--version-script={tmp / 'versions'}",
         "-o", str(library), str(tmp / "old.c")],
        check=True,
    )  # fmt: skip
    text = base64.b64encode(library.read_bytes()).decode()
    fleet.sh("n1", f"mkdir -p {OLD}; echo {text} | base64 -d > {OLD}/libstdc++.so.6; echo {OLD} > {CONF}; ldconfig")
    assert f"=> {OLD}/libstdc++.so.6" in fleet.sh("n1", "ldconfig -p").partition("libstdc++.so.6")[2].splitlines()[0]


def uproot(fleet: Fleet) -> None:
    fleet.sh("n1", f"rm -rf {CONF} /opt/old-compiler; ldconfig")


def test_1_a_model_answers_on_a_bare_node(fleet: Fleet, tmp_path: Path) -> None:
    site(fleet, tmp_path)
    assert report(tmp_path)["ok"], report(tmp_path)["failures"]
    assert report(tmp_path)["models"]["tiny_qwen2"]["answer"]


def test_2_what_breaks_torch_is_named_with_its_remedy_and_the_model_is_not_asked(fleet: Fleet, tmp_path: Path) -> None:
    plant(fleet, tmp_path)
    # Something to ask for: another prompt than the one that was answered. The environment itself is as it should be.
    wanted = [{"name": "tiny_qwen2", "smoke": {"prompt": "Once more"}}]
    asked = fleet.sh("n1", f"stat -c %Y {RESULT}")
    play = site(fleet, tmp_path, ok=False, llm_model_wanted=wanted)
    found = failures(tmp_path)
    assert set(found) == {"torch:tiny_cpu", "smoke:tiny_qwen2"}, found
    cause = found["torch:tiny_cpu"]
    assert f"{OLD}/libstdc++.so.6" in cause["message"]
    assert "/etc/ld.so.conf.d" in cause["remedy"] and "ldconfig" in cause["remedy"]
    assert "not asked" in found["smoke:tiny_qwen2"]["message"]
    said = " ".join(play.output.rpartition("n1: NOT OK")[2].split())
    assert " ".join(cause["message"].split()) in said and f"do: {cause['remedy'].splitlines()[0]}" in said, play.output
    assert fleet.sh("n1", f"stat -c %Y {RESULT}") == asked
    assert report(tmp_path)["models"]["tiny_qwen2"]["smoke"] == "not passed"

    # The next run finds the node no better: it tries torch again, although nothing is installed anew.
    site(fleet, tmp_path, ok=False, llm_model_wanted=wanted)
    assert set(failures(tmp_path)) == {"torch:tiny_cpu", "smoke:tiny_qwen2"}

    uproot(fleet)
    site(fleet, tmp_path, llm_model_wanted=wanted)
    assert report(tmp_path)["ok"] and report(tmp_path)["models"]["tiny_qwen2"]["answer"]
    assert fleet.sh("n1", f"stat -c %Y {RESULT}") != asked
    again = site(fleet, tmp_path, llm_model_wanted=wanted)
    assert again.changed("n1") == 0


def test_3_an_answer_from_before_a_repair_does_not_hide_a_torch_that_fails(fleet: Fleet, tmp_path: Path) -> None:
    """A package of the environment is damaged and healed while torch fails: the run after it must not be content."""
    wanted = [{"name": "tiny_qwen2", "smoke": {"prompt": "Once more"}}]
    plant(fleet, tmp_path)
    fleet.sh("n1", f"rm -rf {BASE}/envs/tiny_cpu/lib/python3*/site-packages/tqdm*")
    for _run in ("heals the environment", "finds it whole"):
        site(fleet, tmp_path, ok=False, llm_model_wanted=wanted)
        assert "torch:tiny_cpu" in failures(tmp_path), _run
    uproot(fleet)
    site(fleet, tmp_path, llm_model_wanted=wanted)
    assert report(tmp_path)["ok"]
