# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""nginx through its life: pinned, up, down, held, another source and back, a key that is not the right one, gone.

Each step starts from where the one before left the node, as in real life; each ends with a run that changes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

AUTHORITY, MIRRORS = "/etc/apt/apt.conf.d/90nginx-gpufleet", "/etc/apt/nginx-gpufleet.mirrors"
KEYS = ("/etc/apt/keyrings/nginx-gpufleet.asc", "/etc/pki/rpm-gpg/RPM-GPG-KEY-nginx-gpufleet")
REPOSITORY = [
    "/etc/apt/sources.list.d/nginx-gpufleet.sources",
    "/etc/apt/preferences.d/nginx-gpufleet",
    "/etc/yum.repos.d/nginx-gpufleet.repo",
    AUTHORITY,
    MIRRORS,
    *KEYS,
]
OURS = [
    *REPOSITORY,
    "/etc/systemd/system/nginx.service.d/50-gpufleet-hardening.conf",
    "/etc/nginx/gpufleet",
    "/etc/nginx/nginx.conf",
    "/etc/nginx/conf.d/gpufleet-chat.conf",
    "/etc/nginx/conf.d/gpufleet-00-maps.conf",
]
# The depot's places of nginx.org's repositories, as package managers and their lists have them
DEPOT = {"apt": "depot.gpufleet.test/apt/nginx", "dnf": "nginx-gpufleet"}


def distribution(node: Any) -> str:
    return node.system_info.distribution


@pytest.fixture(autouse=True)
def has_official_packages(node: Any) -> None:
    if distribution(node) == "arch":
        pytest.skip("nginx.org has no packages for Arch Linux")


def package(node: Any) -> str:
    """The installed version as the package manager says it, without an epoch."""
    if distribution(node) in ("debian", "ubuntu"):
        return node.run("dpkg-query -W -f '${Version}' nginx").stdout
    return node.run("rpm -q --qf '%{VERSION}-%{RELEASE}' nginx").stdout


def official(node: Any, version: str) -> str:
    """What nginx.org calls that version here."""
    if distribution(node) in ("debian", "ubuntu"):
        return f"{version}-1~{node.run('. /etc/os-release; echo $VERSION_CODENAME').stdout.strip()}"
    return f"{version}-1.el9.ngx"


def running(node: Any) -> bool:
    """A running nginx whose program is the installed one."""
    pid = node.run("systemctl show --property=MainPID --value nginx.service").stdout.strip()
    return (
        node.service("nginx").is_running and node.run(f"readlink /proc/{pid}/exe").stdout.strip() == "/usr/sbin/nginx"
    )


def step(play: Callable[..., Any], node_name: str, **extra: Any) -> Any:
    done = play(extra)
    assert done.rc == 0, done
    again = play(extra)
    assert again.rc == 0 and again.changed == {node_name: 0}, again
    return done


def test_the_pinned_version_is_installed(node: Any) -> None:
    assert package(node) == official(node, "1.24.0")
    assert running(node)


def test_a_newer_one_is_not_taken_by_itself(node: Any) -> None:
    if distribution(node) not in ("debian", "ubuntu"):
        pytest.skip("the pin is apt's")
    said = node.run("apt-get --simulate dist-upgrade")
    assert said.rc == 0 and "Inst nginx " not in said.stdout
    assert "1001" in node.run("apt-cache policy nginx").stdout


def repositories(node: Any) -> str:
    """What the package manager says of the repositories that it uses."""
    asked = "apt-cache policy" if distribution(node) in ("debian", "ubuntu") else "dnf -q repolist"
    return node.check_output(asked)


def official_is_known(node: Any) -> bool:
    """True if the package manager uses the repository of nginx.org."""
    return DEPOT["apt" if distribution(node) in ("debian", "ubuntu") else "dnf"] in repositories(node)


def rpm_keys(node: Any) -> str:
    """The keys that rpm trusts, with the names of their owners."""
    return node.run("rpm -q gpg-pubkey --qf '%{SUMMARY}\\n'").stdout


def test_the_repository_is_known(node: Any) -> None:
    """So that the test of its removal looks for the right words."""
    assert official_is_known(node)
    if distribution(node) not in ("debian", "ubuntu"):
        assert "nginx packages" in rpm_keys(node)


def test_an_active_module_hides_nothing(node: Any) -> None:
    if distribution(node) in ("debian", "ubuntu"):
        pytest.skip("modules are dnf's")
    # The distribution's nginx is in a module: without this setting dnf sees no other nginx than that.
    seen = "dnf -q repoquery --available --qf '%{evr}' nginx"
    assert f"{official(node, '1.24.0')}" in node.check_output(seen)
    hidden = node.check_output(f"{seen} --setopt=nginx-gpufleet.module_hotfixes=0")
    assert hidden and ".ngx" not in hidden


@pytest.mark.parametrize("version", ["1.28.0", "1.24.0"], ids=["up", "down"])
def test_the_version_moves_up_and_down(node: Any, node_name: str, play: Callable[..., Any], version: str) -> None:
    step(play, node_name, nginx_version=version)
    assert package(node) == official(node, version)
    assert running(node)


def test_hold(node: Any, node_name: str, play: Callable[..., Any]) -> None:
    if distribution(node) not in ("debian", "ubuntu"):
        assert "nginx_hold is for Debian" in play({"nginx_hold": True}).output
        return
    step(play, node_name, nginx_hold=True)
    assert "nginx" in node.run("apt-mark showhold").stdout.split()
    step(play, node_name, nginx_hold=True, nginx_version="1.28.0")
    assert package(node) == official(node, "1.28.0"), "the role moves what it holds"
    assert "nginx" in node.run("apt-mark showhold").stdout.split()
    step(play, node_name)
    assert node.run("apt-mark showhold").stdout.split() == []


def test_another_source_and_back(node: Any, node_name: str, play: Callable[..., Any]) -> None:
    step(play, node_name, nginx_source="distribution", nginx_version="")
    assert package(node) != official(node, "1.24.0") and not package(node).endswith(".ngx")
    assert not any(node.file(path).exists for path in REPOSITORY)
    assert running(node)
    step(play, node_name)
    assert package(node) == official(node, "1.24.0")
    assert running(node)


def test_a_key_with_another_fingerprint_is_never_trusted(node: Any, node_name: str, play: Callable[..., Any]) -> None:
    key = next(path for path in KEYS if node.file(path).exists)
    node.run("rm %s", key)
    failed = play({"nginx_key_fingerprints": ["0123456789ABCDEF0123456789ABCDEF01234567"]})
    assert failed.rc != 0
    assert "0123456789ABCDEF0123456789ABCDEF01234567" in failed.output and "Nothing was trusted" in failed.output
    assert not node.file(key).exists and not node.file(f"{key}.candidate").exists
    assert running(node)
    step(play, node_name)


def test_a_mirror_with_an_authority_of_its_own(node: Any, node_name: str, play: Callable[..., Any]) -> None:
    """The profile's ca_path is enough: for the key, and for the package manager."""
    anchor = "/usr/local/share/ca-certificates/gpufleet-depot.crt"
    key = KEYS[0 if distribution(node) in ("debian", "ubuntu") else 1]
    node.check_output(f"mv {anchor} /etc/site-ca.pem && update-ca-certificates --fresh")
    try:
        node.check_output(f"rm -f {key} {AUTHORITY}")
        failed = play({"nginx_version": "1.28.0"})
        assert failed.rc != 0 and "CERTIFICATE_VERIFY_FAILED" in failed.output, failed
        step(play, node_name, nginx_version="1.28.0", nginx_mirror_overrides={"ca_path": "/etc/site-ca.pem"})
        assert package(node) == official(node, "1.28.0")
    finally:
        node.check_output(f"mv /etc/site-ca.pem {anchor} && update-ca-certificates --fresh")
    step(play, node_name)
    assert package(node) == official(node, "1.24.0")


def test_a_place_that_is_down_or_wrong_leads_to_the_next(
    node: Any, node_name: str, play: Callable[..., Any], depot: Callable[..., str]
) -> None:
    apt = distribution(node) in ("debian", "ubuntu")
    upstream = "https://nginx.org/packages/" if apt else "https://nginx.org/packages/rhel/"
    # The first is down. The other two are the depot under two spellings of a path: by the first it gives wrong packages.
    odd, path = ("apt/./nginx/", "apt/nginx/") if apt else ("%72pm/nginx/", "rpm/nginx/")
    places = ["https://127.0.0.1:1/", f"https://depot.gpufleet.test/{odd}", f"https://depot.gpufleet.test/{path}"]
    node.check_output("apt-get clean" if apt else "dnf -q clean packages")
    depot("clear-log")
    depot("fault", json.dumps({"path": f"^/{re.escape(odd)}.*[.](deb|rpm)$", "corrupt": True}))
    step(play, node_name, nginx_version="1.28.0", nginx_mirror_overrides={"rewrite": {upstream: places}})
    assert package(node) == official(node, "1.28.0")
    asked = [json.loads(line)["path"] for line in depot("log").splitlines() if line]
    packages = [one for one in asked if one.endswith((".deb", ".rpm")) and "1.28.0" in one]
    wrong = [one.startswith(f"/{odd}") for one in packages]
    assert wrong[0] and wrong.index(False) == len(wrong) - 1, asked
    step(play, node_name)
    assert package(node) == official(node, "1.24.0")
    assert not node.file(MIRRORS).exists


def test_a_key_is_trusted_though_a_later_place_is_down(node: Any, node_name: str, play: Callable[..., Any]) -> None:
    key = next(path for path in KEYS if node.file(path).exists)
    node.check_output("rm %s", key)
    keys = ["https://depot.gpufleet.test/keys/", "https://127.0.0.1:1/"]
    step(play, node_name, nginx_mirror_overrides={"rewrite": {"https://nginx.org/keys/": keys}})
    assert node.file(key).exists


def test_gone_is_gone(node: Any, node_name: str, play: Callable[..., Any]) -> None:
    step(play, node_name, nginx_state="absent")
    assert not node.package("nginx").is_installed
    assert [path for path in OURS if node.file(path).exists] == []
    assert node.run("systemctl is-active nginx").stdout.strip() != "active"
    if distribution(node) in ("debian", "ubuntu"):
        assert node.run("apt-get update").rc == 0
    else:
        assert "nginx packages" not in rpm_keys(node)
    assert not official_is_known(node)
    step(play, node_name)
    assert running(node)
