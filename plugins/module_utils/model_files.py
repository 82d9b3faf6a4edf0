# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Weights on a node: which files a folder must hold, whether it holds them, and the record of having looked.

A *manifest* maps relative paths to C({"size": bytes, "sha256": hex}), or C(git_sha1) in place of C(sha256) for the small
files of which a hub tells only git's own hash. Standard library only, Python 3.9, no I/O at import.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
from typing import Any

Row = dict[str, Any]
Manifest = dict[str, Row]

STATE_DIR = ".gpufleet"
MANIFEST_FILE = "manifest.json"
RECORD_FILE = "verified.json"
# Where huggingface_hub keeps its own notes below a local_dir (huggingface_hub, _local_folder.py).
HUB_DIR = ".cache/huggingface"
# What a file that git-lfs never filled in starts with (git-lfs specification, "The pointer").
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
CHUNK_BYTES = 4 << 20
# What must stay free on the filesystem after the download.
RESERVE_BYTES = 16 << 20

_HEX40 = re.compile(r"[0-9a-f]{40}\Z")


class ManifestError(ValueError):
    """A manifest, a revision or a path that cannot be used; the text says which and why."""


def check_revision(revision: str) -> str:
    """The revision, when it is a commit that can never move. Raises ManifestError."""
    if not _HEX40.match(revision):
        raise ManifestError(
            f"revision must be a commit of 40 lower-case hex digits, found {revision!r}: a branch or a tag can move, and"
            " then two nodes have different weights. The hub's page 'Files and versions' shows the commit."
        )
    return revision


def check_paths(files: Manifest) -> None:
    """Raise ManifestError for a path that leads out of the folder or into the module's own."""
    for path in files:
        parts = path.split("/")
        if path.startswith("/") or "\\" in path or any(part in ("", ".", "..") for part in parts):
            raise ManifestError(f"the manifest names a path outside its folder: {path!r}")
        if parts[0] == STATE_DIR or path.startswith(HUB_DIR + "/"):
            raise ManifestError(f"the manifest names a path that this module keeps for itself: {path!r}")


def is_pickle(path: str) -> bool:
    """Whether loading this kind of file can run code (facts: python's pickle, torch.load)."""
    return path.lower().endswith(PICKLES)


def selected(paths: list[str], allow: list[str], ignore: list[str]) -> list[str]:
    """The paths that match one of C(allow) (all, when that is empty) and none of C(ignore), as huggingface_hub does it.

    A pattern that ends in C(/) means everything below that folder.
    """

    def matches(path: str, patterns: list[str]) -> bool:
        return any(fnmatch.fnmatch(path, pattern + "*" if pattern.endswith("/") else pattern) for pattern in patterns)

    return [path for path in paths if (not allow or matches(path, allow)) and not matches(path, ignore)]


def request_fingerprint(repos: list[str], revision: str, allow: list[str], ignore: list[str]) -> str:
    """Names the question to which a kept manifest is the answer: sha256 of repository, revision and patterns."""
    question = [sorted(repos), revision, sorted(allow), sorted(ignore)]
    return hashlib.sha256(json.dumps(question).encode()).hexdigest()


def file_hashes(path: str) -> dict[str, str]:
    """The C(sha256) of a file and git's name of it, C(git_sha1), in one reading. Raises OSError."""
    size = os.stat(path).st_size
    plain = hashlib.sha256()
    blob = hashlib.new("sha1", usedforsecurity=False)
    blob.update(b"blob %d\0" % size)
    with open(path, "rb") as stream:
        while True:
            chunk = stream.read(CHUNK_BYTES)
            if not chunk:
                break
            plain.update(chunk)
            blob.update(chunk)
    return {"sha256": plain.hexdigest(), "git_sha1": blob.hexdigest()}


def is_lfs_pointer(path: str) -> bool:
    """Whether the file is what git leaves where git-lfs should have put the content."""
    try:
        with open(path, "rb") as stream:
            return stream.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return False


def wrong_with(path: str, row: Row) -> tuple[str, dict[str, str]]:
    """What is wrong with a file ('' when nothing is), and its hashes when they were read."""
    try:
        size = os.stat(path).st_size
    except OSError as error:
        return f"cannot be read: {error.strerror}", {}
    if is_lfs_pointer(path) and row.get("size", -1) != size:
        return "is a git-lfs pointer, not the content (it was cloned without git-lfs)", {}
    if "size" in row and row["size"] != size:
        return f"has {size} bytes, wanted are {row['size']}", {}
    try:
        hashes = file_hashes(path)
    except OSError as error:
        return f"cannot be read: {error.strerror}", {}
    for kind in ("sha256", "git_sha1"):
        if row.get(kind) and hashes[kind] != row[kind]:
            return f"has the {kind} {hashes[kind]}, wanted is {row[kind]}", hashes
    if not row.get("sha256") and not row.get("git_sha1"):
        return "cannot be verified: the manifest has no hash of it", hashes
    return "", hashes


def record_row(path: str, sha256: str) -> Row:
    """What a file is at the moment its bytes were hashed (the verification record's row)."""
    found = os.stat(path)
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "inode": found.st_ino, "sha256": sha256}


def untouched(path: str, row: Row | None, wanted: Row) -> bool:
    """Whether the file still is what the record says, and the record says what is wanted."""
    if not row:
        return False
    try:
        found = os.stat(path)
    except OSError:
        return False
    same = (found.st_size, found.st_mtime_ns, found.st_ino) == (row.get("size"), row.get("mtime_ns"), row.get("inode"))
    if not same or ("size" in wanted and wanted["size"] != found.st_size):
        return False
    if wanted.get("sha256"):
        return row.get("sha256") == wanted["sha256"]
    return bool(wanted.get("git_sha1")) and row.get("git_sha1") == wanted["git_sha1"]


def survey(base: str, files: Manifest, record: dict[str, Row], deep: bool) -> dict[str, Any]:
    """Look at a folder: C(good) (path to record row), C(missing), C(wrong) (path to reason), C(hashed) (paths read).

    A file that the record still describes is believed, unless C(deep); any other is hashed.
    """
    good: dict[str, Row] = {}
    missing: list[str] = []
    wrong: dict[str, str] = {}
    hashed: list[str] = []
    for path in sorted(files):
        full = os.path.join(base, path)
        if not os.path.isfile(full):
            if os.path.lexists(full):
                wrong[path] = "is not a file"
            else:
                missing.append(path)
            continue
        if not deep and untouched(full, record.get(path), files[path]):
            good[path] = record[path]
            continue
        hashed.append(path)
        reason, hashes = wrong_with(full, files[path])
        if reason:
            wrong[path] = reason
        else:
            good[path] = {**record_row(full, hashes["sha256"]), "git_sha1": hashes["git_sha1"]}
    return {"good": good, "missing": missing, "wrong": wrong, "hashed": hashed}


def extra_files(base: str, files: Manifest) -> list[str]:
    """Files below the folder that the manifest does not name, without the module's and the hub's own."""
    found: list[str] = []
    for folder, folders, names in os.walk(base):
        inside = os.path.relpath(folder, base)
        if inside == ".":
            folders[:] = [name for name in folders if name != STATE_DIR]
        if inside == ".cache":
            folders[:] = [name for name in folders if name != "huggingface"]
        for name in names:
            path = name if inside == "." else f"{inside}/{name}"
            # What the fetch code keeps of a file that is still coming.
            unfinished = path.endswith((".part", ".part.json")) and path.split(".part")[0] in files
            if path not in files and not unfinished:
                found.append(path)
    return sorted(found)


def read_json(path: str) -> dict[str, Any]:
    """The mapping in a JSON file; an empty one when there is none or it is damaged."""
    try:
        with open(path, encoding="utf-8") as stream:
            found = json.load(stream)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: str, value: dict[str, Any]) -> None:
    """Replace a JSON file in one step, readable by all. Raises OSError."""
    made = f"{path}.{os.getpid()}.tmp"
    with open(made, "w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=1, sort_keys=True)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.chmod(made, 0o644)
    os.replace(made, path)


def read_record(base: str) -> dict[str, Row]:
    """The verification record's rows."""
    files = read_json(os.path.join(base, STATE_DIR, RECORD_FILE)).get("files", {})
    return {path: row for path, row in files.items() if isinstance(row, dict)} if isinstance(files, dict) else {}


def kept_manifest(base: str, fingerprint: str) -> Manifest:
    """The file list that an earlier run took from the hub for the same question; empty when there is none."""
    found = read_json(os.path.join(base, STATE_DIR, MANIFEST_FILE))
    files = found.get("files")
    return files if found.get("fingerprint") == fingerprint and isinstance(files, dict) else {}


def agreed(known: Manifest, told: Manifest, who: str) -> Manifest:
    """The hub's file list with what the catalogue knows on top. Raises ManifestError where the two contradict."""
    out: Manifest = {path: dict(row) for path, row in told.items()}
    for path, row in known.items():
        if path not in out:
            raise ManifestError(f"the catalogue names {path}, but {who} has no such file at this revision")
        for key, value in row.items():
            if key in out[path] and out[path][key] != value:
                raise ManifestError(
                    f"the catalogue says that the {key} of {path} is {value}, {who} says {out[path][key]}: these are not"
                    " the same weights"
                )
            out[path][key] = value
    return out


def bytes_to_come(base: str, files: Manifest, paths: list[str]) -> int:
    """How many bytes are still to be written for these files, counting what earlier runs left of them."""
    total = sum(int(files[path].get("size", 0)) for path in paths)
    kept = 0
    hub = os.path.join(base, HUB_DIR, "download")
    for folder, _folders, names in os.walk(hub):
        kept += sum(os.stat(os.path.join(folder, name)).st_size for name in names if name.endswith(".incomplete"))
    for path in paths:
        try:
            kept += os.stat(os.path.join(base, path + ".part")).st_size
        except OSError:
            pass
    return max(0, total - kept)
