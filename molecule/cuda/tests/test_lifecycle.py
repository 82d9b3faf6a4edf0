# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""CUDA toolkits through their life: refused, damaged, interrupted, exchanged, with cuDNN, gone without a trace.

Each step starts from where the one before left the node, as in real life; each ends with a run that changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

RUNFILE = {
    "version": "12.0.1",
    "method": "runfile",
    "sha256": "{{ fleet_depot.nvidia.runfiles['compute/cuda/12.0.1/local_installers/cuda_12.0.1_525.85.12_linux.run'].sha256 }}",
    "size_bytes": 4000000,
    "installed_bytes": 4000000,
}
OURS = [
    "/etc/apt/sources.list.d/gpufleet-nvidia.sources",
    "/etc/apt/preferences.d/zz-gpufleet-cuda-no-driver",
    "/usr/share/keyrings/gpufleet-nvidia.asc",
    "/etc/yum.repos.d/gpufleet-nvidia.repo",
    "/etc/pki/rpm-gpg/RPM-GPG-KEY-gpufleet-nvidia",
    "/etc/profile.d/gpufleet-cuda.sh",
    "/etc/ld.so.conf.d/gpufleet-cuda.conf",
    "/etc/ld.so.conf.d/cuda-12-0.conf",
    "/usr/local/cuda",
    "/usr/local/cuda-12.0",
    "/usr/local/cuda-12.4",
    "/var/lib/gpufleet/cuda",
]


def distribution(node: Any) -> str:
    return node.system_info.distribution


def only_with_packages(node: Any) -> None:
    if distribution(node) == "arch":
        pytest.skip("NVIDIA has no packages for Arch Linux")


def only_with_apt(node: Any) -> None:
    if distribution(node) not in ("debian", "ubuntu"):
        pytest.skip("dpkg only")


def wanted(node: Any, *more: Any) -> list[Any]:
    return [RUNFILE, *([] if distribution(node) == "arch" else ["12.4"]), *more]


def step(play: Callable[..., Any], node_name: str, **extra: Any) -> Any:
    done = play(extra)
    assert done.rc == 0, done
    again = play(extra)
    assert again.rc == 0 and again.changed == {node_name: 0}, again
    return done


def refused(play: Callable[..., Any], node_name: str, **extra: Any) -> str:
    """What the role said, which must not have changed anything."""
    done = play(extra)
    assert done.rc != 0, done
    return " ".join(done.output.split())


def packages(node: Any) -> set[str]:
    if distribution(node) in ("debian", "ubuntu"):
        return set(
            node.run("dpkg-query -W -f '${db:Status-Abbrev}${Package}\\n' | sed -n 's/^.i. *//p'").stdout.split()
        )
    if distribution(node) == "arch":
        return set(node.run("pacman -Qq").stdout.split())
    return set(node.run("rpm -qa --qf '%{NAME}\\n'").stdout.split())


def version(node: Any, name: str) -> str:
    """The installed version of a package, without its revision."""
    apt = distribution(node) in ("debian", "ubuntu")
    query = "dpkg-query -W -f '${Version}'" if apt else "rpm -q --qf '%{VERSION}'"
    return str(node.run(f"{query} {name}").stdout.partition("-")[0])


def runtime(node: Any) -> str:
    """What the package with the runtime's headers is called."""
    return "cuda-cudart-dev-12-4" if distribution(node) in ("debian", "ubuntu") else "cuda-cudart-devel-12-4"


def made(node: Any, name: str, fields: str, script: str = "exit 0") -> str:
    """The path of a package of somebody else, in Debian's format."""
    done = node.run(
        "sh -c %s",
        f"set -e; d=/root/{name}; rm -rf $d; mkdir -p $d/DEBIAN; cd $d/DEBIAN; printf 'Package: {name}\\nVersion: 1\\n"
        f"Architecture: all\\nMaintainer: fixture <fixture@gpufleet.test>\\nDescription: fixture\\n{fields}\\n' > control;"
        f" printf '#!/bin/sh\\n{script}\\n' > postinst; chmod 755 postinst; dpkg-deb --build $d $d.deb; rm -r $d",
    )
    assert done.rc == 0, done
    return f"/root/{name}.deb"


def nvcc(node: Any, release: str) -> bool:
    return node.run(f"/usr/local/cuda-{release}/bin/nvcc --version").stdout.count(f"release {release},") == 1


def test_a_metapackage_that_drags_a_driver_is_refused(node: Any, node_name: str, play: Any) -> None:
    only_with_packages(node)
    before = packages(node)
    toolkit = {"version": "12.4", "packages": ["cuda-12-4", "cuda-toolkit-12-4"]}
    said = refused(play, node_name, cuda_toolkits=[RUNFILE, toolkit], cuda_block_driver_packages="never")
    assert "cuda-12-4" in said and "cuda-drivers" in said
    assert packages(node) == before
    step(play, node_name)


def test_nothing_is_fetched_when_the_disk_is_too_small(node: Any, node_name: str, play: Any) -> None:
    large = {**RUNFILE, "version": "12.0.1", "path": "/opt/cuda-12.0", "size_bytes": 10**15}
    said = refused(play, node_name, cuda_toolkits=[large])
    assert "Nothing was changed" in said and "to unpack the installer" in said and "cuda_runfile_tmpdir" in said
    assert not node.file("/opt/cuda-12.0").exists and node.run("ls -A /var/cache/gpufleet/cuda").stdout == ""


@pytest.mark.parametrize("release", ["12.0", "12.4"])
def test_a_toolkit_whose_files_are_gone_is_healed(node: Any, node_name: str, play: Any, release: str) -> None:
    if release == "12.4":
        only_with_packages(node)
    assert node.run(f"rm -f /usr/local/cuda-{release}/bin/nvcc").rc == 0
    step(play, node_name)
    assert nvcc(node, release)


def test_an_installer_that_fails_is_explained(node: Any, node_name: str, play: Any) -> None:
    node.run("rm -rf /usr/local/cuda-12.0/bin; mkdir -p /etc/gpufleet-fixture; touch /etc/gpufleet-fixture/cuda-fails")
    said = refused(play, node_name)
    assert "/var/log/cuda-installer.log" in said and "No space left on device" in said
    node.run("rm -f /etc/gpufleet-fixture/cuda-fails")
    step(play, node_name)
    assert nvcc(node, "12.0")


def test_an_installer_that_was_killed_is_healed(node: Any, node_name: str, play: Any) -> None:
    node.run("rm -rf /usr/local/cuda-12.0/bin; touch /etc/gpufleet-fixture/cuda-killed-halfway")
    assert refused(play, node_name)
    assert node.file("/var/lib/gpufleet/cuda/12.0.incomplete").exists
    node.run("rm -rf /etc/gpufleet-fixture/cuda-killed-halfway")
    # halfway: what proves a toolkit is there, a library is missing
    node.run("mkdir -p /usr/local/cuda-12.0/bin")
    seen = play({}, "--check")
    assert seen.rc == 0 and seen.changed[node_name] == 1, seen
    step(play, node_name)
    assert nvcc(node, "12.0") and not node.file("/var/lib/gpufleet/cuda/12.0.incomplete").exists
    assert node.run("test -e /usr/local/cuda-12.0/lib64/libcudart.so").rc == 0


def test_an_interrupted_dpkg_is_healed(node: Any, node_name: str, play: Any) -> None:
    only_with_apt(node)
    assert node.run("dpkg --force-all --remove cuda-toolkit-12-4 cuda-nvcc-12-4").rc == 0
    assert (
        node.run(
            "cd /tmp && apt-get download cuda-nvcc-12-4 && dpkg --unpack cuda-nvcc-12-4_*.deb; rm -f cuda-*.deb"
        ).rc
        == 0
    )
    assert "cuda-nvcc-12-4" in node.run("dpkg --audit").stdout
    step(play, node_name)
    assert node.run("dpkg --audit").stdout == "" and nvcc(node, "12.4")


def test_another_ones_package_that_cannot_be_configured_is_left_alone(node: Any, node_name: str, play: Any) -> None:
    """A module of a driver that does not build is the business of another role."""
    only_with_apt(node)
    theirs = made(node, "gpufleet-broken", "Section: misc", "exit 1")
    same = "$(dpkg-query -W -f '${Package}=${Version} ' cuda-nvcc-12-4 cuda-toolkit-12-4)"
    download = f"cd /tmp && apt-get download {same} && dpkg --unpack cuda-*.deb; rm -f cuda-*.deb"
    assert node.run(f"{download}; dpkg --unpack {theirs}").rc == 0
    open_journal(node)
    done = play({})
    audit = node.run("dpkg --audit").stdout
    assert node.run("dpkg --purge gpufleet-broken").rc == 0
    assert done.rc == 0, done
    assert "gpufleet-broken" in audit and "cuda" not in audit
    step(play, node_name)
    assert node.run("dpkg --audit").stdout == "" and nvcc(node, "12.4")


def open_journal(node: Any) -> None:
    """As a dpkg that was killed leaves it."""
    node.run("dpkg --status cuda-nvcc-12-4 > /var/lib/dpkg/updates/0001")
    assert "dpkg was interrupted" in node.run("apt-get check").stderr


def test_a_removal_takes_up_what_a_killed_dpkg_has_left(node: Any, node_name: str, play: Any) -> None:
    only_with_apt(node)
    open_journal(node)
    step(play, node_name, cuda_state="absent")
    assert [name for name in packages(node) if "cuda" in name] == []
    step(play, node_name)


GXX = {
    "refused": "echo 'a.h(138): error: -- unsupported GNU version! gcc versions later than 12' >&2; exit 1",
    "works": """while [ $# -gt 0 ]; do case "$1" in -o) o=$2 ;; *cuda-12.0*) v=12000 ;; esac; shift; done
printf '#!/bin/sh\\necho %s\\n' "${v:-12040}" > "$o"; chmod +x "$o" """,
}


def compiler(node: Any, how: str) -> None:
    """A host compiler that refuses, or one whose programs say their runtime's version."""
    assert (
        node.run("sh -c %s", f"cat > /usr/bin/g++ <<'END'\n#!/bin/sh\n{GXX[how]}\nEND\nchmod +x /usr/bin/g++").rc == 0
    )


def test_a_proof_that_failed_is_taken_up_again(node: Any, node_name: str, play: Any) -> None:
    if node.exists("g++"):
        pytest.skip("a node with a compiler of its own")
    compiler(node, "refused")
    node.run("rm -f /usr/local/cuda-12.0/bin/nvcc")
    try:
        for changed in (True, False):
            done = play({}, "-v")
            assert done.rc == 0 and (done.changed[node_name] > 0) is changed, done
            assert "nvcc refuses the host compiler" in " ".join(done.output.split()), done
        compiler(node, "works")
        done = play({}, "-v")
        assert "a compiled program runs with runtime 12000" in " ".join(done.output.split()), done
    finally:
        node.run("rm -f /usr/bin/g++")
    step(play, node_name)
    assert node.run("ls /var/lib/gpufleet/cuda/*.unproven").stdout == ""


def test_a_proof_when_nothing_differs_is_made_when_asked(node: Any, node_name: str, play: Any) -> None:
    assert "Compile and run" not in play({}).output
    asked = play({"cuda_verify_always": True})
    assert "Compile and run" in asked.output and asked.changed == {node_name: 0}, asked


def test_a_wrong_key_is_not_trusted(node: Any, node_name: str, play: Any) -> None:
    only_with_packages(node)
    paths = "/usr/share/keyrings/gpufleet-nvidia.asc /etc/pki/rpm-gpg/RPM-GPG-KEY-gpufleet-nvidia"
    node.run(f"rm -f {paths}")
    said = refused(play, node_name, cuda_repo_key_fingerprints=["EB693B3035CD5710E231E123A4B469963BF863CC"])
    assert "Nothing was trusted" in said and "EB693B3035CD5710E231E123A4B469963BF863CC" in said
    assert node.run(f"ls {paths} 2>/dev/null").stdout == ""
    step(play, node_name)


def test_the_pin_goes_when_the_driver_comes_from_the_repository(node: Any, node_name: str, play: Any) -> None:
    only_with_apt(node)
    pin = "/etc/apt/preferences.d/zz-gpufleet-cuda-no-driver"
    node.run(f"rm -f {pin}")
    assert node.run("apt-get install -y nvidia-driver-pinning-580").rc == 0
    step(play, node_name)
    assert not node.file(pin).exists
    assert node.run("apt-get purge -y nvidia-driver-pinning-580").rc == 0
    step(play, node_name)
    assert node.file(pin).exists


def test_the_default_follows_the_variable(node: Any, node_name: str, play: Any) -> None:
    step(play, node_name, cuda_default="12.0", cuda_ld_so_conf=True)
    assert node.run("readlink -f /usr/local/cuda").stdout.strip() == "/usr/local/cuda-12.0"
    assert "/usr/local/cuda/lib64" in node.file("/etc/ld.so.conf.d/gpufleet-cuda.conf").content_string
    cache = node.run("stat -c '%i %z' /etc/ld.so.cache").stdout
    step(play, node_name, cuda_default="12.0", cuda_ld_so_conf=True)
    assert node.run("stat -c '%i %z' /etc/ld.so.cache").stdout == cache
    if distribution(node) != "arch":
        # the loader knows the libraries of the toolkit that the link led to when ldconfig ran last
        step(play, node_name, cuda_default="12.4", cuda_ld_so_conf=True)
        assert node.run("stat -c '%i %z' /etc/ld.so.cache").stdout != cache
    step(play, node_name)
    assert not node.file("/etc/ld.so.conf.d/gpufleet-cuda.conf").exists
    if distribution(node) != "arch":
        # NVIDIA's packages offer theirs by alternatives, whose owner is the node's administrator: that stays so.
        assert alternative(node) == "/usr/local/cuda-12.4"


def test_the_link_and_the_path_are_left_alone_when_asked(node: Any, node_name: str, play: Any) -> None:
    profile = "/etc/profile.d/gpufleet-cuda.sh"
    node.run("ln -sfn /nonexistent /usr/local/cuda")
    step(play, node_name, cuda_default="none")
    assert node.run("readlink /usr/local/cuda").stdout.strip() == "/nonexistent" and not node.file(profile).exists
    step(play, node_name, cuda_path=False)
    assert (
        nvcc(node, "12.0") and node.run("/usr/local/cuda/bin/nvcc --version").rc == 0 and not node.file(profile).exists
    )
    step(play, node_name)
    assert node.file(profile).exists


def test_a_toolkit_lies_where_it_is_asked_for_and_moves(node: Any, node_name: str, play: Any) -> None:
    """Also with a path that is written with a slash at its end."""
    rest = wanted(node)[1:]
    step(play, node_name, cuda_toolkits=[{**RUNFILE, "path": "/opt/toolkits/cuda-12.0/"}, *rest], cuda_default="12.0")
    assert "release 12.0," in node.run("/usr/local/cuda/bin/nvcc --version").stdout
    assert node.file("/opt/toolkits/cuda-12.0/bin/nvcc").exists and not node.file("/usr/local/cuda-12.0").exists
    step(play, node_name)
    assert nvcc(node, "12.0") and not node.file("/opt/toolkits/cuda-12.0").exists


def alternative(node: Any) -> str:
    """Where the alternatives' link, which /usr/local/cuda leads to, leads to."""
    assert node.run("readlink /usr/local/cuda").stdout.strip() == "/etc/alternatives/cuda"
    return str(node.run("readlink /etc/alternatives/cuda").stdout.strip())


def test_an_update_is_pinned(node: Any, node_name: str, play: Any) -> None:
    only_with_packages(node)
    for update, part in (("12.4.0", "12.4.99"), ("12.4.1", "12.4.131"), ("12.4.0", "12.4.99")):
        step(play, node_name, cuda_toolkits=[RUNFILE, update])
        assert version(node, "cuda-toolkit-12-4") == update
        assert {version(node, name) for name in ("cuda-nvcc-12-4", runtime(node))} == {part}
        assert f"V{part}" in node.run("/usr/local/cuda-12.4/bin/nvcc --version").stdout
    # as an upgrade of the system takes a part along
    apt = distribution(node) in ("debian", "ubuntu")
    assert node.run(f"{'apt-get install' if apt else 'dnf upgrade'} -y cuda-nvcc-12-4").rc == 0
    assert version(node, "cuda-nvcc-12-4") == "12.4.131"
    step(play, node_name, cuda_toolkits=[RUNFILE, "12.4.0"])
    assert version(node, "cuda-nvcc-12-4") == "12.4.99"
    chosen = {"version": "12.4.1", "packages": ["cuda-nvcc-12-4", runtime(node)]}
    step(play, node_name, cuda_toolkits=[RUNFILE, chosen])
    assert {version(node, name) for name in chosen["packages"]} == {"12.4.131"}
    step(play, node_name, cuda_toolkits=[RUNFILE, "12.4.0"])


def test_force_heals_what_no_look_sees(node: Any, node_name: str, play: Any) -> None:
    """In the version that is there: "12.4" is content with it, although 12.4.1 could be had."""
    only_with_packages(node)
    library = "/usr/local/cuda-12.4/lib64/libcudart.so.12.4.99"
    step(play, node_name)
    assert node.run(f"rm {library}").rc == 0
    assert play({}).changed == {node_name: 0} and not node.file(library).exists
    done = play({"cuda_force": True})
    assert done.rc == 0 and node.file(library).exists, done
    assert version(node, runtime(node)) == "12.4.99"
    step(play, node_name, cuda_toolkits=[RUNFILE, "12.4.1"])


def test_a_runfile_goes_up_and_down(node: Any, node_name: str, play: Any) -> None:
    """One update of a release at a time, at one place; nothing of the other one is left."""
    place = "compute/cuda/12.0.0/local_installers/cuda_12.0.0_525.60.13_linux.run"
    older = {
        **RUNFILE,
        "version": "12.0.0",
        "url": f"https://developer.download.nvidia.com/{place}",
        "sha256": f"{{{{ fleet_depot.nvidia.runfiles['{place}'].sha256 }}}}",
    }
    for toolkit, part in ((older, "12.0.76"), (RUNFILE, "12.0.140")):
        step(play, node_name, cuda_toolkits=[toolkit, *wanted(node)[1:]])
        assert f"V{part}" in node.run("/usr/local/cuda-12.0/bin/nvcc --version").stdout
        libraries = node.run("cd /usr/local/cuda-12.0/lib64/ && ls libcudart.so.12.*").stdout.split()
        assert libraries == [f"libcudart.so.{part}"]


def test_a_dnf_that_was_killed_is_healed(node: Any, node_name: str, play: Any) -> None:
    """Killed after the new part came and before the old one went, and while a part's files were written."""
    if distribution(node) in ("debian", "ubuntu", "arch"):
        pytest.skip("dnf only")
    step(play, node_name, cuda_toolkits=[RUNFILE, "12.4.1"])
    older = node.run("dnf -q repoquery --location cuda-nvcc-12-4-12.4.99").stdout.strip()
    assert node.run(f"rpm -i --justdb --nodeps --force {older}").rc == 0
    assert node.run("rpm -q cuda-nvcc-12-4").stdout.count("cuda-nvcc-12-4-12.4.") == 2
    step(play, node_name, cuda_toolkits=[RUNFILE, "12.4.1"])
    assert node.run("rpm -q cuda-nvcc-12-4").stdout.split() == ["cuda-nvcc-12-4-12.4.131-1.x86_64"]
    assert node.run(f"rpm -e --justdb --nodeps {runtime(node)}; rm -f /usr/local/cuda-12.4/bin/nvcc").rc == 0
    step(play, node_name, cuda_toolkits=[RUNFILE, "12.4.1"])
    assert version(node, runtime(node)) == "12.4.131" and nvcc(node, "12.4")
    assert node.run("rpm -V cuda-nvcc-12-4 " + runtime(node)).stdout == ""


def test_a_toolkit_may_be_without_its_compiler(node: Any, node_name: str, play: Any) -> None:
    only_with_packages(node)
    gone = {"version": "12.4", "state": "absent"}
    step(play, node_name, cuda_toolkits=[RUNFILE, gone])
    step(play, node_name, cuda_toolkits=[RUNFILE, {"version": "12.4", "packages": [runtime(node)]}])
    assert node.file("/usr/local/cuda-12.4/include/cuda_runtime.h").exists and "cuda-nvcc-12-4" not in packages(node)
    step(play, node_name, cuda_toolkits=[RUNFILE, gone])
    assert not node.file("/usr/local/cuda-12.4").exists
    if distribution(node) in ("debian", "ubuntu"):
        assert node.run(f"dpkg --install {made(node, 'gpufleet-conflicts', 'Conflicts: cuda-nvcc-12-4')}").rc == 0
        said = refused(play, node_name)
        assert "would remove gpufleet-conflicts" in said and "gpufleet-conflicts" in packages(node)
        assert node.run("dpkg --purge gpufleet-conflicts").rc == 0
    step(play, node_name)


def archive(node: Any, version: str) -> dict[str, str]:
    """A small cuDNN archive on the node, in the shape of NVIDIA's."""
    name = f"cudnn-linux-x86_64-{version}_cuda12-archive"
    major, minor, patch, _build = version.split(".")
    header = f"#define CUDNN_MAJOR {major}\\n#define CUDNN_MINOR {minor}\\n#define CUDNN_PATCHLEVEL {patch}\\n"
    library = f"libcudnn.so.{major}.{minor}.{patch}"
    pack = (
        f"python3 -c \"import lzma; lzma.open('/tmp/{name}.tar.xz', 'w').write(open('/tmp/{name}.tar', 'rb').read())\""
    )
    made = node.run(
        f"set -e; mkdir -p /tmp/w/{name}; cd /tmp/w/{name}; mkdir include lib; printf '{header}' > include/cudnn_version.h;"
        f"echo {version} > lib/{library}; ln -s {library} lib/libcudnn.so.{major}; ln -s libcudnn.so.{major} lib/libcudnn.so;"
        f"tar -C .. -cf /tmp/{name}.tar {name}; rm -rf /tmp/w; {pack}; sha256sum /tmp/{name}.tar.xz"
    )
    assert made.rc == 0, made
    return {"version": version, "url": f"file:///tmp/{name}.tar.xz", "sha256": made.stdout.split()[0]}


def test_cudnn_goes_into_one_toolkit(node: Any, node_name: str, play: Any) -> None:
    reach = {"rewrite": {"file:///tmp/": ["file:///tmp/"]}}
    for version in ("9.2.0.82", "8.9.7.29"):
        toolkits = [{**RUNFILE, "cudnn": archive(node, version)}, *wanted(node)[1:]]
        step(play, node_name, cuda_toolkits=toolkits, cuda_mirror_overrides=reach)
        short = version.rpartition(".")[0]
        assert node.file(f"/usr/local/cuda-12.0/lib64/libcudnn.so.{short}").content_string.strip() == version
        assert node.run("ls /usr/local/cuda-12.0/lib64/libcudnn.so.?.*").stdout.count("\n") == 1
        assert node.run("ls -d /usr/local/cuda-12.4/*/libcudnn* /usr/lib/*/libcudnn*").stdout == ""
    node.run("rm -f /usr/local/cuda-12.0/lib64/libcudnn.so.8.9.7")
    step(play, node_name, cuda_toolkits=toolkits, cuda_mirror_overrides=reach)
    assert node.run("test -s /usr/local/cuda-12.0/lib64/libcudnn.so.8").rc == 0
    if distribution(node) != "arch":
        toolkits[1] = {"version": "12.4", "cudnn": archive(node, "9.2.0.82")}
        step(play, node_name, cuda_toolkits=toolkits, cuda_mirror_overrides=reach)
        assert node.run("test -s /usr/local/cuda-12.4/lib64/libcudnn.so.9").rc == 0
        assert node.run("ls /usr/local/cuda-12.0/lib64/libcudnn.so.?.*").stdout.split() == [
            "/usr/local/cuda-12.0/lib64/libcudnn.so.8.9.7"
        ]
    step(play, node_name)
    assert node.run("ls /usr/local/cuda-12.?/lib64/libcudnn* /usr/local/cuda-12.?/include/cudnn*").stdout == ""
    assert nvcc(node, "12.0")


def test_another_ones_toolkit_is_not_touched_without_consent(node: Any, node_name: str, play: Any) -> None:
    only_with_packages(node)
    step(play, node_name, cuda_toolkits=[{"version": "12.0", "state": "absent"}, "12.4"])
    node.run(
        "mkdir -p /usr/local/cuda-12.0/bin; printf '#!/bin/sh\\necho mine\\n' > /usr/local/cuda-12.0/bin/cuda-uninstaller"
    )
    node.run("echo keep > /usr/local/cuda-12.0/theirs")
    said = refused(play, node_name)
    assert "that this role did not install" in said and "cuda_switch_method" in said
    assert node.file("/usr/local/cuda-12.0/theirs").exists
    step(play, node_name, cuda_switch_method=True)
    assert nvcc(node, "12.0") and not node.file("/usr/local/cuda-12.0/theirs").exists


def test_the_method_changes(node: Any, node_name: str, play: Any) -> None:
    only_with_packages(node)
    if distribution(node) == "debian" and node.system_info.release.startswith("13"):
        pytest.skip("as with NVIDIA, there is no CUDA 12.0 for Debian 13")
    step(play, node_name, cuda_toolkits=["12.0", "12.4"])
    assert not node.file("/usr/local/cuda-12.0/bin/cuda-uninstaller").exists and nvcc(node, "12.0")
    step(play, node_name, cuda_toolkits=["12.0", "12.4"], cuda_default="12.0")
    assert alternative(node) == "/usr/local/cuda-12.0"
    step(play, node_name)
    assert node.file("/usr/local/cuda-12.0/bin/cuda-uninstaller").exists and nvcc(node, "12.0")
    assert "cuda-toolkit-12-0" not in packages(node)


def test_what_is_no_longer_listed_stays_or_goes(node: Any, node_name: str, play: Any) -> None:
    only_with_packages(node)
    step(play, node_name, cuda_toolkits=["12.4"])
    assert nvcc(node, "12.0")
    step(play, node_name, cuda_toolkits=["12.4"], cuda_exclusive=True)
    assert not node.file("/usr/local/cuda-12.0").exists and nvcc(node, "12.4")


def test_what_is_merely_suggested_goes_too(node: Any, node_name: str, play: Any) -> None:
    only_with_apt(node)
    step(play, node_name)
    brought = set(node.file("/var/lib/gpufleet/cuda/packages").content_string.split())
    libraries = sorted(name for name in brought if name.startswith("lib") and "cuda" not in name)
    assert libraries, "the runfile's installer wants libxml2"
    # Somebody else's, which would like a library that the role has brought, and does without it
    theirs = made(node, "gpufleet-suggests", f"Suggests: {', '.join(libraries)}")
    assert node.run(f"dpkg --install {theirs}").rc == 0
    step(play, node_name, cuda_state="absent")
    assert not brought & packages(node)
    assert "gpufleet-suggests" in packages(node)
    assert node.run("dpkg --purge gpufleet-suggests").rc == 0


def test_the_source_stays_while_the_driver_comes_from_it(node: Any, node_name: str, play: Any) -> None:
    if distribution(node) in ("debian", "ubuntu", "arch"):
        pytest.skip("dnf only; how apt's is known: test_the_pin_goes_when_the_driver_comes_from_the_repository")
    source = "/etc/yum.repos.d/gpufleet-nvidia.repo"
    step(play, node_name)
    assert node.run(DRIVER_OF_A_STREAM).rc == 0
    step(play, node_name, cuda_state="absent")
    assert node.file(source).exists and trusted(node)
    assert node.run("dnf remove -y nvidia-driver-libs").rc == 0
    step(play, node_name, cuda_state="absent")
    assert not node.file(source).exists


# A part of a driver, past dnf: no module stream of it is enabled
DRIVER_OF_A_STREAM = (
    "set -e; u=$(dnf -q repoquery --disable-modular-filtering --location nvidia-driver-libs | tail -n 1);"
    " curl -sS -o /root/part.rpm $u; rpm --install --nodeps /root/part.rpm; rm /root/part.rpm"
)


def trusted(node: Any) -> bool:
    """Whether rpm still trusts the repository's key."""
    return "NVIDIA-shaped" in node.run("rpm -qa --qf '%{SUMMARY}\\n' 'gpg-pubkey*'").stdout


def test_it_goes_without_a_trace(node: Any, node_name: str, play: Any) -> None:
    step(play, node_name)
    rpm = distribution(node) not in ("debian", "ubuntu", "arch")
    assert not rpm or trusted(node)
    step(play, node_name, cuda_state="absent")
    assert not rpm or not trusted(node)
    assert [path for path in OURS if node.run(f"test -e {path} -o -L {path}").rc == 0] == []
    assert [name for name in packages(node) if "cuda" in name] == []


def test_it_goes_without_a_trace_also_when_the_list_is_empty(node: Any, node_name: str, play: Any) -> None:
    step(play, node_name)
    step(play, node_name, cuda_state="absent", cuda_toolkits=[])
    assert [path for path in OURS if node.run(f"test -e {path} -o -L {path}").rc == 0] == []
    step(play, node_name)


def test_another_ones_toolkit_stays_when_all_goes(node: Any, node_name: str, play: Any) -> None:
    step(play, node_name, cuda_state="absent")
    theirs = "/usr/local/cuda-12.0/theirs"
    assert node.run(f"mkdir -p /usr/local/cuda-12.0 && echo keep > {theirs}").rc == 0
    again = play({"cuda_state": "absent"})
    assert again.rc == 0 and again.changed == {node_name: 0} and node.file(theirs).exists, again
    step(play, node_name, cuda_toolkits=[{"version": "12.0", "state": "absent"}])
    assert not node.file("/usr/local/cuda-12.0").exists
    step(play, node_name)
