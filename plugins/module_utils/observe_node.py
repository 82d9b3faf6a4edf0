# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The half of C(gpufleet.llm.observe) that runs on the node: it looks, it never writes and never judges.

The controller sends only the functions that a request needs (it follows the names used by each C(look_KIND), see
plugin_utils/observe.py), so these rules hold here: Python 3.9 and its standard library only; everything is a top-level
function or constant; no string has several lines; imports are inside the function that needs them. C(json),
C(subprocess), C(hashlib) and C(re) are avoided where C-level parts do: importing them costs more than all the looking.

Every C(look_KIND(item, ctx)) takes one item of the request and returns what is there as a dict of plain values.
"""

from __future__ import annotations

import os
import stat
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # nothing of this is sent
    Item = dict[str, Any]
    Ctx = dict[str, Any]
    Found = dict[str, Any]

# Prefix of the system databases; a unit test points it at a tree of its own.
ROOT = ""

# Content that goes back to the controller for a diff, and output of commands.
CONTENT_LIMIT = 65536
OUTPUT_LIMIT = 262144

COMMAND_TIMEOUT_SECONDS = 60

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


# ---------------------------------------------------------------------------------------------------- small helpers


def text(data: bytes) -> str:
    """Bytes from the node as str; bytes that are no UTF-8 survive as lone surrogates."""
    return data.decode("utf-8", "surrogateescape")


def full_path(path: str) -> str:
    """C(~) and C(~user) as the (become) user sees them."""
    if path.startswith("~"):
        return os.path.expanduser(path)
    return path


def lstat(path: str) -> Any:
    """os.lstat, or None when nothing is there (a file in the middle of the path counts as nothing)."""
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def follow_stat(path: str) -> Any:
    """os.stat, or None when nothing is there or the link leads nowhere."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def kind_of(status: os.stat_result | None) -> str:
    """A word for what a stat result describes: absent, file, directory, link, other."""
    if status is None:
        return "absent"
    mode = status.st_mode
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    if stat.S_ISLNK(mode):
        return "link"
    return "other"


def owner_name(uid: int) -> str:
    """User name of a uid, or the number as text when it has none."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    """Group name of a gid, or the number as text when it has none."""
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def attributes(status: os.stat_result) -> Found:
    """Owner, group and mode of a stat result, names and numbers."""
    return {
        "owner": owner_name(status.st_uid),
        "group": group_name(status.st_gid),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "mode": f"{stat.S_IMODE(status.st_mode):04o}",
    }


def new_sha256() -> Any:
    """A sha256 object without importing hashlib (10 ms) where the C module is at hand."""
    try:
        from _sha2 import sha256  # Python 3.12+
    except ImportError:
        try:
            from _sha256 import sha256
        except ImportError:
            from hashlib import sha256
    return sha256()


def read_bytes(path: str, limit: int | None = None) -> bytes:
    """Content of a file, at most C(limit) bytes."""
    with open(path, "rb", buffering=0) as stream:
        return stream.read() if limit is None else stream.read(limit)


def sha256_of(path: str, size: int) -> str:
    """Hex sha256 of a file's bytes. OpenSSL's (SHA-NI) pays for its import from about 4 MB on."""
    if size > 4194304:
        import hashlib

        digest = hashlib.sha256()
    else:
        digest = new_sha256()
    with open(path, "rb", buffering=0) as stream:
        while True:
            block = stream.read(1048576)
            if not block:
                return digest.hexdigest()
            digest.update(block)


def small_text(path: str, size: int) -> str | None:
    """The content when it is small UTF-8 text without NUL, else None."""
    if size > CONTENT_LIMIT:
        return None
    data = read_bytes(path)
    if b"\0" in data:
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def run(
    argv: list[str],
    env: dict[str, str] | None = None,
    timeout: float = COMMAND_TIMEOUT_SECONDS,
    user: tuple[int, int, str] | None = None,
    cwd: str = "/",
) -> tuple[int, bytes, bytes]:
    """Run argv without a shell and without stdin; (rc, stdout, stderr) as bytes, cut at OUTPUT_LIMIT.

    rc is 127 when there is no such command, 124 when it ran longer than C(timeout) seconds. C(user) is (uid, gid, name)
    to become in the child (needs root).
    """
    import select
    import signal
    import time

    environment = {"PATH": PATH, "LC_ALL": "C", "LANGUAGE": "", "HOME": os.environ.get("HOME", "/")}
    if env:
        environment.update(env)
    out_read, out_write = os.pipe()
    err_read, err_write = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            null = os.open("/dev/null", os.O_RDONLY)
            os.dup2(null, 0)
            os.dup2(out_write, 1)
            os.dup2(err_write, 2)
            os.chdir(cwd)
            if user is not None:
                if user[2]:
                    os.initgroups(user[2], user[1])
                else:
                    os.setgroups([])
                os.setgid(user[1])
                os.setuid(user[0])
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            os.execvpe(argv[0], argv, environment)  # noqa: S606
        except OSError as error:
            os.write(2, (f"{argv[0]}: {error.strerror}").encode("utf-8", "surrogateescape"))
        finally:
            os._exit(127)
    os.close(out_write)
    os.close(err_write)
    found = {out_read: b"", err_read: b""}
    open_ends = [out_read, err_read]
    deadline = time.monotonic() + timeout
    late = False
    status = None
    while open_ends:
        ready = select.select(open_ends, [], [], 0.5)[0]
        for end in ready:
            block = os.read(end, 65536)
            if not block:
                open_ends.remove(end)
            elif len(found[end]) < OUTPUT_LIMIT:
                found[end] += block
        if time.monotonic() > deadline:
            late = True
            os.killpg(child, signal.SIGKILL)
            break
        if not ready:  # something the command left running may keep its stdout open for ever
            done, code = os.waitpid(child, os.WNOHANG)
            if done:
                status = code
                break
    if status is None:
        status = os.waitpid(child, 0)[1]
    os.close(out_read)
    os.close(err_read)
    rc = 124 if late else (os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
    return rc, found[out_read][:OUTPUT_LIMIT], found[err_read][:OUTPUT_LIMIT]


# ------------------------------------------------------------------------------------------- files, links, directories


def look_file(item: Item, ctx: Ctx) -> Found:
    """A file: hashed when the request asks for its content, sent back when it differs and is small text."""
    path = full_path(item["path"])
    own = lstat(path)
    status = own
    if own is not None and stat.S_ISLNK(own.st_mode) and not item.get("strict"):
        status = follow_stat(path)
    found: dict[str, Any] = {"state": kind_of(status)}
    if own is not None and stat.S_ISLNK(own.st_mode):
        found["target"] = os.readlink(path)
        if status is None:
            found["state"] = "link"
    if found["state"] == "absent":
        return found
    found.update(attributes(status))
    if found["state"] != "file":
        return found
    found["size"] = status.st_size
    if item.get("hash"):
        found["sha256"] = sha256_of(path, status.st_size)
        if item.get("sha256") and not found["sha256"].startswith(item["sha256"]):
            found["content"] = small_text(path, status.st_size)
    return found


def look_absent(item: Item, ctx: Ctx) -> Found:
    """What stands where nothing should."""
    return {"state": kind_of(lstat(full_path(item["path"])))}


def look_link(item: Item, ctx: Ctx) -> Found:
    """A symbolic link and where it points (not whether anything is there)."""
    path = full_path(item["path"])
    found: dict[str, Any] = {"state": kind_of(lstat(path))}
    if found["state"] == "link":
        found["target"] = os.readlink(path)
    return found


def look_directory(item: Item, ctx: Ctx) -> Found:
    """A directory; a link to one counts."""
    path = full_path(item["path"])
    status = follow_stat(path)
    if status is None:
        return {"state": kind_of(lstat(path))}
    found: dict[str, Any] = {"state": kind_of(status)}
    found.update(attributes(status))
    return found


def look_glob(item: Item, ctx: Ctx) -> Found:
    """All paths a shell pattern matches, sorted; names with a leading dot only when the pattern says so."""
    import glob

    return {"paths": sorted(glob.glob(full_path(item["pattern"]), recursive=True))}


def look_disk(item: Item, ctx: Ctx) -> Found:
    """Space for an unprivileged writer at the path or its nearest existing parent, in bytes."""
    path = full_path(item["path"])
    while not os.path.exists(path):
        path = os.path.dirname(path)
    space = os.statvfs(path)
    return {
        "path": path,
        "free_bytes": space.f_bavail * space.f_frsize,
        "total_bytes": space.f_blocks * space.f_frsize,
    }


# ------------------------------------------------------------------------------------------------------------ packages


def os_release() -> Any:
    """ID and ID_LIKE of /etc/os-release as one list of words."""
    words = []
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            data = text(read_bytes(ROOT + path))
        except OSError:
            continue
        for line in data.splitlines():
            key, _sep, value = line.partition("=")
            if key in ("ID", "ID_LIKE"):
                words += value.strip().strip("\"'").split()
        break
    return words


def package_manager(ctx: Ctx) -> Any:
    """dpkg, rpm or pacman: what the distribution says it is, else whose database is there."""
    manager = ctx.get("package_manager")
    if manager is None:
        families = (
            ("dpkg", ("debian", "ubuntu"), "/var/lib/dpkg/status"),
            ("rpm", ("rhel", "fedora", "centos", "suse", "opensuse", "amzn", "azurelinux"), "/var/lib/rpm"),
            ("pacman", ("arch", "archlinux"), "/var/lib/pacman/local"),
        )
        words = os_release()
        for name, ids, _database in families:
            if any(word in words for word in ids):
                manager = name
                break
        else:
            for name, _ids, database in families:
                if os.path.exists(ROOT + database):
                    manager = name
                    break
            else:
                raise ValueError("no package database found (looked for dpkg, rpm and pacman)")
        ctx["package_manager"] = manager
    return manager


def look_package(item: Item, ctx: Ctx) -> Found:
    """A package in the database of the manager this node has; the controller asks for one by name when it knows it."""
    manager = package_manager(ctx)
    if manager == "dpkg":
        return look_dpkg(item, ctx)
    if manager == "rpm":
        return look_rpm(item, ctx)
    return look_pacman(item, ctx)


def look_dpkg(item: Item, ctx: Ctx) -> Found:
    """A package in dpkg's database."""
    return {**dpkg_package(item["name"], ctx), "manager": "dpkg"}


def look_rpm(item: Item, ctx: Ctx) -> Found:
    """A package in rpm's database."""
    return {**rpm_package(item["name"], ctx), "manager": "rpm"}


def look_pacman(item: Item, ctx: Ctx) -> Found:
    """A package in pacman's database."""
    return {**pacman_package(item["name"], ctx), "manager": "pacman"}


def dpkg_status(ctx: Ctx) -> Any:
    """Bytes of the dpkg status file; what an interrupted dpkg left in its journal stands before it."""
    if "dpkg" not in ctx:
        base = ROOT + "/var/lib/dpkg"
        data = b""
        try:
            pending = sorted((name for name in os.listdir(base + "/updates") if name.isdigit()), reverse=True)
        except OSError:
            pending = []
        for name in pending:
            data += read_bytes(f"{base}/updates/{name}").strip(b"\n") + b"\n\n"
        data += read_bytes(base + "/status")
        ctx["dpkg"] = b"\n\n" + data
    return ctx["dpkg"]


def machine_arch() -> Any:
    """Debian's name for this machine's architecture."""
    machine = os.uname().machine
    return {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "armhf", "i686": "i386", "ppc64le": "ppc64el"}.get(
        machine, machine
    )


def dpkg_package(name: str, ctx: Ctx) -> Any:
    """A package in /var/lib/dpkg/status; C(name:arch) asks for one architecture, else the native one is preferred."""
    data = dpkg_status(ctx)
    name, _sep, wanted_arch = name.partition(":")
    needle = b"\nPackage: " + name.encode() + b"\n"
    best = None
    seen = set()
    position = data.find(needle)
    while position >= 0:
        start = data.rfind(b"\n\n", 0, position + 1) + 2
        end = data.find(b"\n\n", position)
        stanza = text(data[start : end if end >= 0 else len(data)])
        position = data.find(needle, position + 1)
        fields: dict[str, Any] = {}
        for line in stanza.splitlines():
            if line[:1] != " ":
                key, _sep, value = line.partition(":")
                fields[key] = value.strip()
        arch = fields.get("Architecture", "")
        if arch in seen:
            continue  # the journal's stanza came first
        seen.add(arch)
        if wanted_arch not in ("", "any", arch):
            continue
        words = fields.get("Status", "").split()
        status = words[2] if len(words) == 3 else "unknown"
        found = {
            "state": {"installed": "present", "not-installed": "absent", "config-files": "absent"}.get(status, status),
            "version": fields.get("Version") if status not in ("not-installed", "config-files") else None,
            "hold": words[:1] == ["hold"],
            "arch": arch,
        }
        if found["state"] == "present" and words[0] not in ("install", "hold"):
            found["state"] = "installed but selected for " + words[0]
        if "reinstreq" in words:
            found["state"] = "reinst-required"
        rank = (found["state"] != "absent", arch in (machine_arch(), "all"))
        if best is None or rank > best[0]:
            best = (rank, found)
    if best is None:
        return {"state": "absent", "version": None, "hold": False, "arch": None}
    return best[1]


RPM_DATABASES = ("/var/lib/rpm/rpmdb.sqlite", "/usr/lib/sysimage/rpm/rpmdb.sqlite")


def rpm_header(blob: bytes) -> Any:
    """The string and number tags of an rpm header: {tag: value}. Layout: count, size, index of 16 bytes each, data."""
    count = int.from_bytes(blob[0:4], "big")
    store = 8 + 16 * count
    tags: dict[int, Any] = {}
    for number in range(count):
        at = 8 + 16 * number
        tag, kind, offset, _items = (int.from_bytes(blob[at + 4 * i : at + 4 * i + 4], "big") for i in range(4))
        if kind == 6:  # STRING
            end = blob.index(b"\0", store + offset)
            tags[tag] = text(blob[store + offset : end])
        elif kind == 4:  # INT32
            tags[tag] = int.from_bytes(blob[store + offset : store + offset + 4], "big")
    return tags


def rpm_sqlite(path: str, names: list[str]) -> Any:
    """Installed packages of the given names: [(name, epoch or None, version, release, arch)] from rpm's own database.

    With nothing in the write-ahead log the file is whole, and `immutable` reads it without making a lock or log file.
    """
    import _sqlite3

    log = follow_stat(path + "-wal")
    mode = "immutable=1" if log is None or log.st_size == 0 else "mode=ro"
    # the database's name is a URI here: only these three characters mean something in one
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    before = os.stat(path)
    connection = _sqlite3.connect("file:" + quoted + "?" + mode, uri=True)
    try:
        found = []
        for name in names:
            for row in connection.execute(
                "SELECT blob FROM Packages WHERE hnum IN (SELECT hnum FROM Name WHERE key = ?)", (name,)
            ):
                tags = rpm_header(row[0])
                found.append((tags[1000], tags.get(1003), tags[1001], tags[1002], tags.get(1022)))
    finally:
        connection.close()
    after = os.stat(path)
    if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
        raise ValueError("the rpm database changed while it was read")
    return found


def rpm_query(names: list[str]) -> Any:
    """The same by asking rpm: for the older database formats, and when the sqlite one cannot be read."""
    form = "%{NAME}\\t%{EPOCH}\\t%{VERSION}\\t%{RELEASE}\\t%{ARCH}\\n"
    rc, out, err = run(["rpm", "-q", "--qf", form, "--", *names])
    if rc == 127:
        raise ValueError("no rpm on this node")
    found: list[Any] = []
    for line in text(out).splitlines():
        words = line.split("\t")
        if len(words) == 5:
            found.append((words[0], None if words[1] == "(none)" else int(words[1]), *words[2:]))
        elif "is not installed" not in line:
            raise ValueError("rpm: " + (text(err).strip() or line))
    return found


def rpm_locks() -> Any:
    """Patterns of the versionlock plug-ins of dnf and yum."""
    patterns = []
    for path in ("/etc/dnf/plugins/versionlock.list", "/etc/yum/pluginconf.d/versionlock.list"):
        try:
            lines = text(read_bytes(ROOT + path)).splitlines()
        except OSError:
            continue
        patterns += [line.strip() for line in lines if line.strip() and line.strip()[0] not in "#!"]
    return patterns


def rpm_package(name: str, ctx: Ctx) -> Any:
    """A package in the rpm database; its version is C(epoch:version-release), or C(version-release) with no epoch."""
    if "rpm" not in ctx:
        names = sorted({one["name"] for one in ctx["items"] if one["kind"] in ("package", "rpm")})
        for database in RPM_DATABASES:
            if os.path.exists(ROOT + database):
                try:
                    ctx["rpm"] = rpm_sqlite(ROOT + database, names)
                    break
                except Exception:
                    ctx["rpm"] = rpm_query(names)
                    break
        else:
            ctx["rpm"] = rpm_query(names)
        ctx["rpm_locks"] = rpm_locks()
    every = [one for one in ctx["rpm"] if one[0] == name]
    if not every:
        return {"state": "absent", "version": None, "hold": False, "arch": None}
    machine = os.uname().machine
    # several may be installed (kernels, multilib): the native architecture's latest entry stands for all
    every.sort(key=lambda one: one[4] in (machine, "noarch"))
    _name, epoch, version, release, arch = every[-1]
    found: dict[str, Any] = {"state": "present", "version": f"{version}-{release}", "hold": False, "arch": arch}
    if epoch:
        found["version"] = f"{epoch}:{found['version']}"
    if ctx["rpm_locks"]:
        import fnmatch

        tail = f"{version}-{release}"
        forms = [name, f"{name}-{version}", f"{name}-{tail}", f"{name}-{tail}.{arch}"]
        forms += [f"{name}-{epoch or 0}:{tail}", f"{name}-{epoch or 0}:{tail}.{arch}"]
        found["hold"] = any(fnmatch.fnmatchcase(form, lock) for form in forms for lock in ctx["rpm_locks"])
    if len(every) > 1:
        found["versions"] = [(f"{one[1]}:" if one[1] else "") + f"{one[2]}-{one[3]}" for one in every]
    return found


def pacman_package(name: str, ctx: Ctx) -> Any:
    """A package in /var/lib/pacman/local, one directory C(name-version-release) each."""
    base = ROOT + "/var/lib/pacman/local"
    if "pacman" not in ctx:
        ctx["pacman"] = {}
        for entry in os.listdir(base):
            words = entry.rsplit("-", 2)
            if len(words) == 3:
                ctx["pacman"][words[0]] = entry
        ctx["pacman_ignored"] = pacman_ignored()
    entry = ctx["pacman"].get(name)
    if entry is None:
        return {"state": "absent", "version": None, "hold": False, "arch": None}
    fields: dict[str, Any] = {}
    key = None
    for line in text(read_bytes(base + "/" + entry + "/desc")).splitlines():
        if line.startswith("%"):
            key = line.strip("%")
        elif line and key:
            fields.setdefault(key, line)
    import fnmatch

    return {
        "state": "present",
        "version": fields["VERSION"],
        "hold": any(fnmatch.fnmatchcase(name, pattern) for pattern in ctx["pacman_ignored"]),
        "arch": fields.get("ARCH"),
    }


def pacman_ignored() -> Any:
    """Names that C(IgnorePkg) of pacman.conf keeps as they are."""
    names: list[str] = []
    try:
        lines = text(read_bytes(ROOT + "/etc/pacman.conf")).splitlines()
    except OSError:
        return names
    for line in lines:
        key, _sep, value = line.partition("=")
        if key.strip() == "IgnorePkg":
            names += value.split("#")[0].split()
    return names


# --------------------------------------------------------------------------------------------------------------- units


def look_unit(item: Item, ctx: Ctx) -> Found:
    """A systemd unit: from the manager when systemd runs here, else from the unit files."""
    if "units" not in ctx:
        ctx["units"] = units(sorted({one["name"] for one in ctx["items"] if one["kind"] == "unit"}), ctx)
    return ctx["units"][item["name"]]


def units(names: list[str], ctx: Ctx) -> Any:
    """All units asked for with one C(systemctl show)."""
    if os.path.isdir(ROOT + "/run/systemd/system"):
        rc, out, err = run(
            ["systemctl", "show", "--no-pager", "--property=LoadState,ActiveState,SubState,UnitFileState", "--", *names]
        )
        blocks = text(out).strip("\n").split("\n\n")
        if len(blocks) == len(names) and "LoadState=" in blocks[0]:
            result = {}
            for name, block in zip(names, blocks):
                fields = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
                result[name] = unit_found(
                    fields.get("LoadState", ""),
                    fields.get("UnitFileState", ""),
                    fields.get("ActiveState", "") in ("active", "reloading", "refreshing"),
                    fields.get("SubState", ""),
                )
            return result
        note = f"systemctl show failed (rc {rc}): {text(err or out).strip()[:200]}"
    else:
        note = "systemd is not running on this node"
    result = {}
    for name in names:
        result[name] = unit_from_files(name)
        result[name]["note"] = note
    return result


def unit_found(load_state: str, file_state: str, active: bool, sub_state: str) -> Any:
    """One unit's answer. enabled is None for a unit that can be neither enabled nor disabled (static, generated, …)."""
    if file_state == "enabled":
        enabled = True
    elif file_state in ("static", "generated", "alias", "indirect", "transient"):
        enabled = None
    else:
        enabled = False
    return {
        "load_state": load_state,
        "enabled": enabled,
        "active": active,
        "masked": load_state == "masked" or file_state in ("masked", "masked-runtime"),
        "sub_state": sub_state,
        "unit_file_state": file_state,
    }


def unit_from_files(name: str) -> Any:
    """What the unit files say when no systemd runs (an image being built, a container): never active."""
    if "." not in name:
        name += ".service"
    template = name.partition("@")[0] + "@." + name.rpartition(".")[2] if "@" in name else name
    where = None
    for folder in (
        "/etc/systemd/system",
        "/run/systemd/system",
        "/usr/local/lib/systemd/system",
        "/usr/lib/systemd/system",
        "/lib/systemd/system",
    ):
        for candidate in (name, template):
            if where is None and lstat(ROOT + folder + "/" + candidate) is not None:
                where = ROOT + folder + "/" + candidate
    if where is None:
        return unit_found("not-found", "", False, "dead")
    if os.path.islink(where) and os.readlink(where) == "/dev/null":
        return unit_found("masked", "masked", False, "dead")
    file_state = "disabled"
    base = ROOT + "/etc/systemd/system"
    for folder in os.listdir(base) if os.path.isdir(base) else []:
        if folder.endswith((".wants", ".requires")) and os.path.islink(f"{base}/{folder}/{name}"):
            file_state = "enabled"
    if file_state == "disabled" and b"\n[Install]" not in b"\n" + read_bytes(where):
        file_state = "static"
    return unit_found("loaded", file_state, False, "dead")


# --------------------------------------------------------------------------------------------------------------- users


def look_user(item: Item, ctx: Ctx) -> Found:
    """An account as the name service gives it (local or from a directory)."""
    import grp
    import pwd

    try:
        entry = pwd.getpwnam(item["name"])
    except KeyError:
        return {"state": "absent"}
    groups = {group_name(gid) for gid in os.getgrouplist(entry.pw_name, entry.pw_gid)}
    # getgrouplist may come from a cache; the local file is the truth for local groups.
    groups.update(one.gr_name for one in grp.getgrall() if entry.pw_name in one.gr_mem)
    primary = group_name(entry.pw_gid)
    groups.discard(primary)
    return {
        "state": "present",
        "home": entry.pw_dir,
        "shell": entry.pw_shell,
        "group": primary,
        "groups": sorted(groups),
        "uid": entry.pw_uid,
        "gid": entry.pw_gid,
    }


# ----------------------------------------------------------------------------------------------------------------- git


def git_dirs(path: str) -> Any:
    """(git directory, common directory) of a work tree or bare repository, or None."""
    dot = path + "/.git"
    status = lstat(dot)
    if status is None:
        if os.path.isdir(path + "/objects") and os.path.isdir(path + "/refs") and os.path.isfile(path + "/HEAD"):
            return path, path
        return None
    if stat.S_ISREG(status.st_mode):  # a linked work tree or submodule
        line = text(read_bytes(dot, 4096)).strip()
        if not line.startswith("gitdir: "):
            return None
        dot = os.path.join(path, line[8:])
    common = dot
    try:
        common = os.path.join(dot, text(read_bytes(dot + "/commondir", 4096)).strip())
    except OSError:
        pass
    return dot, common


def git_commit(git_dir: str, common: str) -> Any:
    """HEAD as 40 hex digits by reading git's own files, or None (unborn, or refs kept in a form not read here)."""
    try:
        head = text(read_bytes(git_dir + "/HEAD", 4096)).strip()
    except OSError:
        return None
    for _depth in range(5):
        if not head.startswith("ref: "):
            return head if len(head) in (40, 64) else None
        ref = head[5:].strip()
        for folder in (git_dir, common):
            try:
                head = text(read_bytes(folder + "/" + ref, 4096)).strip()
                break
            except OSError:
                continue
        else:
            try:
                packed = text(read_bytes(common + "/packed-refs"))
            except OSError:
                return None
            for line in packed.splitlines():
                if line.endswith(" " + ref):
                    return line.split(" ", 1)[0]
            return None
    return None


def git_remote(common: str) -> Any:
    """URL of the remote C(origin) in the repository's own config, or None."""
    try:
        lines = text(read_bytes(common + "/config")).splitlines()
    except OSError:
        return None
    inside = False
    url = None
    for line in (one.strip() for one in lines):
        if line.startswith("["):
            inside = line.lower().startswith("[remote ") and line[8:].strip(" ]") == '"origin"'
        elif inside:
            key, _sep, value = line.partition("=")
            if key.strip().lower() == "url":
                url = value.strip().strip('"')
    return url


def look_git(item: Item, ctx: Ctx) -> Found:
    """A clone: HEAD, origin, and whether the work tree is clean (changed and untracked files, not ignored ones)."""
    path = full_path(item["path"]).rstrip("/") or "/"
    status = follow_stat(path)
    found: dict[str, Any] = {"state": "absent", "commit": None, "clean": None, "dirty_files": [], "remote": None}
    if status is None or not stat.S_ISDIR(status.st_mode):
        if lstat(path) is not None:
            found["state"] = kind_of(lstat(path))
        return found
    dirs = git_dirs(path)
    if dirs is None:
        found["state"] = "not_a_repository" if os.listdir(path) else "empty_directory"
        return found
    found["state"] = "present"
    found["remote"] = git_remote(dirs[1])
    found["commit"] = git_commit(*dirs)
    bare = dirs[0] == path
    if found["commit"] is not None and (bare or not item.get("clean", True)):
        return found
    # git runs what a repository's config tells it to (filters, fsmonitor): as root, be its owner.
    user = None
    env = {"GIT_TERMINAL_PROMPT": "0"}
    if os.geteuid() == 0 and status.st_uid != 0:
        import pwd

        try:
            entry = pwd.getpwuid(status.st_uid)
            user = (status.st_uid, entry.pw_gid, entry.pw_name)
            env["HOME"] = entry.pw_dir
        except KeyError:
            user = (status.st_uid, status.st_gid, "")
            env["HOME"] = "/"
    git = [
        "git",
        "-C",
        path,
        "-c",
        "safe.directory=*",
        "-c",
        "core.fsmonitor=false",
        "-c",
        "core.hooksPath=/dev/null",
        "--no-optional-locks",
    ]
    if found["commit"] is None:
        rc, out, err = run([*git, "rev-parse", "--verify", "--quiet", "HEAD^{commit}"], env, user=user)
        if rc == 0:
            found["commit"] = text(out).strip()
        elif rc == 127:
            found["state"] = "no_git"
            return found
    if bare or not item.get("clean", True):
        return found
    rc, out, err = run([*git, "status", "--porcelain", "-z", "--untracked-files=normal"], env, user=user)
    if rc == 127:
        found["state"] = "no_git"
    elif rc != 0:
        found["state"] = "broken"
        found["error"] = text(err).strip()[:500]
    else:
        entries = [text(one) for one in out.split(b"\0") if one]
        found["clean"] = not entries
        found["dirty_files"] = entries[:20]
    return found


# ---------------------------------------------------------------------------------------------------------------- keys


def dearmour(data: bytes) -> Any:
    """Binary packets of every ASCII-armoured block; the data itself when it is not armoured."""
    import binascii

    if b"-----BEGIN PGP" not in data:
        return data
    packets = b""
    for block in data.split(b"-----BEGIN PGP PUBLIC KEY BLOCK-----")[1:]:
        lines = block.split(b"-----END PGP", 1)[0].replace(b"\r", b"").split(b"\n")[1:]
        body = b""
        header = True
        for line in (one.strip() for one in lines):
            if header:
                if not line:
                    header = False
                elif b": " not in line:  # no header lines and no empty line before the data
                    header = False
                    body += line
            elif line and not line.startswith(b"="):  # '=' starts the checksum
                body += line
        packets += binascii.a2b_base64(body)
    return packets


def openpgp_packets(data: bytes) -> Any:
    """[(tag, body)] of OpenPGP packets (RFC 9580, section 4.2), old and new format."""
    packets = []
    at = 0
    while at < len(data):
        first = data[at]
        at += 1
        if not first & 0x80:
            raise ValueError("this is no OpenPGP key file")
        if first & 0x40:
            tag = first & 0x3F
            body = b""
            partial = True
            while partial:
                length = data[at]
                at += 1
                partial = 224 <= length < 255
                if partial:
                    length = 1 << (length & 0x1F)
                elif length == 255:
                    length = int.from_bytes(data[at : at + 4], "big")
                    at += 4
                elif length >= 192:
                    length = ((length - 192) << 8) + data[at] + 192
                    at += 1
                body += data[at : at + length]
                at += length
        else:
            tag = (first & 0x3C) >> 2
            size = (1, 2, 4, 0)[first & 3]
            length = int.from_bytes(data[at : at + size], "big") if size else len(data) - at
            at += size
            body = data[at : at + length]
            at += length
        if at > len(data):
            raise ValueError("the key file is cut off")
        packets.append((tag, body))
    return packets


def openpgp_fingerprints(data: bytes) -> Any:
    """Fingerprints of all primary keys in a key file, upper-case hex: 40 digits (version 4) or 64 (version 6)."""
    found: list[Any] = []
    for tag, body in openpgp_packets(dearmour(data)):
        if tag not in (5, 6):  # secret and public primary keys; subkeys are 7 and 14
            continue
        if tag == 5:
            raise ValueError("the file holds a secret key")
        if body[0] == 4:
            try:
                from _sha1 import sha1
            except ImportError:
                from hashlib import sha1
            digest = sha1(b"\x99" + len(body).to_bytes(2, "big") + body)  # noqa: S324
        elif body[0] == 6:
            digest = new_sha256()
            digest.update(b"\x9b" + len(body).to_bytes(4, "big") + body)
        else:
            raise ValueError(f"version {body[0]} keys are not supported")
        found.append(digest.hexdigest().upper())
    return found


def look_key(item: Item, ctx: Ctx) -> Found:
    """An OpenPGP key file and the fingerprints of its primary keys."""
    path = full_path(item["path"])
    status = follow_stat(path)
    found: dict[str, Any] = {"state": kind_of(status)}
    if status is None:
        return found
    found.update(attributes(status))
    if found["state"] == "file":
        found["fingerprints"] = openpgp_fingerprints(read_bytes(path))
    return found


# ------------------------------------------------------------------------------------------------- Python environments


def normal_name(name: str) -> Any:
    """A distribution's name as PEP 503 compares it."""
    name = name.lower().replace("_", "-").replace(".", "-")
    while "--" in name:
        name = name.replace("--", "-")
    return name


def site_folders(prefix: str) -> Any:
    """[(X.Y, site-packages)] of a prefix, newest Python first."""
    found: list[Any] = []
    try:
        names = os.listdir(prefix + "/lib")
    except OSError:
        return found
    for name in names:
        minor = name[8:]
        if name.startswith("python3.") and minor.isdigit() and os.path.isdir(f"{prefix}/lib/{name}/site-packages"):
            found.append((int(minor), f"3.{minor}", f"{prefix}/lib/{name}/site-packages"))
    return [one[1:] for one in sorted(found, reverse=True)]


def distributions(folder: str) -> Any:
    """Installed distributions: {normalised name: (version, metadata directory or file)}."""
    found: dict[str, Any] = {}
    for entry in os.listdir(folder):
        if entry[:1] == "~":  # what pip renamed and could not remove
            continue
        if entry.endswith(".dist-info"):
            name, _sep, version = entry[:-10].rpartition("-")
        elif entry.endswith(".egg-info"):
            words = entry[:-9].split("-")
            if len(words) > 1:
                name, version = words[0], words[1]
            else:
                name, version = words[0], egg_version(folder + "/" + entry)
        else:
            continue
        if name:
            found[normal_name(name)] = (version, folder + "/" + entry)
    return found


def egg_version(path: str) -> Any:
    """Version in the PKG-INFO of an egg-info directory without one in its name."""
    try:
        for line in read_bytes(path + "/PKG-INFO").splitlines():
            if line.startswith(b"Version: "):
                return text(line[9:]).strip()
    except OSError:
        pass
    return ""


def distribution_damage(folder: str, info: str, deep: bool) -> Any:
    """What of a distribution is not there, or None. C(deep) compares every file with the sha256 in its RECORD.

    Otherwise the top-level names in the first 16 KiB of RECORD must exist, which notices a removed package directory.
    """
    if not info.endswith(".dist-info"):
        return None
    if not os.path.exists(info + "/METADATA"):
        return "its METADATA is gone"
    try:
        record = read_bytes(info + "/RECORD", None if deep else 16384)
    except FileNotFoundError:
        return "its RECORD is gone"
    own = os.path.basename(info)
    if not deep:
        tops = set()
        for line in record.split(b"\n")[: -1 if len(record) == 16384 else None]:
            name = line.strip(b'"\r').split(b",", 1)[0]
            top = name.split(b"/", 1)[0]
            if top not in (b"", b"..", b"__pycache__"):
                tops.add(top)
        for top in tops:
            if not os.path.lexists(folder + "/" + text(top)):
                return text(top) + " is gone"
        return None
    import csv
    from base64 import urlsafe_b64encode
    from hashlib import sha256

    for row in csv.reader(text(record).splitlines()):
        if len(row) != 3 or not row[1].startswith("sha256=") or row[0].startswith(own + "/"):
            continue
        try:
            digest = sha256(read_bytes(os.path.join(folder, row[0]))).digest()
        except OSError:
            return row[0] + " is gone"
        if urlsafe_b64encode(digest).rstrip(b"=").decode() != row[1][7:]:
            return row[0] + " was changed"
    return None


def interpreter_damage(prefix: str, python: Any) -> Any:
    """Why the prefix's interpreter cannot be the one its packages are for, or None."""
    path = prefix + "/bin/python"
    status = follow_stat(path)
    if status is None:
        target = f" (a link to {os.readlink(path)})" if os.path.islink(path) else ""
        return f"bin/python is not there{target}"
    if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o111:
        return "bin/python is not executable"
    real = os.path.basename(os.path.realpath(path))
    if python and real.startswith("python3.") and real[8:].isdigit():
        minor = ".".join(python.split(".")[:2])
        if real[6:] != minor:
            return f"bin/python is Python {real[6:]}, the packages are for {minor}"
    return None


def requirements_found(item: Item, folder: Any, owned: Any, deep: bool) -> Any:
    """({name: version or None} of the wanted ones, and all others when exact; [damage])."""
    every = distributions(folder) if folder else {}
    found: dict[str, Any] = {}
    damage = []
    for name in item.get("requirements", ()):
        version, info = every.get(name, (None, None))
        found[name] = version
        if info is not None:
            broken = distribution_damage(folder, info, deep)
            if broken:
                damage.append(f"{name}: {broken}")
    if item.get("exact") and "requirements" in item:
        for name, (version, info) in every.items():
            if name in found or name in owned:
                continue
            try:
                if read_bytes(info + "/INSTALLER", 64).strip() == b"conda":
                    continue
            except OSError:
                pass
            found[name] = version
    return found, damage


def look_venv(item: Item, ctx: Ctx) -> Found:
    """A virtual environment: its interpreter without running it, and its distributions."""
    prefix = full_path(item["prefix"])
    found: dict[str, Any] = {"state": "absent", "python": None, "requirements": {}, "manager": None}
    if not os.path.isdir(prefix):
        if lstat(prefix) is not None:
            found["state"] = "broken"
            found["damage"] = ["is no directory"]
        return found
    settings = {}
    try:
        for line in text(read_bytes(prefix + "/pyvenv.cfg")).splitlines():
            key, _sep, value = line.partition("=")
            settings[key.strip().lower()] = value.strip()
    except FileNotFoundError:
        found["state"] = "broken" if os.listdir(prefix) else "absent"
        found["damage"] = ["has no pyvenv.cfg"]
        return found
    version = settings.get("version") or settings.get("version_info") or ""
    found["python"] = ".".join(version.split(".")[:3]) or None
    found["manager"] = "uv" if "uv" in settings else "virtualenv" if "virtualenv" in settings else "venv"
    minor = ".".join(version.split(".")[:2])
    folders = dict(site_folders(prefix))
    folder = folders.get(minor) if minor else next(iter(folders.values()), None)
    damage = [one for one in (interpreter_damage(prefix, found["python"]),) if one]
    if folder is None:
        damage.append("has no site-packages")
    found["requirements"], broken = requirements_found(item, folder, ("pip", "setuptools", "wheel"), ctx["deep"])
    damage += broken
    found["state"] = "broken" if damage else "present"
    if damage:
        found["damage"] = damage
    return found


def look_conda_env(item: Item, ctx: Ctx) -> Found:
    """A conda environment by its conda-meta and site-packages; half-made ones are C(broken)."""
    prefix = full_path(item["prefix"])
    found: dict[str, Any] = {"state": "absent", "python": None, "packages": {}, "requirements": {}, "manager": None}
    if not os.path.isdir(prefix):
        if lstat(prefix) is not None:
            found["state"] = "broken"
            found["damage"] = ["is no directory"]
        return found
    installed = {}
    damage = []
    try:
        with os.scandir(prefix + "/conda-meta") as entries:
            for entry in entries:
                words = entry.name[:-5].rsplit("-", 2)
                if entry.name.endswith(".json") and len(words) == 3:
                    installed[words[0]] = (words[1], words[2])
                    if entry.stat().st_size == 0:
                        damage.append(f"conda-meta/{entry.name} is empty")
    except (FileNotFoundError, NotADirectoryError):
        found["state"] = "broken" if os.listdir(prefix) else "absent"
        found["damage"] = ["has no conda-meta"]
        return found
    found["manager"] = "conda"
    if not os.path.isfile(prefix + "/conda-meta/history"):
        damage.append("has no conda-meta/history: it was never finished")
    folder = None
    if "python" in installed:
        found["python"] = installed["python"][0]
        broken = interpreter_damage(prefix, found["python"])
        if broken:
            damage.append(broken)
        folder = dict(site_folders(prefix)).get(".".join(found["python"].split(".")[:2]))
        if folder is None:
            damage.append("has no site-packages")
    elif "python" in item or "requirements" in item:
        damage.append("has no Python")
    wanted = item.get("packages", ())
    for name in wanted:
        found["packages"][name] = "=".join(installed[name]) if name in installed else None
    if item.get("exact") and "packages" in item:
        for name, build in installed.items():
            found["packages"].setdefault(name, "=".join(build))
    owned = {normal_name(name) for name in installed}
    found["requirements"], broken = requirements_found(item, folder, owned, ctx["deep"])
    damage += broken
    found["state"] = "broken" if damage else "present"
    if damage:
        found["damage"] = damage
    return found


# ------------------------------------------------------------------------------------------------------------- weights

# Files up to this size are hashed at every look: cheaper than being wrong.
ALWAYS_HASH_BYTES = 65536


def git_sha1_of(path: str, size: int) -> Any:
    """Hex sha1 of a file as a git blob: what the hub's tree lists for files that are not in LFS."""
    from hashlib import sha1

    digest = sha1(b"blob %d\0" % size)  # noqa: S324
    with open(path, "rb", buffering=0) as stream:
        while True:
            block = stream.read(1048576)
            if not block:
                return digest.hexdigest()
            digest.update(block)


def verification_record(path: str) -> Any:
    """The record's entries {relative path: {size, mtime_ns, inode, sha256}}; empty when there is none or it is damaged."""
    try:
        data = read_bytes(path)
    except OSError:
        return {}
    import json

    try:
        files = json.loads(data.decode("utf-8"))["files"]
        return files if isinstance(files, dict) else {}
    except (ValueError, KeyError, TypeError):
        return {}


def manifest_verdict(path: str, wanted: Item, known: Item, deep: bool) -> Any:
    """One file against its manifest entry: None (as wanted), C(missing), C(changed) or C(unverified)."""
    status = follow_stat(path)
    if status is None or not stat.S_ISREG(status.st_mode):
        return "missing"
    if status.st_size != wanted["size"]:
        return "changed"
    if "git_sha1" in wanted:
        return None if git_sha1_of(path, status.st_size) == wanted["git_sha1"] else "changed"
    if deep or status.st_size <= ALWAYS_HASH_BYTES:
        return None if sha256_of(path, status.st_size) == wanted["sha256"] else "changed"
    if (
        not isinstance(known, dict)
        or known.get("size") != status.st_size
        or known.get("mtime_ns") != status.st_mtime_ns
        or known.get("inode") != status.st_ino
    ):
        return "unverified"
    return None if known.get("sha256") == wanted["sha256"] else "changed"


def manifest_file(path: str) -> Any:
    """(files, fingerprint) of a manifest kept on the node as JSON; C(None, None) when it cannot be read."""
    import json

    try:
        manifest = json.loads(read_bytes(path).decode("utf-8"))
        files = {}
        for name, entry in manifest["files"].items():
            if name.startswith("/") or ".." in name.split("/"):
                raise ValueError("a path leaves the directory")
            digest = "sha256" if entry.get("sha256") else "git_sha1"
            files[name] = {"size": int(entry["size"]), digest: entry[digest]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, None
    fingerprint = manifest.get("fingerprint")
    return files, None if fingerprint is None else str(fingerprint)


def look_manifest(item: Item, ctx: Ctx) -> Found:
    """Weights against their manifest: large files by what the verification record knows of them, or all by their bytes."""
    base = full_path(item["path"]).rstrip("/")
    found: dict[str, Any] = {"state": "absent", "missing": [], "changed": [], "unverified": [], "bytes": 0}
    wanted = item.get("files") or {}
    if "manifest" in item:
        files, found["fingerprint"] = manifest_file(full_path(item["manifest"]))
        found["manifest"] = "readable" if files is not None else "missing or unreadable"
        wanted = {**(files or {}), **wanted}
    if not os.path.isdir(base):
        if lstat(base) is not None:
            found["state"] = kind_of(lstat(base))
        found["missing"] = sorted(wanted)
        return found
    known = verification_record(full_path(item.get("record") or base + "/.gpufleet/verified.json"))
    for name in sorted(wanted):
        path = base + "/" + name
        verdict = manifest_verdict(path, wanted[name], known.get(name), ctx["deep"])
        if verdict:
            found[verdict].append(name)
        if verdict != "missing":
            found["bytes"] += os.stat(path).st_size
    found["state"] = "incomplete" if found["missing"] else "present"
    return found


# ------------------------------------------------------------------------------------------------------ commands, reads


def look_command(item: Item, ctx: Ctx) -> Found:
    """What a command says; C(argv) is run without a shell, with LC_ALL=C and stdin closed."""
    rc, out, err = run(item["argv"], item.get("env"))
    return {"rc": rc, "stdout": text(out), "stderr": text(err)}


def look_read(item: Item, ctx: Ctx) -> Found:
    """Content of a file, or output of a command, for the controller to use."""
    if item.get("argv"):
        rc, out, err = run(item["argv"], item.get("env"))
        return {"state": "ran", "content": text(out), "rc": rc, "stderr": text(err)[:4096]}
    path = full_path(item["path"])
    status = follow_stat(path)
    found: dict[str, Any] = {"state": kind_of(status), "content": None, "rc": None}
    if found["state"] in ("file", "other"):  # other: procfs and the like are regular, devices are not read
        if found["state"] == "other":
            return found
        data = read_bytes(path, OUTPUT_LIMIT + 1)
        found["content"] = text(data[:OUTPUT_LIMIT])
        if len(data) > OUTPUT_LIMIT:
            found["truncated"] = True
    return found


def look_kernel_module(item: Item, ctx: Ctx) -> Found:
    """A module of the running kernel; built-in ones count as loaded."""
    name = item["name"].replace("-", "_")
    base = ROOT + "/sys/module/" + name
    found: dict[str, Any] = {"loaded": os.path.isdir(base), "version": None}
    try:
        found["version"] = text(read_bytes(base + "/version", 4096)).strip()
    except OSError:
        pass
    return found


# ---------------------------------------------------------------------------------------------------------------- main


def dump(value: Any, quote: Any) -> Any:
    """JSON text of plain values, pure ASCII. Importing json costs more than all the looking."""
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(quote(str(key)) + ":" + dump(one, quote) for key, one in value.items()) + "}"
    return "[" + ",".join(dump(one, quote) for one in value) + "]"


def platform() -> Any:
    """Python, kernel, machine, effective uid and boot time (seconds since the epoch)."""
    name = os.uname()
    boot = None
    try:
        for line in read_bytes("/proc/stat").splitlines():
            if line.startswith(b"btime "):
                boot = int(line[6:])
    except OSError:
        pass
    return {
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "kernel": name.release,
        "machine": name.machine,
        "uid": os.geteuid(),
        "boot_time": boot,
    }


def look_all(items: list[Item], deep: bool, looks: dict[str, Any]) -> Any:
    """Every item's answer in order; an item that cannot be looked at answers with its error."""
    ctx = {"items": items, "deep": deep}
    seen = []
    for item in items:
        try:
            seen.append(looks["look_" + item["kind"]](item, ctx))
        except Exception as error:
            seen.append({"error": f"{type(error).__name__}: {error}"})
    return {"platform": platform(), "seen": seen}


def main(items: list[Item], deep: bool, begin: str, end: str, looks: dict[str, Any]) -> Any:
    """Print the answer between two marks, so that noise of shell start-up files cannot be taken for it."""
    try:
        from _json import encode_basestring_ascii as quote
    except ImportError:
        from json import dumps as quote
    os.umask(0o077)
    answer = dump(look_all(items, deep, looks), quote)
    sys.stdout.write("\n" + begin + answer + end + "\n")
    sys.stdout.flush()
