#!/usr/bin/env python3
# Copyright: Contributors to the gpufleet.llm project
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make fixtures in the shape of NVIDIA's repositories and runfiles; runs in a container of the depot's image, as root.

`build_nvidia.py OUTDIR` writes, as developer.download.nvidia.com and us.download.nvidia.com have them:

* `compute/cuda/repos/{ubuntu2204,debian12,debian13}/x86_64/`: flat apt repositories, `3bf863cc.pub`
* `compute/cuda/repos/rhel9/x86_64/`: an rpm repository with module streams, `D42D0685.pub`; `rhel10` the same without
* `tesla/VERSION/NVIDIA-Linux-x86_64-VERSION.run`, the same below `XFree86/Linux-x86_64/`; `….run.sha256sum`
* `compute/cuda/12.0.1/local_installers/cuda_12.0.1_525.85.12_linux.run`, and the update before it

and the distributions' parts that a driver needs: `distribution/{ubuntu,rhel9,arch,epel9}`. No package has NVIDIA's code in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import content
import deb
import packages_rpm
import runfiles
from content import filled
from deb import File, Tree

VERSIONS = (
    "535.247.01", "535.274.02", "570.124.06", "570.195.03", "580.105.08", "580.126.20", "590.44.01", "590.48.01",
)  # fmt: skip
PERSIST_POST = "if [ -d /run/systemd/system ]; then systemctl daemon-reload; systemctl enable --quiet @UNIT@; systemctl restart @UNIT@ || :; fi\n"
PERSIST_PRERM = (
    'if [ "$1" = remove ] && [ -d /run/systemd/system ]; then systemctl disable --now --quiet @UNIT@ || :; fi\n'
)
LIBDIR = "usr/lib/x86_64-linux-gnu"
WORK = Path("/tmp/nvidia-workshop")


def run(*argv: str, cwd: Path | None = None, stdin: bytes | None = None) -> str:
    """Run argv; its output, or an exception with what it said."""
    done = subprocess.run(argv, cwd=cwd, input=stdin, capture_output=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"rc {done.returncode} from {' '.join(argv)}\n{(done.stdout + done.stderr).decode()[-3000:]}")
    return done.stdout.decode()


# --- things that need a compiler --------------------------------------------------------------------------------------


def kernel_module(version: str, flavour: str) -> bytes:
    """An object file whose .modinfo says what modinfo would say of the real module; there is no code in it."""
    licence = "Dual MIT/GPL" if flavour == "open" else "NVIDIA"
    entries = "".join(
        f'__attribute__((section(".modinfo"), used)) static const char e{n}[] = "{text}";\n'
        for n, text in enumerate(
            (f"version={version}", f"license={licence}", "description=gpufleet fixture", "depends=")
        )
    )
    source, target = WORK / "module.c", WORK / "module.ko"
    source.write_text(entries)
    run("gcc", "-c", "-o", str(target), str(source))
    return target.read_bytes()


def nvml(stand_in: Path) -> bytes:
    """The NVML stand-in as a library: without a profile it answers that the driver is not loaded."""
    target = WORK / "libnvidia-ml.so.1"
    run("gcc", "-shared", "-fPIC", "-O1", "-s", "-Wl,-soname,libnvidia-ml.so.1", "-o", str(target), str(stand_in))
    return target.read_bytes()


# --- apt -------------------------------------------------------------------------------------------------------------


class Apt:
    """One apt repository being filled."""

    def __init__(self, pool: Path, revision: str) -> None:
        self.pool, self.revision, self.stanzas = pool, revision, []

    def add(self, name: str, version: str, tree: Tree | None = None, *, arch: str = "amd64", **more: str) -> None:
        """Add a package; more: Depends, Provides, Conflicts, Replaces, and postinst, prerm, postrm, Source."""
        scripts = {key: more.pop(key) for key in ("preinst", "postinst", "prerm", "postrm") if key in more}
        fields = {
            "Package": name,
            "Version": version,
            "Architecture": arch,
            "Maintainer": "gpufleet fixture <fixture@gpufleet.test>",
        }
        fields |= {"Section": "multiverse/devel", "Priority": "optional"} | more
        fields["Description"] = f"{name} {version}: a fixture\n In the shape of NVIDIA's package, without its code."
        self.stanzas.append(deb.write(self.pool, fields, tree or {}, scripts))


def driver_scripts(version: str) -> dict[str, str]:
    """Maintainer scripts of a DKMS package."""
    add, remove = filled(content.DKMS_ADD, version), filled(content.DKMS_REMOVE, version)
    return {
        "postinst": f'if [ "$1" = configure ]; then\n{add}fi\n',
        "prerm": f'if [ "$1" = remove ] || [ "$1" = upgrade ] || [ "$1" = deconfigure ]; then\n{remove}fi\n',
    }


def unit_scripts(unit: str) -> dict[str, str]:
    """Maintainer scripts of a package with a service."""
    return {
        "postinst": 'if [ "$1" = configure ]; then\n' + PERSIST_POST.replace("@UNIT@", unit) + "fi\n",
        "prerm": PERSIST_PRERM.replace("@UNIT@", unit),
        "postrm": "if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi\n",
    }


def pinning(apt: Apt, version: str, release: str, branch: bool) -> None:
    """nvidia-driver-pinning-BRANCH or -VERSION: preferences that outrank any other version."""
    what = version.partition(".")[0] if branch else version
    text = (
        f"Package: *nvidia* cuda-drivers* libcuda1* libxnvctrl*\nPin: version {what}{'.*' if branch else '-*'}\n"
        "Pin-Priority: 1000\n"
    )
    # All provide the same name and conflict with it: one pin at a time.
    apt.add(
        f"nvidia-driver-pinning-{what}", release, {f"etc/apt/preferences.d/nvidia-driver-pinning-{what}": File(text)},
        arch="all", Provides="nvidia-driver-pinning", Conflicts="nvidia-driver-pinning", Replaces="nvidia-driver-pinning",
    )  # fmt: skip


def ubuntu_driver(apt: Apt, version: str, library: bytes, modules: dict[str, bytes]) -> None:
    """The packages of one version in NVIDIA's Ubuntu repository: with the branch in their names before 590."""
    branch = version.partition(".")[0]
    s = f"-{branch}" if int(branch) < 590 else ""
    v = f"{version}-{apt.revision}"
    same = f"(= {v})"

    # Packages without a branch in their names replace those with one.
    def names(stem: str, tail: str = "") -> dict[str, str]:
        generic = f"{stem}{tail}"
        return {"Provides": f"{generic}-any", "Conflicts": f"{generic}-any", "Replaces": f"{generic}-any"}

    apt.add(
        f"libnvidia-compute{s}",
        v,
        content.libraries(version, LIBDIR, library),
        postinst="ldconfig\n",
        postrm="ldconfig\n",
        **names("libnvidia-compute"),
    )
    apt.add(f"nvidia-firmware{s}" if s else "nvidia-firmware", v, content.firmware(version), **names("nvidia-firmware"))
    apt.add(f"nvidia-kernel-common{s}", v, {}, Depends=f"nvidia-firmware{s} {same}", **names("nvidia-kernel-common"))
    for flavour, tail in (("proprietary", ""), ("open", "-open")):
        apt.add(
            f"nvidia-dkms{s}{tail}", v, content.module_source(version, modules[flavour]),
            Depends=f"nvidia-kernel-common{s} {same}", Provides="nvidia-dkms-any, nvidia-dkms-kernel", Conflicts="nvidia-dkms-any",
            Replaces="nvidia-dkms-any", **driver_scripts(version),
        )  # fmt: skip
        apt.add(
            f"nvidia-driver{s}{tail}", v, {},
            Depends=f"nvidia-dkms{s}{tail} {same}, libnvidia-compute{s} {same}, libnvidia-gl{s} {same}, nvidia-utils{s} {same}, nvidia-compute-utils{s} {same}",
            Provides="nvidia-driver-any", Conflicts="nvidia-driver-any", Replaces="nvidia-driver-any",
        )  # fmt: skip
    apt.add(f"libnvidia-gl{s}", v, {f"{LIBDIR}/libGLX_nvidia.so.{version}": File("fixture\n")}, **names("libnvidia-gl"))
    apt.add(
        f"nvidia-utils{s}", v, content.smi(version), Depends=f"libnvidia-compute{s} {same}", **names("nvidia-utils")
    )
    daemon = "nvidia-persistenced" if int(branch) >= 580 else f"nvidia-compute-utils{s}"
    if daemon == "nvidia-persistenced":
        apt.add(
            f"nvidia-compute-utils{s}", v, {}, Depends=f"nvidia-persistenced {same}", **names("nvidia-compute-utils")
        )
    apt.add(
        daemon, v, content.persistenced(version), Depends=f"libnvidia-compute{s} {same}",
        **unit_scripts("nvidia-persistenced.service"),
        **(
            {"Breaks": "nvidia-compute-utils-570, nvidia-compute-utils-535", "Replaces": "nvidia-compute-utils-570, nvidia-compute-utils-535"}
            if daemon == "nvidia-persistenced" else names("nvidia-compute-utils")
        ),
    )  # fmt: skip
    apt.add(
        f"nvidia-fabricmanager{s}",
        v,
        content.fabricmanager(version),
        **unit_scripts("nvidia-fabricmanager.service") | names("nvidia-fabricmanager"),
    )
    if s:
        apt.add(f"nvidia-open{s}", v, {}, arch="all", Depends=f"nvidia-driver{s}-open {same}")
        apt.add(f"cuda-drivers{s}", v, {}, arch="all", Depends=f"nvidia-driver{s} {same}")
    apt.add("nvidia-open", v, {}, arch="all", Depends=f"nvidia-open{s} {same}" if s else f"nvidia-driver-open {same}")
    apt.add("cuda-drivers", v, {}, arch="all", Depends=f"cuda-drivers{s} {same}" if s else f"nvidia-driver {same}")


def debian_driver(apt: Apt, version: str, library: bytes, modules: dict[str, bytes]) -> None:
    """The packages of one version in NVIDIA's Debian repositories: never a branch in their names."""
    v = f"{version}-{apt.revision}"
    same = f"(= {v})"
    apt.add(
        "libnvidia-ml1",
        v,
        {p: f for p, f in content.libraries(version, LIBDIR, library).items() if "-ml" in p},
        postinst="ldconfig\n",
        postrm="ldconfig\n",
    )
    apt.add(
        "libcuda1",
        v,
        {p: f for p, f in content.libraries(version, LIBDIR, library).items() if "libcuda" in p},
        Depends=f"libnvidia-ml1 {same}",
        postinst="ldconfig\n",
        postrm="ldconfig\n",
    )
    apt.add("firmware-nvidia-gsp", v, content.firmware(version))
    apt.add("nvidia-kernel-support", v, {}, Depends=f"firmware-nvidia-gsp {same}")
    for flavour, name in (("proprietary", "nvidia-kernel-dkms"), ("open", "nvidia-kernel-open-dkms")):
        other = {"proprietary": "nvidia-kernel-open-dkms", "open": "nvidia-kernel-dkms"}[flavour]
        apt.add(
            name, v, content.module_source(version, modules[flavour]), Provides=f"nvidia-kernel-{version}",
            Depends=f"nvidia-kernel-support {same}", Conflicts=other, Replaces=other, **driver_scripts(version),
        )  # fmt: skip
    kernel = f"nvidia-kernel-dkms {same} | nvidia-kernel-open-dkms {same}"
    apt.add("nvidia-smi", v, content.smi(version), Depends=f"libnvidia-ml1 {same}")
    apt.add("nvidia-persistenced", v, content.persistenced(version), **unit_scripts("nvidia-persistenced.service"))
    apt.add("nvidia-fabricmanager", v, content.fabricmanager(version), **unit_scripts("nvidia-fabricmanager.service"))
    apt.add(
        "nvidia-driver-cuda", v, {}, Depends=f"libcuda1 {same}, nvidia-smi {same}, nvidia-persistenced {same}, {kernel}"
    )
    apt.add("nvidia-driver-libs", v, {f"{LIBDIR}/libGLX_nvidia.so.{version}": File("fixture\n")})
    apt.add("nvidia-driver", v, {}, Depends=f"nvidia-driver-libs {same}, {kernel}")
    apt.add(
        "nvidia-open",
        v,
        {},
        arch="all",
        Depends=f"nvidia-driver {same}, nvidia-driver-cuda {same}, nvidia-kernel-open-dkms {same}",
    )
    apt.add(
        "cuda-drivers",
        v,
        {},
        arch="all",
        Depends=f"nvidia-driver {same}, nvidia-driver-cuda {same}, nvidia-kernel-dkms {same}",
    )


def cuda_debs(apt: Apt, releases: tuple[str, ...]) -> None:
    """Toolkits side by side, the metapackages that drag a driver, and cuDNN."""
    for release in releases:
        major, minor, _patch = release.split(".")
        dash = f"{major}-{minor}"
        v = f"{release}-1"
        tree = dict(content.toolkit(release))
        prefix = f"usr/local/cuda-{major}.{minor}"
        nvcc = {path: file for path, file in tree.items() if path.startswith(f"{prefix}/bin/")}
        # As with NVIDIA, each part has a version of its own, and the metapackages know them only as lower bounds.
        part = content.TOOLKITS[release][0]
        apt.add(f"cuda-nvcc-{dash}", f"{part}-1", nvcc, Depends=f"cuda-cudart-dev-{dash}")
        rest = {path: file for path, file in tree.items() if path not in nvcc}
        apt.add(f"cuda-cudart-dev-{dash}", f"{part}-1", rest, Depends=f"cuda-toolkit-{dash}-config-common")
        apt.add(f"cuda-compiler-{dash}", v, {}, Depends=f"cuda-nvcc-{dash} (>= {part})")
        apt.add(f"cuda-libraries-dev-{dash}", v, {}, Depends=f"cuda-cudart-dev-{dash} (>= {part})")
        priority = f"{major}{minor}"
        apt.add(
            f"cuda-toolkit-{dash}-config-common", v, {f"etc/ld.so.conf.d/988_cuda-{major}.conf": File(f"/usr/local/cuda-{major}/targets/x86_64-linux/lib\n")} if major == "13" else {},
            arch="all",
            postinst=f"update-alternatives --install /usr/local/cuda cuda /usr/local/cuda-{major}.{minor} {priority}\n"
            f"update-alternatives --install /usr/local/cuda-{major} cuda-{major} /usr/local/cuda-{major}.{minor} {priority}\n",
            prerm=f"if [ \"$1\" = remove ]; then update-alternatives --remove cuda /usr/local/cuda-{major}.{minor}; update-alternatives --remove cuda-{major} /usr/local/cuda-{major}.{minor}; fi\n",
        )  # fmt: skip
        apt.add(
            f"cuda-toolkit-{dash}",
            v,
            {},
            Depends=f"cuda-compiler-{dash} (>= {release}), cuda-libraries-dev-{dash} (>= {release})",
        )
        apt.add(f"cuda-runtime-{dash}", v, {}, Depends="cuda-drivers")
        apt.add(f"cuda-{dash}", v, {}, arch="all", Depends=f"cuda-runtime-{dash}, cuda-toolkit-{dash}")
        apt.add("cuda", v, {}, Depends=f"cuda-{dash} (>= {release})")
        apt.add("cuda-toolkit", v, {}, Depends=f"cuda-toolkit-{dash} (>= {release})")
    for version in ("9.1.1.17", "9.5.1.17"):
        for major in ("12", "13"):
            library = f"{LIBDIR}/libcudnn.so"
            tree = {
                f"{library}.{version[:5]}": File("fixture\n"),
                f"{library}.9": deb.link(f"libcudnn.so.{version[:5]}"),
            }
            apt.add(f"libcudnn9-cuda-{major}", f"{version}-1", tree, Conflicts=f"libcudnn9-cuda-{25 - int(major)}")
            apt.add(
                f"libcudnn9-dev-cuda-{major}", f"{version}-1", {}, Depends=f"libcudnn9-cuda-{major} (= {version}-1)"
            )
            apt.add(f"cudnn9-cuda-{major}", f"{version}-1", {}, Depends=f"libcudnn9-dev-cuda-{major} (>= {version})")
    for cuda in ("12.0", "12.4"):
        tree = {
            f"{LIBDIR}/libcudnn.so.8.8.1": File("fixture\n"),
            f"{LIBDIR}/libcudnn.so.8": deb.link("libcudnn.so.8.8.1"),
        }
        apt.add("libcudnn8", f"8.8.1.3-1+cuda{cuda}", tree)


def ubuntu_archive(out: Path, library: bytes, modules: dict[str, dict[str, bytes]], sign: Signer) -> None:
    """Ubuntu's own packages (component restricted of jammy-updates): the -server series and the signed modules."""
    folder = out / "dists/jammy/restricted/binary-amd64"
    apt = Apt(out / "pool", "0ubuntu0.22.04.1")
    kernel = os.uname().release
    for version in ("535.274.02", "580.105.08", "580.126.20"):
        branch = version.partition(".")[0]
        v = f"{version}-{apt.revision}"
        same = f"(= {v})"
        only = {name: {"Conflicts": f"{name}-any", "Provides": f"{name}-any", "Replaces": f"{name}-any"} for name in
                ("libnvidia-compute", "nvidia-utils", "nvidia-compute-utils", "nvidia-headless")}  # fmt: skip
        s = f"-{branch}-server"
        apt.add(
            f"libnvidia-compute{s}",
            v,
            content.libraries(version, LIBDIR, library),
            postinst="ldconfig\n",
            postrm="ldconfig\n",
            **only["libnvidia-compute"],
        )
        apt.add(
            f"nvidia-utils{s}", v, content.smi(version), Depends=f"libnvidia-compute{s} {same}", **only["nvidia-utils"]
        )
        apt.add(
            f"nvidia-compute-utils{s}",
            v,
            content.persistenced(version),
            **unit_scripts("nvidia-persistenced.service") | only["nvidia-compute-utils"],
        )
        apt.add(f"nvidia-kernel-common{s}", v, content.firmware(version))
        apt.add(f"libnvidia-cfg1{s}", v, {f"{LIBDIR}/libnvidia-cfg.so.{version}": File("fixture\n")})
        apt.add(
            f"nvidia-fabricmanager-{branch}",
            v,
            content.fabricmanager(version),
            **unit_scripts("nvidia-fabricmanager.service"),
        )
        for flavour, tail in (("proprietary", ""), ("open", "-open")):
            apt.add(
                f"nvidia-dkms{s}{tail}",
                v,
                content.module_source(version, modules[version][flavour]),
                Provides="nvidia-modules",
                Depends=f"nvidia-kernel-common{s} {same}",
                **driver_scripts(version),
            )
            apt.add(f"nvidia-kernel-source{s}{tail}", v, {})
            for kind in ("generic", "aws", "azure", "gcp"):
                apt.add(
                    f"linux-modules-nvidia{s}{tail}-{kind}",
                    v,
                    {},
                    Provides="nvidia-modules",
                    Depends=f"linux-modules-nvidia{s}{tail}-{kernel} {same}, nvidia-kernel-common{s} {same}",
                )
            # Signed: the marker that a signed module ends with.
            signed = modules[version][flavour] + b"\0" * 40 + b"~Module signature appended~\n"
            apt.add(
                f"linux-modules-nvidia{s}{tail}-{kernel}",
                v,
                {f"lib/modules/{kernel}/kernel/nvidia{s}{tail}/nvidia.ko": File(signed)},
            )
            apt.add(
                f"nvidia-headless-no-dkms{s}{tail}",
                v,
                {},
                Depends=f"libnvidia-compute{s} {same}, nvidia-compute-utils{s} {same}, nvidia-kernel-common{s} {same}",
                **only["nvidia-headless"],
            )
            apt.add(
                f"nvidia-headless{s}{tail}",
                v,
                {},
                Depends=f"nvidia-headless-no-dkms{s}{tail} {same}, nvidia-dkms{s}{tail} {same}",
            )
            apt.add(
                f"nvidia-driver{s}{tail}",
                v,
                {},
                Depends=f"nvidia-dkms{s}{tail} {same} | nvidia-modules, libnvidia-compute{s} {same}, nvidia-utils{s} {same}, nvidia-compute-utils{s} {same}",
            )
    deb.index(folder, [stanza.replace("Filename: ./", "Filename: pool/") for stanza in apt.stanzas])
    sign.apt_release(out / "dists/jammy", "Ubuntu", "jammy", "restricted")


class Signer:
    """The key of all these repositories."""

    def __init__(self) -> None:
        home = WORK / "gnupg"
        home.mkdir(mode=0o700, parents=True)
        os.environ["GNUPGHOME"] = str(home)
        self._gpg(
            "--quick-generate-key", "gpufleet.llm test fleet (NVIDIA-shaped packages)", "rsa3072", "sign", "never"
        )
        listing = self._gpg("--with-colons", "--list-keys")
        self.fingerprint = next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr:"))
        self.armoured = self._gpg("--armor", "--export", self.fingerprint)

    @staticmethod
    def _gpg(*argv: str) -> str:
        return run("gpg", "--batch", "--yes", "--pinentry-mode", "loopback", "--passphrase", "", *argv)

    def apt_release(self, folder: Path, origin: str, suite: str = "", component: str = "") -> None:
        """Release, Release.gpg and InRelease of a folder with Packages."""
        fields = {"Origin": origin, "Label": "NVIDIA CUDA" if origin == "NVIDIA" else origin, "Architectures": "amd64"}
        fields |= {"Suite": suite, "Codename": suite, "Components": component} if suite else {}
        options = [part for key, value in fields.items() for part in ("-o", f"APT::FTPArchive::Release::{key}={value}")]
        for name in ("Release", "InRelease", "Release.gpg"):
            (folder / name).unlink(missing_ok=True)
        text = run("apt-ftparchive", *options, "release", ".", cwd=folder)
        (folder / "Release").write_text(text)
        self._gpg("--armor", "--detach-sign", "--output", str(folder / "Release.gpg"), str(folder / "Release"))
        self._gpg("--clearsign", "--output", str(folder / "InRelease"), str(folder / "Release"))

    def rpms(self, packages: list[Path]) -> None:
        """Sign rpms in place."""
        defines = {"_gpg_name": self.fingerprint, "__gpg": "/usr/bin/gpg", "_gpg_sign_cmd_extra_args": "--batch --yes"}
        flags = [flag for key, value in defines.items() for flag in ("--define", f"{key} {value}")]
        run("rpmsign", *flags, "--addsign", *map(str, packages))


def main(out: Path) -> None:
    """Write everything below out."""
    WORK.mkdir(parents=True)
    sign = Signer()
    here = Path(__file__).resolve().parent
    library = nvml(here.parent.parent / "nvml_stand_in" / "nvml_stand_in.c")
    modules = {
        version: {flavour: kernel_module(version, flavour) for flavour in ("open", "proprietary")}
        for version in (*VERSIONS, *runfiles.VERSIONS)
    }
    repos = out / "compute/cuda/repos"
    for name in ("ubuntu2204", "debian12", "debian13"):
        folder = repos / name / "x86_64"
        apt = Apt(folder, "1ubuntu1" if name.startswith("ubuntu") else "1")
        for version in VERSIONS:
            (ubuntu_driver if name.startswith("ubuntu") else debian_driver)(apt, version, library, modules[version])
            pinning(apt, version, f"{version}-1", branch=False)
        for branch in sorted({version.partition(".")[0] for version in VERSIONS}):
            pinning(apt, f"{branch}.x", f"{branch}-1", branch=True)
        cuda_debs(
            apt, ("12.4.0", "12.4.1", "13.0.2") if name == "debian13" else ("12.0.1", "12.4.0", "12.4.1", "13.0.2")
        )
        deb.index(folder, apt.stanzas)
        sign.apt_release(folder, "NVIDIA")
        (folder / "3bf863cc.pub").write_text(sign.armoured)
    ubuntu_archive(out / "distribution/ubuntu", library, modules, sign)
    packages_rpm.build(out, WORK / "rpm", VERSIONS, library, modules, sign)
    runfiles.build(out, WORK / "run", library, modules)
    index = {
        "fingerprint": sign.fingerprint,
        "runfiles": {
            str(path.relative_to(out)): {
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "size": path.stat().st_size,
            }
            for path in sorted(out.rglob("*.run"))
        },
        "versions": list(VERSIONS),
    }
    (out / "index.json").write_text(json.dumps(index, indent=1) + "\n")
    shutil.rmtree(WORK)
    print(json.dumps(index))


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    main(Path(sys.argv[1]))
