# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What to do about the driver of a node. Pure; the dated data are data/driver_packages.yml and the solver's tables.

The plan (always all keys; the tasks read C(__nvidia_driver_plan))::

    action            keep (a working driver, nothing of it is ours to touch), install (present is wanted: items say what
                      differs), remove, skip (no GPU), state (a person must act on the card itself)
    reason            one sentence
    method            distribution, nvidia_repo, runfile, or "" (skip)
    installer         apt, dnf, pacman or runfile: names tasks/install_<installer>.yml
    package_manager   apt, dnf, pacman
    remove_installer  "" or the installer whose driver must go first: names tasks/remove_<installer>.yml
    flavour           open, proprietary
    branch, version   "580", "580.105.08" or "" (version: exact wish)
    packages          [{"name", "version": "" | exact | glob, "hold": bool, "coupled": bool}]; coupled packages must all
                      come in one driver version
    absent_packages   [name]: other flavour, other branch, other method
    sources           [{"name", "kind": "deb822" | "rpm" | "pacman", "path", "content", "key": path of its key or ""}]
    keys              [{"urls": [str], "path", "fingerprints": [str]}]
    pins              [name]: packages to install before all others (nvidia-driver-pinning-580)
    holds             [name or pattern] for the package manager (apt-mark hold, versionlock, IgnorePkg)
    stream            module stream of dnf such as "580-open", or ""
    runfile           {"urls": [str], "sha256", "name", "version", "options": [str]} (empty values for other methods)
    services          [{"name", "enabled": bool, "active": bool}]
    files             [{"path", "content", "mode"}]: blacklist of nouveau, unattended-upgrades, drop-ins
    items             for gpufleet.llm.observe
    preflight         [{"name", "ok": bool, "detail", "remedy"}]
    reboot_wanted     bool: loaded module is not the installed one
    notes             [str]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class DriverError(ValueError):
    """Wishes that contradict each other or that nobody can fulfil; the text is for the user."""


def decide(
    settings: Mapping[str, Any], system: Mapping[str, Any], gpu: Mapping[str, Any], node: Mapping[str, Any]
) -> dict[str, Any]:
    """The plan; shape above. Follows in the next commit."""
    raise NotImplementedError
