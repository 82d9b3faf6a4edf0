# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be known before the first change to a driver: one pure function per question, each with its remedy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ansible_collections.gpufleet.llm.plugins.plugin_utils import driver_node, driver_table, solver_rules
from ansible_collections.gpufleet.llm.plugins.plugin_utils.tables import load

GIB = 1024**3
# path -> bytes that must be free: the driver with its DKMS tree, and a new initramfs beside the old one.
ROOM = {"/usr": 2 * GIB, "/var": 2 * GIB, "/boot": 150 * 1024**2}
RUNFILE_ROOM = 3 * GIB

Check = dict[str, Any]


def _check(name: str, ok: bool, detail: str, remedy: str) -> Check:
    return {"name": name, "ok": ok, "detail": detail, "remedy": "" if ok else remedy}


def checks(
    plan: Mapping[str, Any],
    settings: Mapping[str, Any],
    system: Mapping[str, Any],
    gpu: Mapping[str, Any],
    node: Mapping[str, Any],
    cards: Mapping[str, Any],
    row: Mapping[str, Any] | None,
) -> list[Check]:
    """All answers, those that stop the role and those that do not."""
    out = [*_source(plan, system, node, row), *_card(plan, node, cards)]
    out += _kernel(plan, system)
    out += _build(plan, settings, system, gpu, node)
    out += _secure_boot(plan, settings, system, gpu, node)
    out += _foreign(plan, settings)
    out += _in_use(plan, settings, gpu, node)
    out += _room(plan, settings, node)
    out += _fabric(settings, gpu, row, plan)
    out += _nouveau(settings, gpu)
    return out


def _source(
    plan: Mapping[str, Any], system: Mapping[str, Any], node: Mapping[str, Any], row: Mapping[str, Any] | None
) -> Iterator[Check]:
    method, branch, flavour = plan["method"], plan["branch"], plan["flavour"]
    where = f"{system['distribution']} {system['distribution_version']}"
    if method == "runfile":
        run = plan["runfile"]
        yield _check(
            "source",
            bool(run["sha256"]),
            f"runfile {run['name']}" + ("" if run["sha256"] else f": no SHA-256 is known for {run['version']}"),
            f"Set nvidia_driver_runfile_sha256; NVIDIA publishes it beside the file ({run['name']}.sha256sum).",
        )
        return
    words = {"distribution": f"the packages of {where}", "nvidia_repo": f"NVIDIA's repository for {where}"}
    label = words.get(method, method)
    offer = driver_table.offer(system) if method == "distribution" else None
    if method == "nvidia_repo" and not plan["sources"]:
        why = plan["notes"][0] if plan["notes"] else f"NVIDIA has no repository for {where}"
        yield _check("source", False, why, "Set nvidia_driver_method: runfile, or distribution.")
    elif row is None or (offer is not None and branch not in ("", *offer["branches"]) and offer["branches"] != [""]):
        has = f": it has {solver_rules.text_list(offer['branches'])}" if offer else ""
        other = f", or nvidia_driver_branch: '{offer['branches'][0]}'" if offer and offer["branches"][0] else ""
        another = "nvidia_repo" if method == "distribution" else "runfile"
        yield _check(
            "source", False, f"branch {branch} is not in {label}{has}", f"Set nvidia_driver_method: {another}{other}."
        )
    elif not row[flavour]:
        remedy = "Set another nvidia_driver_method."
        if system["os_family"] == "Archlinux":
            remedy = (
                "Arch has open modules only. Set nvidia_driver_method: runfile, or build nvidia-580xx-dkms of the AUR."
            )
        yield _check("source", False, f"{flavour} modules are not in {label}", remedy)
    elif offer is not None and offer["branches"] == [""] and _elsewhere(plan, node):
        yield _check(
            "source",
            False,
            f"branch {branch} is not in {label}: it has one branch at a time, now that of {node['offered']}",
            "Leave nvidia_driver_branch at its default, or set nvidia_driver_method: runfile and nvidia_driver_version; where "
            "the lists are older than that branch, upgrade the whole system first.",
        )
    elif (
        method == "distribution"
        and system["distribution"] == "Debian"
        and not plan["sources"]
        and plan["notes"] == ["no-debian-source"]
    ):
        yield _check(
            "source",
            False,
            "no apt source of Debian's main component was found",
            "Enable contrib and non-free by hand.",
        )
    else:
        yield _check("source", True, f"{label}, branch {branch or 'as offered'}, {flavour} modules", "")


def _elsewhere(plan: Mapping[str, Any], node: Mapping[str, Any]) -> bool:
    """Whether a branch is wanted that a source with one branch does not have; an exact version may have been kept."""
    offered = driver_node.upstream(node["offered"]).partition(".")[0]
    return bool(plan["branch"] and not plan["version"] and offered) and offered != plan["branch"]


def _card(plan: Mapping[str, Any], node: Mapping[str, Any], cards: Mapping[str, Any]) -> Iterator[Check]:
    number = plan["branch"] or (plan["version"] or driver_node.upstream(node["offered"])).partition(".")[0]
    branch = int(number) if number.isdigit() else None
    flavour, names = plan["flavour"], cards["names"]
    allowed = cards["flavours"]
    if not allowed:
        yield _check(
            "one-driver-for-all-cards",
            False,
            f"no flavour of modules drives all of {names}",
            "Take one of the cards out.",
        )
    elif flavour not in allowed:
        yield _check(
            "module-flavour",
            False,
            f"{flavour} modules do not drive {names}",
            f"Set nvidia_driver_flavour: {allowed[0]}, or auto.",
        )
    if branch is None:
        return
    shipped = solver_rules.branch_flavours(load(), branch)
    if flavour not in shipped:
        yield _check(
            "module-flavour",
            False,
            f"branch {branch} has no {flavour} modules",
            f"Set nvidia_driver_flavour: {shipped[0]}, or a branch that has them (open from 515 on, proprietary before 620).",
        )
    if cards["last"] is not None and branch > cards["last"]:
        yield _check(
            "driver-drives-card",
            False,
            f"branch {branch} does not drive {names} any more; the last one that does is {cards['last']}",
            f"Set nvidia_driver_branch: '{cards['last']}'.",
        )
    elif branch < cards["first"]:
        yield _check(
            "driver-drives-card",
            False,
            f"branch {branch} does not know {names} yet; the first one that does is {cards['first']}",
            f"Set nvidia_driver_branch: '{load().default_branch}'.",
        )
    else:
        yield _check("driver-drives-card", True, f"branch {branch} drives {names}", "")


def _kernel(plan: Mapping[str, Any], system: Mapping[str, Any]) -> Iterator[Check]:
    if not plan["branch"]:
        return
    driver = solver_rules.Driver(int(plan["branch"]), plan["version"] or None, plan["flavour"], "install", None)
    limit = solver_rules.kernel_limit(load(), driver, str(system["kernel"]))
    if limit is not None:
        found, wanted = limit
        yield _check(
            "kernel-limit",
            False,
            f"driver {driver.label} does not compile against kernel {system['kernel']} ({found['why']}); it wants {wanted}",
            "Use branch 580: set nvidia_driver_branch: '580' and no nvidia_driver_version, or a newer nvidia_driver_version.",
        )


def _build(
    plan: Mapping[str, Any],
    settings: Mapping[str, Any],
    system: Mapping[str, Any],
    gpu: Mapping[str, Any],
    node: Mapping[str, Any],
) -> Iterator[Check]:
    if not plan["build"]:
        return
    lists = {"apt": "apt-get update", "dnf": "dnf makecache", "pacman": "pacman -Syu"}[plan["package_manager"]]
    lacking = [name for name in plan["build_packages"] if name in node["build_missing"]]
    yield _check(
        "build-tools",
        not lacking,
        f"the modules are built on the node, and {', '.join(lacking)} can neither be found nor be had"
        if lacking
        else "compiler and build tools are there or can be had",
        f"Refresh the lists ({lists}), or enable the repository that has them; pins and excludes can hide them. Without a "
        "compiler: nvidia_driver_secure_boot: signed, where the source has modules that are built already.",
    )
    kernel = system["kernel"]
    if settings["kernel_headers"] != "auto":
        what = (
            f"built for the kernels of {settings['kernel_headers']}"
            if settings["kernel_headers"]
            else "no headers package"
        )
        yield _check("kernel-headers", True, f"{what}, as asked for", "")
        return
    present = bool(gpu["kernel"]["headers_present"]) or kernel in node["modules"]
    ok = present or bool(node["headers_candidate"])
    newer = gpu["kernel"]["newest_installed"]
    remedy = (
        f"The package {plan['headers']} of this kernel is not in the node's package lists. "
        + (
            f"The newer kernel {newer} is installed: reboot into it, its headers are likelier to be there. "
            if newer and newer != kernel
            else f"Refresh the lists ({lists}), or reboot into a kernel whose headers the archive still has. "
        )
        + "To build for another kernel, name its headers' package in nvidia_driver_kernel_headers."
    )
    how = "are installed" if present else f"come with {plan['headers']}"
    detail = (
        f"headers of the running kernel {kernel} {how}"
        if ok
        else (f"headers of the running kernel {kernel} are not installed and {plan['headers']} cannot be had")
    )
    yield _check("kernel-headers", ok, detail, remedy)


def locked(gpu: Mapping[str, Any]) -> bool:
    """Whether the kernel refuses modules that were signed by nobody it knows."""
    return gpu["kernel"]["secure_boot"] is True or gpu["kernel"]["lockdown"] in ("integrity", "confidentiality")


def _signed_here(
    plan: Mapping[str, Any], system: Mapping[str, Any], gpu: Mapping[str, Any], node: Mapping[str, Any]
) -> bool:
    """Whether the module that is loaded shows that the wanted one will load, too."""
    driver = gpu["driver"]
    if not driver["loaded"] or not driver["module_signed"]:
        return False
    # DKMS signs with one key, so that the next build is as good as this one.
    built = {"kernel": system["kernel"], "version": driver["loaded_version"], "state": "installed"}
    if any(built.items() <= entry.items() for entry in gpu["dkms"] or []):
        return True
    # Signed by somebody else: that holds as long as nothing is built.
    same = plan["version"] == driver["loaded_version"] and not other_flavour(plan, gpu)
    return same and not plan["remove_installer"] and all(p["name"] in node["packages"] for p in plan["packages"])


def _secure_boot(
    plan: Mapping[str, Any],
    settings: Mapping[str, Any],
    system: Mapping[str, Any],
    gpu: Mapping[str, Any],
    node: Mapping[str, Any],
) -> Iterator[Check]:
    if not locked(gpu):
        return
    mode = settings["secure_boot"]
    if mode == "ignore" or _signed_here(plan, system, gpu, node):
        yield _check("secure-boot", True, "Secure Boot is on; modules are taken care of", "")
    elif mode == "signed":
        yield _check(
            "secure-boot",
            not plan["build"],
            "Secure Boot is on, and "
            + ("this source has no signed modules" if plan["build"] else "the modules come signed"),
            "Modules that every firmware trusts are in Ubuntu's archive (nvidia_driver_method: distribution). Elsewhere: "
            "nvidia_driver_secure_boot: stage_mok, which NVIDIA's precompiled modules for RHEL would need as well.",
        )
    elif mode == "stage_mok":
        given = bool(settings["mok_password_given"])
        yield _check(
            "secure-boot",
            given,
            "Secure Boot is on; the key is staged, a person confirms it at the next boot"
            if given
            else "Secure Boot is on, and there is no password for the person who confirms the key",
            "Set nvidia_driver_mok_password (8 to 16 characters, in a vault).",
        )
    else:
        yield _check(
            "secure-boot",
            False,
            "Secure Boot is on, and the kernel refuses modules built here ('Key was rejected by service')",
            "Set nvidia_driver_secure_boot to signed (modules signed by the distribution), to stage_mok (the key is imported, "
            "a person with a console confirms it at the next boot), or turn Secure Boot off in the firmware.",
        )


def _foreign(plan: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Check]:
    there = plan["installed"]
    if there["method"] in ("", plan["method"]):
        return
    words = {
        "runfile": "by a runfile (/usr/bin/nvidia-uninstall or /var/lib/nvidia/log is there)",
        "distribution": "from the distribution's packages",
        "nvidia_repo": "from NVIDIA's repository",
        "unknown": "by nothing that this role knows",
    }
    known = there["method"] != "unknown"
    yield _check(
        "one-method",
        known and bool(settings["switch_method"]),
        f"driver {there['version']} was installed {words[there['method']]}; wanted is method {plan['method']}, and two methods "
        "on one node break both",
        (
            f"Set nvidia_driver_method: {there['method']} to stay with it, or nvidia_driver_switch_method: true to have it "
            "removed first."
            if known
            else "Remove it by hand, or leave it: nvidia_driver_state without this node."
        ),
    )


def other_flavour(plan: Mapping[str, Any], gpu: Mapping[str, Any]) -> bool:
    """Whether modules of another flavour than the wanted one are loaded."""
    return bool(gpu["driver"]["loaded"]) and gpu["driver"]["flavour"] not in (None, plan["flavour"])


def _in_use(
    plan: Mapping[str, Any], settings: Mapping[str, Any], gpu: Mapping[str, Any], node: Mapping[str, Any]
) -> Iterator[Check]:
    driver = gpu["driver"]
    changes = not driver["loaded"] or plan["version"] != driver["loaded_version"] or other_flavour(plan, gpu)
    processes = [f"{p['name'] or '?'} ({p['pid']})" for card in gpu["gpus"] for p in card["processes"] or []]
    users = sorted(
        {*processes, *(f"{name} ({pid})" for pid, _space, name in (u.partition(" ") for u in node["users"]))}
    )
    if driver["loaded"] and changes and users:
        yield _check(
            "gpu-in-use",
            settings["reboot"] == "auto",
            f"{len(users)} processes use the GPU: {', '.join(users[:5])}",
            "Stop them (drain the node), or set nvidia_driver_reboot: auto, which ends them. An exchange under running "
            "processes leaves a driver that does not match its library.",
        )
    if node["display"] and changes and (driver["loaded"] or gpu["kernel"]["nouveau_loaded"]):
        yield _check(
            "display",
            bool(settings["stop_display"]),
            "a display manager runs and holds the card",
            "Set nvidia_driver_stop_display: true; sessions on the console end, ssh goes on.",
        )


def _room(plan: Mapping[str, Any], settings: Mapping[str, Any], node: Mapping[str, Any]) -> Iterator[Check]:
    if plan["installed"]["version"] and plan["version"] == plan["installed"]["version"]:
        return
    wanted = dict(ROOM)
    if plan["method"] == "runfile":
        folder = str(settings["runfile_tmpdir"])
        wanted[folder] = max(wanted.get(folder, 0), RUNFILE_ROOM)
        if node["tmp_noexec"]:
            yield _check(
                "tmpdir",
                False,
                f"{folder} is mounted noexec; the installer runs programs there",
                "Set nvidia_driver_runfile_tmpdir to another folder.",
            )
    for path, need in wanted.items():
        free = node["disk"].get(path)
        if free is not None and free < need:
            yield _check(
                "disk",
                False,
                f"{path} has {free / GIB:.1f} GiB free, {need / GIB:.1f} GiB are wanted",
                f"Make room on the file system of {path} (apt-get clean, journalctl --vacuum-size, old kernels).",
            )


def _fabric(
    settings: Mapping[str, Any], gpu: Mapping[str, Any], row: Mapping[str, Any] | None, plan: Mapping[str, Any]
) -> Iterator[Check]:
    if settings["fabricmanager"] == "auto" and gpu["nvswitch"]["count"] and not (row and row["fabricmanager"]):
        yield _check(
            "fabric-manager",
            False,
            f"the node has NVSwitch (chips on its bus: {gpu['nvswitch']['count']}), and method {plan['method']} brings "
            "no fabric manager",
            "Set nvidia_driver_method: nvidia_repo. Without a fabric manager CUDA fails with error 802.",
        )


def _nouveau(settings: Mapping[str, Any], gpu: Mapping[str, Any]) -> Iterator[Check]:
    if gpu["kernel"]["nouveau_loaded"] and settings["nouveau"] == "leave" and not gpu["kernel"]["nouveau_blacklisted"]:
        yield _check(
            "nouveau",
            False,
            "nouveau is loaded and nvidia_driver_nouveau is leave",
            "Set nvidia_driver_nouveau: disable; it is gone after a reboot.",
        )
