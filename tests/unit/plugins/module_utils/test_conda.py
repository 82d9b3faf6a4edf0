# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Versions, specs, locks, markers, what is in an environment, and what the tools' errors mean."""

from __future__ import annotations

import json

import pytest
from ansible_collections.gpufleet.llm.plugins.module_utils import conda

LINUX = conda.marker_environment("3.10.14", "x86_64", "6.1.0")


@pytest.mark.parametrize(
    "ordered",
    [
        ["1.0.dev1", "1.0a1", "1.0a2.dev3", "1.0a2", "1.0b1", "1.0rc1", "1.0", "1.0.post1", "1.0.1", "1.1", "1!0.1"],
        ["2.9", "2.10", "2.10.1", "10.0"],
        ["2.1.0", "2.1.0+cpu", "2.1.0+cu118", "2.1.0+cu118.1"],
    ],
)
def test_versions_sort_as_pep_440_says(ordered):
    assert sorted(ordered[::-1], key=conda.version_key) == ordered


@pytest.mark.parametrize(
    ("wanted", "found", "same"),
    [
        ("2.0", "2.0.0", True),
        ("2.13.0", "2.13.0+cpu", True),
        ("2.13.0+cu121", "2.13.0+cpu", False),
        ("2.13.0+cpu", "2.13.0", False),
        ("1.0rc1", "1.0.rc-1", True),
        ("1.0", "1.0.1", False),
        ("v1.0", "1.0", True),
    ],
)
def test_same_version(wanted, found, same):
    assert conda.same_version(wanted, found) is same


@pytest.mark.parametrize(
    ("constraint", "found", "met"),
    [
        ("", "1", True),
        ("1.26", "1.26", True),
        ("1.26", "1.26.4", False),
        ("1.26.*", "1.26.4", True),
        ("=1.26", "1.26.4", True),
        ("=1.26", "1.260", False),
        ("==1.26", "1.26.4", False),
        (">=1.2,<2", "1.9", True),
        (">=1.2,<2", "2.0", False),
        ("<2|>=3", "3.1", True),
        ("<2|>=3", "2.5", False),
        ("!=1.5", "1.5", False),
        ("!=1.5.*", "1.5.3", False),
        ("!=1.5.*", "1.6", True),
        ("~=1.4.2", "1.4.9", True),
        ("~=1.4.2", "1.5", False),
        (">=3.9", "3.10", True),
    ],
)
def test_satisfies(constraint, found, met):
    assert conda.satisfies(constraint, found) is met


def test_an_unknown_constraint_is_shown():
    with pytest.raises(conda.CondaError, match="newest"):
        conda.satisfies(">> newest", "1")


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("numpy", ("numpy", "", "", "")),
        ("NumPy=1.26", ("numpy", "=1.26", "", "")),
        ("numpy==1.26.4", ("numpy", "==1.26.4", "", "")),
        ("numpy=1.26.4=py310_0", ("numpy", "==1.26.4", "py310_0", "")),
        ("numpy 1.26.*", ("numpy", "1.26.*", "", "")),
        ("numpy=1.26.*", ("numpy", "1.26.*", "", "")),
        ("numpy >=1.2,<2", ("numpy", ">=1.2,<2", "", "")),
        ("conda-forge::git-lfs>=3", ("git-lfs", ">=3", "", "conda-forge")),
        ("https://x.example/conda::a=1", ("a", "=1", "", "https://x.example/conda")),
    ],
)
def test_parse_spec(spec, parts):
    parsed = conda.parse_spec(spec)
    assert (parsed["name"], parsed["version"], parsed["build"], parsed["channel"]) == parts


@pytest.mark.parametrize("spec", ["", "numpy[version='>=1']", "=1.0", "a b c d"])
def test_what_is_no_spec_is_shown(spec):
    with pytest.raises(conda.CondaError):
        conda.parse_spec(spec)


def test_spec_met():
    have = {"version": "1.26.4", "build": "py310hb13e2d6_0"}
    assert conda.spec_met(conda.parse_spec("numpy=1.26"), have)
    assert conda.spec_met(conda.parse_spec("numpy=1.26.4=py310*"), have)
    assert not conda.spec_met(conda.parse_spec("numpy=1.26.4=py311*"), have)
    assert not conda.spec_met(conda.parse_spec("numpy"), None)


def test_superfluous_keeps_what_is_needed():
    packages = {
        "python": {"depends": ["openssl >=3", "libzlib"]},
        "openssl": {"depends": []},
        "libzlib": {"depends": ["libzlib"]},
        "numpy": {"depends": ["python >=3.10"]},
        "old": {"depends": ["numpy"]},
    }
    assert conda.superfluous(packages, ["python", "numpy", "missing"]) == ["old"]


LOCK = """\
# a comment
--index-url https://elsewhere.example/simple
--only-binary :all:
Torch==2.1.2 \\
    --hash=sha256:aaaa \\
    --hash=sha256:bbbb   # via x
ruamel.yaml[jinja2]==0.18.6 ; python_version < "3.12" --hash=sha256:cccc
foo @ https://x.example/wheels/Foo_Bar-1.5%2Bcu121-py3-none-any.whl#sha256=dd ; sys_platform == "linux"
bar>=1.0,<2
"""


def test_parse_lock():
    entries, options = conda.parse_lock(LOCK)
    assert options == ["--only-binary :all:"]
    assert [(entry["name"], entry["version"], entry["hashes"]) for entry in entries] == [
        ("torch", "2.1.2", 2),
        ("ruamel-yaml", "0.18.6", 1),
        ("foo", "1.5+cu121", 0),
        ("bar", "", 0),
    ]
    assert entries[1]["marker"] == 'python_version < "3.12"'
    assert entries[2]["marker"] == 'sys_platform == "linux"'
    assert entries[3]["constraint"] == ">=1.0,<2"
    assert "--hash=sha256:bbbb" in entries[0]["text"]


@pytest.mark.parametrize("line", ["-r other.txt", "-e .", "--constraint c.txt", "./local.whl", "==1.0"])
def test_a_lock_must_be_flat(line):
    with pytest.raises(conda.CondaError):
        conda.parse_lock(line)


@pytest.mark.parametrize(
    ("marker", "holds"),
    [
        ("", True),
        ("python_version < '3.11'", True),
        ("python_version >= '3.9' and python_version < '3.10'", False),
        ("'3.9' <= python_version", True),
        ("python_full_version < '3.10.20'", True),
        ("sys_platform == 'win32' or platform_machine == 'x86_64'", True),
        ("(sys_platform == 'win32' or os_name == 'nt') and python_version > '3'", False),
        ("platform_machine in 'x86_64 aarch64'", True),
        ("platform_machine not in 'x86_64 aarch64'", False),
        ('platform_python_implementation != "PyPy"', True),
        ("extra == 'test'", False),
    ],
)
def test_markers(marker, holds):
    assert conda.marker_holds(marker, LINUX) is holds


@pytest.mark.parametrize(
    "marker", ["python_version", "nonsense == 'x'", "(python_version > '3'", "os_name == 'a' b", "§"]
)
def test_what_is_no_marker_is_shown(marker):
    with pytest.raises(conda.CondaError, match="marker"):
        conda.marker_holds(marker, LINUX)


# -- environments -----------------------------------------------------------------------------------------------------


@pytest.fixture
def prefix(tmp_path):
    """A conda environment as conda leaves it, with one distribution from pip and one from conda."""
    root = tmp_path / "env"
    site = root / "lib" / "python3.10" / "site-packages"
    site.mkdir(parents=True)
    (root / "bin").mkdir()
    (root / "bin" / "python3.10").write_text("#!/bin/sh\n")
    (root / "bin" / "python3.10").chmod(0o755)
    (root / "bin" / "python").symlink_to("python3.10")
    meta = root / "conda-meta"
    meta.mkdir()
    (meta / "history").write_text("")
    for name, version, depends in (
        ("python", "3.10.14", ["openssl >=3"]),
        ("openssl", "3.3.1", []),
        ("pip", "24.0", []),
    ):
        record = {"name": name, "version": version, "build": "h1_0", "channel": "conda-forge", "depends": depends}
        (meta / f"{name}-{version}-h1_0.json").write_text(json.dumps(record))
    distribution(site, "requests", "2.31.0", "pip")
    distribution(site, "pip", "24.0", "conda")
    return root


def distribution(site, name, version, installer):
    info = site / f"{name}-{version}.dist-info"
    info.mkdir()
    (site / name).mkdir(exist_ok=True)
    (site / name / "__init__.py").write_text("x = 1\n")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "INSTALLER").write_text(installer + "\n")
    (info / "RECORD").write_text(f"{name}/__init__.py,,\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n")


def wanted(found, specs=(), lock="", python="3.10", exact=False, manager="conda"):
    return conda.compare(
        found,
        manager=manager,
        python=python,
        specs=[conda.parse_spec(spec) for spec in specs],
        entries=conda.parse_lock(lock)[0],
        exact=exact,
    )


def test_look_reads_what_is_there(prefix):
    found = conda.look(str(prefix))
    assert (found["state"], found["manager"], found["python"], found["marker"]) == ("present", "conda", "3.10.14", "")
    assert found["packages"]["openssl"]["version"] == "3.3.1"
    assert found["distributions"]["requests"]["version"] == "2.31.0"
    assert wanted(found, ["openssl=3.3"], "requests==2.31.0", exact=True)["reasons"] == ["pip is superfluous"][:0]


def test_absent_empty_and_foreign(tmp_path):
    assert conda.look(str(tmp_path / "none"))["state"] == "absent"
    (tmp_path / "empty").mkdir()
    assert conda.look(str(tmp_path / "empty"))["state"] == "absent"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("years of work")
    assert conda.look(str(tmp_path / "data"))["state"] == "foreign"
    assert conda.look(str(tmp_path / "data" / "thesis.txt"))["state"] == "foreign"


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda root: (root / "conda-meta" / "history").unlink(), "conda-meta/history is missing"),
        (lambda root: (root / "bin" / "python").unlink(), "bin/python is not there"),
        (lambda root: (root / "bin" / "python3.10").unlink(), "bin/python is not there (a link to python3.10)"),
        (
            lambda root: (root / "conda-meta" / "openssl-3.3.1-h1_0.json").write_text("{"),
            "openssl-3.3.1-h1_0.json is torn",
        ),
        (lambda root: (root / conda.MARKER).write_text('{"phase": "create"}'), "its creation was interrupted"),
        (lambda root: (root / conda.MARKER).write_text(""), "its creation was interrupted"),
    ],
)
def test_broken_beyond_repair_is_made_anew(prefix, break_it, reason):
    break_it(prefix)
    found = conda.look(str(prefix))
    assert found["state"] == "broken"
    assert reason in "; ".join(found["reasons"])
    assert wanted(found)["rebuild"]


def test_a_marked_directory_without_environment_is_half_made(tmp_path):
    (tmp_path / conda.MARKER).write_text('{"phase": "create"}')
    assert conda.look(str(tmp_path))["state"] == "broken"


def test_interrupted_while_installing_is_healed_in_place(prefix):
    (prefix / conda.MARKER).write_text('{"phase": "packages"}')
    found = conda.look(str(prefix))
    todo = wanted(found, lock="requests==2.31.0")
    assert found["state"] == "present"
    assert todo["rebuild"] == []
    assert todo["reasons"] == ["an earlier run was interrupted"]


def test_another_python_or_manager_is_made_anew(prefix):
    found = conda.look(str(prefix))
    assert wanted(found, python="3.11")["rebuild"] == ["its Python is 3.10.14, wanted is 3.11"]
    assert wanted(found, python="3.1")["rebuild"] == ["its Python is 3.10.14, wanted is 3.1"]
    assert wanted(found, python="")["rebuild"] == []
    assert wanted(found, manager="venv")["rebuild"] == ["it was made by conda, wanted is venv"]


def test_missing_and_wrong_versions(prefix):
    todo = wanted(conda.look(str(prefix)), ["openssl=1.1", "git"], "requests==2.32.0\nidna==3.7")
    assert [spec["name"] for spec in todo["specs"]] == ["openssl", "git"]
    assert [entry["name"] for entry in todo["entries"]] == ["requests", "idna"]
    assert todo["reasons"] == [
        "package openssl is 3.3.1=h1_0, wanted =1.1",
        "package git is missing",
        "requests is 2.31.0, wanted 2.32.0",
        "idna is missing, wanted 3.7",
    ]


@pytest.mark.parametrize("gone", ["RECORD", "METADATA"])
def test_a_partial_distribution_is_removed_and_installed_again(prefix, gone):
    (prefix / "lib/python3.10/site-packages/requests-2.31.0.dist-info" / gone).unlink()
    todo = wanted(conda.look(str(prefix)), lock="requests==2.31.0")
    assert todo["damaged"] == ["requests"]
    assert [entry["name"] for entry in todo["entries"]] == ["requests"]
    assert gone in todo["reasons"][0]


def test_a_distribution_that_is_there_twice_and_leftovers_are_noticed(prefix):
    site = prefix / "lib/python3.10/site-packages"
    distribution(site, "requests", "2.30.0", "pip")
    (site / "~equests").mkdir()
    found = conda.look(str(prefix))
    todo = wanted(found, lock="requests==2.31.0")
    assert todo["damaged"] == ["requests"]
    assert len(found["distributions"]["requests"]["infos"]) == 2
    assert found["leftovers"] == [str(site / "~equests")]
    assert "twice" in todo["reasons"][0]


def test_a_changed_file_is_noticed_by_a_deep_look(prefix):
    site = prefix / "lib/python3.10/site-packages"
    record = site / "requests-2.31.0.dist-info" / "RECORD"
    record.write_text("requests/__init__.py,sha256=AAAA,6\n" + record.read_text())
    assert conda.look(str(prefix))["distributions"]["requests"]["damage"] == ""
    assert "was changed" in conda.look(str(prefix), deep=True)["distributions"]["requests"]["damage"]


def test_exact_removes_what_nobody_asked_for(prefix):
    site = prefix / "lib/python3.10/site-packages"
    distribution(site, "leftpad", "1.0", "pip")
    distribution(site, "setuptools", "70.0", "pip")
    record = {"name": "cowsay", "version": "6.0", "build": "0", "depends": ["python"]}
    (prefix / "conda-meta" / "cowsay-6.0-0.json").write_text(json.dumps(record))
    found = conda.look(str(prefix))
    assert wanted(found, lock="requests==2.31.0")["reasons"] == []
    todo = wanted(found, lock="requests==2.31.0", exact=True)
    assert todo["extra_packages"] == ["cowsay"]
    assert todo["extra_distributions"] == ["leftpad"]


def test_a_venv_is_read_from_its_own_file(tmp_path):
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    site.mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to("/bin/sh")
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\nversion_info = 3.11.2\n")
    found = conda.look(str(tmp_path))
    assert (found["state"], found["manager"], found["python"]) == ("present", "venv", "3.11.2")


# -- errors -----------------------------------------------------------------------------------------------------------


def test_terms_of_service_name_the_channels_and_the_variable():
    said = {
        "exception_name": "CondaToSNonInteractiveError",
        "message": "Terms of Service have not been accepted for the following channels. Please accept or remove them"
        " before proceeding:\n    - https://repo.anaconda.com/pkgs/main\n    - https://repo.anaconda.com/pkgs/r\n\n"
        "To accept: conda tos accept; see https://www.anaconda.com/docs/tools/working-with-conda",
    }
    told = conda.explain_conda(json.dumps(said), "", 1, 60)
    assert "https://repo.anaconda.com/pkgs/main, https://repo.anaconda.com/pkgs/r." in told
    assert "anaconda_accept_tos" in told
    assert "www.anaconda.com" not in told


def test_progress_before_the_error_is_skipped():
    out = '{"fetch": "x", "progress": 1.0}\n\0' + json.dumps(
        {"exception_name": "PackagesNotFoundError", "packages": ["pyhton=3.10"], "channel_urls": ["https://c/noarch"]}
    )
    told = conda.explain_conda(out, "", 1, 60)
    assert "pyhton=3.10" in told
    assert "https://c/noarch" in told


@pytest.mark.parametrize(
    ("out", "err", "rc", "said"),
    [
        ("", "", 124, "within 60 seconds"),
        ('{"exception_name": "CondaHTTPError", "message": "HTTP 000 CONNECTION FAILED"}', "", 1, "mirror profile"),
        ("", "OSError: [Errno 28] No space left on device", 1, "disk is full"),
        ("", "Traceback\nboom", 1, "rc 1: Traceback boom"),
    ],
)
def test_other_conda_errors(out, err, rc, said):
    assert said in conda.explain_conda(out, err, rc, 60)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n"
            "    six==1.16.0 from https://x/six.whl#sha256=1 (from -r l.txt):\n        Expected sha256 aa\n",
            "refused: six==1.16.0.",
        ),
        (
            "error: Failed to download `six==1.16.0`\n  Caused by: Hash mismatch for `six==1.16.0`",
            "refused: six==1.16.0.",
        ),
        ("ERROR: No matching distribution found for sixx==1.0", "no file for sixx==1.0"),
        ("Because sixx was not found in the package registry and you require sixx", "no file for sixx"),
        ("In --require-hashes mode, all requirements must have their versions pinned", "lacks hashes"),
        ("SSLCertVerificationError: CERTIFICATE_VERIFY_FAILED", "ca_path"),
        ("[Errno 28] No space left on device", "disk is full"),
    ],
)
def test_installer_errors(text, said):
    assert said in conda.explain_installer("", text, 1, 60)


@pytest.mark.parametrize(
    ("text", "helps"),
    [
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", True),
        ("error: Failed to download `six==1.16.0`\n  Caused by: Hash mismatch for `six==1.16.0`", True),
        (
            "ERROR: Could not find a version ... (from versions: none)\nERROR: No matching distribution found for six==1",
            True,
        ),
        ("Because sixx was not found in the package registry and you require sixx", True),
        ("error: Failed to fetch: `https://x.example/simple/six/`\n  Caused by: HTTP status server error (503)", True),
        ("ERROR: HTTP error 503 while getting https://x.example/six.whl", True),
        ("WARNING: Retrying ... NewConnectionError: [Errno 111] Connection refused", True),
        ('{"exception_name": "CondaHTTPError", "message": "HTTP 503"}', True),
        ('{"exception_name": "ChecksumMismatchError", "message": "Conda detected a mismatch"}', True),
        ('{"exception_name": "UnavailableInvalidChannel", "message": "HTTP 404 NOT FOUND for channel"}', True),
        ("OSError: [Errno 28] No space left on device\nConnection broken: IncompleteRead", False),
        ("In --require-hashes mode, all requirements must have their versions pinned", False),
        ('{"exception_name": "CondaToSNonInteractiveError", "message": "Terms of Service"}', False),
        ("error: subprocess-exited-with-error: gcc", False),
    ],
)
def test_when_another_index_may_help(text, helps):
    assert conda.elsewhere_may_help("", text) is helps
    assert conda.elsewhere_may_help(text, "") is helps
