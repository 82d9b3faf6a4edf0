#!/usr/bin/env python3
# Copyright: Contributors to the gpufleet.llm project
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the depot's package repositories: runs in a container of the depot's image, as root, with a Debian mirror.

`build_packages.py OUTDIR` writes `apt/`, `rpm/`, `pacman/` and `keys/`. The programs are Debian's own builds of git,
git-lfs, nginx and openssl (every node image has a Debian root), wrapped anew:

* `apt/nginx/{debian,ubuntu}`: nginx in the shape of nginx.org's repository. There the version in the program itself is
  replaced, so that `nginx -v` says what the package says; the code is that of Debian's nginx.
* `rpm/base/9/x86_64` and `pacman/base/x86_64`: what rhel9-like and arch-like call their distribution's packages.
* `rpm/nginx/9/x86_64`: the counterpart of nginx.org's repository, signed.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NGINX_VERSIONS = ("1.24.0", "1.28.0", "1.30.4")
APT_SUITES = {"debian": ("bookworm", "trixie"), "ubuntu": ("jammy",)}
# From Debian, for the repackaged git, git-lfs, nginx and openssl.
DEBS = ("git", "git-man", "git-lfs", "nginx", "nginx-common", "liberror-perl", "openssl")
KEY_NAME = "gpufleet.llm test fleet (nginx packages)"
DATE = 1_700_000_000


def run(*argv: str, stdin: bytes | None = None, cwd: Path | None = None) -> str:
    """Run argv; its output, or an exception with what it said."""
    done = subprocess.run(argv, input=stdin, capture_output=True, check=False, cwd=cwd)
    if done.returncode != 0:
        raise SystemExit(f"rc {done.returncode} from {' '.join(argv)}\n{(done.stdout + done.stderr).decode()[-3000:]}")
    return done.stdout.decode()


def deb_version(deb: Path) -> str:
    """The upstream version of a .deb."""
    version = run("dpkg-deb", "--field", str(deb), "Version").strip()
    return re.sub(r"^\d+:|-[^-]*$", "", version)


def fetch(work: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Unpacked roots and upstream versions of DEBS, by name."""
    work.mkdir(parents=True)
    run("apt-get", "update", "-q")
    run("apt-get", "download", "-q", *DEBS, cwd=work)
    roots, versions = {}, {}
    for name in DEBS:
        deb = next(work.glob(f"{name}_*.deb"))
        roots[name] = work / name
        run("dpkg-deb", "--extract", str(deb), str(roots[name]))
        versions[name] = deb_version(deb)
    return roots, versions


def merge(target: Path, *roots: Path) -> Path:
    """One tree out of several, without documentation."""
    for root in roots:
        shutil.copytree(root, target, symlinks=True, dirs_exist_ok=True)
    for folder in ("usr/share/doc", "usr/share/man", "usr/share/lintian", "usr/share/bug"):
        shutil.rmtree(target / folder, ignore_errors=True)
    return target


def nginx_tree(target: Path, roots: dict[str, Path], real: str, version: str, flavour: str) -> Path:
    """A tree of nginx in the shape of nginx.org's packages, or of RHEL's or Arch's own."""
    program = (roots["nginx"] / "usr/sbin/nginx").read_bytes()
    if version != real:
        if len(version) != len(real):
            raise SystemExit(f"{version} does not fit into the place of {real}")
        program = program.replace(f"nginx/{real}".encode(), f"nginx/{version}".encode())
    binary = target / ("usr/bin/nginx" if flavour == "arch" else "usr/sbin/nginx")
    binary.parent.mkdir(parents=True)
    binary.write_bytes(program)
    binary.chmod(0o755)
    if flavour == "arch":
        (target / "usr/sbin").mkdir()
        (target / "usr/sbin/nginx").symlink_to("../bin/nginx")
    etc = target / "etc/nginx"
    etc.mkdir(parents=True)
    for name in ("mime.types", "fastcgi_params", "scgi_params", "uwsgi_params"):
        shutil.copyfile(roots["nginx-common"] / "etc/nginx" / name, etc / name)
    user = {"arch": "http"}.get(flavour, "nginx")
    text = (HERE / "nginx.conf").read_text(encoding="utf-8").replace("@USER@", user)
    server = (HERE / "default.conf").read_text(encoding="utf-8")
    if flavour == "official":
        (etc / "conf.d").mkdir()
        (etc / "conf.d/default.conf").write_text(server)
        text = text.replace("@SERVER@", "include /etc/nginx/conf.d/*.conf;")
    elif flavour == "rhel":
        (etc / "conf.d").mkdir()
        (etc / "default.d").mkdir()
        text = text.replace("@SERVER@", "include /etc/nginx/conf.d/*.conf;\n\n" + server)
    else:
        text = text.replace("@SERVER@", server)
    (etc / "nginx.conf").write_text(text)
    unit = target / "usr/lib/systemd/system/nginx.service"
    unit.parent.mkdir(parents=True)
    path = "/" + str(binary.relative_to(target))
    unit.write_text((HERE / "nginx.service").read_text(encoding="utf-8").replace("@NGINX@", path))
    page = target / "usr/share/nginx/html/index.html"
    page.parent.mkdir(parents=True)
    page.write_text("<!DOCTYPE html><html><head><title>Welcome to nginx!</title></head><body>Welcome</body></html>\n")
    for folder in ("var/log/nginx", "var/cache/nginx", "var/lib/nginx"):
        (target / folder).mkdir(parents=True)
    return target


ADD_USER = "id {user} >/dev/null 2>&1 || useradd --system --home-dir /var/cache/nginx --shell /usr/sbin/nologin {user}"


# --- deb -------------------------------------------------------------------------------------------------------------


def nginx_deb(pool: Path, work: Path, roots: dict[str, Path], real: str, version: str, suite: str) -> None:
    """nginx_<version>-1~<suite>_amd64.deb, as nginx.org's: one package, conf.d/default.conf, its own user."""
    tree = nginx_tree(work / f"deb-{version}-{suite}", roots, real, version, "official")
    control = tree / "DEBIAN"
    control.mkdir()
    conffiles = [f"/{path.relative_to(tree)}" for path in sorted((tree / "etc").rglob("*")) if path.is_file()]
    (control / "conffiles").write_text("".join(f"{path}\n" for path in conffiles))
    (control / "control").write_text(
        f"Package: nginx\nVersion: {version}-1~{suite}\nArchitecture: amd64\nSection: httpd\nPriority: optional\n"
        "Maintainer: gpufleet fixture <fixture@gpufleet.test>\n"
        "Depends: libc6, libcrypt1, libpcre2-8-0, libssl3 (>= 3.0.0), zlib1g, passwd\n"
        f"Provides: httpd, nginx-r{version}\nConflicts: nginx-common, nginx-core\nReplaces: nginx-common, nginx-core\n"
        "Description: high performance web server\n"
        f" A fixture in the shape of nginx.org's package; the program is Debian's nginx {real}.\n"
    )
    scripts = {
        "postinst": (
            'if [ "$1" = configure ]; then\n' + ADD_USER.format(user="nginx") + "\n"
            "chown nginx:nginx /var/cache/nginx /var/lib/nginx\nif [ -d /run/systemd/system ]; then\n"
            "systemctl daemon-reload\nsystemctl is-enabled --quiet nginx.service || systemctl preset -q nginx.service\n"
            'if [ -n "${2:-}" ]; then systemctl try-restart nginx.service; fi\nfi\nfi\n'
        ),
        "prerm": 'if [ "$1" = remove ] && [ -d /run/systemd/system ]; then systemctl stop nginx.service; fi\n',
        "postrm": (
            'if [ "$1" = purge ]; then rm -rf /var/log/nginx /var/cache/nginx /etc/nginx/conf.d; fi\n'
            "if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi\n"
            'if [ "$1" != upgrade ] && [ ! -e /usr/lib/systemd/system/nginx.service ]; then\n'
            "rm -f /etc/systemd/system/multi-user.target.wants/nginx.service\nfi\n"
        ),
    }
    for name, text in scripts.items():
        (control / name).write_text("#!/bin/sh\nset -e\n" + text)
        (control / name).chmod(0o755)
    pool.mkdir(parents=True, exist_ok=True)
    target = pool / f"nginx_{version}-1~{suite}_amd64.deb"
    run("dpkg-deb", "--root-owner-group", "--build", str(tree), str(target))


def apt_repository(root: Path, suites: tuple[str, ...]) -> None:
    """Packages, Release, Release.gpg and InRelease of each suite; component nginx, as nginx.org has it."""
    for suite in suites:
        folder = root / "dists" / suite / "nginx" / "binary-amd64"
        folder.mkdir(parents=True)
        text = run("apt-ftparchive", "packages", "pool", cwd=root)
        stanzas = [stanza for stanza in text.strip().split("\n\n") if f"~{suite}\n" in stanza]
        packages = "\n\n".join(stanzas) + "\n"
        (folder / "Packages").write_text(packages)
        (folder / "Packages.gz").write_bytes(gzip.compress(packages.encode(), mtime=0))
        release = run(
            "apt-ftparchive", "-o", "APT::FTPArchive::Release::Origin=nginx", "-o",
            "APT::FTPArchive::Release::Label=nginx", "-o", f"APT::FTPArchive::Release::Codename={suite}", "-o",
            f"APT::FTPArchive::Release::Suite={suite}", "-o", "APT::FTPArchive::Release::Architectures=amd64", "-o",
            "APT::FTPArchive::Release::Components=nginx", "release", f"dists/{suite}", cwd=root,
        )  # fmt: skip
        place = root / "dists" / suite
        (place / "Release").write_text(release)
        gpg("--armor", "--detach-sign", "--output", str(place / "Release.gpg"), str(place / "Release"))
        gpg("--clearsign", "--output", str(place / "InRelease"), str(place / "Release"))


# --- rpm -------------------------------------------------------------------------------------------------------------


def rpm(target: Path, work: Path, tree: Path, name: str, version: str, release: str, **more: str) -> Path:
    """An rpm of a tree. more: summary, requires, provides, pre, post, preun, postun."""
    target.mkdir(parents=True, exist_ok=True)
    files = []
    for path in sorted(tree.rglob("*")):
        inside = f"/{path.relative_to(tree)}"
        if path.is_symlink() or path.is_file():
            config = "%config(noreplace) " if inside.startswith("/etc/") and path.suffix != ".service" else ""
            files.append(f'{config}"{inside}"')
        elif inside.startswith(
            ("/etc/nginx", "/var/log/nginx", "/var/cache/nginx", "/var/lib/nginx", "/usr/share/nginx")
        ):
            files.append(f'%dir "{inside}"')
    spec = work / f"{name}-{version}-{release}.spec"
    relations = "".join(f"{key.title()}: {more[key]}\n" for key in ("requires", "provides") if more.get(key))
    scripts = "".join(f"%{key}\n{more[key]}\n" for key in ("pre", "post", "preun", "postun") if more.get(key))
    spec.write_text(
        f"Name: {name}\nVersion: {version}\nRelease: {release}\nSummary: {more['summary']}\nLicense: as upstream\n"
        f"AutoReqProv: no\n{relations}\n%description\n{more['summary']}\n\n{scripts}\n%files\n"
        + "\n".join(files)
        + "\n"
    )
    root = work / f"buildroot-{name}-{version}-{release}"
    shutil.copytree(tree, root, symlinks=True)
    run(
        "rpmbuild", "-bb", "--quiet", "--target", "x86_64", "--buildroot", str(root), "--define", f"_rpmdir {target}",
        "--define", f"_topdir {work}/rpm", "--define", "__os_install_post %{nil}", "--define",
        "_rpmfilename %{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm", "--define", "_build_id_links none", "--define",
        "_binary_payload w3.gzdio", "--noclean", str(spec),
    )  # fmt: skip
    return target / f"{name}-{version}-{release}.x86_64.rpm"


NGINX_RPM = {
    "summary": "High performance web server",
    "provides": "webserver",
    "pre": ADD_USER.format(user="nginx"),
    "post": "if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi",
    "preun": 'if [ "$1" = 0 ] && [ -d /run/systemd/system ]; then systemctl disable --now -q nginx.service; fi',
    "postun": "if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi\n"
    'if [ "$1" -ge 1 ] && [ -d /run/systemd/system ]; then systemctl try-restart nginx.service; fi',
}

# The distribution's nginx is in a module whose stream is active (as it is by default in RHEL 8, and in RHEL 9 once somebody
# enables one): dnf then hides every other repository's nginx, unless that says module_hotfixes.
MODULE = """---
document: modulemd-defaults
version: 1
data:
  module: nginx
  stream: "{stream}"
  profiles:
    "{stream}": [common]
...
---
document: modulemd
version: 2
data:
  name: nginx
  stream: "{stream}"
  version: 20231114221320
  context: f1x7u5e0
  arch: x86_64
  summary: nginx webserver
  description: A fixture
  license:
    module: [MIT]
  dependencies: []
  profiles:
    common:
      rpms: [nginx]
  artifacts:
    rpms:
    - {package}
...
"""


# --- pacman ----------------------------------------------------------------------------------------------------------


def pacman_package(target: Path, tree: Path, name: str, version: str, description: str, install: str = "") -> None:
    """A pacman package of a tree, and its entry in the repository `base`."""
    target.mkdir(parents=True, exist_ok=True)
    size = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    backup = "".join(
        f"backup = {path.relative_to(tree)}\n" for path in sorted((tree / "etc").rglob("*")) if path.is_file()
    )
    (tree / ".PKGINFO").write_text(
        f"pkgname = {name}\npkgbase = {name}\npkgver = {version}\npkgdesc = {description}\nurl = https://gpufleet.test\n"
        f"builddate = {DATE}\npackager = gpufleet fixture\nsize = {size}\narch = x86_64\nlicense = custom\n{backup}"
    )
    dot = [".PKGINFO"]
    if install:
        (tree / ".INSTALL").write_text(install)
        dot.append(".INSTALL")
    names = sorted(entry.name for entry in tree.iterdir() if entry.name not in dot)
    package = target / f"{name}-{version}-x86_64.pkg.tar.zst"
    run("tar", "--zstd", "--owner=0", "--group=0", "--sort=name", "-cf", str(package), *dot, *names, cwd=tree)
    run("repo-add", "--quiet", str(target / "base.db.tar.gz"), str(package))


# --- keys ------------------------------------------------------------------------------------------------------------


def gpg(*argv: str) -> str:
    """Call gpg with the repository key."""
    return run("gpg", "--batch", "--yes", "--pinentry-mode", "loopback", "--passphrase", "", *argv)


def make_key(keys: Path, home: Path) -> str:
    """The key that signs the nginx repositories; its fingerprint."""
    home.mkdir(mode=0o700, parents=True)
    os.environ["GNUPGHOME"] = str(home)
    gpg("--quick-generate-key", KEY_NAME, "rsa3072", "sign", "never")
    listing = gpg("--with-colons", "--list-keys")
    fingerprint = next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr:"))
    keys.mkdir(parents=True)
    (keys / "nginx_signing.key").write_text(gpg("--armor", "--export", fingerprint))
    (keys / "fingerprints.json").write_text(json.dumps({"nginx_signing.key": [fingerprint]}) + "\n")
    return fingerprint


def main(out: Path) -> None:
    """Write everything below out."""
    work = Path("/tmp/workshop")
    roots, versions = fetch(work / "debs")
    fingerprint = make_key(out / "keys", work / "gnupg")
    real = versions["nginx"]

    for distribution, suites in APT_SUITES.items():
        root = out / "apt/nginx" / distribution
        for version in NGINX_VERSIONS:
            for suite in suites:
                nginx_deb(root / "pool/nginx/n/nginx", work / distribution, roots, real, version, suite)
        apt_repository(root, suites)

    git = merge(work / "git-tree", roots["git"], roots["liberror-perl"])
    lfs = merge(work / "lfs-tree", roots["git-lfs"])
    base = out / "rpm/base/9/x86_64"
    rpm(base, work, git, "git", versions["git"], "1.el9", summary="Fast version control system")
    rpm(base, work, lfs, "git-lfs", versions["git-lfs"], "1.el9", summary="Large files with git", requires="git")
    own = nginx_tree(work / "rhel-tree", roots, real, real, "rhel")
    rpm(base, work, own, "nginx", real, "1.el9", **NGINX_RPM)
    ssl = work / "ssl-tree/usr/bin"  # a base package, but one that an operator can remove and nginx needs back
    ssl.mkdir(parents=True)
    shutil.copy2(roots["openssl"] / "usr/bin/openssl", ssl)
    version = re.sub(r"[~+-].*", "", versions["openssl"])
    rpm(base, work, ssl.parents[1], "openssl", version, "2.el9", summary="Utilities from the cryptography library")
    official = out / "rpm/nginx/9/x86_64"
    for version in NGINX_VERSIONS:
        tree = nginx_tree(work / f"ngx-{version}", roots, real, version, "official")
        package = rpm(official, work, tree, "nginx", version, "1.el9.ngx", **NGINX_RPM)
        defines = {"_gpg_name": fingerprint, "__gpg": "/usr/bin/gpg", "_gpg_sign_cmd_extra_args": "--batch --yes"}
        flags = [flag for key, value in defines.items() for flag in ("--define", f"{key} {value}")]
        run("rpmsign", *flags, "--addsign", str(package))
    for folder in (base, official):
        run("createrepo_c", "--quiet", str(folder))
    modules = work / "modules.yaml"
    modules.write_text(MODULE.format(stream=real.rpartition(".")[0], package=f"nginx-0:{real}-1.el9.x86_64"))
    run("modifyrepo_c", "--mdtype=modules", "--no-compress", str(modules), str(base / "repodata"))

    repository = out / "pacman/base/x86_64"
    pacman_package(repository, git, "git", f"{versions['git']}-1", "the fast distributed version control system")
    pacman_package(repository, lfs, "git-lfs", f"{versions['git-lfs']}-1", "Git extension for versioning large files")
    arch = nginx_tree(work / "arch-tree", roots, real, real, "arch")
    reload = "systemctl daemon-reload"
    install = f"post_install() {{\n  {ADD_USER.format(user='http')}\n  {reload}\n}}\n"
    install += f"post_upgrade() {{\n  {reload}\n}}\npost_remove() {{\n  {reload}\n}}\n"
    pacman_package(repository, arch, "nginx", f"{real}-1", "Lightweight HTTP server", install)
    for link in repository.glob("base.*"):  # repo-add's links do not survive every way of serving files
        if link.is_symlink():
            target = link.resolve()
            link.unlink()
            shutil.copyfile(target, link)
    summary = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.rglob("*.deb"))}
    print(json.dumps({"nginx in Debian": real, "fingerprint": fingerprint, "debs": len(summary)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
