# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From wanted models to what is looked at, what is done, and what is told."""

from __future__ import annotations

import json
import pathlib

import pytest
from ansible_collections.gpufleet.llm.plugins.plugin_utils import catalog, catalog_node
from ansible_collections.gpufleet.llm.plugins.plugin_utils.mirrors import resolve

ROOT = pathlib.Path(__file__).resolve().parents[4]
SHELF = str(ROOT / "roles" / "llm_model" / "catalog")
SETTINGS = {
    "state": "present", "root": "/r", "manager": "conda", "python": "3.11", "interpreter": "", "user": "llm", "group": "llm",
    "smoke": True, "exact": False, "tools": {"uv": "1"}, "tools_python": "3.11", "removed": [], "packages": [],
}  # fmt: skip


def models(*wanted):
    return catalog.wanted_models(list(wanted), [SHELF])


def by_key(items):
    return {item.get("key", f"{item['kind']}:{item.get('name', item.get('path'))}"): item for item in items}


def test_every_part_of_a_model_is_looked_at_and_a_shared_environment_once():
    seen = by_key(catalog_node.items(models("tiny_qwen2", "tiny_whisper"), SETTINGS))
    assert {
        "disk", "user:llm", "directory:root", "directory:code", "directory:weights", "directory:envs", "directory:results",
        "directory:home", "tools", "code:tiny_qwen2", "environment:tiny_cpu", "weights:tiny_qwen2", "smoke:tiny_qwen2",
        "result:tiny_qwen2", "weights:tiny_whisper", "smoke:tiny_whisper", "result:tiny_whisper",
    } == set(seen)  # fmt: skip
    assert seen["environment:tiny_cpu"]["kind"] == "conda_env"
    assert seen["environment:tiny_cpu"]["python"] == "3.11"
    assert seen["environment:tiny_cpu"]["requirements"]["torch"] == "2.13.0+cpu"
    assert seen["weights:tiny_qwen2"]["files"]["config.json"]["size"] > 0
    assert seen["directory:home"]["owner"] == "llm"


def test_nothing_wanted_needs_nothing():
    assert set(by_key(catalog_node.items([], {**SETTINGS, "user": ""}))) == {"disk"}


def test_a_list_of_files_that_only_the_hub_knows_is_looked_up_on_the_node():
    item = by_key(catalog_node.items(models("chatglm3_6b"), SETTINGS))["weights:chatglm3_6b"]
    assert item["manifest"] == "/r/weights/chatglm3_6b/.gpufleet/manifest.json"
    assert len(item["fingerprint"]) == 64 and "files" not in item


def test_no_account_and_no_smoke_test():
    seen = by_key(catalog_node.items(models("tiny_qwen2"), {**SETTINGS, "user": "", "group": "", "smoke": False}))
    assert "smoke:tiny_qwen2" not in seen and "user:llm" not in seen
    assert "owner" not in seen["directory:home"]


@pytest.mark.parametrize(
    ("manager", "python", "interpreter", "expected"),
    [
        ("conda", "3.13", "", "3.11"),
        ("conda", "3.13", "3.12", "3.11"),
        ("venv", "3.12", "", "3.12"),
        ("venv", "3.9", "", "3.11"),
        ("venv", "3.12", "3.10", "3.10"),
        ("venv", "3.12", "/usr/bin/python3.10", ""),
    ],
)
def test_the_python_of_an_environment(manager, python, interpreter, expected):
    settings = {**SETTINGS, "manager": manager, "python": python, "interpreter": interpreter}
    assert catalog_node.python_of(models("qwen1_5_0_5b_chat")[0], settings) == expected


def test_a_python_that_a_model_does_not_run_on_is_refused():
    with pytest.raises(catalog.CatalogError, match=r"runs on Python 3\.11, not on 3\.12"):
        catalog_node.python_of(models("tiny_qwen2")[0], {**SETTINGS, "manager": "venv", "interpreter": "3.12"})


def test_absent_leaves_what_other_roles_put_there():
    items = catalog_node.items([], {**SETTINGS, "state": "absent"})
    assert {item.get("path") for item in items} == {
        "/r/code", "/r/weights", "/r/envs", "/r/results", "/r/tools", "/r/home", None,
    }  # fmt: skip
    assert {"kind": "user", "name": "llm", "state": "absent"} in items


def test_removed_models_go_and_a_shared_environment_stays():
    removed = [{"name": "tiny_whisper", "environment": "tiny_cpu"}, {"name": "old", "environment": "old"}]
    paths = catalog_node.removed_paths(models("tiny_qwen2"), {**SETTINGS, "removed": removed})
    assert "/r/weights/tiny_whisper" in paths and "/r/envs/old" in paths and "/r/envs/tiny_cpu" not in paths
    with pytest.raises(catalog.CatalogError, match="in llm_model_wanted and in llm_model_removed"):
        catalog_node.removed_paths(models("tiny_whisper"), {**SETTINGS, "removed": removed})


# --- what to do -----------------------------------------------------------------------------------------------------------


def looked(drift, **seen):
    return {"drift": drift, "seen": {"disk": {"free_bytes": 10**12}, **seen}}


def test_only_what_differs_is_done():
    work = catalog_node.work(models("tiny_qwen2", "tiny_whisper"), SETTINGS, looked(["code:tiny_qwen2"]))
    assert [row["name"] for row in work["code"]] == ["tiny_qwen2"]
    assert (work["environments"], work["weights"], work["smoke"], work["tools"]) == ([], [], [], False)


def test_a_healed_environment_is_asked_again_for_every_model_in_it():
    work = catalog_node.work(models("tiny_qwen2", "tiny_whisper"), SETTINGS, looked(["environment:tiny_cpu"]))
    assert [row["name"] for row in work["environments"]] == ["tiny_cpu"]
    assert [(row["name"], row["again"]) for row in work["smoke"]] == [("tiny_qwen2", True), ("tiny_whisper", True)]


@pytest.mark.parametrize(
    ("model", "device", "expected"),
    [("tiny_qwen2", "auto", "cpu"), ("qwen1_5_0_5b_chat", "auto", "auto"), ("qwen1_5_0_5b_chat", "cpu", "cpu")],
)
def test_torch_is_tried_where_its_models_run(model, device, expected):
    wanted = [{**one, "device": device} for one in models(model)]
    work = catalog_node.work(wanted, SETTINGS, looked([f"environment:{wanted[0]['python']['environment']}"]))
    assert [row["device"] for row in work["torch"]] == [expected]


def test_torch_is_tried_before_a_model_is_asked_also_where_its_environment_is_as_it_should_be():
    work = catalog_node.work(models("tiny_qwen2", "tiny_whisper"), SETTINGS, looked(["smoke:tiny_qwen2"]))
    assert work["environments"] == []
    assert work["torch"] == [{"name": "tiny_cpu", "prefix": "/r/envs/tiny_cpu", "device": "cpu"}]
    assert [(row["name"], row["environment"]) for row in work["smoke"]] == [("tiny_qwen2", "tiny_cpu")]
    assert catalog_node.work(models("tiny_qwen2"), SETTINGS, looked(["code:tiny_qwen2"]))["torch"] == []


def test_only_missing_bytes_count_and_too_few_free_ones_are_told():
    wanted = models("tiny_whisper")
    found = {"weights:tiny_whisper": {"missing": ["model.safetensors"], "changed": ["config.json"]}}
    work = catalog_node.work(wanted, SETTINGS, looked(["weights:tiny_whisper"], **found))
    files = wanted[0]["weights"]["files"]
    assert work["needed_bytes"] == files["model.safetensors"]["size"] + files["config.json"]["size"]
    assert work["too_small"] == ""
    tight = looked(["weights:tiny_whisper"], **found)
    tight["seen"]["disk"]["free_bytes"] = 1_000_000
    told = catalog_node.work(wanted, SETTINGS, tight)["too_small"]
    assert "1.0 MB free" in told and "6.3 MB are still to come (tiny_whisper)" in told


def test_a_partial_manifest_counts_by_its_estimate():
    seen = looked(["weights:chatglm3_6b"], **{"weights:chatglm3_6b": {"bytes": 490_000_000}})
    assert catalog_node.work(models("chatglm3_6b"), SETTINGS, seen)["needed_bytes"] == 12_000_000_000


def test_force_does_everything():
    work = catalog_node.work(models("tiny_qwen2"), SETTINGS, looked([]), force=True)
    assert all(len(work[key]) == 1 for key in ("code", "environments", "weights", "smoke")) and work["tools"]


# --- what is told -----------------------------------------------------------------------------------------------------------


def last_look(model, *, differs=(), answer="hello"):
    result = {
        "ok": True,
        "fingerprint": model["fingerprint"],
        "answer": answer,
        "versions": {"torch": "2"},
        "device": "cpu",
    }
    return {
        "items": [{"key": key, "differs": True, "reasons": ["is absent"]} for key in differs],
        "seen": {f"result:{model['name']}": {"content": json.dumps(result)}},
    }


def test_the_outcome_of_a_model_that_answers():
    (model,) = models("tiny_qwen2")
    told = catalog_node.outcome([model], SETTINGS, last_look(model), changed=True)
    assert told["ok"] and told["changed"] and told["role"] == "llm_model"
    assert told["checks"] == [{"name": "tiny_qwen2", "ok": True, "detail": "answers: 'hello'", "remedy": ""}]
    assert told["models"]["tiny_qwen2"]["answer"] == "hello" and told["models"]["tiny_qwen2"]["smoke"] == "passed"
    assert told["versions"] == {"tiny_qwen2 torch": "2"}


def test_an_answer_to_another_question_does_not_count():
    (model,) = models("tiny_qwen2")
    (other,) = models({"name": "tiny_qwen2", "smoke": {"prompt": "?"}})
    told = catalog_node.outcome([other], SETTINGS, last_look(model))
    assert told["models"]["tiny_qwen2"]["smoke"] == "not passed" and "answer" not in told["models"]["tiny_qwen2"]


def test_a_model_that_does_not_answer_is_told_once_with_its_remedy():
    (model,) = models("tiny_qwen2")
    error = {
        "id": "E10",
        "class": "out_of_memory",
        "title": "The card's memory is full",
        "cause": "c",
        "remedy": "less",
    }
    test = {"ok": False, "msg": "did not answer\nmore", "error": error, "__llm_model_test": {"name": "tiny_qwen2"}}
    told = catalog_node.outcome([model], SETTINGS, last_look(model, differs=["smoke:tiny_qwen2"]), tests=[test])
    assert not told["ok"]
    (check,) = told["checks"]
    assert (check["name"], check["remedy"], check["class"]) == ("smoke:tiny_qwen2", "less", "out_of_memory")
    assert check["detail"] == "did not answer The card's memory is full: c"


def test_a_failure_that_nobody_knows_points_to_the_deep_check():
    (model,) = models("tiny_qwen2")
    test = {
        "ok": False,
        "msg": "x",
        "error": {"id": "unknown", "remedy": "r"},
        "__llm_model_test": {"name": "tiny_qwen2"},
    }
    told = catalog_node.outcome([model], SETTINGS, last_look(model, differs=["smoke:tiny_qwen2"]), tests=[test])
    assert "llm_model_deep=true" in told["checks"][0]["remedy"]


def test_torch_that_fails_is_a_check_and_a_warning_is_a_note():
    (model,) = models("tiny_qwen2")
    torch = [
        {
            "verdict": "failed",
            "title": "T",
            "explanation": "E",
            "remedy": "R",
            "__llm_model_environment": {"name": "a"},
        },
        {"verdict": "warning", "title": "W", "remedy": "Q", "__llm_model_environment": {"name": "b"}},
        {"skipped": True, "__llm_model_environment": {"name": "c"}},
    ]
    told = catalog_node.outcome([model], SETTINGS, last_look(model), torch=torch)
    assert {"name": "torch:a", "ok": False, "detail": "T: E", "remedy": "R"} in told["checks"]
    assert told["notes"] == ["b: W. Q"]


def test_a_model_whose_torch_fails_is_not_asked_and_says_so():
    (model,) = models("tiny_qwen2")
    torch = [{"verdict": "failed", "title": "T", "explanation": "E", "remedy": "R",
              "__llm_model_environment": {"name": "tiny_cpu"}}]  # fmt: skip
    skipped = [{"skipped": True, "__llm_model_test": {"name": "tiny_qwen2"}}]
    last = {**last_look(model, differs=["smoke:tiny_qwen2"]), "seen": {}}
    told = catalog_node.outcome([model], SETTINGS, last, tests=skipped, torch=torch)
    assert not told["ok"]
    assert [(c["name"], c["remedy"]) for c in told["checks"]] == [("torch:tiny_cpu", "R"), ("smoke:tiny_qwen2", "")]
    assert "the torch of its environment tiny_cpu does not compute" in told["checks"][1]["detail"]
    assert told["models"]["tiny_qwen2"]["smoke"] == "not passed"


def test_a_licence_with_a_condition_is_noted():
    (model,) = models("chatglm3_6b")
    assert "registration" in catalog_node.outcome([model], SETTINGS, last_look(model))["notes"][0]


# --- where from -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "overrides", "sources", "endpoints"),
    [
        ("upstream", {}, ["huggingface"], ["https://huggingface.co"]),
        ("hf_mirror", {}, ["huggingface"], ["https://hf-mirror.com", "https://huggingface.co"]),
        ("depot", {}, ["huggingface", "modelscope"], ["https://depot.gpufleet.test/hub"]),
        (
            "upstream",
            {"modelscope": {"endpoint": "https://m.example"}},
            ["modelscope", "huggingface"],
            ["https://huggingface.co"],
        ),
        ("upstream", {"modelscope": {"endpoint": "https://m.example"}, "exclusive": True}, ["modelscope"], []),
    ],
)
def test_which_hubs_are_asked_in_which_order(profile, overrides, sources, endpoints):
    found = catalog_node.sources(resolve(profile, overrides), ["conda-forge"])
    assert (found["sources"], found["endpoints"]) == (sources, endpoints)


def test_channels_of_a_mirror():
    found = catalog_node.sources(resolve("depot"), ["conda-forge", "bioconda", "https://own.example/c"])
    assert found["channels"][0] == "https://depot.gpufleet.test/conda/conda-forge"
    assert found["channels"][1] == "https://depot.gpufleet.test/conda/bioconda"
    assert found["channels"][2] == "https://own.example/c"
    assert catalog_node.sources(resolve("upstream"), ["conda-forge"])["channels"] == ["conda-forge"]


TUNA = "https://mirrors.tuna.tsinghua.edu.cn"
CONDA = "https://conda.anaconda.org"


@pytest.mark.parametrize(
    ("profile", "overrides", "index", "indexes"),
    [
        ("upstream", {}, "", []),
        ("tuna", {}, f"{TUNA}/pypi/web/simple", [""]),
        ("tuna", {"pypi": {"fallback_urls": ["https://b.example"]}}, f"{TUNA}/pypi/web/simple", ["https://b.example", ""]),
        ("tuna", {"exclusive": True}, f"{TUNA}/pypi/web/simple", []),
        ("depot", {}, "https://depot.gpufleet.test/pypi/simple/", []),
        ("depot", {"pypi": {"index_url": "https://a.example", "fallback_urls": ["https://a.example", "https://b.example"]}},
         "https://a.example", ["https://b.example"]),
    ],
)  # fmt: skip
def test_which_indexes_are_asked_in_which_order(profile, overrides, index, indexes):
    found = catalog_node.sources(resolve(profile, overrides), ["conda-forge"])
    assert (found["index_url"], found["fallback_index_urls"]) == (index, indexes)


@pytest.mark.parametrize(
    ("profile", "overrides", "channels", "fallback"),
    [
        ("upstream", {}, ["conda-forge"], []),
        ("depot", {}, ["conda-forge"], []),
        ("hf_mirror", {}, ["conda-forge"], []),
        ("tuna", {}, ["conda-forge"], [[f"{CONDA}/conda-forge"]]),
        ("tuna", {"exclusive": True}, ["conda-forge"], []),
        (
            "tuna",
            {},
            ["conda-forge", "https://own.example/c"],
            [[f"{CONDA}/conda-forge", "https://own.example/c"]],
        ),
        (
            "depot",
            {"conda": {"fallback_aliases": ["https://b.example/conda/"]}},
            ["conda-forge", "https://own.example/c"],
            [["https://b.example/conda/conda-forge", "https://own.example/c"]],
        ),
    ],
)
def test_which_channels_are_asked_when_the_first_are_down(profile, overrides, channels, fallback):
    assert catalog_node.sources(resolve(profile, overrides), channels)["fallback_channels"] == fallback
