#!/usr/bin/env python3
# Copyright: Contributors to the gpufleet.llm project
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""STANDS IN for nvidia-installer: its options per branch, its log, its exit status 0 or 1, its files; no driver inside.

Started by a runfile in its extracted folder, or as /usr/bin/nvidia-uninstall. The options and messages are those of
nvidia-installer (option_table.h, kernel.c, install-from-cwd.c; which branch has which option: read 2026-11).

A test decides what goes wrong on a node by files in /etc/gpufleet-fixture: `nouveau-loaded`, `driver-loaded`,
`build-fails`, `killed-halfway`, `no-space`; `kernel` holds the release of the kernel that is taken to run.
"""

import json
import os
import platform
import shutil
import signal
import sys
import time
import zlib
from pathlib import Path

FIXTURE = Path("/etc/gpufleet-fixture")
STATE = Path("/var/lib/nvidia")
HERE = Path(__file__).resolve().parent

# Options of every branch since 515: name → takes an argument (True), is a flag (False) or a flag with a no- form (None).
OPTIONS = {
    **dict.fromkeys(
        "version help advanced-options accept-license driver-info uninstall skip-module-unload sanity expert no-questions "
        "silent no-precompiled-interface no-nvidia-modprobe no-abi-note no-rpms no-backup no-recursion no-network "
        "no-sigwinch-workaround no-cc-version-check no-distro-scripts no-opengl-files no-wine-files no-kernel-module-source "
        "no-x-check no-nouveau-check no-check-for-alternate-installs no-drm no-peermem force-libglx-indirect "
        "no-libglx-indirect skip-depmod no-kernel-modules no-runlevel-check add-this-kernel rpm-file-list".split(),
        False,
    ),
    **dict.fromkeys(
        "dkms disable-nouveau install-compat32-libs install-vdpau-wrapper install-libglvnd systemd".split(), None
    ),
    **dict.fromkeys(
        "x-prefix x-module-path x-library-path x-sysconfig-path opengl-prefix opengl-libdir compat32-chroot compat32-prefix "
        "compat32-libdir installer-prefix utility-prefix utility-libdir documentation-prefix application-profile-path "
        "kernel-include-path kernel-source-path kernel-output-path kernel-install-path proc-mount-point log-file-name tmpdir "
        "ui kernel-name kernel-module-source-prefix kernel-module-source-dir module-signing-secret-key "
        "module-signing-public-key module-signing-script module-signing-key-path module-signing-hash "
        "module-signing-x509-hash force-selinux selinux-chcon-type concurrency-level glvnd-egl-config-path "
        "override-file-type-destination systemd-unit-prefix systemd-sleep-prefix systemd-sysconf-prefix "
        "precompiled-kernel-interfaces-path".split(),
        True,
    ),
}
# First branch, last branch (0: still there), name, as above.
SINCE = (
    (515, 550, "kernel-module-build-directory", True),
    (555, 0, "kernel-module-type", True),
    (570, 0, "print-recommended-kernel-module-type", False),
    (545, 0, "rebuild-initramfs", None),
    (545, 0, "allow-installation-with-running-driver", None),
    (550, 0, "skip-module-load", False),
)
SHORT = {
    "s": "silent", "q": "no-questions", "e": "expert", "v": "version", "h": "help", "A": "advanced-options", "z": "no-nouveau-check",
    "k": "kernel-name", "j": "concurrency-level", "m": "kernel-module-build-directory", "M": "kernel-module-type",
    "a": "accept-license", "i": "driver-info", "b": "no-backup", "n": "no-precompiled-interface",
}  # fmt: skip
USAGE = "\nnvidia-installer:  Version %s  (fixture)\n\nnvidia-installer [options]\n"


class Failed(Exception):
    """The reason, as the log has it."""


class Log:
    """/var/log/nvidia-installer.log in its own format; errors go to standard error, too."""

    def __init__(self, path: str, version: str, argv: list[str]) -> None:
        self.path = path
        created = time.strftime("%a %b %d %H:%M:%S %Y")
        lines = [
            f"nvidia-installer log file '{path}'",
            f"creation time: {created}",
            f"installer version: {version}",
            "",
        ]
        lines += [f"PATH: {os.environ.get('PATH', '')}", "", "nvidia-installer command line:", "    ./nvidia-installer"]
        lines += [f"    {argument}" for argument in argv]
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(
            "\n".join([*lines, "", "Using: nvidia-installer built-in stream user interface", ""]) + ""
        )

    def add(self, text: str) -> None:
        """One line."""
        with open(self.path, "a") as stream:
            stream.write(text + "\n")

    def error(self, text: str) -> None:
        """An error."""
        self.add(f"ERROR: {text}")
        print(f"\nERROR: {text}\n", file=sys.stderr)


def options_of(branch: int) -> dict:
    """The options that the installer of a branch knows."""
    return OPTIONS | {
        name: kind for first, last, name, kind in SINCE if branch >= first and (not last or branch <= last)
    }


def parse(argv: list[str], branch: int) -> dict:
    """Name → value; SystemExit 1 for what this branch does not know, as the real one does."""
    known, given, rest = options_of(branch), {}, list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("--") and word.startswith("-"):
            name = SHORT.get(name, name)
        negated = name.startswith("no-") and known.get(name[3:], 0) is None
        kind = None if negated else known.get(name, 0)
        if not word.startswith("-") or (kind == 0 and kind is not False) or (kind is not True and equals):
            print(f'\nnvidia-installer: unrecognized option: "{word}"\n', file=sys.stderr)
            print(
                "ERROR: Invalid commandline, please run `nvidia-installer --help` for usage information.\n",
                file=sys.stderr,
            )
            raise SystemExit(1)
        if kind is True and not equals:
            if not rest:
                print(f'nvidia-installer: option "{word}" requires an argument.', file=sys.stderr)
                raise SystemExit(1)
            value = rest.pop(0)
        given[name[3:] if negated else name] = value if kind is True else not negated
    return given


def there(condition: str) -> bool:
    """True if a test wants this to be so on this node."""
    return (FIXTURE / condition).exists()


def kernel_of(given: dict) -> str:
    """The kernel to build for."""
    told = FIXTURE / "kernel"
    running = told.read_text().strip() if told.exists() else platform.release()
    return given.get("kernel-name") or running


def libdir() -> Path:
    """Where this distribution has its libraries."""
    for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib64"):
        if folder == "/usr/lib64" and not Path("/etc/redhat-release").exists():
            continue
        if folder.endswith("gnu") and not Path("/etc/debian_version").exists():
            continue
        return Path(folder)
    return Path("/usr/lib")


def installed() -> dict:
    """What the last installation wrote down ({} without one): nvidia-installer's own format (backup.c)."""
    path = STATE / "log"
    if not path.exists():
        return {}
    head, _words, *rest = path.read_text().splitlines()
    record = {"version": head.partition("(")[2].rstrip(")"), "files": [], "folders": []}
    record["files"] = [line.partition(": ")[2] for line in rest[::2]]
    if (STATE / "dirs").exists():
        record["folders"] = (STATE / "dirs").read_text().splitlines()
    return record


def remove(log: Log) -> str:
    """Take an installation away; its version, or ""."""
    record = installed()
    version = record.get("version", "")
    if version:
        base = Path("/var/lib/dkms/nvidia")
        for module in Path("/lib/modules").glob("*/updates/dkms/nvidia.ko"):
            if (base / version).is_dir() and f"version={version}".encode() in module.read_bytes():
                module.unlink()
        if base.is_dir():
            for link in base.glob("kernel-*"):
                if os.readlink(link).startswith(f"{version}/"):
                    link.unlink()
            shutil.rmtree(base / version, ignore_errors=True)
            if not any(base.iterdir()):
                base.rmdir()
    for path in record.get("files", []):
        place = Path(path)
        if place.is_symlink() or place.is_file():
            place.unlink()
    for path in record.get("folders", []):
        if Path(path).is_dir() and not any(Path(path).iterdir()):
            Path(path).rmdir()
    shutil.rmtree(STATE, ignore_errors=True)
    if version:
        log.add(
            f"-> Uninstallation of existing driver: NVIDIA Accelerated Graphics Driver for Linux-x86_64 ({version}) is complete."
        )
    return version


class Installation:
    """Files put in place, and the record of them, which is written as they come."""

    def __init__(self, version: str) -> None:
        shutil.rmtree(STATE, ignore_errors=True)
        STATE.mkdir(parents=True)
        STATE.chmod(0o700)
        digits = version.replace(".", "")
        self.note("log", f"1.0-{digits} ({version})\nNVIDIA Accelerated Graphics Driver for Linux-x86_64")
        (STATE / "log").chmod(0o600)

    @staticmethod
    def note(name: str, text: str) -> None:
        """Add to a file of the record."""
        with open(STATE / name, "a") as stream:
            stream.write(text + "\n")

    def put(self, source: Path, target: Path, mode: int = 0o644) -> None:
        """Copy a file or link."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_symlink() or target.exists():
            target.unlink()
        if source.is_symlink():
            target.symlink_to(os.readlink(source))
            self.note("log", f"0: {target}\n{os.readlink(source)}")
        else:
            shutil.copyfile(source, target)
            target.chmod(mode)
            self.note("log", f"1: {target}\n{zlib.crc32(target.read_bytes())}")

    def folder(self, path: Path) -> None:
        """Make a folder that goes again when it is empty."""
        path.mkdir(parents=True, exist_ok=True)
        self.note("dirs", str(path))


def disable_nouveau(log: Log) -> None:
    """Write the two files of the real installer."""
    for folder in ("/usr/lib/modprobe.d", "/etc/modprobe.d"):
        path = Path(folder, "nvidia-installer-disable-nouveau.conf")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("# generated by nvidia-installer\nblacklist nouveau\noptions nouveau modeset=0\n")
    log.add("-> One or more modprobe configuration files to disable Nouveau have been written.")


def check(given: dict, branch: int, log: Log) -> None:
    """What the real installer refuses in silent mode."""
    if os.geteuid() != 0:
        raise Failed("nvidia-installer must be run as root")
    if there("no-space"):
        raise Failed("Unable to create '/var/tmp/.nvidia' for copying (No space left on device)")
    if there("driver-loaded") and not given.get("allow-installation-with-running-driver"):
        raise Failed(
            "An NVIDIA kernel module 'nvidia' appears to be already loaded in your kernel.  This may be because it is in use "
            "(for example, by an X server, a CUDA program, or the NVIDIA Persistence Daemon), but this may also happen if your "
            "kernel was configured without support for module unloading.  Please be sure to exit any programs that may be using "
            "the GPU(s) before attempting to upgrade your driver."
        )
    if there("nouveau-loaded") and not given.get("no-nouveau-check"):
        if given.get("disable-nouveau", branch >= 545):
            disable_nouveau(log)
        raise Failed(
            "The Nouveau kernel driver is currently in use by your system.  This driver is incompatible with the NVIDIA driver, "
            "and must be disabled before proceeding.  Please consult the NVIDIA driver README and your Linux distribution's "
            "documentation for details on how to correctly disable the Nouveau kernel driver."
        )


def build(given: dict, version: str, log: Log) -> tuple:
    """Build: which module it is, and whether dkms takes it. Nothing that is installed has been touched when it fails."""
    branch, kernel = int(version.split(".")[0]), kernel_of(given)
    if not shutil.which("cc"):
        raise Failed(
            "Unable to find the development tool `cc` in your path; please make sure that you have the package 'gcc' "
            "installed.  If gcc is installed on your system, then please check that `cc` is in your PATH."
        )
    if not shutil.which("make"):
        raise Failed(
            "Unable to find the development tool `make` in your path; please make sure that you have the package 'make' installed."
        )
    source = Path(given.get("kernel-source-path") or f"/lib/modules/{kernel}/build")
    if not source.is_dir():
        raise Failed(
            "Unable to find the kernel source tree for the currently running kernel.  Please make sure you have installed the "
            "kernel source files for your kernel and that they are properly configured; on Red Hat Linux systems, for example, "
            "be sure you have the 'kernel-source' or 'kernel-devel' RPM installed.  If you know the correct kernel source files "
            "are installed, you may specify the kernel source path with the '--kernel-source-path' command line option."
        )
    flavour = given.get("kernel-module-type") or {"kernel-open": "open"}.get(
        given.get("kernel-module-build-directory", ""), ""
    )
    if not flavour:
        flavour = "open" if branch >= 560 else "proprietary"
    if flavour not in ("open", "proprietary"):
        raise Failed(f"Invalid value '{flavour}' for the kernel module type")
    module = HERE / ("kernel-open" if flavour == "open" else "kernel") / "nvidia.ko"
    dkms = given.get("dkms", shutil.which("dkms") is not None)
    if dkms and not shutil.which("dkms"):
        log.add("WARNING: Unable to find `dkms` in your PATH; the kernel modules will not be registered with DKMS.")
        dkms = False
    log.add(f"-> Installing both new and classic TLS OpenGL libraries.\n-> Kernel module type: {flavour}")
    if there("build-fails"):
        base = Path(f"/var/lib/dkms/nvidia/{version}/build")
        if dkms:
            base.mkdir(parents=True, exist_ok=True)
            (base / "make.log").write_text("error: 'struct vm_area_struct' has no member named '__vm_flags'\n")
        log.add(f"   {source}/include/linux/mm.h: error: assignment of read-only member 'vm_flags'")
        raise Failed(
            'An error occurred while performing the step: "Building kernel modules". See /var/log/nvidia-installer.log for details.'
        )
    return module, dkms


def put_module(given: dict, version: str, log: Log, done: Installation, built_here: tuple) -> None:
    """Put the kernel module where dkms or the installer would put it."""
    module, dkms = built_here
    kernel, sources = kernel_of(given), Path(f"/usr/src/nvidia-{version}")
    done.folder(sources)
    done.put(module, sources / "nvidia.ko")
    conf = HERE / "dkms.conf"
    conf.write_text(f'PACKAGE_NAME="nvidia"\nPACKAGE_VERSION="{version}"\nAUTOINSTALL="yes"\n')
    done.put(conf, sources / "dkms.conf")
    if dkms:
        built = Path(f"/var/lib/dkms/nvidia/{version}/{kernel}/{platform.machine()}/module")
        built.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(module, built / "nvidia.ko")
        (built.parents[2] / "source").unlink(missing_ok=True)
        (built.parents[2] / "source").symlink_to(sources)
        link = built.parents[3] / f"kernel-{kernel}-{platform.machine()}"
        link.unlink(missing_ok=True)
        link.symlink_to(f"{version}/{kernel}/{platform.machine()}")
        # dkms puts it there: it is not in the installer's record
        target = Path(f"/lib/modules/{kernel}/updates/dkms/nvidia.ko")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(module, target)
        log.add("-> Kernel module compilation complete.\n-> The kernel modules were registered with DKMS.")
    else:
        done.put(
            module,
            Path(given.get("kernel-install-path") or f"/lib/modules/{kernel}/kernel/drivers/video") / "nvidia.ko",
        )
        log.add("-> Kernel module compilation complete.")


def install(given: dict, version: str, log: Log) -> None:
    """Install, over whatever an earlier runfile has left."""
    branch = int(version.split(".")[0])
    check(given, branch, log)
    log.add(f"-> Installing NVIDIA driver version {version}.")
    built = None if given.get("no-kernel-modules") else build(given, version, log)
    if installed():
        remove(log)
    done = Installation(version)
    if built:
        put_module(given, version, log, done, built)
    if given.get("disable-nouveau", branch >= 545):
        disable_nouveau(log)
    for path in sorted((HERE / "lib").rglob("*") if not (HERE / "usr/lib").exists() else []):
        done.put(path, libdir() / path.name, 0o755)
    if there("killed-halfway"):
        os.kill(os.getpid(), signal.SIGKILL)
    for path in sorted((HERE / "usr/bin").iterdir()):
        done.put(path, Path("/usr/bin") / path.name, 0o755)
    for name in ("nvidia-installer", "nvidia-uninstall"):
        done.put(HERE / "nvidia-installer", Path("/usr/bin") / name, 0o755)
    os.system("ldconfig")
    log.add(
        f"-> Installation of the NVIDIA Accelerated Graphics Driver for Linux-x86_64 (version: {version}) is now complete."
    )


def main(argv: list[str]) -> int:
    """Exit status 0 or 1."""
    uninstalling = Path(sys.argv[0]).name == "nvidia-uninstall"
    told = HERE / "fixture.json"
    version = json.loads(told.read_text())["version"] if told.exists() else installed().get("version", "0.0")
    given = parse(argv, int(version.split(".")[0]))
    if given.get("help") or given.get("advanced-options"):
        print(USAGE % version + "".join(f"  --{name}\n" for name in sorted(options_of(int(version.split(".")[0])))))
        return 0
    if given.get("version"):
        print(f"nvidia-installer:  Version {version}  (fixture)")
        return 0
    default = (
        "/var/log/nvidia-uninstall.log" if uninstalling or given.get("uninstall") else "/var/log/nvidia-installer.log"
    )
    log = Log(given.get("log-file-name") or default, version, argv)
    if not (given.get("silent") or given.get("no-questions")):
        log.error("The user interface of the fixture is not there: use --silent.")
        return 1
    try:
        if uninstalling or given.get("uninstall"):
            if not installed():
                raise Failed("There is no NVIDIA driver currently installed.")
            remove(log)
        else:
            install(given, version, log)
    except Failed as reason:
        log.error(str(reason))
        if not uninstalling:
            log.error(
                f"Installation has failed.  Please see the file '{log.path}' for details.  You may find suggestions on fixing "
                "installation problems in the README available on the Linux driver download page at www.nvidia.com."
            )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
