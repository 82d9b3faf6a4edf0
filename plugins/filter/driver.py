# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter of the role nvidia_driver: facts and wishes in, one decision out."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.gpufleet.llm.plugins.plugin_utils import driver, driver_files, driver_node, driver_outcome
from ansible_collections.gpufleet.llm.plugins.plugin_utils.mirrors import MirrorError
from ansible_collections.gpufleet.llm.plugins.plugin_utils.sha512_crypt import sha512_crypt


def driver_decision(
    settings: Mapping[str, Any], system: Mapping[str, Any], gpu: Mapping[str, Any], probe: str = ""
) -> dict[str, Any]:
    """What to do about the driver of a node; the shape is in plugin_utils/driver.py."""
    try:
        return driver.decide(settings, system, gpu, probe)
    except (driver.DriverError, MirrorError) as error:
        raise AnsibleFilterError(f"gpufleet.llm.driver_decision: {error}") from error


def driver_probe(text: str) -> dict[str, Any]:
    """What roles/nvidia_driver/files/probe.sh answered, as a dict with all keys."""
    return driver_node.parse_probe(text)


def driver_versions(
    madison: str,
    packages: list[dict[str, Any]],
    version: str = "",
    branch: str = "",
    there: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Any]:
    """The newest driver version that all coupled packages have, the packages' versions, and what must go for it."""
    coupled = [str(package["name"]) for package in packages if package["coupled"]]
    installed = {name: str(package["version"]) for name, package in (there or {}).items()}
    return driver_node.pick_versions(madison, coupled, version, branch, installed)


def driver_rehearsal(text: str, known: list[str] | None = None) -> dict[str, Any]:
    """What apt-get --simulate would do, and what of it must not be."""
    return driver_node.read_rehearsal(text, known or [])


def driver_parts(names: Iterable[str]) -> list[str]:
    """Those of the packages that are parts of a driver: not nvidia-container-toolkit."""
    return [name for name in names if driver_node.driver_part(name)]


def driver_removable(text: str, recorded: list[str]) -> list[str]:
    """Of the packages that the role installed, those that nothing needs any more."""
    return driver_node.removable(text, recorded)


def driver_dkms_reason(log: str) -> str:
    """Why a build of the modules failed."""
    return driver_node.dkms_reason(log)


def driver_mok_hash(password: str) -> str:
    """The password for the firmware's key manager as crypt(3) writes it, with a salt of its own each time.

    Not by ansible.builtin.password_hash, which needs passlib on the controller.
    """
    return sha512_crypt(str(password), secrets.token_hex(8))


def driver_preferences(version: str, packages: list[str]) -> str:
    """The text of apt's pin of one driver version."""
    return driver_files.preferences(packages, version)["content"]


def driver_result(
    plan: Mapping[str, Any],
    gpu: Mapping[str, Any],
    seen: Mapping[str, Any],
    container: str,
    reboot: str,
    changed: bool,
    rebooted: bool,
) -> dict[str, Any]:
    """The role's result, and whether a reboot is required."""
    return driver_outcome.outcome(
        plan, gpu, seen, container=container, reboot=reboot, changed=changed, rebooted=rebooted
    )


class FilterModule:
    """What ansible-core loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name -> function."""
        functions = (
            driver_decision,
            driver_dkms_reason,
            driver_mok_hash,
            driver_parts,
            driver_preferences,
            driver_probe,
            driver_rehearsal,
            driver_removable,
            driver_result,
            driver_versions,
        )
        return {function.__name__: function for function in functions}
