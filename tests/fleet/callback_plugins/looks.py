# SPDX-License-Identifier: GPL-3.0-or-later
"""Test aid: write every result of observe, one JSON line each, to the file named in GPUFLEET_LOOKS."""

from __future__ import annotations

DOCUMENTATION = r"""
name: looks
type: aggregate
short_description: Writes what observe saw to a file
description: For the tests of this collection.
"""

import json
import os

from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):
    """Only C(gpufleet.llm.observe) results are written."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "looks"

    def v2_runner_on_ok(self, result):
        self._write(result)

    def v2_runner_on_failed(self, result, ignore_errors=False):
        self._write(result)

    def _write(self, result):
        path = os.environ.get("GPUFLEET_LOOKS")
        if not path or not str(result._task.action).endswith("observe"):
            return
        line = {"host": result._host.get_name(), "task": result._task.get_name(), "result": result._result}
        with open(path, "a", encoding="utf-8") as out:
            out.write(json.dumps(line, default=str) + "\n")
