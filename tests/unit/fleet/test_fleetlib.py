# Copyright: Contributors to the gpufleet.llm project
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The test fleet's own judgement: what it reads, accepts and refuses. No container is started here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FLEET = Path(__file__).resolve().parents[2] / "fleet"
sys.path.insert(0, str(FLEET))

from fleetlib import aptsources, depot, host, images, nodes, stage_conda, stage_models

DEB822 = """\
Types: deb
# a comment between fields
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
 contrib
Signed-By: /usr/share/keyrings/x.gpg

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://mirror.example/security
Suites: bookworm-security
Components: main
"""


def test_deb822_sources_are_read_with_continuation_lines_and_without_disabled_ones() -> None:
    assert aptsources.parse_deb822(DEB822) == [
        aptsources.Source("http://mirror.example/debian", ("bookworm", "bookworm-updates"), ("main", "contrib")),
        aptsources.Source("http://mirror.example/security", ("bookworm-security",), ("main",)),
    ]


def test_one_line_sources_are_read_with_options_and_comments() -> None:
    text = "# deb http://no.example x main\ndeb [arch=amd64 signed-by=/k] http://m.example/debian bookworm main contrib # hi\n"
    assert aptsources.parse_one_line(text) == [
        aptsources.Source("http://m.example/debian", ("bookworm",), ("main", "contrib"))
    ]


@pytest.mark.parametrize(
    ("codename", "expected"),
    [
        ("bookworm", ("http://mirror.example/debian", "http://mirror.example/security")),
        ("trixie", ("", "")),
    ],
)
def test_the_archive_is_the_one_of_the_machines_own_release(codename: str, expected: tuple[str, str]) -> None:
    assert aptsources.debian_archives(aptsources.parse_deb822(DEB822), codename) == expected


def test_a_third_party_source_of_another_component_is_not_taken_for_the_archive() -> None:
    sources = [aptsources.Source("http://vendor.example", ("bookworm",), ("vendor",))]
    assert aptsources.debian_archives(sources, "bookworm") == ("", "")


def test_what_a_node_gets_is_read_back_as_the_same_sources() -> None:
    text = aptsources.node_sources("http://m.example/debian", "http://m.example/security", "trixie")
    assert [(source.uri, source.suites) for source in aptsources.parse_deb822(text)] == [
        ("http://m.example/debian", ("trixie", "trixie-updates")),
        ("http://m.example/security", ("trixie-security",)),
    ]


@pytest.mark.parametrize(
    ("text", "node"),
    [
        ("n1=debian12", nodes.Node("n1", "debian12")),
        ("n1=debian12:t4", nodes.Node("n1", "debian12", "t4")),
        ("gpu-7=rhel9-like:h100-mig-nodriver", nodes.Node("gpu-7", "rhel9-like", "h100-mig", False)),
        ("n1=arch-like:none", nodes.Node("n1", "arch-like")),
    ],
)
def test_a_node_is_named_with_its_image_and_card(text: str, node: nodes.Node) -> None:
    assert nodes.parse_node(text) == node


@pytest.mark.parametrize(
    "text", ["n1", "n1=windows", "n1=debian12:rtx9090", "N1=debian12", "depot=debian12", "=debian12"]
)
def test_a_node_that_cannot_be_is_refused_in_words(text: str) -> None:
    with pytest.raises(host.FleetError) as caught:
        nodes.parse_node(text)
    assert caught.value.rc == 2


@pytest.mark.parametrize("name", ["", "../x", "A", "x y", "x" * 40])
def test_a_fleets_name_cannot_lead_out_of_the_cache(name: str) -> None:
    with pytest.raises(host.FleetError):
        nodes.fleet_named(name)


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "{}",
        '{"path": "/x"}',
        '{"path": "/x", "times": 1}',
        '{"path": "(", "status": 503}',
        '{"path": "/x", "stauts": 503}',
        '["x"]',
    ],
)
def test_a_fault_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(host.FleetError):
        depot.check_fault(text)


def test_faults_get_an_id_and_are_added_to_the_plan(tmp_path: Path) -> None:
    depot.plan_faults(tmp_path, depot.check_fault('{"path": "/a", "status": 503, "id": "first"}'))
    depot.plan_faults(tmp_path, depot.check_fault('[{"path": "/b", "drop": true}]'))
    plan = depot.json.loads((tmp_path / "faults.json").read_text())
    assert [fault["path"] for fault in plan] == ["/a", "/b"]
    assert plan[0]["id"] == "first" and plan[1]["id"]
    depot.plan_faults(tmp_path, [], keep=False)
    assert depot.json.loads((tmp_path / "faults.json").read_text()) == []


def test_no_image_brings_what_the_roles_bring() -> None:
    for image in images.IMAGES.values():
        if image.name != "depot":
            assert not {"git", "git-lfs", "nginx"} & {*images.COMMON, *image.packages}


def test_every_file_of_a_recipe_exists_and_counts() -> None:
    for image in images.IMAGES.values():
        files = images.recipe_files(image)
        assert files and all(path.is_file() for path in files)


def test_commits_of_the_fixtures_are_those_of_the_depots_page(tmp_path: Path) -> None:
    page = (FLEET / "depot" / "README.md").read_text()
    for name, commits in stage_models.REPOSITORIES.items():
        for commit in stage_models._repository(tmp_path / f"{name}.git", commits):
            assert commit in page


def test_the_same_installer_comes_out_twice() -> None:
    files: stage_conda.Files = {f"{stage_conda.SITE}/conda/__init__.py": b"", "bin/x": "-> y"}
    first = stage_conda.build_installer(stage_conda.INSTALLERS[0], files, "3.11.2")
    assert first == stage_conda.build_installer(stage_conda.INSTALLERS[0], dict(reversed(files.items())), "3.11.2")
    assert first.startswith(b"#!/bin/sh") and b"@NAME@" not in first


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_another_system_than_linux_is_told_what_to_do(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.sys, "platform", platform)
    with pytest.raises(host.FleetError, match="run it on Linux") as caught:
        host.ensure_host()
    assert caught.value.rc == 2


def test_without_root_the_message_says_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.os, "geteuid", lambda: 1000)
    with pytest.raises(host.FleetError, match="sudo"):
        host.ensure_host()


def test_missing_tools_are_named_where_they_may_not_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.os, "geteuid", lambda: 0)
    monkeypatch.setattr(host, "missing_tools", lambda: {"podman": "podman"})
    with pytest.raises(host.FleetError, match="podman"):
        host.ensure_host(install=False)
