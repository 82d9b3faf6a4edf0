# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads what pacman says: rehearsals of transactions. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ansible_collections.gpufleet.llm.plugins.plugin_utils.driver_node import harm


def read_transaction(text: str, kernels: Sequence[str]) -> dict[str, Any]:
    """What C(pacman --print --print-format %n) would bring, and what of it must not come.

    :arg text: its output, a name per line; a line that is no name is passed over
    :arg kernels: names of packages with a kernel; headers and firmware are no kernel
    :returns: C({"ok": bool, "install": [name], "problems": [str]})
    """
    install = re.findall(r"(?m)^([A-Za-z0-9@_][A-Za-z0-9@._+-]*)\s*$", text)
    problems = harm(install, [], set(kernels).__contains__)
    return {"ok": not problems, "install": install, "problems": problems}
