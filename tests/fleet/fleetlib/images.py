# Copyright: Contributors to the gpufleet.llm project
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Node images: debootstrap roots, finished in a chroot, imported into podman under a tag that is the recipe's hash."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import aptsources, pki
from .host import CACHE, FLEET_DIR, FleetError, lock, podman, run, say

IMAGES_DIR = FLEET_DIR / "images"

# What a freshly installed server has. Neither git nor nginx: those are what the roles bring.
COMMON = [
    *("systemd", "systemd-sysv", "dbus", "libpam-systemd", "openssh-server", "sudo", "iproute2", "procps", "less"),
    *("python3", "python3-apt", "python3-venv", "ca-certificates", "curl", "gpg", "gpgv"),
]


@dataclass(frozen=True)
class Image:
    """A node image: the Debian release its root comes from, packages added to it, and files and scripts run in it."""

    name: str
    codename: str
    packages: tuple[str, ...] = ()
    # Folders under images/ copied over the root, and scripts under images/ run in it, in this order.
    overlays: tuple[str, ...] = ()
    scripts: tuple[str, ...] = ()
    # Scripts run after common/setup.sh, when apt is no longer needed.
    last_scripts: tuple[str, ...] = ()


# What Debian's builds of git and nginx need: the fixture packages for dnf and pacman bring only the programs.
LIBRARIES = ("libcurl3-gnutls", "libexpat1", "libpcre2-8-0", "libssl3", "libcrypt1", "zlib1g", "perl", "openssl")

_IMAGES = (
    Image("debian12", "bookworm"),
    Image("debian13", "trixie", scripts=("debian13.sh",)),
    Image("ubuntu22-like", "bookworm", overlays=("ubuntu22-like",)),
    Image(
        "rhel9-like",
        "bookworm",
        packages=("dnf", "python3-dnf", "rpm", "python3-rpm", *LIBRARIES),
        overlays=("rhel9-like",),
        scripts=("rhel9-like.sh",),
        last_scripts=("common/forget_debian.sh",),
    ),
    Image(
        "arch-like",
        "bookworm",
        packages=("pacman-package-manager", *LIBRARIES),
        overlays=("arch-like",),
        scripts=("arch-like.sh",),
        last_scripts=("common/forget_debian.sh",),
    ),
    # The depot, and the workshop in which its packages are made.
    Image(
        "depot",
        "bookworm",
        packages=(
            *("git", "gnupg", "apt-utils", "dpkg-dev", "rpm", "createrepo-c", "pacman-package-manager", "makepkg"),
            *("python3-pycosat", "zstd", "xz-utils", "openssl", "libarchive-tools", "gcc", "libc6-dev"),
        ),
        overlays=("depot",),
        scripts=("depot.sh",),
    ),
)
IMAGES: dict[str, Image] = {image.name: image for image in _IMAGES}


def recipe_files(image: Image) -> list[Path]:
    """All files of the clone that an image is made of."""
    folders = [IMAGES_DIR / "common", *(IMAGES_DIR / name for name in image.overlays)]
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return files + [IMAGES_DIR / script for script in (*image.scripts, *image.last_scripts)]


def recipe_hash(image: Image) -> str:
    """Twelve hex digits over all that decides what is in the image."""
    digest = hashlib.sha256()
    main, security = aptsources.archives()
    parts = [image.name, image.codename, COMMON, image.packages, image.overlays, image.scripts, image.last_scripts]
    digest.update(json.dumps([*parts, main, security, pki.ca_sha256()]).encode())
    for path in recipe_files(image):
        digest.update(str(path.relative_to(IMAGES_DIR)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def tag(name: str) -> str:
    """The podman name of an image as its recipe is now."""
    return f"localhost/gpufleet-{name}:{recipe_hash(image_named(name))}"


def image_named(name: str) -> Image:
    """The recipe of that name, or FleetError naming those there are."""
    if name not in IMAGES:
        raise FleetError(f"no image {name!r}; there are: {', '.join(IMAGES)}", 2)
    return IMAGES[name]


def is_built(name: str) -> bool:
    """True if podman has the image as its recipe is now."""
    return podman("image", "exists", tag(name), check=False).returncode == 0


def base_root(codename: str) -> Path:
    """The tar of a debootstrap root with COMMON in it, made once per release and archive."""
    main, _security = aptsources.archives()
    key = hashlib.sha256(json.dumps([codename, COMMON, main]).encode()).hexdigest()[:12]
    path = CACHE / "roots" / f"{codename}-{key}.tar"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    root = CACHE / "build" / f"{codename}.root"
    _remove_root(root)
    debs = CACHE / "debs" / codename
    debs.mkdir(parents=True, exist_ok=True)
    say(f"debootstrap {codename} (about a minute)")
    argv = ["debootstrap", "--variant=minbase", f"--include={','.join(COMMON)}", f"--cache-dir={debs}"]
    run([*argv, codename, str(root), *([main] if main else [])])
    run(["tar", "-C", str(root), "-cf", f"{path}.part", "."])
    os.replace(f"{path}.part", path)
    for old in path.parent.glob(f"{codename}-*.tar"):
        if old != path:
            old.unlink()
    _remove_root(root)
    shutil.rmtree(debs)
    return path


def build(name: str) -> str:
    """Build an image if podman lacks it as its recipe is now; return its tag."""
    image = image_named(name)
    if is_built(name):
        return tag(name)
    with lock("build"):
        if is_built(name):
            return tag(name)
        root = CACHE / "build" / f"{name}.root"
        _remove_root(root)
        root.mkdir(parents=True)
        run(["tar", "-C", str(root), "-xf", str(base_root(image.codename))])
        say(f"building {name}")
        try:
            _finish(image, root)
            _import(root, tag(name))
        finally:
            _remove_root(root)
        _forget_older(name)
    return tag(name)


def _finish(image: Image, root: Path) -> None:
    main, security = aptsources.archives()
    if not main:  # not a Debian machine: debootstrap has just written down the address it was built with
        listed = aptsources.parse_one_line((root / "etc/apt/sources.list").read_text(encoding="utf-8"))
        main = listed[0].uri
    (root / "etc/apt/sources.list").unlink(missing_ok=True)
    sources = root / "etc/apt/sources.list.d/debian.sources"
    sources.write_text(aptsources.node_sources(main, _security_for(security, image.codename), image.codename))
    (root / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
    (root / "usr/sbin/policy-rc.d").chmod(0o755)
    shutil.copyfile("/etc/resolv.conf", root / "etc/resolv.conf")
    anchor = root / "usr/local/share/ca-certificates/gpufleet-depot.crt"
    anchor.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(pki.ca_certificate(), anchor)
    if image.packages:
        chroot(root, ["apt-get", "update", "-q"])
        chroot(root, ["apt-get", "install", "-y", "-q", "--no-install-recommends", *image.packages])
    for overlay in image.overlays:
        _overlay(IMAGES_DIR / overlay, root)
    for script in (*image.scripts, "common/setup.sh", *image.last_scripts):
        chroot(root, ["sh", "-s"], stdin=(IMAGES_DIR / script).open(encoding="utf-8"))


def _overlay(source: Path, root: Path) -> None:
    """Copy files into a root, root's own and readable, whatever the clone's umask was."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            target = root / path.relative_to(source)
            if not target.parent.is_dir():
                target.parent.mkdir(parents=True)
            target.unlink(missing_ok=True)
            shutil.copyfile(path, target)
            target.chmod(0o644)


def _security_for(security: str, codename: str) -> str:
    return security if codename in ("bookworm", "trixie") else ""


def chroot(root: Path, argv: list[str], stdin: Any = subprocess.DEVNULL) -> str:
    """Run argv in a root file system with /proc mounted, in a mount namespace that ends with it."""
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    script = 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"'
    enter = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(root)]
    return run([*enter, *argv], env={**env, "HOME": "/root"}, stdin=stdin).stdout


def _import(root: Path, name: str) -> None:
    say(f"importing {name}")
    archive = Path(f"{root}.tar")
    changes = ["--change", 'CMD ["/lib/systemd/systemd"]', "--change", "STOPSIGNAL SIGRTMIN+3"]
    try:
        run(["tar", "-C", str(root), "--exclude=./proc/*", "--exclude=./sys/*", "-cf", str(archive), "."])
        podman("import", *changes, str(archive), name)
    finally:
        archive.unlink(missing_ok=True)


def _remove_root(root: Path) -> None:
    if root.exists():
        # A root with something still mounted in it must not be walked into.
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
        if f" {root}/" in mounts:
            raise FleetError(f"something is still mounted below {root}: umount it first")
        shutil.rmtree(root)


def _forget_older(name: str) -> None:
    """Remove images of older recipes that no container uses."""
    listed = podman("images", "--format", "{{.Repository}}:{{.Tag}}", f"localhost/gpufleet-{name}").stdout.split()
    for old in listed:
        if old != tag(name):
            podman("rmi", old, check=False)
