#!/usr/bin/python
# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: artifact
short_description: Fetch a file whose SHA-256 is known, from the first of several places that has it
version_added: 0.1.0
author:
  - gpufleet.llm contributors (@gpufleet)
description:
  - The one way in which this collection downloads files, such as installers, runfiles, keys and weights.
  - The file appears under its name only by rename and only when its SHA-256 is right. A file with a wrong SHA-256 is
    removed and the next URL is tried; the message of a failure lists what was wrong with each of them.
  - A download that was cut stays as C(<dest>.part) beside O(dest) and is continued where it ended, in the same run, by
    the next run, and also from another URL.
  - The disk is looked at before the first byte; only what is still missing has to fit.
  - Proxies are taken from the environment (C(http_proxy), C(https_proxy), C(no_proxy)).
  - No message, log or progress file holds the query string or the credentials of a URL.
extends_documentation_fragment:
  - gpufleet.llm._attributes
  - ansible.builtin.files
attributes:
  check_mode:
    support: full
    details:
      - Reads the SHA-256 of a file that is there; downloads nothing and asks no server.
  diff_mode:
    support: full
  platform:
    platforms: linux
  idempotent:
    support: full
options:
  urls:
    description:
      - Where the file may be had, tried in this order. P(gpufleet.llm.mirror_urls#filter) makes this list.
      - The schemes V(https), V(http) and V(file) are known. A redirect from V(https) to V(http) is not followed.
    type: list
    elements: str
    required: true
  sha256:
    description: What the file must be, as 64 hexadecimal digits.
    type: str
    required: true
  dest:
    description: Path of the file. Its directory must exist.
    type: path
    required: true
  size_bytes:
    description:
      - Size of the file, where it is known. With it the disk is checked before anything is asked for; without it, the
        size that the server tells is used.
    type: int
  ca_path:
    description:
      - A bundle or a directory of certificates that are trusted beside those of the system, for a private mirror.
      - Empty for the system's own only.
    type: str
    default: ''
  timeout_seconds:
    description: How long a server may be silent. It does not limit a download that moves.
    type: int
    default: 30
  attempts:
    description:
      - How often one URL may fail in a row before the next one is tried. A connection that brought data counts anew.
      - Between two attempts the module waits 1, 2, 4 ... seconds, never more than 30.
    type: int
    default: 3
  progress_path:
    description:
      - Path of a JSON file with C(url), C(bytes), C(total) (V(null) when it is not known) and C(started) (seconds since
        the epoch), replaced at most once a second while the download runs. Empty for none.
    type: str
    default: ''
  headers:
    description: Headers for every request, for example for a token. They are not sent on to another host.
    type: dict
    default: {}
seealso:
  - plugin: gpufleet.llm.mirror_urls
    plugin_type: filter
  - module: ansible.builtin.get_url
"""

EXAMPLES = r"""
---
- name: Fetch the installer
  gpufleet.llm.artifact:
    urls:
      - https://mirrors.tuna.tsinghua.edu.cn/anaconda/archive/Anaconda3-2023.09-0-Linux-x86_64.sh
      - https://repo.anaconda.com/archive/Anaconda3-2023.09-0-Linux-x86_64.sh
    sha256: 6c8a4abb36fbb711dc055b7049a23bbfd61d356de9468b41c5140f8a11abd851
    dest: /var/cache/gpufleet/Anaconda3-2023.09-0-Linux-x86_64.sh
    mode: "0644"

- name: Fetch it through the mirror of this site
  gpufleet.llm.artifact:
    urls: "{{ installer_url | gpufleet.llm.mirror_urls('ustc') }}"
    sha256: "{{ installer_sha256 }}"
    size_bytes: 1153404010
    dest: /var/cache/gpufleet/installer.sh
    progress_path: /run/gpufleet-installer.json
"""

RETURN = r"""
dest:
  description: Path of the file.
  returned: success
  type: str
  sample: /var/cache/gpufleet/installer.sh
sha256:
  description: The SHA-256 of the file.
  returned: success
  type: str
  sample: 6c8a4abb36fbb711dc055b7049a23bbfd61d356de9468b41c5140f8a11abd851
size_bytes:
  description: Size of the file, V(0) in check mode when it is not there yet.
  returned: success
  type: int
  sample: 1153404010
url:
  description: The URL that served it, without query and credentials. Empty when nothing was downloaded.
  returned: success
  type: str
  sample: https://repo.anaconda.com/archive/Anaconda3-2023.09-0-Linux-x86_64.sh
downloaded_bytes:
  description: What was transferred by this call.
  returned: success
  type: int
  sample: 1153404010
resumed_from_bytes:
  description: What was kept of an earlier, cut download.
  returned: success
  type: int
  sample: 0
failures:
  description: What was wrong with the URLs that were tried in vain, also when a later one served the file.
  returned: always
  type: list
  elements: dict
  contains:
    url:
      description: The URL, without query and credentials.
      type: str
    error:
      description: What was wrong.
      type: str
  sample: []
"""

import os
import re
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpufleet.llm.plugins.module_utils.fetch import Fetch, FetchError, secrets_of, sha256_of


def state_of(path: str) -> dict[str, Any]:
    """What is at `path`, for the diff: {path, state} and for a file also {sha256, size_bytes}."""
    if os.path.isfile(path):
        return {"path": path, "state": "file", "sha256": sha256_of(path), "size_bytes": os.path.getsize(path)}
    return {"path": path, "state": "other" if os.path.lexists(path) else "absent"}


def main() -> None:
    # no_log: what the module was called with is kept out of the system's log, since URLs may be signed.
    module = AnsibleModule(
        argument_spec={
            "urls": {"type": "list", "elements": "str", "required": True},
            "sha256": {"type": "str", "required": True},
            "dest": {"type": "path", "required": True},
            "size_bytes": {"type": "int"},
            "ca_path": {"type": "str", "default": ""},
            "timeout_seconds": {"type": "int", "default": 30},
            "attempts": {"type": "int", "default": 3},
            "progress_path": {"type": "str", "default": ""},
            "headers": {"type": "dict", "default": {}, "no_log": True},
        },
        add_file_common_args=True,
        supports_check_mode=True,
        no_log=True,
    )
    params = module.params
    dest, wanted = params["dest"], params["sha256"].strip().lower()
    for url in params["urls"]:
        module.no_log_values.update(secrets_of(url))

    if not re.fullmatch(r"[0-9a-f]{64}", wanted):
        module.fail_json(msg=f"sha256 must be 64 hexadecimal digits, found {params['sha256']!r}", failures=[])
    if not params["urls"]:
        module.fail_json(msg=f"there is no URL to fetch {dest} from: urls is empty", failures=[])
    if os.path.isdir(dest):
        module.fail_json(msg=f"dest must be the path of a file; {dest} is a directory", failures=[])

    before = state_of(dest)
    right = before.get("sha256") == wanted
    result: dict[str, Any] = {
        "changed": not right,
        "dest": dest,
        "sha256": wanted,
        "size_bytes": before.get("size_bytes", 0) if right else (params["size_bytes"] or 0),
        "url": "",
        "downloaded_bytes": 0,
        "resumed_from_bytes": 0,
        "failures": [],
    }
    after = dict(before)
    if not right:
        after = {"path": dest, "state": "file", "sha256": wanted}
        if not module.check_mode:
            if not os.path.isdir(os.path.dirname(os.path.abspath(dest))):
                module.fail_json(msg=f"the directory of dest does not exist: {os.path.dirname(dest)}", failures=[])
            try:
                fetched = Fetch(
                    urls=params["urls"],
                    dest=dest,
                    sha256=wanted,
                    size_bytes=params["size_bytes"],
                    ca_path=params["ca_path"],
                    timeout_seconds=float(params["timeout_seconds"]),
                    progress_path=params["progress_path"],
                    headers={str(name): str(value) for name, value in params["headers"].items()},
                    attempts=max(1, params["attempts"]),
                ).run(place=module.atomic_move)
            except FetchError as error:
                module.fail_json(msg=str(error), failures=error.failures)
            except OSError as error:
                module.fail_json(msg=f"cannot write {dest}: {error}", failures=[])
            result.update(
                url=fetched.url,
                size_bytes=fetched.size_bytes,
                downloaded_bytes=fetched.downloaded_bytes,
                resumed_from_bytes=fetched.resumed_from_bytes,
                failures=fetched.failures,
            )
        if result["size_bytes"]:
            after["size_bytes"] = result["size_bytes"]

    diff = {"before": before, "after": after}
    if os.path.exists(dest):
        attributes = module.load_file_common_arguments(params, path=dest)
        result["changed"] = module.set_fs_attributes_if_different(attributes, result["changed"], diff)
    result["diff"] = diff
    module.exit_json(**result)


if __name__ == "__main__":
    main()
