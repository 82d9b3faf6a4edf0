# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of the role cuda, and NVIDIA's repository for every role that needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.gpufleet.llm.plugins.plugin_utils import cuda, cuda_packages, nvidia_repository
from ansible_collections.gpufleet.llm.plugins.plugin_utils.mirrors import MirrorError
from ansible_collections.gpufleet.llm.plugins.plugin_utils.observe import plain


def cuda_plan(settings: Mapping[str, Any], system: Mapping[str, Any]) -> dict[str, Any]:
    """The plan of the role cuda, or an error in words."""
    try:
        return cuda.decide(plain(settings), plain(system))
    except (cuda.CudaError, nvidia_repository.RepositoryError, MirrorError) as error:
        raise AnsibleFilterError(str(error)) from error


def cuda_work(
    plan: Mapping[str, Any], look: Mapping[str, Any], gpu: Mapping[str, Any] | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What is to be done about what observe saw."""
    return cuda.work(plain(plan), plain(look), plain(gpu or {}), plain(settings))


def cuda_result(
    plan: Mapping[str, Any],
    first: Mapping[str, Any],
    last: Mapping[str, Any],
    done: Mapping[str, Any],
    compiled: Mapping[str, Any] | None = None,
    check_mode: bool = False,
) -> dict[str, Any]:
    """The fact that the role leaves."""
    return cuda.result(plain(plan), plain(first), plain(last), plain(done), plain(compiled or {}), bool(check_mode))


def cuda_package_specs(toolkits: Iterable[Mapping[str, Any]], manager: str, listing: str = "") -> list[str]:
    """What apt-get, dnf or pacman is asked to install."""
    return cuda_packages.specs(plain(toolkits), str(manager), str(listing))


def cuda_pins(toolkit: Mapping[str, Any], manager: str, listing: str) -> str:
    """What is written down of a pinned update's parts."""
    return cuda_packages.pins_record(plain(toolkit), str(manager), str(listing))


def cuda_unproven(said: Mapping[str, Any], toolkit: Mapping[str, Any]) -> str:
    """What is written down of a proof that failed; nothing for one that succeeded."""
    return cuda.unproven(plain(toolkit), plain(said))


def cuda_transaction(output: str, manager: str, own: Iterable[str] = ()) -> dict[str, list[str]]:
    """What a simulated installation would do."""
    return cuda_packages.transaction(str(output), str(manager), [str(name) for name in own])


def nvidia_repository_of(system: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """NVIDIA's repository for a distribution."""
    given = plain(system)
    try:
        return nvidia_repository.repository(
            *(str(given[key]) for key in ("distribution", "os_family", "version", "machine")), **plain(options)
        )
    except (nvidia_repository.RepositoryError, MirrorError) as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """What ansible-core loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name -> function."""
        return {
            "cuda_package_specs": cuda_package_specs,
            "cuda_pins": cuda_pins,
            "cuda_plan": cuda_plan,
            "cuda_result": cuda_result,
            "cuda_transaction": cuda_transaction,
            "cuda_unproven": cuda_unproven,
            "cuda_work": cuda_work,
            "nvidia_repository": nvidia_repository_of,
        }
