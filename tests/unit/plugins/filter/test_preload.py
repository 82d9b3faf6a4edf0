# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the parent process has loaded, no forked worker reads again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.gpufleet.llm.plugins.filter import preload

# A process as ansible-playbook's: templates, forks, and the child templates and acts. Printed: what the child read of ours.
FORKS = """
import json, os, sys
from ansible.cli.playbook import PlaybookCLI  # sets up the collection loader
from ansible.plugins.loader import action_loader, filter_loader, init_plugin_loader
init_plugin_loader()
for name in sys.argv[1:]:
    assert filter_loader.get(name).j2_function("there") == "there"
read = []
sys.addaudithook(lambda event, args: event == "open" and "/gpufleet/llm/plugins/" in str(args[0]) and read.append(str(args[0])))
if os.fork():
    os.wait()
else:
    filter_loader.get("gpufleet.llm.driver_decision")
    filter_loader.get("gpufleet.llm.nginx_sites")
    filter_loader.get("gpufleet.llm.catalog")
    action_loader.get("gpufleet.llm.observe", class_only=True)
    from ansible_collections.gpufleet.llm.plugins.plugin_utils import errors, mirrors, tables
    errors.catalogue(), mirrors.profiles(), tables.load()
    print(json.dumps(sorted({os.path.basename(path) for path in read if path.endswith((".py", "data/errors.yml"))})))
    sys.stdout.flush()
    os._exit(0)
"""


def read_by_a_worker(*filters: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", FORKS, *filters],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[4],
        env={**os.environ, "ANSIBLE_CONFIG": "ansible.cfg"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return list(json.loads(done.stdout))


def test_a_worker_reads_what_its_parent_has_not():
    assert {"catalog.py", "errors.yml"} <= set(read_by_a_worker())


def test_after_the_filter_a_worker_reads_nothing():
    assert read_by_a_worker("gpufleet.llm.preload") == []


@pytest.mark.parametrize("value", ["100%", 5, ["1", "50%"], None])
def test_the_value_comes_back(value):
    assert preload.preload(value) is value
