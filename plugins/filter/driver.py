# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter of the role nvidia_driver: facts and wishes in, one decision out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.gpufleet.llm.plugins.plugin_utils import driver


def driver_decision(
    settings: Mapping[str, Any], system: Mapping[str, Any], gpu: Mapping[str, Any], node: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What to do about the driver of a node; see plugin_utils/driver.py."""
    try:
        return driver.decide(settings, system, gpu, node or {})
    except driver.DriverError as error:
        raise AnsibleFilterError(f"gpufleet.llm.driver_decision: {error}") from error


class FilterModule:
    """What ansible-core loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name -> function."""
        return {"driver_decision": driver_decision}
