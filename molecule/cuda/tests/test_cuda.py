# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role cuda has left on the nodes of this scenario."""

from __future__ import annotations

from typing import Any

import pytest


def releases(node: Any) -> list[str]:
    return ["12.0"] if node.system_info.distribution == "arch" else ["12.0", "12.4"]


def test_toolkits_lie_side_by_side(node: Any) -> None:
    for release in releases(node):
        said = node.run(f"/usr/local/cuda-{release}/bin/nvcc --version").stdout
        assert f"release {release}," in said


def test_login_shells_find_the_newest(node: Any) -> None:
    newest = releases(node)[-1]
    assert node.run("readlink -f /usr/local/cuda").stdout.strip() == f"/usr/local/cuda-{newest}"
    assert node.run("sudo -u ops sh -lc 'command -v nvcc'").stdout.strip() == "/usr/local/cuda/bin/nvcc"
    assert f"release {newest}," in node.run("sudo -u ops sh -lc 'nvcc --version'").stdout


def test_a_second_login_does_not_lengthen_the_path(node: Any) -> None:
    path = node.run("sudo -u ops sh -lc '. /etc/profile.d/gpufleet-cuda.sh; echo $PATH'").stdout
    assert path.count("/usr/local/cuda/bin") == 1


def test_no_library_path_is_set(node: Any) -> None:
    assert node.run("sudo -u ops sh -lc 'echo \"<$LD_LIBRARY_PATH>\"'").stdout.strip() == "<>"
    assert node.run("grep -rlE '^[^#]*LD_LIBRARY_PATH' /etc/profile.d /etc/environment").stdout.strip() == ""
    assert not node.file("/etc/ld.so.conf.d/gpufleet-cuda.conf").exists


def test_no_driver_came(node: Any) -> None:
    assert not node.file("/usr/bin/nvidia-smi").exists
    assert node.run("ls /usr/lib/x86_64-linux-gnu/libcuda.so* /usr/lib64/libcuda.so* 2>/dev/null").stdout.strip() == ""


def test_every_user_may_read_all_of_it(node: Any) -> None:
    for release in releases(node):
        assert node.run(f"sudo -u ops find /usr/local/cuda-{release}/ ! -readable").stdout.strip() == ""


def test_installers_are_gone_and_records_are_there(node: Any) -> None:
    assert node.run("ls /var/cache/gpufleet/cuda").stdout.strip() == ""
    listed = node.run("cd /var/lib/gpufleet/cuda && ls *.toolkit").stdout.split()
    assert listed == [f"{release}.toolkit" for release in releases(node)]


def test_apt_is_kept_from_the_repositorys_drivers(node: Any) -> None:
    if node.system_info.distribution not in ("debian", "ubuntu"):
        pytest.skip("the pin is apt's")
    for name in ("cuda-drivers", "nvidia-driver", "nvidia-open"):
        assert "Candidate: (none)" in node.run(f"LC_ALL=C apt-cache policy {name}").stdout
    assert "Candidate: (none)" not in node.run("LC_ALL=C apt-cache policy cuda-toolkit-12-4").stdout
