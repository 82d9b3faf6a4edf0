#!/usr/bin/python
# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: report
short_description: Write one JSON report per node on the controller
version_added: 0.1.0
description:
  - Collects what the roles of this collection published about a node (C(<role>_result)), what went wrong with cause and
    remedy, versions and the answers of the models, and writes one JSON file per node on the controller.
  - With O(recap=true) it returns the recap of all nodes of the play in words. A node without a report is one whose turn did not
    come.
  - No connection to the node is made.
author:
  - gpufleet.llm contributors (@gpufleet)
extends_documentation_fragment:
  - gpufleet.llm._attributes
attributes:
  action:
    support: full
    description: Is an action plugin; nothing of it runs on the node.
  check_mode:
    support: full
    details:
      - The report is written in check mode too, with RV(report.mode=check).
  diff_mode:
    support: none
  platform:
    platforms: all
  idempotent:
    support: full
options:
  directory:
    description: Folder on the controller; created when it is missing.
    type: path
    required: true
  recap:
    description: Return the recap of all nodes of the play instead of writing a report.
    type: bool
    default: false
  failed_result:
    description: In a C(rescue), C(ansible_failed_result).
    type: raw
  failed_task:
    description: In a C(rescue), C(ansible_failed_task.name).
    type: str
    default: ""
"""

EXAMPLES = r"""
---
- name: Write what is known of this node
  gpufleet.llm.report:
    directory: /tmp/gpufleet-results

- name: Say it in words
  gpufleet.llm.report:
    directory: /tmp/gpufleet-results
    recap: true
  run_once: true
"""

RETURN = r"""
path:
  description: The file that was written.
  type: str
  returned: when O(recap=false)
  sample: /tmp/gpufleet-results/n1.json
report:
  description: The report, as in the file. All keys are always there.
  type: dict
  returned: when O(recap=false)
  contains:
    schema:
      description: Version of this structure; raised only when a key changes its meaning.
      type: int
      sample: 1
    node:
      description: Name of the node in the inventory.
      type: str
    time:
      description: When the report was made, ISO 8601, UTC.
      type: str
    mode:
      description: V(run) or V(check).
      type: str
    ok:
      description: Nothing failed and every check holds.
      type: bool
    changed:
      description: A role changed something (in check mode, would change).
      type: bool
    reachable:
      description: The controller got through to the node.
      type: bool
    checks:
      description: What the roles checked.
      type: list
      elements: dict
      sample: [{"role": "git", "name": "git answers", "ok": true, "detail": "2.39.5", "remedy": ""}]
    failures:
      description: What is wrong, with cause and remedy where they are known.
      type: list
      elements: dict
      sample: [{"where": "connection", "message": "...", "cause": "...", "remedy": "..."}]
    notes:
      description: What a person should know and need not act on.
      type: list
      elements: str
    versions:
      description: Name of a component to its version.
      type: dict
    models:
      description: Name of a model to the result of its smoke inference (answer, load time, tokens per second, peak memory).
      type: dict
    gpu:
      description: Count, names and state of the GPUs.
      type: dict
    plan:
      description: The plan that the solver made for the node.
      type: dict
    roles:
      description: Per role that ran, whether it is ok and whether it changed something.
      type: dict
msg:
  description: The recap in words.
  type: str
  returned: when O(recap=true)
ok:
  description: Whether all nodes are ok.
  type: bool
  returned: when O(recap=true)
bad:
  description:
    - The nodes that make the exit status say so, with the messages of their failures. In check mode a mere difference is none.
  type: dict
  returned: when O(recap=true)
  sample: {"n3": ["unreachable: no connection"]}
"""
