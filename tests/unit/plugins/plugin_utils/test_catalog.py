# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The models' catalogue: every folder is right, everything that can be wrong is told, overrides do what they say."""

from __future__ import annotations

import copy
import importlib.util
import pathlib
import shutil

import pytest
import yaml
from ansible_collections.gpufleet.llm.plugins.plugin_utils import catalog
from ansible_collections.gpufleet.llm.plugins.plugin_utils.lock import parse_lock

ROOT = pathlib.Path(__file__).resolve().parents[4]
SHELF = ROOT / "roles" / "llm_model" / "catalog"
NAMES = sorted(path.parent.name for path in SHELF.glob("*/model.yml"))
GOOD = yaml.safe_load((SHELF / "tiny_qwen2" / "model.yml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_every_folder_of_the_catalogue_is_right(name):
    (model,) = catalog.wanted_models([name], [str(SHELF)])
    assert model["name"] == name
    assert len(model["fingerprint"]) == 64
    assert model["weights"]["total_bytes"] > 0
    assert "torch" in model["python"]["requirements"]


def test_what_this_issue_wants_is_there():
    assert {"chatglm3_6b", "qwen1_5_0_5b_chat", "tiny_qwen2", "tiny_whisper"} <= set(NAMES)
    glm = catalog.wanted_models(["chatglm3_6b"], [str(SHELF)])[0]
    assert glm["code"]["commit"] == "c814a72e0e662c2479920bfa7c40eb623b2e98d0"
    assert glm["weights"]["revision"] == "103caa40027ebfd8450289ca2f278eac4ff26405"
    assert "*.bin" in glm["weights"]["ignore"]


def test_chatglm3_has_the_versions_that_are_known_to_work_together() -> None:
    # Its code at the seed's commit breaks with newer transformers, and torch 2.1 with numpy 2.
    locked = parse_lock((SHELF / "chatglm3_6b/requirements.lock").read_text(encoding="utf-8")).requirements
    wanted = {"torch": "2.1.2", "transformers": "4.40.2", "numpy": "1.26.4"}
    assert {name: locked[name] for name in wanted} == wanted


def test_the_tiny_models_are_those_that_the_depot_makes(tmp_path):
    spec = importlib.util.spec_from_file_location("make_models", ROOT / "tests/fleet/depot/make_models.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    index = made.write_models(tmp_path)
    tiny = [name for name in NAMES if name.startswith("tiny_")]
    assert len(tiny) == len(index)
    for name in tiny:
        weights = yaml.safe_load((SHELF / name / "model.yml").read_text(encoding="utf-8"))["weights"]
        entry = index[weights["repos"]["huggingface"][0]]
        assert weights["revision"] == entry["revision"]
        skipped = {"README.md", ".gitattributes", "pytorch_model.bin"}
        assert weights["files"] == {
            path: {"size": row["size"], "sha256": row["sha256"]}
            for path, row in entry["files"].items()
            if path not in skipped
        }
    if shutil.which("git"):
        commits = made.write_repositories(tmp_path / "git")
        assert GOOD["code"]["commit"] == commits["gpufleet-fixtures/tiny-qwen2-code"][1]


def test_a_right_model_has_no_problems():
    assert catalog.problems(GOOD) == []


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        ("schema", 2, "schema must be 1"),
        ("surprise", 1, "unknown key 'surprise'"),
        ("title", None, "title is missing"),
        ("licence.gated", "yes", "gated"),
        ("code.commit", "c814a72", "40 lower-case hex"),
        ("code.urls", ["git@github.com:a/b"], "https"),
        ("code.branch", "main", "unknown key 'branch'"),
        ("python.version", 3.1, "quoted"),
        ("python.version", "3.12", "not in python.supported"),
        ("python.supported", [], "python.supported"),
        ("python.environment", "../x", "python.environment"),
        ("weights.revision", "main", "a branch or tag can move"),
        ("weights.repos", {}, "at least one of"),
        ("weights.repos.huggingface", ["tiny"], "namespace/name"),
        ("weights.repos.modelscope", ["a/b"], "repo: namespace/name"),
        ("weights.repos.kaggle", ["a/b"], "unknown hub"),
        ("weights.allow", [], "weights.allow"),
        ("weights.manifest", "some", "complete or partial"),
        ("weights.manifest", "partial", "total_bytes"),
        ("weights.files", {}, "is empty"),
        ("weights.files", {"../a": {"size": 1, "sha256": "a" * 64}}, "not a relative path"),
        ("weights.files", {"/a": {"size": 1, "sha256": "a" * 64}}, "not a relative path"),
        ("weights.files", {".gpufleet/verified.json": {"size": 1, "sha256": "a" * 64}}, "not a relative path"),
        ("weights.files", {"a": {"size": 1, "sha256": "A" * 64}}, "64 lower-case"),
        ("weights.files", {"a": {"size": "1", "sha256": "a" * 64}}, "number of bytes"),
        ("weights.files", {"a": {"sha256": "a" * 64}}, "needs size"),
        ("weights.files", {"a.bin": {"size": 1, "sha256": "a" * 64}}, "pickle"),
        ("memory", {}, "memory must say"),
        ("memory.float33", {"device_bytes": 1, "host_bytes": 1, "source": "x"}, "float33"),
        ("memory.float32.source", "", "source"),
        ("smoke.kind", "drawing", "smoke.kind"),
        ("smoke.prompt", "", "smoke.prompt"),
        ("smoke.timeout_seconds", 0, "timeout_seconds"),
        ("smoke.dtype", {"cpu": "float32"}, "for cpu and for cuda"),
        ("smoke.dtype.cuda", "float17", "float17"),
        ("smoke.trust_remote_code", "yes", "true or false"),
        ("smoke.colour", "red", "unknown key 'colour'"),
    ],
)
def test_what_is_wrong_is_told(path, value, word):
    model = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    place = model
    for part in parents:
        place = place[part]
    place[last] = value
    assert any(word in problem for problem in catalog.problems(model)), catalog.problems(model)


@pytest.mark.parametrize(
    ("wanted", "word"),
    [
        ("tiny_qwen2", "a list of models"),
        (["gpt5"], "no model 'gpt5' in the catalogue; it has: chatglm3_6b"),
        ([{"precision": "int4"}], "there is no model None"),
        (["tiny_qwen2", {"name": "tiny_qwen2"}], "wanted twice"),
        ([{"name": "tiny_qwen2", "colour": "red"}], "unknown key 'colour'"),
        ([{"name": "tiny_qwen2", "precision": "int4"}], "only for smoke kinds chatglm"),
        ([{"name": "tiny_qwen2", "precision": "half"}], "precision must be"),
        ([{"name": "tiny_qwen2", "device": "tpu"}], "device must be"),
        ([{"name": "tiny_qwen2", "code": {"commit": "main"}}], "40 lower-case hex"),
        ([{"name": "tiny_qwen2", "lock": "/nonexistent.lock"}], "nonexistent.lock"),
    ],
)
def test_what_an_inventory_cannot_mean_is_told(wanted, word):
    with pytest.raises(catalog.CatalogError) as told:
        catalog.wanted_models(wanted, [str(SHELF)])
    assert word in str(told.value)


def test_overrides_are_merged_key_by_key():
    (model,) = catalog.wanted_models(
        [{"name": "chatglm3_6b", "precision": "int4", "device": "cuda", "smoke": {"prompt": "?"}}], [str(SHELF)]
    )
    assert (model["precision"], model["device"], model["smoke"]["prompt"]) == ("int4", "cuda", "?")
    assert model["smoke"]["kind"] == "chatglm"


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [("chatglm3_6b", "int4"), ({"name": "chatglm3_6b", "precision": "int8"}, "int8"), ("tiny_qwen2", "auto")],
)
def test_what_a_plan_chose_counts_where_the_inventory_leaves_it_open(wanted, expected):
    (model,) = catalog.wanted_models([wanted], [str(SHELF)], {"chatglm3_6b": "int4"})
    assert model["precision"] == expected


def test_another_revision_leaves_the_known_hashes_behind():
    other = {"name": "tiny_qwen2", "weights": {"revision": "1" * 40}}
    (model,) = catalog.wanted_models([other], [str(SHELF)])
    assert (model["weights"]["manifest"], model["weights"]["files"]) == ("partial", {})
    assert model["weights"]["total_bytes"] > 1_000_000


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "float16"},
        {"device": "cuda"},
        {"smoke": {"prompt": "?"}},
        {"code": {"commit": "1" * 40}},
        {"weights": {"revision": "1" * 40}},
    ],
)
def test_the_fingerprint_changes_with_what_the_answer_depends_on(change):
    (before,) = catalog.wanted_models(["tiny_qwen2"], [str(SHELF)])
    (after,) = catalog.wanted_models([{"name": "tiny_qwen2", **change}], [str(SHELF)])
    assert before["fingerprint"] != after["fingerprint"]


def test_the_fingerprint_does_not_change_with_what_it_does_not_depend_on():
    (before,) = catalog.wanted_models(["tiny_qwen2"], [str(SHELF)])
    (after,) = catalog.wanted_models([{"name": "tiny_qwen2", "smoke": {"timeout_seconds": 7}}], [str(SHELF)])
    assert before["fingerprint"] == after["fingerprint"]


def own_folder(base, name="mine", **change):
    """A catalogue folder with one model; `change` goes over the tiny model's content."""
    folder = base / name
    folder.mkdir(parents=True)
    (folder / "model.yml").write_text(yaml.safe_dump({**copy.deepcopy(GOOD), **change}), encoding="utf-8")
    shutil.copy(SHELF / "tiny_qwen2" / "requirements.lock", folder)
    return folder


def test_folders_of_ones_own_come_first(tmp_path):
    own_folder(tmp_path, "tiny_qwen2", title="Mine")
    own_folder(tmp_path, "other", title="Other")
    models = catalog.wanted_models(["tiny_qwen2", "other", "tiny_whisper"], [str(tmp_path), str(SHELF)])
    assert [model["title"] for model in models[:2]] == ["Mine", "Other"]


def test_a_broken_folder_says_which_file_and_all_that_is_wrong(tmp_path):
    own_folder(tmp_path, schema=3, title=None)
    with pytest.raises(catalog.CatalogError, match=r"mine/model\.yml.*schema must be 1.*title is missing"):
        catalog.wanted_models(["mine"], [str(tmp_path)])
    with pytest.raises(catalog.CatalogError, match="does not exist"):
        catalog.wanted_models([], [str(tmp_path / "nowhere")])


def test_models_that_share_an_environment_must_have_one_lock(tmp_path):
    folder = own_folder(tmp_path)
    assert len(catalog.wanted_models(["tiny_qwen2", "mine"], [str(tmp_path), str(SHELF)])) == 2
    with (folder / "requirements.lock").open("a", encoding="utf-8") as lock:
        lock.write(f"extra==1 --hash=sha256:{'a' * 64}\n")
    with pytest.raises(catalog.CatalogError, match=r"share the environment\s+tiny_cpu but their locks differ"):
        catalog.wanted_models(["tiny_qwen2", "mine"], [str(tmp_path), str(SHELF)])
