# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs in the tool environment: asks a hub through C(huggingface_hub) for a file list, or for files.

C(model_snapshot) gives this file to the tool environment's Python, with a request as JSON on stdin; the answer is JSON
between two marker lines on stdout. The endpoint, the token and the certificates come in the environment, since the
library reads them when it is imported. The token is never printed. Works with huggingface_hub 0.25 to 2.x.
"""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

BEGIN = "-----BEGIN GPUFLEET HUB ANSWER-----"
END = "-----END GPUFLEET HUB ANSWER-----"

# Names of exceptions (of requests, httpx and urllib3) after which the same place may well answer a moment later.
PASSING = (
    "ChunkedEncodingError",
    "ConnectionError",
    "ConnectTimeout",
    "ConnectError",
    "IncompleteRead",
    "ProtocolError",
    "ReadError",
    "ReadTimeout",
    "RemoteProtocolError",
    "Timeout",
    "OSError",
)


def status_of(error: BaseException) -> int:
    """The HTTP status behind an exception, 0 when there is none."""
    seen: BaseException | None = error
    while seen is not None:
        status = getattr(getattr(seen, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        seen = seen.__cause__ or seen.__context__
    return 0


def described(error: BaseException, token: str) -> dict[str, Any]:
    """An exception as plain values, without the token."""
    if type(error).__name__ == "LocalEntryNotFoundError" and error.__cause__ is not None:
        # The library only says that it has no copy of its own; what it met on the way is the cause.
        error = error.__cause__
    message = " ".join(str(error).split())
    if token:
        message = message.replace(token, "********")
    return {"type": type(error).__name__, "status": status_of(error), "message": message[:1000]}


def list_files(request: dict[str, Any], token: str) -> dict[str, Any]:
    """The files of a repository at a commit: path to size and sha256 (large files) or git_sha1 (small ones)."""
    from huggingface_hub import HfApi  # type: ignore[import-not-found]

    info = HfApi().model_info(
        request["repo"], revision=request["revision"], files_metadata=True, token=token or False, timeout=60
    )
    files: dict[str, Any] = {}
    for item in info.siblings or []:
        row: dict[str, Any] = {}
        if item.size is not None:
            row["size"] = item.size
        lfs = item.lfs
        if lfs is not None:
            row["sha256"] = lfs["sha256"] if isinstance(lfs, dict) else lfs.sha256
        elif item.blob_id:
            row["git_sha1"] = item.blob_id
        files[item.rfilename] = row
    return {"revision": info.sha, "files": files}


def fetch_one(request: dict[str, Any], path: str, token: str) -> dict[str, Any]:
    """Fetch one file into the folder; what an earlier attempt left is continued. {} when it is there."""
    from huggingface_hub import constants, hf_hub_download  # type: ignore[import-not-found]

    if hasattr(constants, "DOWNLOAD_CHUNK_SIZE"):
        # The library writes only whole chunks (of 10 MiB); what a cut leaves of the last one is fetched again.
        constants.DOWNLOAD_CHUNK_SIZE = 512 * 1024
    misses = 0
    while True:
        try:
            hf_hub_download(
                request["repo"],
                path,
                revision=request["revision"],
                local_dir=request["local_dir"],
                token=token or False,
            )
            return {}
        except Exception as error:
            found = described(error, token)
            misses += 1
            # When even the first question (HEAD) fails, the library has asked several times itself.
            asked = type(error).__name__ == "LocalEntryNotFoundError"
            passing = (
                not asked
                and found["status"] in (0, 408, 425, 429, 500, 502, 503, 504)
                and any(kind.__name__ in PASSING for kind in type(error).__mro__)
            )
            if isinstance(error, OSError) and error.errno in (28, 122, 13, 30):
                passing = False  # no space, quota, permission, read-only: asking again does not help
            if not passing or misses >= request.get("attempts", 3):
                return found
            time.sleep(min(10.0, 0.5 * 2**misses))


def fetch_files(request: dict[str, Any], token: str) -> dict[str, Any]:
    """Fetch several files at a time; path to what went wrong for those that did not come."""
    with ThreadPoolExecutor(max_workers=max(1, request.get("max_workers", 4))) as pool:
        answers = pool.map(lambda path: fetch_one(request, path, token), request["files"])
    return {"failures": {path: answer for path, answer in zip(request["files"], answers) if answer}}


def main() -> None:
    """Answer the request on stdin."""
    request = json.loads(sys.stdin.read())
    # Taken out of the environment so that no library finds it there by itself and sends it elsewhere.
    token = os.environ.pop("GPUFLEET_HUB_TOKEN", "")
    answer: dict[str, Any]
    try:
        import huggingface_hub

        answer = {"hub_version": huggingface_hub.__version__}
        answer.update(list_files(request, token) if request["action"] == "list" else fetch_files(request, token))
    except Exception as error:
        answer = {"error": described(error, token)}
    sys.stdout.write(f"\n{BEGIN}\n{json.dumps(answer)}\n{END}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
