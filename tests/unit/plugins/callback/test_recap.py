# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.gpufleet.llm.plugins.callback.recap import remote_calls


@pytest.mark.parametrize(
    ("action", "result", "items", "expected"),
    [
        ("ansible.builtin.set_fact", {}, 0, 0),
        ("debug", {"msg": "x"}, 0, 0),
        ("gpufleet.llm.report", {}, 0, 0),
        ("ansible.builtin.command", {"rc": 0}, 0, 1),
        ("ansible.builtin.command", {"skipped": True}, 0, 0),
        ("gpufleet.llm.observe", {"remote_calls": 1}, 0, 1),
        ("gpufleet.llm.observe", {"remote_calls": 2}, 0, 2),
        ("ansible.builtin.command", {"results": []}, 3, 0),
    ],
)
def test_calls_are_counted_where_they_are_made(action, result, items, expected):
    assert remote_calls(action, result, items) == expected
