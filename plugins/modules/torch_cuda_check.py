#!/usr/bin/python
# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the one cause why a PyTorch does not compute on a node; see DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: torch_cuda_check
short_description: Find the one cause why PyTorch does not compute, and its remedy
version_added: 0.1.0
description:
  - Looks at the PyTorch of one Python environment of the node, runs a real computation with it (addition, matrix
    product, convolution, sparse product, each with a known result), and names the one cause when it fails, with what
    was found, what was wanted and the remedy.
  - Looks in this order, and the first thing that is wrong is the cause. Python and PyTorch are there; kernel module
    and driver libraries are one version; the driver's CUDA version reaches the wheel's; the wheel has code for the
    card; the dynamic loader takes the wheel's own libraries (the ELF files are read, nothing is loaded); the
    computation.
  - C(torch.cuda.is_available) alone is not an answer, it is true also where no kernel runs.
  - What is wrong is an answer, never a failed task. Test RV(verdict) to fail on it.
  - The node is never changed. The computation runs in a child process with a time limit.
extends_documentation_fragment:
  - gpufleet.llm._attributes
  - gpufleet.llm._attributes.read_only
attributes:
  platform:
    platforms: linux
options:
  python:
    description:
      - Path of the Python interpreter of the environment.
      - Exactly one of O(python) and O(prefix) is required.
    type: path
  prefix:
    description:
      - Path of the environment (conda, venv), which has C(bin/python).
    type: path
  device:
    description:
      - Where to compute. With V(auto) on the card where PyTorch sees one, otherwise on the CPU.
      - With V(cuda) a computation on the CPU is not enough.
      - With V(cpu) nothing is asked of card and driver.
      - With V(auto), a node without a card and a PyTorch without CUDA are fine together; a PyTorch with CUDA on a node
        without a card is a warning, and one that does not reach the card of its node has failed.
    type: str
    choices: [auto, cpu, cuda]
    default: auto
  environment:
    description:
      - Environment variables of the service that will use PyTorch, for example C(LD_LIBRARY_PATH) of its unit. They are
        set for the computation, over those of the task.
      - An empty value unsets C(LD_LIBRARY_PATH) and C(LD_PRELOAD).
    type: dict
    default: {}
  timeout_seconds:
    description:
      - Time limit of import and computation together. A first import from a cold disk can take a minute.
    type: int
    default: 180
seealso:
  - module: gpufleet.llm.gpu_facts
author:
  - gpufleet.llm contributors (@gpufleet)
"""

EXAMPLES = r"""
---
- name: Check the PyTorch of an environment
  gpufleet.llm.torch_cuda_check:
    prefix: /opt/conda/envs/chatglm3
  register: torch_check

- name: Say what is wrong and what to do
  ansible.builtin.debug:
    msg: "{{ torch_check.verdict }}: {{ torch_check.explanation }} {{ torch_check.remedy }}"

- name: Stop where a card must compute
  gpufleet.llm.torch_cuda_check:
    python: /opt/conda/envs/chatglm3/bin/python
    device: cuda
  register: torch_check
  failed_when: torch_check.verdict == 'failed'

- name: Check it as the service will see it
  gpufleet.llm.torch_cuda_check:
    prefix: /opt/conda/envs/chatglm3
    environment:
      LD_LIBRARY_PATH: /usr/local/cuda-12.0/lib64
"""

RETURN = r"""
verdict:
  description:
    - V(ok), V(warning) (it computes, or cannot be expected to, but something is not as it should be) or V(failed).
  returned: always
  type: str
  sample: failed
cause:
  description:
    - Id of the cause in the error catalogue, V(unknown) for one that is not in it, empty when the verdict is V(ok).
  returned: always
  type: str
  sample: E1
title:
  description: The cause in a few words.
  returned: always
  type: str
  sample: A foreign libnvJitLink shadows the wheel's own
explanation:
  description: The cause in a sentence or two, with the values found; with verdict V(ok) what was computed where.
  returned: always
  type: str
  sample: >-
    The loader took /usr/local/cuda-12.0/lib64/libnvJitLink.so.12 (LD_LIBRARY_PATH) as libnvJitLink.so.12; it does not
    export __nvJitLinkAddData_12_1.
remedy:
  description: What to do, best first; empty when the verdict is V(ok).
  returned: always
  type: str
matched:
  description: The line of the program's output that decided, or empty.
  returned: always
  type: str
checks:
  description: All that was looked at, in order.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description:
        - Name of the check, one of V(python), V(torch), V(card), V(kernel_module), V(driver_api), V(architecture),
          V(libraries), V(computation).
      type: str
    ok:
      description: Whether it is as wanted; V(null) when it could not or need not be told.
      type: bool
    found:
      description: What was found.
      type: str
    wanted:
      description: What was wanted.
      type: str
python:
  description: The environment.
  returned: always
  type: dict
  contains:
    path:
      description: The interpreter that was asked.
      type: str
    version:
      description: Its version, or empty.
      type: str
    prefix:
      description: Its C(sys.prefix), or empty.
      type: str
torch:
  description: The installed PyTorch.
  returned: always
  type: dict
  contains:
    version:
      description: Its version, empty when it is not there or cannot be imported.
      type: str
    cuda:
      description: The CUDA version it was built for, V(null) for none.
      type: str
    cudnn:
      description: Version of the cuDNN that it loads, V(null) for none.
      type: int
    arch_list:
      description: The architectures that it holds code for.
      type: list
      elements: str
    build:
      description: V(cuda), V(rocm), V(cpu) or empty.
      type: str
    path:
      description: Its directory.
      type: str
computation:
  description: What was computed.
  returned: always
  type: dict
  contains:
    device:
      description: V(cuda), V(cpu), or empty when it did not come so far.
      type: str
    ok:
      description: Whether every step gave its known result.
      type: bool
    steps:
      description: The steps that were done.
      type: list
      elements: str
    failed_step:
      description: V(import), V(init) or the step that failed, or empty.
      type: str
    error:
      description: The last error in the program's words, or empty.
      type: str
    seconds:
      description: Duration of the child process.
      type: float
    cards:
      description: Name and compute capability of the cards that PyTorch sees.
      type: list
      elements: dict
    warnings:
      description: Warnings of PyTorch.
      type: list
      elements: str
driver:
  description: The driver as the node has it.
  returned: always
  type: dict
  contains:
    module_version:
      description: Version of the loaded kernel module, or empty.
      type: str
    library_version:
      description: Version of the driver's library, or empty.
      type: str
    cuda:
      description: CUDA version of the driver's API, or empty.
      type: str
libraries:
  description: The CUDA libraries by the rules of the dynamic loader.
  returned: always
  type: dict
  contains:
    shadowed:
      description:
        - Foreign files that stand before the environment's own, each with C(name), C(path), C(via), C(own),
          C(requester) and C(missing_symbols).
      type: list
      elements: dict
    unresolved:
      description: Files, foreign or own, that lack symbols which another library needs.
      type: list
      elements: dict
    missing:
      description: Libraries that are needed and found nowhere, each with C(name) and C(requester).
      type: list
      elements: dict
    loaded:
      description: Paths of the CUDA libraries that the computation had really loaded.
      type: list
      elements: str
    conf_directories:
      description: Directories with CUDA libraries that files in C(/etc/ld.so.conf.d) name. They are searched last.
      type: list
      elements: str
"""

import os
import re
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpufleet.llm.plugins.module_utils import gpu_gather, ldpath, torch_probe
from ansible_collections.gpufleet.llm.plugins.module_utils.bounded import bounded


def probe_source() -> str:
    """The text of the probe, from the module's zip or from a file."""
    loader = getattr(torch_probe, "__loader__", None)
    source = loader.get_source(torch_probe.__name__) if loader is not None else None
    if source is None:
        raise RuntimeError("the probe's source is not in the module")
    return str(source)


def interpreter(python: str | None, prefix: str | None) -> tuple[str, str]:
    """``(path of the interpreter, why it cannot be used)``; the second is empty when it can."""
    candidates = [python] if python else [os.path.join(prefix or "", "bin", name) for name in ("python", "python3")]
    paths = [path for path in candidates if path]
    if prefix and not os.path.isdir(prefix):
        return paths[0], f"there is no directory {prefix}"
    for path in paths:
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path, ""
    if os.path.isdir(paths[0]):
        return paths[0], "it is a directory; give an environment as prefix"
    if os.path.lexists(paths[0]):
        return paths[0], "it is not executable, or its link leads nowhere"
    return paths[0], "there is no such file" if python else f"{prefix} has no bin/python"


def not_python(module: AnsibleModule, python: str, environ: dict[str, str]) -> str:
    """Why this file is no Python 3.7 or later, or an empty text.

    Asked before the probe is given to it: another interpreter would run the probe's lines as its own.
    """
    try:
        with open(python, "rb") as stream:
            start = stream.read(4)
        # A text without "#!" would be run by a shell.
        if start != b"\x7fELF" and start[:2] != b"#!":
            return "it is no program"
        _rc, out, err = module.run_command(
            [*bounded(20, 5), python, "--version"], cwd="/", environ_update=environ, handle_exceptions=False
        )
    except (OSError, ValueError) as exc:
        return f"{type(exc).__name__}: {exc}"
    match = re.match(r"Python (\d+)\.(\d+)", out.strip() or err.strip())
    if not match:
        return f"it does not answer as Python ({' '.join((out + ' ' + err).split())[:200] or 'no answer'})"
    if (int(match.group(1)), int(match.group(2))) < (3, 7):
        return f"it is {match.group(0)}, 3.7 or later is needed"
    return ""


def run_probe(module: AnsibleModule, python: str, environ: dict[str, str]) -> dict[str, Any]:
    """Run the probe in the environment's Python: ``rc``, ``rows``, ``stdout`` and ``stderr`` (their ends), ``seconds``."""
    limit = module.params["timeout_seconds"]
    # The probe has its own watchdog; the outer limit is for a Python that hangs before it starts.
    command = [*bounded(limit + 15, 5), python, "-B", "-", module.params["device"], str(limit)]
    started = time.monotonic()
    try:
        rc, out, err = module.run_command(
            command,
            data=probe_source(),
            binary_data=False,
            cwd="/",
            environ_update={**environ, "CUDA_CACHE_DISABLE": "1", "PYTHONDONTWRITEBYTECODE": "1"},
            handle_exceptions=False,
            errors="surrogate_then_replace",
        )
    except (OSError, ValueError) as exc:
        rc, out, err = 126, "", f"{type(exc).__name__}: {exc}"
    rows = torch_probe.parse(out)
    plain = "\n".join(line for line in out.splitlines() if torch_probe.MARK not in line)
    return {
        "rc": rc,
        "rows": rows,
        "stdout": plain[-8000:],
        "stderr": err[-16000:],
        "seconds": round(time.monotonic() - started, 2),
    }


def own_folders(start: dict[str, Any]) -> list[str]:
    """Folders whose libraries belong to the environment; the system's Python owns only its package folders."""
    prefix = str(start.get("prefix") or "")
    sites = [str(one) for one in start.get("sites") or []]
    return sites if prefix in ("", "/", "/usr", "/usr/local") else [prefix, *sites]


def look_at_libraries(python: str, rows: list[dict[str, Any]], environ: dict[str, str]) -> dict[str, Any]:
    """The CUDA libraries by paper; empty lists where there is no PyTorch."""
    result: dict[str, Any] = {"libraries": [], "shadowed": [], "unresolved": [], "missing": []}
    start = next((row for row in rows if row.get("stage") == "python"), {})
    found = next((row for row in rows if row.get("stage") == "found"), {})
    folder = str(found.get("torch_path") or "")
    if folder:
        full = {**os.environ, **environ}
        sites = [one for one in start.get("sites") or [] if one.endswith(("-packages", os.path.dirname(folder)))]
        result = ldpath.analyse(os.path.realpath(python), ldpath.watched_roots(folder), full, own_folders(start), sites)
    loaded: list[str] = next((row["libraries"] for row in reversed(rows) if row.get("libraries")), [])
    result["loaded"] = loaded
    result["foreign_loaded"] = [
        path
        for path in loaded
        if not ldpath.inside(path, own_folders(start)) and not ldpath.DRIVER_LIBRARIES.match(os.path.basename(path))
    ]
    result["conf_directories"] = [
        directory
        for directory, _file in ldpath.conf_directories()
        if os.path.isdir(directory) and any(ldpath.WATCHED.match(name) for name in sorted(os.listdir(directory)))
    ]
    return result


def device_files() -> list[str]:
    """``/dev/nvidia*`` files that this user cannot open for reading and writing."""
    try:
        names = sorted(os.listdir("/dev"))
    except OSError:
        return []
    paths = [os.path.join("/dev", name) for name in names if name.startswith("nvidia")]
    return [path for path in paths if not os.path.isdir(path) and not os.access(path, os.R_OK | os.W_OK)]


def main() -> None:
    """Read the arguments, look, leave. The action plugin makes the verdict of what is returned here."""
    module = AnsibleModule(
        argument_spec={
            "python": {"type": "path"},
            "prefix": {"type": "path"},
            "device": {"type": "str", "choices": ["auto", "cpu", "cuda"], "default": "auto"},
            "environment": {"type": "dict", "default": {}},
            "timeout_seconds": {"type": "int", "default": 180},
        },
        mutually_exclusive=[("python", "prefix")],
        required_one_of=[("python", "prefix")],
        supports_check_mode=True,
    )
    if module.params["timeout_seconds"] < 1:
        module.fail_json(msg=f"timeout_seconds is {module.params['timeout_seconds']}, it must be 1 or more")
    environ = {str(key): "" if value is None else str(value) for key, value in module.params["environment"].items()}
    python, problem = interpreter(module.params["python"], module.params["prefix"])
    problem = problem or not_python(module, python, environ)
    raw: dict[str, Any] = {
        "device": module.params["device"],
        "timeout_seconds": module.params["timeout_seconds"],
        "python": python,
        "problem": problem,
        "probe": {"rc": 0, "rows": [], "stdout": "", "stderr": "", "seconds": 0.0},
        "libraries": {},
        "gpu": {},
        "closed_device_files": [],
        "cuda_visible_devices": {**os.environ, **environ}.get("CUDA_VISIBLE_DEVICES"),
    }
    if not problem:
        raw["probe"] = run_probe(module, python, environ)
        raw["libraries"] = look_at_libraries(python, raw["probe"]["rows"], environ)
    if module.params["device"] != "cpu":
        gathered = gpu_gather.gather(
            subset=gpu_gather.resolve_subset(["min"]), timeout_seconds=30, run_command=module.run_command
        )
        if gathered.hung:
            gpu_gather.leave_without_destructors()
        facts = gathered.facts
        raw["gpu"] = {key: facts[key] for key in ("state", "detail", "remedy", "usable", "driver", "gpus")}
        raw["closed_device_files"] = device_files()
    module.exit_json(changed=False, raw=raw)


if __name__ == "__main__":
    main()
