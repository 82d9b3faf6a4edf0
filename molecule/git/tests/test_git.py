# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role git on real nodes: what is there, what drifts and is healed, what is removed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

FILTERS = {
    "filter.lfs.clean": "git-lfs clean -- %f",
    "filter.lfs.smudge": "git-lfs smudge -- %f",
    "filter.lfs.process": "git-lfs filter-process",
    "filter.lfs.required": "true",
}


def setting(node: Any, key: str) -> list[str]:
    return node.run("git config --system --get-all %s", key).stdout.splitlines()


@pytest.mark.parametrize("package", ["git", "git-lfs"])
def test_package_is_installed_and_runs(node: Any, package: str) -> None:
    assert node.package(package).is_installed
    assert node.run(f"{package} --version").rc == 0


@pytest.mark.parametrize(("key", "value"), FILTERS.items())
def test_lfs_filter_is_there_for_every_user(node: Any, key: str, value: str) -> None:
    assert setting(node, key) == [value]


def test_system_settings(node: Any) -> None:
    assert setting(node, "safe.directory") == ["/srv/models", "/opt/models"]
    assert setting(node, "core.longpaths") == ["true"]
    assert setting(node, "url.https://git.example.org/.insteadOf") == ["https://github.example.org/"]


def test_a_clone_gets_what_lfs_stores(node: Any) -> None:
    script = """set -e; rm -rf /tmp/lfs; mkdir /tmp/lfs; cd /tmp/lfs; export HOME=/tmp/lfs
    git init -q a; cd a; git lfs track '*.bin' >/dev/null; printf weights > w.bin; git add .
    git -c user.name=t -c user.email=t@example.org commit -qm w
    git cat-file blob HEAD:w.bin | head -n 1; cat w.bin"""
    said = node.run("sh -c %s", script)
    assert said.rc == 0, said.stderr
    assert said.stdout.splitlines() == ["version https://git-lfs.github.com/spec/v1", "weights"]


# What the fleet's own drift test does not know of: it changes packages and files, these are settings.
DRIFT = {
    "git-lfs removed": "if command -v apt-get; then apt-get -q -y remove git-lfs; elif command -v dnf; then rpm -e git-lfs; "
    "else pacman -R --noconfirm git-lfs; fi",
    "filter edited": "git config --system filter.lfs.smudge 'cat'",
    "filter doubled": "git config --system --add filter.lfs.clean 'cat'",
    "value added": "git config --system --add safe.directory '*'",
    "file gone": "rm /etc/gitconfig",
}


@pytest.mark.parametrize("case", DRIFT)
def test_drift_is_seen_and_healed(node: Any, node_name: str, play: Callable[..., Any], case: str) -> None:
    broken = node.run("sh -c %s", DRIFT[case])
    assert broken.rc == 0, broken.stderr
    healed = play()
    assert healed.rc == 0 and healed.changed[node_name] > 0, healed
    again = play(None, "--check", "--diff")
    assert again.changed == {node_name: 0} and "+++ after" not in again.output, again


def test_null_takes_a_setting_away(node: Any, node_name: str, play: Callable[..., Any]) -> None:
    done = play({"git_system_config": {"core.longpaths": None}})
    assert done.rc == 0, done
    assert setting(node, "core.longpaths") == []
    assert play({"git_system_config": {"core.longpaths": None}}).changed == {node_name: 0}


def test_a_version_that_nobody_has_is_an_error_in_words(node: Any, play: Callable[..., Any]) -> None:
    failed = play({"git_version": "0:0.0.1-nobody"})
    assert failed.rc != 0
    assert "0.0.1-nobody" in failed.output
    assert node.package("git").is_installed


def test_the_version_may_be_a_glob(node: Any, node_name: str, play: Callable[..., Any]) -> None:
    assert play().rc == 0  # what the tests before changed is as wanted again
    major = node.run("git --version").stdout.split()[2].split(".")[0]
    fits = play({"git_version": f"*{major}.*"})
    assert fits.rc == 0 and fits.changed == {node_name: 0}, fits
    other = play({"git_version": f"*nobody{major}.*"}, "--check")
    assert other.rc == 0 and other.changed[node_name] > 0, other


def test_absent_removes_packages_filters_and_settings(node: Any, node_name: str, play: Callable[..., Any]) -> None:
    gone = play({"git_state": "absent"})
    assert gone.rc == 0, gone
    assert not node.package("git").is_installed
    assert not node.package("git-lfs").is_installed
    left = node.run("cat /etc/gitconfig").stdout
    assert "lfs" not in left and "insteadOf" not in left and "directory" not in left
    assert play({"git_state": "absent"}).changed == {node_name: 0}
    assert play().rc == 0
