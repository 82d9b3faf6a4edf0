# Copyright: Contributors to the gpufleet.llm project
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rpm repositories (NVIDIA's with module streams, EPEL's and the distribution's part) and the pacman repositories."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import content
import deb
from content import filled
from deb import File, Tree, script

EPOCH = 3
LIBDIR = "usr/lib64"
DAEMON = (
    'if [ "$1" = 0 ] && [ -d /run/systemd/system ]; then systemctl disable --now --quiet @UNIT@ || :; fi',
    "if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi",
)


class Signs(Protocol):
    """What signs rpms."""

    armoured: str

    def rpms(self, packages: list[Path]) -> None:
        """Sign in place."""


def run(*argv: str, cwd: Path | None = None) -> str:
    """Run argv; its output, or an exception with what it said."""
    done = subprocess.run(argv, cwd=cwd, capture_output=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"rc {done.returncode} from {' '.join(argv)}\n{(done.stdout + done.stderr).decode()[-3000:]}")
    return done.stdout.decode()


@dataclass
class Rpm:
    """A package to be: requires and so on are lists in rpm's own words."""

    name: str
    tree: Tree = field(default_factory=dict)
    requires: list[str] = field(default_factory=list)
    provides: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    scripts: dict[str, str] = field(default_factory=dict)
    noarch: bool = False


def build_rpms(target: Path, work: Path, version: str, release: str, epoch: int, packages: list[Rpm]) -> list[Path]:
    """One rpmbuild for all packages of a version."""
    root = work / "root"
    shutil.rmtree(work, ignore_errors=True)
    lines: list[str] = []
    for number, package in enumerate(packages):
        if number == 0:
            lines += [f"Name: {package.name}\nVersion: {version}\nRelease: {release}\nLicense: as upstream"]
            lines += [f"Epoch: {epoch}"] if epoch else []
        else:
            lines += [f"%package -n {package.name}"]
            lines += ["BuildArch: noarch"] if package.noarch else []
        lines += [f"Summary: {package.name}, a fixture", "AutoReqProv: no"]
        for word in ("requires", "provides", "conflicts"):
            lines += [f"{word.title()}: {value}" for value in getattr(package, word)]
        lines += [f"%description -n {package.name}", "A fixture in the shape of the real package, without its code."]
        for kind, text in package.scripts.items():
            lines += [f"%{kind} -n {package.name}", text]
        lines += [f"%files -n {package.name}"]
        for path, file in sorted(package.tree.items()):
            place = root / path
            place.parent.mkdir(parents=True, exist_ok=True)
            if file.link:
                place.unlink(missing_ok=True)
                place.symlink_to(file.link)
            else:
                place.write_bytes(file.data)
                place.chmod(file.mode)
            lines.append(f'{"%config(noreplace) " if path.startswith("etc/") else ""}"/{path}"')
    root.mkdir(parents=True, exist_ok=True)
    spec = work / "fixture.spec"
    spec.write_text("\n".join(lines) + "\n")
    target.mkdir(parents=True, exist_ok=True)
    before = set(target.iterdir())
    run(
        "rpmbuild", "-bb", "--quiet", "--target", "x86_64", "--buildroot", str(root), "--noclean",
        "--define", f"_rpmdir {target}", "--define", f"_topdir {work}/top", "--define", "__os_install_post %{nil}",
        "--define", "_rpmfilename %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm", "--define", "_build_id_links none",
        "--define", "debug_package %{nil}", "--define", "_smp_build_nthreads 1", "--define", "_binary_payload w3.gzdio", str(spec),
    )  # fmt: skip
    return sorted(set(target.iterdir()) - before)


def driver(version: str, library: bytes, modules: dict[str, bytes]) -> list[Rpm]:
    """The packages of one driver version."""
    same = f"= {EPOCH}:{version}"
    libraries = content.libraries(version, LIBDIR, library)
    ldconfig = {"post": "/sbin/ldconfig", "postun": "/sbin/ldconfig"}

    def daemon(name: str, unit: str, tree: Tree) -> Rpm:
        stop, reload = (text.replace("@UNIT@", unit) for text in DAEMON)
        return Rpm(name, tree, scripts={"post": f"{reload}; :", "preun": stop + "; :", "postun": f"{reload}; :"})

    def kmod(name: str, flavour: str) -> Rpm:
        add = filled(content.DKMS_ADD, version, "extra")
        remove = filled(content.DKMS_REMOVE, version, "extra") + "\n:"
        return Rpm(
            name, content.module_source(version, modules[flavour]), ["dkms", f"nvidia-kmod-common {same}"],
            [f"nvidia-kmod {same}"], ["kmod-nvidia-latest-dkms" if flavour == "open" else "kmod-nvidia-open-dkms"],
            {"post": f"(\nset -e\n{add}\n)", "preun": remove},
        )  # fmt: skip

    persistenced = daemon("nvidia-persistenced", "nvidia-persistenced.service", content.persistenced(version))
    fabricmanager = daemon("nvidia-fabricmanager", "nvidia-fabricmanager.service", content.fabricmanager(version))
    return [
        Rpm("libnvidia-ml", {path: file for path, file in libraries.items() if "-ml" in path}, scripts=dict(ldconfig)),
        Rpm(
            "nvidia-driver-cuda-libs", {path: file for path, file in libraries.items() if "libcuda" in path},
            [f"libnvidia-ml {same}"], scripts=dict(ldconfig),
        ),
        Rpm(
            "nvidia-driver-cuda", {path: file for path, file in content.smi(version).items() if "smi" in path},
            [f"nvidia-driver-cuda-libs {same}", f"nvidia-kmod {same}", f"nvidia-persistenced {same}", f"nvidia-modprobe {same}"],
        ),
        Rpm("nvidia-modprobe", {path: file for path, file in content.smi(version).items() if "modprobe" in path}),
        Rpm("nvidia-kmod-common", content.firmware(version, "usr/lib/firmware"), noarch=True),
        kmod("kmod-nvidia-open-dkms", "open"),
        kmod("kmod-nvidia-latest-dkms", "proprietary"),
        persistenced,
        fabricmanager,
        Rpm("nvidia-driver-libs", {f"{LIBDIR}/libGLX_nvidia.so.{version}": File("fixture\n")}),
        Rpm("nvidia-driver", {}, [f"nvidia-driver-libs {same}", f"nvidia-kmod {same}"]),
        Rpm("nvidia-open", {}, [f"nvidia-driver {same}", f"nvidia-driver-cuda {same}", f"kmod-nvidia-open-dkms {same}"], noarch=True),
        Rpm("cuda-drivers", {}, [f"nvidia-driver {same}", f"nvidia-driver-cuda {same}", f"kmod-nvidia-latest-dkms {same}"]),
    ]  # fmt: skip


def streams(packages: dict[str, list[Path]]) -> str:
    """modules.yaml: per branch BRANCH-open and BRANCH-dkms, and open-dkms and latest-dkms of the newest."""
    documents = ["---\ndocument: modulemd-defaults\nversion: 1\ndata:\n  module: nvidia-driver\n  profiles: {}\n...\n"]
    branches = sorted({version.partition(".")[0] for version in packages})
    wanted = {f"{branch}-{kind}": [branch] for branch in branches for kind in ("open", "dkms")}
    # "open-dkms" and "latest-dkms" go on to the next branch: they hold the packages of all branches.
    wanted |= {"open-dkms": branches, "latest-dkms": branches}
    for stream, of in sorted(wanted.items()):
        unwanted = "kmod-nvidia-latest-dkms" if "open" in stream else "kmod-nvidia-open-dkms"
        dropped = (unwanted, "cuda-drivers" if "open" in stream else "nvidia-open")
        artifacts = []
        for version, paths in sorted(packages.items()):
            if version.partition(".")[0] not in of:
                continue
            for path in paths:
                found = re.fullmatch(r"(.+)-([^-]+)-([^-]+)\.(x86_64|noarch)\.rpm", path.name)
                if found and found[1] not in dropped:
                    artifacts.append(f"{found[1]}-{EPOCH}:{found[2]}-{found[3]}.{found[4]}")
        kmod = "kmod-nvidia-open-dkms" if "open" in stream else "kmod-nvidia-latest-dkms"
        documents.append(
            "---\ndocument: modulemd\nversion: 2\ndata:\n  name: nvidia-driver\n"
            f"  stream: {stream!r}\n  version: 20251120000000\n  context: f1x7u5e0\n  arch: x86_64\n"
            f"  summary: Nvidia driver for {stream} branch\n  description: A fixture\n"
            "  license:\n    module: [MIT]\n  dependencies: []\n  profiles:\n"
            f"    default:\n      rpms: [{kmod}, nvidia-driver, nvidia-driver-cuda]\n"
            "    fm:\n      rpms: [nvidia-fabricmanager]\n  artifacts:\n    rpms:\n"
            + "".join(f"    - {artifact}\n" for artifact in sorted(artifacts))
            + "...\n"
        )
    return "".join(documents)


# --- CUDA ------------------------------------------------------------------------------------------------------------


def cuda(target: Path, work: Path) -> list[Path]:
    """Toolkits side by side, and the metapackages that drag a driver."""
    made: list[Path] = []
    place = "/var/lib/alternatives"  # as on RHEL; the program is that of the Debian root
    tool = f"update-alternatives --admindir {place}"
    for release in ("12.0.1", "12.4.0", "12.4.1", "13.0.2"):
        major, minor, _patch = release.split(".")
        dash, prefix = f"{major}-{minor}", f"usr/local/cuda-{major}.{minor}"
        tree = content.toolkit(release)
        nvcc = {path: file for path, file in tree.items() if path.startswith(f"{prefix}/bin/")}
        rest = {path: file for path, file in tree.items() if path not in nvcc}
        alternatives = (
            f"mkdir -p {place}\n{tool} --install /usr/local/cuda cuda /{prefix} {major}{minor}\n"
            f"{tool} --install /usr/local/cuda-{major} cuda-{major} /{prefix} {major}{minor}"
        )
        remove = f"{tool} --remove cuda /{prefix}\n{tool} --remove cuda-{major} /{prefix}\n:"
        # As with NVIDIA, each part has a version of its own, and the metapackages know them only as lower bounds.
        part = content.TOOLKITS[release][0]
        made += build_rpms(target, work, part, "1", 0, [
            Rpm(f"cuda-nvcc-{dash}", nvcc, [f"cuda-cudart-devel-{dash}"]),
            Rpm(f"cuda-cudart-devel-{dash}", rest, [f"cuda-toolkit-{dash}-config-common"]),
        ])  # fmt: skip
        made += build_rpms(target, work, release, "1", 0, [
            Rpm(f"cuda-toolkit-{dash}-config-common", {}, scripts={"posttrans": alternatives, "preun": f'if [ "$1" = 0 ]; then\n{remove}\nfi'}, noarch=True),
            Rpm(f"cuda-compiler-{dash}", {}, [f"cuda-nvcc-{dash} >= {part}"]),
            Rpm(f"cuda-libraries-devel-{dash}", {}, [f"cuda-cudart-devel-{dash} >= {part}"]),
            Rpm(f"cuda-toolkit-{dash}", {}, [f"cuda-compiler-{dash} >= {release}", f"cuda-libraries-devel-{dash} >= {release}"]),
            Rpm(f"cuda-runtime-{dash}", {}, ["cuda-drivers"]),
            Rpm(f"cuda-{dash}", {}, [f"cuda-runtime-{dash}", f"cuda-toolkit-{dash}"], noarch=True),
            Rpm("cuda", {}, [f"cuda-{dash}"]),
            Rpm("cuda-toolkit", {}, [f"cuda-toolkit-{dash}"]),
        ])  # fmt: skip
    for version in ("9.1.1.17", "9.5.1.17"):
        libraries = {f"{LIBDIR}/libcudnn.so.{version[:5]}": File("fixture\n")}
        made += build_rpms(target, work, version, "1", 0, [
            Rpm("libcudnn9-cuda-12", libraries | {f"{LIBDIR}/libcudnn.so.9": deb.link(f"libcudnn.so.{version[:5]}")}),
            Rpm("libcudnn9-devel-cuda-12", {}, [f"libcudnn9-cuda-12 = {version}"]),
            Rpm("cudnn9-cuda-12", {}, [f"libcudnn9-devel-cuda-12 = {version}"]),
        ])  # fmt: skip
    return made


# --- what a distribution has -----------------------------------------------------------------------------------------

DKMS = r"""#!/bin/sh
# FIXTURE: dkms. Lists what is registered; the fixture packages register themselves.
[ "$1 $2" != "install --force" ] || set -- autoinstall -k "$8"
if [ "$1" = autoinstall ]; then
    kernel=${3:-$(uname -r)}
    for folder in /var/lib/dkms/nvidia/*/; do
        [ -L "${folder%/}" ] && continue
        source=/usr/src/nvidia-$(basename "$folder")
        [ -e "$source/nvidia.ko" ] || continue
        if [ -e /etc/gpufleet-fixture/dkms-fails ]; then
            mkdir -p "$folder/build"
            echo "fatal error: linux/vmalloc.h: No such file or directory" > "$folder/build/make.log"
            exit 10
        fi
        target=/lib/modules/$kernel/@FOLDER@
        mkdir -p "$folder/$kernel/x86_64/module" "$target"
        cp "$source"/*.ko "$folder/$kernel/x86_64/module/"
        cp "$source"/*.ko "$target/"
        rm -rf "$folder/build"
        ln -sfn "$(basename "$folder")/$kernel/x86_64" "/var/lib/dkms/nvidia/kernel-$kernel-x86_64"
    done
    exit 0
fi
if [ "$*" = "add -m nvidia -v $5" ] && [ -e "/usr/src/nvidia-$5/dkms.conf" ]; then
    mkdir -p "/var/lib/dkms/nvidia/$5"
    exit 0
fi
if [ "$*" = "remove -m nvidia -v $5 --all" ] && [ -d "/var/lib/dkms/nvidia/$5" ]; then
    for link in /var/lib/dkms/nvidia/kernel-*; do
        case $(readlink "$link") in "$5"/*) ;; *) continue ;; esac
        kernel=$(readlink "$link" | cut -d/ -f2)
        rm -f "$link" "/lib/modules/$kernel/@FOLDER@"/nvidia*.ko "/lib/modules/$kernel/updates/dkms"/nvidia*.ko
    done
    rm -rf "/var/lib/dkms/nvidia/$5"
    rmdir /var/lib/dkms/nvidia 2>/dev/null
    exit 0
fi
[ "$1" = status ] || { echo "dkms fixture: only status, add, install --force, remove and autoinstall" >&2; exit 1; }
for folder in /var/lib/dkms/*/*/; do
    [ -L "${folder%/}" ] && continue
    [ -d "$folder" ] || continue
    version=$(basename "$folder") module=$(basename "$(dirname "$folder")")
    found=
    for built in "$folder"*/x86_64/module; do
        [ -d "$built" ] || continue
        found=1
        echo "$module/$version, $(basename "$(dirname "$(dirname "$built")")"), x86_64: installed"
    done
    [ -n "$found" ] || echo "$module/$version: added"
done
"""
COMPILER = "#!/bin/sh\n# FIXTURE: a compiler that is there and compiles nothing.\nexit 0\n"


def build_tools(kernel_folder: str, dkms_folder: str) -> dict[str, dict[str, File]]:
    """dkms, gcc, make and the running kernel's headers, each as a tree."""
    kernel = os.uname().release
    headers = {
        f"{kernel_folder}/include/generated/utsrelease.h": File(f'#define UTS_RELEASE "{kernel}"\n'),
        f"{kernel_folder}/Makefile": File("# FIXTURE\n"),
        f"usr/lib/modules/{kernel}/build": deb.link(f"/{kernel_folder}"),
    }
    return {
        "dkms": {"usr/sbin/dkms": script(filled(DKMS, "", dkms_folder))},
        "gcc": {"usr/bin/gcc": script(COMPILER), "usr/bin/cc": deb.link("gcc")},
        "make": {"usr/bin/make": script(COMPILER)},
        "headers": headers,
    }


def debian(*names: str) -> Path:
    """Debian's packages of these names, unpacked into one folder."""
    work = Path("/tmp/debian-packages") / names[0]
    work.mkdir(parents=True)
    run("apt-get", "update", "-q")
    run("apt-get", "download", "-q", *names, cwd=work)
    for package in work.glob("*.deb"):
        run("dpkg-deb", "--extract", str(package), str(work / "root"))
    return work


def kmod() -> dict[str, File]:
    """modprobe, modinfo, depmod and lsmod: Debian's own."""
    work = debian("kmod") / "root"
    tree: dict[str, File] = {}
    for path in sorted(work.rglob("*")):
        inside = str(path.relative_to(work))
        # the root of every image has /bin, /sbin and /lib as links into /usr
        place = inside if inside.startswith(("usr/", "etc/")) else f"usr/{inside}"
        if "/share/" in place or place.startswith("etc/") or not (path.is_symlink() or path.is_file()):
            continue
        tree[place] = (
            deb.link(os.readlink(path)) if path.is_symlink() else File(path.read_bytes(), path.stat().st_mode & 0o777)
        )
    return tree


EPEL_REPO = """[epel]
name=Extra Packages for Enterprise Linux 9 (fixture)
baseurl=https://depot.gpufleet.test/nvidia/distribution/epel9/$basearch/
enabled=1
gpgcheck=0
"""


def versionlock() -> Tree:
    """dnf's real plug-in, from Debian's package."""
    work = debian("dnf-plugins-core")
    tree: dict[str, File] = {}
    for path in sorted((work / "root").rglob("*")):
        inside = str(path.relative_to(work / "root"))
        if path.is_file() and not path.is_symlink() and ("versionlock" in path.name or "/dnfpluginscore/" in inside):
            if "/share/" not in inside:
                tree[inside] = File(path.read_bytes())
    return tree


def distribution_rhel(out: Path, work: Path) -> None:
    """EPEL's dkms, and from the distribution compiler, headers and the versionlock plug-in."""
    kernel = os.uname().release
    version, _dash, release = kernel.partition("-")
    release = release.replace("-", "_") or "1"
    tools = build_tools(f"usr/src/kernels/{kernel}", "extra")
    epel, base = out / "distribution/epel9/x86_64", out / "distribution/rhel9/x86_64"
    build_rpms(epel, work, "3.1.8", "1.el9", 0, [Rpm("dkms", tools["dkms"], ["gcc", "make"], noarch=True)])
    build_rpms(base, work, "11.5.0", "1.el9", 0, [Rpm("gcc", tools["gcc"]), Rpm("make", tools["make"])])
    build_rpms(base, work, version, release, 0, [
        Rpm("kernel-devel", tools["headers"], provides=[f"kernel-devel-{kernel}"]),
        Rpm("kernel-devel-matched", {}, ["kernel-devel"]),
        Rpm("kmod", kmod()),
        Rpm("epel-release", {"etc/yum.repos.d/epel.repo": File(EPEL_REPO)}, noarch=True),
        Rpm("kernel-headers", {}),
    ])  # fmt: skip
    build_rpms(base, work, "4.3.0", "16.el9", 0, [Rpm("python3-dnf-plugin-versionlock", versionlock(), noarch=True)])
    for folder in (epel, base):
        run("createrepo_c", "--quiet", str(folder))


# --- pacman ----------------------------------------------------------------------------------------------------------


def pacman(target: Path, work: Path, name: str, version: str, tree: Tree, install: str = "", **more: list[str]) -> Path:
    """A pacman package. more: depend, provides, conflict."""
    root = work / f"{name}-{version}"
    root.mkdir(parents=True)
    for path, file in tree.items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if file.link:
            place.symlink_to(file.link)
        else:
            place.write_bytes(file.data)
            place.chmod(file.mode)
    info = f"pkgname = {name}\npkgbase = {name}\npkgver = {version}\npkgdesc = {name}, a fixture\n"
    info += f"url = https://gpufleet.test\nbuilddate = {deb.DATE}\npackager = gpufleet fixture\nsize = 1000\narch = x86_64\n"
    info += "".join(f"{key} = {value}\n" for key, values in more.items() for value in values)
    (root / ".PKGINFO").write_text(info)
    if install:
        (root / ".INSTALL").write_text(install)
    target.mkdir(parents=True, exist_ok=True)
    package = target / f"{name}-{version}-x86_64.pkg.tar.zst"
    run(
        "tar",
        "--zstd",
        "--owner=0",
        "--group=0",
        "--sort=name",
        "-cf",
        str(package),
        *sorted(os.listdir(root)),
        cwd=root,
    )
    return package


def arch_driver(
    target: Path, work: Path, version: str, library: bytes, modules: dict[str, bytes], xx: str = ""
) -> list[Path]:
    """Driver packages of Arch: nvidia-open-dkms, or with xx ("-580xx") those of the user repository, proprietary."""
    v = f"{version}-1"
    flavour = "proprietary" if xx else "open"
    add = "(\nset -e\n" + filled(content.DKMS_ADD, version) + ")\n"
    remove = filled(content.DKMS_REMOVE, version)
    # On Arch a hook of dkms takes the old version away before the new one comes; here the new package's script does, told which.
    replaced = filled(content.DKMS_REMOVE, "${2%-*}")
    install = (
        f"post_install() {{\n{add}}}\npost_upgrade() {{\n{add}}}\npre_upgrade() {{\n{replaced}:\n}}\n"
        f"pre_remove() {{\n{remove}:\n}}\n"
    )
    smi = content.smi(version) | content.persistenced(version)
    utils = content.libraries(version, "usr/lib", library) | smi | content.firmware(version, "usr/lib/firmware")
    blacklist = File("blacklist nouveau\n")
    utils[f"usr/lib/modprobe.d/nvidia-utils{xx}.conf"] = blacklist
    reload = "ldconfig\nsystemctl daemon-reload\n"
    hooks = f"post_install() {{\n{reload}}}\npost_upgrade() {{\n{reload}}}\npost_remove() {{\n{reload}}}\n"
    dkms = f"nvidia{xx}-dkms" if xx else "nvidia-open-dkms"
    made = [
        pacman(target, work, f"nvidia{xx}-utils", v, utils, hooks, **({"provides": ["nvidia-utils"], "conflict": ["nvidia-utils"]} if xx else {})),
        pacman(
            target, work, dkms, v, content.module_source(version, modules[flavour]), install,
            depend=["dkms", f"nvidia{xx}-utils={v.rpartition('-')[0]}"], provides=["NVIDIA-MODULE"], conflict=["NVIDIA-MODULE"],
        ),
    ]  # fmt: skip
    if not xx:
        module = {f"usr/lib/modules/{os.uname().release}/extramodules/nvidia.ko": File(modules[flavour])}
        made.append(
            pacman(
                target,
                work,
                "nvidia-open",
                v,
                module,
                depend=["linux", f"nvidia-utils={version}"],
                provides=["NVIDIA-MODULE"],
                conflict=["NVIDIA-MODULE"],
            )
        )
    return made


def arch(out: Path, work: Path, library: bytes, modules: dict[str, dict[str, bytes]]) -> None:
    """`distribution/arch` is the newest state of Arch's `extra`, `distribution/arch-before` an older one."""
    shutil.rmtree("/tmp/debian-packages/kmod", ignore_errors=True)
    modules_tools = kmod()
    for state, versions, toolkit in (
        ("arch", ("590.48.01", "580.126.20"), "13.0.2"),
        ("arch-before", ("590.44.01", "580.105.08"), "12.4.1"),
    ):
        target, own = out / "distribution" / state / "x86_64", work / state
        tools = build_tools(f"usr/lib/modules/{os.uname().release}/build", "updates/dkms")
        headers = {path: file for path, file in tools["headers"].items() if not file.link}
        kernel = os.uname().release.replace("-", ".") + "-1"
        made = [
            pacman(target, own, "dkms", "3.3.0-1", {"usr/bin/dkms": tools["dkms"]["usr/sbin/dkms"]}, depend=["gcc", "make"]),
            pacman(target, own, "gcc", "15.2.1-1", tools["gcc"]),
            pacman(target, own, "make", "4.4.1-1", tools["make"]),
            pacman(target, own, "linux-headers", kernel, headers),
            pacman(target, own, "kmod", "34.2-1", modules_tools),
            pacman(target, own, "cuda", f"{toolkit}-1", content.toolkit(toolkit, "opt/cuda"), depend=["nvidia-utils"]),
            pacman(target, own, "cudnn", "9.5.1.17-1", {"usr/lib/libcudnn.so.9.5.1": File("fixture\n")}, depend=["cuda"]),
            *arch_driver(target, own, versions[0], library, modules[versions[0]]),
            *arch_driver(target, own, versions[1], library, modules[versions[1]], "-580xx"),
        ]  # fmt: skip
        run("repo-add", "--quiet", str(target / "extra.db.tar.gz"), *map(str, made))
        for link in target.glob("extra.*"):  # repo-add's links do not survive every way of serving files
            if link.is_symlink():
                real = link.resolve()
                link.unlink()
                shutil.copyfile(real, link)


def build(
    out: Path, work: Path, versions: tuple[str, ...], library: bytes, modules: dict[str, dict[str, bytes]], sign: Signs
) -> None:
    """Write the rpm and pacman repositories below out."""
    folder = out / "compute/cuda/repos/rhel9/x86_64"
    packages: dict[str, list[Path]] = {}
    for v in versions:
        # Both flavours have the same files, so they are built apart.
        parts = driver(v, library, modules[v])
        other = [part for part in parts if part.name == "kmod-nvidia-latest-dkms"]
        packages[v] = build_rpms(folder, work / "v", v, "1.el9", EPOCH, [part for part in parts if part not in other])
        packages[v] += build_rpms(folder, work / "v", v, "1.el9", EPOCH, other)
    rest = cuda(folder, work / "cuda")
    sign.rpms([path for paths in packages.values() for path in paths] + rest)
    flat = out / "compute/cuda/repos/rhel10/x86_64"
    shutil.copytree(folder, flat)
    for place in (folder, flat):
        run("createrepo_c", "--quiet", str(place))
        (place / "D42D0685.pub").write_text(sign.armoured)
    modules_yaml = work / "modules.yaml"
    modules_yaml.write_text(streams(packages))
    run("modifyrepo_c", "--mdtype=modules", "--no-compress", str(modules_yaml), str(folder / "repodata"))
    distribution_rhel(out, work / "distribution")
    arch(out, work / "arch", library, modules)
