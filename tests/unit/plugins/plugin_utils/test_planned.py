# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from ansible_collections.gpufleet.llm.plugins.plugin_utils.planned import planned_models

PLAN = {"models": [{"name": "a", "precision": "int4", "device": "cuda"}, {"name": "b", "precision": None, "device": "cpu"}]}


def test_the_plan_fills_in_what_the_inventory_left_open():
    assert planned_models(["a", {"name": "b"}, "c"], PLAN) == [
        {"name": "a", "precision": "int4", "device": "cuda"},
        {"name": "b", "device": "cpu"},
        {"name": "c"},
    ]


def test_what_the_inventory_says_stays():
    pinned = {"name": "a", "precision": "float16", "device": "cpu", "lock": "/x"}
    assert planned_models([pinned], PLAN) == [pinned]
    assert planned_models([{"name": "a", "precision": "auto"}], PLAN)[0]["precision"] == "int4"


def test_the_inventory_is_not_touched():
    wanted = [{"name": "a"}]
    planned_models(wanted, PLAN)
    assert wanted == [{"name": "a"}]


def test_no_plan_changes_nothing():
    assert planned_models(["a"], {}) == [{"name": "a"}]
