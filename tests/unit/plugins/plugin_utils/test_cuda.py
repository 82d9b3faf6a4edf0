# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which toolkits, how, and what stops before the first change."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from ansible_collections.gpufleet.llm.plugins.plugin_utils import (
    cuda,
    cuda_packages,
    driver_files,
    driver_table,
    nvidia_repository,
)
from ansible_collections.gpufleet.llm.plugins.plugin_utils.observe import build_request

SETTINGS = {
    "state": "present",
    "toolkits": [],
    "method": "auto",
    "default": "auto",
    "path": True,
    "ld_so_conf": False,
    "exclusive": False,
    "switch_method": False,
    "force": False,
    "force_unsupported": False,
    "verify_compile": True,
    "block_driver_packages": "auto",
    "root": "/usr/local",
    "tmpdir": "/var/tmp",
    "cache": "/var/cache/gpufleet/cuda",
    "repo_base_url": "",
    "repo_key_url": "",
    "repo_key_fingerprints": [],
    "mirror_profile": "upstream",
    "mirror_overrides": {},
}
COMMON = {"machine": "x86_64", "repository_packages": [], "runfile_packages": []}
DEBIAN = {
    **COMMON,
    "distribution": "Debian",
    "os_family": "Debian",
    "version": "12.5",
    "package_manager": "apt",
    "distribution_packages": ["nvidia-cuda-toolkit"],
    "distribution_prefix": "/usr",
}
ROCKY = {
    **COMMON,
    "distribution": "Rocky",
    "os_family": "RedHat",
    "version": "9.4",
    "package_manager": "dnf",
    "distribution_packages": [],
    "distribution_prefix": "",
}
ARCH = {
    **COMMON,
    "distribution": "Archlinux",
    "os_family": "Archlinux",
    "version": "NA",
    "package_manager": "pacman",
    "distribution_packages": ["cuda"],
    "distribution_prefix": "/opt/cuda",
}


def plan(toolkits, system=DEBIAN, **more):
    return cuda.decide({**SETTINGS, "toolkits": toolkits, **more}, system)


def look(the_plan, differs=(), **stdout):
    """What observe says: items that differ by key, and the outputs of commands by key with ``_`` for ``:``."""
    seen = {key: {"stdout": text, "content": text} for key, text in stdout.items()}
    return {"differs": bool(differs), "drift": list(differs), "seen": seen, "items": []}


def work(the_plan, seen, gpu=None, **more):
    return cuda.work(the_plan, seen, gpu, {**SETTINGS, **more})


def card(name, capability, **more):
    return {"name": name, "compute_capability": capability, **more}


def node(*cards, driver="580.126.20"):
    return {"gpus": list(cards), "driver": {"loaded_version": driver, "library_version": None}}


T4 = card("Tesla T4", "7.5")
P100 = card("Tesla P100", "6.0")
GTX1060 = card("GeForce GTX 1060", "6.1")
H100 = card("H100", "9.0")
B200 = card("B200", "10.0")


# --- wishes


def test_none_is_the_default_and_costs_nothing():
    assert plan([])["nothing"] and plan([])["items"] == []


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (12.4, "quotes"),
        (12, "quotes"),
        ("latest", "exact version"),
        ("12", "exact version"),
        ("", "exact version"),
        ({"version": "12.4", "vrsion": "x"}, "vrsion"),
        ({"version": "12.4", "state": "gone"}, "present or absent"),
        ({"version": "12.4", "method": "apt"}, "not one of"),
        ({"version": "12.4", "cudnn": "9"}, "9.2.0.82"),
        ({"version": "12.4", "cudnn": {"version": "9.9.9.9"}}, "SHA-256 is not known"),
        ({"version": "12.4", "path": "/opt/cuda"}, "only a runfile"),
        ({"version": "12.7.0", "method": "runfile"}, "known for x86_64"),
        ({"version": "12.0.1", "method": "runfile", "sha256": "abc"}, "64 hexadecimal"),
        ({"version": "12.0.1", "method": "runfile", "options": ["--driver"]}, "would install a driver"),
    ],
)
def test_a_wish_that_cannot_be_is_refused(given, says):
    with pytest.raises(cuda.CudaError, match=re.escape(says)):
        plan([given])


def test_a_list_is_a_list():
    with pytest.raises(cuda.CudaError, match="must be a list"):
        plan("12.4")


def test_two_updates_of_one_release_share_a_folder():
    with pytest.raises(cuda.CudaError, match="same folder"):
        plan(["12.4.0", "12.4.1"])


@pytest.mark.parametrize(
    ("system", "version", "method"),
    [(DEBIAN, "12.4", "repository"), (ROCKY, "12.4", "repository"), (ARCH, "12.4", "runfile")],
)
def test_auto_takes_packages_where_there_are_some(system, version, method):
    assert plan([version], system)["toolkits"][0]["method"] == method


def test_auto_on_arch_says_what_to_do_about_an_unknown_release():
    with pytest.raises(cuda.CudaError, match="method: runfile with url and sha256"):
        plan(["13.0"], ARCH)


def test_rhel_has_no_toolkit_of_its_own():
    with pytest.raises(cuda.CudaError, match="no CUDA toolkit of its own"):
        plan([{"version": "12.4", "method": "distribution"}], ROCKY)


def test_the_package_is_one_without_a_driver():
    toolkit = plan(["12.4"])["toolkits"][0]
    assert toolkit["packages"] == ["cuda-toolkit-12-4"]
    assert nvidia_repository.driver_packages(toolkit["packages"]) == []
    assert cuda_packages.specs([toolkit], "apt") == ["cuda-toolkit-12-4"]


def test_three_numbers_pin_the_update():
    toolkit = plan(["12.4.1"])["toolkits"][0]
    assert cuda_packages.specs([toolkit], "apt") == ["cuda-toolkit-12-4=12.4.1-*"]
    assert cuda_packages.specs([toolkit], "dnf") == ["cuda-toolkit-12-4-12.4.1"]
    item = next(i for i in plan(["12.4.1"])["items"] if i.get("name") == "cuda-toolkit-12-4")
    assert item["version"] == "12.4.1-*"


def test_the_runfile_of_the_seed():
    toolkit = plan([{"version": "12.0.1", "method": "runfile"}])["toolkits"][0]
    runfile = toolkit["runfile"]
    assert runfile["urls"] == [
        "https://developer.download.nvidia.com/compute/cuda/12.0.1/local_installers/cuda_12.0.1_525.85.12_linux.run"
    ]
    assert runfile["sha256"] == "1b205a06272f1463f477276fdab903f3f666917c068e520738001e69c7a1875b"
    assert {"--silent", "--toolkit", "--toolkitpath=/usr/local/cuda-12.0", "--tmpdir=/var/tmp"} <= set(
        runfile["options"]
    )
    assert "--driver" not in runfile["options"]


def test_a_release_takes_its_newest_known_update():
    assert plan([{"version": "12.4", "method": "runfile"}])["toolkits"][0]["full"] == "12.4.1"


def test_every_known_runfile_can_be_planned():
    for row in cuda.data()["runfiles"]:
        system = {**DEBIAN, "machine": row["machine"]}
        toolkit = plan([{"version": row["cuda"], "method": "runfile"}], system)["toolkits"][0]
        assert toolkit["runfile"]["name"] == row["file"] and re.fullmatch("[0-9a-f]{64}", row["sha256"])
        assert row["source"] in cuda.data()["sources"]


@pytest.mark.parametrize(("wanted", "release"), [("auto", "12.4"), ("12.0", "12.0"), ("12.0.1", "12.0"), ("none", "")])
def test_the_default(wanted, release):
    toolkits = [{"version": "12.0.1", "method": "runfile"}, "12.4", {"version": "12.9", "state": "absent"}]
    assert plan(toolkits, default=wanted)["default"] == release


def test_twelve_ten_is_newer_than_twelve_nine():
    assert plan(["12.9", "12.10"])["default"] == "12.10"


def test_a_default_that_is_not_there():
    with pytest.raises(cuda.CudaError, match="none of the toolkits"):
        plan(["12.4"], default="12.0")


def test_the_distributions_toolkit_needs_no_link_and_no_path():
    made = plan([{"version": "11.8", "method": "distribution"}])
    assert made["default"] == "" and made["files"] == [] and made["repository"] is None
    assert made["toolkits"][0]["nvcc"] == "/usr/bin/nvcc"


def test_no_file_sets_a_library_path():
    made = plan(["12.4"], ld_so_conf=True)
    for file in made["files"]:
        code = [line for line in file["content"].splitlines() if not line.startswith("#")]
        assert not any("LD_LIBRARY_PATH" in line for line in code)
    assert cuda.LD_SO_CONF in [file["path"] for file in made["files"]]
    assert cuda.LD_SO_CONF in plan(["12.4"])["absent_files"]


@pytest.mark.parametrize(("before", "after"), [("", "/usr/local/cuda/bin"), ("/bin", "/usr/local/cuda/bin:/bin")])
def test_the_profile_adds_once(before, after):
    script = cuda.profile_script("/usr/local/cuda")
    done = subprocess.run(
        ["/bin/sh", "-c", f"PATH='{before}'\n{script}{script}echo \"$PATH\""],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == after  # in particular no empty entry, which would be the current directory


def test_observe_takes_every_item():
    for system in (DEBIAN, ROCKY):
        toolkits = [
            {"version": "12.0.1", "method": "runfile", "cudnn": "9.2.0.82"},
            "12.4",
            {"version": "11.8", "state": "absent"},
        ]
        for more in ({}, {"exclusive": True}, {"state": "absent"}):
            assert build_request(plan(toolkits, system, **more)["items"])


# --- the looks, on real files


def toolkit_at(tmp_path, version="12.0.1", nvcc="12.0.140", uninstaller=False):
    (tmp_path / "bin").mkdir(parents=True)
    if version:
        text = json.dumps({"cuda": {"name": "CUDA SDK", "version": version}, "cuda_nvcc": {"version": "9.9"}}, indent=1)
        text = text.replace('": ', '" : ')  # as NVIDIA writes it
        (tmp_path / "version.json").write_text(text)
    program = tmp_path / "bin" / "nvcc"
    minor = ".".join(nvcc.split(".")[:2])
    program.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {minor}, V{nvcc}'\n")
    program.chmod(0o755)
    if uninstaller:
        (tmp_path / "bin" / "cuda-uninstaller").write_text("")
    argv = ["/bin/sh", "-c", cuda.LOOK_TOOLKIT, "sh", str(tmp_path), str(program)]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    ("version", "nvcc", "uninstaller", "wish", "good"),
    [
        ("12.0.1", "12.0.140", True, {"version": "12.0.1", "method": "runfile"}, True),
        ("12.0.20230110", "12.0.140", True, {"version": "12.0.1", "method": "runfile"}, True),
        ("12.0.0", "12.0.76", True, {"version": "12.0.1", "method": "runfile"}, False),
        ("", "12.0.140", True, {"version": "12.0.1", "method": "runfile"}, False),
        ("12.0.1", "12.0.140", False, {"version": "12.0.1", "method": "runfile"}, False),
        ("12.4.1", "12.4.131", False, "12.4", True),
        ("", "12.4.131", False, "12.4", True),
        ("12.4.1", "12.4.131", True, "12.4", False),
        ("12.4.1", "12.0.140", False, "12.4", False),
        ("12.0.1", "12.4.131", False, "12.4", False),
    ],
)
def test_a_toolkit_is_known_by_what_it_says(tmp_path, version, nvcc, uninstaller, wish, good):
    said = toolkit_at(tmp_path / "cuda", version, nvcc, uninstaller)
    pattern = cuda.toolkit_regex(plan([wish])["toolkits"][0])
    assert bool(re.search(pattern, said)) is good, said


def test_nothing_is_no_toolkit(tmp_path):
    argv = ["/bin/sh", "-c", cuda.LOOK_TOOLKIT, "sh", str(tmp_path), str(tmp_path / "nvcc")]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    assert said == "version= nvcc= uninstaller=no"
    assert not re.search(cuda.toolkit_regex(plan(["12.4"])["toolkits"][0]), said)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ([], "absent"),
        (["libcudnn.so.9", "libcudnn.so.9.2.0"], "9.2.0"),
        (["libcudnn.so.9"], "header 9.2.0 without its library"),
    ],
)
def test_cudnn_is_header_and_library(tmp_path, files, says):
    (tmp_path / "include").mkdir()
    (tmp_path / "lib64").mkdir()
    if files:
        header = "#define CUDNN_MAJOR 9\n#define CUDNN_MINOR 2\n#define CUDNN_PATCHLEVEL 0\n"
        (tmp_path / "include" / "cudnn_version.h").write_text(header)
    for name in files:
        (tmp_path / "lib64" / name).write_text("")
    argv = ["/bin/sh", "-c", cuda.LOOK_CUDNN, "sh", str(tmp_path)]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip() == says


@pytest.mark.parametrize(
    ("leads", "says"), [("cuda-12.4/", "ok"), ("cuda-12.0", "cuda-12.0"), ("nowhere", "nowhere"), ("", "cuda")]
)
def test_the_default_is_compared_by_real_paths(tmp_path, leads, says):
    real, short = tmp_path / "real", tmp_path / "local"
    for name in ("cuda-12.0", "cuda-12.4"):
        (real / name).mkdir(parents=True)
    short.symlink_to(real)
    if leads:
        (real / "cuda").symlink_to(leads)
    item = next(i for i in plan(["12.4"], root=str(short))["items"] if i.get("key") == "default:cuda")
    said = subprocess.run(item["argv"], capture_output=True, text=True, check=True).stdout.strip()
    assert said == says if says == item["stdout"] else said != item["stdout"] and said.endswith(says)


def test_a_twelve_ten_is_no_twelve_one():
    made = plan(["12.1", "12.10"])
    told = cuda.result(made, look(made), look(made, ["toolkit:12.10"]), {}, {}, False)
    assert [check["ok"] for check in told["checks"]] == [True, False]


NVIDIA_ROWS = [
    r for r in driver_table.table()["packages"] if r["method"] == "nvidia_repo" and r["distribution"] != "RedHat"
]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        *((row["pin_globs"], "absent") for row in NVIDIA_ROWS),
        (["src:nvidia-graphics-drivers-535-server"], "present"),
        ([], "present"),
    ],
)
def test_the_pin_of_the_role_nvidia_driver_tells_where_the_driver_comes_from(tmp_path, names, wanted):
    """Drivers before 580 have no package of the repository's own that would tell."""
    preferences = tmp_path / "preferences"
    if names:
        preferences.write_text(driver_files.preferences(names, "535.274.02")["content"])
    item = next(i for i in plan(["12.4"])["items"] if i.get("key") == "pin:no-driver")
    argv = [word.replace(driver_files.PREFERENCES, str(preferences)) for word in item["argv"]]
    argv[4] = str(tmp_path / "pin")
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    assert said == ("ok" if wanted == "absent" else "absent, wanted present")


# --- what is to be done


RUNFILE = {"version": "12.0.1", "method": "runfile"}
INCOMPLETE = "absent:/var/lib/gpufleet/cuda/12.0.incomplete"


def test_a_bare_node_gets_all():
    made = plan(["12.4", RUNFILE])
    done = work(made, look(made, ["package:cuda-toolkit-12-4", "toolkit:12.4", "toolkit:12.0"]))
    assert [t["release"] for t in done["install"]["repository"]] == ["12.4"]
    assert [t["release"] for t in done["install"]["runfile"]] == ["12.0"]
    assert done["problems"] == [] and done["remove"] == []


def test_a_converged_node_gets_nothing():
    made = plan(["12.4", RUNFILE])
    done = work(made, look(made))
    assert not any(done["install"].values()) and not done["remove"] and not done["cudnn"]


def test_a_file_that_differs_installs_nothing():
    made = plan(["12.4"])
    assert not any(work(made, look(made, [f"file:{cuda.PROFILE}", "default:cuda"]))["install"].values())


@pytest.mark.parametrize(
    ("record", "consent", "removed"), [("", False, None), ("method=repository", False, True), ("", True, True)]
)
def test_what_another_hand_has_installed_needs_consent(record, consent, removed):
    made = plan([RUNFILE])
    seen = look(made, ["toolkit:12.0"], **{"toolkit:12.0": "version=12.0.1 nvcc=12.0.140 uninstaller=no"})
    seen["seen"]["record:12.0"] = {"content": record}
    seen["seen"]["package:12.0"] = {"content": "cuda-toolkit-12-0\n"}
    done = work(made, seen, switch_method=consent)
    if removed is None:
        assert (
            "by repository" in done["problems"][0]["detail"] and "cuda_switch_method" in done["problems"][0]["remedy"]
        )
    else:
        assert [r["release"] for r in done["remove"]] == ["12.0"] and not done["problems"]


@pytest.mark.parametrize("state", ["present", "unpacked", "half-configured", "reinst-required"])
def test_packages_that_were_interrupted_are_finished_and_do_not_go(state):
    made = plan(["12.4"])
    seen = look(made, ["package:cuda-toolkit-12-4"], **{"toolkit:12.4": "version=12.4.1 nvcc=12.4.131 uninstaller=no"})
    seen["seen"]["package:cuda-toolkit-12-4"] = {"state": state}
    seen["seen"]["record:12.4"] = {"content": "method=repository\nprefix=/usr/local/cuda-12.4\n"}
    done = work(made, seen)
    assert done["remove"] == [] and done["install"]["repository"] and not done["problems"]


def test_an_interrupted_runfile_begins_anew():
    made = plan([RUNFILE])
    seen = look(made, [INCOMPLETE], **{"toolkit:12.0": "version=12.0.1 nvcc=12.0.140 uninstaller=no"})
    done = work(made, seen)
    assert done["problems"] == [] and [r["prefix"] for r in done["remove"]] == ["/usr/local/cuda-12.0"]
    assert done["install"]["runfile"]


@pytest.mark.parametrize(("record", "goes"), [("method=runfile", True), ("", False)])
def test_another_update_by_runfile_goes_first(record, goes):
    made = plan([RUNFILE])
    seen = look(made, ["toolkit:12.0"], **{"toolkit:12.0": "version=12.0.0 nvcc=12.0.76 uninstaller=yes"})
    seen["seen"]["record:12.0"] = {"content": record}
    done = work(made, seen)
    assert bool(done["remove"]) is goes and bool(done["problems"]) is not goes


def test_a_toolkit_that_is_there_and_right_is_taken_as_it_is():
    made = plan([RUNFILE])
    seen = look(
        made,
        ["file:/var/lib/gpufleet/cuda/12.0.toolkit"],
        **{"toolkit:12.0": "version=12.0.1 nvcc=12.0.140 uninstaller=yes"},
    )
    done = work(made, seen)
    assert not any(done["install"].values()) and not done["remove"] and not done["problems"]


def test_what_is_no_longer_listed_goes_only_when_asked():
    glob = {
        "kind": "glob",
        "differs": True,
        "before": {"paths": ["/var/lib/gpufleet/cuda/11.8.toolkit", "/var/lib/gpufleet/cuda/12.4.toolkit"]},
    }
    made = plan(["12.4"], exclusive=True)
    done = work(made, {**look(made, ["glob:x"]), "items": [glob]})
    assert [(r["release"], r["prefix"], r["method"]) for r in done["remove"]] == [("11.8", "/usr/local/cuda-11.8", "")]
    assert not any(item["kind"] == "glob" for item in plan(["12.4"])["items"])


def test_room_is_measured_where_the_toolkit_goes():
    made = plan([{**RUNFILE, "path": "/data/cuda-12.0"}])
    assert {i["path"] for i in made["items"] if i["kind"] == "disk"} >= {"/data/cuda-12.0"}
    seen = look(made, ["toolkit:12.0"])
    seen["seen"]["disk:/usr/local"] = {"free_bytes": 10**6, "total_bytes": 10**7}
    seen["seen"]["disk:/data/cuda-12.0"] = {"free_bytes": 10**13, "total_bytes": 10**14}
    assert work(made, seen)["problems"] == []
    seen["seen"]["disk:/data/cuda-12.0"] = {"free_bytes": 10**6, "total_bytes": 10**7}
    assert "/data/cuda-12.0 for the toolkit" in work(made, seen)["problems"][0]["detail"]


# --- removal: of what is written down, and of what an entry names

STATE = "/var/lib/gpufleet/cuda"
DISTRIBUTION = {"version": "12.4", "method": "distribution"}


def recorded(made, text, *differs, release="12.4"):
    """A look at a node whose record of a toolkit says this."""
    seen = look(made, differs)
    seen["seen"][f"record:{release}"] = {"content": text}
    return seen


def gone(done):
    return [(r["prefix"], r["method"], r["record"]) for r in done["remove"]]


@pytest.mark.parametrize("system", [DEBIAN, ROCKY, ARCH])
def test_a_toolkit_that_this_role_did_not_install_stays_when_all_goes(system):
    made = plan(
        [{"version": "12.4", "method": "runfile"}, {"version": "12.0.1", "method": "runfile"}], system, state="absent"
    )
    named = {i.get("path") or i.get("name") for i in made["items"] if i["kind"] in ("absent", "package")}
    assert not named & {"/usr/local/cuda-12.4", "/usr/local/cuda-12.0", "cuda-toolkit-12-4"}
    assert work(made, look(made, [f"absent:{STATE}", f"absent:{cuda.PROFILE}"]))["remove"] == []
    told = cuda.result(made, look(made), look(made), {}, {}, False)
    assert told["ok"] and told["checks"][0]["detail"] == "nothing of this role's is there"


def test_neither_do_packages_of_others_go():
    made = plan(["12.4", {"version": "11.8", "method": "distribution"}], state="absent")
    assert [i for i in made["items"] if i["kind"] == "package"] == []


def test_what_is_written_down_goes_with_all():
    made = plan(["12.4"], state="absent")
    text = "method=runfile\nprefix=/data/cuda-12.4\n"
    done = work(made, recorded(made, text, f"absent:{STATE}/12.4.toolkit"))
    assert gone(done) == [("/data/cuda-12.4", "runfile", f"{STATE}/12.4.toolkit")]


def test_what_was_begun_goes_with_all():
    made = plan(["12.4"], state="absent")
    assert [r["prefix"] for r in work(made, look(made, [f"absent:{STATE}/12.4.incomplete"]))["remove"]] == [
        "/usr/local/cuda-12.4"
    ]


def test_a_toolkit_that_an_entry_names_goes_whoever_installed_it():
    made = plan([{"version": "12.4", "state": "absent"}])
    done = work(made, look(made, ["absent:/usr/local/cuda-12.4"]))
    assert gone(done) == [("/usr/local/cuda-12.4", "repository", f"{STATE}/12.4.toolkit")]


def test_what_an_entry_names_goes_also_beside_what_is_written_down():
    made = plan([{"version": "12.4", "state": "absent"}])
    text = "method=runfile\nprefix=/data/cuda-12.4\n"
    done = work(made, recorded(made, text, f"absent:{STATE}/12.4.toolkit", "absent:/usr/local/cuda-12.4"))
    assert [r["prefix"] for r in done["remove"]] == ["/data/cuda-12.4", "/usr/local/cuda-12.4"]


@pytest.mark.parametrize(("system", "package"), [(ARCH, "cuda"), (DEBIAN, "nvidia-cuda-toolkit")])
def test_the_distributions_goes_by_its_package_also_without_a_record(system, package):
    made = plan([{**DISTRIBUTION, "state": "absent"}], system)
    done = work(made, look(made, [f"package:{package}"]))
    assert [r["method"] for r in done["remove"]] == ["distribution"]


@pytest.mark.parametrize("path", ["/opt", "/", "cuda-12.0", "/opt/..", "/usr/local/../../opt"])
def test_a_folder_that_is_not_the_toolkits_own_is_no_path(path):
    with pytest.raises(cuda.CudaError, match="absolute path below a folder"):
        plan([{**RUNFILE, "path": path}])


# --- records


def record_of(made):
    return next(i for i in made["items"] if i["kind"] == "file" and i["path"].endswith(".toolkit"))


def test_the_distribution_has_one_record_whatever_the_release():
    paths = {record_of(plan([{**DISTRIBUTION, "version": v}], ARCH))["path"] for v in ("12.4", "13.0")}
    assert paths == {f"{STATE}/distribution.toolkit"}
    assert record_of(plan([DISTRIBUTION], ARCH))["content"] == "method=distribution\nprefix=/opt/cuda\nrelease=12.4\n"
    # the role nvidia_driver reads this one
    assert record_of(plan(["12.4"]))["content"] == "method=repository\nprefix=/usr/local/cuda-12.4\n"


def test_an_older_release_of_the_distributions_is_no_other_toolkit():
    made = plan([{**DISTRIBUTION, "version": "13.0"}], ARCH, exclusive=True)
    wanted = next(i for i in made["items"] if i["kind"] == "glob" and i["pattern"].endswith(".toolkit"))["paths"]
    assert wanted == [f"{STATE}/distribution.toolkit"]
    text = "method=distribution\nprefix=/opt/cuda\nrelease=12.4\n"
    done = work(made, recorded(made, text, f"file:{STATE}/distribution.toolkit", "toolkit:13.0", release="13.0"))
    assert done["remove"] == [] and [t["release"] for t in done["install"]["distribution"]] == ["13.0"]


def test_the_distribution_has_one_toolkit_at_a_time():
    with pytest.raises(cuda.CudaError, match="one toolkit at a time"):
        plan([DISTRIBUTION, {**DISTRIBUTION, "version": "13.0"}], ARCH)


def globbed(*paths):
    return {"kind": "glob", "differs": True, "before": {"paths": [f"{STATE}/{path}" for path in paths]}}


def test_the_distributions_is_not_forgotten_for_a_runfile_of_its_release():
    made = plan([{**DISTRIBUTION, "method": "runfile"}], ARCH, exclusive=True)
    done = work(made, {**look(made), "items": [globbed("12.4.toolkit", "distribution.toolkit")]})
    assert [(r["method"], r["record"]) for r in done["remove"]] == [("distribution", f"{STATE}/distribution.toolkit")]


def test_a_runfile_is_not_forgotten_for_the_distributions_of_its_release():
    made = plan([DISTRIBUTION], ARCH, exclusive=True)
    done = work(made, {**look(made), "items": [globbed("12.4.toolkit", "distribution.toolkit")]})
    assert gone(done) == [("/usr/local/cuda-12.4", "", f"{STATE}/12.4.toolkit")]


def test_what_was_begun_and_is_no_longer_listed_goes():
    made = plan(["12.4"], exclusive=True)
    assert any(i.get("pattern") == f"{STATE}/*.incomplete" for i in made["items"])
    done = work(made, {**look(made), "items": [globbed("12.0.incomplete"), globbed("12.0.toolkit", "12.4.toolkit")]})
    assert [r["release"] for r in done["remove"]] == ["12.0"]


@pytest.mark.parametrize("path", ["/data/cuda-12.0", "/data/cuda-12.0/"])
def test_a_toolkit_moves_and_leaves_nothing(path):
    made = plan([{**RUNFILE, "path": path}])
    text = "method=runfile\nprefix=/usr/local/cuda-12.0\n"
    done = work(made, recorded(made, text, "toolkit:12.0", f"file:{STATE}/12.0.toolkit", release="12.0"))
    assert gone(done) == [("/usr/local/cuda-12.0", "runfile", f"{STATE}/12.0.toolkit")]
    assert [t["prefix"] for t in done["install"]["runfile"]] == ["/data/cuda-12.0"]
    stays = recorded(made, "method=runfile\nprefix=/data/cuda-12.0/\n", release="12.0")
    assert work(made, stays)["remove"] == []


def test_what_lies_at_the_new_place_is_another_ones():
    made = plan([{**RUNFILE, "path": "/data/cuda-12.0"}])
    seen = recorded(made, "method=runfile\nprefix=/usr/local/cuda-12.0\n", "toolkit:12.0", release="12.0")
    seen["seen"]["toolkit:12.0"] = {"stdout": "version=12.0.0 nvcc=12.0.76 uninstaller=yes"}
    assert "that this role did not install" in work(made, seen)["problems"][0]["detail"]


def test_a_cudnn_that_is_no_longer_wished_goes():
    made = plan([RUNFILE])
    done = work(made, look(made, [f"absent:{STATE}/12.0.cudnn"]))
    assert [t["release"] for t in done["cudnn_remove"]] == ["12.0"] and not done["remove"]
    assert not any(done["install"].values())
    kept = plan([{**RUNFILE, "cudnn": "9.2.0.82"}])
    assert f"absent:{STATE}/12.0.cudnn" not in kept["toolkits"][0]["keys"]


@pytest.mark.parametrize(
    ("free", "one_disk", "fits"),
    [(30e9, True, True), (20e9, True, False), (14e9, False, True), (9e9, False, False)],
)
def test_the_disk_is_looked_at_before_the_first_byte(free, one_disk, fits):
    made = plan([RUNFILE])
    seen = look(made, ["toolkit:12.0"])
    for number, path in enumerate(("/var/tmp", "/var/cache/gpufleet/cuda", "/usr/local/cuda-12.0")):
        seen["seen"][f"disk:{path}"] = {"free_bytes": int(free), "total_bytes": 10**12 + (0 if one_disk else number)}
    problems = work(made, seen)["problems"]
    assert (problems == []) is fits
    if problems:
        assert "GB are free" in problems[0]["detail"] and "cuda_runfile_tmpdir" in problems[0]["remedy"]


# --- a pinned update

SHOWN = """Package: cuda-toolkit-12-4
Version: 12.4.1-1
Depends: cuda-compiler-12-4 (>= 12.4.1), cuda-tools-12-4 (>= 12.4.1)

Package: cuda-toolkit-12-4
Version: 12.4.0-1
Architecture: amd64
Depends: cuda-compiler-12-4 (>= 12.4.0), cuda-tools-12-4 (>= 12.4.0), default-jre

Package: cuda-compiler-12-4
Version: 12.4.1-1
Depends: cuda-nvcc-12-4 (>= 12.4.131)

Package: cuda-compiler-12-4
Version: 12.4.0-1
Pre-Depends: libc6 (>= 2.2)
Depends: cuda-nvcc-12-4 (>= 12.4.99), cuda-cuobjdump-12-4 (>= 12.4.99) | other

Package: cuda-nvcc-12-4
Version: 12.4.131-1
Depends: build-essential

Package: cuda-nvcc-12-4
Version: 12.4.99-1
Depends: build-essential, cuda-cudart-dev-12-4 (= 12.4.99-1)

Package: cuda-nvcc-12-4
Version: 12.4.99-2
Depends: build-essential, cuda-cudart-dev-12-4 (= 12.4.99-1)

Package: cuda-cudart-dev-12-4
Version: 12.4.99-1

Package: cuda-cudart-dev-12-4
Version: 12.4.127-1
"""
QUERIED = """@cuda-toolkit-12-4 12.4.1-1
cuda-compiler-12-4 >= 12.4.1
@cuda-toolkit-12-4 12.4.0-1
cuda-compiler-12-4 >= 12.4.0
rpmlib(CompressedFileNames) <= 3.0.4-1
@cuda-compiler-12-4 12.4.0-1
cuda-nvcc-12-4 >= 12.4.99
@cuda-nvcc-12-4 12.4.131-1
@cuda-nvcc-12-4 12.4.99-1
cuda-cudart-devel-12-4
@cuda-cudart-devel-12-4 12.4.99-1
"""


@pytest.mark.parametrize(
    ("manager", "listing", "asked"),
    [
        (
            "apt",
            SHOWN,
            "cuda-toolkit-12-4=12.4.0-1 cuda-compiler-12-4=12.4.0-1 cuda-cudart-dev-12-4=12.4.99-1 cuda-nvcc-12-4=12.4.99-2",
        ),
        ("dnf", QUERIED, "cuda-toolkit-12-4-12.4.0-1 cuda-compiler-12-4-12.4.0-1 cuda-nvcc-12-4-12.4.99-1"),
    ],
)
def test_a_pinned_update_names_each_part_in_its_version(manager, listing, asked):
    toolkit = plan(["12.4.0"], DEBIAN if manager == "apt" else ROCKY)["toolkits"][0]
    assert cuda_packages.specs([toolkit], manager, listing) == asked.split()
    free = plan(["12.4"])["toolkits"][0]
    assert cuda_packages.specs([free], manager, listing) == ["cuda-toolkit-12-4"]


def test_packages_of_the_users_choice_are_pinned_too():
    wish = {"version": "12.4.0", "packages": ["cuda-nvcc-12-4", "libfoo-dev"]}
    toolkit = plan([wish])["toolkits"][0]
    asked = ["cuda-nvcc-12-4=12.4.99-2", "libfoo-dev", "cuda-cudart-dev-12-4=12.4.99-1"]
    assert cuda_packages.specs([toolkit], "apt", SHOWN) == asked


def test_an_update_that_is_not_offered_is_asked_for_by_name():
    toolkit = plan(["12.4.7"])["toolkits"][0]
    assert cuda_packages.specs([toolkit], "apt", SHOWN) == ["cuda-toolkit-12-4=12.4.7-*"]
    assert cuda_packages.specs([toolkit], "dnf", QUERIED) == ["cuda-toolkit-12-4-12.4.7"]


@pytest.mark.parametrize(
    ("written", "installed", "says"),
    [
        ("12.4.0\ncuda-nvcc-12-4 12.4.99-1\n", "12.4.99-1", "ok"),
        ("12.4.0\ncuda-nvcc-12-4 12.4.99-1\n", "12.4.131-1", "cuda-nvcc-12-4 is 12.4.131-1, wanted 12.4.99-1"),
        ("12.4.1\ncuda-nvcc-12-4 12.4.131-1\n", "12.4.131-1", "not known which parts 12.4.0 has"),
        (None, "12.4.99-1", "not known which parts 12.4.0 has"),
    ],
)
@pytest.mark.parametrize("system", [DEBIAN, ROCKY])
def test_parts_that_have_moved_on_are_noticed(tmp_path, system, written, installed, says):
    made = plan(["12.4.0"], system)
    assert "pins:12.4" in made["toolkits"][0]["keys"]
    assert not [i for i in plan(["12.4"], system)["items"] if i.get("key") == "pins:12.4"]
    for name in ("dpkg-query", "rpm"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {installed}\n")
        (tmp_path / name).chmod(0o755)
    if written is not None:
        (tmp_path / "pins").write_text(written)
    item = next(i for i in made["items"] if i.get("key") == "pins:12.4")
    argv = [word.replace(f"{STATE}/12.4.pins", str(tmp_path / "pins")) for word in item["argv"]]
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    assert subprocess.run(argv, capture_output=True, text=True, check=True, env=env).stdout.strip() == says
    assert [t["release"] for t in work(made, look(made, ["pins:12.4"]))["install"]["repository"]] == ["12.4"]


# --- cards and driver


@pytest.mark.parametrize(
    ("release", "gpu", "forced", "problem", "note"),
    [
        ("13.0", node(P100), False, "no longer compiles for Tesla P100 (Pascal", ""),
        ("13.0", node(GTX1060), False, "12.9", ""),
        ("13.0", node(P100), True, "", "no longer compiles"),
        ("13.0", node(P100, T4), False, "", "no longer compiles for Tesla P100"),
        ("13.0", node(P100, driver=""), False, "", "no longer compiles"),
        ("12.9", node(P100), False, "", ""),
        ("13.0", node(T4), False, "", ""),
        ("12.0", node(B200), False, "", "does not know B200"),
        ("12.8", node(B200), False, "", ""),
        ("13.0", node(H100, driver="550.54.15"), False, "", "needs driver 580.65.06 or newer, installed is 550.54.15"),
        ("12.4", node(T4, driver="525.85.05"), False, "", ""),
        ("13.0", node(card("unknown", None)), False, "", ""),
        ("13.0", None, False, "", ""),
    ],
)
def test_toolkits_and_cards(release, gpu, forced, problem, note):
    toolkits = plan([{"version": release, "method": "repository"}])["toolkits"]
    problems, notes = cuda.gpu_rules(toolkits, gpu, forced)
    assert problem in problems[0]["detail"] if problem else problems == [], (problems, notes)
    assert note in notes[0] if note else notes == [], (problems, notes)


def test_a_library_path_of_the_seed_is_reported():
    made = plan(["12.4"])
    seen = look(
        made,
        **{"ld_library_path": "/root/.bashrc:7:export LD_LIBRARY_PATH=$LD_LIBRARY_PATH:/usr/local/cuda-12.0/lib64"},
    )
    assert "/root/.bashrc:7" in work(made, seen)["notes"][0]


# --- transactions

APT = """NOTE: This is only a simulation!
The following NEW packages will be installed:
  cuda-12-4 cuda-drivers
Inst cuda-nvcc-12-4 (12.4.131-1 NVIDIA [amd64])
Inst cuda-drivers (580.126.20-1 NVIDIA [all])
Inst libnvidia-compute-580:amd64 (580.126.20-1 NVIDIA [amd64])
Inst cuda-12-4 (12.4.1-1 NVIDIA [all])
Remv nvidia-driver [535.247.01-1]
Conf cuda-nvcc-12-4 (12.4.131-1 NVIDIA [amd64])
"""
DNF = """Last metadata expiration check: 0:00:07 ago.
Dependencies resolved.
================================================================================
 Package                     Arch    Version          Repository         Size
================================================================================
Installing:
 cuda-12-4                   noarch  12.4.1-1         gpufleet-nvidia   6.1 k
Upgrading:
 cuda-toolkit-config-common  noarch  12.4.127-1       gpufleet-nvidia   7.0 k
Installing dependencies:
 cuda-drivers                x86_64  580.126.20-1     gpufleet-nvidia   6.0 k
 cuda-nvcc-12-4              x86_64  12.4.131-1       gpufleet-nvidia    64 M
     replacing  something.x86_64 1.0-1
Removing dependent packages:
 nvidia-driver               x86_64  3:535.247.01-1   @gpufleet-nvidia  1.0 k

Transaction Summary
================================================================================
Install  3 Packages

Operation aborted.
"""


def test_apts_simulation_is_read():
    seen = cuda_packages.transaction(APT, "apt")
    assert seen["driver"] == ["cuda-drivers", "libnvidia-compute-580", "cuda-12-4"]
    assert seen["remove"] == ["nvidia-driver"] and "cuda-nvcc-12-4" in seen["install"]
    assert seen["kernel"] == ["cuda-drivers", "cuda-12-4"]


def test_dnfs_question_is_read():
    seen = cuda_packages.transaction(DNF, "dnf")
    assert seen["driver"] == ["cuda-12-4", "cuda-drivers"] and seen["remove"] == ["nvidia-driver"]
    assert "cuda-toolkit-config-common" in seen["install"] and "Install" not in seen["install"]


def test_archs_toolkit_is_called_cuda():
    assert cuda_packages.transaction("cuda\nnvidia-utils\n", "pacman", ["cuda"])["driver"] == ["nvidia-utils"]


@pytest.mark.parametrize(
    "name",
    "cuda cuda-12-4 cuda-drivers cuda-drivers-580 cuda-runtime-12-4 cuda-compat-12-4 nvidia-driver nvidia-open-580 libcuda1"
    " nvidia-dkms-580 kmod-nvidia-open-dkms libnvidia-ml1 linux-modules-nvidia-580-server-generic nvidia-utils".split(),
)
def test_names_of_drivers(name):
    assert nvidia_repository.driver_packages([name, f"{name}:amd64"]) == [name, name]


@pytest.mark.parametrize(
    "name",
    "cuda-toolkit-12-4 cuda-nvcc-12-4 cuda-cudart-dev-12-4 cuda-nvtx-12-4 libcublas-12-4 libnvidia-ml-dev nvidia-cuda-toolkit"
    " nvidia-driver-pinning-580 nsight-compute-2024.1.1 gds-tools-12-4 cuda-driver-dev-12-4"
    " libnvidia-container1 nvidia-opencl-dev".split(),
)
def test_names_that_are_no_drivers(name):
    assert nvidia_repository.driver_packages([name]) == []


# --- the result


def test_the_result_tells_each_toolkit():
    made = plan(["12.4", RUNFILE])
    last = look(made, ["toolkit:12.0"], **{"toolkit:12.4": "version=12.4.1 nvcc=12.4.131 uninstaller=no"})
    told = cuda.result(made, last, last, {"notes": []}, {"12.4": {"rc": 0, "stdout": "12040\n"}}, False)
    assert [c["ok"] for c in told["checks"]] == [True, False] and not told["ok"]
    assert told["versions"] == {"cuda-12.4": "12.4.1"} and "a compiled program runs" in told["checks"][0]["detail"]


@pytest.mark.parametrize(
    ("said", "ok", "words"),
    [
        ({"rc": 77, "stdout": "no host compiler (g++)"}, True, "nothing compiled"),
        ({"rc": 0, "stdout": "11080"}, False, "does not compile or run"),
        (
            {"rc": 1, "stderr": "a.h(138): error: -- unsupported GNU version! gcc versions later than 12"},
            False,
            "refuses the host compiler",
        ),
        (None, True, "nvcc 12.4.131"),
    ],
)
def test_a_program_that_does_not_compile_is_a_check_and_no_failure(said, ok, words):
    made = plan(["12.4"])
    last = look(made, **{"toolkit:12.4": "version=12.4.1 nvcc=12.4.131 uninstaller=no"})
    told = cuda.result(made, last, last, {}, {"12.4": said} if said else {}, False)
    assert told["ok"] is ok and words in told["checks"][0]["detail"]
    assert ok or told["checks"][0]["remedy"]


FAILED = {"rc": 1, "stdout": "", "stderr": "a.h(138): error: -- unsupported GNU version! gcc versions later than 12"}


def test_a_proof_that_failed_is_not_forgotten_by_the_next_run():
    made = plan(["12.4"])
    text = cuda.unproven(made["toolkits"][0], FAILED)
    last = look(made, **{"toolkit:12.4": "version=12.4.1 nvcc=12.4.131 uninstaller=no", "proof:12.4": text})
    told = cuda.result(made, last, last, {}, {}, False)
    assert not told["ok"] and "refuses the host compiler" in told["checks"][0]["detail"]
    mended = cuda.result(made, last, last, {}, {"12.4": {"rc": 0, "stdout": "12040"}}, False)
    assert mended["ok"]


def test_a_proof_that_failed_is_no_drift():
    item = next(i for i in plan(["12.4"])["items"] if i.get("key") == "proof:12.4")
    assert item["kind"] == "read"
    assert not [i for i in plan(["12.4"], verify_compile=False)["items"] if i.get("key") == "proof:12.4"]


@pytest.mark.parametrize("said", [{"rc": 0, "stdout": "12040\n"}, {"rc": 77, "stdout": "no host compiler (g++)"}])
def test_nothing_is_written_down_of_a_proof_that_succeeded(said):
    assert cuda.unproven(plan(["12.4"])["toolkits"][0], said) == ""


def test_no_toolkit_is_said_to_be_right():
    told = cuda.result(plan([]), {}, {}, {"notes": []}, {}, False)
    assert told["ok"] and not told["changed"] and "running models needs none" in told["notes"][0]


# --- the page for an incident

ROOT = Path(__file__).resolve().parents[4]


def test_each_message_of_the_page_is_one_of_the_code():
    page = (ROOT / "docs/howto/cuda.md").read_text(encoding="utf-8")
    table = page.partition("## When it stops")[2].partition("## Is it right?")[0]
    messages = [found[1] for found in re.finditer(r"(?m)^\| (?:check `toolkit …`: )?`([^`]+)`", table)]
    sources = [ROOT / "plugins/plugin_utils/cuda.py", *sorted((ROOT / "roles/cuda/tasks").glob("*.yml"))]
    text = re.sub(r'"\s*\n\s*f?"', "", "\n".join(path.read_text(encoding="utf-8") for path in sources))
    text = " ".join(text.split())
    assert len(messages) > 15
    parts = [part.strip() for message in messages for part in message.split("…")]
    missing = [part for part in parts if part not in text and not all(word in text for word in part.split("would "))]
    assert missing == []
