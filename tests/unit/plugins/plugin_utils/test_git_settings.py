# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""git_system_config as settings and as items of observe; packages as items."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.gpufleet.llm.plugins.plugin_utils.git_settings import SettingError, setting_items, settings
from ansible_collections.gpufleet.llm.plugins.plugin_utils.role_items import absent_items, file_items, package_items


@pytest.mark.parametrize(
    ("value", "values"),
    [
        ("a", ["a"]),
        (True, ["true"]),
        (False, ["false"]),
        (5, ["5"]),
        (["a", True], ["a", "true"]),
        (None, []),
        ([], []),
    ],
)
def test_values(value: Any, values: list[str]) -> None:
    assert settings({"core.x": value}) == [{"key": "core.x", "values_wanted": values}]


@pytest.mark.parametrize("key", ["core", "core.", ".x", "core.x y", "core.1x", "a\n.b", ""])
def test_keys_that_git_cannot_hold(key: str) -> None:
    with pytest.raises(SettingError):
        settings({key: "x"})


def test_a_value_of_two_lines_is_refused() -> None:
    with pytest.raises(SettingError, match="more than one line"):
        settings({"core.x": "a\nb"})


def test_a_subsection_may_hold_dots_and_slashes() -> None:
    assert settings({"url.https://a.b/c.insteadOf": "x"})[0]["key"] == "url.https://a.b/c.insteadOf"


def test_items() -> None:
    there, gone = setting_items({"core.x": ["a", "b"], "core.y": None})
    assert (there["rc"], there["stdout"], there["no_log"]) == (0, "a\nb", False)
    assert (gone["rc"], gone["stdout"]) == (1, "")


@pytest.mark.parametrize(
    ("key", "value", "secret"),
    [
        ("http.proxy", "http://user:word@proxy:3128", True),
        ("http.proxy", "http://proxy:3128", False),
        ("http.https://x/.extraheader", "Authorization: Bearer x", True),
        ("safe.directory", "/srv", False),
    ],
)
def test_secrets_stay_out_of_diffs(key: str, value: str, secret: bool) -> None:
    assert setting_items({key: value})[0]["no_log"] is secret


def test_packages() -> None:
    assert package_items(["a", {"name": "b", "version": ""}, {"name": "c", "version": "1*", "hold": True}]) == [
        {"kind": "package", "name": "a", "state": "present"},
        {"kind": "package", "name": "b", "state": "present"},
        {"kind": "package", "name": "c", "state": "present", "version": "1*", "hold": True},
    ]
    assert package_items(["a"], "absent") == [{"kind": "package", "name": "a", "state": "absent"}]
    assert absent_items(["/x"]) == [{"kind": "absent", "path": "/x"}]


def test_the_content_of_a_secret_file_is_not_in_its_item() -> None:
    file = {"path": "/x", "content": "s3cret", "mode": "0600", "no_log": True}
    [item] = file_items([file])
    assert "content" not in item and "s3cret" not in str(item)
    assert item["sha256"] == "1ec1c26b50d5d3c58d9583181af8076655fe00756bf7285940ba3670f99fcba0"
    assert file["content"] == "s3cret", "the caller's own is left alone"
    assert file_items([{**file, "no_log": False}])[0]["content"] == "s3cret"
