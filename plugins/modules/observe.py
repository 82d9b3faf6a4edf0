#!/usr/bin/python
# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: observe
short_description: Look at everything a role manages with one remote command
version_added: 0.1.0
description:
  - Looks at packages, files, links, directories, systemd units, users, signing keys, git clones, Python environments and
    model weights on the node, compares them with what is wanted, and says what differs.
  - One remote command does it all. What is sent is a script of a few kilobytes on stdin, not a module.
  - It reads the real thing (package database, bytes of a file, state of the unit, distributions in an environment),
    never a marker file, and never changes anything.
  - In check mode it reports RV(ignore:changed) and the diff of what the tasks behind it would do, so that a role needs no
    further task to predict its changes.
notes:
  - This is an action plugin; it cannot be used with C(async).
  - In templates write C(seen['items']), because C(seen.items) is a method of dictionaries.
requirements:
  - python >= 3.9 on the node, standard library only. A node without it is reported in words, see O(missing_python).
author:
  - gpufleet.llm contributors (@gpufleet)
extends_documentation_fragment:
  - gpufleet.llm._attributes
attributes:
  check_mode:
    support: full
    details:
      - Never changes the node. In check mode RV(ignore:changed) says whether something differs.
  diff_mode:
    support: full
    details:
      - Shows in check mode what would change, except for items with C(no_log).
  platform:
    platforms: linux
  idempotent:
    support: full
options:
  items:
    description:
      - What to look at. Every item has a C(kind) and may have a C(key), which names it in the result; the default is
        C(kind:name) or C(kind:path).
      - A key with the value V(null) counts as left out. Modes are strings. Paths are absolute or start with C(~).
      - 'C(package): O(ignore:name), C(state) (V(present), V(absent)), C(version) (exact or a glob such as V(1.24.0-1*); an
        rpm may leave out epoch and release), C(hold), C(manager) (V(auto), V(dpkg), V(rpm), V(pacman)).'
      - 'C(file): C(path), C(content) or C(sha256) or neither, C(owner), C(group), C(mode), C(no_log). With C(content) or
        C(sha256) a symbolic link is not taken for the file.'
      - 'C(absent): C(path). C(link): C(path), C(target). C(directory): C(path), C(owner), C(group), C(mode).'
      - 'C(unit): C(name), C(enabled), C(active), C(masked). A unit that is not there is disabled and inactive; a static or
        generated one satisfies both values of C(enabled).'
      - 'C(user): C(name), C(state), C(home), C(shell), C(group), C(groups) (all of these, others may be there), C(uid).'
      - 'C(key): C(path) of an OpenPGP key file, C(fingerprints) of all and only its primary keys, C(owner), C(group),
        C(mode).'
      - 'C(git): C(path), C(commit) (40 hex digits), C(clean) (default V(true)), C(remote).'
      - 'C(conda_env): C(prefix), C(python), C(packages) (conda packages), C(requirements) (Python distributions), C(exact).
        C(venv): the same without C(packages). Versions may be V(null).'
      - 'C(manifest): C(path) of a directory, C(files) (relative path to C(size) and C(sha256) or C(git_sha1)), C(record)
        (default C(PATH/.gpufleet/verified.json)). Files of at most 64 KiB are hashed at every look. C(manifest) may name a
        JSON file on the node whose C(files) come under those of the item and whose C(fingerprint) must be that of the item.'
      - 'C(command): C(argv), C(rc) (default V(0)), C(stdout) (exact, stripped) or C(regex), C(env), C(no_log).'
      - 'C(kernel_module): C(name), C(loaded). C(glob): C(pattern), C(paths) (exactly these, default none).'
      - 'C(read): C(key) and C(path) or C(argv); C(disk): C(path). These two never differ; they only bring back what is
        there.'
    type: list
    elements: dict
    default: []
  deep:
    description:
      - Also hash what is normally compared by size, modification time and inode against the record of the last
        verification (weights).
    type: bool
    default: false
  missing_python:
    description:
      - What to do when the node has no Python 3.9 or newer.
      - V(fail) ends with an error that says how to get one; V(report) says so in RV(python_missing) and counts every item
        as differing.
    type: str
    choices: [fail, report]
    default: fail
seealso:
  - module: ansible.builtin.package_facts
  - module: ansible.builtin.stat
"""

EXAMPLES = r"""
---
- name: Look at all that this role manages
  gpufleet.llm.observe:
    items:
      - kind: package
        name: nginx
        version: 1.24.0-1*
        hold: true
      - kind: file
        path: /etc/nginx/conf.d/llm.conf
        content: "{{ lookup('ansible.builtin.template', 'llm.conf.j2') }}"
        owner: root
        group: root
        mode: "0644"
      - kind: absent
        path: /etc/nginx/conf.d/default.conf
      - kind: unit
        name: nginx.service
        enabled: true
        active: true
  register: seen

- name: Bring it to its state
  ansible.builtin.include_tasks: converge.yml
  when: seen.differs and not ansible_check_mode

- name: Check a clone and the weights beside it byte by byte
  gpufleet.llm.observe:
    deep: true
    items:
      - kind: git
        path: /srv/llm/chatglm3
        commit: 33953b119e08bbbed49fb2a1ab3a0bbb2d5b5a8b
      - kind: manifest
        path: /srv/llm/weights
        files:
          config.json:
            size: 1425
            sha256: "{{ manifest['config.json'].sha256 }}"
"""

RETURN = r"""
differs:
  description: Whether at least one item is not as wanted.
  returned: success
  type: bool
  sample: true
drift:
  description: Keys of the items that differ.
  returned: success
  type: list
  elements: str
  sample: ["package:nginx"]
items:
  description: One entry per item, in the order given.
  returned: success
  type: list
  elements: dict
  contains:
    key:
      description: The item's key.
      type: str
      returned: always
    kind:
      description: The item's kind.
      type: str
      returned: always
    name:
      description: The item's name, path, prefix, pattern or command.
      type: str
      returned: always
    differs:
      description: Whether it is not as wanted.
      type: bool
      returned: always
    reasons:
      description: Why, in words, with the value found and the one wanted.
      type: list
      elements: str
      returned: always
    before:
      description: What was found.
      type: dict
      returned: always
    after:
      description: What was asked for.
      type: dict
      returned: always
seen:
  description: What was found, by key.
  returned: success
  type: dict
  sample: {"package:nginx": {"state": "absent", "version": null, "hold": false, "arch": null, "manager": "dpkg"}}
platform:
  description: The node. C(boot_time) is in seconds since the epoch.
  returned: success
  type: dict
  sample: {"python": "3.11.2", "kernel": "6.1.0-13-amd64", "machine": "x86_64", "uid": 0, "boot_time": 1700000000}
remote_calls:
  description: How many remote commands it took.
  returned: success
  type: int
  sample: 1
python_missing:
  description: The node has no Python 3.9 or newer.
  returned: always
  type: bool
  sample: false
"""
