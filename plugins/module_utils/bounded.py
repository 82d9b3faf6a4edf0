# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs under a time limit, on their own: no terminal that could stop them, no input that they could wait for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable


def bounded(seconds: int, kill_after: int, which: Callable[[str], str | None] = shutil.which) -> list[str]:
    """What stands before a command so that it ends after ``seconds``, and is killed ``kill_after`` seconds later.

    timeout(1) puts the command into a process group of its own. Without pipelining, or with C(use_pty) of sudo, a module has
    a terminal, that group is in its background, and a program that touches the terminal (conda does) is stopped with
    SIGTTOU for ever: the limit does not end a stopped process. So the command gets a session of its own, without a terminal.
    A machine without setsid(1) or timeout(1) gets what it has.
    """
    session, limit = which("setsid"), which("timeout")
    return [
        *([session, "--wait"] if session else []),
        *([limit, f"--kill-after={kill_after}", str(seconds)] if limit else []),
    ]


def no_input() -> None:
    """Give this process, and what it starts, an empty standard input: a question is answered by its end, not waited for."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
