# SPDX-License-Identifier: GPL-3.0-or-later
"""roles/nvidia_driver/files/runfile_remains.sh on a tree of its own: what an installer without an uninstaller has left."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "roles/nvidia_driver/files/runfile_remains.sh"


class Node:
    """A tree in the place of / and an installer's database of it; package managers and dkms answer from files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.base = root / "var/lib/nvidia"
        self.base.mkdir(parents=True)
        (root / "usr/lib").mkdir(parents=True)
        self.log = ["1.0-58010508 (580.105.08)", "NVIDIA Accelerated Graphics Driver for Linux-x86_64"]
        self.owned = root / "owned"
        self.owned.touch()
        self.calls = root / "calls"
        self.calls.touch()
        bin_ = root / "bin"
        bin_.mkdir()
        stubs = {
            "dpkg": f'grep -qxF "$2" {self.owned}',
            "rpm": "exit 1",
            "pacman": "exit 1",
            "ldconfig": f"echo ldconfig >>{self.calls}",
            "depmod": f"echo depmod >>{self.calls}",
            "dkms": f'echo "dkms $*" >>{self.calls}; [ "$1" != status ] || [ ! -e {root}/dkms ] || echo nvidia/580.105.08: added',
        }
        for name, body in stubs.items():
            (bin_ / name).write_text(f"#!/bin/sh\n{body}\n")
            (bin_ / name).chmod(0o755)

    def file(self, name: str, logged: bool = True) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        if logged:
            self.log += [f"1: {path}", "1234567890"]
        return path

    def link(self, name: str, target: str, logged_target: str | None = None) -> Path:
        path = self.root / name
        path.symlink_to(target)
        self.log += [f"0: {path}", logged_target or target]
        return path

    def run(self) -> list[str]:
        (self.base / "log").write_text("\n".join(self.log) + "\n")
        done = subprocess.run(
            ["sh", str(SCRIPT), str(self.base)],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": f"{self.root / 'bin'}:{os.environ['PATH']}"},
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_files_links_and_the_database_go(node: Node) -> None:
    library = node.file("usr/lib/libnvidia-ml.so.580.105.08")
    link = node.link("usr/lib/libnvidia-ml.so.1", "libnvidia-ml.so.580.105.08")
    named = node.file("usr/share/doc/a name with spaces")
    said = node.run()
    assert not library.exists() and not link.is_symlink() and not named.exists() and not node.base.exists()
    assert said == [str(library), str(link), str(named), str(node.base)]
    assert node.calls.read_text().splitlines()[-2:] == ["ldconfig", "depmod"]


def test_what_is_somebody_elses_stays(node: Node) -> None:
    packaged = node.file("usr/lib/libcuda.so.590.48.01")
    node.owned.write_text(f"{packaged}\n")
    turned = node.link("usr/lib/libcuda.so.1", "libcuda.so.590.48.01", "libcuda.so.580.105.08")
    unlogged = node.file("usr/lib/libc.so.6", logged=False)
    node.run()
    assert packaged.exists() and turned.is_symlink() and unlogged.exists()


def test_what_was_there_before_comes_back(node: Node) -> None:
    library, link = node.root / "usr/lib/libGL.so.1.7.0", node.root / "usr/lib/libGL.so.1"
    (node.base / "100").write_text("mesa")
    node.log += [f"100: {library}", f"99 100751 {os.getuid()} {os.getgid()}"]
    node.log += [f"2: {link}", "mesa/libGL.so.1", f"120777 {os.getuid()} {os.getgid()}"]
    node.file("usr/lib/libGL.so.1.7.0")
    node.link("usr/lib/libGL.so.1", "libGL.so.1.7.0")
    node.run()
    assert library.read_text() == "mesa" and library.stat().st_mode & 0o7777 == 0o751
    assert os.readlink(link) == "mesa/libGL.so.1"


def test_only_empty_folders_that_it_made_go(node: Node) -> None:
    source = node.file("usr/src/nvidia-580.105.08/Kbuild")
    node.file("usr/share/nvidia/profile")
    kept = node.file("usr/share/nvidia/mine", logged=False)
    folders = [source.parent, kept.parent, node.base]
    (node.base / "dirs").write_text("".join(f"{path}\n" for path in folders))
    node.run()
    assert not source.parent.exists() and kept.exists() and kept.parent.is_dir() and source.parents[1].is_dir()


def test_dkms_forgets_the_version_when_it_knows_it(node: Node) -> None:
    node.run()
    assert "dkms remove" not in node.calls.read_text()
    node.base.mkdir()
    (node.root / "dkms").touch()
    assert "dkms nvidia/580.105.08" in node.run()
    assert "dkms remove -m nvidia -v 580.105.08 --all" in node.calls.read_text()


@pytest.mark.parametrize("cut", ["1: /", "1: ", "100", ""])
def test_a_log_that_was_cut_is_read_up_to_there(node: Node, cut: str) -> None:
    library = node.file("usr/lib/libnvidia-ml.so.580.105.08")
    node.log += [cut]
    node.run()
    assert not library.exists() and node.root.is_dir() and not node.base.exists()


def test_nothing_happens_without_a_database(node: Node) -> None:
    library = node.file("usr/lib/libnvidia-ml.so.580.105.08")
    done = subprocess.run(["sh", str(SCRIPT), str(node.base)], capture_output=True, text=True, check=True)
    assert done.stdout == "" and library.exists() and node.base.exists()
