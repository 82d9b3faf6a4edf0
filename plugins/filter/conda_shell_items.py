# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter gpufleet.llm.conda_shell_items."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from ansible.errors import AnsibleFilterError


def conda_shell_items(users: Iterable[str], begin: str, end: str, hook: str | None) -> list[dict[str, Any]]:
    """Items for observe: in the ~/.bashrc of each user the block between two lines is this one (none: there is none).

    The block is read as it is in the file. `begin` and `end` must not hold characters that mean something to sed.
    """
    items = []
    for user in users:
        # The name stands unquoted after a tilde in a shell command, the only way to a home directory without a lookup.
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", str(user)):
            raise AnsibleFilterError(f"gpufleet.llm.conda_shell_items: {user!r} cannot be the name of a user")
        items.append(
            {
                "kind": "command",
                "key": f"shell:{user}",
                "argv": ["/bin/sh", "-c", f"sed -n '/^{begin}$/,/^{end}$/p' ~{user}/.bashrc 2>/dev/null; true"],
                "stdout": "" if hook is None else f"{begin}\n{hook}\n{end}",
            }
        )
    return items


class FilterModule:
    """What ansible-core loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name -> function."""
        return {"conda_shell_items": conda_shell_items}
