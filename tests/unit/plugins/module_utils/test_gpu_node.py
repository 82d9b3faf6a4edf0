# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of a node: driver, kernel, DKMS, toolkits, NVSwitch, module files, on made-up trees."""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.llm.plugins.module_utils import gpu_gather, gpu_kmod, gpu_node, gpu_pci

sys.path.insert(0, str(Path(__file__).parent))
from gpu_stand_in import facts_of, no_library, put

RELEASE = "6.1.0-28-amd64"
PROPRIETARY = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.161.08  Mon Feb 26 18:34:49 UTC 2024\nGCC version:  gcc\n"
)
OPEN = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (dvs-builder@U22)  Fri Jan  9 2026\n"
    "GCC version:  gcc version 13.3.0\n"
)


def link(root: Path, path: str, target: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    os.symlink(target, root / path)


# --- PCI


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("00000000:3B:00.0", "0000:3b:00.0"),
        ("0000:3b:00.0", "0000:3b:00.0"),
        ("3B:00.0", "0000:3b:00.0"),
        ("0000:3b:00", "0000:3b:00.0"),
        ("00010000:01:00.0", "10000:01:00.0"),
        ("GPU-5d3f", None),
        ("", None),
        (None, None),
    ],
)
def test_addresses(text: Any, expected: str | None) -> None:
    assert gpu_pci.normalise_pci_address(text) == expected


def function(root: Path, address: str, **files: Any) -> None:
    for name, content in {"vendor": "0x10de", "device": "0x1eb8", "class": "0x030200", **files}.items():
        put(root, f"sys/bus/pci/devices/{address}/{name}", content if isinstance(content, bytes) else content + "\n")


def test_what_counts_as_a_gpu(tmp_path: Path) -> None:
    function(tmp_path, "0000:01:00.0")
    function(tmp_path, "0000:01:00.1", **{"class": "0x040300", "device": "0x10f8"})  # its sound
    function(tmp_path, "0000:02:00.0", **{"class": "0x030000"})  # with a display
    function(tmp_path, "0000:03:00.0", **{"class": "0x038000"})
    function(tmp_path, "0000:04:00.0", **{"class": "0x120000"})
    function(tmp_path, "0000:05:00.0", vendor="0x1002")
    function(tmp_path, "0000:06:00.0", **{"class": "0x068000", "device": "0x22a3"})  # NVSwitch
    function(tmp_path, "0000:07:00.0", **{"class": "0x068000", "device": "0x0056"})  # an old nForce bridge
    found = gpu_pci.scan(str(tmp_path))
    assert [gpu["pci_address"][5:7] for gpu in found["gpus"]] == ["01", "02", "03", "04"]
    assert [switch["pci_address"][5:7] for switch in found["nvswitches"]] == ["06"]


def test_a_card_whose_configuration_reads_as_ones_is_off_the_bus(tmp_path: Path) -> None:
    function(tmp_path, "0000:01:00.0", config=b"\xff" * 64)
    function(tmp_path, "0000:02:00.0", config=b"\xde\x10\xb8\x1e" + bytes(60))
    # A sleeping card would be woken by the question, so it is not asked.
    function(tmp_path, "0000:03:00.0", config=b"\xff" * 64)
    put(tmp_path, "sys/bus/pci/devices/0000:03:00.0/power/runtime_status", "suspended\n")
    assert [gpu["off_bus"] for gpu in gpu_pci.scan(str(tmp_path))["gpus"]] == [True, False, False]


def test_no_pci_bus(tmp_path: Path) -> None:
    assert gpu_pci.scan(str(tmp_path)) == {"gpus": [], "nvswitches": []}


def test_question_marks_of_a_gpu_never_initialised_are_no_uuid(tmp_path: Path) -> None:
    put(
        tmp_path,
        "proc/driver/nvidia/gpus/0000:01:00.0/information",
        "Model: \t\t Tesla T4\nGPU UUID: \t GPU-????????-????-????-????-????????????\nDevice Minor: \t 0\n",
    )
    assert gpu_pci.proc_information(str(tmp_path), "0000:01:00.0") == {
        "name": "Tesla T4",
        "uuid": None,
        "minor_number": 0,
    }


# --- driver and library


@pytest.mark.parametrize(
    ("text", "flavour", "version"), [(PROPRIETARY, "proprietary", "535.161.08"), (OPEN, "open", "580.159.04")]
)
def test_loaded_driver(tmp_path: Path, text: str, flavour: str, version: str) -> None:
    put(tmp_path, "proc/driver/nvidia/version", text)
    found = gpu_node.loaded_driver(str(tmp_path))
    assert (found["loaded"], found["flavour"], found["loaded_version"]) == (True, flavour, version)


def test_loaded_driver_by_sysfs_alone(tmp_path: Path) -> None:
    put(tmp_path, "sys/module/nvidia/version", "550.54.14\n")
    put(tmp_path, "sys/module/nvidia/refcnt", "7\n")
    assert gpu_node.loaded_driver(str(tmp_path)) == {
        "loaded": True,
        "loaded_version": "550.54.14",
        "flavour": None,
        "use_count": 7,
    }


def test_library_behind_debians_alternatives(tmp_path: Path) -> None:
    put(tmp_path, "usr/lib/x86_64-linux-gnu/nvidia/current/libnvidia-ml.so.535.261.03", "")
    link(tmp_path, "usr/lib/x86_64-linux-gnu/nvidia/current/libnvidia-ml.so.1", "libnvidia-ml.so.535.261.03")
    target = "/usr/lib/x86_64-linux-gnu/nvidia/current/libnvidia-ml.so.1"
    link(tmp_path, "etc/alternatives/nvidia--libnvidia-ml.so.1-x86_64-linux-gnu", target)
    link(
        tmp_path,
        "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
        "/etc/alternatives/nvidia--libnvidia-ml.so.1-x86_64-linux-gnu",
    )
    assert gpu_node.library(str(tmp_path)) == {
        "library_path": "/usr/lib/x86_64-linux-gnu/nvidia/current/libnvidia-ml.so.535.261.03",
        "library_version": "535.261.03",
    }


def test_library_in_a_folder_of_the_loader(tmp_path: Path) -> None:
    put(tmp_path, "etc/ld.so.conf.d/vendor.conf", "# x\n/opt/driver/lib64\n")
    put(tmp_path, "opt/driver/lib64/libnvidia-ml.so.1", "")
    assert gpu_node.library(str(tmp_path)) == {
        "library_path": "/opt/driver/lib64/libnvidia-ml.so.1",
        "library_version": None,
    }


def test_a_link_that_leads_nowhere_is_no_library(tmp_path: Path) -> None:
    link(tmp_path, "usr/lib64/libnvidia-ml.so.1", "libnvidia-ml.so.535.1.2")
    link(tmp_path, "usr/lib/libnvidia-ml.so.1", "/usr/lib/libnvidia-ml.so.1")
    assert gpu_node.library(str(tmp_path))["library_path"] is None


# --- kernel


@pytest.mark.parametrize(
    ("running", "installed", "pending"),
    [
        ("6.1.0-28-amd64", ["6.1.0-28-amd64", "6.1.0-9-amd64"], False),
        ("6.1.0-9-amd64", ["6.1.0-28-amd64", "6.1.0-9-amd64"], True),
        # Another flavour is no upgrade.
        ("6.1.0-27-amd64", ["6.1.0-28-cloud-amd64", "6.1.0-27-amd64"], False),
        ("5.14.0-503.el9_5.x86_64", ["5.14.0-503.8.1.el9_5.x86_64", "5.14.0-503.el9_5.x86_64"], True),
        ("5.14.0-503.40.1.el9_5.x86_64", ["5.14.0-503.8.1.el9_5.x86_64", "5.14.0-503.40.1.el9_5.x86_64"], False),
        # Arch replaces the running kernel's modules.
        ("6.12.1-arch1-1", ["6.12.4-arch1-1"], True),
        ("6.12.4-arch1-1", ["6.12.4-arch1-1"], False),
        # A container shows the host's kernel and no modules at all.
        ("6.18.44", [], False),
    ],
)
def test_reboot_for_a_newer_kernel(tmp_path: Path, running: str, installed: list[str], pending: bool) -> None:
    for release in installed:
        (tmp_path / "lib/modules" / release / "kernel").mkdir(parents=True)
    facts = gpu_node.kernel_facts(str(tmp_path), running, False)
    assert facts["reboot_pending"] is pending, facts["reboot_reasons"]


def test_reboot_required_file(tmp_path: Path) -> None:
    put(tmp_path, "run/reboot-required", "*** System restart required ***\n")
    put(tmp_path, "run/reboot-required.pkgs", "linux-image-amd64\nlibc6\nlibc6\n")
    facts = gpu_node.kernel_facts(str(tmp_path), RELEASE, False)
    assert facts["reboot_reasons"] == ["/run/reboot-required is there, set by libc6, linux-image-amd64"]


def test_headers_must_be_complete(tmp_path: Path) -> None:
    link(tmp_path, f"lib/modules/{RELEASE}/build", f"/usr/src/linux-headers-{RELEASE}")
    assert gpu_node.kernel_facts(str(tmp_path), RELEASE, False)["headers_present"] is False
    put(tmp_path, f"usr/src/linux-headers-{RELEASE}/Makefile", "")
    facts = gpu_node.kernel_facts(str(tmp_path), RELEASE, False)
    assert (facts["headers_present"], facts["headers_path"]) == (True, f"/usr/src/linux-headers-{RELEASE}")


@pytest.mark.parametrize(
    ("path", "content", "expected"),
    [
        ("etc/modprobe.d/x.conf", "blacklist nouveau\noptions nouveau modeset=0\n", True),
        ("etc/modprobe.d/x.conf", "# blacklist nouveau\n", False),
        ("usr/lib/modprobe.d/x.conf", "install nouveau /bin/false\n", True),
        ("etc/modprobe.d/x.conf", "blacklist nouveaux\n", False),
        ("proc/cmdline", "quiet modprobe.blacklist=foo,nouveau rd.driver.blacklist=x\n", True),
        ("proc/cmdline", "quiet\n", False),
    ],
)
def test_nouveau_blacklisted(tmp_path: Path, path: str, content: str, expected: bool) -> None:
    put(tmp_path, path, content)
    assert gpu_node.kernel_facts(str(tmp_path), RELEASE, False)["nouveau_blacklisted"] is expected


@pytest.mark.parametrize(
    ("value", "expected"), [(b"\6\0\0\0\1", True), (b"\6\0\0\0\0", False), (b"\6", None), (None, None)]
)
def test_secure_boot(tmp_path: Path, value: bytes | None, expected: bool | None) -> None:
    if value is not None:
        put(tmp_path, gpu_node.SECURE_BOOT.lstrip("/"), value)
    assert gpu_node.kernel_facts(str(tmp_path), RELEASE, False)["secure_boot"] is expected


def test_lockdown(tmp_path: Path) -> None:
    put(tmp_path, "sys/kernel/security/lockdown", "none [integrity] confidentiality\n")
    assert gpu_node.kernel_facts(str(tmp_path), RELEASE, False)["lockdown"] == "integrity"


# --- DKMS


def test_dkms(tmp_path: Path) -> None:
    base = "var/lib/dkms"
    put(tmp_path, f"{base}/nvidia-current-open/535.261.03/{RELEASE}/x86_64/module/nvidia-current-open.ko", "")
    put(tmp_path, f"{base}/nvidia-current-open/535.261.03/6.1.0-27-amd64/x86_64/module/nvidia-current-open.ko.xz", "")
    link(tmp_path, f"{base}/nvidia-current-open/535.261.03/source", "/usr/src/x")
    link(tmp_path, f"{base}/nvidia-current-open/kernel-{RELEASE}-x86_64", f"535.261.03/{RELEASE}/x86_64")
    link(tmp_path, f"{base}/nvidia/550.54.14/source", "/usr/src/y")
    put(tmp_path, f"{base}/nvidia-fs/2.19/build/make.log", "error")
    put(tmp_path, f"{base}/zfs/2.1/{RELEASE}/x86_64/module/zfs.ko", "")
    assert gpu_node.dkms(str(tmp_path)) == [
        {"module": "nvidia", "version": "550.54.14", "kernel": None, "state": "added"},
        {"module": "nvidia-current-open", "version": "535.261.03", "kernel": "6.1.0-27-amd64", "state": "built"},
        {"module": "nvidia-current-open", "version": "535.261.03", "kernel": RELEASE, "state": "installed"},
        {"module": "nvidia-fs", "version": "2.19", "kernel": None, "state": "failed"},
    ]


# --- toolkits


def test_toolkits_once_each(tmp_path: Path) -> None:
    put(tmp_path, "usr/local/cuda-12.0/version.json", '{"cuda": {"name": "CUDA SDK", "version": "12.0.1"}}')
    put(tmp_path, "usr/local/cuda-12.0/bin/nvcc", "")
    put(tmp_path, "usr/local/cuda-10.2/version.txt", "CUDA Version 10.2.89\n")
    put(tmp_path, "usr/local/cuda-9/README", "leftover")
    link(tmp_path, "usr/local/cuda-12", "/usr/local/cuda-12.0")
    link(tmp_path, "etc/alternatives/cuda", "/usr/local/cuda-12.0")
    link(tmp_path, "usr/local/cuda", "/etc/alternatives/cuda")
    put(tmp_path, "usr/bin/nvcc", "")
    put(tmp_path, "usr/include/cuda.h", "#define CUDA_VERSION 11080\n")
    assert gpu_node.toolkits(str(tmp_path)) == [
        {"version": "11.8", "path": "/usr", "nvcc_path": "/usr/bin/nvcc", "default": True},
        {"version": "10.2.89", "path": "/usr/local/cuda-10.2", "nvcc_path": None, "default": False},
        {
            "version": "12.0.1",
            "path": "/usr/local/cuda-12.0",
            "nvcc_path": "/usr/local/cuda-12.0/bin/nvcc",
            "default": True,
        },
    ]


# --- NVSwitch and processes


def test_fabric_manager(tmp_path: Path) -> None:
    put(tmp_path, "usr/bin/nv-fabricmanager", "")
    put(
        tmp_path,
        "var/lib/dpkg/status",
        "Package: bash\nStatus: install ok installed\nVersion: 5.2\n\n"
        "Package: nvidia-fabricmanager-535\nStatus: install ok installed\nVersion: 535.161.08-1\n",
    )
    assert gpu_node.fabric_manager(str(tmp_path)) == {"installed": True, "version": "535.161.08"}
    # The kernel cuts names of processes at 15 characters.
    put(tmp_path, "proc/812/comm", "nv-fabricmanage\n")
    put(tmp_path, "proc/900/comm", "nvidia-persiste\n")
    assert gpu_node.processes(str(tmp_path)) == {"fabric_manager": True, "persistence_daemon": True}


# --- module files


ASSEMBLY = """
.section .modinfo,"a"
.ascii "version=535.261.03\\0"
.ascii "license={licence}\\0"
.ascii "srcversion=ABCDEF\\0"
.text
.space 300000
"""


@pytest.fixture
def kernel_module(tmp_path: Path) -> Any:
    """Makes a real relocatable ELF file with the sections of a kernel module; signed as the kernel's sign-file does it."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc here to make an ELF file")

    def make(path: Path, licence: str = "NVIDIA", signer: str | None = None) -> Path:
        source = put(tmp_path, "module.s", ASSEMBLY.format(licence=licence))
        plain = tmp_path / "module.ko"
        subprocess.run(["gcc", "-c", source, "-o", plain], check=True)
        data = plain.read_bytes()
        if signer:
            name = signer.encode()
            blob = b"\x30\x82pkcs7\x06\x03\x55\x04\x03\x0c" + bytes([len(name)]) + name + bytes(200)
            data += blob + bytes(8) + struct.pack(">I", len(blob)) + gpu_kmod.SIGNATURE_MAGIC
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            lzma.compress(data) if path.suffix == ".xz" else gzip.compress(data) if path.suffix == ".gz" else data
        )
        return path

    return make


@pytest.mark.parametrize("name", ["nvidia.ko", "nvidia.ko.xz", "nvidia.ko.gz"])
@pytest.mark.parametrize("signer", [None, "DKMS module signing key"])
def test_module_files(tmp_path: Path, kernel_module: Any, name: str, signer: str | None) -> None:
    path = kernel_module(tmp_path / name, "Dual MIT/GPL", signer)
    assert gpu_kmod.read_module(str(path)) == {
        "version": "535.261.03",
        "licence": "Dual MIT/GPL",
        "signed": signer is not None,
        "signer": signer,
    }


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"\x7fELF\x02\x01" + b"\xff" * 100, b"no module"])
@pytest.mark.parametrize("suffix", [".ko", ".ko.xz", ".ko.gz", ".ko.zst"])
def test_broken_module_files_are_unknown(tmp_path: Path, content: bytes, suffix: str) -> None:
    read = gpu_kmod.read_module(str(put(tmp_path, "nvidia" + suffix, content)))
    assert (read["version"], read["licence"]) == (None, None)


@pytest.mark.parametrize(
    ("path", "licence", "flavour"),
    [
        ("updates/dkms/nvidia-current.ko", "NVIDIA", "proprietary"),
        ("updates/dkms/nvidia-current-open.ko.xz", "Dual MIT/GPL", "open"),
        ("extra/nvidia/nvidia.ko", "NVIDIA", "proprietary"),
        ("kernel/nvidia-535-open/nvidia.ko", "Dual MIT/GPL", "open"),
        ("extramodules/nvidia.ko.xz", "Dual MIT/GPL", "open"),
        ("kernel/drivers/video/nvidia.ko", "NVIDIA", "proprietary"),
    ],
)
def test_where_distributions_put_the_module(
    tmp_path: Path, kernel_module: Any, path: str, licence: str, flavour: str
) -> None:
    root = tmp_path / "root"
    kernel_module(root / "lib/modules" / RELEASE / path, licence)
    for other in (
        "nvidia-drm.ko",
        "nvidia-uvm.ko",
        "nvidia-current-modeset.ko",
        "nvidiafb.ko",
        "nvidia-peermem.ko",
        "nvidia-tesla-470-drm.ko",
    ):
        put(root, f"lib/modules/6.1.0-27-amd64/updates/dkms/{other}", b"")
    put(root, "lib/modules/6.1.0-26-amd64/updates/dkms/nvidia.ko", b"")
    found = gpu_node.module_on_disk(str(root), RELEASE)
    assert found["module_path"] == f"/lib/modules/{RELEASE}/{path}"
    assert (found["flavour"], found["licence"], found["module_version"]) == (flavour, licence, "535.261.03")
    # The companions alone are no driver.
    assert found["other_kernels"] == ["6.1.0-26-amd64"]


def test_installed_but_not_loaded_as_after_a_dkms_build(tmp_path: Path, kernel_module: Any) -> None:
    """The state of a node on which Debian's nvidia-open-kernel-dkms was just installed, seen through the whole module."""
    root = tmp_path / "root"
    function(root, "0000:01:00.0")
    put(root, "proc/sys/kernel/osrelease", RELEASE)
    kernel_module(root / "lib/modules" / RELEASE / "updates/dkms/nvidia-current-open.ko", "Dual MIT/GPL")
    facts = facts_of(root, "not-loaded", open_binding=no_library)
    assert (facts["state"], facts["driver"]["flavour"], facts["driver"]["branch"]) == ("module_not_loaded", "open", 535)
    put(root, gpu_node.SECURE_BOOT.lstrip("/"), b"\6\0\0\0\1")
    assert facts_of(root, "not-loaded", open_binding=no_library)["state"] == "module_rejected"


def test_a_zstd_module_is_read_by_modinfo_where_python_cannot(tmp_path: Path) -> None:
    function(tmp_path, "0000:01:00.0")
    put(tmp_path, "proc/sys/kernel/osrelease", RELEASE)
    put(tmp_path, f"lib/modules/{RELEASE}/updates/dkms/nvidia.ko.zst", b"\x28\xb5\x2f\xfd")

    def modinfo(argv: list[str]) -> tuple[int, str, str]:
        assert argv[0] == "modinfo"
        return 0, "filename:  x\nversion:        550.54.14\nlicense:        Dual MIT/GPL\nsigner:         Ubuntu\n", ""

    driver = facts_of(tmp_path, "not-loaded", open_binding=no_library, run_command=modinfo)["driver"]
    assert (driver["licence"], driver["flavour"], driver["module_version"]) == ("Dual MIT/GPL", "open", "550.54.14")
    assert (driver["module_signed"], driver["module_signer"]) == (True, "Ubuntu")


def test_this_machine_can_be_gathered() -> None:
    """Whatever this machine is, gathering ends in facts."""
    facts = gpu_gather.gather(gpu_gather.resolve_subset(["all"]), sources=["pci"]).facts
    assert facts["kernel"]["release"] == os.uname().release
    assert facts["state"]
