# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one door for bytes: fetch a file whose sha256 is known, from the first of several places that has it.

Standard library only, Python 3.9, no I/O at import. What it promises:

* the file appears under its name only by rename, only with the right sha256;
* a download that was cut is kept as ``<dest>.part`` and continued by ``Range``, also by a later run and from another
  mirror: the sha256 says in the end whether the pieces fit;
* a file with a wrong sha256 is removed and the next place is asked;
* the disk is looked at before the first byte;
* no message holds a query string or credentials of a URL.
"""

from __future__ import annotations

import base64
import dataclasses
import errno
import fcntl
import hashlib
import http.client
import json
import os
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

CHUNK_BYTES = 1 << 20
# What must stay free on the filesystem after the download.
RESERVE_BYTES = 1 << 20
# Statuses after which the same place may well answer a moment later (RFC 9110, RFC 6585, RFC 8470).
PASSING = (408, 425, 429, 500, 502, 503, 504)


class FetchError(Exception):
    """Nothing could be fetched; `failures` is a list of {"url": redacted, "error": str}."""

    def __init__(self, message: str, failures: list[dict[str, str]] | None = None) -> None:
        super().__init__(message)
        self.failures = failures or []


class DiskTooSmallError(FetchError):
    """The filesystem cannot take the file; nothing was asked for, or written."""


class _TryAgainError(Exception):
    """This place may answer a moment later; `after` is what it asked us to wait, in seconds."""

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


class _GiveUpError(Exception):
    """This place will not do; the next one may."""


class _StartAnewError(Exception):
    """What was kept of an earlier download does not fit; drop it and ask the same place for the whole."""


@dataclasses.dataclass
class Fetched:
    """How a file came: the place (redacted), its size, how much of it was transferred now and how much was kept."""

    url: str
    size_bytes: int
    downloaded_bytes: int
    resumed_from_bytes: int
    failures: list[dict[str, str]]


def redact(url: str) -> str:
    """The URL without credentials, query and fragment, so that it may be shown."""
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname or ""
        if ":" in host:
            host = f"[{host}]"
        if parts.port:
            host = f"{host}:{parts.port}"
    except ValueError:
        return "(not a URL)"
    return urllib.parse.urlunsplit((parts.scheme, host, parts.path, "", ""))


def secrets_of(url: str) -> set[str]:
    """The parts of a URL that must not be shown: its query, and what stands before the host."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return {url}
    found = {parts.query, parts.password or ""}
    if "@" in parts.netloc:
        found.add(parts.netloc.rsplit("@", 1)[0])  # a token alone stands where the user's name would
    return {item for item in found if item}


def sha256_of(path: str) -> str:
    """Hex sha256 of a file's bytes. Raises OSError."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for chunk in iter(lambda: stream.read(CHUNK_BYTES), b""):
            digest.update(chunk)
    return digest.hexdigest()


def free_bytes(path: str) -> int:
    """Bytes that this user may still write on the filesystem of `path` (or of its nearest existing parent)."""
    probe = os.path.abspath(path)
    while not os.path.exists(probe):
        probe = os.path.dirname(probe)
    found = os.statvfs(probe)
    return found.f_bavail * found.f_frsize


def human(count: int) -> str:
    """A number of bytes for people: '1.1 GiB (1180706402 bytes)'."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{count} bytes" if unit == "bytes" else f"{size:.1f} {unit} ({count} bytes)"


def total_of(content_range: str) -> int | None:
    """The size of the whole file in a Content-Range header ('bytes 5-9/10', 'bytes */10'), None when it is not told."""
    whole = content_range.rsplit("/", 1)[-1].strip()
    return int(whole) if whole.isdigit() else None


def start_of(content_range: str) -> int | None:
    """The first byte's position in a Content-Range header ('bytes 5-9/10' is 5), None when there is none."""
    words = content_range.strip().split(None, 1)
    if len(words) != 2 or words[0].lower() != "bytes":
        return None
    first = words[1].split("-", 1)[0].strip()
    return int(first) if first.isdigit() else None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to http, and takes the caller's headers to no other host."""

    def __init__(self, private: list[str]) -> None:
        self.private = {name.capitalize() for name in private}

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme == "https" and new.scheme != "https"):
            raise _GiveUpError(f"HTTP {code} redirects from {old.scheme} to {redact(newurl)}; not followed")
        # Python 3.9 does not know 308; it means the same as 307 here.
        made = super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)
        if made is not None and (old.hostname, old.port) != (new.hostname, new.port):
            for name in list(made.headers):
                if name in self.private or name == "Authorization":
                    made.remove_header(name)
        return made

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302


def tls_context(ca_path: str = "") -> ssl.SSLContext:
    """Verify against the system's trust store and, in addition, the bundle or folder `ca_path`. Raises FetchError."""
    context = ssl.create_default_context()
    if ca_path:
        try:
            if os.path.isdir(ca_path):
                context.load_verify_locations(capath=ca_path)
            else:
                context.load_verify_locations(cafile=ca_path)
        except (OSError, ssl.SSLError) as error:
            raise FetchError(f"the certificate bundle {ca_path} cannot be used: {error}") from error
    return context


class Progress:
    """Tells how far a download is: a JSON file {url, bytes, total, started}, replaced at most once a second."""

    def __init__(self, path: str, every_seconds: float = 1.0) -> None:
        self.path = path
        self.every_seconds = every_seconds
        self.last = 0.0

    def tell(self, url: str, done: int, total: int | None, started: float, force: bool = False) -> None:
        """Write it when it is time. A progress file that cannot be written never stops a download."""
        now = time.monotonic()
        if not self.path or (not force and now - self.last < self.every_seconds):
            return
        self.last = now
        made = f"{self.path}.{os.getpid()}.tmp"
        try:
            with open(made, "w", encoding="utf-8") as stream:
                json.dump({"url": url, "bytes": done, "total": total, "started": round(started, 3)}, stream)
            os.replace(made, self.path)
        except OSError:
            try:
                os.unlink(made)
            except OSError:
                pass


class Fetch:
    """One file, several places. See the module's text for what is promised; `run` does it."""

    def __init__(
        self,
        urls: list[str],
        dest: str,
        sha256: str,
        *,
        size_bytes: int | None = None,
        ca_path: str = "",
        timeout_seconds: float = 30.0,
        progress_path: str = "",
        headers: dict[str, str] | None = None,
        attempts: int = 3,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.urls = urls
        self.dest = dest
        self.part = dest + ".part"
        self.note = dest + ".part.json"
        self.sha256 = sha256.lower()
        self.size_bytes = size_bytes
        self.ca_path = ca_path
        self.timeout_seconds = timeout_seconds
        self.progress = Progress(progress_path)
        self.headers = headers or {}
        self.attempts = attempts
        self.sleep = sleep
        self.started = time.time()
        self.downloaded_bytes = 0
        self.kept_bytes = 0
        self.digest = hashlib.sha256()
        self.have = 0

    # -- the part file ------------------------------------------------------------------------------------------

    def _open_part(self) -> Any:
        """The part file, locked: two tasks that want the same file do not fetch it twice, the second one waits."""
        while True:
            handle = os.fdopen(
                os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "r+b", 0
            )
            fcntl.flock(handle, fcntl.LOCK_EX)
            try:
                if os.path.samestat(os.fstat(handle.fileno()), os.lstat(self.part)):
                    return handle
            except FileNotFoundError:
                pass
            handle.close()  # renamed or removed by the one that held the lock: look again

    def _drop(self, handle: Any) -> None:
        """Forget what was fetched so far."""
        handle.seek(0)
        handle.truncate(0)
        self._forget_note()
        self.digest = hashlib.sha256()
        self.have = 0
        self.kept_bytes = 0

    def _read_note(self) -> dict[str, str]:
        try:
            with open(self.note, encoding="utf-8") as stream:
                found = json.load(stream)
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write_note(self, url: str, validator: str) -> None:
        """Remember whose bytes the part holds. The URL is kept as a hash: it may hold a signature."""
        with open(self.note + ".tmp", "w", encoding="utf-8") as stream:
            json.dump({"url_sha256": hashlib.sha256(url.encode()).hexdigest(), "validator": validator}, stream)
        os.replace(self.note + ".tmp", self.note)

    def _forget_note(self) -> None:
        for path in (self.note, self.note + ".tmp"):
            try:
                os.unlink(path)
            except OSError:
                pass

    def _check_disk(self, total: int | None) -> None:
        if total is None:
            return
        needed = max(0, total - self.have) + RESERVE_BYTES
        found = free_bytes(os.path.dirname(self.part) or ".")
        if found < needed:
            kept = f", {human(self.have)} of it is already in {self.part}" if self.have else ""
            raise DiskTooSmallError(
                f"the filesystem of {self.dest} is too small: the file has {human(total)}{kept}; needed"
                f" {human(needed)}, free {human(found)}. Free some space or choose another destination."
            )

    # -- one request --------------------------------------------------------------------------------------------

    def _request(self, url: str, handle: Any) -> tuple[urllib.request.Request, list[str]]:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https", "file"):
            raise _GiveUpError(f"the scheme {parts.scheme!r} is not one of http, https, file")
        headers = {"User-Agent": "ansible-gpufleet.llm", "Accept-Encoding": "identity", **self.headers}
        if "@" in parts.netloc:
            user = urllib.parse.unquote(parts.username or "")
            secret = urllib.parse.unquote(parts.password or "")
            headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:{secret}".encode()).decode()
            parts = parts._replace(netloc=parts.netloc.rsplit("@", 1)[1])
            url = urllib.parse.urlunsplit(parts)
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the scheme was checked above
        if self.have:
            request.add_header("Range", f"bytes={self.have}-")
            note = self._read_note()
            mine = note.get("url_sha256") == hashlib.sha256(url.encode()).hexdigest()
            # Another mirror's validator means nothing here; then the sha256 alone decides.
            if mine and note.get("validator"):
                request.add_header("If-Range", note["validator"])
        return request, list(self.headers)

    def _open(self, request: urllib.request.Request, private: list[str]) -> Any:
        opener = urllib.request.build_opener(
            _Redirects(private), urllib.request.HTTPSHandler(context=tls_context(self.ca_path))
        )
        try:
            return opener.open(request, timeout=self.timeout_seconds)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 416:
                    return error
                message = f"HTTP {error.code} {error.reason}"
                if error.code in PASSING:
                    after = error.headers.get("Retry-After", "")
                    raise _TryAgainError(message, float(after) if after.isdigit() else 0.0) from error
            raise _GiveUpError(message) from error
        except urllib.error.URLError as error:
            raise self._classified(error.reason) from error
        except (OSError, http.client.HTTPException) as error:  # while waiting for the answer urllib does not wrap them
            raise self._classified(error) from error

    @staticmethod
    def _classified(reason: Any) -> Exception:
        """What a broken connection means: try again, or ask another place."""
        if isinstance(reason, ssl.SSLCertVerificationError):
            return _GiveUpError(f"the certificate is not trusted: {reason.verify_message} (see ca_path)")
        if isinstance(reason, ssl.SSLError):
            return _TryAgainError(f"TLS: {reason.reason or reason}")
        if isinstance(reason, socket.gaierror):
            return _TryAgainError(f"the name cannot be resolved: {reason.strerror}")
        if isinstance(reason, (socket.timeout, TimeoutError)):
            return _TryAgainError("no answer in time")
        if isinstance(reason, FileNotFoundError):
            return _GiveUpError("there is no such file")
        if isinstance(reason, (OSError, http.client.HTTPException)):
            return _TryAgainError(getattr(reason, "strerror", None) or str(reason) or type(reason).__name__)
        return _GiveUpError(str(reason))

    def _place(self, answer: Any, handle: Any) -> int | None:
        """Where the answer's body belongs and how long the whole file is; sets the part file up for it."""
        status = getattr(answer, "status", None) or getattr(answer, "code", None) or 200
        headers = answer.headers
        if headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
            raise _GiveUpError(f"the server sends it compressed ({headers['Content-Encoding']}) although asked not to")
        content_range = headers.get("Content-Range", "")
        if status == 416:
            if total_of(content_range) == self.have:
                return self.have  # everything is here already
            raise _StartAnewError(
                f"HTTP 416, the server's file has {total_of(content_range)} bytes, kept are {self.have}"
            )
        if status == 206:
            total = total_of(content_range)
            if start_of(content_range) != self.have or (total is not None and total < self.have):
                raise _StartAnewError(f"the server answered with {content_range!r} to a request from byte {self.have}")
        else:
            length = headers.get("Content-Length", "")
            total = int(length) if length.isdigit() else None
        if self.size_bytes is not None and total is not None and total != self.size_bytes:
            raise _GiveUpError(f"the file has {total} bytes there, wanted are {self.size_bytes}")
        if status != 206 and self.have:  # it ignores Range, or its file is not the one the kept bytes came from
            self._drop(handle)
        return total if total is not None else self.size_bytes

    def _transfer(self, url: str, handle: Any) -> None:
        """Ask one place once, from what is already here to the end. Raises _TryAgainError, _GiveUpError, _StartAnewError."""
        request, private = self._request(url, handle)
        shown = redact(url)
        answer = self._open(request, private)
        if getattr(answer, "code", None) == 416:
            self._place(answer, handle)
            return
        with answer:
            total = self._place(answer, handle)
            self._check_disk(total)
            etag = answer.headers.get("ETag", "")
            validator = etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified", "")
            self._write_note(request.full_url, validator)
            handle.seek(self.have)
            self.progress.tell(shown, self.have, total, self.started, force=True)
            while True:
                try:
                    chunk = answer.read(CHUNK_BYTES)
                except http.client.IncompleteRead as error:
                    self._keep(handle, error.partial)
                    raise _TryAgainError(self._cut(total)) from error
                except (OSError, http.client.HTTPException) as error:
                    raise _TryAgainError(f"{self._cut(total)}: {error or type(error).__name__}") from error
                if not chunk:
                    break
                self._keep(handle, chunk)
                if self.size_bytes is not None and self.have > self.size_bytes:
                    self._drop(handle)
                    raise _GiveUpError(f"the server sends more than the {self.size_bytes} bytes that the file has")
                self.progress.tell(shown, self.have, total, self.started)
            self.progress.tell(shown, self.have, total, self.started, force=True)
        if total is not None and self.have < total:
            raise _TryAgainError(self._cut(total))

    def _cut(self, total: int | None) -> str:
        return f"the connection ended after {self.have} of {'?' if total is None else total} bytes"

    def _keep(self, handle: Any, chunk: bytes) -> None:
        try:
            view = memoryview(chunk)
            while view:
                written = handle.write(view)
                self.digest.update(view[:written])
                self.have += written
                self.downloaded_bytes += written
                view = view[written:]
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskTooSmallError(
                    f"the filesystem of {self.dest} is full after {human(self.have)}; what came so far is kept in"
                    f" {self.part} and the next run goes on from there."
                ) from error
            raise FetchError(f"cannot write {self.part}: {error.strerror}") from error

    # -- one place, all places ----------------------------------------------------------------------------------

    def _from(self, url: str, handle: Any) -> None:
        """Ask one place until it has given the right file. Raises _GiveUpError with what was wrong in the end."""
        misses = 0
        kept_is_foreign = self.have > 0
        while True:
            before = self.have
            try:
                self._transfer(url, handle)
            except _StartAnewError:
                self._drop(handle)
                if before == 0:
                    raise _GiveUpError("it answers with a part although the whole was asked for") from None
                kept_is_foreign = False
                continue
            except _TryAgainError as error:
                # A connection that brought something is no miss: as long as it moves, it goes on.
                misses = 1 if self.have > before else misses + 1
                if misses >= self.attempts:
                    raise _GiveUpError(f"{error} (asked {misses} times)") from error
                self.sleep(min(30.0, max(error.after, 2.0 ** (misses - 1))))
                continue
            found = self.digest.hexdigest()
            if found == self.sha256:
                return
            size = self.have
            self._drop(handle)
            if not kept_is_foreign:
                raise _GiveUpError(f"wrong sha256: found {found} ({size} bytes), wanted {self.sha256}")
            # Perhaps the bytes kept from before were wrong, not those from here: ask once for the whole.
            kept_is_foreign = False

    def run(self, place: Callable[[str, str], Any] = os.replace) -> Fetched:
        """Fetch, verify, put in place by `place(part, dest)`, which must be a rename.

        Raises DiskTooSmallError, or FetchError whose message lists every place's failure.
        """
        failures: list[dict[str, str]] = []
        if not self.urls:
            raise FetchError(f"there is no URL to fetch {self.dest} from")
        tls_context(self.ca_path)
        handle = self._open_part()
        try:
            if os.path.isfile(self.dest) and sha256_of(self.dest) == self.sha256:
                # Another task fetched it while this one waited for the lock.
                os.unlink(self.part)
                self._forget_note()
                return Fetched("", os.path.getsize(self.dest), 0, 0, [])
            for chunk in iter(lambda: handle.read(CHUNK_BYTES), b""):
                self.digest.update(chunk)
                self.have += len(chunk)
            if self.size_bytes is not None and self.have > self.size_bytes:
                self._drop(handle)
            self.kept_bytes = self.have
            source = ""
            if self.have and self.digest.hexdigest() == self.sha256:
                source = "(kept from an earlier run)"
            else:
                self._check_disk(self.size_bytes)
                for url in self.urls:
                    try:
                        self._from(url, handle)
                        source = redact(url)
                        break
                    except _GiveUpError as error:
                        failures.append({"url": redact(url), "error": str(error)})
            if not source:
                raise FetchError(self._told(failures), failures)
            os.fsync(handle.fileno())
            place(self.part, self.dest)
            settle(self.dest)
            self._forget_note()
            return Fetched(source, self.have, self.downloaded_bytes, self.kept_bytes, failures)
        finally:
            if self.have == 0 and os.path.exists(self.part):
                os.unlink(self.part)
                self._forget_note()
            handle.close()

    def _told(self, failures: list[dict[str, str]]) -> str:
        lines = [f"could not fetch {self.dest} (sha256 {self.sha256}) from any of {len(self.urls)} places:"]
        lines += [f"  {item['url']}: {item['error']}" for item in failures]
        if self.have:
            lines.append(f"{human(self.have)} are kept in {self.part}; the next run goes on from there.")
        return "\n".join(lines)


def settle(path: str) -> None:
    """Make a rename in the folder of `path` durable."""
    handle = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
