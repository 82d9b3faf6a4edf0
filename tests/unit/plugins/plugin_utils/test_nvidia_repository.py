# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""NVIDIA's repository, the same for every role."""

from __future__ import annotations

import re

import pytest
from ansible_collections.gpufleet.llm.plugins.plugin_utils import nvidia_repository as repositories


@pytest.mark.parametrize(
    ("distribution", "family", "version", "folder", "key"),
    [
        ("Debian", "Debian", "12.5", "debian12", "3bf863cc"),
        ("Debian", "Debian", "13.0", "debian13", "8793F200"),
        ("Ubuntu", "Debian", "22.04", "ubuntu2204", "3bf863cc"),
        ("Ubuntu", "Debian", "24.04", "ubuntu2404", "3bf863cc"),
        ("Rocky", "RedHat", "9.4", "rhel9", "D42D0685"),
        ("AlmaLinux", "RedHat", "8.10", "rhel8", "D42D0685"),
        ("RedHat", "RedHat", "9", "rhel9", "D42D0685"),
    ],
)
def test_each_distribution_has_its_folder_and_key(distribution, family, version, folder, key):
    found = repositories.repository(distribution, family, version)
    assert found["url"] == f"https://developer.download.nvidia.com/compute/cuda/repos/{folder}/x86_64/"
    assert found["key_urls"] == [f"{found['url']}{key}.pub"] and re.fullmatch("[0-9A-F]{40}", found["fingerprints"][0])
    assert found["host"] == "developer.download.nvidia.com"


@pytest.mark.parametrize(
    ("distribution", "family", "version", "machine"),
    [
        ("Archlinux", "Archlinux", "NA", "x86_64"),
        ("Debian", "Debian", "11.9", "x86_64"),
        ("Ubuntu", "Debian", "22.10", "x86_64"),
        ("Debian", "Debian", "12.5", "riscv64"),
        ("Linux Mint", "Debian", "22", "x86_64"),
    ],
)
def test_what_has_none_is_told(distribution, family, version, machine):
    assert not repositories.has_repository(distribution, family, version, machine)
    with pytest.raises(repositories.RepositoryError, match="runfile"):
        repositories.repository(distribution, family, version, machine)


def test_arm_servers_are_called_sbsa():
    assert repositories.repository("Ubuntu", "Debian", "24.04", "aarch64")["url"].endswith("/ubuntu2404/sbsa/")


def test_a_key_that_is_not_known_is_not_trusted_blindly():
    with pytest.raises(repositories.RepositoryError, match="fingerprint"):
        repositories.repository("Rocky", "RedHat", "10.0")
    given = repositories.repository("Rocky", "RedHat", "10.0", fingerprints=["AB" * 20])
    assert given["fingerprints"] == ["AB" * 20]


def test_the_source_goes_through_the_mirror_and_names_its_key():
    found = repositories.repository("Debian", "Debian", "12", profile="depot")
    assert found["host"] == "depot.gpufleet.test"
    assert f"URIs: {found['url']}\nSuites: /\nSigned-By: {found['key_path']}\n" in found["file"]["content"]
    rpm = repositories.repository("Rocky", "RedHat", "9.4")["file"]["content"]
    assert "gpgcheck=1" in rpm and "gpgkey=file:///etc/pki/rpm-gpg/" in rpm


def test_the_pin_bars_drivers_and_no_toolkit():
    pin = repositories.no_driver_pin("host.example")
    names = re.search(r"(?m)^Package: (.*)$", pin["content"])[1].split()
    assert "cuda-drivers*" in names and "libnvidia-*" in names
    assert not any(repositories._matches("cuda-toolkit-12-4", [name]) for name in names)
    assert "Pin: origin host.example\nPin-Priority: -1\n" in pin["content"]
