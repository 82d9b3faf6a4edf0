# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every entry of the error catalogue, by the message as the program really prints it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import yaml
from ansible_collections.gpufleet.llm.plugins.plugin_utils import errors

# id, the real message, where the wording was read (or what printed it).
MESSAGES = [
    ("E1", "ImportError: /opt/env/lib/python3.10/site-packages/torch/lib/../../nvidia/cusparse/lib/libcusparse.so.12: "
           "undefined symbol: __nvJitLinkAddData_12_1, version libnvJitLink.so.12", "pytorch/pytorch#111469"),
    ("E1", "libcusparse.so.12: undefined symbol: __nvJitLinkComplete_12_4, version libnvJitLink.so.12",
     "pytorch/pytorch#134929"),
    ("E2", "UserWarning: CUDA initialization: The NVIDIA driver on your system is too old (found version 12000). Please "
           "update your GPU driver by downloading and installing a new version from the URL: "
           "http://www.nvidia.com/Download/index.aspx", "c10/cuda/CUDAFunctions.cpp"),
    ("E2", "RuntimeError: CUDA error: CUDA driver version is insufficient for CUDA runtime version", "cudaErrorString 35"),
    ("E3", "AssertionError: Torch not compiled with CUDA enabled", "torch/cuda/__init__.py:522 of 2.13.0"),
    ("E4", "RuntimeError: CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be "
           "asynchronously reported at some other API call", "cudaErrorString 209"),
    ("E4", "UserWarning: \nTesla P100-PCIE-16GB with CUDA capability sm_60 is not compatible with the current PyTorch "
           "installation.\nThe current PyTorch install supports CUDA capabilities sm_70 sm_75 sm_80 sm_86 sm_90 sm_100 "
           "sm_120.", "torch/cuda/__init__.py:427 of 2.13.0"),
    ("E4", "Your installed torch==2.13.0+cu130 does not include kernels for this GPU. Reinstall the same version against "
           "a CUDA build that does, e.g.:", "torch/cuda/__init__.py of 2.13.0"),
    ("E5", "Could not load library libcudnn_cnn_infer.so.8. Error: libcuda.so: cannot open shared object file: No such "
           "file or directory\nPlease make sure libcudnn_cnn_infer.so.8 is in your library path!\nAborted",
     "pytorch/pytorch#85773"),
    ("E5", "Could not load library libcudnn_ops_infer.so.8. Error: libcudnn_ops_infer.so.8: cannot open shared object "
           "file: No such file or directory", "daswer123/xtts-finetune-webui#18"),
    ("E5", "Unable to load any of {libcudnn_engines_precompiled.so.9.1.0, libcudnn_engines_precompiled.so.9.1, "
           "libcudnn_engines_precompiled.so.9, libcudnn_engines_precompiled.so}", "pytorch/builder#1859"),
    ("E6", "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.173", "nvidia-smi rc 18"),
    ("E7", "ImportError: libcuda.so.1: cannot open shared object file: No such file or directory", "glibc"),
    ("E7", "RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a "
           "driver from http://www.nvidia.com/Download/index.aspx", "c10/cuda/CUDAFunctions.cpp"),
    ("E8", "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA "
           "driver is installed and running.", "nvidia-smi rc 9"),
    ("E9", "No devices were found", "nvidia-smi rc 6"),
    ("E9", "NVRM: The NVIDIA GPU 0000:02:00.0 (PCI ID: 10de:2c58)\nNVRM: installed in this system requires use of the "
           "NVIDIA open kernel modules.", "kernel log of 580.105.08"),
    ("E10", "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 172.00 MiB. GPU 3 has a total capacity of "
            "21.95 GiB of which 154.12 MiB is free.", "c10/cuda/CUDACachingAllocator.cpp"),
    ("E10", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "the same from torch 2.5"),
    ("node-without-python", "Task failed: Action failed: The module interpreter '/usr/bin/python9' was not found.",
     "ansible-core 2.19.14, ansible -m setup with an interpreter that is not there"),
    ("node-without-python", "The module failed to execute correctly, you probably need to set the interpreter.\nSee "
                            "stdout/stderr for the exact error", "ansible-core 2.18 plugins/action/__init__.py:1256"),
    ("node-without-python", "ansible-core requires a minimum of Python version 3.8. Current version: 3.6.8 (default, Nov 15 "
                            "2024, 08:11:39) [GCC 8.5.0 20210514 (Red Hat 8.5.0-22)]", "ansible-core module_utils/basic.py:19"),
    ("node-without-python", "This node has no Python 3.9 or newer, so nothing on it can be looked at. Install one",
     "plugins/action/observe.py"),
    ("E11", "A module that was compiled using NumPy 1.x cannot be run in\nNumPy 2.2.6 as it may crash. To support both 1.x "
            "and 2.x\nversions of NumPy, modules must be compiled with NumPy 2.0.", "numpy 2.2.6"),
    ("E12", "RuntimeError: \n        CUDA Setup failed despite GPU being available. Please run the following command to "
            "get more information:\n\n        python -m bitsandbytes", "bitsandbytes 0.42.0 cextension.py:21"),
    ("E13", "ModuleNotFoundError: No module named 'pkg_resources'", "Python 3.11 with setuptools 84.2.1"),
    ("cuda-forward-compat", "RuntimeError: Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions "
                            "before calling NumCudaDevices() that might have already set an error? Error 804: forward "
                            "compatibility was attempted on non supported HW", "cudaErrorString 804"),
    ("fabric-manager", "UserWarning: CUDA initialization: Unexpected error from cudaGetDeviceCount(). Did you run some "
                       "cuda functions before calling NumCudaDevices() that might have already set an error? Error 802: "
                       "system not yet initialized (Triggered internally at ../c10/cuda/CUDAFunctions.cpp:109.)", "torch"),
    ("cuda-stub", "RuntimeError: CUDA error: CUDA driver is a stub library", "cudaErrorString 34"),
    ("remote-code-refused", "ValueError: The repository /srv/models/chatglm3-6b contains custom code which must be "
                            "executed to correctly load the model. You can inspect the repository content at "
                            "/srv/models/chatglm3-6b .\n You can inspect the repository content at https://hf.co/x.\n"
                            "Please pass the argument `trust_remote_code=True` to allow custom code to be run.",
     "transformers 4.57.1 dynamic_module_utils.py:737"),
    ("remote-code-refused", "ValueError: Loading THUDM/chatglm3-6b requires you to execute the configuration file in that "
                            "repo on your local machine. Make sure you have read the code there to avoid malicious use, "
                            "then set the option `trust_remote_code=True` to remove this error.",
     "xorbitsai/inference#3000"),
    ("lfs-pointer", "OSError: You seem to have cloned a repository without having git-lfs installed. Please install git-lfs "
                    "and run `git lfs install` followed by `git lfs pull` in the folder you cloned.",
     "transformers 4.57.1 modeling_utils.py:537"),
    ("lfs-pointer", "_pickle.UnpicklingError: invalid load key, 'v'.", "torch.load of a pointer, torch 2.13.0"),
    ("safetensors-broken", "safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata, file "
                           "not fully covered", "safetensors 0.6.2 on a truncated file"),
    ("safetensors-broken", "safetensors_rust.SafetensorError: Error while deserializing header: header too large",
     "safetensors 0.6.2 on a Git LFS pointer"),
    ("safetensors-broken", "safetensors_rust.SafetensorError: Error while deserializing header: MetadataIncompleteBuffer",
     "Gourieff/ComfyUI-ReActor#80"),
    ("hub-gated", "huggingface_hub.errors.GatedRepoError: 403 Client Error. (Request ID: Root=1-6)\n\nCannot access gated "
                  "repo for url https://huggingface.co/api/models/google/gemma-2b-it/revision/main.\nAccess to model "
                  "google/gemma-2b-it is restricted and you are not in the authorized list.",
     "huggingface_hub 0.36.0 utils/_http.py:417"),
    ("hub-gated", "401 Client Error.\n\nCannot access gated repo for url https://huggingface.co/google/gemma-2b-it.\nAccess to "
                  "model google/gemma-2b-it is restricted. You must have access to it and be authenticated to access it.",
     "huggingface_hub 0.36.0 utils/_http.py:417"),
    ("hub-not-found", "huggingface_hub.errors.RepositoryNotFoundError: 401 Client Error. (Request ID: x)\n\nRepository Not "
                      "Found for url: https://huggingface.co/api/models/no/such.\nPlease make sure you specified the "
                      "correct `repo_id` and `repo_type`.", "huggingface_hub 0.36.0 utils/_http.py:446"),
    ("hub-refused", "403 Forbidden: None.\nCannot access content at: https://huggingface.co/x.\nMake sure your token has the "
                    "correct permissions.", "huggingface_hub 0.36.0 utils/_http.py"),
    ("hub-refused", "urllib.error.HTTPError: HTTP Error 401: Unauthorized", "urllib"),
    ("pip-hash-mismatch", "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated "
                          "the package versions, please update the hashes.", "pip 23.2.1"),
    ("pip-hash-mismatch", "ERROR: Hashes are required in --require-hashes mode, but they are missing from some "
                          "requirements. Here is a list of those requirements", "pip 23.2.1"),
    ("pip-no-distribution", "ERROR: Could not find a version that satisfies the requirement colorama==99 (from versions: "
                            "0.1, 0.4.6)\nERROR: No matching distribution found for colorama==99", "pip 23.2.1"),
    ("hash-mismatch", "sha256 mismatch: wanted 00, got 11", "gpufleet.llm.artifact"),
    ("hash-mismatch", "OSError: Consistency check failed: file should be of size 10 but has size 9 (model.bin).",
     "huggingface_hub 0.36.0 file_download.py:444"),
    ("no-space-left", "OSError: [Errno 28] No space left on device", "write to /dev/full"),
    ("conda-tos", "CondaToSNonInteractiveError: Terms of Service have not been accepted for the following channels. Please "
                  "accept or remove them before proceeding:\n    - https://repo.anaconda.com/pkgs/main", "conda"),
    ("conda-not-found", "PackagesNotFoundError: The following packages are not available from current channels:\n\n  - "
                        "pytorch", "conda"),
    ("conda-not-found", "Encountered problems while solving:\n  - nothing provides requested hparams", "mamba"),
    ("network", "CondaHTTPError: HTTP 000 CONNECTION FAILED for url <https://repo.anaconda.com/pkgs/main/noarch>", "conda"),
    ("module-missing", "ModuleNotFoundError: No module named 'tiktoken'", "CPython"),
    ("module-missing", "ImportError: This modeling file requires the following packages that were not found in your "
                       "environment: einops, tiktoken. Run `pip install einops tiktoken`",
     "transformers 4.57.1 dynamic_module_utils.py:261"),
    ("torch-missing", "ModuleNotFoundError: No module named 'torch'", "CPython"),
    ("undefined-symbol", "ImportError: /opt/env/lib/python3.10/site-packages/flash_attn_2_cuda.so: undefined symbol: "
                         "_ZN2at4_ops9_pad_enum4callERKNS_6TensorEN3c108ArrayRefINS5_6SymIntEEElNS5_8optionalIdEE",
     "glibc elf/dl-lookup.c"),
    ("glibc-too-old", "ImportError: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.28' not found (required by "
                      "/opt/env/lib/libtorch_cpu.so)", "glibc elf/dl-version.c"),
    ("libstdcxx-old", "ImportError: /opt/old/lib/libstdc++.so.6: version `CXXABI_1.3.5' not found (required by "
                      "/opt/env/lib/python3.11/site-packages/torch/lib/libtorch_python.so)", "glibc elf/dl-version.c"),
    ("libstdcxx-old", "ImportError: version `GLIBCXX_3.4.30' not found", "glibc elf/dl-version.c"),
    ("host-out-of-memory", "Out of memory: Killed process 4711 (python) total-vm:9kB", "kernel log"),
    ("crash", "Fatal Python error: Segmentation fault", "CPython faulthandler"),
]  # fmt: skip


@pytest.mark.parametrize(("wanted", "message", "source"), MESSAGES, ids=[f"{m[0]}-{i}" for i, m in enumerate(MESSAGES)])
def test_the_real_message_names_its_entry(wanted: str, message: str, source: str) -> None:
    found = errors.classify(f'Traceback (most recent call last):\n  File "x.py", line 1\n{message}\n')
    assert found["id"] == wanted, source
    assert found["cause"]
    assert found["remedy"]
    assert "{" not in found["cause"], "a placeholder was left"
    assert found["matched"]


def test_the_thirteen_of_the_book_are_there() -> None:
    assert {f"E{number}" for number in range(1, 14)} <= {one.id for one in errors.catalogue()}


def test_every_entry_is_complete_and_every_pattern_is_tested() -> None:
    with open(errors.CATALOGUE, encoding="utf-8") as stream:
        table = yaml.safe_load(stream)
    ids = [row["id"] for row in table["errors"]]
    assert len(ids) == len(set(ids))
    tested = {message[0] for message in MESSAGES}
    for row in table["errors"]:
        for key in ("id", "title", "patterns", "cause", "rule", "probe", "remedy", "source", "evidence", "verified"):
            assert key in row, (row["id"], key)
        assert row["remedy"] and all(isinstance(one, str) for one in row["remedy"]), row["id"]
        assert row["evidence"] in tuple("XRMIDK"), row["id"]
        assert isinstance(row["verified"], bool)
        # What only torch_cuda_check can find has no pattern; every other entry needs a message above.
        if row["patterns"] and row["id"] != "device-nodes":
            assert row["id"] in tested, row["id"]
        texts = [row["cause"], *row["remedy"]]
        for name in {name for text in texts for name in errors.re.findall(r"\{([a-z_]+)\}", text)}:
            assert name in row.get("defaults", {}) or all(f"(?P<{name}>" in one for one in row["patterns"]), (
                row["id"],
                name,
            )


def test_the_driver_number_is_read() -> None:
    found = errors.classify(
        "The NVIDIA driver on your system is too old (found version 12080)", {"wheel_cuda": "CUDA 13.0"}
    )
    assert "CUDA 12.8" in found["cause"]
    assert "CUDA 13.0" in found["cause"]


def test_the_file_that_is_too_old_is_named() -> None:
    message = "ImportError: /opt/old/lib/libstdc++.so.6: version `GLIBCXX_3.4.22' not found (required by /env/libtorch_cpu.so)"
    found = errors.classify(message)
    assert "/opt/old/lib/libstdc++.so.6" in found["cause"] and "GLIBCXX_3.4.22" in found["cause"]
    assert "/etc/ld.so.conf.d" in found["remedy"]


def test_a_warning_does_not_hide_what_ended_the_run() -> None:
    text = (
        "A module that was compiled using NumPy 1.x cannot be run in\nNumPy 2.2.6 as it may crash.\n"
        "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    )
    assert errors.classify(text)["id"] == "E10"


@pytest.mark.parametrize(("rc", "wanted"), [(137, "host-out-of-memory"), (-9, "host-out-of-memory"), (-11, "crash"),
                                            (139, "crash"), (124, "timeout"), (1, "unknown")])  # fmt: skip
def test_an_exit_status_decides_when_no_message_does(rc: int, wanted: str) -> None:
    assert errors.classify("nothing to see", {"rc": rc})["id"] == wanted


def test_a_message_goes_before_the_exit_status() -> None:
    assert errors.classify("No space left on device", {"rc": 137})["id"] == "no-space-left"


@pytest.mark.parametrize(
    "text", ["", None, "\x00\xff", "{symbol} {", "x" * 1_000_000], ids=["empty", "none", "binary", "braces", "long"]
)
def test_any_text_gives_an_answer_with_all_keys(text: str) -> None:
    found = errors.classify(text)
    assert set(found) == {"id", "title", "cause", "remedy", "remedies", "matched"}
    assert found["id"] == "unknown"


def test_secrets_do_not_come_back() -> None:
    text = (
        "Cannot access gated repo for url https://user:secret@hub.example/x "
        "with Authorization: Bearer hf_abcdefghijklmnopqrst"
    )
    found = errors.classify(text)
    assert found["id"] == "hub-gated"
    assert "secret" not in str(found)
    assert "hf_abcdef" not in str(found)


def test_explain_fills_what_it_is_given_and_keeps_defaults() -> None:
    found = errors.explain("E6", {"module_version": "525.85.05", "library_version": ""})
    assert "525.85.05" in found["cause"]
    assert "{library_version}" not in found["cause"]
    assert errors.explain("no such id")["id"] == "unknown"


def test_pkg_resources_is_really_gone(tmp_path: os.PathLike[str]) -> None:
    """E13 for real: this tool chain has no pkg_resources, and Python says so in the words of the entry."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", "import pkg_resources"], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        pytest.skip("this Python has setuptools < 82")
    assert errors.classify(done.stderr)["id"] == "E13"


def test_a_missing_libcuda_is_e7_in_the_loaders_own_words() -> None:
    """E7 for real: what the dynamic loader says on a machine without the driver."""
    code = "import ctypes; ctypes.CDLL('libcuda.so.1')"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        pytest.skip("this machine has the NVIDIA driver")
    assert errors.classify(done.stderr)["id"] == "E7"


def test_a_full_disk_is_named_in_the_kernels_own_words() -> None:
    code = "open('/dev/full', 'w').write('x' * 100000)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert errors.classify(done.stderr)["id"] == "no-space-left"
