#!/usr/bin/python
# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: survey
short_description: Find the roles of this collection that have nothing to do, without running them
version_added: 0.1.0
description:
  - Walks through the tasks of each role in one process on the controller, for as long as they are conditions, variables and a
    look at the node (M(gpufleet.llm.observe)). A role whose tasks end without anything that differs has nothing to do, and its
    facts are in RV(facts).
  - The first role for which something differs, or with a task that acts or is not plainly understood, has to run, and with it
    all behind it, because what it changes may matter to them.
  - What is read are the tasks, defaults, variables and argument specs of the roles themselves. Nothing on the node is changed.
  - It saves time only. A role run by Ansible comes to the same result, and forks a process for every task on the way.
notes:
  - This is an action plugin; it cannot be used with C(async).
  - Needs the facts that the roles need, as C(playbooks/tasks/know.yml) gathers them; a role that has to gather facts has to run.
  - With C(-vv) it says why a role has to run.
author:
  - gpufleet.llm contributors (@gpufleet)
extends_documentation_fragment:
  - gpufleet.llm._attributes
attributes:
  action:
    support: full
    description: Is an action plugin; on the node only the looks of the roles run.
  check_mode:
    support: full
    details:
      - Changes nothing in either mode.
  diff_mode:
    support: none
    details:
      - A role that would show a difference is one that has to run, and shows it then.
  platform:
    platforms: posix
  idempotent:
    support: full
options:
  roles:
    description: Names of roles of this collection, in the order in which they would run.
    type: list
    elements: str
    required: true
  skip:
    description: Walk through none; all roles have to run.
    type: bool
    default: false
"""

EXAMPLES = r"""
---
- name: Find the roles that have nothing to do
  gpufleet.llm.survey:
    roles: [git, anaconda]
  register: result

- name: Run the others
  ansible.builtin.include_role:
    name: "gpufleet.llm.{{ item }}"
  loop: "{{ result.act }}"
"""

RETURN = r"""
act:
  description: The roles that have to run, in order.
  returned: always
  type: list
  elements: str
  sample: [nginx, llm_model]
idle:
  description: The roles that have nothing to do, in order.
  returned: always
  type: list
  elements: str
  sample: [git, anaconda]
facts:
  description: What the idle roles would have set with M(ansible.builtin.set_fact), private names left out.
  returned: always
  type: dict
  sample: {"git_result": {"ok": true, "role": "git"}}
why:
  description: Why the first of RV(act) has to run; empty when none has to.
  returned: always
  type: str
  sample: "nginx: Look at all that this role manages: file:/etc/nginx/nginx.conf"
remote_calls:
  description: How many commands were sent to the node.
  returned: always
  type: int
  sample: 4
"""
