# SPDX-License-Identifier: GPL-3.0-or-later
"""Rehearsals of dnf and the log of NVIDIA's installer."""

from __future__ import annotations

import pytest
from ansible_collections.gpufleet.llm.plugins.plugin_utils.driver_dnf import read_log, read_transaction, specs

# As dnf 4.14 prints it to a pipe
TRANSACTION = """\
Last metadata expiration check: 0:00:08 ago on Sat Nov 21 01:09:14 2026.
Dependencies resolved.
================================================================================
 Package                    Arch    Version              Repository         Size
================================================================================
Installing:
 kmod-nvidia-latest-dkms    x86_64  3:590.48.01-1.el9    gpufleet-nvidia   9.1 k
     replacing  kmod-nvidia-open-dkms.x86_64 3:580.126.20-1.el9
Upgrading:
 nvidia-driver-cuda         x86_64  3:590.48.01-1.el9    gpufleet-nvidia   7.1 k
Installing dependencies:
 a-package-whose-name-is-so-long-that-it-fills-the-whole-column-and-the-next
                            noarch  1-1.el9              base              7.1 k
Removing:
 kmod-nvidia-open-dkms      x86_64  3:580.126.20-1.el9   @gpufleet-nvidia   20 k

Transaction Summary
================================================================================
Install  2 Packages
Upgrade  1 Package
Remove   1 Package

Total download size: 9.1 k
Operation aborted.
"""


def test_a_transaction_is_read() -> None:
    read = read_transaction(TRANSACTION)
    assert read["ok"] and not read["nothing"]
    assert read["install"] == [
        "kmod-nvidia-latest-dkms",
        "a-package-whose-name-is-so-long-that-it-fills-the-whole-column-and-the-next",
    ]
    assert read["change"] == ["nvidia-driver-cuda"]
    assert read["remove"] == ["kmod-nvidia-open-dkms"]


def test_strangers_must_not_go() -> None:
    text = TRANSACTION.replace("kmod-nvidia-open-dkms", "nvidia-container-toolkit")
    read = read_transaction(text)
    assert not read["ok"]
    assert "nothing to do with the driver: nvidia-container-toolkit" in read["problems"][0]
    assert read_transaction(text, ["nvidia-container-toolkit"])["ok"]


@pytest.mark.parametrize("name", ["kernel", "kernel-core", "kernel-modules", "kernel-modules-core", "kernel-uek-core"])
@pytest.mark.parametrize("section", ["Installing", "Upgrading", "Removing", "Installing dependencies"])
def test_kernels_must_stay(name: str, section: str) -> None:
    read = read_transaction(f"{section}:\n {name}  x86_64  5.14.0-570.el9  baseos  1 k\n", [name])
    assert not read["ok"]
    assert name in read["problems"][0]


@pytest.mark.parametrize("name", ["kernel-devel", "kernel-devel-matched", "kernel-headers", "kernel-srpm-macros"])
def test_headers_are_no_kernel(name: str) -> None:
    assert read_transaction(f"Installing:\n {name}  x86_64  5.14.0-570.el9  baseos  1 k\n")["ok"]


def test_nothing_to_do_is_no_problem() -> None:
    read = read_transaction(
        "Package gcc-11.5.0-1.el9.x86_64 is already installed.\nDependencies resolved.\nNothing to do.\nComplete!\n"
    )
    assert read["ok"] and read["nothing"]


@pytest.mark.parametrize(
    "said",
    [
        "No match for argument: nvidia-driver-cuda\nError: Unable to find a match: nvidia-driver-cuda\n",
        "Error: \n Problem: package kmod-nvidia-open-dkms requires dkms\n  - nothing provides dkms needed by kmod-nvidia-open-dkms\n",
        "Error: Failed to download metadata for repo 'gpufleet-nvidia': Cannot download repomd.xml\n",
    ],
)
def test_what_dnf_refuses_is_said(said: str) -> None:
    read = read_transaction(said)
    assert not read["ok"], read
    assert read["problems"]


def test_what_may_have_its_own_version_takes_the_drivers_where_there_is_one() -> None:
    offered = (
        "".join(f"{n} | 580.{v}-1.el9 | nv\n" for n in ("a", "daemon") for v in ("105.08", "126.20"))
        + "own | 3-1 | nv\n"
    )
    wanted = specs(offered, "580.105.08", {"a": "580.105.08-1.el9"}, ["daemon", "own", "elsewhere"])
    assert wanted == ["a-580.105.08-1.el9", "daemon-580.105.08-1.el9", "own", "elsewhere"]


HEAD = """nvidia-installer log file '/var/log/nvidia-installer.log'
creation time: Fri Nov 20 23:57:00 2026
installer version: 525.85.05

nvidia-installer command line:
    ./nvidia-installer
    --silent

"""
LAST = (
    "ERROR: Installation has failed.  Please see the file '/var/log/nvidia-installer.log' for details.  You may find suggestions "
    "on fixing installation problems in the README available on the Linux driver download page at www.nvidia.com.\n"
)


@pytest.mark.parametrize(
    ("error", "cause", "remedy"),
    [
        ("The Nouveau kernel driver is currently in use by your system.  This driver is\n       incompatible with the NVIDIA driver.", "nouveau", "reboot"),
        ("Unable to find the kernel source tree for the currently running kernel.", "headers", "nvidia_driver_kernel_headers"),
        ("Unable to find the development tool `cc` in your path; please make sure", "compiler", "gcc"),
        ("An NVIDIA kernel module 'nvidia' appears to be already loaded in your kernel.", "another NVIDIA module", "unload"),
        ('An error occurred while performing the step: "Building kernel modules". See /var/log/nvidia-installer.log for details.', "do not build", "580"),
        ("Unable to create '/tmp/x' for copying (No space left on device)", "full", "tmpdir"),
        ("The kernel requires a module signature: Required key not available", "Secure Boot", "signed"),
    ],
)  # fmt: skip
def test_the_reason_is_read_from_the_log(error: str, cause: str, remedy: str) -> None:
    read = read_log(f"{HEAD}-> Installing NVIDIA driver version 525.85.05.\nERROR: {error}\n{LAST}")
    assert cause in read["cause"]
    assert remedy in read["remedy"]
    assert read["errors"] == [" ".join(error.split())], "the last line of every failed log is no reason"
    assert read["version"] == "525.85.05"
    assert not read["ok"]


def test_the_compilers_first_errors_come_along() -> None:
    build = "   /build/nv-mmap.c:1: error: assignment of read-only member 'vm_flags'\n   make[2]: *** [scripts/Makefile.build:250: nv.o] Error 1\n"
    read = read_log(f"{HEAD}{build}ERROR: Building kernel modules failed\n{LAST}")
    assert read["compiler"][0].startswith("/build/nv-mmap.c:1: error:")
    assert "580" in read["remedy"]


def test_an_unknown_option_writes_no_log() -> None:
    said = '\nnvidia-installer: unrecognized option: "--rebuild-initramfs"\n\n'
    said += "ERROR: Invalid commandline, please run `nvidia-installer --help` for usage information.\n"
    read = read_log("", said)
    assert "option" in read["cause"]
    assert 'unrecognized option: "--rebuild-initramfs"' in read["errors"][0]


def test_a_log_without_an_error_is_good() -> None:
    read = read_log(
        f"{HEAD}-> Installation of the NVIDIA Accelerated Graphics Driver for Linux-x86_64 (version: 5) is now complete.\n"
    )
    assert read["ok"] and read["cause"] == ""


def test_a_log_that_ends_in_the_middle_is_not_good() -> None:
    read = read_log(f"{HEAD}-> Installing NVIDIA driver version 525.85.05.\n")
    assert not read["ok"] and read["errors"] == []
