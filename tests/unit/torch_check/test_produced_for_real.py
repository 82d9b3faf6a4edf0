# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The thirteen of the error catalogue: those that need no card are produced by the real programs and libraries.

E1 (NVIDIA's own libcusparse and libnvJitLink) and E3 (a CPU wheel) are in test_torch_cuda_check.py. For E4, E6, E9 and E10,
whose state needs a card, the words at least come from NVIDIA's own libraries here, not from a record.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.gpufleet.llm.plugins.module_utils import gpu_gather, gpu_pci, nvml_binding
from ansible_collections.gpufleet.llm.plugins.plugin_utils import errors, torch_verdict

from .conftest import Check, cached_env, site_packages

Wheel = Callable[[str, Path], None]
# Entry -> how it comes about in these tests. What is not here needs a card, and only its words are real.
PRODUCED = {"E1", "E2", "E3", "E5", "E7", "E8", "E11", "E12", "E13"}
NEEDS_A_CARD = {"E4", "E6", "E9", "E10"}

without_card = pytest.mark.skipif(bool(gpu_pci.scan()["gpus"]), reason="this machine has an NVIDIA card")


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program and all that it said; LD_LIBRARY_PATH and PYTHONPATH are only what the test gives."""
    clean = {key: value for key, value in os.environ.items() if key not in ("LD_LIBRARY_PATH", "PYTHONPATH")}
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**clean, **environment})


def said(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What the catalogue says to it."""
    return errors.classify(done.stdout + done.stderr, {"rc": done.returncode})


def test_what_is_produced_is_what_the_catalogue_calls_reproduced() -> None:
    with open(errors.CATALOGUE, encoding="utf-8") as stream:
        rows = {row["id"]: row["evidence"] for row in yaml.safe_load(stream)["errors"]}
    thirteen = {f"E{number}" for number in range(1, 14)}
    assert thirteen == PRODUCED | NEEDS_A_CARD
    assert {name for name in thirteen if rows[name] == "X"} == PRODUCED


# ------------------------------------------------------------------------------------------------------ E2, E4, E9, E10


@pytest.fixture(scope="session")
def cudart(tmp_path_factory: pytest.TempPathFactory, nvidia_wheel: Wheel) -> Path:
    """NVIDIA's own CUDA runtime, of the wheel that torch 2.1 asks for."""
    target = tmp_path_factory.mktemp("cudart")
    nvidia_wheel("nvidia-cuda-runtime-cu12==12.1.105", target)
    return target / "nvidia" / "cuda_runtime" / "lib" / "libcudart.so.12"


def cuda_words(cudart: Path, call: str) -> subprocess.CompletedProcess[str]:
    """Run ``call`` with the runtime as ``cuda`` and ``error``, which raises what torch's CUDA_CHECK would."""
    code = (
        f"import ctypes\ncuda = ctypes.CDLL({str(cudart)!r})\ncuda.cudaGetErrorString.restype = ctypes.c_char_p\n"
        "def error(number):\n"
        "    if number: raise RuntimeError('CUDA error: ' + cuda.cudaGetErrorString(number).decode())\n"
        f"{call}\n"
    )
    return run(sys.executable, "-I", "-c", code)


@without_card
def test_e2_of_nvidias_own_runtime_without_a_driver(cudart: Path) -> None:
    """No driver is older than any: the real runtime looks for libcuda.so.1 and answers with error 35."""
    done = cuda_words(cudart, "count = ctypes.c_int()\nerror(cuda.cudaGetDeviceCount(ctypes.byref(count)))")
    if done.returncode == 0:
        pytest.skip("this machine has a driver")
    assert said(done)["id"] == "E2", done.stderr


@pytest.mark.parametrize(
    ("number", "wanted"),
    [(2, "E10"), (34, "cuda-stub"), (35, "E2"), (98, "E4"), (100, "E9"), (209, "E4"), (802, "fabric-manager"),
     (804, "cuda-forward-compat")],
)  # fmt: skip
def test_the_words_of_nvidias_own_runtime_name_the_entry(cudart: Path, number: int, wanted: str) -> None:
    """The state behind most of these numbers needs a card; how the runtime words them does not."""
    done = cuda_words(cudart, f"error({number})")
    assert done.returncode == 1
    assert said(done)["id"] == wanted, done.stderr


# ------------------------------------------------------------------------------------------------------------------ E5

# ctranslate2 brings the small front of cuDNN and leaves its parts to the system: the best-known way into E5. The front
# opens the parts by name at its first call, before it looks for a card.
CUDNN = {
    "cuDNN 8": ("ctranslate2==4.4.0", "libcudnn-463fd6d5.so.8.9.7", "Could not load library libcudnn_"),
    "cuDNN 9": ("ctranslate2==4.6.0", "libcudnn-74a4c495.so.9.1.0", "Unable to load any of {libcudnn_"),
}
FIRST_CALL = "import ctypes\nhandle = ctypes.c_void_p()\nctypes.CDLL({path!r}).cudnnCreate(ctypes.byref(handle))\n"


@pytest.mark.parametrize("which", CUDNN)
def test_e5_of_a_cudnn_without_its_parts(which: str, bare_venv: Path, nvidia_wheel: Wheel, check: Check) -> None:
    """The real cuDNN front aborts the process; torch_cuda_check names the cause in its words and lives."""
    requirement, library, words = CUDNN[which]
    sites = site_packages(bare_venv)
    nvidia_wheel(requirement, sites)
    front = sites / "ctranslate2.libs" / library
    done = run(str(bare_venv / "bin" / "python"), "-c", FIRST_CALL.format(path=str(front)))
    assert words in done.stdout + done.stderr
    assert said(done)["id"] == "E5"
    # A package stands in for PyTorch (two gigabytes) that makes the same call at the same place.
    torch = sites / "torch"
    torch.mkdir()
    (torch / "__init__.py").write_text(FIRST_CALL.format(path=str(front)))
    (torch / "version.py").write_text("__version__ = '2.3.1'\ncuda = '12.1'\n")
    result = check(prefix=str(bare_venv))
    assert (result["verdict"], result["cause"]) == ("failed", "E5")
    assert "libcudnn_" in result["explanation"] and result["remedy"]
    assert result["computation"]["failed_step"] == "import"


# -------------------------------------------------------------------------------------------------------------- E6, E8


@pytest.fixture
def userland() -> Iterator[Path]:
    """Debian's real nvidia-smi and libnvidia-ml, of a driver whose kernel module is not there."""
    try:
        found = Path(cached_env().nvidia_userland())
    except (subprocess.CalledProcessError, OSError) as exc:
        pytest.skip(f"Debian's nvidia-smi cannot be had here: {exc} {getattr(exc, 'stderr', '')}")
    before = set(Path("/dev").glob("nvidia*"))
    yield found
    # For root, NVML makes its device file before it finds that there is no module.
    for path in set(Path("/dev").glob("nvidia*")) - before:
        path.unlink()


@without_card
def test_e8_of_the_real_nvidia_smi_without_a_module(userland: Path) -> None:
    done = run(str(userland / "bin" / "nvidia-smi"), LD_LIBRARY_PATH=str(userland / "lib"))
    assert done.returncode == 9
    assert "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver" in done.stdout
    assert said(done)["id"] == "E8"


def test_the_real_nvidia_smi_without_its_library_is_e7(userland: Path) -> None:
    done = run(str(userland / "bin" / "nvidia-smi"))
    if "couldn't find libnvidia-ml.so" not in done.stdout:
        pytest.skip("this machine has the driver's libraries")
    assert said(done)["id"] == "E7"


@without_card
def test_e8_of_the_real_nvml_without_a_module(userland: Path) -> None:
    """Through the collection's own binding, and worded by the library itself."""
    library = str(userland / "lib" / "libnvidia-ml.so.1")
    binding = nvml_binding.CtypesBinding(library)
    with pytest.raises(nvml_binding.NvmlError) as caught:
        binding.call("nvmlInit")
    assert caught.value.code == nvml_binding.DRIVER_NOT_LOADED
    assert errors.classify(f"Failed to initialize NVML: {caught.value}")["id"] == "E8"


def test_the_words_of_the_real_nvml_for_e6(userland: Path) -> None:
    """Number 18 needs an upgraded driver under a loaded module; its words are the library's own."""
    library = str(userland / "lib" / "libnvidia-ml.so.1")
    code = f"import ctypes; say = ctypes.CDLL({library!r}).nvmlErrorString; say.restype = ctypes.c_char_p; print(say(18).decode())"
    done = run(sys.executable, "-I", "-c", code)
    assert said(done)["id"] == "E6", done.stdout


@without_card
@pytest.mark.parametrize("source", ["nvml", "nvidia_smi"])
def test_gpu_facts_on_a_node_with_the_real_userland_and_no_module(source: str, userland: Path, tmp_path: Path) -> None:
    """The node's files are made up (a T4 on the bus); nvidia-smi and libnvidia-ml that answer are the real ones."""
    device = tmp_path / "sys/bus/pci/devices/0000:00:1e.0"
    device.mkdir(parents=True)
    for name, text in {"vendor": "0x10de", "device": "0x1eb8", "class": "0x030200"}.items():
        (device / name).write_text(text + "\n")
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/nvidia-smi").symlink_to(userland / "bin" / "nvidia-smi")
    libraries = tmp_path / "usr/lib/x86_64-linux-gnu"
    libraries.parent.mkdir()
    libraries.symlink_to(userland / "lib")
    for path, text in {"proc/modules": "", "proc/sys/kernel/osrelease": "6.1.0-28-amd64\n",
                       "lib/modules/6.1.0-28-amd64/updates/dkms/nvidia.ko": "a module that nobody loaded"}.items():  # fmt: skip
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    def command(argv: list[str], **_more: Any) -> tuple[int, str, str]:
        if argv[0] == "modinfo":
            return 1, "", "modinfo: ERROR: this tree has none"
        smi = str(userland / "bin" / "nvidia-smi")
        done = run(
            *(smi if one == "/usr/bin/nvidia-smi" else one for one in argv), LD_LIBRARY_PATH=str(userland / "lib")
        )
        return done.returncode, done.stdout, done.stderr

    def real(_choice: str, _library: str) -> Any:
        return nvml_binding.CtypesBinding(str(userland / "lib" / "libnvidia-ml.so.1"))

    facts = gpu_gather.gather(
        gpu_gather.resolve_subset(["all"]), root=str(tmp_path), sources=[source, "pci"], nvml_binding="ctypes",
        run_command=command, open_binding=real,
    ).facts  # fmt: skip
    assert facts["state"] == "module_not_loaded", (facts["state"], facts["detail"], facts["errors"])
    assert torch_verdict.CAUSE_OF_STATE[facts["state"]] == "E8"
    if source == "nvidia_smi":
        assert "couldn't communicate with the NVIDIA driver" in str(facts["errors"])
    assert facts["gpus"][0]["chip"] == "TU104"
    assert facts["remedy"]


# ------------------------------------------------------------------------------------------------------------ E11, E12


def test_e11_of_a_package_built_for_numpy_1(bare_venv: Path, nvidia_wheel: Wheel) -> None:
    sites = site_packages(bare_venv)
    nvidia_wheel("numpy==2.2.6", sites)
    nvidia_wheel("bottleneck==1.3.7", sites)
    done = run(str(bare_venv / "bin" / "python"), "-c", "import bottleneck")
    assert done.returncode == 1
    assert "A module that was compiled using NumPy 1.x cannot be run in" in done.stderr
    found = said(done)
    assert found["id"] == "E11"
    assert "2.2.6" in found["cause"]


def test_e11_of_the_real_pytorch_without_numpy(torch_cpu: Path) -> None:
    done = run(str(torch_cpu / "bin" / "python"), "-c", "import torch; torch.zeros(1).numpy()")
    assert "RuntimeError: Numpy is not available" in done.stderr
    assert said(done)["id"] == "E11"


# What the real PyTorch would say of a T4: the only thing here that a card would have to say.
SAYS_T4 = (
    "import torch\n"
    "torch.version.cuda = '12.1'\n"
    "torch.cuda.is_available = lambda: True\n"
    "torch.cuda.device_count = lambda: 1\n"
    "torch.cuda.get_device_capability = lambda *_which: (7, 5)\n"
    "import bitsandbytes\n"
)


@without_card
def test_e12_of_the_real_bitsandbytes(torch_cpu: Path, tmp_path: Path, nvidia_wheel: Wheel) -> None:
    """bitsandbytes 0.42 itself fails to find CUDA's libraries; only the answers of torch about the card stand in."""
    nvidia_wheel("bitsandbytes==0.42.0", tmp_path)
    nvidia_wheel("numpy==2.2.6", tmp_path)
    nvidia_wheel("scipy==1.15.3", tmp_path)
    done = run(str(torch_cpu / "bin" / "python"), "-c", SAYS_T4, PYTHONPATH=str(tmp_path))
    assert "CUDA Setup failed despite GPU being available" in done.stderr, done.stderr[-2000:]
    assert said(done)["id"] == "E12"
