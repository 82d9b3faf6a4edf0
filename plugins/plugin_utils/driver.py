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
    stopped_for_reload [name]: units that hold the module, whoever looks after them
    files             [{"path", "content", "mode"}]: blacklist of nouveau, unattended-upgrades, drop-ins
    items             for gpufleet.llm.observe
    preflight         [{"name", "ok": bool, "detail", "remedy"}]
    build             bool: the modules are built on the node (DKMS)
    headers           name of the package with the kernel headers, or ""
    build_packages    [name]
    preferences       {"path", "packages": [glob], "version": "580.105.08" | "580.*" | ""}: apt's pin of our own, or empty path
    reboot_wanted     bool: the loaded module is not the installed one, by version or by flavour
    managed           bool: files of this role are on the node
    installed         {"method": "" | "distribution" | "nvidia_repo" | "runfile" | "unknown", "version", "flavour"}
    notes             [str]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.gpufleet.llm.plugins.module_utils.gpu_gather import normalise_gpu_facts
from ansible_collections.gpufleet.llm.plugins.plugin_utils import (
    driver_files,
    driver_node,
    driver_preflight,
    driver_repair,
    driver_table,
    nvidia_repository,
    solver_rules,
)
from ansible_collections.gpufleet.llm.plugins.plugin_utils.mirrors import candidates
from ansible_collections.gpufleet.llm.plugins.plugin_utils.tables import load

# What a driver cannot repair: somebody has to go to the machine, or the card belongs to a virtual machine.
HARDWARE_STATES = ("gpu_lost", "gpu_off_bus", "gpu_insufficient_power", "gpu_interrupt_issue", "gpu_passed_through")

PERSISTENCED = "nvidia-persistenced.service"
FABRICMANAGER = "nvidia-fabricmanager.service"

# Package names that only NVIDIA's repository for Debian has, and that only Debian has
NVIDIAS_NAMES = frozenset(("nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-open", "cuda-drivers"))
DEBIANS_NAMES = frozenset(
    ("nvidia-open-kernel-dkms", "nvidia-open-kernel-support", "libnvidia-ptxjitcompiler1", "libnvidia-nvvm4")
)

# Below nvidia_driver_runfile_tmpdir; roles/nvidia_driver/vars/main.yml knows it, too.
RUNFILE_FOLDER = "gpufleet-nvidia-driver"

EMPTY: dict[str, Any] = {
    "action": "skip",
    "reason": "",
    "method": "",
    "installer": "",
    "package_manager": "",
    "remove_installer": "",
    "flavour": "",
    "branch": "",
    "version": "",
    "packages": [],
    "absent_packages": [],
    "sources": [],
    "keys": [],
    "pins": [],
    "holds": [],
    "stream": "",
    "runfile": {"urls": [], "sha256": "", "name": "", "version": "", "options": []},
    "services": [],
    "stopped_for_reload": [],
    "files": [],
    "items": [],
    "preflight": [],
    "build": False,
    "headers": "",
    "build_packages": [],
    "preferences": {"path": "", "packages": [], "version": ""},
    "reboot_wanted": False,
    "managed": False,
    "installed": {"method": "", "version": "", "flavour": ""},
    "notes": [],
}


class DriverError(ValueError):
    """Wishes that contradict each other or that nobody can fulfil; the text is for the user."""


def decide(
    settings: Mapping[str, Any], system: Mapping[str, Any], gpu: Mapping[str, Any], probe: str = ""
) -> dict[str, Any]:
    """The plan; its shape is above.

    :arg settings: the role's variables without their prefix
    :arg system: C({"distribution", "distribution_version", "os_family", "codename", "kernel", "machine", "package_manager"})
    :arg gpu: C(ansible_facts.gpufleet_gpu)
    :arg probe: what C(files/probe.sh) answered, empty when it was not asked
    :raises DriverError: for wishes that nobody can fulfil on any node of this kind
    """
    node = driver_node.parse_probe(probe)
    gpu = normalise_gpu_facts(gpu)
    plan: dict[str, Any] = {**EMPTY, "package_manager": system["package_manager"], "notes": []}
    plan["managed"] = any(path != driver_files.NOUVEAU for path in node["own"])
    plan["installed"] = installed(system, gpu, node)
    plan["stopped_for_reload"] = _daemons(gpu)
    if settings["state"] == "absent":
        return _remove(plan, system, node, settings)
    if not gpu["gpu_count"] and settings["without_gpu"] == "skip":
        return {**plan, "reason": "there is no NVIDIA GPU on the PCI bus"}
    if gpu["state"] == "gpu_passed_through" and settings["without_gpu"] == "skip" and not plan["installed"]["version"]:
        return {**plan, "reason": f"{gpu['detail']}: it belongs to a virtual machine"}
    cards = _cards(gpu)
    wish = _wish(settings, plan, system, gpu, node, cards)
    kept = _keep(settings, wish, plan, gpu)
    if kept:
        return {**plan, "action": "keep", "reason": kept, **_what_is(plan, gpu)}
    if gpu["state"] in HARDWARE_STATES and plan["installed"]["version"]:
        return {**plan, "action": "state", "reason": f"{gpu['detail']}: no driver repairs that", **_what_is(plan, gpu)}
    return _install(plan, settings, system, gpu, node, wish, cards)


def _daemons(gpu: Mapping[str, Any]) -> list[str]:
    """The driver's own units that run."""
    running = {
        PERSISTENCED: gpu["driver"]["persistence_daemon"],
        FABRICMANAGER: gpu["nvswitch"]["fabric_manager_running"],
    }
    return sorted(unit for unit, runs in running.items() if runs)


# -- what is there ---------------------------------------------------------------------------------------------------------


def installed(system: Mapping[str, Any], gpu: Mapping[str, Any], node: Mapping[str, Any]) -> dict[str, str]:
    """The installed driver: by which method it came, its version and the flavour of its modules."""
    driver = gpu["driver"]
    manager = str(system["package_manager"])
    found = driver_node.installed_driver(node, driver_table.known_packages(manager))
    method = ""
    if node["uninstaller"]:
        method = "runfile"
    elif found:
        method = _method_of(found, system, node)
    elif node["runfile_database"]:
        # Its installer ended before the uninstaller was there; a driver of packages may lie over such remains.
        method = "runfile"
    elif driver["library_version"] or driver["module_version"]:
        # A runfile of this role that was killed is taken up again; another driver without packages is a stranger's.
        method = ("runfile" if node["runfile_started"] else "unknown") if node["known"] else ""
    version = driver["library_version"] or driver["module_version"] or ""
    flavour = driver["flavour"] or driver_repair.packaged_flavour(found)
    return {"method": method, "version": version, "flavour": flavour}


def _method_of(found: Mapping[str, str], system: Mapping[str, Any], node: Mapping[str, Any]) -> str:
    """From which of the sources installed packages are, by their names and versions.

    Of a driver whose own packages somebody removed, names may be left that Debian and NVIDIA both have: then what this role
    wrote down of them tells.
    """
    names = set(found)
    if system["distribution"] == "Debian":
        if names & NVIDIAS_NAMES:
            return "nvidia_repo"
        if DEBIANS_NAMES & set(node["packages"]) or any("-tesla-" in name for name in names):
            return "distribution"
        recorded = set(node["recorded"])
        return "nvidia_repo" if recorded & names and recorded & NVIDIAS_NAMES else "distribution"
    if system["os_family"] == "Debian":
        archive = any("-server" in n or n.startswith("linux-modules-nvidia") for n in names)
        return "distribution" if archive or any("-0ubuntu0." in v for v in found.values()) else "nvidia_repo"
    if system["os_family"] == "RedHat":
        # RPM Fusion's packages are a method that this role does not have.
        return "unknown" if any(n.startswith(("akmod-", "xorg-x11-drv-")) for n in names) else "nvidia_repo"
    return "distribution"


def _what_is(plan: Mapping[str, Any], gpu: Mapping[str, Any]) -> dict[str, Any]:
    found = plan["installed"]
    driver = gpu["driver"]
    version = driver["loaded_version"] or found["version"]
    return {
        "method": found["method"],
        "version": version,
        "branch": version.partition(".")[0],
        "flavour": found["flavour"],
        "reboot_wanted": driver["versions_match"] is False,
    }


# -- what is wanted --------------------------------------------------------------------------------------------------------


def _wish(
    settings: Mapping[str, Any],
    plan: Mapping[str, Any],
    system: Mapping[str, Any],
    gpu: Mapping[str, Any],
    node: Mapping[str, Any],
    cards: Mapping[str, Any],
) -> dict[str, Any]:
    """Version and branch that are asked for.

    C(named): a version or a branch other than the default is asked for; C(pinned): that, or a flavour; C(kept): nothing is, and
    the driver works; C(stays): nothing is, and the driver was there before this role and works or can be repaired.
    """
    version = str(settings["version"])
    branch = version.partition(".")[0] if version else str(settings["branch"])
    default = str(load().default_branch)
    named = bool(version) or branch not in ("", default)
    pinned = named or settings["flavour"] != "auto"
    if settings["method"] == "runfile" and not version:
        raise DriverError(
            "method runfile needs nvidia_driver_version, for example '580.105.08': a runfile is one exact version"
        )
    if branch and not branch.isdigit():
        raise DriverError(f"nvidia_driver_branch is {branch!r}, wanted is the first number of a version, such as '580'")
    fine = gpu["usable"] is True or _waits(gpu)
    there = plan["installed"]
    unasked = bool(there["version"]) and not pinned and settings["keep_working"]
    kept = unasked and fine
    stays = unasked and (not plan["managed"] or driver_files.FOUND in node["own"])
    stays = stays and settings["method"] in ("auto", there["method"])
    stays = stays and (fine or driver_repair.repairable(there, settings, system, gpu, cards, _switches(settings, gpu)))
    if stays or kept:
        branch = there["version"].partition(".")[0]
    if stays and there["method"] == "runfile":
        version = there["version"]
    wish = {"version": version, "branch": branch, "default": default}
    return {**wish, "named": named, "pinned": pinned, "kept": kept, "stays": stays}


def _switches(settings: Mapping[str, Any], gpu: Mapping[str, Any]) -> int:
    """Chips of NVSwitch that want a fabric manager."""
    return int(gpu["nvswitch"]["count"] or 0) if settings["fabricmanager"] == "auto" else 0


def _waits(gpu: Mapping[str, Any]) -> bool:
    """Whether library and module are installed and only an older module is still loaded: the next boot brings it in order."""
    driver = gpu["driver"]
    return driver["versions_match"] is False and bool(driver["library_version"])


def _keep(settings: Mapping[str, Any], wish: Mapping[str, Any], plan: Mapping[str, Any], gpu: Mapping[str, Any]) -> str:
    """Why the driver is left alone, or nothing."""
    driver = gpu["driver"]
    if plan["managed"] or not settings["keep_working"] or not (gpu["usable"] is True or _waits(gpu)):
        return ""
    if settings["method"] not in ("auto", plan["installed"]["method"]) and wish["pinned"]:
        return ""
    there = driver["library_version"] or driver["loaded_version"] or plan["installed"]["version"]
    branch = there.partition(".")[0]
    does = "is installed and waits to be loaded" if _waits(gpu) else "works"
    if not wish["pinned"]:
        asked = str(settings["branch"])
        more = f"; it is not of branch {asked}: nvidia_driver_keep_working: false would exchange it"
        return f"driver {there} {does} and nothing else is asked for{more if asked not in ('', branch) else ''}"
    same_version = wish["version"] in ("", there)
    same_flavour = settings["flavour"] in ("auto", driver["flavour"])
    same = same_version and wish["branch"] in ("", branch) and same_flavour
    return f"driver {there} {does} and is as wanted" if same else ""


def _cards(gpu: Mapping[str, Any]) -> dict[str, Any]:
    """What the cards allow: flavours, first and last branch, their names."""
    flavours = ["open", "proprietary"]
    first, last = 0, None
    for card in gpu["gpus"]:
        flavours = [f for f in flavours if f in (card["module_flavours"] or flavours)]
        row = load().architecture(card["compute_capability"]) if card["compute_capability"] else None
        if row is not None and card["compute_capability_source"] != "range":
            first = max(first, int(row["first_branch"] or 0))
        if card["last_driver_branch"] is not None:
            last = min(last or card["last_driver_branch"], card["last_driver_branch"])
    names = ", ".join(sorted({str(c["name"] or c["pci_device_id"]) for c in gpu["gpus"]}))
    return {"flavours": flavours, "first": first, "last": last, "names": names or "no card"}


def _flavour(
    settings: Mapping[str, Any], branch: str, cards: Mapping[str, Any], offered: Sequence[str], there: str
) -> str:
    """The flavour of the modules: as asked for, else the branch's own default that cards and source allow.

    :arg there: the flavour of a driver that stays, which comes before that default
    """
    if settings["flavour"] != "auto":
        return str(settings["flavour"])
    shipped = solver_rules.branch_flavours(load(), int(branch)) if branch else ["open", "proprietary"]
    if there in shipped:
        shipped = [there, *shipped]
    for allowed in (
        [f for f in shipped if f in cards["flavours"] and f in offered],
        [f for f in shipped if f in cards["flavours"]],
        cards["flavours"],
        shipped,
    ):
        if allowed:
            return str(allowed[0])
    return "open"


def _method(
    settings: Mapping[str, Any],
    system: Mapping[str, Any],
    plan: Mapping[str, Any],
    wish: Mapping[str, Any],
    needs: Mapping[str, Any],
) -> str:
    """Where the driver comes from."""
    if settings["method"] != "auto":
        return str(settings["method"])
    there = plan["installed"]["method"]
    if wish["stays"]:
        return str(there)
    possible = []
    offer = driver_table.offer(system)
    row = driver_table.packages("distribution", system, wish["branch"]) if offer else None
    if offer and row and (wish["branch"] in ("", *offer["branches"]) or offer["branches"] == [""]):
        signed_missing = settings["secure_boot"] == "signed" and not row["signed"]
        flavours = [f for f in needs["flavours"] if row[f]]
        if flavours and not signed_missing and (row["fabricmanager"] or not needs["fabricmanager"]):
            possible.append("distribution")
    if driver_table.has_repository(system) and driver_table.packages("nvidia_repo", system, wish["branch"]):
        possible.append("nvidia_repo")
    if wish["version"] and (there == "runfile" or not possible):
        possible.append("runfile")
    if there in possible:
        return str(there)
    if possible:
        return possible[0]
    return "distribution" if offer and not driver_table.has_repository(system) else "nvidia_repo"


# -- install ---------------------------------------------------------------------------------------------------------------


def _install(
    plan: dict[str, Any],
    settings: Mapping[str, Any],
    system: Mapping[str, Any],
    gpu: Mapping[str, Any],
    node: Mapping[str, Any],
    wish: Mapping[str, Any],
    cards: Mapping[str, Any],
) -> dict[str, Any]:
    switches = _switches(settings, gpu)
    manager = str(system["package_manager"])
    method = _method(settings, system, plan, wish, {"flavours": cards["flavours"], "fabricmanager": switches > 0})
    there = plan["installed"]
    foreign = there["method"] not in ("", method)
    version = str(wish["version"])
    offer = driver_table.offer(system) if method == "distribution" else None
    # Such a source has one version at a time. The default branch is nobody's wish there.
    rolls = offer is not None and offer["branches"] == [""] and not wish["named"]
    if (
        not version
        and not foreign
        and (wish["kept"] or not rolls)
        and _fits(wish, there["version"], system, gpu, cards)
    ):
        version = there["version"]
    branch = "" if rolls else _branch(offer, wish, version, cards)
    row = None if method == "runfile" else driver_table.packages(method, system, branch)
    offered = [f for f in ("open", "proprietary") if row is None or row[f]]
    flavour = _flavour(settings, branch, cards, offered, there["flavour"] if wish["stays"] else "")
    plan.update(
        action="install",
        method=method,
        installer="runfile" if method == "runfile" else manager,
        remove_installer="" if not foreign else ("runfile" if there["method"] == "runfile" else manager),
        flavour=flavour,
        branch=branch,
        version=version,
    )
    plan["reason"] = _why(plan, gpu, wish, version)
    signed = bool(row and settings["secure_boot"] == "signed" and row["signed"])
    _name_packages(plan, settings, system, node, row, signed=signed, fabricmanager=switches > 0)
    _name_sources(plan, settings, system, node)
    if method == "runfile":
        _name_runfile(plan, settings, system)
    _name_build(plan, settings, system, node, signed=signed)
    _name_services(plan, settings, gpu, row, fabricmanager=switches > 0)
    _name_files(plan, settings)
    if wish["stays"]:
        plan["files"] = [*plan["files"], driver_files.found(there["version"].partition(".")[0])]
    exchanged = driver_preflight.other_flavour(plan, gpu) and not node["container"]
    plan["reboot_wanted"] = gpu["driver"]["versions_match"] is False or exchanged
    plan["preflight"] = driver_preflight.checks(plan, settings, system, gpu, node, cards, row)
    plan["items"] = items(plan, settings, gpu)
    # The repository of another method would offer the same packages in other versions: it goes, unless the role cuda uses it.
    wanted = {source["path"] for source in plan["sources"]}
    forgotten = [driver_files.DEBIAN_SOURCE]
    if method != "nvidia_repo" and not node["cuda_repository"]:
        forgotten += [path for places in nvidia_repository.PATHS.values() for path in places.values()]
    plan["items"] += [{"kind": "absent", "path": path} for path in forgotten if path not in wanted]
    if foreign:
        # Also where it is the same version: library and module are as wanted, but not by whom.
        plan["items"].append({"kind": "command", "key": "library:method", "argv": ["/bin/false"]})
    return plan


def _fits(
    wish: Mapping[str, Any], version: str, system: Mapping[str, Any], gpu: Mapping[str, Any], cards: Mapping[str, Any]
) -> bool:
    """Whether the version that is installed is as good as any of the wanted branch."""
    branch = version.partition(".")[0]
    if not driver_repair.complete(gpu) or wish["branch"] not in ("", branch) or not branch.isdigit():
        return False
    # Where nobody named a branch, one that does not drive the card is none to stay in.
    drives = bool(wish["branch"]) or cards["first"] <= int(branch) <= (cards["last"] or int(branch))
    return drives and driver_repair.builds(branch, version, "", str(system["kernel"]))


def _branch(offer: Mapping[str, Any] | None, wish: Mapping[str, Any], version: str, cards: Mapping[str, Any]) -> str:
    """The branch whose packages are wanted; empty is the newest that the source has."""
    if wish["branch"]:
        return str(wish["branch"])
    if version:
        return version.partition(".")[0]
    if offer:
        fitting = [b for b in offer["branches"] if cards["first"] <= int(b) <= (cards["last"] or int(b))]
        return str([*fitting, *offer["branches"]][0])
    return str(cards["last"] or "")


def _why(plan: Mapping[str, Any], gpu: Mapping[str, Any], wish: Mapping[str, Any], version: str) -> str:
    there = plan["installed"]["version"]
    wanted = wish["version"] or (f"branch {wish['branch']}" if wish["branch"] else "the source's own branch")
    if not there:
        return f"there is no driver; wanted is {wanted}"
    if wish["stays"] and there.partition(".")[0] != wish["default"]:
        other = f"nvidia_driver_keep_working: false would take branch {wish['default']}"
        return f"driver {there} is there ({gpu['state']}) and stays in its branch; {other}"
    if version != there:
        return f"driver {there} is there; wanted is {wanted}"
    if driver_preflight.other_flavour(plan, gpu):
        return f"driver {there} is there with {plan['installed']['flavour']} modules; wanted are {plan['flavour']} ones"
    return f"driver {there} is managed by this role ({gpu['state']})"


def _name_packages(
    plan: dict[str, Any],
    settings: Mapping[str, Any],
    system: Mapping[str, Any],
    node: Mapping[str, Any],
    row: Mapping[str, Any] | None,
    *,
    signed: bool,
    fabricmanager: bool,
) -> None:
    """Packages, those that must not be there, pins and holds."""
    flavour, branch, version = plan["flavour"], plan["branch"], plan["version"]
    if row is None or not row[flavour]:
        return
    fill: Callable[[str], str] = lambda name: name.format(branch=branch, kernel=system["kernel"])  # noqa: E731
    modules = row["signed"][flavour] if signed else row[flavour]
    scope = row["headless" if settings["headless"] else "desktop"]
    hold = bool(settings["hold"])
    coupled = [*(modules or {}).get("coupled", []), *scope["coupled"]]
    loose = [*(modules or {}).get("loose", []), *scope["loose"]]
    if settings["persistenced"]:
        (coupled if row["persistenced_coupled"] else loose).extend(row["persistenced"])
    if fabricmanager and row["fabricmanager"]:
        coupled.append(row["fabricmanager"])
    number = f"{version}-*" if version else (f"{branch}.*" if branch else "")
    if system["package_manager"] == "pacman":
        number = ""
    plan["packages"] = [
        {"name": fill(name), "version": number, "hold": hold, "coupled": True} for name in dict.fromkeys(coupled)
    ] + [{"name": fill(name), "version": "", "hold": hold, "coupled": False} for name in dict.fromkeys(loose)]
    wanted = {p["name"] for p in plan["packages"]}
    others = list(row["prebuilt"])
    for other in ("open", "proprietary"):
        for way in (row[other], (row["signed"] or {}).get(other)):
            others += [fill(n) for n in [*(way or {}).get("coupled", []), *(way or {}).get("loose", [])]]
    known = driver_node.installed_driver(node, driver_table.known_packages(plan["package_manager"]))
    if branch:
        others += [n for n in known if _other_branch(n, branch)]
    plan["absent_packages"] = sorted(set(others) - wanted)
    plan["holds"] = [p["name"] for p in plan["packages"] if p["hold"]]
    if hold and plan["package_manager"] != "apt":
        # dnf and pacman do not step back to a version that fits: with a part of the driver held and another not, no upgrade of
        # the system resolves any more. apt's pins cover the other parts.
        plan["holds"] = sorted({*plan["holds"], *_parts(node, plan["installed"]["version"])})
    if row["stream"] and driver_table.modular(system) and node["dnf_modules"]:
        plan["stream"] = fill((row["stream"] if branch else row["newest_stream"])[flavour])
    if plan["package_manager"] != "apt":
        return
    # Where nobody named a branch, the version that came is pinned, and not its branch.
    asked = settings["version"] or settings["branch"]
    if asked and row["pinning_package_from"] and branch.isdigit() and int(branch) >= int(row["pinning_package_from"]):
        plan["pins"] = [f"nvidia-driver-pinning-{settings['version'] or branch}"]
    pinned = [f"src:{fill(name)}" for name in row["pin_sources"]] + list(row["pin_globs"])
    # Beside NVIDIA's pinning package, too: that one names a branch, and a dependency would come in the branch's newest version.
    if pinned and settings["hold"]:
        plan["preferences"] = {
            "path": driver_files.PREFERENCES,
            "packages": pinned,
            "version": version or (f"{branch}.*" if branch else ""),
        }


def _parts(node: Mapping[str, Any], version: str) -> list[str]:
    """Installed packages that carry the driver's version, also those that came as dependencies."""
    return [
        name
        for name, package in node["packages"].items()
        if version and "nvidia" in name and driver_node.upstream(package["version"]) == version
    ]


def _other_branch(name: str, branch: str) -> bool:
    """Whether a package's name carries another branch's number."""
    numbers = [part for part in name.replace(".", "-").split("-") if part.isdigit() and len(part) == 3]
    return bool(numbers) and branch not in numbers


def _name_sources(
    plan: dict[str, Any], settings: Mapping[str, Any], system: Mapping[str, Any], node: Mapping[str, Any]
) -> None:
    """Repositories and their keys."""
    if plan["method"] == "distribution" and system["distribution"] == "Debian":
        places, enabled = driver_files.debian_sources(node["targets"], str(system["codename"]))
        wanted = ["contrib", "non-free", *(["non-free-firmware"] if _number(system) >= 12 else [])]
        missing = [component for component in wanted if component not in enabled]
        if not places and missing:
            plan["notes"] = ["no-debian-source"] if node["known"] else []
        if places and missing:
            text = "\n".join(
                driver_files.deb822(place["uris"], place["suites"], missing, place["signed_by"]).removeprefix(
                    "" if not number else driver_files.HEADER
                )
                for number, place in enumerate(places)
            )
            plan["sources"] = [_source("debian-non-free", "deb822", driver_files.DEBIAN_SOURCE, text, "")]
        return
    if plan["method"] != "nvidia_repo":
        return
    try:
        found = nvidia_repository.repository(
            str(system["distribution"]),
            str(system["os_family"]),
            str(system["distribution_version"]),
            str(system["machine"]),
            base_url=str(settings["repo_base_url"]),
            key_url=str(settings["repo_key_url"]),
            fingerprints=settings["repo_key_fingerprints"],
            profile=settings["mirror_profile"],
            overrides=settings["mirror_overrides"],
        )
    except nvidia_repository.RepositoryError as error:
        plan["notes"] = [str(error)]
        return
    plan["keys"] = [{"urls": found["key_urls"], "path": found["key_path"], "fingerprints": found["fingerprints"]}]
    kind = {"apt": "deb822"}.get(found["kind"], found["kind"])
    plan["sources"] = [_source("nvidia", kind, found["file"]["path"], found["file"]["content"], found["key_path"])]


def _source(name: str, kind: str, path: str, content: str, key: str) -> dict[str, str]:
    return {"name": name, "kind": kind, "path": path, "content": content, "key": key}


def _number(system: Mapping[str, Any]) -> int:
    first = str(system["distribution_version"]).partition(".")[0]
    return int(first) if first.isdigit() else 0


def _name_runfile(plan: dict[str, Any], settings: Mapping[str, Any], system: Mapping[str, Any]) -> None:
    version = plan["version"]
    url = settings["runfile_url"] or driver_table.runfile_url(version, str(system["machine"]))
    sha256 = settings["runfile_sha256"] or driver_table.runfile_sha256(version, str(system["machine"]))
    options = driver_table.runfile_options(int(plan["branch"]), plan["flavour"], bool(settings["headless"]))
    plan["runfile"] = {
        "urls": candidates(url, settings["mirror_profile"], settings["mirror_overrides"]),
        "sha256": str(sha256),
        "name": urlsplit(url).path.rpartition("/")[2],
        "version": version,
        "options": [*options, f"--tmpdir={settings['runfile_tmpdir']}", *settings["runfile_options"]],
    }


def _name_build(
    plan: dict[str, Any],
    settings: Mapping[str, Any],
    system: Mapping[str, Any],
    node: Mapping[str, Any],
    *,
    signed: bool,
) -> None:
    """What a build on the node needs."""
    if signed:
        return
    manager = plan["package_manager"]
    given = settings["kernel_headers"]
    plan["build"] = True
    plan["headers"] = driver_table.headers_package(system, manager) if given == "auto" else str(given)
    plan["build_packages"] = driver_table.build_packages(manager)
    compiler = driver_node.kernel_compiler(node["proc_version"])
    if manager == "apt" and given == "auto" and compiler:
        plan["build_packages"] = [*plan["build_packages"], compiler]


def _name_services(
    plan: dict[str, Any],
    settings: Mapping[str, Any],
    gpu: Mapping[str, Any],
    row: Mapping[str, Any] | None,
    *,
    fabricmanager: bool,
) -> None:
    loaded = bool(gpu["driver"]["loaded"])
    # The runfile brings the program and only an example of a unit.
    if settings["persistenced"] and row is not None and row["persistenced"]:
        plan["services"] = [{"name": PERSISTENCED, "enabled": True, "active": loaded}]
    if fabricmanager and row is not None and row["fabricmanager"]:
        unit = {"name": FABRICMANAGER, "enabled": True, "active": loaded}
        plan["services"] = [*plan["services"], unit]
    plan["stopped_for_reload"] = sorted({*plan["stopped_for_reload"], *(s["name"] for s in plan["services"])})


def _name_files(plan: dict[str, Any], settings: Mapping[str, Any]) -> None:
    files = []
    if settings["nouveau"] == "disable":
        files.append(driver_files.nouveau())
    if plan["package_manager"] == "apt" and plan["packages"] and settings["unattended_upgrades_blacklist"]:
        files.append(driver_files.unattended())
    pin = plan["preferences"]
    if pin["path"] and pin["version"]:
        files.append(driver_files.preferences(pin["packages"], pin["version"]))
    for service in plan["services"]:
        persistence = service["name"] == PERSISTENCED
        path = driver_files.PERSISTENCED if persistence else driver_files.FABRICMANAGER
        files.append(driver_files.drop_in(path))
    plan["files"] = files


# -- what observe looks at -------------------------------------------------------------------------------------------------

# Files that are the module nvidia: Debian's have names of their own.
MODULE_FILES = "/nvidia(-current|-tesla-470)?(-open)?\\.ko(\\.[gx]z|\\.zst)?$"

# Which module is built for each kernel: "ok", or what is there instead. $1 version ("" any), $2 "running" or "all".
MODULE_SCRIPT = f"""\
case $2 in running) set -- "$1" "$(uname -r)" ;; *) set -- "$1" $(cd /lib/modules 2>/dev/null && ls) ;; esac
want=$1; shift; seen=
for k in "$@"; do
  [ -e "/lib/modules/$k/build" ] || [ "$k" = "$(uname -r)" ] || continue
  [ -d "/lib/modules/$k" ] || continue
  f=$(find "/lib/modules/$k" -name 'nvidia*.ko*' 2>/dev/null | grep -E '{MODULE_FILES}' | head -n 1)
  [ -n "$f" ] || {{ echo "no module for $k"; exit; }}
  v=$(modinfo -F version "$f" 2>/dev/null)
  [ -z "$want" ] || [ "$v" = "$want" ] || {{ echo "module $v for $k"; exit; }}
  seen=1
done
[ -n "$seen" ] && echo ok || echo "no kernel to build for"
"""

# Whether the module that the next boot loads is of flavour $1: "ok", also where there is none, or the flavour that it is of.
# $2 the running kernel's modules.
FLAVOUR_SCRIPT = f"""\
f=$(find "${{2:-/lib/modules/$(uname -r)}}" -name 'nvidia*.ko*' 2>/dev/null | grep -E '{MODULE_FILES}' | head -n 1)
[ -n "$f" ] || {{ echo ok; exit; }}
case $(modinfo -F license "$f" 2>/dev/null) in '') flavour=unknown ;; *GPL*) flavour=open ;; *) flavour=proprietary ;; esac
[ "$flavour" = "$1" ] && echo ok || echo "$flavour"
"""

# Whether the key that DKMS signs with is enrolled, or waits for a person at the console.
MOK_SCRIPT = """\
command -v mokutil >/dev/null || { echo "no mokutil"; exit; }
for key in /var/lib/shim-signed/mok/MOK.der /var/lib/dkms/mok.pub; do
  [ -e "$key" ] || continue
  case "$(mokutil --test-key "$key" 2>&1)" in *"is not enrolled"*) echo "not staged" ;; *) echo staged ;; esac
  exit
done
echo "no key"
"""


def items(plan: Mapping[str, Any], settings: Mapping[str, Any], gpu: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What gpufleet.llm.observe shall look at."""
    manager = {"dnf": "rpm", "apt": "dpkg"}.get(plan["package_manager"], plan["package_manager"])
    out: list[dict[str, Any]] = []
    for package in plan["packages"]:
        item = {"kind": "package", "name": package["name"], "state": "present", "manager": manager}
        if package["version"]:
            item["version"] = package["version"]
        if manager == "dpkg":
            item["hold"] = package["hold"]
        out.append(item)
    if manager != "dpkg":
        # dnf's and pacman's holds are files of their own: one that was edited is written again, the packages are left alone.
        named = {package["name"] for package in plan["packages"]}
        for name in sorted({*named, *plan["holds"]}):
            hold = {"kind": "package", "name": name, "manager": manager, "hold": name in plan["holds"]}
            out.append({"key": f"hold:{name}", **hold})
    for name in [
        *plan["pins"],
        *([plan["headers"]] if plan["headers"] and settings["kernel_headers"] != "auto" else []),
    ]:
        out.append({"kind": "package", "name": name, "state": "present", "manager": manager})
    out += [{"kind": "package", "name": n, "state": "absent", "manager": manager} for n in plan["absent_packages"]]
    out += [{"kind": "file", "owner": "root", "group": "root", **f} for f in plan["files"]]
    wanted = {f["path"] for f in plan["files"]} | {s["path"] for s in plan["sources"]}
    for path in (
        driver_files.UNATTENDED,
        driver_files.PREFERENCES,
        driver_files.PERSISTENCED,
        driver_files.FABRICMANAGER,
        driver_files.FOUND,
    ):
        if path not in wanted and not (path == driver_files.PREFERENCES and plan["preferences"]["path"]):
            out.append({"kind": "absent", "path": path})
    if settings["nouveau"] == "disable":
        out.append({"kind": "absent", "path": driver_files.INITRAMFS})
    if plan["method"] == "nvidia_repo" and manager == "dpkg":
        out.append({"kind": "absent", "path": nvidia_repository.NO_DRIVER_PIN})
    for source in plan["sources"]:
        out.append(
            {
                "kind": "file",
                "path": source["path"],
                "content": source["content"],
                "owner": "root",
                "group": "root",
                "mode": "0644",
            }
        )
    out += [{"kind": "key", "path": k["path"], "fingerprints": k["fingerprints"]} for k in plan["keys"]]
    out += [
        {"kind": "unit", "name": s["name"], "enabled": s["enabled"], **({"active": True} if s["active"] else {})}
        for s in plan["services"]
    ]
    if plan["method"] == "runfile":
        out.append(_library_item(str(plan["version"])))
    if plan["build"] or plan["method"] == "runfile":
        scope = "running" if settings["kernel_headers"] in ("auto", "") else "all"
        argv = ["/bin/sh", "-c", MODULE_SCRIPT, "sh", plan["version"], scope]
        out.append({"kind": "command", "key": "module:built", "argv": argv, "stdout": "ok"})
    if settings["secure_boot"] == "stage_mok" and plan["build"] and driver_preflight.locked(gpu):
        out.append({"kind": "command", "key": "mok:staged", "argv": ["/bin/sh", "-c", MOK_SCRIPT], "stdout": "staged"})
    if plan["method"] == "runfile" or gpu["driver"]["flavour"] not in (None, plan["flavour"]):
        # gpu_facts tells the flavour that is loaded; the file may be of the wanted one already, which a reload brings into force.
        # A runfile has no packages whose names would tell.
        argv = ["/bin/sh", "-c", FLAVOUR_SCRIPT, "sh", plan["flavour"]]
        out.append({"kind": "command", "key": "module:flavour", "argv": argv, "stdout": "ok"})
    return out


# Versions of the installed library, whoever put it there.
LIBRARY_SCRIPT = """\
for f in /usr/lib*/libnvidia-ml.so.[0-9]*.* /usr/lib/*/libnvidia-ml.so.[0-9]*.*; do
  [ -f "$f" ] && echo "${f##*.so.}"
done | sort -u
"""


def _library_item(version: str) -> dict[str, Any]:
    argv = ["/bin/sh", "-c", LIBRARY_SCRIPT]
    return {"kind": "command", "key": "library:version", "argv": argv, "stdout": version}


# -- remove ----------------------------------------------------------------------------------------------------------------


def _remove(
    plan: dict[str, Any], system: Mapping[str, Any], node: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """All packages of a driver that this role can have installed, and its files."""
    manager = str(system["package_manager"])
    found = driver_node.installed_driver(node, driver_table.known_packages(manager))
    pins = [name for name in node["packages"] if name.startswith("nvidia-driver-pinning-")]
    names = sorted({*found, *pins})
    there = plan["installed"]["method"]
    mine = {"dnf": "rpm", "apt": "dpkg"}.get(manager, manager)
    looks = [{"kind": "package", "name": n, "state": "absent", "manager": mine} for n in names]
    left = [path for path in driver_files.OWN if path != driver_files.NOUVEAU or settings["nouveau_back"]]
    named = {**plan, "method": "nvidia_repo"}
    if not node["cuda_repository"]:
        # Otherwise the role cuda still takes its toolkits from there.
        left += [path for paths in nvidia_repository.PATHS.values() for path in paths.values()]
        if driver_table.has_repository(system):
            _name_sources(named, settings, system, node)
    left += [driver_files.REBOOTED, driver_files.INITRAMFS]
    # What an installation that failed has left: the runfile, to be taken up again
    left.append(f"{settings['runfile_tmpdir']}/{RUNFILE_FOLDER}")
    looks += [{"kind": "absent", "path": path} for path in left]
    if there == "runfile":
        looks += [{"kind": "absent", "path": path} for path in ("/usr/bin/nvidia-uninstall", "/var/lib/nvidia/log")]
    return {
        **plan,
        "action": "remove",
        "reason": f"driver {plan['installed']['version'] or 'none'} is there; wanted is none",
        "method": there,
        "installer": "runfile" if there == "runfile" else manager,
        "remove_installer": "runfile" if there == "runfile" else manager,
        "absent_packages": names,
        "keys": named["keys"],
        "items": looks,
    }
