# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that the roles git and nginx would otherwise have as long Jinja expressions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.gpufleet.llm.plugins.plugin_utils import git_settings as git
from ansible_collections.gpufleet.llm.plugins.plugin_utils import role_items
from ansible_collections.gpufleet.llm.plugins.plugin_utils.nginx_sites import SiteError, complaints, resolve_sites


def git_settings(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """``git_system_config`` as a list of keys with their values."""
    try:
        return git.settings(config)
    except git.SettingError as error:
        raise AnsibleFilterError(str(error)) from error


def git_setting_items(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """``git_system_config`` as items of observe."""
    try:
        return git.setting_items(config)
    except git.SettingError as error:
        raise AnsibleFilterError(str(error)) from error


def package_items(packages: Iterable[str | Mapping[str, Any]], state: str = "present") -> list[dict[str, Any]]:
    """Packages with their versions as items of observe."""
    return role_items.package_items(packages, state)


def absent_items(paths: Iterable[str]) -> list[dict[str, Any]]:
    """Paths at which nothing must be as items of observe."""
    return role_items.absent_items(paths)


def file_items(files: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Files with their content as items of observe, secrets by their SHA-256."""
    return role_items.file_items(files)


def nginx_sites(
    sites: Iterable[Mapping[str, Any]], directory: str = "/etc/nginx", group: str = "nginx", seed: str = ""
) -> list[dict[str, Any]]:
    """``nginx_sites`` with all keys but ``files``, so without any secret; or an error in words."""
    try:
        resolved = resolve_sites(sites, directory, group, seed)
    except SiteError as error:
        raise AnsibleFilterError(str(error)) from error
    return [{key: value for key, value in site.items() if key != "files"} for site in resolved]


def nginx_site_files(
    sites: Iterable[Mapping[str, Any]], directory: str = "/etc/nginx", group: str = "nginx", seed: str = ""
) -> list[dict[str, Any]]:
    """The files of all sites besides their configuration: hashes of passwords, certificates, keys."""
    try:
        resolved = resolve_sites(sites, directory, group, seed)
    except SiteError as error:
        raise AnsibleFilterError(str(error)) from error
    return [file for site in resolved for file in site["files"]]


def nginx_complaints(sites: Iterable[Mapping[str, Any]]) -> list[str]:
    """What is wrong with ``nginx_sites``, in words that may be shown."""
    return complaints(list(sites))


class FilterModule:
    """What ansible-core loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name -> function."""
        return {
            "absent_items": absent_items,
            "file_items": file_items,
            "git_settings": git_settings,
            "git_setting_items": git_setting_items,
            "nginx_complaints": nginx_complaints,
            "nginx_site_files": nginx_site_files,
            "nginx_sites": nginx_sites,
            "package_items": package_items,
        }
