# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs under a limit, with and without a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest
from ansible_collections.gpufleet.llm.plugins.module_utils.bounded import bounded

# What a module without pipelining does: it has a terminal, and starts a program that sets something on it.
ON_A_TERMINAL = """
import subprocess, sys
print("rc", subprocess.run([*sys.argv[1:], "sh", "-c", "stty sane <&1 && echo through"]).returncode)
"""


def on_a_terminal(*head: str) -> str:
    """What ON_A_TERMINAL writes within ten seconds; it is the leader of a session with a terminal."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(
            "/usr/bin/timeout", ["timeout", "--foreground", "-s9", "10", sys.executable, "-c", ON_A_TERMINAL, *head]
        )
    written = b""
    while True:
        try:
            more = os.read(terminal, 1000)
        except OSError:  # the other side is gone
            break
        if not more:
            break
        written += more
    os.waitpid(pid, 0)
    os.close(terminal)
    return written.decode()


def test_a_program_that_touches_the_terminal_is_not_stopped():
    assert "through" in on_a_terminal(*bounded(5, 1))


def test_the_exit_status_comes_through():
    assert subprocess.run([*bounded(9, 1), "sh", "-c", "exit 7"], check=False).returncode == 7


@pytest.mark.parametrize("program", ["sleep 60", "trap '' TERM; while :; do sleep 1; done"])
def test_the_limit_ends_it(program):
    assert subprocess.run([*bounded(1, 1), "sh", "-c", program], check=False).returncode in (124, 137, -9)


def test_a_machine_without_the_tools():
    assert bounded(3, 1, which=lambda name: None) == []
    assert bounded(3, 1, which={"timeout": "/bin/timeout"}.get) == ["/bin/timeout", "--kill-after=1", "3"]
