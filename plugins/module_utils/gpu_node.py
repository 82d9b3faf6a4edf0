# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node's files say about the NVIDIA driver, the kernel, DKMS, CUDA toolkits and NVSwitch. Starts no process.

Every function takes ``root``, the path under which the node's files lie (``/`` on a real node), so that it can be
tested on a made-up tree. Absolute symbolic links are followed below that root.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import stat
from typing import Any

from ansible_collections.gpufleet.llm.plugins.module_utils import gpu_kmod
from ansible_collections.gpufleet.llm.plugins.module_utils.gpu_pci import read_text, under

LIBRARY = "libnvidia-ml.so.1"
# Where distributions, the .run installer, container toolkits and WSL put the driver's libraries.
LIBRARY_FOLDERS = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib/x86_64-linux-gnu/nvidia/current",
    "/usr/lib/aarch64-linux-gnu/nvidia/current",
    "/usr/lib64/nvidia",
    "/usr/lib/nvidia",
    "/usr/local/lib",
    "/usr/local/nvidia/lib64",
    "/usr/lib/wsl/lib",
)
# The main module under the names that distributions give it; nvidia-drm, -modeset, -uvm and the rest are others.
MODULE_FILE = re.compile(
    r"^nvidia(-current(-open)?|-open|-tesla[\w.-]*|-legacy[\w.-]*|-\d[\d.]*(-server)?(-open)?)?\.ko(\.(xz|zst|gz))?$"
)
OTHER_MODULES = re.compile(r"(modeset|drm|uvm|peermem|vgpu|fs)")
SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
# /proc/<pid>/comm has at most 15 characters.
FABRIC_MANAGER_COMM = "nv-fabricmanager"[:15]
PERSISTENCED_COMM = "nvidia-persistenced"[:15]


def resolve(root: str, path: str) -> str | None:
    """The path, below ``root``, of the file that ``path`` leads to; None when it leads nowhere."""
    current = under(root, path)
    for _hop in range(40):
        try:
            target = os.readlink(current)
        except OSError as exc:
            if exc.errno == errno.EINVAL:
                return current
            # A folder on the way may be an absolute link; only the real root can follow that by itself.
            return os.path.realpath(current) if os.path.exists(current) else None
        current = (
            under(root, target)
            if target.startswith("/")
            else os.path.normpath(os.path.join(os.path.dirname(current), target))
        )
    return None


def node_path(root: str, path: str) -> str:
    """``path`` as the node itself would write it, without ``root``."""
    return "/" + os.path.relpath(path, root) if root != "/" else path


def kernel_release(root: str = "/") -> str:
    """The running kernel's release."""
    return read_text(under(root, "/proc/sys/kernel/osrelease")) or os.uname().release


def loaded_driver(root: str = "/") -> dict[str, Any]:
    """The loaded kernel module: ``loaded``, ``loaded_version``, ``flavour`` (None when the text does not tell), ``use_count``."""
    version_text = read_text(under(root, "/proc/driver/nvidia/version")) or ""
    version = read_text(under(root, "/sys/module/nvidia/version"))
    flavour = None
    # NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.161.08  Sat Feb 24 ...
    # NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.14  Release Build ...
    match = re.search(r"NVRM version:\s*(.*?Kernel Module.*?)\s+(\d+\.\d+(?:\.\d+)*)\b", version_text)
    if match:
        flavour = "open" if "Open" in match.group(1) else "proprietary"
        version = version or match.group(2)
    count = read_text(under(root, "/sys/module/nvidia/refcnt")) or ""
    loaded = bool(version_text) or os.path.isdir(under(root, "/sys/module/nvidia"))
    return {
        "loaded": loaded,
        "loaded_version": version or None,
        "flavour": flavour,
        "use_count": int(count) if count.isdigit() else None,
    }


def library(root: str = "/", search: tuple[str, ...] = ()) -> dict[str, str | None]:
    """The installed libnvidia-ml: ``library_path`` and ``library_version`` (by the name of the file behind the link)."""
    folders = list(search) + list(LIBRARY_FOLDERS) + _loader_folders(root)
    for folder in folders:
        found = resolve(root, os.path.join(folder, LIBRARY))
        if found and os.path.isfile(found):
            return {"library_path": node_path(root, found), "library_version": version_of_library(found)}
    return {"library_path": None, "library_version": None}


def version_of_library(path: str) -> str | None:
    """``libnvidia-ml.so.535.161.08`` -> ``535.161.08``."""
    match = re.search(r"\.so\.(\d{2,}\.[\d.]+)$", path)
    return match.group(1) if match else None


def mapped_library() -> str | None:
    """Path of the libnvidia-ml that this process has loaded, from /proc/self/maps."""
    for line in (read_text("/proc/self/maps", 4 << 20) or "").splitlines():
        if "libnvidia-ml.so" in line:
            return line.split(None, 5)[-1]
    return None


def _loader_folders(root: str) -> list[str]:
    folders = []
    for path in sorted(glob.glob(under(root, "/etc/ld.so.conf.d/*.conf"))):
        for line in (read_text(path) or "").splitlines():
            if line.startswith("/"):
                folders.append(line.strip())
    return folders


def device_nodes(root: str = "/") -> list[str]:
    """``/dev/nvidia*`` without folders. In a made-up tree plain files count too."""
    nodes = []
    for path in sorted(glob.glob(under(root, "/dev/nvidia*"))):
        try:
            if not stat.S_ISDIR(os.stat(path).st_mode):
                nodes.append(node_path(root, path))
        except OSError:
            continue
    return nodes


def modules_loaded(root: str = "/") -> dict[str, Any]:
    """``{"nvidia": [names of the driver's modules], "nouveau": bool}`` from /proc/modules, else from /sys/module."""
    text = read_text(under(root, "/proc/modules"), 1 << 20)
    if text is not None:
        names = {line.split(" ", 1)[0] for line in text.splitlines()}
    else:
        names = set()
    # A bind mount or a stand-in can show one of the two only.
    names.update(os.path.basename(path) for path in glob.glob(under(root, "/sys/module/nvidia*")))
    if os.path.isdir(under(root, "/sys/module/nouveau")):
        names.add("nouveau")
    ours = sorted(name for name in names if name == "nvidia" or name.startswith("nvidia_"))
    return {"nvidia": ours, "nouveau": "nouveau" in names}


def module_files(root: str, release: str) -> dict[str, Any]:
    """The driver's module on disk: ``module_path`` for ``release`` (None: none) and ``other_kernels`` that have one."""
    path = None
    others = []
    for modules in ("/lib/modules", "/usr/lib/modules"):
        for folder in sorted(glob.glob(under(root, modules, "*"))):
            name = os.path.basename(folder)
            if (name != release and name in others) or (name == release and path):
                continue
            found = _module_in(folder)
            if not found:
                continue
            if name == release:
                path = node_path(root, found)
            else:
                others.append(name)
    return {"module_path": path, "other_kernels": others}


def _module_in(folder: str) -> str | None:
    # Prebuilt modules, DKMS's places of the distributions, and the .run installer's.
    for part in (
        "updates",
        "extra",
        "weak-updates",
        "extramodules",
        "kernel/drivers/video",
        "kernel/nvidia*",
        "misc",
        "video",
        "nvidia*",
    ):
        for start in sorted(glob.glob(os.path.join(folder, part))):
            for base, _folders, files in os.walk(start):
                for name in sorted(files):
                    if MODULE_FILE.match(name) and not OTHER_MODULES.search(name):
                        return os.path.join(base, name)
    return None


def kernel_facts(root: str, release: str, nouveau_loaded: bool) -> dict[str, Any]:
    """The ``kernel`` part of gpu_facts."""
    headers = resolve(root, f"/lib/modules/{release}/build") or resolve(root, f"/usr/src/kernels/{release}")
    present = bool(headers and os.path.isfile(os.path.join(headers, "Makefile")))
    newest = _newest_kernel(root, release)
    reasons = _reboot_reasons(root, release, newest)
    return {
        "release": release,
        "newest_installed": newest,
        "headers_present": present,
        "headers_path": node_path(root, headers) if present and headers else None,
        "nouveau_loaded": nouveau_loaded,
        "nouveau_blacklisted": _nouveau_blacklisted(root),
        "secure_boot": _secure_boot(root),
        "lockdown": _lockdown(root),
        "reboot_pending": bool(reasons),
        "reboot_reasons": reasons,
    }


def _installed_kernels(root: str) -> list[str]:
    names = set()
    for modules in ("/lib/modules", "/usr/lib/modules"):
        for folder in glob.glob(under(root, modules, "*")):
            # A folder that holds only leftovers of a removed kernel has no modules of its own.
            if os.path.isdir(os.path.join(folder, "kernel")) or os.path.isfile(os.path.join(folder, "vmlinuz")):
                names.add(os.path.basename(folder))
    return sorted(names)


def kernel_flavour(release: str) -> str:
    """What distinguishes kernels that are not upgrades of each other: ``6.1.0-28-cloud-amd64`` -> ``cloud-amd``."""
    words = re.split(r"[.\-+~_]", release)
    return "-".join(filter(None, (re.sub(r"\d+", "", word) for word in words)))


def kernel_key(release: str) -> tuple[int, ...]:
    """For sorting releases of one flavour."""
    own = re.split(r"\.(?:el|fc|amzn|oe|x86_64|aarch64)", release)[0]
    return tuple(int(number) for number in re.findall(r"\d+", own))


def _newest_kernel(root: str, release: str) -> str | None:
    same = [name for name in _installed_kernels(root) if kernel_flavour(name) == kernel_flavour(release)]
    return max(same, key=kernel_key) if same else None


def _reboot_reasons(root: str, release: str, newest: str | None) -> list[str]:
    reasons = []
    for marker in ("/run/reboot-required", "/var/run/reboot-required"):
        if os.path.exists(under(root, marker)):
            packages = sorted(set((read_text(under(root, marker + ".pkgs")) or "").split()))
            reasons.append(f"{marker} is there" + (f", set by {', '.join(packages)}" if packages else ""))
            break
    if newest and kernel_key(newest) > kernel_key(release):
        reasons.append(f"kernel {newest} is installed, {release} runs")
    elif (
        newest
        and not os.path.isdir(under(root, "/lib/modules", release))
        and not os.path.isdir(under(root, "/usr/lib/modules", release))
    ):
        reasons.append(f"the running kernel {release} is no longer installed, {newest} is")
    return reasons


def _nouveau_blacklisted(root: str) -> bool:
    for folder in ("/etc/modprobe.d", "/run/modprobe.d", "/usr/lib/modprobe.d", "/lib/modprobe.d"):
        for path in glob.glob(under(root, folder, "*.conf")):
            if re.search(
                r"(?m)^\s*(blacklist\s+nouveau\b|install\s+nouveau\s+/\S*(false|true)\b)", read_text(path) or ""
            ):
                return True
    command_line = read_text(under(root, "/proc/cmdline")) or ""
    return bool(
        re.search(r"(^|\s)((module_|modprobe\.|rd\.driver\.)blacklist=\S*nouveau|nouveau\.modeset=0)", command_line)
    )


def _secure_boot(root: str) -> bool | None:
    try:
        with open(under(root, SECURE_BOOT), "rb") as stream:
            value = stream.read(5)
    except OSError:
        return None
    # Four bytes of attributes, then the value.
    return value[4] == 1 if len(value) == 5 else None


def _lockdown(root: str) -> str | None:
    match = re.search(r"\[(\w+)\]", read_text(under(root, "/sys/kernel/security/lockdown")) or "")
    return match.group(1) if match else None


def dkms(root: str = "/") -> list[dict[str, Any]]:
    """NVIDIA modules under /var/lib/dkms, as ``dkms status`` would list them."""
    entries: list[dict[str, Any]] = []
    base = under(root, "/var/lib/dkms")
    for module in sorted(name for name in _list(base) if name.startswith("nvidia")):
        for version in sorted(_list(os.path.join(base, module))):
            folder = os.path.join(base, module, version)
            # kernel-<release>-<arch> beside the versions are links to what is installed.
            if (
                version.startswith(("kernel-", "original_module"))
                or not os.path.isdir(folder)
                or os.path.islink(folder)
            ):
                continue
            entries.extend(_dkms_version(base, module, version, folder))
    return entries


def _dkms_version(base: str, module: str, version: str, folder: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for kernel in sorted(_list(folder)):
        if kernel in ("source", "build"):
            continue
        for arch in sorted(_list(os.path.join(folder, kernel))):
            if not glob.glob(os.path.join(folder, kernel, arch, "module", "*.ko*")):
                continue
            installed = os.path.islink(os.path.join(base, module, f"kernel-{kernel}-{arch}"))
            entries.append(
                {"module": module, "version": version, "kernel": kernel, "state": "installed" if installed else "built"}
            )
    if not entries:
        # A build that failed leaves its folder with the log; a build that works removes it.
        failed = os.path.isfile(os.path.join(folder, "build", "make.log"))
        entries.append({"module": module, "version": version, "kernel": None, "state": "failed" if failed else "added"})
    return entries


def toolkits(root: str = "/") -> list[dict[str, Any]]:
    """Installed CUDA toolkits, each once: ``version``, ``path``, ``nvcc_path``, ``default``."""
    found: dict[str, dict[str, Any]] = {}
    default = resolve(root, "/usr/local/cuda")
    for pattern in ("/usr/local/cuda", "/usr/local/cuda-*", "/opt/cuda", "/opt/nvidia/hpc_sdk/*/*/cuda/*"):
        for path in sorted(glob.glob(under(root, pattern))):
            real = resolve(root, node_path(root, path))
            if not real or real in found or not os.path.isdir(real):
                continue
            version = _toolkit_version(real)
            if version is None:
                continue
            nvcc = os.path.join(real, "bin", "nvcc")
            found[real] = {
                "version": version,
                "path": node_path(root, real),
                "nvcc_path": node_path(root, nvcc) if os.path.exists(nvcc) else None,
                "default": real == default or pattern == "/opt/cuda",
            }
    packaged = _packaged_toolkit(root)
    if packaged:
        found["packaged"] = packaged
    return sorted(found.values(), key=lambda entry: str(entry["path"]))


def _toolkit_version(folder: str) -> str | None:
    text = read_text(os.path.join(folder, "version.json"))
    if text:
        try:
            return str(json.loads(text)["cuda"]["version"])
        except (ValueError, KeyError, TypeError):
            pass
    # CUDA 10 and older: "CUDA Version 10.2.89".
    match = re.search(r"CUDA Version (\d[\d.]*)", read_text(os.path.join(folder, "version.txt")) or "")
    if match:
        return match.group(1)
    return _cuda_h(os.path.join(folder, "include", "cuda.h"))


def _cuda_h(path: str) -> str | None:
    match = re.search(r"(?m)^#define CUDA_VERSION (\d+)", read_text(path, 1 << 20) or "")
    return f"{int(match.group(1)) // 1000}.{int(match.group(1)) % 1000 // 10}" if match else None


def _packaged_toolkit(root: str) -> dict[str, Any] | None:
    """The distribution's own nvcc in /usr/bin (Debian and Ubuntu: nvidia-cuda-toolkit)."""
    nvcc = resolve(root, "/usr/bin/nvcc")
    if not nvcc or not os.path.isfile(nvcc) or "/usr/local/cuda" in nvcc or "/opt/cuda" in nvcc:
        return None
    return {
        "version": _cuda_h(under(root, "/usr/include/cuda.h")),
        "path": "/usr",
        "nvcc_path": "/usr/bin/nvcc",
        "default": True,
    }


def processes(root: str = "/") -> dict[str, bool | None]:
    """Whether fabric manager and persistence daemon run, by the names of all processes; None when /proc cannot be read."""
    names = set()
    entries = _list(under(root, "/proc"))
    for entry in entries:
        if entry.isdigit():
            names.add(read_text(under(root, "/proc", entry, "comm"), 64))
    if not names:
        return {"fabric_manager": None, "persistence_daemon": None}
    return {"fabric_manager": FABRIC_MANAGER_COMM in names, "persistence_daemon": PERSISTENCED_COMM in names}


def fabric_manager(root: str = "/") -> dict[str, Any]:
    """``installed`` and ``version`` (from dpkg's database, None elsewhere)."""
    places = (
        "/usr/bin/nv-fabricmanager",
        "/lib/systemd/system/nvidia-fabricmanager.service",
        "/usr/lib/systemd/system/nvidia-fabricmanager.service",
        "/etc/systemd/system/nvidia-fabricmanager.service",
    )
    installed = any(os.path.exists(under(root, place)) for place in places)
    version = None
    if installed:
        status = read_text(under(root, "/var/lib/dpkg/status"), 64 << 20) or ""
        for block in status.split("\n\n"):
            if re.match(r"Package: nvidia-fabricmanager(-\d+)?\n", block) and "Status: install ok installed" in block:
                match = re.search(r"(?m)^Version: (?:\d+:)?(\d+\.\d+(?:\.\d+)*)", block)
                version = match.group(1) if match else None
    return {"installed": installed, "version": version}


def nvidia_smi(root: str = "/", path: str | None = None) -> str | None:
    """Path of nvidia-smi: in PATH, or where WSL and container images put it."""
    folders = [
        *(path or os.environ.get("PATH", "")).split(":"),
        "/usr/bin",
        "/usr/local/nvidia/bin",
        "/usr/lib/wsl/lib",
        "/opt/bin",
    ]
    for folder in folders:
        candidate = under(root, folder, "nvidia-smi") if folder.startswith("/") else ""
        if candidate and os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return node_path(root, candidate)
    return None


def module_on_disk(root: str, release: str) -> dict[str, Any]:
    """``module_path``, ``module_version``, ``module_signed``, ``module_signer``, ``licence``, ``flavour``, ``other_kernels``."""
    files = module_files(root, release)
    result: dict[str, Any] = {
        "module_version": None,
        "module_signed": None,
        "module_signer": None,
        "licence": None,
        "flavour": None,
        **files,
    }
    if files["module_path"]:
        read = gpu_kmod.read_module(under(root, files["module_path"]))
        result.update(
            module_version=read["version"],
            module_signed=read["signed"],
            module_signer=read["signer"],
            licence=read["licence"],
        )
        if read["licence"]:
            # NVIDIA's open modules are "Dual MIT/GPL", the proprietary ones "NVIDIA".
            result["flavour"] = "open" if "GPL" in read["licence"] else "proprietary"
    return result


def _list(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []
