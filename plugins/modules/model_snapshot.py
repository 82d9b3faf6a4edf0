#!/usr/bin/python
# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: model_snapshot
short_description: Have the weights of a model in a folder, at one commit, verified
version_added: 0.1.0
author:
  - gpufleet.llm contributors (@gpufleet)
description:
  - Fetches the files of a model repository at a commit that can never move, from the first hub that has them right, and
    verifies every one by size and SHA-256 (or by git's own hash, where a hub tells no other of a small file).
  - The folder counts as complete only when every file of the manifest is there and right. Then, and only then,
    C(.gpufleet/manifest.json) and C(.gpufleet/verified.json) are written; later runs compare size, modification time and
    inode with that record instead of reading gigabytes, unless O(deep=true).
  - A transfer that was cut is continued by the next run. A file whose hash is wrong is removed and fetched from the next
    place. The disk is looked at before the first byte.
  - Hugging Face and its mirrors are asked through C(huggingface_hub) in an environment of its own (O(tool_python)), since
    a model's own environment may hold any version of it. ModelScope is asked by plain HTTPS.
  - Without O(files) the list of files is read from the hub at that commit, once, and kept with the weights.
extends_documentation_fragment:
  - gpufleet.llm._attributes
attributes:
  check_mode:
    support: full
    details:
      - Looks at the folder, asks no hub and writes nothing. When the list of files is not known yet, everything is to come.
  diff_mode:
    support: full
  platform:
    platforms: linux
  idempotent:
    support: full
requirements:
  - huggingface_hub >= 0.25 in the environment of O(tool_python), unless only ModelScope is asked
options:
  path:
    description:
      - Folder of the weights. It is made when it does not exist.
    type: path
    required: true
  state:
    description:
      - V(absent) removes the folder, which must be one that this module made.
    type: str
    choices: [present, absent]
    default: present
  repos:
    description:
      - Names of the repository on Hugging Face, C(namespace/name), tried in this order.
    type: list
    elements: str
    default: []
  revision:
    description:
      - Commit, 40 hexadecimal digits. Branches and tags are refused because they move.
      - Required when O(state=present).
    type: str
  files:
    description:
      - What is known of the files. Maps a relative path to C(size) (bytes) and C(sha256) or C(git_sha1).
    type: dict
    default: {}
  manifest:
    description:
      - V(complete) if O(files) names all files. V(partial) if the list is to be read from the hub; what O(files) says must
        then be what the hub says.
    type: str
    choices: [complete, partial]
    default: partial
  allow_patterns:
    description:
      - Shell patterns of the files that are wanted when the list comes from a hub. All, when empty.
    type: list
    elements: str
    default: []
  ignore_patterns:
    description:
      - Shell patterns of files that are not wanted even if O(allow_patterns) matches, for example a second copy of the
        weights.
    type: list
    elements: str
    default: []
  allow_pickle:
    description:
      - Whether files that run code when they are loaded (C(.bin), C(.pt), C(.ckpt) and the like) may be fetched.
    type: bool
    default: false
  sources:
    description:
      - Kinds of hub, tried in this order.
    type: list
    elements: str
    choices: [huggingface, modelscope]
    default: [huggingface, modelscope]
  endpoints:
    description:
      - Hugging Face and its mirrors, tried in this order.
    type: list
    elements: str
    default: ["https://huggingface.co"]
  modelscope:
    description:
      - The same weights on ModelScope. Revisions are not those of Hugging Face; that the files are the same is shown by
        their hashes.
    type: list
    elements: dict
    default: []
    suboptions:
      repo:
        description: Name of the repository, C(namespace/name).
        type: str
        required: true
      revision:
        description: Tag or branch.
        type: str
        default: master
  modelscope_endpoints:
    description:
      - ModelScope and its mirrors, tried in this order.
    type: list
    elements: str
    default: ["https://www.modelscope.cn"]
  tool_python:
    description:
      - Python interpreter of an environment with C(huggingface_hub).
    type: path
  token:
    description:
      - Access token for repositories behind a licence. Taken from the environment variable E(HF_TOKEN) when not given.
      - Handed on only in the environment of the process that asks the hub, and only for the hubs in O(token_endpoints).
    type: str
  token_endpoints:
    description:
      - The hubs that may see the token.
    type: list
    elements: str
    default: ["https://huggingface.co"]
  ca_path:
    description:
      - Bundle of certificates to trust. The system's own when empty.
    type: str
    default: ""
  deep:
    description:
      - Read and hash every file, also those that nobody has touched since they were last verified.
    type: bool
    default: false
  exact:
    description:
      - Remove files that the manifest does not name. They are only reported otherwise.
    type: bool
    default: false
  max_workers:
    description:
      - How many files are fetched at a time.
    type: int
    default: 4
  timeout_seconds:
    description:
      - How long to wait for an answer of a hub.
    type: int
    default: 30
"""

EXAMPLES = r"""
---
- name: Weights of a small chat model at one commit
  gpufleet.llm.model_snapshot:
    path: /opt/llm/weights/qwen
    repos: [Qwen/Qwen1.5-0.5B-Chat]
    revision: 4d14e384a4b037942bb3f3016665157c8bcb70ea
    allow_patterns: ["*.json", "*.safetensors", merges.txt]
    tool_python: /opt/llm/tools/bin/python

- name: The same from a mirror first, and from ModelScope when both fail
  gpufleet.llm.model_snapshot:
    path: /opt/llm/weights/qwen
    repos: [Qwen/Qwen1.5-0.5B-Chat]
    revision: 4d14e384a4b037942bb3f3016665157c8bcb70ea
    endpoints: ["https://hf-mirror.com", "https://huggingface.co"]
    modelscope:
      - repo: Qwen/Qwen1.5-0.5B-Chat
        revision: master
    allow_patterns: ["*.json", "*.safetensors", merges.txt]
    tool_python: /opt/llm/tools/bin/python

- name: Read every byte again
  gpufleet.llm.model_snapshot:
    path: /opt/llm/weights/qwen
    repos: [Qwen/Qwen1.5-0.5B-Chat]
    revision: 4d14e384a4b037942bb3f3016665157c8bcb70ea
    tool_python: /opt/llm/tools/bin/python
    deep: true
"""

RETURN = r"""
path:
  description: The folder.
  returned: always
  type: str
  sample: /opt/llm/weights/qwen
revision:
  description: The commit.
  returned: when state is present
  type: str
  sample: 4d14e384a4b037942bb3f3016665157c8bcb70ea
complete:
  description: Whether every file of the manifest is there and verified.
  returned: when state is present
  type: bool
  sample: true
files:
  description: The manifest, path to C(size), C(sha256) and C(git_sha1).
  returned: when state is present
  type: dict
fetched:
  description: Files that were transferred in this run.
  returned: when state is present
  type: list
  elements: str
  sample: [model.safetensors]
hashed:
  description: Files that were read and hashed in this run.
  returned: when state is present
  type: list
  elements: str
  sample: []
removed:
  description: Files that were removed because they were wrong, or not in the manifest with O(exact=true).
  returned: when state is present
  type: list
  elements: str
  sample: []
extra:
  description: Files in the folder that the manifest does not name.
  returned: when state is present
  type: list
  elements: str
  sample: []
size_bytes:
  description: Size of all files of the manifest.
  returned: when state is present
  type: int
  sample: 1250652193
sources:
  description: Where the fetched files came from, path to place.
  returned: when state is present
  type: dict
  sample: {"model.safetensors": "https://huggingface.co"}
failures:
  description: What went wrong at which place, also when another place had the files right.
  returned: when state is present
  type: list
  elements: dict
  sample: [{"place": "https://hf-mirror.com", "file": "model.safetensors", "error": "HTTP 503"}]
"""

import fcntl
import json
import os
import shutil
import ssl
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from ansible.module_utils.basic import AnsibleModule, env_fallback
from ansible_collections.gpufleet.llm.plugins.module_utils import model_files, model_hub
from ansible_collections.gpufleet.llm.plugins.module_utils.fetch import (
    Fetch,
    FetchError,
    free_bytes,
    human,
    redact,
    tls_context,
)
from ansible_collections.gpufleet.llm.plugins.module_utils.model_files import STATE_DIR, Manifest, ManifestError

# Where distributions keep the certificates that they trust (Debian, RHEL, Arch); certifi's own list lacks a site's CA.
SYSTEM_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)


def module_source(module_util: Any) -> str:
    """The source text of an imported module, also out of the zip in which Ansible sends it."""
    source = module_util.__loader__.get_source(module_util.__name__)
    if source is None:
        raise RuntimeError(f"no source of {module_util.__name__}")
    return str(source)


def told(failure: dict[str, Any]) -> str:
    """A hub's failure in words, with what to do about the known ones."""
    status, kind = failure.get("status", 0), failure.get("type", "")
    text = f"{kind}: {failure.get('message', '')}"
    if kind == "GatedRepoError" or (status == 403 and "gated" in text.lower()):
        return (
            "the repository is behind a licence (gated): accept it once on the hub's page with the account of the token, and"
            f" give a token with read access. {text}"
        )
    if kind == "RepositoryNotFoundError":
        return f"there is no such repository, or it needs a token. {text}"
    if kind == "RevisionNotFoundError":
        return f"there is no such commit in the repository. {text}"
    if kind == "EntryNotFoundError":
        return f"there is no such file at this commit. {text}"
    if status == 429:
        return f"the hub refuses more requests from this address for now (HTTP 429). {text}"
    return text


class Snapshot:
    """One folder of weights; `ensure` brings it to its state."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.base: str = module.params["path"]
        self.failures: list[dict[str, str]] = []
        self.fetched: list[str] = []
        self.hashed: set[str] = set()
        self.removed: list[str] = []
        self.sources: dict[str, str] = {}

    # -- the hubs -------------------------------------------------------------------------------------------------

    def environment(self, endpoint: str) -> dict[str, str]:
        """The environment in which huggingface_hub is imported."""
        env = {
            "HF_ENDPOINT": endpoint.rstrip("/"),
            "HF_HOME": os.path.join(self.module.tmpdir, "hub-home"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": str(self.params["timeout_seconds"]),
            "HF_HUB_ETAG_TIMEOUT": str(self.params["timeout_seconds"]),
            "HF_TOKEN": "",
            "PYTHONNOUSERSITE": "1",
        }
        if endpoint.rstrip("/") != "https://huggingface.co":
            # Mirrors proxy the API and the files, not the content store; a client that speaks to that breaks there.
            env["HF_HUB_DISABLE_XET"] = "1"
        bundle = self.params["ca_path"] or next((path for path in SYSTEM_BUNDLES if os.path.isfile(path)), "")
        if bundle:
            env.update(REQUESTS_CA_BUNDLE=bundle, SSL_CERT_FILE=bundle)
        trusted = [place.rstrip("/") for place in self.params["token_endpoints"]]
        if self.params["token"] and endpoint.rstrip("/") in trusted:
            env["GPUFLEET_HUB_TOKEN"] = self.params["token"]
        return env

    def ask_hub(self, endpoint: str, request: dict[str, Any]) -> dict[str, Any]:
        """Run the helper in the tool environment; its answer, or {"error": ...}."""
        python = self.params["tool_python"]
        script = os.path.join(self.module.tmpdir, "model_hub.py")
        if not os.path.exists(script):
            with open(script, "w", encoding="utf-8") as stream:
                stream.write(module_source(model_hub))
        try:
            rc, out, err = self.module.run_command(
                [python, "-I", script],
                data=json.dumps(request),
                environ_update=self.environment(endpoint),
                handle_exceptions=False,
            )
        except OSError as error:  # not there, not executable, or gone before it read the request
            rc, out, err = 1, "", error.strerror or str(error)
        if model_hub.BEGIN in out:
            answer = json.loads(out.split(model_hub.BEGIN, 1)[1].split(model_hub.END, 1)[0])
            return dict(answer)
        tail = (err or out).strip().splitlines()[-3:]
        return {"error": {"type": f"rc {rc}", "status": 0, "message": f"{python} stopped: {' '.join(tail)}"}}

    def modelscope_files(self, endpoint: str, repo: str, revision: str) -> Manifest:
        """The file list of a ModelScope repository. Raises FetchError. (modelscope 1.20, hub/api.py, get_model_files)"""
        query = urllib.parse.urlencode({"Revision": revision, "Recursive": "True"})
        url = f"{endpoint.rstrip('/')}/api/v1/models/{repo}/repo/files?{query}"
        parts = urllib.parse.urlsplit(url)
        if parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "localhost"):
            raise FetchError(f"{redact(url)} is not https")
        request = urllib.request.Request(url, headers={"User-Agent": "ansible-gpufleet.llm"})  # noqa: S310
        try:
            opener = urllib.request.build_opener(
                urllib.request.HTTPSHandler(context=tls_context(self.params["ca_path"]))
            )
            with opener.open(request, timeout=self.params["timeout_seconds"]) as answer:
                body = json.loads(answer.read(32 << 20))
            rows = body["Data"]["Files"]
            return {
                row["Path"]: {"size": int(row["Size"]), "sha256": str(row["Sha256"]).lower()}
                for row in rows
                if row.get("Type") != "tree"
            }
        except urllib.error.HTTPError as error:
            raise FetchError(f"{redact(url)}: HTTP {error.code} {error.reason}") from error
        except (OSError, ssl.SSLError, ValueError, KeyError, TypeError) as error:
            raise FetchError(f"{redact(url)}: {type(error).__name__}: {error}") from error

    def places(self) -> list[tuple[str, str, str, str]]:
        """(kind, endpoint, repository, revision) of every place, in the order in which they are asked."""
        out: list[tuple[str, str, str, str]] = []
        for source in self.params["sources"]:
            if source == "huggingface":
                out += [
                    (source, endpoint, repo, self.params["revision"])
                    for endpoint in self.params["endpoints"]
                    for repo in self.params["repos"]
                ]
            else:
                out += [
                    (source, endpoint, item["repo"], item["revision"])
                    for endpoint in self.params["modelscope_endpoints"]
                    for item in self.params["modelscope"]
                ]
        return out

    def fail_at(self, endpoint: str, repo: str, path: str, error: str) -> None:
        self.failures.append({"place": f"{redact(endpoint)} ({repo})", "file": path, "error": error})

    # -- what is wanted -------------------------------------------------------------------------------------------

    def fingerprint(self) -> str:
        names = self.params["repos"] or [item["repo"] for item in self.params["modelscope"]]
        return model_files.request_fingerprint(
            names, self.params["revision"], self.params["allow_patterns"], self.params["ignore_patterns"]
        )

    def resolve(self) -> Manifest:
        """The file list from the first place that tells it. Fails the module when none does."""
        known: Manifest = self.params["files"]
        for kind, endpoint, repo, revision in self.places():
            try:
                if kind == "huggingface":
                    answer = self.ask_hub(endpoint, {"action": "list", "repo": repo, "revision": revision})
                    if "error" in answer:
                        self.fail_at(endpoint, repo, "", told(answer["error"]))
                        continue
                    if answer["revision"] != revision:
                        self.fail_at(endpoint, repo, "", f"it answers with the commit {answer['revision']}")
                        continue
                    files = answer["files"]
                else:
                    files = self.modelscope_files(endpoint, repo, revision)
                chosen = model_files.selected(
                    sorted(files), self.params["allow_patterns"], self.params["ignore_patterns"]
                )
                return model_files.agreed(known, {path: files[path] for path in chosen}, f"{endpoint} ({repo})")
            except (FetchError, ManifestError) as error:
                self.fail_at(endpoint, repo, "", str(error))
        self.fail(f"no place tells the files of {self.question()}:\n{self.listing()}")
        raise AssertionError("fail_json does not return")

    def question(self) -> str:
        names = self.params["repos"] or [item["repo"] for item in self.params["modelscope"]]
        return f"{' or '.join(names) or 'no repository'} at {self.params['revision']}"

    def listing(self) -> str:
        rows = [
            f"  {item['place']}{': ' + item['file'] if item['file'] else ''}: {item['error']}" for item in self.failures
        ]
        return "\n".join(rows) or "  there is no place to ask: repos and modelscope are empty"

    def wanted(self) -> Manifest:
        """The manifest: as given, as kept from an earlier run, or as a hub tells it."""
        if self.params["manifest"] == "complete":
            return dict(self.params["files"])
        kept = model_files.kept_manifest(self.base, self.fingerprint())
        if kept:
            try:
                return model_files.agreed(self.params["files"], kept, "the list kept with the weights")
            except ManifestError as error:
                self.module.warn(f"{self.base}: {error}; the list is read from the hub again")
        if self.module.check_mode:
            return {}
        return self.resolve()

    # -- fetching -------------------------------------------------------------------------------------------------

    def forget(self, path: str) -> None:
        """Remove a wrong file and what the hub's client remembers of it, or it would believe the file is right."""
        self.removed.append(path)
        for name in (
            os.path.join(self.base, path),
            os.path.join(self.base, model_files.HUB_DIR, "download", path + ".metadata"),
        ):
            try:
                os.unlink(name)
            except IsADirectoryError:
                shutil.rmtree(name)
            except FileNotFoundError:
                pass

    def from_huggingface(self, files: list[str], endpoint: str, repo: str, revision: str) -> None:
        answer = self.ask_hub(
            endpoint,
            {
                "action": "fetch",
                "repo": repo,
                "revision": revision,
                "files": files,
                "local_dir": self.base,
                "max_workers": self.params["max_workers"],
            },
        )
        if "error" in answer:
            self.fail_at(endpoint, repo, "", told(answer["error"]))
            return
        for path, failure in answer["failures"].items():
            self.fail_at(endpoint, repo, path, told(failure))

    def from_modelscope(self, files: list[str], wanted: Manifest, endpoint: str, repo: str, revision: str) -> None:
        try:
            there = self.modelscope_files(endpoint, repo, revision)
        except FetchError as error:
            self.fail_at(endpoint, repo, "", str(error))
            return
        for path in files:
            row = wanted[path]
            if path not in there:
                self.fail_at(endpoint, repo, path, "it has no such file")
                continue
            sha256 = row.get("sha256") or there[path]["sha256"]
            if there[path]["sha256"] != sha256:
                self.fail_at(endpoint, repo, path, f"its file has another sha256 ({there[path]['sha256']})")
                continue
            query = urllib.parse.urlencode({"Revision": revision, "FilePath": path})
            dest = os.path.join(self.base, path)
            os.makedirs(os.path.dirname(dest), exist_ok=True)
            try:
                Fetch(
                    urls=[f"{endpoint.rstrip('/')}/api/v1/models/{repo}/repo?{query}"],
                    dest=dest,
                    sha256=sha256,
                    size_bytes=row.get("size"),
                    ca_path=self.params["ca_path"],
                    timeout_seconds=float(self.params["timeout_seconds"]),
                ).run(place=self.module.atomic_move)
                os.chmod(dest, 0o644)
            except FetchError as error:
                self.fail_at(endpoint, repo, path, str(error))

    def check_disk(self, wanted: Manifest, todo: list[str]) -> None:
        """Refuse before the first byte what cannot fit."""
        needed = model_files.bytes_to_come(self.base, wanted, todo)
        found = free_bytes(self.base)
        if found < needed + model_files.RESERVE_BYTES:
            self.fail(
                f"the filesystem of {self.base} is too small: {len(todo)} files with {human(needed)} are still to come,"
                f" free are {human(found)}. Nothing was fetched. Free some space or choose another path."
            )

    def fetch(self, wanted: Manifest, todo: list[str]) -> dict[str, Any]:
        """Ask place after place until nothing is missing or wrong; the rows of the files that are right now."""
        good: dict[str, Any] = {}
        for kind, endpoint, repo, revision in self.places():
            if not todo:
                break
            if kind == "huggingface":
                self.from_huggingface(todo, endpoint, repo, revision)
            else:
                self.from_modelscope(todo, wanted, endpoint, repo, revision)
            seen = model_files.survey(self.base, {path: wanted[path] for path in todo}, {}, False)
            self.hashed.update(seen["hashed"])
            for path, reason in seen["wrong"].items():
                self.fail_at(endpoint, repo, path, f"{reason}; the file was removed")
                self.forget(path)
            for path in seen["good"]:
                self.sources[path] = redact(endpoint)
            self.fetched += sorted(seen["good"])
            good.update(seen["good"])
            todo = [path for path in todo if path not in seen["good"]]
        if todo:
            self.fail(
                f"{len(todo)} of {len(wanted)} files of {self.question()} could not be had"
                f" ({', '.join(todo[:5])}{', …' if len(todo) > 5 else ''}):\n{self.listing()}\n"
                f"What came is kept in {self.base}; the next run goes on from there."
            )
        return good

    # -- the whole ------------------------------------------------------------------------------------------------

    def facts(self, wanted: Manifest, complete: bool) -> dict[str, Any]:
        return {
            "path": self.base,
            "revision": self.params["revision"],
            "complete": complete,
            "files": wanted,
            "fetched": self.fetched,
            "hashed": sorted(self.hashed),
            "removed": self.removed,
            "extra": model_files.extra_files(self.base, wanted) if wanted else [],
            "size_bytes": sum(int(row.get("size", 0)) for row in wanted.values()),
            "sources": self.sources,
            "failures": self.failures,
        }

    def fail(self, message: str) -> None:
        self.module.fail_json(msg=message, **self.facts({}, False))

    def absent(self) -> None:
        there = os.path.lexists(self.base)
        if there and not os.path.isdir(os.path.join(self.base, STATE_DIR)):
            self.fail(
                f"{self.base} is not removed: it has no {STATE_DIR} folder, so this module did not make it. Remove it by hand."
            )
        if there and not self.module.check_mode:
            shutil.rmtree(self.base)
        state = "present" if there else "absent"
        self.module.exit_json(
            changed=there,
            path=self.base,
            diff={"before": {"path": self.base, "state": state}, "after": {"path": self.base, "state": "absent"}},
        )

    def lock(self) -> Any:
        """Hold the folder: a second run waits here until the first one is done, and then finds its work done."""
        os.makedirs(os.path.join(self.base, STATE_DIR), exist_ok=True)
        handle = open(os.path.join(self.base, STATE_DIR, "lock"), "w", encoding="utf-8")
        fcntl.flock(handle, fcntl.LOCK_EX)
        return handle

    def wanted_or_fail(self) -> Manifest:
        try:
            model_files.check_revision(self.params["revision"] or "")
            model_files.check_paths(self.params["files"])
            wanted = self.wanted()
            model_files.check_paths(wanted)
        except ManifestError as error:
            self.fail(str(error))
        pickles = [path for path in sorted(wanted) if model_files.is_pickle(path)]
        if pickles and not self.params["allow_pickle"]:
            self.fail(
                f"{', '.join(pickles[:5])} of {self.question()} would run code when loaded. Leave them out with"
                " ignore_patterns if the repository has the same weights as safetensors; otherwise set allow_pickle."
            )
        return wanted

    def present(self) -> None:
        check = self.module.check_mode
        if not check:
            try:
                handle = self.lock()
            except OSError as error:
                self.fail(f"cannot write to {self.base}: {error.strerror}")
        wanted = self.wanted_or_fail()
        record = model_files.read_record(self.base)
        seen = model_files.survey(self.base, wanted, record, self.params["deep"])
        self.hashed.update(seen["hashed"])
        todo = [*seen["missing"], *seen["wrong"]]
        extra = model_files.extra_files(self.base, wanted) if wanted else []
        unwanted = extra if self.params["exact"] else []
        unrecorded = sorted(path for path, row in seen["good"].items() if record.get(path) != row)
        kept = model_files.kept_manifest(self.base, self.fingerprint())
        changed = bool(
            todo or unwanted or unrecorded or not kept or set(kept) != set(wanted) or set(record) - set(wanted)
        )
        before = {
            "path": self.base,
            "good": sorted(seen["good"]),
            "missing": seen["missing"],
            "wrong": seen["wrong"],
            "unrecorded": unrecorded,
            "extra": extra,
        }
        after = {
            "path": self.base,
            "good": sorted(wanted),
            "missing": [],
            "wrong": {},
            "unrecorded": [],
            "extra": [path for path in extra if path not in unwanted],
        }
        diff = {"before": before, "after": after}
        if check:
            complete = bool(wanted) and not todo
            self.module.exit_json(changed=changed, diff=diff, **self.facts(wanted, complete))
        if changed:
            good = seen["good"]
            if todo:
                self.check_disk(wanted, todo)
                self.drop_record()
                for path in seen["wrong"]:
                    self.forget(path)
                good = {**good, **self.fetch(wanted, todo)}
            for path in unwanted:
                os.unlink(os.path.join(self.base, path))
                self.removed.append(path)
            wanted = self.complete(wanted, good)
        handle.close()
        self.module.exit_json(changed=changed, diff=diff, **self.facts(wanted, True))

    def drop_record(self) -> None:
        """From here on the folder is not complete; nobody may believe an older record."""
        try:
            os.unlink(os.path.join(self.base, STATE_DIR, model_files.RECORD_FILE))
        except FileNotFoundError:
            pass

    def complete(self, wanted: Manifest, good: dict[str, Any]) -> Manifest:
        """Everything is there and verified: say so, last of all. The manifest with every sha256."""
        hub = os.path.join(self.base, model_files.HUB_DIR)
        if os.path.isdir(hub):
            shutil.rmtree(hub)
        try:
            os.rmdir(os.path.dirname(hub))
        except OSError:
            pass
        for folder, _folders, _names in os.walk(self.base):
            os.chmod(folder, 0o755)  # noqa: S103 - weights are read by the account that runs the model
        for path in wanted:
            # The hub's client writes through a temporary file that only its owner may read.
            os.chmod(os.path.join(self.base, path), 0o644)
        files = {
            path: {**row, "size": good[path]["size"], "sha256": good[path]["sha256"]} for path, row in wanted.items()
        }
        state = os.path.join(self.base, STATE_DIR)
        model_files.write_json(
            os.path.join(state, model_files.MANIFEST_FILE),
            {
                "fingerprint": self.fingerprint(),
                "repos": self.params["repos"],
                "revision": self.params["revision"],
                "files": files,
            },
        )
        model_files.write_json(os.path.join(state, model_files.RECORD_FILE), {"files": good})
        return files


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "repos": {"type": "list", "elements": "str", "default": []},
            "revision": {"type": "str"},
            "files": {"type": "dict", "default": {}},
            "manifest": {"type": "str", "choices": ["complete", "partial"], "default": "partial"},
            "allow_patterns": {"type": "list", "elements": "str", "default": []},
            "ignore_patterns": {"type": "list", "elements": "str", "default": []},
            "allow_pickle": {"type": "bool", "default": False},
            "sources": {
                "type": "list",
                "elements": "str",
                "choices": ["huggingface", "modelscope"],
                "default": ["huggingface", "modelscope"],
            },
            "endpoints": {"type": "list", "elements": "str", "default": ["https://huggingface.co"]},
            "modelscope": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "repo": {"type": "str", "required": True},
                    "revision": {"type": "str", "default": "master"},
                },
            },
            "modelscope_endpoints": {"type": "list", "elements": "str", "default": ["https://www.modelscope.cn"]},
            "tool_python": {"type": "path"},
            "token": {"type": "str", "no_log": True, "fallback": (env_fallback, ["HF_TOKEN"])},
            "token_endpoints": {
                "type": "list",
                "elements": "str",
                "default": ["https://huggingface.co"],
                "no_log": False,
            },
            "ca_path": {"type": "str", "default": ""},
            "deep": {"type": "bool", "default": False},
            "exact": {"type": "bool", "default": False},
            "max_workers": {"type": "int", "default": 4},
            "timeout_seconds": {"type": "int", "default": 30},
        },
        required_if=[("state", "present", ["revision"])],
        supports_check_mode=True,
    )
    snapshot = Snapshot(module)
    if module.params["state"] == "absent":
        snapshot.absent()
    asks_hub = "huggingface" in module.params["sources"] and module.params["repos"]
    if asks_hub and not module.params["tool_python"] and not module.check_mode:
        module.fail_json(
            msg="tool_python is needed to ask Hugging Face: the Python of an environment with huggingface_hub",
            path=module.params["path"],
        )
    snapshot.present()


if __name__ == "__main__":
    main()
