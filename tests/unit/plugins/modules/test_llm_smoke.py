# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""llm_smoke: how the process is started, what a result is, how failures are explained.

The models themselves are asked on nodes (molecule/llm_model); here stand-in interpreters take the place of an environment.
"""

from __future__ import annotations

import json
import os
import sys
import time

import pytest
from ansible.module_utils import basic
from ansible_collections.gpufleet.llm.plugins.action import llm_smoke as action
from ansible_collections.gpufleet.llm.plugins.module_utils import smoke_run
from ansible_collections.gpufleet.llm.plugins.modules import llm_smoke
from ansible_collections.gpufleet.llm.plugins.plugin_utils import errors

ANSWER = {
    "ok": True, "answer": "hello", "load_seconds": 1.0, "generate_seconds": 0.5, "tokens": 2, "tokens_per_second": 4.0,
    "peak_memory_bytes": 1000, "device": "cpu", "device_name": "x86_64", "precision": "float32", "versions": {"torch": "2"},
}  # fmt: skip


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Run the module; returns what it prints."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")

    def run(check=False, **args):
        args = {
            "python": sys.executable, "model_path": str(tmp_path / "model"), "kind": "text_generation", "prompt": "?",
            "_ansible_check_mode": check, "_ansible_diff": True, "_ansible_tmpdir": str(tmp_path), **args,
        }  # fmt: skip
        monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps({"ANSIBLE_MODULE_ARGS": args}).encode())
        monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
        with pytest.raises(SystemExit):
            llm_smoke.main()
        return json.loads(capsys.readouterr().out)

    return run


def stand_in(tmp_path, body, name="python"):
    """An interpreter's stand-in: runs `body` (sh) after it has read what it was given."""
    path = tmp_path / name
    path.write_text(f"#!/bin/sh\ncat > {tmp_path}/stdin\nenv > {tmp_path}/env\n{body}\n")
    path.chmod(0o755)
    return str(path)


def answering(tmp_path, answer=None):
    text = json.dumps({**ANSWER, **(answer or {})})
    return stand_in(tmp_path, f"printf '%s\\n' 'noise' '{smoke_run.BEGIN}' '{text}' '{smoke_run.END}'")


def test_the_answer_comes_back_and_nothing_changes_without_a_result_path(call, tmp_path):
    told = call(python=answering(tmp_path))
    assert told["ok"] and told["asked"] and told["answer"] == "hello" and not told["changed"]


def test_the_process_has_an_environment_of_its_own_and_no_net(call, tmp_path, monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", "/usr/local/cuda-12.0/lib64")
    monkeypatch.setenv("HF_TOKEN", "hf_secret12345")
    call(python=answering(tmp_path), environment={"CUDA_VISIBLE_DEVICES": 1})
    seen = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    assert seen["HF_HUB_OFFLINE"] == seen["TRANSFORMERS_OFFLINE"] == "1" and seen["CUDA_VISIBLE_DEVICES"] == "1"
    assert "LD_LIBRARY_PATH" not in seen and "HF_TOKEN" not in seen
    call(python=answering(tmp_path), library_path="/opt/x")
    assert "LD_LIBRARY_PATH=/opt/x\n" in (tmp_path / "env").read_text()


def test_the_script_and_the_request_come_on_stdin(call, tmp_path):
    call(python=answering(tmp_path), prompt="Wer bist du? 你好", precision="float16")
    given = (tmp_path / "stdin").read_text(encoding="utf-8")
    length, _, rest = given.partition("\n")
    assert rest[: int(length)].startswith("# Copyright") and "def text_generation" in rest[: int(length)]
    request = json.loads(rest[int(length) :])
    assert (request["prompt"], request["precision"], request["trust_remote_code"]) == (
        "Wer bist du? 你好",
        "float16",
        False,
    )


def test_the_starter_runs_the_script_in_a_real_interpreter(call):
    told = call(kind="text_generation")
    assert told["failed"] and "No module named 'torch'" in told["error_text"]


def test_a_result_is_kept_and_read_while_its_fingerprint_is_the_same(call, tmp_path):
    keep = tmp_path / "result.json"
    args = {"python": answering(tmp_path), "result_path": str(keep), "fingerprint": "f1"}
    assert call(check=True, **args)["changed"] and not keep.exists()
    assert call(**args)["changed"]
    assert json.loads(keep.read_text())["answer"] == "hello" and keep.stat().st_mode & 0o777 == 0o644
    again = call(**args)
    assert not again["changed"] and not again["asked"] and again["answer"] == "hello"
    assert not call(check=True, **args)["changed"]
    assert call(**{**args, "fingerprint": "f2"})["asked"]
    assert call(force=True, **{**args, "fingerprint": "f2"})["asked"]


def test_a_failure_keeps_no_result(call, tmp_path):
    keep = tmp_path / "result.json"
    told = call(python=stand_in(tmp_path, "echo Killed >&2; exit 137"), result_path=str(keep), fingerprint="f")
    assert told["failed"] and not keep.exists()


def test_a_time_limit_ends_the_process_and_what_it_started(call, tmp_path):
    python = stand_in(tmp_path, f"sleep 300 & echo $! > {tmp_path}/child; wait")
    told = call(python=python, timeout_seconds=1)
    assert told["failed"] and told["rc"] == 124 and "ended after 1 seconds" in told["error_text"]
    child = int((tmp_path / "child").read_text())
    for _attempt in range(100):  # the kernel needs a moment to reap
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        with open(f"/proc/{child}/stat", encoding="utf-8") as stream:
            if stream.read().rsplit(")", 1)[1].split()[0] == "Z":
                return
        time.sleep(0.05)
    raise AssertionError("the child lives")


def test_what_is_missing_is_told_before_a_process_is_started(call, tmp_path):
    assert "there is no Python at /nonexistent" in call(python="/nonexistent")["msg"]
    assert "no config.json" in call(model_path=str(tmp_path))["msg"]
    assert "user needs home" in call(user="nobody")["msg"]


def test_the_command_line():
    argv = llm_smoke.command(
        python="/e/bin/python", environment={"B": "2", "A": "1"}, limit=["/bin/timeout", "--kill-after=10", "9"],
        env_bin="/bin/env", runuser=["/sbin/runuser", "-u", "llm", "--"],
    )  # fmt: skip
    assert argv[:-1] == [
        "/sbin/runuser", "-u", "llm", "--", "/bin/timeout", "--kill-after=10", "9", "/bin/env", "-i", "A=1", "B=2",
        "/e/bin/python", "-I", "-c",
    ]  # fmt: skip


# --- the controller's half --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "klass"),
    [
        ("torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "out_of_memory"),
        ("RuntimeError: CUDA error: no kernel image is available for execution on the device", "wrong_wheel"),
        ("undefined symbol: __nvJitLinkAddData_12_1, version libnvJitLink.so.12", "wrong_wheel"),
        ("ModuleNotFoundError: No module named 'torch'", "missing_package"),
        ("ModuleNotFoundError: No module named 'sentencepiece'", "missing_package"),
        (
            "ValueError: The repository /w contains custom code which must be executed to correctly load the model. Please pass"
            " the argument `trust_remote_code=True` to allow custom code to be run.",
            "remote_code_refused",
        ),
        ("safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata", "bad_weights"),
        ("The NVIDIA driver on your system is too old (found version 11040)", "driver"),
        ("something nobody has seen", "other"),
    ],
)
def test_a_failure_gets_its_class_and_a_remedy(text, klass):
    told = action.explained(
        {"error_text": text, "msg": "the model did not answer", "rc": 1}, {"python": "/e/bin/python"}
    )
    assert told["error"]["class"] == klass
    assert told["error"]["remedy"] and told["msg"].startswith("the model did not answer")
    assert ("Remedy: " in told["msg"]) is (klass != "other")


def test_a_time_limit_is_a_class():
    assert action.explained({"error_text": "ended after 1 seconds", "rc": 124}, {})["error"]["class"] == "timeout"


def test_a_python_that_is_not_there_is_a_missing_package():
    told = action.explained({"error_text": "/x: No such file or directory", "rc": 127}, {"python": "/x"})
    assert told["error"]["class"] == "missing_package" and "/x cannot be run" in told["error"]["cause"]


def test_every_id_of_the_classes_is_in_the_error_catalogue():
    known = {entry.id for entry in errors.catalogue()}
    assert set(action.CLASSES) <= known


# --- the script's own decisions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "by_device", "device", "capability", "expected"),
    [
        ("auto", {"cpu": "float32", "cuda": "auto"}, "cpu", (0, 0), "float32"),
        ("auto", {"cuda": "auto"}, "cuda", (8, 0), "bfloat16"),
        ("auto", {"cuda": "auto"}, "cuda", (7, 5), "float16"),
        ("auto", {"cuda": "float16"}, "cuda", (9, 0), "float16"),
        ("int4", {"cuda": "float16"}, "cuda", (9, 0), "int4"),
        ("auto", {}, "cpu", (0, 0), "float32"),
    ],
)
def test_the_precision(wanted, by_device, device, capability, expected):
    assert smoke_run.choose_precision(wanted, by_device, device, capability) == expected


def test_the_device():
    assert smoke_run.choose_device("auto", True) == "cuda" and smoke_run.choose_device("auto", False) == "cpu"
    assert smoke_run.choose_device("cpu", True) == "cpu"
    with pytest.raises(RuntimeError, match="is_available"):
        smoke_run.choose_device("cuda", False)


def test_the_tone_is_two_seconds_of_a_sine():
    sound = smoke_run.tone()
    assert len(sound) == 32000 and abs(max(sound) - 0.33) < 0.001 and sound[0] == 0.0


@pytest.mark.parametrize(("version", "keyword"), [("4.40.2", "torch_dtype"), ("4.57.6", "dtype"), ("5.20.2", "dtype")])
def test_the_keyword_of_the_precision(version, keyword):
    transformers = type("T", (), {"__version__": version})
    assert smoke_run.dtype_argument(transformers, "x") == {keyword: "x"}
