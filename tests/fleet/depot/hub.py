# Copyright: Contributors to the gpufleet.llm project
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The depot's model hub: what a Hugging Face endpoint and a ModelScope host answer, for the models of make_models.py.

Paths and headers are those that huggingface_hub (`hf_api.py`, `file_download.py`) and modelscope (`hub/api.py`) use.
"""

from __future__ import annotations

import json
import re
import urllib.parse
from pathlib import Path
from typing import Any

Reply = tuple[int, dict[str, str], "bytes | Path"]
DATE = "2023-11-14T22:13:20.000Z"
POINTER_BYTES = 134  # about what a git-lfs pointer file weighs


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
    return status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(value).encode()


def _error(status: int, code: str, text: str) -> Reply:
    return _json({"error": text}, status, {"X-Error-Code": code, "X-Error-Message": text})


class Hub:
    """The models below a folder with `index.json` (`{repo: {"revision": 40 hex, "files": {path: {…}}}}`)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.index: dict[str, Any] = json.loads((root / "index.json").read_text(encoding="utf-8"))

    def _find(self, repo: str, revision: str) -> dict[str, Any] | None:
        """The model's entry if the revision is its commit, or a name that stands for it."""
        entry = self.index.get(repo)
        if entry and revision in (entry["revision"], "main", "master"):
            return entry
        return None

    def _missing(self, repo: str, revision: str) -> Reply:
        if repo in self.index:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return _error(401, "RepoNotFound", "Invalid username or password.")

    def huggingface(self, rest: str, query: str) -> Reply:
        """Below the endpoint: `api/models/…` and `<repo>/resolve/<revision>/<file>`."""
        match = re.fullmatch(r"api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.*))?)?", rest)
        if match:
            repo, what, revision, under = match[1], match[2] or "revision", match[3] or "main", match[4] or ""
            entry = self._find(repo, revision)
            if not entry:
                return self._missing(repo, revision)
            if what == "tree":
                return _json(self._tree(entry, under))
            return _json(self._info(repo, entry, "blobs=true" in query.lower()))
        match = re.fullmatch(r"([^/]+/[^/]+)/resolve/([^/]+)/(.+)", rest)
        if match:
            return self._file(match[1], match[2], match[3])
        return _error(404, "EntryNotFound", f"nothing at {rest}")

    def _info(self, repo: str, entry: dict[str, Any], blobs: bool) -> dict[str, Any]:
        siblings = []
        for path, row in entry["files"].items():
            sibling: dict[str, Any] = {"rfilename": path}
            if blobs:
                sibling |= {"size": row["size"], "blobId": row["blob_id"]}
                if row["lfs"]:
                    sibling["lfs"] = {"sha256": row["sha256"], "size": row["size"], "pointerSize": POINTER_BYTES}
            siblings.append(sibling)
        return {
            "_id": entry["revision"][:24], "id": repo, "modelId": repo, "author": repo.split("/")[0],
            "sha": entry["revision"], "private": False, "gated": False, "disabled": False, "tags": [],
            "downloads": 0, "likes": 0, "createdAt": DATE, "lastModified": DATE, "siblings": siblings,
        }  # fmt: skip

    def _tree(self, entry: dict[str, Any], under: str) -> list[dict[str, Any]]:
        rows = []
        for path, row in entry["files"].items():
            if under and not path.startswith(under.rstrip("/") + "/"):
                continue
            item: dict[str, Any] = {"type": "file", "path": path, "size": row["size"], "oid": row["blob_id"]}
            if row["lfs"]:
                item["lfs"] = {"oid": row["sha256"], "size": row["size"], "pointerSize": POINTER_BYTES}
            rows.append(item)
        return rows

    def _file(self, repo: str, revision: str, path: str) -> Reply:
        entry = self._find(repo, revision)
        if not entry:
            return self._missing(repo, revision)
        row = entry["files"].get(path)
        if not row:
            return _error(404, "EntryNotFound", f"{path} is not in {repo}")
        etag = row["sha256"] if row["lfs"] else row["blob_id"]
        headers = {
            "Content-Type": "application/octet-stream",
            "ETag": f'"{etag}"',
            "X-Repo-Commit": entry["revision"],
            "Content-Disposition": f'inline; filename="{Path(path).name}"',
        }
        if row["lfs"]:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(row["size"])}
        return 200, headers, self.root / repo / path

    def modelscope(self, rest: str, query: str) -> Reply:
        """Below the host: `models/<repo>/resolve/<revision>/<file>` and the API of the modelscope client."""
        # ModelScope has revisions of its own (tags, `master`), which are not the other hub's: any stands for the one.
        match = re.fullmatch(r"models/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", rest)
        if match:
            return self._file(match[1], "master", match[3])
        fields = {key: values[0] for key, values in urllib.parse.parse_qs(query).items()}
        match = re.fullmatch(r"api/v1/models/([^/]+/[^/]+)(?:/(repo/files|repo|revisions))?", rest)
        if not match:
            return _json({"Code": 404, "Message": f"nothing at {rest}", "Success": False}, 404)
        repo, what = match[1], match[2] or ""
        if what == "repo":
            return self._file(repo, "master", fields.get("FilePath", ""))
        entry = self._find(repo, "master")
        if not entry:
            return _json({"Code": 10010205001, "Message": f"no model {repo}", "Success": False}, 404)
        data: dict[str, Any]
        if what == "repo/files":
            data = {"Files": [self._scope_file(entry, path) for path in entry["files"]]}
        elif what == "revisions":
            data = {"RevisionMap": {"Branches": [{"Revision": "master"}], "Tags": []}}
        else:
            data = {"Name": repo.split("/")[1], "Path": repo.split("/")[0], "Revision": "master"}
        return _json({"Code": 200, "Data": data, "Message": "success", "Success": True})

    def _scope_file(self, entry: dict[str, Any], path: str) -> dict[str, Any]:
        row = entry["files"][path]
        return {
            "Name": Path(path).name, "Path": path, "Type": "blob", "Size": row["size"], "Sha256": row["sha256"],
            "IsLFS": row["lfs"], "Revision": entry["revision"], "CommittedDate": 1700000000,
        }  # fmt: skip
