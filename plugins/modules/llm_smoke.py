#!/usr/bin/python
# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: llm_smoke
short_description: Ask a model one question in its own environment and measure the answer
version_added: 0.1.0
author:
  - gpufleet.llm contributors (@gpufleet)
description:
  - Loads the weights in O(model_path) with the Python of the model's own environment, asks once, greedily, and reports the
    answer, how long loading and answering took, and how much memory they needed.
  - The process gets a time limit, an environment of its own without C(LD_LIBRARY_PATH), and no network. Everything that
    it started is ended with it.
  - A failure is told with the process's own words and, by the controller, with its cause and what to do about it.
  - With O(result_path) the result is kept on the node, and a later run with the same O(fingerprint) only reads it.
extends_documentation_fragment:
  - gpufleet.llm._attributes
attributes:
  check_mode:
    support: full
    details:
      - Runs no model. Says that it would change when there is no kept result with this fingerprint.
  diff_mode:
    support: full
  platform:
    platforms: linux
  idempotent:
    support: full
    details:
      - Without O(result_path) the model is asked every time, and nothing on the node changes.
requirements:
  - torch and transformers in the environment of O(python)
  - C(timeout) of coreutils on the node, and C(runuser) of util-linux if O(user) is given
options:
  python:
    description:
      - The Python of the model's environment.
    type: path
    required: true
  model_path:
    description:
      - Folder with the weights, the tokenizer and the configuration.
    type: path
    required: true
  kind:
    description:
      - How the model is asked.
      - V(text_generation) uses C(AutoModelForCausalLM) and the model's chat template.
      - V(chatglm) uses C(AutoModel) and the model's own C(chat) method, which is code of the weight repository.
      - V(speech_recognition) uses C(AutoModelForSpeechSeq2Seq) and two seconds of a synthesized tone.
    type: str
    choices: [text_generation, chatglm, speech_recognition]
    required: true
  prompt:
    description:
      - The question. Not used by V(speech_recognition).
    type: str
    default: ""
  max_new_tokens:
    description:
      - Length of the answer, at most.
    type: int
    default: 32
  precision:
    description:
      - Number format of the weights. V(auto) takes that of O(dtype) for the device.
      - V(int8) and V(int4) need a model that can quantize itself, such as ChatGLM3.
    type: str
    choices: [auto, float32, float16, bfloat16, int8, int4]
    default: auto
  dtype:
    description:
      - The precision on C(cpu) and on C(cuda). V(auto) means V(float32) on a CPU; on a card V(bfloat16) from compute
        capability 8.0, and V(float16) before.
    type: dict
    default: {cpu: float32, cuda: auto}
  device:
    description:
      - Where the model runs. V(auto) means the card, if the environment's torch can use one.
    type: str
    choices: [auto, cpu, cuda]
    default: auto
  language:
    description:
      - Language that a speech model shall expect.
    type: str
    default: ""
  trust_remote_code:
    description:
      - Whether Python code in O(model_path) may run. Pin the commit of the weights before you allow it.
    type: bool
    default: false
  allow_pickle:
    description:
      - Whether weights that are not safetensors may be loaded.
    type: bool
    default: false
  timeout_seconds:
    description:
      - The process is ended after this time.
    type: int
    default: 600
  user:
    description:
      - Account that runs the model. The task must be root then. The task's own account when empty.
    type: str
    default: ""
  home:
    description:
      - Folder that this account may write to, for caches. A temporary one when not given, which O(user) requires.
    type: path
  library_path:
    description:
      - Value of C(LD_LIBRARY_PATH) for the process. Wheels of torch need none, and one that names a CUDA toolkit breaks
        them.
    type: str
    default: ""
  environment:
    description:
      - More variables for the process, for example E(CUDA_VISIBLE_DEVICES). They can be read by other accounts on the node.
    type: dict
    default: {}
  result_path:
    description:
      - File that keeps the result, as JSON.
    type: path
  fingerprint:
    description:
      - Names everything that the answer depends on. A kept result with another fingerprint is out of date.
    type: str
    default: ""
  force:
    description:
      - Ask even if there is a kept result with this fingerprint.
    type: bool
    default: false
"""

EXAMPLES = r"""
---
- name: Does the model answer
  gpufleet.llm.llm_smoke:
    python: /opt/llm/envs/qwen1_5_0_5b_chat/bin/python
    model_path: /opt/llm/weights/qwen1_5_0_5b_chat
    kind: text_generation
    prompt: Say hello in one short sentence.
  register: smoke

- name: Show it
  ansible.builtin.debug:
    msg: "{{ smoke.answer }} ({{ smoke.tokens_per_second }} tokens per second on {{ smoke.device_name }})"

- name: Ask ChatGLM3 with 4-bit weights, as an account that can read but not change them
  gpufleet.llm.llm_smoke:
    python: /opt/llm/envs/chatglm3_6b/bin/python
    model_path: /opt/llm/weights/chatglm3_6b
    kind: chatglm
    prompt: Hello
    precision: int4
    trust_remote_code: true
    user: llm
    home: /opt/llm/home
    timeout_seconds: 1800
"""

RETURN = r"""
ok:
  description: Whether the model answered.
  returned: always
  type: bool
  sample: true
answer:
  description: What the model said.
  returned: when it answered
  type: str
  sample: Hello! How can I help you today?
load_seconds:
  description: Time to load tokenizer and weights and to bring them to the device.
  returned: when it answered
  type: float
  sample: 3.2
generate_seconds:
  description: Time to answer.
  returned: when it answered
  type: float
  sample: 0.9
tokens:
  description: Length of the answer.
  returned: when it answered
  type: int
  sample: 9
tokens_per_second:
  description: RV(tokens) divided by RV(generate_seconds).
  returned: when it answered
  type: float
  sample: 10.0
peak_memory_bytes:
  description: The most memory that torch had on the card; on a CPU the most that the process had.
  returned: when it answered
  type: int
  sample: 1350000000
device:
  description: V(cpu) or V(cuda).
  returned: when it answered
  type: str
  sample: cuda
device_name:
  description: Name of the card, or the processor's architecture.
  returned: when it answered
  type: str
  sample: Tesla T4
precision:
  description: Number format of the weights.
  returned: when it answered
  type: str
  sample: float16
versions:
  description: Versions of C(python), C(torch), C(transformers) and, when torch has it, C(cuda).
  returned: when it answered
  type: dict
  sample: {"python": "3.11.9", "torch": "2.7.1+cu126", "transformers": "4.57.6", "cuda": "12.6"}
fingerprint:
  description: As it was given.
  returned: always
  type: str
finished:
  description: When the model was asked, UTC.
  returned: when it answered
  type: str
  sample: "2026-11-21T08:15:30Z"
asked:
  description: Whether the model was asked in this run, or the answer is a kept one.
  returned: always
  type: bool
error_text:
  description: The last words of the process.
  returned: when it did not answer
  type: str
error:
  description: Cause and remedy, from the collection's error catalogue.
  returned: when it did not answer
  type: dict
  contains:
    id:
      description: Short name of the cause, V(unknown) when it is not in the catalogue.
      type: str
    class:
      description:
        - One of V(out_of_memory), V(wrong_wheel), V(missing_package), V(remote_code_refused), V(timeout), V(bad_weights),
          V(driver), V(other).
      type: str
    title:
      description: The cause in a few words.
      type: str
    cause:
      description: The cause in a sentence.
      type: str
    remedy:
      description: What to do.
      type: str
    matched:
      description: The line that decided.
      type: str
"""

import datetime
import json
import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpufleet.llm.plugins.module_utils import smoke_run
from ansible_collections.gpufleet.llm.plugins.module_utils.bounded import bounded

# Reads the length of the script and the script from stdin, so that no file is needed that the account could read.
STARTER = (
    "import sys;text=sys.stdin.read(int(sys.stdin.readline()));"
    "exec(compile(text,'smoke_run.py','exec'),{'__name__':'__main__'})"
)
# Exit statuses of timeout(1): it sent TERM; it had to send KILL (128 + 9).
TIMED_OUT = (124, 137)
ERROR_LIMIT = 20000


def command(
    *,
    python: str,
    environment: dict[str, str],
    limit: list[str],
    env_bin: str,
    runuser: list[str],
) -> list[str]:
    """The argument list: [runuser] timeout env -i NAME=VALUE ... python -I -c STARTER.

    C(limit) is what C(bounded) returns: timeout(1) puts what it starts into a process group of its own and signals all of it.
    """
    variables = [f"{name}={value}" for name, value in sorted(environment.items())]
    return [*runuser, *limit, env_bin, "-i", *variables, python, "-I", "-c", STARTER]


def process_environment(python: str, home: str, library_path: str, more: dict[str, Any]) -> dict[str, str]:
    """All variables of the process: nothing is inherited."""
    environment = {
        "HOME": home,
        "HF_HOME": os.path.join(home, "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "LANG": "C.UTF-8",
        "PATH": f"{os.path.dirname(python)}:/usr/local/bin:/usr/bin:/bin",
    }
    if library_path:
        environment["LD_LIBRARY_PATH"] = library_path
    environment.update({str(name): str(value) for name, value in more.items()})
    return environment


def read_result(path: str, fingerprint: str) -> dict[str, Any]:
    """The kept result with this fingerprint; an empty one when there is none."""
    try:
        with open(path, encoding="utf-8") as stream:
            found = json.load(stream)
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict) or found.get("fingerprint") != fingerprint or found.get("ok") is not True:
        return {}
    return found


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "python": {"type": "path", "required": True},
            "model_path": {"type": "path", "required": True},
            "kind": {
                "type": "str",
                "required": True,
                "choices": ["text_generation", "chatglm", "speech_recognition"],
            },
            "prompt": {"type": "str", "default": ""},
            "max_new_tokens": {"type": "int", "default": 32, "no_log": False},
            "precision": {
                "type": "str",
                "choices": ["auto", "float32", "float16", "bfloat16", "int8", "int4"],
                "default": "auto",
            },
            "dtype": {"type": "dict", "default": {"cpu": "float32", "cuda": "auto"}},
            "device": {"type": "str", "choices": ["auto", "cpu", "cuda"], "default": "auto"},
            "language": {"type": "str", "default": ""},
            "trust_remote_code": {"type": "bool", "default": False},
            "allow_pickle": {"type": "bool", "default": False},
            "timeout_seconds": {"type": "int", "default": 600},
            "user": {"type": "str", "default": ""},
            "home": {"type": "path"},
            "library_path": {"type": "str", "default": ""},
            "environment": {"type": "dict", "default": {}},
            "result_path": {"type": "path"},
            "fingerprint": {"type": "str", "default": ""},
            "force": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    params = module.params
    keep = params["result_path"]
    facts: dict[str, Any] = {"ok": False, "asked": False, "fingerprint": params["fingerprint"]}
    kept = read_result(keep, params["fingerprint"]) if keep and not params["force"] else {}
    if kept:
        module.exit_json(changed=False, **{**kept, "asked": False})
    diff = {
        "before": {"result": "none with this fingerprint"},
        "after": {"result": "kept", "fingerprint": params["fingerprint"]},
    }
    if module.check_mode:
        module.exit_json(changed=bool(keep), diff=diff if keep else {}, **facts)

    if not os.access(params["python"], os.X_OK):
        text = f"{params['python']}: No such file or directory"
        module.fail_json(msg=f"there is no Python at {params['python']}", rc=127, error_text=text, **facts)
    if not os.path.isfile(os.path.join(params["model_path"], "config.json")):
        text = f"{params['model_path']} has no config.json"
        module.fail_json(msg=f"there is no model: {text}", rc=1, error_text=text, **facts)
    runuser: list[str] = []
    if params["user"]:
        if not params["home"]:
            module.fail_json(msg="user needs home: a folder that this account may write to", error_text="", **facts)
        runuser = [module.get_bin_path("runuser", True), "-u", params["user"], "--"]
    home = params["home"] or module.tmpdir
    argv = command(
        python=params["python"],
        environment=process_environment(params["python"], home, params["library_path"], params["environment"]),
        limit=bounded(params["timeout_seconds"], 10),
        env_bin=module.get_bin_path("env", True),
        runuser=runuser,
    )
    request = {
        key: params[key]
        for key in (
            "kind",
            "model_path",
            "prompt",
            "max_new_tokens",
            "precision",
            "dtype",
            "device",
            "language",
            "trust_remote_code",
            "allow_pickle",
        )
    }
    loader: Any = smoke_run.__loader__  # also the one of the zip in which Ansible sends it
    source = str(loader.get_source(smoke_run.__name__))
    try:
        rc, out, err = module.run_command(
            argv, data=f"{len(source)}\n{source}{json.dumps(request)}\n", cwd="/", handle_exceptions=False
        )
    except OSError as error:  # the process was gone before it had read the request
        rc, out, err = 1, "", f"the process ended at once: {error.strerror or error}"
    facts["asked"] = True
    if smoke_run.BEGIN not in out:
        text = (err or out)[-ERROR_LIMIT:]
        if rc in TIMED_OUT:
            text += f"\nended after {params['timeout_seconds']} seconds"
            rc = 124
        module.fail_json(
            msg=f"the model did not answer: the process ended with {rc}", rc=rc, error_text=text.strip(), **facts
        )
    answer = json.loads(out.split(smoke_run.BEGIN, 1)[1].split(smoke_run.END, 1)[0])
    if not answer.pop("ok"):
        text = answer["error_text"].strip()
        last = text.splitlines()[-1] if text else answer["error_type"]
        module.fail_json(msg=f"the model did not answer: {last}", rc=1, error_text=text, **facts)
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    facts.update(answer, ok=True, finished=now)
    if keep:
        made = f"{keep}.{os.getpid()}.tmp"
        with open(made, "w", encoding="utf-8") as stream:
            json.dump(facts, stream, indent=1, sort_keys=True, ensure_ascii=False)
            stream.write("\n")
        os.chmod(made, 0o644)
        module.atomic_move(made, keep)
    module.exit_json(changed=bool(keep), diff=diff if keep else {}, **facts)


if __name__ == "__main__":
    main()
