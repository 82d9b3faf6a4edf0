# SPDX-License-Identifier: GPL-3.0-or-later
"""Both halves of observe together: for every kind and every key of the contract, a node changed by hand is noticed.

Each case builds a real tree under a temporary directory, shows that nothing differs, changes one thing as an operator
could, and shows that exactly this item differs, with a reason that names it. What needs a running system (accounts, units
that really run, real package managers) is changed for real in tests/fleet/test_observe.py.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible_collections.gpufleet.llm.plugins.plugin_utils import observe

Item = dict[str, Any]
FIXTURES = Path(__file__).resolve().parent / "module_utils" / "fixtures"
GIT_ENV = {
    **os.environ,
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_AUTHOR_NAME": "t",
    "GIT_AUTHOR_EMAIL": "t@example.invalid",
    "GIT_COMMITTER_NAME": "t",
    "GIT_COMMITTER_EMAIL": "t@example.invalid",
}


def load_node(root: Path | None = None) -> ModuleType:
    """The node's half as it is sent (cut, without docstrings), its system databases under C(root)."""
    source = observe.load_script().select([*observe.KINDS, *observe.MANAGERS.values()])
    module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec("observe_sent", None))
    exec(compile(source, "observe_sent", "exec"), module.__dict__)
    module.ROOT = "" if root is None else str(root)  # type: ignore[attr-defined]
    return module


def look(raw: list[Item], root: Path | None = None, deep: bool = False) -> dict[str, Any]:
    """One look by both halves, through the text that would travel."""
    items = observe.build_request(raw)
    node = load_node(root)
    wire = [observe.wire_item(item) for item in items]
    from _json import encode_basestring_ascii as quote

    return observe.compare(items, json.loads(node.dump(node.look_all(wire, deep, node.__dict__), quote)))


# ---------------------------------------------------------------------------------------------------- trees that are real


def write(path: Path, content: str | bytes, mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


def git(path: Path, *args: str) -> str:
    done = subprocess.run(["git", "-C", str(path), *args], env=GIT_ENV, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def make_clone(path: Path) -> str:
    path.mkdir()
    git(path, "init", "-q", "-b", "main")
    write(path / "a.txt", "a\n")
    write(path / ".gitignore", "*.log\n")
    git(path, "add", ".")
    git(path, "commit", "-qm", "one")
    git(path, "remote", "add", "origin", "https://example.invalid/a.git")
    return git(path, "rev-parse", "HEAD")


STANZA = """Package: {name}
Status: {status}
Priority: optional
Architecture: {arch}
Version: {version}
Description: a package
 Package: not-this-one
"""


def make_dpkg(root: Path, **changes: str) -> None:
    values = {"name": "nginx", "status": "install ok installed", "arch": "amd64", "version": "1.24.0-1~bookworm"}
    stanzas = [
        STANZA.format(name="libc6", status="install ok installed", arch="amd64", version="2.36-9"),
        STANZA.format(name="nginx-common", status="install ok installed", arch="all", version="9"),
        STANZA.format(**{**values, **changes}),
        STANZA.format(name="gone", status="deinstall ok config-files", arch="amd64", version="1"),
    ]
    write(root / "var/lib/dpkg/status", "\n".join(stanzas))
    write(root / "etc/os-release", 'ID=debian\nVERSION_ID="12"\n')


def make_rpm(root: Path) -> Path:
    """The database that rpm 4.18 wrote for three small packages of ours."""
    path = write(root / "var/lib/rpm/rpmdb.sqlite", gzip.decompress((FIXTURES / "rpmdb.sqlite.gz").read_bytes()))
    write(root / "etc/os-release", 'ID="rocky"\nID_LIKE="rhel centos fedora"\n')
    return path


def make_pacman(root: Path, version: str = "2.47.0-1") -> None:
    shutil.rmtree(root / "var/lib/pacman", ignore_errors=True)
    write(root / f"var/lib/pacman/local/git-{version}/desc", f"%NAME%\ngit\n\n%VERSION%\n{version}\n\n%ARCH%\nx86_64\n")
    write(
        root / "var/lib/pacman/local/git-lfs-3.5.1-2/desc", "%NAME%\ngit-lfs\n\n%VERSION%\n3.5.1-2\n\n%ARCH%\nx86_64\n"
    )
    write(root / "var/lib/pacman/local/ALPM_DB_VERSION", "9\n")
    write(root / "etc/os-release", "ID=arch\n")


def make_dist(site: Path, name: str, version: str) -> None:
    module = name.lower().replace("-", "_")
    body = f"VERSION = {version!r}\n"
    write(site / module / "__init__.py", body)
    info = site / f"{module}-{version}.dist-info"
    write(info / "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    write(info / "INSTALLER", "pip\n")
    import base64

    digest = base64.urlsafe_b64encode(hashlib.sha256(body.encode()).digest()).rstrip(b"=").decode()
    write(
        info / "RECORD",
        f"{module}/__init__.py,sha256={digest},{len(body)}\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n",
    )


def make_venv(prefix: Path) -> Path:
    venv.create(prefix, with_pip=False, symlinks=True)
    site = prefix / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    make_dist(site, "torch", "2.13.0+cpu")
    make_dist(site, "Sentence_Piece.x", "0.2.1")
    return site


def make_conda(prefix: Path) -> Path:
    """A conda environment's skeleton: what conda writes, with this Python as its interpreter."""
    minor = f"{sys.version_info[0]}.{sys.version_info[1]}"
    version = f"{minor}.{sys.version_info[2]}"
    for name in (f"python-{version}-h955ad1f_0_cpython", "pip-24.0-pyhd8ed1ab_0", "git-lfs-3.5.1-h59595ed_0"):
        write(prefix / f"conda-meta/{name}.json", "{}")
    write(prefix / "conda-meta/history", "==> now <==\n")
    (prefix / "bin").mkdir()
    (prefix / f"bin/python{minor}").symlink_to(os.path.realpath(sys.executable))
    (prefix / "bin/python").symlink_to(f"python{minor}")
    site = prefix / f"lib/python{minor}/site-packages"
    make_dist(site, "torch", "2.13.0")
    make_dist(site, "pip", "24.0")
    return site


def make_weights(path: Path) -> Item:
    contents = {"config.json": b'{"a": 1}', "big.safetensors": bytes(range(256)) * 512, "sub/tokens.txt": b"x" * 70000}
    files: dict[str, Item] = {}
    record: dict[str, Item] = {}
    for name, data in contents.items():
        target = write(path / name, data)
        status = target.stat()
        sha256 = hashlib.sha256(data).hexdigest()
        files[name] = {"size": len(data), "sha256": sha256}
        record[name] = {
            "size": len(data),
            "mtime_ns": status.st_mtime_ns,
            "inode": status.st_ino,
            "sha256": sha256,
        }
    files["config.json"] = {
        "size": 8,
        "git_sha1": hashlib.sha1(b"blob 8\0" + contents["config.json"]).hexdigest(),
    }
    write(path / ".gpufleet/verified.json", json.dumps({"files": record}))
    return {"kind": "manifest", "path": str(path), "files": files}


def flip(path: Path, keep_times: bool = False) -> None:
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    with path.open("r+b") as stream:
        stream.write(data)
    if keep_times:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:  # a clock that is coarser than this test must not hide it
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def export_key(tmp: Path, name: str, armoured: bool) -> tuple[bytes, str]:
    """A fresh key made by gpg, and its fingerprint as gpg tells it."""
    home = tmp / f"gnupg-{name}"
    home.mkdir(mode=0o700)
    base = ["gpg", "--homedir", str(home), "--batch", "--quiet"]
    try:
        subprocess.run(
            [*base, "--passphrase", "", "--quick-generate-key", f"{name} <{name}@example.invalid>", "rsa2048"],
            check=True,
            capture_output=True,
        )
        listing = subprocess.run([*base, "--with-colons", "--list-keys"], check=True, capture_output=True, text=True)
        fingerprint = next(line.split(":")[9] for line in listing.stdout.splitlines() if line.startswith("fpr"))
        export = subprocess.run(
            [*base, *(["--armor"] if armoured else []), "--export"], check=True, capture_output=True
        ).stdout
    finally:
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False, capture_output=True)
    return export, fingerprint


# ---------------------------------------------------------------------------------------------------------- the cases

# (id, what the item asks for beyond its address, build(tmp) -> item, change(tmp), word in the reason, deep)
Build = Callable[[Path], Item]
Change = Callable[[Path], Any]
CASES: list[tuple[str, str, Build, Change, str]] = []


def case(kind: str, key: str, build: Build, change: Change, reason: str) -> None:
    CASES.append((kind, key, build, change, reason))


def managed_file(**more: Any) -> Build:
    def build(tmp: Path) -> Item:
        path = write(tmp / "f", "wanted\n", 0o640)
        own = {"owner": "root", "group": "root"} if os.geteuid() == 0 else {}
        item = {"kind": "file", "path": str(path), "mode": "0640", **own, **more}
        if item.pop("by_sha256", False):
            item["sha256"] = hashlib.sha256(b"wanted\n").hexdigest()
        return item

    return build


CONTENT = managed_file(content="wanted\n")
case("file", "content", CONTENT, lambda tmp: write(tmp / "f", "edited\n", 0o640), "content differs")
case("file", "content", CONTENT, lambda tmp: write(tmp / "f", "wanted", 0o640), "content differs")
case("file", "content", managed_file(content="wanted\n", no_log=True),
     lambda tmp: write(tmp / "f", "edited\n", 0o640), "content differs")  # fmt: skip
case("file", "no_log", managed_file(content="wanted\n", no_log=True), lambda tmp: (tmp / "f").unlink(), "is absent")
case("file", "sha256", managed_file(by_sha256=True), lambda tmp: write(tmp / "f", "edited\n", 0o640), "sha256 is")
case("file", "mode", CONTENT, lambda tmp: (tmp / "f").chmod(0o644), "mode is 0644, wanted 0640")
case("file", "mode", CONTENT, lambda tmp: (tmp / "f").chmod(0o4640), "mode is 4640")
case("file", "owner", CONTENT, lambda tmp: os.chown(tmp / "f", 12345, -1), "owner is 12345, wanted root")
case("file", "group", CONTENT, lambda tmp: os.chown(tmp / "f", -1, 12345), "group is 12345, wanted root")
case("file", "path", managed_file(), lambda tmp: (tmp / "f").unlink(), "is absent, wanted a file")


def swap_for_link(tmp: Path) -> None:
    (tmp / "f").rename(tmp / "elsewhere")
    (tmp / "f").symlink_to(tmp / "elsewhere")


def swap_for_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


case("file", "path", CONTENT, swap_for_link, "is a link to")
case("file", "path", CONTENT, lambda tmp: swap_for_directory(tmp / "f"), "is directory, wanted a file")
case("absent", "path", lambda tmp: {"kind": "absent", "path": str(tmp / "n")},
     lambda tmp: (tmp / "n").symlink_to("/nowhere"), "is a link, wanted nothing there")  # fmt: skip
case(
    "absent",
    "path",
    lambda tmp: {"kind": "absent", "path": str(tmp / "n")},
    lambda tmp: (tmp / "n").mkdir(),
    "is a dir",
)


def managed_link(tmp: Path) -> Item:
    (tmp / "l").symlink_to("../target")
    return {"kind": "link", "path": str(tmp / "l"), "target": "../target"}


def point_elsewhere(tmp: Path) -> None:
    (tmp / "l").unlink()
    (tmp / "l").symlink_to("/elsewhere")


case("link", "target", managed_link, point_elsewhere, "points to /elsewhere, wanted ../target")
case("link", "path", managed_link, lambda tmp: (tmp / "l").unlink(), "is absent, wanted a link")


def managed_directory(tmp: Path) -> Item:
    (tmp / "d").mkdir(mode=0o750)
    return {"kind": "directory", "path": str(tmp / "d"), "mode": "0750", "owner": "root", "group": "0"}


case("directory", "path", managed_directory, lambda tmp: (tmp / "d").rmdir(), "is absent, wanted a directory")
case("directory", "path", managed_directory, lambda tmp: ((tmp / "d").rmdir(), write(tmp / "d", "")), "is file, wanted")
case("directory", "mode", managed_directory, lambda tmp: (tmp / "d").chmod(0o755), "mode is 0755, wanted 0750")
case("directory", "owner", managed_directory, lambda tmp: os.chown(tmp / "d", 12345, -1), "owner is 12345")
case("directory", "group", managed_directory, lambda tmp: os.chown(tmp / "d", -1, 12345), "group is 12345")


def dpkg_package(**more: Any) -> Build:
    def build(tmp: Path) -> Item:
        make_dpkg(tmp)
        return {"kind": "package", "name": "nginx", **more}

    return build


for status, word in (
    ("deinstall ok config-files", "is absent, wanted"),
    ("install ok half-configured", "is half-configured, wanted"),
    ("install ok triggers-pending", "is triggers-pending, wanted"),
    ("install reinstreq half-installed", "is reinst-required, wanted"),
    ("deinstall ok installed", "installed but selected for deinstall"),
):
    case("package", "state", dpkg_package(), lambda tmp, status=status: make_dpkg(tmp, status=status), word)
case("package", "name", dpkg_package(), lambda tmp: make_dpkg(tmp, name="nginx-light"), "is absent, wanted present")
case(
    "package", "version", dpkg_package(version="1.24.0-1~*"), lambda tmp: make_dpkg(tmp, version="1.26.0-1"), "1.26.0-1"
)
case("package", "version", dpkg_package(version="1.24.0-1~bookworm"),
     lambda tmp: make_dpkg(tmp, version="1.24.0-1~trixie"), "version is 1.24.0-1~trixie")  # fmt: skip
case(
    "package", "hold", dpkg_package(hold=False), lambda tmp: make_dpkg(tmp, status="hold ok installed"), "hold is true"
)
case("package", "manager", dpkg_package(manager="dpkg"), lambda tmp: make_dpkg(tmp, name="x"), "is absent")
case("package", "state", lambda tmp: (make_dpkg(tmp), {"kind": "package", "name": "telnet", "state": "absent"})[1],
     lambda tmp: make_dpkg(tmp, name="telnet"), "is installed (1.24.0-1~bookworm), wanted absent")  # fmt: skip


def journal(tmp: Path) -> None:
    """What a dpkg killed in the middle leaves: newer than the status file until the next run merges it."""
    write(
        tmp / "var/lib/dpkg/updates/0003",
        STANZA.format(name="nginx", status="install ok unpacked", arch="amd64", version="1.24.0-1~bookworm"),
    )


case("package", "state", dpkg_package(), journal, "is unpacked, wanted present")


def rpm_package(**more: Any) -> Build:
    def build(tmp: Path) -> Item:
        make_rpm(tmp)
        return {"kind": "package", "name": "gpufleet-epoch", **more}

    return build


def rpm_erase(tmp: Path) -> None:
    database = sqlite3.connect(tmp / "var/lib/rpm/rpmdb.sqlite")
    database.execute("DELETE FROM Packages WHERE hnum IN (SELECT hnum FROM Name WHERE key = 'gpufleet-epoch')")
    database.execute("DELETE FROM Name WHERE key = 'gpufleet-epoch'")
    database.commit()
    database.close()


def rpm_other_version(tmp: Path) -> None:
    database = sqlite3.connect(tmp / "var/lib/rpm/rpmdb.sqlite")
    query = "SELECT hnum, blob FROM Packages WHERE hnum IN (SELECT hnum FROM Name WHERE key = 'gpufleet-epoch')"
    for number, blob in database.execute(query).fetchall():
        new = blob.replace(b"1.24.0\0", b"1.25.0\0")
        database.execute("UPDATE Packages SET blob = ? WHERE hnum = ?", (new, number))
    database.commit()
    database.close()


case("package", "state", rpm_package(), rpm_erase, "is absent, wanted present")
for version in ("1.24.0", "1.24.0-1.el9.ngx", "1:1.24.0-1.el9.ngx", "1.24.*"):
    case("package", "version", rpm_package(version=version), rpm_other_version, "version is 1:1.25.0-1.el9.ngx")
case("package", "hold", rpm_package(hold=False),
     lambda tmp: write(tmp / "etc/dnf/plugins/versionlock.list", "gpufleet-epoch-1:1.24.0-1.el9.ngx.*\n"),
     "hold is true")  # fmt: skip
case("package", "manager", rpm_package(manager="rpm"), rpm_erase, "is absent")


def pacman_package(**more: Any) -> Build:
    def build(tmp: Path) -> Item:
        make_pacman(tmp)
        return {"kind": "package", "name": "git", **more}

    return build


case(
    "package", "state", pacman_package(), lambda tmp: shutil.rmtree(tmp / "var/lib/pacman/local/git-2.47.0-1"), "absent"
)
case("package", "version", pacman_package(version="2.47.0-1"), lambda tmp: make_pacman(tmp, "2.48.1-1"), "is 2.48.1-1")
case("package", "hold", pacman_package(hold=False),
     lambda tmp: write(tmp / "etc/pacman.conf", "[options]\nIgnorePkg = linux git  # kept\n"), "hold is true")  # fmt: skip
case("package", "manager", pacman_package(manager="pacman"), lambda tmp: make_pacman(tmp, "2-1") or
     shutil.rmtree(tmp / "var/lib/pacman/local/git-2-1"), "absent")  # fmt: skip


def unit_files(**more: Any) -> Build:
    """No systemd runs under the temporary root, so this is what an image under construction looks like."""

    def build(tmp: Path) -> Item:
        write(
            tmp / "usr/lib/systemd/system/llm.service", "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=a.target\n"
        )
        wants = tmp / "etc/systemd/system/multi-user.target.wants"
        wants.mkdir(parents=True)
        (wants / "llm.service").symlink_to("/usr/lib/systemd/system/llm.service")
        return {"kind": "unit", "name": "llm", **more}

    return build


def mask(tmp: Path) -> None:
    (tmp / "etc/systemd/system/llm.service").symlink_to("/dev/null")


case("unit", "enabled", unit_files(enabled=True),
     lambda tmp: (tmp / "etc/systemd/system/multi-user.target.wants/llm.service").unlink(),
     "enabled is false (disabled), wanted true")  # fmt: skip
case("unit", "masked", unit_files(masked=False), mask, "masked is true, wanted false")
case("unit", "enabled", unit_files(enabled=True), mask, "enabled is false (masked)")
case("unit", "name", unit_files(enabled=True), lambda tmp: shutil.rmtree(tmp / "etc/systemd") or
     (tmp / "usr/lib/systemd/system/llm.service").unlink(), "enabled is false (not-found)")  # fmt: skip


def managed_key(armoured: bool) -> Build:
    def build(tmp: Path) -> Item:
        one, first = export_key(tmp, "one", armoured)
        two, second = export_key(tmp, "two", armoured)
        write(tmp / "k", one + two)
        write(tmp / "only-one", one)
        write(tmp / "third", export_key(tmp, "three", armoured)[0])
        own = {"owner": "root", "group": "root"}
        return {"kind": "key", "path": str(tmp / "k"), "fingerprints": [second, first], "mode": "0644", **own}

    return build


def one_more_key(tmp: Path) -> None:
    write(tmp / "k", (tmp / "k").read_bytes() + (tmp / "third").read_bytes())


for armour in (True, False):
    case(
        "key",
        "fingerprints",
        managed_key(armour),
        lambda tmp: write(tmp / "k", (tmp / "only-one").read_bytes()),
        "lacks",
    )
    case("key", "fingerprints", managed_key(armour), one_more_key, "holds the unwanted key")
case("key", "path", managed_key(True), lambda tmp: (tmp / "k").unlink(), "is absent, wanted a file")
case("key", "path", managed_key(False), lambda tmp: write(tmp / "k", "<html>404</html>"), "is no OpenPGP key file")
case("key", "path", managed_key(False), lambda tmp: write(tmp / "k", (tmp / "k").read_bytes()[:-3]), "is cut off")
case("key", "mode", managed_key(True), lambda tmp: (tmp / "k").chmod(0o666), "mode is 0666")
case("key", "owner", managed_key(True), lambda tmp: os.chown(tmp / "k", 12345, -1), "owner is 12345")
case("key", "group", managed_key(True), lambda tmp: os.chown(tmp / "k", -1, 12345), "group is 12345")


def managed_clone(tmp: Path) -> Item:
    commit = make_clone(tmp / "c")
    return {"kind": "git", "path": str(tmp / "c"), "commit": commit, "remote": "https://example.invalid/a.git"}


def move_on(tmp: Path) -> None:
    git(tmp / "c", "commit", "-q", "--allow-empty", "-m", "two")


case("git", "commit", managed_clone, move_on, "commit is")
case("git", "commit", managed_clone, lambda tmp: (move_on(tmp), git(tmp / "c", "pack-refs", "--all")), "commit is")
case(
    "git",
    "commit",
    managed_clone,
    lambda tmp: (move_on(tmp), git(tmp / "c", "checkout", "-q", "--detach")),
    "commit is",
)
case("git", "clean", managed_clone, lambda tmp: write(tmp / "c/a.txt", "changed\n"), "is not clean:  M a.txt")
case("git", "clean", managed_clone, lambda tmp: write(tmp / "c/new grün.txt", ""), "is not clean: ?? new grün.txt")
case("git", "clean", managed_clone, lambda tmp: (tmp / "c/a.txt").unlink(), "is not clean:  D a.txt")
case("git", "clean", managed_clone, lambda tmp: (tmp / "c/a.txt").chmod(0o755), "is not clean:  M a.txt")
case("git", "remote", managed_clone, lambda tmp: git(tmp / "c", "remote", "set-url", "origin", "https://evil.invalid"),
     "remote is https://evil.invalid, wanted https://example.invalid/a.git")  # fmt: skip
case("git", "path", managed_clone, lambda tmp: shutil.rmtree(tmp / "c"), "is absent, wanted a git repository")
case("git", "path", managed_clone, lambda tmp: shutil.rmtree(tmp / "c/.git"), "is not a repository")
case("git", "path", managed_clone, lambda tmp: (tmp / "c/.git/HEAD").unlink(), "git cannot read it")


def managed_venv(**more: Any) -> Build:
    def build(tmp: Path) -> Item:
        make_venv(tmp / "v")
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        wanted = {"torch": "2.13.0", "sentence-piece.X": "0.2.1"}
        return {"kind": "venv", "prefix": str(tmp / "v"), "python": version, "requirements": wanted, **more}

    return build


def site_of(tmp: Path) -> Path:
    return next(iter(tmp.glob("[ve]/lib/python3*/site-packages")))


def swap_version(tmp: Path) -> None:
    shutil.rmtree(site_of(tmp) / "torch-2.13.0+cpu.dist-info", ignore_errors=True)
    shutil.rmtree(site_of(tmp) / "torch-2.13.0.dist-info", ignore_errors=True)
    make_dist(site_of(tmp), "torch", "2.12.1")


def remove_dist(tmp: Path) -> None:
    for path in site_of(tmp).glob("torch*"):
        shutil.rmtree(path)


def break_python(tmp: Path, where: str) -> None:
    (tmp / where / "bin/python").unlink()
    (tmp / where / "bin/python").symlink_to("/usr/bin/python2.99")


def other_python(tmp: Path) -> None:
    write(tmp / "python3.99", "", 0o755)
    (tmp / "v/bin/python").unlink()
    (tmp / "v/bin/python").symlink_to(tmp / "python3.99")


def rewrite_cfg(tmp: Path) -> None:
    """As when the whole environment is made anew by another Python at the same place."""
    lib = tmp / f"v/lib/python{sys.version_info[0]}.{sys.version_info[1]}"
    lib.rename(tmp / "v/lib/python3.7")
    write(tmp / "v/pyvenv.cfg", "home = /usr/bin\nversion = 3.7.9\n")


case("venv", "requirements", managed_venv(), swap_version, "torch is 2.12.1, wanted 2.13.0")
case("venv", "requirements", managed_venv(), remove_dist, "torch is missing, wanted 2.13.0")
case("venv", "requirements", managed_venv(), lambda tmp: shutil.rmtree(site_of(tmp) / "torch"), "torch: torch is gone")
case(
    "venv", "requirements", managed_venv(), lambda tmp: next(site_of(tmp).glob("torch-*/METADATA")).unlink(), "METADATA"
)
case("venv", "requirements", managed_venv(), lambda tmp: next(site_of(tmp).glob("torch-*/RECORD")).unlink(), "RECORD")
case(
    "venv",
    "exact",
    managed_venv(exact=True),
    lambda tmp: make_dist(site_of(tmp), "evil", "1"),
    "unwanted distributions",
)
case("venv", "python", managed_venv(), rewrite_cfg, "Python is 3.7.9, wanted")
case("venv", "prefix", managed_venv(), lambda tmp: shutil.rmtree(tmp / "v"), "is absent, wanted a virtual environment")
case("venv", "prefix", managed_venv(), lambda tmp: break_python(tmp, "v"), "a link to /usr/bin/python2.99")
case("venv", "prefix", managed_venv(), other_python, "bin/python is Python 3.99, the packages are for 3")
case("venv", "prefix", managed_venv(), lambda tmp: (tmp / "v/pyvenv.cfg").unlink(), "is broken: has no pyvenv.cfg")
case("venv", "prefix", managed_venv(), lambda tmp: shutil.rmtree(tmp / "v/lib"), "has no site-packages")


def managed_conda(**more: Any) -> Build:
    def build(tmp: Path) -> Item:
        make_conda(tmp / "e")
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        item = {"kind": "conda_env", "prefix": str(tmp / "e"), "python": version, "requirements": {"torch": "2.13.0"}}
        return {**item, "packages": {"git-lfs": "3.5.1", "python": None, "pip": "24.*"}, **more}

    return build


def conda_swap(tmp: Path) -> None:
    (tmp / "e/conda-meta/git-lfs-3.5.1-h59595ed_0.json").rename(tmp / "e/conda-meta/git-lfs-3.4.0-h59595ed_0.json")


def conda_other_python(tmp: Path) -> None:
    for path in (tmp / "e/conda-meta").glob("python-*.json"):
        path.rename(tmp / "e/conda-meta/python-3.7.9-h0_0.json")


case("conda_env", "packages", managed_conda(), conda_swap, "git-lfs is 3.4.0=h59595ed_0, wanted 3.5.1")
case("conda_env", "packages", managed_conda(),
     lambda tmp: (tmp / "e/conda-meta/git-lfs-3.5.1-h59595ed_0.json").unlink(), "git-lfs is missing")  # fmt: skip
case("conda_env", "exact", managed_conda(exact=True),
     lambda tmp: write(tmp / "e/conda-meta/evil-1.0-0.json", "{}"), "unwanted packages: evil")  # fmt: skip
case(
    "conda_env",
    "exact",
    managed_conda(exact=True),
    lambda tmp: make_dist(site_of(tmp), "evil", "1"),
    "distributions: evil",
)
case("conda_env", "requirements", managed_conda(), swap_version, "torch is 2.12.1, wanted 2.13.0")
case("conda_env", "requirements", managed_conda(), remove_dist, "torch is missing, wanted 2.13.0")
case("conda_env", "python", managed_conda(), conda_other_python, "Python is 3.7.9, wanted")
case(
    "conda_env",
    "prefix",
    managed_conda(),
    lambda tmp: shutil.rmtree(tmp / "e"),
    "is absent, wanted a conda environment",
)
case("conda_env", "prefix", managed_conda(), lambda tmp: (tmp / "e/conda-meta/history").unlink(), "never finished")
case("conda_env", "prefix", managed_conda(), lambda tmp: shutil.rmtree(tmp / "e/conda-meta"), "has no conda-meta")
case("conda_env", "prefix", managed_conda(), lambda tmp: break_python(tmp, "e"), "bin/python is not there")
case(
    "conda_env",
    "prefix",
    managed_conda(),
    lambda tmp: write(tmp / "e/conda-meta/pip-24.0-pyhd8ed1ab_0.json", ""),
    "empty",
)


def managed_weights(tmp: Path) -> Item:
    return make_weights(tmp / "w")


def weights_by_their_own_manifest(tmp: Path) -> Item:
    item = make_weights(tmp / "w")
    write(tmp / "m.json", json.dumps({"files": item.pop("files"), "fingerprint": "abc", "more": 1}))
    return {**item, "manifest": str(tmp / "m.json"), "fingerprint": "abc"}


def weights_with_record_elsewhere(tmp: Path) -> Item:
    item = make_weights(tmp / "w")
    (tmp / "w/.gpufleet/verified.json").rename(tmp / "record.json")
    return {**item, "record": str(tmp / "record.json")}


def forge_record(tmp: Path) -> None:
    """The file was swapped and then verified against something else."""
    flip(tmp / "w/big.safetensors")
    status = (tmp / "w/big.safetensors").stat()
    path = tmp / "w/.gpufleet/verified.json"
    record = json.loads(path.read_text())
    record["files"]["big.safetensors"].update(
        mtime_ns=status.st_mtime_ns, sha256=hashlib.sha256((tmp / "w/big.safetensors").read_bytes()).hexdigest()
    )
    write(path, json.dumps(record))


def copy_over(tmp: Path) -> None:
    """Same bytes, same times, another inode: nobody hashed this file."""
    path = tmp / "w/big.safetensors"
    shutil.copy2(path, tmp / "w/copy")
    (tmp / "w/copy").rename(path)


case("manifest", "files", managed_weights, lambda tmp: (tmp / "w/big.safetensors").unlink(), "missing: big.safetensors")
case(
    "manifest",
    "files",
    managed_weights,
    lambda tmp: write(tmp / "w/big.safetensors", b"short"),
    "not as in the manifest",
)
case(
    "manifest", "files", managed_weights, lambda tmp: flip(tmp / "w/big.safetensors"), "not verified since last touched"
)
case("manifest", "files", managed_weights, copy_over, "not verified since last touched: big.safetensors")
case("manifest", "files", managed_weights, forge_record, "not as in the manifest: big.safetensors")
case(
    "manifest", "files", managed_weights, lambda tmp: flip(tmp / "w/config.json", True), "in the manifest: config.json"
)
case("manifest", "files", managed_weights, lambda tmp: flip(tmp / "w/sub/tokens.txt"), "sub/tokens.txt")
case("manifest", "path", managed_weights, lambda tmp: shutil.rmtree(tmp / "w"), "is absent, wanted a directory")
case("manifest", "record", managed_weights, lambda tmp: (tmp / "w/.gpufleet/verified.json").unlink(), "not verified")
case("manifest", "record", managed_weights, lambda tmp: write(tmp / "w/.gpufleet/verified.json", "{"), "not verified")
case("manifest", "record", weights_with_record_elsewhere, lambda tmp: (tmp / "record.json").unlink(), "not verified")
case(
    "manifest",
    "manifest",
    weights_by_their_own_manifest,
    lambda tmp: (tmp / "m.json").unlink(),
    "missing or unreadable",
)
case("manifest", "manifest", weights_by_their_own_manifest, lambda tmp: (tmp / "w/config.json").unlink(), "config.json")
case("manifest", "fingerprint", weights_by_their_own_manifest,
     lambda tmp: write(tmp / "m.json", (tmp / "m.json").read_text().replace("abc", "abd")), "fingerprint is abd")  # fmt: skip


def command(tmp: Path, **wanted: Any) -> Item:
    write(tmp / "tool", '#!/bin/sh\necho "version ${MORE:-1.2.3}"\n', 0o755)
    return {"kind": "command", "argv": [str(tmp / "tool")], **wanted}


FAILS = "#!/bin/sh\necho broken >&2\nexit 3\n"
case("command", "rc", command, lambda tmp: write(tmp / "tool", FAILS, 0o755), "rc is 3, wanted 0: broken")
case("command", "argv", command, lambda tmp: (tmp / "tool").unlink(), "rc is 127, wanted 0")
case("command", "stdout", lambda tmp: command(tmp, stdout="version 1.2.3"),
     lambda tmp: write(tmp / "tool", "#!/bin/sh\necho version 1.2.4\n", 0o755), "stdout is 'version 1.2.4'")  # fmt: skip
case("command", "regex", lambda tmp: command(tmp, regex=r"1\.2\.\d"),
     lambda tmp: write(tmp / "tool", "#!/bin/sh\necho version 2\n", 0o755), "does not match")  # fmt: skip
case("command", "env", lambda tmp: command(tmp, env={"MORE": "x"}, stdout="version x"),
     lambda tmp: write(tmp / "tool", "#!/bin/sh\necho version y\n", 0o755), "stdout is 'version y'")  # fmt: skip
case("command", "no_log", lambda tmp: command(tmp, no_log=True, stdout="version 1.2.3"),
     lambda tmp: write(tmp / "tool", "#!/bin/sh\necho version 2\n", 0o755), "stdout differs")  # fmt: skip


def kernel_module(tmp: Path) -> Item:
    write(tmp / "sys/module/nvidia_uvm/version", "550.1\n")
    return {"kind": "kernel_module", "name": "nvidia-uvm", "loaded": True}


case("kernel_module", "loaded", kernel_module, lambda tmp: shutil.rmtree(tmp / "sys"), "loaded is false, wanted true")
case("kernel_module", "name", lambda tmp: {"kind": "kernel_module", "name": "nouveau", "loaded": False},
     lambda tmp: (tmp / "sys/module/nouveau").mkdir(parents=True), "loaded is true, wanted false")  # fmt: skip


def globbed(tmp: Path) -> Item:
    write(tmp / "g/a.list", "")
    return {"kind": "glob", "pattern": f"{tmp}/g/*.list", "paths": [f"{tmp}/g/a.list"]}


case("glob", "paths", globbed, lambda tmp: (tmp / "g/a.list").unlink(), "missing:")
case("glob", "pattern", globbed, lambda tmp: write(tmp / "g/b.list", ""), "unwanted:")

# Changed for real in tests/fleet/test_observe.py: they need a system of their own.
ELSEWHERE = {
    "user": {"name", "state", "home", "shell", "group", "groups", "uid"},
    "unit": {"active"},
}
NEVER_DIFFER = {"read", "disk"}


def test_every_key_of_every_kind_has_a_case() -> None:
    """The coverage this file promises: a key that is added to the contract fails here until it is tested."""
    have: dict[str, set[str]] = {kind: set(keys) for kind, keys in ELSEWHERE.items()}
    for kind, key, *_rest in CASES:
        have.setdefault(kind, set()).add(key)
    for kind, (required, optional) in observe.KINDS.items():
        if kind not in NEVER_DIFFER:
            assert have.get(kind, set()) == set(required) | set(optional), kind


@pytest.mark.parametrize(
    ("build", "change", "reason"),
    [pytest.param(*one[2:], id=f"{one[0]}-{one[1]}-{number}") for number, one in enumerate(CASES)],
)
def test_a_change_by_hand_is_noticed(tmp_path: Path, build: Build, change: Change, reason: str) -> None:
    item = build(tmp_path)
    decoy = write(tmp_path / "decoy", "untouched")
    items = [item, {"kind": "file", "path": str(decoy), "content": "untouched"}]
    before = look(items, tmp_path)
    assert before["differs"] is False, before["items"][0]["reasons"]
    change(tmp_path)
    after = look(items, tmp_path)
    assert after["drift"] == [before["items"][0]["key"]]
    assert reason in "; ".join(after["items"][0]["reasons"])


@pytest.mark.parametrize(("keep", "deep", "noticed"), [(True, True, True), (True, False, False), (False, False, True)])
def test_a_byte_flipped_behind_the_clocks_back_needs_a_deep_look(
    tmp_path: Path, keep: bool, deep: bool, noticed: bool
) -> None:
    item = managed_weights(tmp_path)
    flip(tmp_path / "w/big.safetensors", keep_times=keep)
    assert look([item], deep=deep)["differs"] is noticed


def test_a_deep_look_clears_weights_that_only_were_touched(tmp_path: Path) -> None:
    item = managed_weights(tmp_path)
    (tmp_path / "w/.gpufleet/verified.json").unlink()
    assert look([item])["seen"][f"manifest:{tmp_path}/w"]["unverified"] == ["big.safetensors", "sub/tokens.txt"]
    assert look([item], deep=True)["differs"] is False


def test_a_deep_look_reads_every_file_of_a_distribution(tmp_path: Path) -> None:
    item = managed_venv()(tmp_path)
    module = site_of(tmp_path) / "torch/__init__.py"
    write(module, module.read_text().replace("2.13", "2.14"))
    assert look([item])["differs"] is False
    deep = look([item], deep=True)
    assert "torch: torch/__init__.py was changed" in deep["items"][0]["reasons"][0]


# ----------------------------------------------------------------------------------- nothing there is no difference


ABSENT: list[Item] = [
    {"kind": "package", "name": "no-such-package", "state": "absent", "manager": "dpkg"},
    {"kind": "absent", "path": "/no/such/path"},
    {"kind": "absent", "path": "/etc/passwd/below-a-file"},
    {"kind": "unit", "name": "no-such.service", "enabled": False, "active": False, "masked": False},
    {"kind": "user", "name": "no-such-user", "state": "absent"},
    {"kind": "kernel_module", "name": "no_such", "loaded": False},
    {"kind": "glob", "pattern": "/no/such/*"},
    {"kind": "read", "key": "a", "path": "/no/such"},
    {"kind": "disk", "path": "/no/such/path/at/all"},
]


@pytest.mark.parametrize("item", ABSENT, ids=lambda item: item["kind"])
def test_wanting_nothing_where_nothing_is(tmp_path: Path, item: Item) -> None:
    make_dpkg(tmp_path)
    result = look([item], tmp_path)
    assert (result["differs"], result["items"][0]["reasons"]) == (False, [])


BARE: list[Item] = [
    {"kind": "file", "path": "/no/such/f", "content": "x"},
    {"kind": "link", "path": "/no/such/l", "target": "x"},
    {"kind": "directory", "path": "/no/such/d"},
    {"kind": "unit", "name": "no-such", "enabled": True, "active": True},
    {"kind": "user", "name": "no-such-user"},
    {"kind": "key", "path": "/no/such/k", "fingerprints": ["AB" * 20]},
    {"kind": "git", "path": "/no/such/c", "commit": "ab" * 20},
    {
        "kind": "conda_env",
        "prefix": "/no/such/e",
        "python": "3.10",
        "packages": {"a": None},
        "requirements": {"b": "1"},
    },
    {"kind": "venv", "prefix": "/no/such/v", "requirements": {"b": "1"}},
    {"kind": "manifest", "path": "/no/such/w", "files": {"a": {"size": 1, "sha256": "ab" * 32}}},
    {"kind": "command", "argv": ["/no/such/tool"]},
    {"kind": "kernel_module", "name": "no_such"},
]


@pytest.mark.parametrize("item", BARE, ids=lambda item: item["kind"])
def test_a_bare_node_differs_in_words_and_never_breaks(tmp_path: Path, item: Item) -> None:
    entry = look([item], tmp_path)["items"][0]
    assert entry["differs"]
    assert "could not" not in entry["reasons"][0]
    assert "cannot be compared" not in entry["reasons"][0]


def test_an_empty_directory_is_no_environment_yet(tmp_path: Path) -> None:
    for kind in ("venv", "conda_env"):
        assert look([{"kind": kind, "prefix": str(tmp_path)}])["seen"][f"{kind}:{tmp_path}"]["state"] == "absent"
