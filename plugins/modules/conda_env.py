#!/usr/bin/python
# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: conda_env
short_description: Manage a Python environment by what is really in it
version_added: 0.1.0
author:
  - gpufleet.llm contributors (@gpufleet)
description:
  - Creates, changes and removes a conda environment or a virtual environment, with conda packages and with Python
    distributions from a lock whose hashes are checked.
  - What is there is read from the environment itself, from conda-meta, from the metadata and the files of each
    distribution, and from the interpreter. What conda lists, and stamps, are not asked.
  - An environment whose creation was interrupted is recognised and made anew; distributions that an interrupted or
    careless installation left torn are removed and installed again.
  - A directory that holds files but no environment is never touched.
extends_documentation_fragment:
  - gpufleet.llm._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  platform:
    platforms: linux
  idempotent:
    support: full
options:
  state:
    description: Whether the environment is to be there.
    type: str
    choices: [present, absent]
    default: present
  prefix:
    description: Directory of the environment. Exactly one of O(prefix) and O(name) is needed.
    type: path
  name:
    description:
      - Name of a conda environment. Its directory is that of the first of conda's environment directories in which it
        is, or would be made.
    type: str
  manager:
    description: V(conda) for a conda environment, V(venv) for a virtual environment of an interpreter that is there.
    type: str
    choices: [conda, venv]
    default: conda
  conda:
    description: Path of the conda executable. Empty looks in the search path and in C(/opt/gpufleet/conda/bin).
    type: path
    default: ''
  python:
    description:
      - With O(manager=conda) the version of Python, or the beginning of one, for example V(3.10). Empty for an
        environment without a Python of its own.
      - With O(manager=venv) the path of the interpreter, or such a version, for which C(python3.10) is then looked up.
        Empty for C(python3).
      - An environment with another Python is made anew.
    type: str
    default: ''
  packages:
    description:
      - Conda packages that must be there, as V(name), V(name=1.26), V(name==1.26.4), V(name=1.26.4=build*) or
        V(name>=1.2,<2). Only for O(manager=conda).
    type: list
    elements: str
    default: []
  channels:
    description:
      - Conda channels, best first. A URL must not hold credentials or a token, since it is visible in the list of
        processes; configure those in C(.condarc) and name the channel here.
    type: list
    elements: str
    default: [conda-forge]
  fallback_channels:
    description:
      - Lists of channels, each of which is tried in place of O(channels) when the ones before it are down, lack a package
        or give a file with a wrong checksum. C(.condarc) may turn a channel's name into a mirror; a URL is what it is.
    type: list
    elements: list
    default: []
  override_channels:
    description: Use no channel but O(channels), whatever C(.condarc) says.
    type: bool
    default: true
  requirements:
    description:
      - Python distributions as the text of a flat lock, one V(name==version) with its hashes per entry.
      - Options for indexes in it are ignored; O(index_url) and its kin count.
    type: str
  requirements_file:
    description: Path of such a lock on the node.
    type: path
  require_hashes:
    description: Refuse a lock that does not name a hash for each entry, and each file that has another one.
    type: bool
    default: true
  exact:
    description:
      - Remove distributions that are not in the lock and conda packages that nothing wanted needs.
      - C(pip), C(setuptools) and C(wheel) stay.
    type: bool
    default: false
  installer:
    description: What installs the distributions. V(auto) takes V(uv) when O(uv) names it, else the environment's V(pip).
    type: str
    choices: [auto, uv, pip]
    default: auto
  uv:
    description: Path of the uv executable.
    type: str
    default: ''
  index_url:
    description: The Python index; replaces the usual one. Credentials in it are not shown in the list of processes.
    type: str
    default: ''
  fallback_index_urls:
    description:
      - Indexes, each of which is tried in place of O(index_url) when the ones before it are down, lack a file or give one
        that has another hash than the lock says. Only with O(require_hashes=true). An empty string is the installer's own
        default. What was tried in vain is a warning, or part of the error.
    type: list
    elements: str
    default: []
  extra_index_urls:
    description: Further indexes. Only with O(require_hashes=true), since anybody could offer a name on one of them.
    type: list
    elements: str
    default: []
  find_links:
    description: Directories or pages with files.
    type: list
    elements: str
    default: []
  no_index:
    description: Ask no index, only O(find_links).
    type: bool
    default: false
  trusted_hosts:
    description: Hosts whose certificate is not checked. Better give O(ca_path).
    type: list
    elements: str
    default: []
  ca_path:
    description: Bundle of certificates for the index and the channels. Empty for the usual one.
    type: str
    default: ''
  cache_dir:
    description:
      - Cache for O(uv). It should be on the filesystem of the environment, so that files are linked, not copied.
      - Empty for C(.uv-cache) beside the environment.
    type: str
    default: ''
  compile:
    description: Compile to bytecode while installing; else Python does it at the first import.
    type: bool
    default: false
  deep:
    description:
      - Compare each file of each distribution with the hash that was written when it was installed, so that a changed
        file is noticed and healed. Reading some GB costs some seconds.
    type: bool
    default: true
  keep_environment:
    description:
      - Leave variables such as C(PIP_INDEX_URL), C(PYTHONPATH) and C(UV_INDEX) and pip's configuration files in force.
        Proxies are always taken from the environment.
    type: bool
    default: false
  timeout_seconds:
    description: Limit for each command that is run.
    type: int
    default: 3600
notes:
  - While it works, a file C(.gpufleet-incomplete) lies in the environment; one that is found was left by a run that was
    killed. A conda that goes on after its run was killed is waited for.
seealso:
  - module: gpufleet.llm.observe
"""

EXAMPLES = r"""
---
- name: An environment for ChatGLM3
  gpufleet.llm.conda_env:
    prefix: /opt/gpufleet/envs/chatglm3_6b
    conda: /opt/gpufleet/conda/bin/conda
    python: "3.10"
    channels: [conda-forge]
    requirements: "{{ lookup('ansible.builtin.file', 'requirements.lock') }}"
    index_url: https://mirrors.tuna.tsinghua.edu.cn/pypi/web/simple
    fallback_index_urls: [https://mirrors.ustc.edu.cn/pypi/simple, ""]
    uv: /opt/gpufleet/tools/bin/uv
    exact: true

- name: The same without conda
  gpufleet.llm.conda_env:
    prefix: /opt/gpufleet/envs/chatglm3_6b
    manager: venv
    python: /usr/bin/python3.10
    requirements_file: /opt/gpufleet/locks/chatglm3_6b.lock

- name: Gone
  gpufleet.llm.conda_env:
    prefix: /opt/gpufleet/envs/chatglm3_6b
    state: absent
"""

RETURN = r"""
prefix:
  description: Directory of the environment.
  returned: success
  type: str
  sample: /opt/gpufleet/envs/chatglm3_6b
manager:
  description: V(conda), V(venv) or empty when the environment is absent.
  returned: success
  type: str
  sample: conda
python:
  description: Version of its Python; empty when there is none.
  returned: success
  type: str
  sample: 3.10.14
packages:
  description: All conda packages, name to C(version=build).
  returned: success
  type: dict
  sample: {"python": "3.10.14=hd12c33a_0_cpython"}
distributions:
  description: All Python distributions, normalised name to version.
  returned: success
  type: dict
  sample: {"torch": "2.1.2"}
rebuilt:
  description: Whether it was (or, in check mode, would be) made anew although something was there.
  returned: success
  type: bool
  sample: false
reasons:
  description: What was not as wanted, in words.
  returned: success
  type: list
  elements: str
  sample: ["torch is 2.1.1, wanted 2.1.2"]
installer:
  description: What installs distributions, V(uv) or V(pip).
  returned: success
  type: str
  sample: uv
"""

import fcntl
import functools
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpufleet.llm.plugins.module_utils import conda as envs
from ansible_collections.gpufleet.llm.plugins.module_utils.bounded import bounded, no_input
from ansible_collections.gpufleet.llm.plugins.module_utils.fetch import redact, secrets_of

# Variables of the caller's own Python, pip, uv or conda session that would change what is installed, or where.
NOISE = re.compile(
    r"^(PIP_.*|PYTHON.*|UV_.*|VIRTUAL_ENV|__PYVENV_LAUNCHER__"
    r"|CONDA_(PREFIX.*|DEFAULT_ENV|SHLVL|EXE|PYTHON_EXE|PROMPT_MODIFIER))$"
)


class Environment:
    """One environment and what is wanted of it."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params: dict[str, Any] = module.params
        self.manager: str = self.params["manager"]
        self.conda_path = ""
        self.prefix = ""
        self.specs: list[dict[str, str]] = []
        self.entries: list[dict[str, Any]] = []
        self.lock_options: list[str] = []
        self.lock_fd: int | None = None
        self.version: str | None = None
        self.installer = "uv" if self.params["installer"] != "pip" and self.params["uv"] else "pip"

    def fail(self, message: str, **more: Any) -> NoReturn:
        """End with a message that says what is wrong and what to do."""
        self.unlock()
        self.module.fail_json(msg=message, prefix=self.prefix, **more)
        raise AssertionError("unreachable")

    # -- what is wanted -----------------------------------------------------------------------------------------

    def understand(self) -> None:
        """Read the arguments; fails for what cannot be meant."""
        params = self.params
        if params["installer"] == "uv" and not params["uv"]:
            self.fail("installer is uv, but the path of the uv executable is not given (uv)")
        if self.manager == "venv" and params["packages"]:
            self.fail("packages are conda packages; a virtual environment (manager: venv) cannot have any")
        if self.manager == "venv" and params["name"]:
            self.fail("name is for conda environments; give the prefix of a virtual environment")
        if params["extra_index_urls"] and not params["require_hashes"]:
            self.fail("extra_index_urls without require_hashes would let anybody's file of the same name in")
        if params["fallback_index_urls"] and not params["require_hashes"]:
            self.fail(
                "fallback_index_urls without require_hashes would let any of these indexes decide what is installed"
            )
        for channel in self.all_channels():
            if secrets_of(channel) or re.search(r"/t/[^/]+", channel):
                self.fail(
                    f"the channel {redact(channel)} holds credentials, which would be visible in the list of"
                    " processes; put its URL under custom_channels in .condarc and name the channel here"
                )
        try:
            self.specs = [envs.parse_spec(spec) for spec in params["packages"]]
        except envs.CondaError as error:
            self.fail(str(error))
        self.prefix = os.path.abspath(params["prefix"]) if params["prefix"] else self._prefix_of_name()

    def all_channels(self) -> list[str]:
        """Every channel that may be asked."""
        return [*self.params["channels"], *(str(one) for group in self.params["fallback_channels"] for one in group)]

    def read_lock(self) -> None:
        """Read the lock and keep the entries that are for this Python."""
        text = self.params["requirements"] or ""
        if self.params["requirements_file"]:
            try:
                with open(self.params["requirements_file"], encoding="utf-8") as stream:
                    text = stream.read()
            except OSError as error:
                self.fail(f"cannot read requirements_file {self.params['requirements_file']}: {error.strerror}")
        try:
            entries, self.lock_options = envs.parse_lock(text)
            if not self.params["require_hashes"]:
                self.lock_options = [one for one in self.lock_options if one != "--require-hashes"]
            kernel = os.uname()
            values = envs.marker_environment(self._python_for_markers(), kernel.machine, kernel.release)
            self.entries = [entry for entry in entries if envs.marker_holds(entry["marker"], values)]
        except envs.CondaError as error:
            self.fail(str(error))
        bare = [entry["name"] for entry in self.entries if not entry["hashes"]]
        if self.params["require_hashes"] and bare:
            self.fail(f"the lock has no hash for {', '.join(bare)} (require_hashes)")

    def _python_for_markers(self) -> str:
        wanted = self.version_wanted()
        found = envs.look(self.prefix)["python"] if self.prefix else ""
        if found and (not wanted or found == wanted or found.startswith(wanted + ".")):
            return str(found)
        if wanted:
            return wanted
        return platform.python_version()

    def version_wanted(self) -> str:
        """The version of Python asked for, '' when any will do. For a venv, that of the interpreter named."""
        asked = str(self.params["python"])
        if self.manager == "conda" or (asked and "/" not in asked):
            return asked
        if self.version is None:
            path = self.interpreter(required=False)
            code = "import sys; print('.'.join(str(part) for part in sys.version_info[:3]))"
            rc, out, _err = self.module.run_command([path, "-I", "-S", "-c", code]) if path else (1, "", "")
            self.version = str(out).strip() if rc == 0 else ""
        return self.version

    def interpreter(self, required: bool = True) -> str:
        """Path of the interpreter that a virtual environment is made of."""
        asked = str(self.params["python"])
        if "/" in asked:
            path = asked if os.access(asked, os.X_OK) else ""
        else:
            path = self.module.get_bin_path(f"python{asked or '3'}") or ""
        if not path and required:
            self.fail(
                f"there is no interpreter {asked or 'python3'!r} on the node to make a virtual environment of;"
                " install it, give the path of another one (python), or use manager: conda"
            )
        return path

    def conda(self, required: bool = True) -> str:
        """Path of the conda executable."""
        if not self.conda_path:
            asked = str(self.params["conda"])
            if asked:
                self.conda_path = asked if os.access(asked, os.X_OK) and os.path.isfile(asked) else ""
            else:
                self.conda_path = self.module.get_bin_path("conda", opt_dirs=["/opt/gpufleet/conda/bin"]) or ""
            if not self.conda_path and required:
                self.fail(
                    f"conda is missing: {asked or 'no conda in the search path or /opt/gpufleet/conda/bin'}. Run the"
                    " role gpufleet.llm.anaconda first, give the path of conda, or use manager: venv"
                )
        return self.conda_path

    def _prefix_of_name(self) -> str:
        name = str(self.params["name"])
        if not re.fullmatch(r"[^/:#\s]+", name) or name in ("base", "root", ".", ".."):
            self.fail(f"{name!r} cannot be the name of an environment that this module manages")
        if not self.conda(required=not self.module.check_mode):
            return ""
        rc, out, err = self.run([self.conda(), "info", "--json"])
        try:
            folders = [str(one) for one in json.loads(out)["envs_dirs"]]
        except (ValueError, KeyError, TypeError):
            self.fail(envs.explain_conda(out, err, rc, self.params["timeout_seconds"]), stdout=out, stderr=err, rc=rc)
        for folder in folders:
            if os.path.isdir(os.path.join(folder, name)):
                return os.path.join(folder, name)
        return os.path.join(folders[0], name)

    # -- doing --------------------------------------------------------------------------------------------------

    def run(self, argv: list[str], **environ: str) -> tuple[int, str, str]:
        """Run a command within the time limit. The lock on the environment lives as long as the command does."""
        if self.params["ca_path"]:
            environ.update(
                CONDA_SSL_VERIFY=self.params["ca_path"],
                REQUESTS_CA_BUNDLE=self.params["ca_path"],
                SSL_CERT_FILE=self.params["ca_path"],
            )
        rc, out, err = self.module.run_command(
            bounded(self.params["timeout_seconds"], 30) + argv,
            environ_update={"LC_ALL": "C.UTF-8", **environ},
            pass_fds=() if self.lock_fd is None else (self.lock_fd,),
            expand_user_and_vars=False,
            cwd="/",
        )
        return int(rc), str(out), str(err)

    def lock(self) -> None:
        """One at a time, also after a killed run whose conda still works: its children hold the lock."""
        folder, name = os.path.split(self.prefix)
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, f".{name}.gpufleet-lock")
        deadline = time.monotonic() + self.params["timeout_seconds"]
        while True:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(handle), os.lstat(path)):
                    os.set_inheritable(handle, True)
                    self.lock_fd = handle
                    return
            except (BlockingIOError, FileNotFoundError):
                pass
            os.close(handle)
            if time.monotonic() > deadline:
                self.fail(f"another process has been working on {self.prefix} for {self.params['timeout_seconds']} s")
            time.sleep(0.2)

    def unlock(self) -> None:
        """Give the environment free and leave no lock behind."""
        folder, name = os.path.split(self.prefix)
        if self.lock_fd is not None:
            os.unlink(os.path.join(folder, f".{name}.gpufleet-lock"))
            os.close(self.lock_fd)
            self.lock_fd = None

    def mark(self, phase: str) -> None:
        """Say in the prefix that it is being worked on, before the work."""
        os.makedirs(self.prefix, exist_ok=True)
        path = os.path.join(self.prefix, envs.MARKER)
        with open(path + ".tmp", "w", encoding="utf-8") as stream:
            json.dump({"phase": phase, "started": round(time.time())}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(path + ".tmp", path)

    def unmark(self) -> None:
        """The environment is verified."""
        path = os.path.join(self.prefix, envs.MARKER)
        if os.path.lexists(path):
            os.unlink(path)

    def remove(self) -> None:
        """Take it out of the way at once, then delete it; also what an interrupted removal left."""
        folder, name = os.path.split(self.prefix)
        away = os.path.join(folder, f".{name}.gpufleet-removed")
        if os.path.lexists(away):
            shutil.rmtree(away)
        if os.path.lexists(self.prefix):
            os.rename(self.prefix, away)
            shutil.rmtree(away)

    def refuse_foreign(self, found: dict[str, Any]) -> None:
        """Never touch what is no environment, nor the installation of conda itself."""
        if found["state"] == "foreign":
            self.fail(
                f"{self.prefix} is left alone: {', '.join(found['reasons'])}. Move it away or choose another prefix"
            )
        if found["manager"] == "conda" and (
            os.path.lexists(os.path.join(self.prefix, "condabin")) or "conda" in found["packages"]
        ):
            self.fail(f"{self.prefix} is an installation of conda itself, not one of its environments")

    def create(self) -> None:
        """Make the environment with its Python and its conda packages."""
        self.remove()
        self.mark("create")
        if self.manager == "venv":
            self._create_venv()
            return
        specs = [f"python={self.params['python']}"] if self.params["python"] else []
        specs += [spec for spec in self.params["packages"] if envs.parse_spec(spec)["name"] != "python" or not specs]
        if self.entries and self.installer == "pip" and not any(one["name"] == "pip" for one in self.specs):
            specs.append("pip")
        self._conda("create", specs)

    def _conda(self, verb: str, specs: list[str]) -> None:
        base = [self.conda(), verb, "--prefix", self.prefix, "--yes", "--json"]
        if verb == "remove":
            self._from_the_first([("", lambda: self.run(base + specs))], envs.explain_conda)
            return

        def attempt(channels: list[str]) -> tuple[int, str, str]:
            if verb == "create":  # nothing of an attempt that failed stays
                self.remove()
                self.mark("create")
            argv = [*base, *(word for channel in channels for word in ("--channel", channel))]
            if self.params["override_channels"] and channels:
                argv.append("--override-channels")
            return self.run(argv + specs)

        places = [self.params["channels"], *[[str(one) for one in group] for group in self.params["fallback_channels"]]]
        self._from_the_first(
            [(", ".join(redact(one) for one in place), functools.partial(attempt, place)) for place in places],
            envs.explain_conda,
        )

    def _from_the_first(
        self,
        places: list[tuple[str, Callable[[], tuple[int, str, str]]]],
        explain: Callable[[str, str, int, int], str],
    ) -> None:
        """Ask one place after the other until one serves; fails with what each of them said."""
        said: list[str] = []
        for number, (name, attempt) in enumerate(places, 1):
            rc, out, err = attempt()
            if rc == 0:
                for one in said:
                    self.module.warn(f"{one.rstrip('.')}. Taken from {name} instead.")
                return
            message = explain(out, err, rc, self.params["timeout_seconds"])
            said.append(f"{name}: {message}")
            if number == len(places) or rc in (124, 137) or not envs.elsewhere_may_help(out, err):
                if len(said) > 1:
                    message = f"{len(said)} places were tried in vain. {' | '.join(said)}"
                self.fail(message, rc=rc, stdout=out[-4000:], stderr=err[-4000:])

    def _create_venv(self) -> None:
        python = self.interpreter()
        if self.installer == "uv":
            argv = [self.params["uv"], "venv", "--allow-existing", "--no-project", "--python", python, self.prefix]
            rc, out, err = self.run(argv, **self._uv_environment())
        else:
            rc, out, err = self.run([python, "-I", "-m", "venv", self.prefix])
        if rc != 0:
            hint = ""
            if "ensurepip" in out + err:
                hint = " The node lacks the package python3-venv; install it, or give uv."
            self.fail(f"cannot make a virtual environment with {python}:{hint} {(out + err).strip()[-1500:]}", rc=rc)

    def purge(self, found: dict[str, Any], names: list[str]) -> None:
        """Remove torn distributions by their own records, so that pip and uv can install them again."""
        inside = os.path.realpath(self.prefix) + os.sep
        for name in names:
            for folder, info in found["distributions"][name]["infos"]:
                try:
                    with open(os.path.join(info, "RECORD"), encoding="utf-8", errors="surrogateescape") as stream:
                        files = [line.rsplit(",", 2)[0].strip('"') for line in stream]
                except OSError:
                    files = []
                for file in files:
                    path = os.path.join(folder, file)
                    mine = (os.path.realpath(os.path.dirname(path)) + os.sep).startswith(inside)
                    if mine and (os.path.isfile(path) or os.path.islink(path)):
                        os.unlink(path)
                if os.path.isdir(info):
                    shutil.rmtree(info)
                elif os.path.lexists(info):
                    os.unlink(info)
        for path in found["leftovers"]:
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            elif os.path.lexists(path):
                os.unlink(path)

    def _uv_environment(self) -> dict[str, str]:
        cache = self.params["cache_dir"] or os.path.join(os.path.dirname(self.prefix), ".uv-cache")
        values = {"UV_CACHE_DIR": cache, "UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1"}
        if not self.params["keep_environment"]:
            values["UV_NO_CONFIG"] = "1"
        return values

    def install(self, entries: list[dict[str, Any]]) -> None:
        """Install entries of the lock, exactly as they are there, from the first index that has them."""
        indexes = [self.params["index_url"]]
        if not self.params["no_index"]:
            indexes += [one for one in dict.fromkeys(self.params["fallback_index_urls"]) if one not in indexes]
        self._from_the_first(
            [
                (redact(one) if one else "the installer's own index", functools.partial(self._install, one, entries))
                for one in indexes
            ],
            envs.explain_installer,
        )

    def _install(self, index_url: str, entries: list[dict[str, Any]]) -> tuple[int, str, str]:
        params = self.params
        # In the file rather than on the command line: a URL may hold credentials.
        lines = [f"--index-url {index_url}"] if index_url else []
        lines += [f"--extra-index-url {url}" for url in params["extra_index_urls"]]
        lines += [f"--find-links {place}" for place in params["find_links"]]
        lines += ["--no-index"] if params["no_index"] else []
        lines += self.lock_options + [entry["text"] for entry in entries]
        handle, path = tempfile.mkstemp(prefix="lock-", suffix=".txt", dir=self.module.tmpdir)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write("\n".join(lines) + "\n")
        if self.installer == "uv":
            argv = [params["uv"], "pip", "install", "--python", os.path.join(self.prefix, "bin", "python"), "--no-deps"]
            argv += ["--compile-bytecode"] if params["compile"] else []
            argv += [word for host in params["trusted_hosts"] for word in ("--allow-insecure-host", host)]
            environment = self._uv_environment()
        else:
            argv = [*self._pip(), "install", "--no-deps", "--progress-bar", "off", "--no-warn-script-location"]
            argv += ["--no-cache-dir"]
            argv += [] if params["compile"] else ["--no-compile"]
            argv += ["--cert", params["ca_path"]] if params["ca_path"] else []
            argv += [word for host in params["trusted_hosts"] for word in ("--trusted-host", host)]
            environment = {} if params["keep_environment"] else {"PIP_CONFIG_FILE": os.devnull}
        argv += ["--require-hashes"] if params["require_hashes"] else []
        return self.run([*argv, "--requirement", path], **environment)

    def _pip(self) -> list[str]:
        isolated = [] if self.params["keep_environment"] else ["--isolated"]
        python = os.path.join(self.prefix, "bin", "python")
        return [python, "-I", "-m", "pip", "--disable-pip-version-check", "--no-input", *isolated]

    def need_pip(self) -> None:
        """An environment may lack pip (a conda Python without it, a venv made by uv): bring the interpreter's own."""
        if self.installer != "pip":
            return
        python = os.path.join(self.prefix, "bin", "python")
        if self.run([python, "-I", "-m", "pip", "--version"])[0] == 0:
            return
        rc, out, err = self.run([python, "-I", "-m", "ensurepip", "--default-pip"])
        if rc != 0:
            self.fail(
                f"the environment {self.prefix} has no pip and its Python cannot bring one:"
                f" {(err or out).strip()[-500:]}. Give uv, or add pip to packages",
                rc=rc,
            )

    def uninstall(self, names: list[str]) -> None:
        """Remove distributions that nobody asked for."""
        python = os.path.join(self.prefix, "bin", "python")
        if self.installer == "uv":
            argv = [self.params["uv"], "pip", "uninstall", "--python", python, *names]
            rc, out, err = self.run(argv, **self._uv_environment())
        else:
            rc, out, err = self.run([*self._pip(), "uninstall", "--yes", *names])
        if rc != 0:
            self.fail(f"cannot remove {', '.join(names)}: {(err or out).strip()[-1500:]}", rc=rc)

    def compared(self, found: dict[str, Any]) -> dict[str, Any]:
        """What separates `found` from what is wanted."""
        return envs.compare(
            found,
            manager=self.manager,
            python=self.version_wanted(),
            specs=self.specs,
            entries=self.entries,
            exact=self.params["exact"],
        )

    def bring(self, found: dict[str, Any], todo: dict[str, Any]) -> None:
        """Bring the environment from what it is to what is wanted."""
        if found["state"] == "absent" or todo["rebuild"]:
            self.create()
            found = envs.look(self.prefix)
            todo = {**self.compared({**found, "marker": "", "state": "present", "reasons": []}), "rebuild": []}
        self.mark("packages")
        if todo["extra_packages"]:
            self._conda("remove", todo["extra_packages"])
        if todo["specs"]:
            names = {spec["name"] for spec in todo["specs"]}
            self._conda("install", [one for one in self.params["packages"] if envs.parse_spec(one)["name"] in names])
        if todo["damaged"] or found["leftovers"]:
            self.purge(found, todo["damaged"])
        if todo["entries"]:
            self.need_pip()
            self.install(todo["entries"])
        if todo["extra_distributions"]:
            self.uninstall(todo["extra_distributions"])

    def verify(self) -> dict[str, Any]:
        """Look again; fails when something still differs. Only then is the mark taken away."""
        found = envs.look(self.prefix, self.params["deep"])
        left = self.compared({**found, "marker": ""})
        if left["reasons"]:
            self.fail(f"{self.prefix} is still not as wanted: {'; '.join(left['reasons'])}")
        python = os.path.join(self.prefix, "bin", "python")
        if found["python"]:
            rc, out, err = self.run([python, "-I", "-c", "import sys; print(sys.prefix)"])
            if rc != 0:
                self.fail(f"{python} does not run: {(err or out).strip()[-1000:]}", rc=rc)
        self.unmark()
        return {**found, "marker": ""}


def shown(found: dict[str, Any]) -> dict[str, Any]:
    """An environment for the diff: only what a person reads."""
    return {
        "prefix": found["prefix"],
        "state": found["state"],
        "python": found["python"],
        "packages": [f"{name}={one['version']}={one['build']}" for name, one in sorted(found["packages"].items())],
        "distributions": [f"{name}=={one['version']}" for name, one in sorted(found["distributions"].items())],
    }


def predicted(environment: Environment, found: dict[str, Any], todo: dict[str, Any]) -> dict[str, Any]:
    """What check mode can say of the environment afterwards: what is asked for, on top of what stays."""
    anew = found["state"] != "present" or bool(todo["rebuild"])
    packages = {} if anew else dict(found["packages"])
    distributions = {} if anew else {name: one["version"] for name, one in found["distributions"].items()}
    for name in todo["extra_packages"]:
        packages.pop(name, None)
    for name in [*todo["extra_distributions"], *todo["damaged"]]:
        distributions.pop(name, None)
    asked = {spec["name"]: f"{spec['name']}{spec['version']}" for spec in todo["specs"]}
    lines = {name: f"{name}={one['version']}={one['build']}" for name, one in packages.items()}
    lines.update(asked)
    distributions.update({entry["name"]: entry["version"] or entry["constraint"] or "any" for entry in todo["entries"]})
    return {
        "prefix": environment.prefix,
        "state": "present",
        "python": environment.version_wanted() if anew else found["python"],
        "packages": [lines[name] for name in sorted(lines)],
        "distributions": [f"{name}=={version}" for name, version in sorted(distributions.items())],
    }


def result_of(environment: Environment, found: dict[str, Any]) -> dict[str, Any]:
    """The part of the result that says what is there."""
    return {
        "prefix": environment.prefix,
        "manager": found["manager"],
        "python": found["python"],
        "packages": {name: f"{one['version']}={one['build']}" for name, one in found["packages"].items()},
        "distributions": {name: one["version"] for name, one in found["distributions"].items()},
        "installer": environment.installer,
    }


def ensure_absent(module: AnsibleModule, environment: Environment, found: dict[str, Any]) -> None:
    """state: absent."""
    folder, name = os.path.split(environment.prefix)
    leftover = os.path.lexists(os.path.join(folder, f".{name}.gpufleet-removed"))
    there = found["state"] != "absent" or os.path.isdir(environment.prefix) or leftover
    gone = envs.look(os.path.join(environment.prefix, "gone", "for", "ever"))
    if there:
        environment.refuse_foreign(found)
        if not module.check_mode:
            environment.lock()
            environment.remove()
            environment.unlock()
    after = {**shown(gone), "prefix": environment.prefix}
    module.exit_json(
        changed=there,
        rebuilt=False,
        reasons=[f"it is {found['state']}"] if there else [],
        diff={"before": shown(found), "after": after},
        **{**result_of(environment, gone), "prefix": environment.prefix},
    )


def ensure_present(module: AnsibleModule, environment: Environment, found: dict[str, Any]) -> None:
    """state: present."""
    environment.refuse_foreign(found)
    environment.read_lock()
    if not module.check_mode and environment.compared(found)["reasons"]:
        environment.lock()
        found = envs.look(environment.prefix, environment.params["deep"])
        environment.read_lock()
    todo = environment.compared(found)
    rebuilt = bool(todo["rebuild"])
    after = shown(found)
    last = found
    if todo["reasons"]:
        if module.check_mode:
            after = predicted(environment, found, todo)
        else:
            environment.bring(found, todo)
            last = environment.verify()
            after = shown(last)
    if environment.lock_fd is not None:
        environment.unlock()
    module.exit_json(
        changed=bool(todo["reasons"]),
        rebuilt=rebuilt,
        reasons=todo["reasons"],
        diff={"before": shown(found), "after": after},
        **result_of(environment, last),
    )


def main() -> None:
    # no_log: what the module was called with is kept out of the system's log, since URLs may hold credentials.
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "prefix": {"type": "path"},
            "name": {"type": "str"},
            "manager": {"type": "str", "choices": ["conda", "venv"], "default": "conda"},
            "conda": {"type": "path", "default": ""},
            "python": {"type": "str", "default": ""},
            "packages": {"type": "list", "elements": "str", "default": []},
            "channels": {"type": "list", "elements": "str", "default": ["conda-forge"]},
            "fallback_channels": {"type": "list", "elements": "list", "default": []},
            "override_channels": {"type": "bool", "default": True},
            "requirements": {"type": "str"},
            "requirements_file": {"type": "path"},
            "require_hashes": {"type": "bool", "default": True},
            "exact": {"type": "bool", "default": False},
            "installer": {"type": "str", "choices": ["auto", "uv", "pip"], "default": "auto"},
            "uv": {"type": "str", "default": ""},
            "index_url": {"type": "str", "default": ""},
            "fallback_index_urls": {"type": "list", "elements": "str", "default": []},
            "extra_index_urls": {"type": "list", "elements": "str", "default": []},
            "find_links": {"type": "list", "elements": "str", "default": []},
            "no_index": {"type": "bool", "default": False},
            "trusted_hosts": {"type": "list", "elements": "str", "default": []},
            "ca_path": {"type": "str", "default": ""},
            "cache_dir": {"type": "str", "default": ""},
            "compile": {"type": "bool", "default": False},
            "deep": {"type": "bool", "default": True},
            "keep_environment": {"type": "bool", "default": False},
            "timeout_seconds": {"type": "int", "default": 3600},
        },
        required_one_of=[("prefix", "name")],
        mutually_exclusive=[("prefix", "name"), ("requirements", "requirements_file")],
        supports_check_mode=True,
        no_log=True,
    )
    no_input()
    params = module.params
    environment = Environment(module)
    indexes = [params["index_url"], *params["fallback_index_urls"], *params["extra_index_urls"]]
    for url in [*indexes, *params["find_links"], *environment.all_channels()]:
        module.no_log_values.update(secrets_of(url))
    if not params["keep_environment"]:
        for name in [name for name in os.environ if NOISE.match(name)]:
            del os.environ[name]

    environment.understand()
    found = envs.look(environment.prefix, params["deep"]) if environment.prefix else envs.look("/nonexistent/gpufleet")
    try:
        if params["state"] == "absent":
            ensure_absent(module, environment, found)
        else:
            ensure_present(module, environment, found)
    except OSError as error:
        environment.fail(f"cannot work on {environment.prefix}: {error}")


if __name__ == "__main__":
    main()
