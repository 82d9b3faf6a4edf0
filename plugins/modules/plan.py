#!/usr/bin/python
# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: plan
short_description: Plan driver, CUDA toolkit, Python, torch and precision of a node before anything changes
version_added: 0.1.0
description:
  - Computes from the facts of a node, what its inventory pins and the models wanted on it one plan, C(gpufleet_plan), with a
    reason for each choice, and conflicts with remedies.
  - Decides by dated tables in the collection, where every row names its source.
  - A pin is a constraint and never overridden. Where nothing satisfies it the plan keeps it and has a conflict.
  - Runs on the controller only; no connection to the node is made. A conflict does not fail the task.
  - Needs the facts of M(gpufleet.llm.gpu_facts), or O(pci_ids). Of M(ansible.builtin.setup) it uses C(distribution),
    C(distribution_version), C(os_family), C(kernel), C(architecture), C(memory_mb) and C(mounts), where they are there.
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
      - Changes nothing in either mode.
  diff_mode:
    support: none
    details:
      - There is nothing to change.
  platform:
    platforms: all
  idempotent:
    support: full
    details:
      - The same facts, pins and models give the same plan, byte for byte.
options:
  models:
    description:
      - The models wanted, as C(llm_model_wanted) has them, names of the catalogue or mappings with C(name) and what differs.
      - A mapping with C(precisions) is the solver's own description of a model and needs no catalogue.
    type: list
    elements: raw
    default: []
  catalog_dirs:
    description: Folders with catalogue folders of your own, before the collection's.
    type: list
    elements: path
    default: []
  pins:
    description:
      - What must not be decided otherwise, by convention C(gpufleet_pins) of the inventory.
      - Known keys are V(driver_branch), V(driver_version), V(driver_flavour), V(driver_method), V(cuda_toolkit), V(python),
        V(torch), V(torch_variant), V(torch_index), V(precision), V(accelerator), V(compute_capability),
        V(forward_compatibility), and V(models) with C(precision), C(torch), C(torch_variant), C(torch_index) and C(python) per
        model. An unknown key is a conflict.
    type: dict
    default: {}
  facts:
    description: Facts to plan with, in the shape of C(ansible_facts). Default are those of the host.
    type: dict
  pci_ids:
    description: Plan for cards of which only the PCI id is known, such as V(10de:1eb8), instead of those in the facts.
    type: list
    elements: str
  models_path:
    description: Where models will lie, to look up free space in C(ansible_facts.mounts).
    type: path
    default: /
  memory_basis:
    description:
      - Whether a card counts with its free memory now or with all of it. V(total) suits a node whose own models hold the memory
        while the plan is made.
    type: str
    choices: [free, total]
    default: free
"""

EXAMPLES = r"""
---
- name: Ask what GPU the node has
  gpufleet.llm.gpu_facts:

- name: Make the plan
  gpufleet.llm.plan:
    models: [chatglm3_6b]
    pins:
      driver_version: 525.85.05
      cuda_toolkit: 12.0.1
  register: result

- name: Stop before the first change
  ansible.builtin.fail:
    msg: "{{ result.conflicts | map(attribute='remedy') | join(' ') }}"
  when: not result.ok

- name: Plan for a card that is not there yet
  gpufleet.llm.plan:
    pci_ids: ["10de:15f8"]
    pins:
      cuda_toolkit: "13.0"
"""

RETURN = r"""
ok:
  description: The plan has no conflicts.
  returned: always
  type: bool
  sample: true
conflicts:
  description: The same as RV(ansible_facts.gpufleet_plan.conflicts).
  returned: always
  type: list
  elements: dict
  sample: []
ansible_facts:
  description: Facts to add to C(ansible_facts).
  returned: always
  type: complex
  contains:
    gpufleet_plan:
      description: The plan. Every key is always there.
      returned: always
      type: dict
      contains:
        schema:
          description: Version of this shape.
          type: int
          returned: always
        tables_as_of:
          description: Date of the tables that were used.
          type: str
          returned: always
        node:
          description: The node.
          type: str
          returned: always
        ok:
          description: There are no conflicts.
          type: bool
          returned: always
        accelerator:
          description: V(cuda) or V(cpu).
          type: str
          returned: always
        gpus:
          description: The cards with name, architecture, compute capability and memory.
          type: list
          elements: dict
          returned: always
        driver:
          description:
            - C(action) (V(keep), V(install), V(upgrade), V(downgrade), V(reinstall) or V(none)), C(branch), C(version) (V(null)
              is the branch's newest), C(version_floor), C(flavour), C(method) (V(nvidia_repo), V(distribution), V(runfile) or
              V(none)), C(sha256) of a known runfile, C(cuda_api), C(installed), C(forward_compatibility).
          type: dict
          returned: always
        cuda_toolkit:
          description: C(version) (V(null) for none) and C(needed).
          type: dict
          returned: always
        python:
          description: Python of the first environment.
          type: str
          returned: always
          sample: "3.11"
        torch:
          description:
            - Torch of the first environment, C(version), C(variant), C(cuda), C(index) (V(pypi) or V(pytorch)), C(requirement),
              C(requirements) with companions, C(torchvision), C(torchaudio), C(code) that serves the cards, C(glibc).
          type: dict
          returned: always
        models:
          description:
            - Per model C(name), C(device), C(precision), C(dtype), C(method), C(fits), C(memory_needed_bytes),
              C(memory_needed_high_bytes), C(memory_basis) (V(stated) or V(estimated)), C(memory_available_bytes), C(card),
              C(python), C(torch) and the precisions C(considered).
          type: list
          elements: dict
          returned: always
        download_bytes:
          description: Bytes to download, V(null) when a part is not known.
          type: int
          returned: always
        download:
          description: C(total_bytes), C(known_bytes), and the names of what is C(unknown).
          type: dict
          returned: always
        disk_needed_bytes:
          description: Disk needed, V(null) when a part is not known.
          type: int
          returned: always
        disk:
          description: As C(download), with C(free_bytes).
          type: dict
          returned: always
        pins:
          description: The pins as they were understood.
          type: dict
          returned: always
        reasons:
          description: Every choice, C(choice), C(because), C(rule), C(source).
          type: list
          elements: dict
          returned: always
        conflicts:
          description: What cannot be, C(rule), C(found), C(wanted), C(remedy).
          type: list
          elements: dict
          returned: always
        warnings:
          description: What works but should be known, C(rule), C(message).
          type: list
          elements: dict
          returned: always
"""
