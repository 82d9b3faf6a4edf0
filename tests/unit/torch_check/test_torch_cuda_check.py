# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""torch_cuda_check as a user runs it: through ansible, on localhost, against real and broken environments.

Where a PyTorch for CUDA would be several gigabytes, a package stands in for it that loads the same libraries in the same
way; what the loader says is the real loader's word.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.llm.plugins.module_utils import gpu_pci

from .conftest import Check, site_packages

Gcc = Callable[..., Path]
KEYS = {"verdict", "cause", "title", "explanation", "remedy", "matched", "checks", "python", "torch", "computation",
        "driver", "libraries"}  # fmt: skip
CHECKS = ["python", "torch", "card", "kernel_module", "driver_api", "architecture", "libraries", "computation"]

without_card = pytest.mark.skipif(bool(gpu_pci.scan()["gpus"]), reason="this machine has an NVIDIA card")


def complete(result: dict[str, Any]) -> dict[str, Any]:
    """Every key is there, whatever happened, and the task itself did not fail."""
    assert result["_status"] == "SUCCESS", result
    assert set(result) >= KEYS
    assert [one["name"] for one in result["checks"]] == CHECKS
    for one in result["checks"]:
        assert set(one) == {"name", "ok", "found", "wanted"}
    assert result["changed"] is False
    if result["verdict"] == "ok":
        assert (result["cause"], result["remedy"]) == ("", "")
    else:
        assert result["cause"] and result["explanation"] and result["remedy"]
        assert "{" not in result["explanation"]
    return result


def stand_in_torch(environment: Path, init: str, version: str = "2.1.2", cuda: str | None = "12.1") -> Path:
    """A package that stands in for PyTorch: *init* is what happens at import. Returns its directory."""
    folder = site_packages(environment) / "torch"
    (folder / "lib").mkdir(parents=True)
    (folder / "__init__.py").write_text(init)
    (folder / "version.py").write_text(f"__version__ = {version!r}\ncuda = {cuda!r}\n")
    return folder


LOAD_DEPS = (
    "import ctypes, os\n"
    "ctypes.CDLL(os.path.join(os.path.dirname(__file__), 'lib', 'libtorch_global_deps.so'), mode=ctypes.RTLD_GLOBAL)\n"
    "raise RuntimeError('the libraries of the stand-in were loaded')\n"
)


@without_card
def test_cpu_wheel_on_a_node_without_card(torch_cpu: Path, check: Check) -> None:
    result = complete(check(python=str(torch_cpu / "bin" / "python")))
    assert result["verdict"] == "ok"
    assert "on the CPU" in result["explanation"]
    assert "no NVIDIA card" in result["explanation"]
    assert result["computation"]["steps"] == ["add", "matmul", "conv2d", "sparse"]
    assert result["computation"]["device"] == "cpu"
    assert result["torch"]["version"].startswith("2.13.0")
    assert result["torch"]["build"] == "cpu"


@without_card
def test_cpu_wheel_where_a_card_is_wanted_is_e3(torch_cpu: Path, check: Check) -> None:
    result = complete(check(prefix=str(torch_cpu), device="cuda"))
    assert (result["verdict"], result["cause"]) == ("failed", "E3")
    assert "Torch not compiled with CUDA enabled" in result["computation"]["error"]


def test_nothing_is_written(torch_cpu: Path, check: Check) -> None:
    def tree() -> dict[str, tuple[int, int]]:
        return {path: (os.lstat(path).st_mtime_ns, os.lstat(path).st_size)
                for folder, _names, files in os.walk(torch_cpu) for path in (f"{folder}/{one}" for one in files)}  # fmt: skip

    before = tree()
    plain = check(prefix=str(torch_cpu), device="cpu")
    dry = check("--check", prefix=str(torch_cpu), device="cpu")
    assert tree() == before
    assert plain["verdict"] == dry["verdict"] == "ok"
    assert [one["found"] for one in plain["checks"][:7]] == [one["found"] for one in dry["checks"][:7]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"python": "/no/such/python"}, "there is no such file"),
        ({"python": "/tmp"}, "it is a directory"),
        ({"python": "/etc/passwd"}, "not executable"),
        ({"python": "/bin/true"}, "does not answer as Python"),
        ({"python": "/bin/bash"}, "does not answer as Python"),
        ({"prefix": "/no/such/env"}, "there is no directory"),
        ({"prefix": "/etc"}, "has no bin/python"),
    ],
    ids=["missing", "directory", "not-executable", "not-python", "shell", "no-prefix", "no-environment"],
)
def test_what_is_no_python_is_named(check: Check, arguments: dict[str, str], words: str) -> None:
    result = complete(check(**arguments))
    assert (result["verdict"], result["cause"]) == ("failed", "python-not-found")
    assert words in result["explanation"]


def test_a_text_is_never_run(check: Check, tmp_path: Path) -> None:
    text = tmp_path / "python"
    text.write_text(f"touch {tmp_path}/ran\n")
    text.chmod(0o755)
    result = complete(check(python=str(text)))
    assert result["cause"] == "python-not-found"
    assert not (tmp_path / "ran").exists()


def test_an_environment_without_torch(bare_venv: Path, check: Check) -> None:
    result = complete(check(prefix=str(bare_venv)))
    assert (result["verdict"], result["cause"]) == ("failed", "torch-missing")
    assert str(bare_venv) in result["explanation"]


def test_a_crash_at_import_is_no_crash_of_the_check(bare_venv: Path, check: Check) -> None:
    stand_in_torch(bare_venv, "import ctypes; ctypes.string_at(0)")
    result = complete(check(prefix=str(bare_venv)))
    assert (result["verdict"], result["cause"]) == ("failed", "crash")
    assert result["computation"]["failed_step"] == "import"


def test_a_hang_at_import_ends_at_the_time_limit(bare_venv: Path, check: Check) -> None:
    stand_in_torch(bare_venv, "import time; time.sleep(600)")
    result = complete(check(prefix=str(bare_venv), timeout_seconds=2))
    assert (result["verdict"], result["cause"]) == ("failed", "timeout")
    assert "2 seconds" in result["explanation"]


def test_noise_on_standard_output_does_not_matter(bare_venv: Path, check: Check) -> None:
    stand_in_torch(bare_venv, "import sys; print('hello', end=''); sys.exit(7)")
    result = complete(check(prefix=str(bare_venv)))
    assert result["verdict"] == "failed"
    assert result["torch"]["cuda"] == "12.1"


def test_a_missing_libcuda_is_e7(bare_venv: Path, check: Check, gcc: Gcc, tmp_path: Path) -> None:
    folder = stand_in_torch(bare_venv, LOAD_DEPS)
    stub = gcc(
        tmp_path / "stub" / "libcuda.so.1",
        "int cuInit(int f){return 0;}",
        "-shared",
        "-fPIC",
        "-Wl,-soname,libcuda.so.1",
    )
    gcc(folder / "lib" / "libtorch_global_deps.so", "int x;", "-shared", "-fPIC", "-Wl,--no-as-needed", str(stub))
    result = complete(check(prefix=str(bare_venv)))
    if "were loaded" in result["computation"]["error"]:
        pytest.skip("this machine has the driver's libcuda.so.1")
    assert (result["verdict"], result["cause"]) == ("failed", "E7")
    assert [one["name"] for one in result["libraries"]["missing"]] == ["libcuda.so.1"]


def test_an_old_c_plus_plus_library_before_the_systems_is_named(
    torch_cpu: Path, check: Check, gcc: Gcc, tmp_path: Path
) -> None:
    """The real PyTorch takes the libstdc++ of an old compiler, as one in /etc/ld.so.conf.d would be taken."""
    versions = tmp_path / "versions"
    versions.write_text("GLIBCXX_3.4 { one; };\nCXXABI_1.3 { two; };\n")
    flags = ("-shared", "-fPIC", "-Wl,-soname,libstdc++.so.6", f"-Wl,--version-script={versions}")
    old = gcc(tmp_path / "old" / "libstdc++.so.6", "int one; int two;", *flags)
    result = complete(check(prefix=str(torch_cpu), device="cpu", environment={"LD_LIBRARY_PATH": str(old.parent)}))
    assert (result["verdict"], result["cause"]) == ("failed", "libstdcxx-old")
    assert str(old) in result["explanation"] and "/etc/ld.so.conf.d" in result["remedy"]
    assert complete(check(prefix=str(torch_cpu), device="cpu"))["verdict"] == "ok"


@pytest.fixture
def cusparse_env(bare_venv: Path, gcc: Gcc, nvidia_wheel: Callable[[str, Path], None]) -> Path:
    """An environment as torch 2.1 makes it: NVIDIA's own libcusparse 12.1.0.106 and libnvJitLink 12.1.105."""
    sites = site_packages(bare_venv)
    nvidia_wheel("nvidia-nvjitlink-cu12==12.1.105", sites)
    nvidia_wheel("nvidia-cusparse-cu12==12.1.0.106", sites)
    folder = stand_in_torch(bare_venv, LOAD_DEPS)
    # -z now: real PyTorch's libraries are bound at once too, which is why the symbol is missed at import.
    gcc(folder / "lib" / "libtorch_global_deps.so", "int x;", "-shared", "-fPIC", "-Wl,--no-as-needed",
        "-Wl,--allow-shlib-undefined", str(sites / "nvidia" / "cusparse" / "lib" / "libcusparse.so.12"),
        "-Wl,--disable-new-dtags", "-Wl,-rpath,$ORIGIN/../../nvidia/cusparse/lib")  # fmt: skip
    return bare_venv


@pytest.fixture
def toolkit(tmp_path: Path, nvidia_wheel: Callable[[str, Path], None]) -> Path:
    """The lib64 of a CUDA 12.0 toolkit, as far as it matters: NVIDIA's own libnvJitLink 12.0.140."""
    nvidia_wheel("nvidia-nvjitlink-cu12==12.0.140", tmp_path / "toolkit")
    return tmp_path / "toolkit" / "nvidia" / "nvjitlink" / "lib"


def loaded(result: dict[str, Any]) -> bool:
    """Whether the stand-in got all its libraries."""
    return "the libraries of the stand-in were loaded" in result["computation"]["error"]


def test_e1_with_nvidias_own_libraries(cusparse_env: Path, toolkit: Path, check: Check) -> None:
    """The error of the book for real: libcusparse 12.1 takes libnvJitLink 12.0 out of LD_LIBRARY_PATH."""
    result = complete(check(prefix=str(cusparse_env), environment={"LD_LIBRARY_PATH": str(toolkit)}))
    assert (result["verdict"], result["cause"]) == ("failed", "E1")
    assert "undefined symbol: __nvJitLink" in result["matched"]
    assert "version libnvJitLink.so.12" in result["matched"]
    assert f"{toolkit}/libnvJitLink.so.12 (LD_LIBRARY_PATH)" in result["explanation"]
    assert "__nvJitLink" in result["explanation"]
    (row,) = [one for one in result["libraries"]["shadowed"] if one["name"] == "libnvJitLink.so.12"]
    assert row["path"] == f"{toolkit}/libnvJitLink.so.12"
    assert row["own"] == str(site_packages(cusparse_env) / "nvidia" / "nvjitlink" / "lib" / "libnvJitLink.so.12")
    assert "__nvJitLinkAddData_12_1" in row["missing_symbols"]
    assert all(symbol.endswith("_12_1") for symbol in row["missing_symbols"])
    assert next(one["ok"] for one in result["checks"] if one["name"] == "libraries") is False


def test_e1_from_the_tasks_own_environment_and_from_a_preload(cusparse_env: Path, toolkit: Path, check: Check) -> None:
    inherited = complete(check(_env={"LD_LIBRARY_PATH": str(toolkit)}, prefix=str(cusparse_env)))
    assert inherited["cause"] == "E1"
    unset = complete(
        check(_env={"LD_LIBRARY_PATH": str(toolkit)}, prefix=str(cusparse_env), environment={"LD_LIBRARY_PATH": ""})
    )
    assert loaded(unset)
    assert unset["libraries"]["shadowed"] == []
    preloaded = complete(check(prefix=str(cusparse_env), environment={"LD_PRELOAD": f"{toolkit}/libnvJitLink.so.12"}))
    assert preloaded["cause"] == "E1"
    assert "(LD_PRELOAD)" in preloaded["explanation"]


def test_the_remedies_of_e1_work(cusparse_env: Path, toolkit: Path, check: Check) -> None:
    own = site_packages(cusparse_env) / "nvidia" / "nvjitlink" / "lib"
    for environment in (
        {},
        {"LD_LIBRARY_PATH": f"{own}:{toolkit}"},
        {"LD_LIBRARY_PATH": str(toolkit), "LD_PRELOAD": f"{own}/libnvJitLink.so.12"},
    ):
        result = complete(check(prefix=str(cusparse_env), environment=environment))
        assert loaded(result), environment
        assert result["cause"] != "E1"


def test_an_old_library_inside_the_environment_is_named_too(
    cusparse_env: Path, check: Check, nvidia_wheel: Callable[[str, Path], None]
) -> None:
    """torch 2.1 to 2.4 do not pin nvjitlink, so the old copy may be the environment's own."""
    nvidia_wheel("nvidia-nvjitlink-cu12==12.0.140", site_packages(cusparse_env))
    result = complete(check(prefix=str(cusparse_env)))
    assert (result["verdict"], result["cause"]) == ("failed", "E1")
    assert result["libraries"]["shadowed"] == []
    assert str(site_packages(cusparse_env)) in result["explanation"]


@pytest.fixture
def says_cuda(bare_venv: Path, torch_cpu: Path) -> Path:
    """The real PyTorch for the CPU that says it was built for CUDA 13.0: on a node without a card it behaves the same."""
    source, target = site_packages(torch_cpu), site_packages(bare_venv)
    for path in source.iterdir():
        if path.name not in ("torch", "__pycache__"):
            (target / path.name).symlink_to(path)
    (target / "torch").mkdir()
    for path in (source / "torch").iterdir():
        if path.name == "version.py":
            (target / "torch" / "version.py").write_text(
                path.read_text().replace("cuda: Optional[str] = None", "cuda: Optional[str] = '13.0'")
            )
        else:
            (target / "torch" / path.name).symlink_to(path)
    return bare_venv


@without_card
def test_a_cuda_wheel_without_a_card(says_cuda: Path, check: Check) -> None:
    result = complete(check(prefix=str(says_cuda)))
    assert (result["verdict"], result["cause"]) == ("warning", "no-gpu")
    assert result["torch"]["cuda"] == "13.0"
    assert result["computation"]["device"] == "cpu"
    assert result["computation"]["ok"] is True
    demanded = complete(check(prefix=str(says_cuda), device="cuda"))
    assert (demanded["verdict"], demanded["cause"]) == ("failed", "no-gpu")


def test_wrong_arguments_fail_the_task(check: Check) -> None:
    assert check()["_status"].startswith("FAILED")
    assert check(python="/bin/true", prefix="/usr")["_status"].startswith("FAILED")
    assert "timeout_seconds is 0" in check(python="/bin/true", timeout_seconds=0)["msg"]
