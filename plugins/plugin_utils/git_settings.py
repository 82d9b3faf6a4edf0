# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""System-wide git settings as the role git writes and observes them. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# section.key or section.subsection.key; a subsection may hold anything but a newline
KEY = re.compile(r"[A-Za-z0-9-]+\.(?:[^\n\0]+\.)?[A-Za-z][A-Za-z0-9-]*\Z")


class SettingError(ValueError):
    """A key or a value that git cannot hold."""


def _word(value: Any) -> str:
    """A value as git prints it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    if "\n" in text or "\0" in text:
        raise SettingError(f"git_system_config: the value {text!r} has more than one line")
    return text


def settings(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """``{key: value, list of values, or None}`` as ``[{"key": str, "values_wanted": [str]}]``; none: key absent."""
    result = []
    for key, value in config.items():
        if not KEY.match(str(key)):
            raise SettingError(f"git_system_config: {key!r} is not section.key or section.subsection.key")
        if value is None:
            values: list[Any] = []
        else:
            values = list(value) if isinstance(value, (list, tuple)) else [value]
        result.append({"key": str(key), "values_wanted": [_word(one) for one in values]})
    return result


# A password in a URL, or a header that carries a token
SECRET_VALUE = re.compile(r"://[^/@\s]*:[^/@\s]*@")
SECRET_KEY = re.compile(r"extraheader\Z", re.IGNORECASE)


def is_secret(setting: Mapping[str, Any]) -> bool:
    """Whether a setting's values must stay out of diffs and logs."""
    return bool(SECRET_KEY.search(setting["key"]) or any(SECRET_VALUE.search(one) for one in setting["values_wanted"]))


def setting_items(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same as items of gpufleet.llm.observe; git exits with 1 for a key that is not there."""
    return [
        {
            "kind": "command",
            "key": f"setting:{one['key']}",
            "argv": ["git", "config", "--system", "--get-all", one["key"]],
            "rc": 0 if one["values_wanted"] else 1,
            "stdout": "\n".join(one["values_wanted"]).strip(),
            "no_log": is_secret(one),
        }
        for one in settings(config)
    ]
