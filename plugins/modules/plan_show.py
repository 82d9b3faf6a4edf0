#!/usr/bin/python
# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: plan_show
short_description: Show the plans of all nodes of the play
version_added: 0.1.0
description:
  - Prints what M(gpufleet.llm.plan) made for the nodes of the play, as a table with conflicts, remedies and warnings below it,
    or as JSON. Nodes whose plans say the same share their rows.
  - Runs on the controller only; no connection to a node is made. Use it with C(run_once).
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
      - Changes no node in either mode. The file of O(dest) is written in check mode too.
  diff_mode:
    support: none
  platform:
    platforms: all
  idempotent:
    support: full
options:
  format:
    description: V(table) for people, V(json) for programs.
    type: str
    choices: [table, json]
    default: table
  reasons:
    description: Add every choice with its reason, rule and source to the table.
    type: bool
    default: false
  dest:
    description: Write to this file on the controller instead of printing.
    type: path
"""

EXAMPLES = r"""
---
- name: Show the plans
  gpufleet.llm.plan_show:
    reasons: true
  run_once: true

- name: Keep them for a program
  gpufleet.llm.plan_show:
    format: json
    dest: /tmp/plan.json
  run_once: true
"""

RETURN = r"""
text:
  description: What was printed or written.
  returned: always
  type: str
with_conflicts:
  description: Nodes whose plan has conflicts.
  returned: always
  type: list
  elements: str
  sample: []
without_plan:
  description: Nodes of the play that have no plan.
  returned: always
  type: list
  elements: str
  sample: []
"""
