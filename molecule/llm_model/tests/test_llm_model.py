# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role llm_model on real nodes: models answer, what drifts is seen and healed, what must not be touched is not."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[3]
CATALOG = ROOT / "roles" / "llm_model" / "catalog"
BASE = "/opt/gpufleet"
MODELS = ["tiny_qwen2", "tiny_whisper", "tiny_chatglm"]
CODE = f"{BASE}/code/tiny_qwen2"
WEIGHTS = f"{BASE}/weights/tiny_whisper"
PYTHON = f"{BASE}/envs/tiny_cpu/bin/python"


def catalogued(name: str) -> dict[str, Any]:
    return yaml.safe_load((CATALOG / name / "model.yml").read_text(encoding="utf-8"))


def said(node: Any, command: str) -> str:
    run = node.run(command)
    assert run.rc == 0, run.stderr
    return run.stdout.strip()


# --- what is there ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_the_model_answered(node: Any, model: str) -> None:
    result = json.loads(node.file(f"{BASE}/results/{model}.json").content_string)
    assert result["ok"] is True and result["answer"].strip()
    assert result["device"] == "cpu" and result["precision"] == "float32"
    assert result["tokens"] > 0 and result["load_seconds"] > 0 and result["peak_memory_bytes"] > 50_000_000
    assert result["versions"]["torch"] == "2.13.0+cpu"


def test_the_clone_is_at_the_commit(node: Any) -> None:
    assert said(node, f"git -C {CODE} rev-parse HEAD") == catalogued("tiny_qwen2")["code"]["commit"]
    assert said(node, f"git -C {CODE} status --porcelain") == ""


def test_the_environment_is_the_lock(node: Any) -> None:
    script = (
        "import importlib.metadata as m, json; print(json.dumps({d.metadata['Name'].lower().replace('_', '-'):"
        " d.version for d in m.distributions()}))"
    )
    there = json.loads(said(node, f'{PYTHON} -I -c "{script}"'))
    lock = (CATALOG / "tiny_qwen2" / "requirements.lock").read_text(encoding="utf-8")
    wanted = dict(line.split(" ")[0].split("==") for line in lock.splitlines() if "==" in line and line[0].isalnum())
    assert len(wanted) > 20
    assert {name: there.get(name) for name in wanted} == wanted


@pytest.mark.parametrize("model", MODELS)
def test_the_weights_are_those_of_the_manifest(node: Any, model: str) -> None:
    for path, row in catalogued(model)["weights"]["files"].items():
        assert said(node, f"sha256sum {BASE}/weights/{model}/{path}").split()[0] == row["sha256"]
    assert not node.file(f"{BASE}/weights/{model}/pytorch_model.bin").exists
    record = json.loads(node.file(f"{BASE}/weights/{model}/.gpufleet/verified.json").content_string)
    assert set(record["files"]) == set(catalogued(model)["weights"]["files"])


def test_the_account_that_runs_models_can_change_none_of_it(node: Any) -> None:
    assert node.user("llm").shell != "/bin/bash"
    for path in (f"{WEIGHTS}/config.json", PYTHON, CODE, f"{BASE}/results"):
        assert node.run(f"runuser -u llm -- test -r {path}").rc == 0, path
        assert node.run(f"runuser -u llm -- test -w {path}").rc != 0, path


# --- drift ------------------------------------------------------------------------------------------------------------

DRIFT = {
    "answer gone": ("rm {base}/results/tiny_whisper.json", "smoke:tiny_whisper", {}),
    "answer of another question": (
        "sed -i 's/\"fingerprint\": \"./\"fingerprint\": \"x/' {base}/results/tiny_whisper.json",
        "smoke:tiny_whisper",
        {},
    ),
    "commit moved": ("git -C {code} -c advice.detachedHead=false checkout -q --orphan other && git -C {code} -c user.name=t "
        "-c user.email=t@example.org commit -qm moved", "code:tiny_qwen2", {}),
    "clone gone": ("rm -rf {code}", "code:tiny_qwen2", {}),
    "a small file of the weights edited": ("sed -i s/64/65/ {weights}/config.json", "weights:tiny_whisper", {}),
    "weights cut": ("truncate -s 1000000 {weights}/model.safetensors", "weights:tiny_whisper", {}),
    "weights gone": ("rm {weights}/model.safetensors", "weights:tiny_whisper", {}),
    "a byte of the weights flipped": (
        "printf X | dd of={weights}/model.safetensors bs=1 seek=5000000 conv=notrunc",
        "weights:tiny_whisper",
        {},
    ),
    "a byte flipped and the time set back": (
        "touch -r {weights}/model.safetensors /tmp/then; printf X | dd of={weights}/model.safetensors bs=1 seek=5000000"
        " conv=notrunc; touch -r /tmp/then {weights}/model.safetensors",
        "weights:tiny_whisper",
        {"llm_model_deep": True},
    ),
    "a package gone": ("rm -r {site}/idna {site}/idna-*.dist-info", "environment:tiny_cpu", {}),
    "a package swapped": (
        "mv {site}/idna-3.20.dist-info {site}/idna-3.10.dist-info && sed -i s/^Version:.*/Version:\\ 3.10/"
        " {site}/idna-3.10.dist-info/METADATA",
        "environment:tiny_cpu",
        {},
    ),
    "a tool gone": ("rm -r {tools}/filelock {tools}/filelock-*.dist-info", "tools", {}),
    "results closed": ("rm -rf {base}/results", "directory:results", {}),
}  # fmt: skip


@pytest.mark.parametrize("case", DRIFT)
def test_drift_is_seen_and_healed(node: Any, node_name: str, play: Callable[..., Any], case: str) -> None:
    command, key, extra = DRIFT[case]
    site = said(node, f"{PYTHON} -c 'import sysconfig; print(sysconfig.get_path(\"purelib\"))'")
    tools = said(node, f"{BASE}/tools/bin/python -c 'import sysconfig; print(sysconfig.get_path(\"purelib\"))'")
    broken = node.run("sh -c %s", command.format(base=BASE, code=CODE, weights=WEIGHTS, site=site, tools=tools))
    assert broken.rc == 0, broken.stderr
    seen = play(extra, "--check", "--diff")
    assert seen.rc == 0 and seen.changed[node_name] == 1 and f"after: {key}" in seen.output, seen
    healed = play(extra)
    assert healed.rc == 0 and healed.changed[node_name] > 0, healed
    assert play(extra, "--check").changed == {node_name: 0}
    assert (
        said(node, f"sha256sum {WEIGHTS}/model.safetensors").split()[0]
        == (catalogued("tiny_whisper")["weights"]["files"]["model.safetensors"]["sha256"])
    )


# --- what is refused ----------------------------------------------------------------------------------------------------


def test_a_clone_with_changes_is_kept_until_consent_is_given(
    node: Any, node_name: str, play: Callable[..., Any]
) -> None:
    said(node, f"sh -c 'echo mine >> {CODE}/cli_demo.py'")
    refused = play()
    assert refused.rc != 0 and "cli_demo.py" in refused.output and "llm_model_overwrite_dirty" in refused.output, (
        refused
    )
    assert "mine" in node.file(f"{CODE}/cli_demo.py").content_string
    assert refused.changed[node_name] == 0
    allowed = play({"llm_model_overwrite_dirty": True})
    assert allowed.rc == 0, allowed
    assert "mine" not in node.file(f"{CODE}/cli_demo.py").content_string


def test_a_commit_that_does_not_exist_is_an_error_in_words(node: Any, play: Callable[..., Any]) -> None:
    missing = "0123456789" * 4
    failed = play({"llm_model_wanted": [{"name": "tiny_qwen2", "code": {"commit": missing}}]})
    assert failed.rc != 0 and "there is no such commit" in failed.output and missing in failed.output, failed
    assert said(node, f"git -C {CODE} rev-parse HEAD") == catalogued("tiny_qwen2")["code"]["commit"]


def test_a_disk_that_is_too_small_is_refused_before_the_first_byte(
    node: Any, node_name: str, play: Callable[..., Any]
) -> None:
    weights = {"manifest": "partial", "files": {}, "total_bytes": 10**15, "revision": "1" * 40}
    failed = play({"llm_model_wanted": [{"name": "tiny_whisper", "weights": weights}]})
    assert failed.rc != 0 and "1000000.0 GB are still to come" in failed.output, failed
    assert failed.changed[node_name] == 0


def test_a_model_that_does_not_answer_fails_in_words_and_the_others_are_asked(
    node: Any, play: Callable[..., Any]
) -> None:
    refused = {"name": "tiny_chatglm", "smoke": {"trust_remote_code": False}}
    failed = play({"llm_model_wanted": [refused, {"name": "tiny_qwen2", "smoke": {"prompt": "Who are you today?"}}]})
    assert failed.rc != 0 and "smoke:tiny_chatglm" in failed.output and "trust_remote_code" in failed.output, failed
    assert node.file(f"{BASE}/results/tiny_qwen2.json").exists
    assert play({"llm_model_wanted": [refused], "llm_model_smoke_required": False}).rc == 0
    assert play().rc == 0


# --- removal ------------------------------------------------------------------------------------------------------------


def test_a_model_that_is_wanted_no_more_goes_and_shared_parts_stay(
    node: Any, node_name: str, play: Callable[..., Any]
) -> None:
    extra = {"llm_model_wanted": ["tiny_qwen2"], "llm_model_removed": ["tiny_whisper"]}
    assert play(extra).rc == 0
    assert not node.file(WEIGHTS).exists and not node.file(f"{BASE}/results/tiny_whisper.json").exists
    assert node.file(PYTHON).exists
    assert play(extra).changed == {node_name: 0}


def test_absent_removes_everything_and_conda_stays(node: Any, node_name: str, play: Callable[..., Any]) -> None:
    conda = node.file(f"{BASE}/conda").exists
    gone = play({"llm_model_state": "absent"})
    assert gone.rc == 0, gone
    left = [
        name for name in ("code", "weights", "envs", "results", "tools", "home") if node.file(f"{BASE}/{name}").exists
    ]
    assert left == [] and not node.user("llm").exists
    assert node.file(f"{BASE}/conda").exists is conda
    assert play({"llm_model_state": "absent"}).changed == {node_name: 0}
