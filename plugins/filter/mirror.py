# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filters gpufleet.llm.mirror and gpufleet.llm.mirror_urls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.gpufleet.llm.plugins.plugin_utils.mirrors import MirrorError, candidates, resolve


def mirror(profile: str | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The resolved mirror profile, always with all keys."""
    try:
        return resolve(profile, overrides)
    except MirrorError as error:
        raise AnsibleFilterError(f"gpufleet.llm.mirror: {error}") from error


def mirror_urls(
    urls: str | Iterable[str], profile: str | Mapping[str, Any] = "upstream", overrides: Mapping[str, Any] | None = None
) -> list[str]:
    """The list of places to fetch a file from, best first."""
    try:
        return candidates(urls, profile, overrides)
    except MirrorError as error:
        raise AnsibleFilterError(f"gpufleet.llm.mirror_urls: {error}") from error


class FilterModule:
    """What ansible-core loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name -> function."""
        return {"mirror": mirror, "mirror_urls": mirror_urls}
