# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json

import pytest
from ansible_collections.gpufleet.llm.plugins.action.report import write_report
from ansible_collections.gpufleet.llm.plugins.plugin_utils import report

TIME = "2026-11-20T12:00:00+00:00"
GIT = {
    "role": "git",
    "ok": True,
    "changed": True,
    "checks": [{"name": "git answers", "ok": True, "detail": "2.39.5", "remedy": ""}],
    "versions": {"git": "2.39.5"},
    "notes": ["one note"],
}


def broken(**changes):
    check = {"name": "driver", "ok": False, "detail": "module not loaded", "remedy": "reboot"}
    return {
        "role": "nvidia_driver",
        "ok": False,
        "changed": False,
        "checks": [check],
        "versions": {},
        "notes": [],
        **changes,
    }


def test_every_key_is_there_for_a_node_nothing_is_known_of():
    made = report.build("n1", {}, time=TIME)
    # Written out: whoever reads reports by program relies on these names, so they do not change by accident.
    assert set(made) == {
        "schema", "node", "time", "mode", "ok", "changed", "reachable", "checks", "failures", "notes", "versions", "models", "gpu",
        "plan", "roles",
    }  # fmt: skip
    assert set(made["gpu"]) == {"count", "state", "names"}
    assert set(report.failure("", "")) == {"where", "message", "cause", "remedy"}
    assert made["ok"] is True
    assert made["node"] == "n1"


def test_a_good_role_is_ok_and_its_facts_are_collected():
    made = report.build("n1", {"git_result": GIT}, time=TIME)
    assert made["ok"] is True
    assert made["changed"] is True
    assert made["versions"] == {"git": "2.39.5"}
    assert made["notes"] == ["git: one note"]
    assert made["checks"] == [{"role": "git", "name": "git answers", "ok": True, "detail": "2.39.5", "remedy": ""}]


def test_a_false_check_is_a_failure_with_its_remedy():
    made = report.build("n1", {"git_result": GIT, "nvidia_driver_result": broken()}, time=TIME)
    assert made["ok"] is False
    assert made["failures"] == [
        {"where": "nvidia_driver", "message": "driver: module not loaded", "cause": "", "remedy": "reboot"}
    ]


def test_a_role_that_is_not_ok_without_a_false_check_is_not_lost():
    made = report.build("n1", {"cuda_result": {"ok": False, "checks": []}}, time=TIME)
    assert made["ok"] is False
    assert made["failures"][0]["where"] == "cuda"


def test_what_a_check_says_is_not_said_again_by_the_task_that_failed_for_it():
    failed = [report.failure("Fail the node", "the driver: module not loaded. Remedy: reboot")]
    made = report.build("n1", {"nvidia_driver_result": broken(), "gpufleet_failures": failed}, time=TIME)
    assert [f["where"] for f in made["failures"]] == ["nvidia_driver"]


def test_an_unreachable_node_is_named_as_such():
    lost = [report.failure("connection", "No route to host")]
    made = report.build("n3", {"gpufleet_failures": lost}, time=TIME)
    assert made["reachable"] is False
    assert made["ok"] is False


def test_two_reports_do_not_share_their_lists():
    first = report.build("n1", {"git_result": GIT}, time=TIME)
    second = report.build("n2", {}, time=TIME)
    assert first["checks"] and second["checks"] == []
    assert report.EMPTY["checks"] == []


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"msg": "no"}, "no"),
        ({"msg": "non-zero return code", "stderr": "disk full"}, "non-zero return code\ndisk full"),
        (
            {"msg": "One or more items failed", "results": [{"failed": True, "msg": "b"}, {"msg": "a"}]},
            "One or more items failed\nb",
        ),
        ({"msg": "no", "exception": "(traceback unavailable)"}, "no"),
        ({}, "the task failed without a message"),
        ("text", "text"),
    ],
)
def test_the_words_of_a_failure_are_found(result, expected):
    assert report.message_of(result) == expected


def test_the_recap_names_every_node_the_answer_and_the_remedy():
    model = {"answer": "four\nfive", "load_seconds": 1.25, "tokens_per_second": 10.04, "device": "cpu"}
    good = report.build("n1", {"llm_model_result": {"ok": True, "checks": [], "models": {"tiny": model}}}, time=TIME)
    bad = report.build("n2", {"nvidia_driver_result": broken()}, time=TIME)
    text = report.words([good, bad], "/results")
    assert 'tiny answered "four five" (loaded in 1.2 s, 10.0 tokens/s, on cpu)' in text
    assert "n1: ok" in text
    assert "n2: NOT OK" in text
    assert "do:  reboot" in text
    assert text.endswith("1 of 2 nodes are ok. Reports: /results")


def test_check_mode_says_what_would_happen():
    made = report.build("n1", {"git_result": GIT}, time=TIME, check_mode=True)
    assert made["mode"] == "check"
    assert "n1: would change" in report.words([made])


def test_a_report_is_written_whole_and_readable(tmp_path):
    made = report.build("rack/n1", {"git_result": GIT}, time=TIME)
    path = write_report(str(tmp_path / "new"), made)
    assert path.endswith("rack_n1.json")
    with open(path, encoding="utf-8") as handle:
        assert json.load(handle) == made
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["rack_n1.json"]


def test_what_counts_in_check_mode_is_no_mere_difference():
    differs = report.build("n1", {"nvidia_driver_result": broken()}, time=TIME, check_mode=True)
    assert not differs["ok"]
    assert report.faults(differs) == []
    lost = {"gpufleet_failures": [report.failure("connection", "no route")]}
    assert report.faults(report.build("n1", lost, time=TIME, check_mode=True)) == ["no route"]
    assert report.faults(report.build("n1", {"nvidia_driver_result": broken()}, time=TIME))
    assert "n1: NOT OK" in report.words([report.build("n1", lost, time=TIME, check_mode=True)])


def test_a_node_whose_turn_did_not_come_is_not_ok_and_says_why():
    made = report.unreached("n9")
    assert not made["ok"]
    assert made["failures"][0]["remedy"]
    assert report.faults(report.unreached("n9", check_mode=True))
