# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's half of C(gpufleet.llm.observe): check the items, build what is sent, compare seen with wanted.

Pure functions without I/O, except C(load_script), which reads the node's half from this collection.
"""

from __future__ import annotations

import ast
import base64
import fnmatch
import functools
import hashlib
import json
import posixpath
import re
import shlex
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Item = dict[str, Any]

NODE_SCRIPT = Path(__file__).resolve().parent.parent / "module_utils" / "observe_node.py"

# Linux takes at most 128 KiB in one argument (MAX_ARG_STRLEN); the shell command is one, become quotes it again.
ARGUMENT_LIMIT_BYTES = 90_000

# Exit status of a Python that is too old; the bootstrap then tries the next one.
RC_OLD_PYTHON = 97
RC_NO_PYTHON = 96


class ObserveError(ValueError):
    """An item that makes no sense, or an answer that cannot be read; the text is for the user."""


# --------------------------------------------------------------------------------------------- what an item may say

# kind -> (required keys, optional keys); every key's check is in CHECKS by its type.
KINDS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "package": ({"name": "str"}, {"state": "presence", "version": "str", "hold": "bool", "manager": "manager"}),
    "file": (
        {"path": "path"},
        {"content": "text", "sha256": "sha256", "owner": "name", "group": "name", "mode": "mode", "no_log": "bool"},
    ),
    "absent": ({"path": "path"}, {}),
    "link": ({"path": "path", "target": "str"}, {}),
    "directory": ({"path": "path"}, {"owner": "name", "group": "name", "mode": "mode"}),
    "unit": ({"name": "unit"}, {"enabled": "bool", "active": "bool", "masked": "bool"}),
    "user": (
        {"name": "str"},
        {"state": "presence", "home": "str", "shell": "str", "group": "name", "groups": "names", "uid": "int"},
    ),
    "key": (
        {"path": "path", "fingerprints": "fingerprints"},
        {"owner": "name", "group": "name", "mode": "mode"},
    ),
    "git": ({"path": "path"}, {"commit": "commit", "clean": "bool", "remote": "str"}),
    "conda_env": (
        {"prefix": "path"},
        {"python": "str", "packages": "versions", "requirements": "versions", "exact": "bool"},
    ),
    "venv": ({"prefix": "path"}, {"python": "str", "requirements": "versions", "exact": "bool"}),
    "manifest": (
        {"path": "path"},
        {"files": "files", "manifest": "path", "fingerprint": "str", "record": "path"},
    ),
    "command": (
        {"argv": "argv"},
        {"rc": "int", "stdout": "text", "regex": "regex", "env": "env", "no_log": "bool"},
    ),
    "kernel_module": ({"name": "str"}, {"loaded": "bool"}),
    "glob": ({"pattern": "path"}, {"paths": "paths"}),
    "read": ({"key": "str"}, {"path": "path", "argv": "argv", "env": "env", "no_log": "bool"}),
    "disk": ({"path": "path"}, {}),
}

TRUE = frozenset(("true", "yes", "on", "1"))
FALSE = frozenset(("false", "no", "off", "0"))


def plain(value: Any) -> Any:
    """The value as plain Python types: no tags of ansible-core 2.19, no lazy containers, no str subclasses."""
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(value[key]) for key in value}
    if isinstance(value, Iterable):
        return [plain(one) for one in value]
    return str(value)


def to_bool(value: Any) -> bool:
    """A strict boolean: true/false, or the words a template may give for them. Raises ValueError."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in TRUE:
        return True
    if word in FALSE:
        return False
    raise ValueError("wants true or false")


def _string(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError("wants a string")
    if isinstance(value, float):
        raise ValueError("wants a string: put quotes around it, YAML reads 3.10 as the number 3.1")
    word = str(value)
    if not word.strip():
        raise ValueError("is empty: leave it out, or use `omit`")
    if "\0" in word:
        raise ValueError("has a NUL character")
    return word


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError("wants a string")
    return str(value)


def _path(value: Any) -> str:
    word = _string(value)
    if not word.startswith(("/", "~")):
        raise ValueError("wants an absolute path")
    return word


def _unit(value: Any) -> str:
    word = _string(value)
    if len(word) > 255 or not re.fullmatch(r"[A-Za-z0-9:_.@\\-]+", word):
        raise ValueError("is no name of a systemd unit")
    return word


def _mode(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[0-7]{3,5}", value):
        raise ValueError('wants an octal mode as a string, like "0644"')
    return f"{int(value, 8):04o}"


def _choice(*words: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in words:
            raise ValueError(f"wants one of {', '.join(words)}")
        return str(value)

    return check


def _hex(digits: int, what: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        word = str(value).lower()
        if not re.fullmatch(rf"[0-9a-f]{{{digits}}}", word):
            raise ValueError(f"wants {what}: {digits} hex digits")
        return word

    return check


def _int(value: Any) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"-?[0-9]+", str(value)):
        raise ValueError("wants a whole number")
    return int(value)


def _list(check: Callable[[Any], Any], empty: bool = True) -> Callable[[Any], list[Any]]:
    def check_all(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise ValueError("wants a list")
        if not value and not empty:
            raise ValueError("wants at least one entry")
        return [check(one) for one in value]

    return check_all


def _fingerprint(value: Any) -> str:
    word = re.sub(r"\s", "", str(value)).upper().removeprefix("0X")
    if not re.fullmatch(r"[0-9A-F]{40}|[0-9A-F]{64}", word):
        raise ValueError("wants whole fingerprints: 40 hex digits (64 for version 6 keys)")
    return word


def _env(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError("wants a dict")
    return {str(key): _text(one) for key, one in value.items()}


def _versions(value: Any) -> dict[str, str | None]:
    if not isinstance(value, dict):
        raise ValueError("wants a dict of name: version")
    return {str(key): None if one in (None, "") else _string(one) for key, one in value.items()}


def _regex(value: Any) -> str:
    word = _text(value)
    try:
        re.compile(word)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return word


def _files(value: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict) or not value:
        raise ValueError("wants a dict of relative path: {size, sha256 or git_sha1}")
    files: dict[str, dict[str, Any]] = {}
    for name, entry in value.items():
        where = str(name)
        if where.startswith("/") or ".." in where.split("/") or not where:
            raise ValueError(f"has a path that leaves the directory: {where!r}")
        if not isinstance(entry, dict) or not set(entry) <= {"size", "sha256", "git_sha1"} or "size" not in entry:
            raise ValueError(f"wants {{size, sha256 or git_sha1}} for {where}, not {entry!r}")
        one: dict[str, Any] = {"size": _int(entry["size"])}
        if entry.get("sha256") is not None:
            one["sha256"] = _hex(64, "a sha256")(entry["sha256"])
        elif entry.get("git_sha1") is not None:
            one["git_sha1"] = _hex(40, "a git blob's sha1")(entry["git_sha1"])
        else:
            raise ValueError(f"has neither sha256 nor git_sha1 for {where}")
        files[where] = one
    return files


CHECKS: dict[str, Callable[[Any], Any]] = {
    "str": _string,
    "text": _text,
    "name": _string,
    "names": _list(_string),
    "path": _path,
    "paths": _list(_path),
    "unit": _unit,
    "mode": _mode,
    "bool": to_bool,
    "int": _int,
    "presence": _choice("present", "absent"),
    "manager": _choice("auto", "dpkg", "rpm", "pacman"),
    "sha256": _hex(64, "a sha256"),
    "commit": _hex(40, "a full commit"),
    "argv": _list(_text, empty=False),
    "env": _env,
    "versions": _versions,
    "regex": _regex,
    "fingerprints": _list(_fingerprint, empty=False),
    "files": _files,
}


def check_item(raw: Any, position: int) -> Item:
    """One item with every value checked and made plain; C(key) is always there. Raises ObserveError with its place."""
    if not isinstance(raw, dict):
        raise ObserveError(f"items[{position}] wants a dict with `kind`, got {type(raw).__name__}")
    kind = raw.get("kind")
    if kind not in KINDS:
        raise ObserveError(f"items[{position}]: unknown kind {kind!r}; known: {', '.join(KINDS)}")
    required, optional = KINDS[str(kind)]
    item: Item = {"kind": str(kind)}
    label = f"items[{position}] ({kind} {raw.get('name') or raw.get('path') or raw.get('prefix') or ''}".rstrip() + ")"
    for key, value in raw.items():
        if key == "kind" or value is None:  # null reads as left out, so that a template can leave a key out
            continue
        expected = {"key": "str"} | required | optional
        if key not in expected:
            raise ObserveError(f"{label}: unknown key {key!r}; known: {', '.join(['key', *required, *optional])}")
        try:
            item[key] = CHECKS[expected[key]](value)
        except ValueError as error:
            shown = "" if raw.get("no_log") or key == "content" else f", got {value!r}"
            raise ObserveError(f"{label}: {key} {error}{shown}") from None
    missing = [key for key in required if key not in item]
    if missing:
        raise ObserveError(f"{label}: {', '.join(missing)} is missing")
    if kind == "read" and ("path" in item) == ("argv" in item):
        raise ObserveError(f"{label}: wants either path or argv")
    if kind == "manifest" and not ("files" in item or "manifest" in item):
        raise ObserveError(f"{label}: files is missing (or manifest, the path of one on the node)")
    if "fingerprint" in item and "manifest" not in item:
        raise ObserveError(f"{label}: fingerprint needs manifest, the path of the file that has it")
    if kind == "file" and "content" in item and "sha256" in item:
        raise ObserveError(f"{label}: wants content or sha256, not both")
    item.setdefault("key", f"{kind}:{item_name(item)}")
    return item


def item_name(item: Item) -> str:
    """What the item is called in words: its name, path, prefix, pattern or command."""
    for key in ("name", "path", "prefix", "pattern"):
        if key in item:
            return str(item[key])
    return shlex.join(item.get("argv", []))


def build_request(raw_items: Any) -> list[Item]:
    """The checked items of a task, one that is given twice only once.

    Raises ObserveError for the first thing wrong, and when two different items have the same key.
    """
    raw = plain(raw_items)
    if not isinstance(raw, list):
        raise ObserveError(f"items wants a list of dicts, got {type(raw).__name__}")
    items: dict[str, Item] = {}
    for position, one in enumerate(raw):
        item = check_item(one, position)
        if items.setdefault(item["key"], item) != item:
            raise ObserveError(f"items[{position}]: another item has the same key {item['key']!r}; give it a `key`")
    return list(items.values())


def content_sha256(content: str) -> str:
    """Hex sha256 of text as it is written to a file (UTF-8)."""
    return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()


def wire_item(item: Item, manager: str = "auto") -> Item:
    """What the node needs to know of an item: where to look, and by which hash its content is worth sending back.

    No secret, no verdict. A package goes to its manager's own look when the item or C(manager) names it.
    """
    kind = item["kind"]
    wire: Item = {"kind": kind}
    if kind == "package":
        chosen = item.get("manager", "auto")
        chosen = manager if chosen == "auto" else chosen
        return {"kind": kind if chosen == "auto" else chosen, "name": item["name"]}
    if kind == "file":
        wire["path"] = item["path"]
        if "content" in item or "sha256" in item:
            wire["strict"] = wire["hash"] = True
            if not item.get("no_log"):
                # 16 digits are enough to decide that; the whole one is compared here
                wire["sha256"] = (item["sha256"] if "sha256" in item else content_sha256(item["content"]))[:16]
        return wire
    needed = {
        "user": ("name",),
        "git": ("path", "clean"),
        "command": ("argv", "env"),
        "read": ("path", "argv", "env"),
        "conda_env": ("prefix", "packages", "requirements", "exact"),
        "venv": ("prefix", "requirements", "exact"),
        "manifest": ("path", "files", "manifest", "record"),
    }.get(kind, ("name", "path", "pattern"))
    for key in needed:
        if key in item:
            wire[key] = item[key]
    if kind in ("conda_env", "venv"):
        if "python" in item:
            wire["python"] = True
        if "packages" in wire:
            wire["packages"] = sorted(wire["packages"])
        if "requirements" in wire:
            wire["requirements"] = sorted(normal_name(name) for name in wire["requirements"])
    return wire


# ----------------------------------------------------------------------------------------------------- the node's script


class NodeScript:
    """The node's half cut into its top-level pieces, so that a request carries only the functions it needs.

    Pieces are the source's own lines without docstrings and comment lines, indented by one (never unparsed: a newer
    Python would write what an older one on the node cannot read). Cutting costs some 10 ms; it is done once, when the
    action plugin is imported, which happens before the fork of the workers.
    """

    def __init__(self, source: str) -> None:
        lines = source.splitlines()
        head: list[str] = []
        self.pieces: dict[str, str] = {}
        self.uses: dict[str, set[str]] = {}
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef):
                name = node.name
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
            elif isinstance(node, ast.Import):
                head.append(ast.unparse(node))
                continue
            else:  # the docstring, and `from __future__ import annotations` (nothing is annotated at run time)
                continue
            self.pieces[name] = _squeeze(lines, node)
            _unannotate(node)
            self.uses[name] = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
        self.head = "\n".join(head)

    def select(self, kinds: Iterable[str]) -> str:
        """Source text with C(main) and all that the given kinds of item need."""
        wanted: set[str] = set()
        queue = ["main", *(f"look_{kind}" for kind in sorted(set(kinds)))]
        while queue:
            name = queue.pop()
            if name in self.pieces and name not in wanted:
                wanted.add(name)
                queue.extend(self.uses[name])
        return "\n".join([self.head, *(piece for name, piece in self.pieces.items() if name in wanted), ""])


def _annotations(node: ast.stmt) -> Iterable[tuple[ast.expr, int]]:
    """All annotations in a statement, each with the column where its text (C(: int), C( -> int)) begins."""
    for one in ast.walk(node):
        if isinstance(one, ast.AnnAssign):
            yield one.annotation, one.target.end_col_offset or 0
        if isinstance(one, ast.FunctionDef):
            for argument in (*one.args.posonlyargs, *one.args.args, *one.args.kwonlyargs):
                if argument.annotation is not None:
                    yield argument.annotation, argument.col_offset + len(argument.arg)
            if one.returns is not None:
                yield one.returns, one.returns.col_offset - len(" -> ")


def _unannotate(node: ast.stmt) -> None:
    """Drop the annotations, so that the names in them do not count as used."""
    for one in ast.walk(node):
        if isinstance(one, ast.FunctionDef):
            one.returns = None
            for argument in (*one.args.posonlyargs, *one.args.args, *one.args.kwonlyargs):
                argument.annotation = None


def _squeeze(source: Sequence[str], node: ast.stmt) -> str:
    """The source of one top-level statement without docstrings, annotations and comment lines, a level indented by one."""
    lines = {number: source[number - 1] for number in range(node.lineno, (node.end_lineno or 0) + 1)}
    for annotation, begin in sorted(_annotations(node), key=lambda found: -found[1]):
        line = lines[annotation.lineno]
        lines[annotation.lineno] = line[:begin] + line[annotation.end_col_offset :]
    left_out: set[int] = set()
    for one in ast.walk(node):
        if isinstance(one, ast.FunctionDef) and len(one.body) > 1 and ast.get_docstring(one, clean=False) is not None:
            left_out.update(range(one.body[0].lineno, (one.body[0].end_lineno or 0) + 1))
    kept = []
    for number in range(node.lineno, (node.end_lineno or 0) + 1):
        line = lines[number]
        code = line.lstrip(" ")
        if number not in left_out and code and not code.startswith("#"):
            kept.append(" " * ((len(line) - len(code)) // 4) + code)
    return "\n".join(kept)


@functools.lru_cache(maxsize=1)
def load_script() -> NodeScript:
    """The node's half, read from this collection once per process."""
    return NodeScript(NODE_SCRIPT.read_text(encoding="utf-8"))


MANAGERS = {"apt": "dpkg", "dnf": "rpm", "dnf5": "rpm", "yum": "rpm", "zypper": "rpm", "pacman": "pacman"}


def build_payload(items: Sequence[Item], deep: bool, token: str, manager: str = "auto") -> bytes:
    """What is sent: script and request as one zlib stream. C(token) makes the marks around the answer unique.

    C(manager) (dpkg, rpm, pacman) spares the code of the two others where the node's facts tell it.
    """
    wire = [wire_item(item, manager) for item in items]
    begin, end = marks(token)
    request = f"main({wire!a},{deep!a},{begin!a},{end!a},globals())\n"
    source = load_script().select(one["kind"] for one in wire) + request
    return zlib.compress(source.encode("ascii", "backslashreplace"), 9)


def marks(token: str) -> tuple[str, str]:
    """What stands before and after the answer on stdout."""
    return f"<observe {token}>", f"</observe {token}>"


def no_python_mark(token: str) -> str:
    """The line the bootstrap prints when the node has no usable Python."""
    return f"<no python {token}>"


PYTHONS = (
    "python3",
    "/usr/bin/python3",
    "/usr/libexec/platform-python",
    *(f"python3.{minor}" for minor in range(14, 8, -1)),
    "/usr/local/bin/python3",
)


def build_command(interpreter: str | None, token: str, argument: bytes | None = None) -> str:
    """The sh text that finds a Python 3.9+ and starts the script: read from stdin, or given as an argument.

    C(interpreter) is tried first (it may have arguments of its own); without any the text C(no_python_mark) is printed.
    """
    if argument is None:
        load, tail = "s.stdin.buffer.read()", ""
    else:
        load, tail = "__import__('binascii').a2b_base64(s.argv[1])", " " + base64.b64encode(argument).decode()
    # on one line: a csh as login shell takes no line end inside quotes
    boot = (
        f"import sys as s,zlib as z;s.version_info<(3,9) and s.exit({RC_OLD_PYTHON});"
        f"exec(compile(z.decompress({load}),'observe','exec'),{{'__name__':'observe'}})"
    )
    candidates = [shlex.quote(one) for one in PYTHONS]
    if interpreter:
        candidates.insert(0, shlex.quote(" ".join(shlex.quote(word) for word in shlex.split(interpreter))))
    return _command_text(candidates, boot, tail, token)


def _command_text(candidates: Sequence[str], boot: str, tail: str, token: str) -> str:
    return (
        f"b={shlex.quote(boot)}; o=; for p in {' '.join(candidates)}; do "
        'eval "set -- $p"; command -v "$1" >/dev/null 2>&1 || continue; '
        f'"$@" -I -S -X utf8 -c "$b"{tail}; r=$?; '
        f'case $r in {RC_OLD_PYTHON}|126|127) o="$o $1";; *) exit $r;; esac; done; '
        f'echo {shlex.quote(no_python_mark(token))}"$o"; exit {RC_NO_PYTHON}'
    )


def unusable_pythons(stdout: str, token: str) -> list[str] | None:
    """Interpreters that are there and too old or broken, when the bootstrap found no usable one; else None."""
    found = re.search(re.escape(no_python_mark(token)) + "([^\r\n]*)", stdout)
    return sorted(set(found[1].split())) if found else None


def parse_answer(stdout: str, token: str) -> dict[str, Any] | None:
    """The node's answer out of its stdout, or None when it is not there. Raises ObserveError when it is cut."""
    begin, end = marks(token)
    start = stdout.rfind(begin)
    if start < 0:
        return None
    stop = stdout.find(end, start)
    if stop < 0:
        raise ObserveError("the node's answer was cut off")
    try:
        answer = json.loads(stdout[start + len(begin) : stop])
    except ValueError as error:
        raise ObserveError(f"the node's answer is no JSON: {error}") from None
    if not isinstance(answer, dict) or not isinstance(answer.get("seen"), list):
        raise ObserveError("the node's answer has no list `seen`")
    return answer


# -------------------------------------------------------------------------------------------------------- the comparison

Reasons = list[str]


def _attributes(item: Item, found: Item, reasons: Reasons) -> None:
    """Compare owner, group and mode where the item asks for them; a number matches the id."""
    for key, number in (("owner", "uid"), ("group", "gid")):
        if key in item and item[key] not in (found.get(key), str(found.get(number))):
            reasons.append(f"{key} is {found.get(key)}, wanted {item[key]}")
    if "mode" in item and item["mode"] != found.get("mode"):
        reasons.append(f"mode is {found.get('mode')}, wanted {item['mode']}")


def version_forms(found: Item) -> list[str]:
    """All the ways an installed package's version may be written (an rpm's epoch and release may be left out).

    Where several versions are installed side by side (kernels), each of them counts.
    """
    forms: list[str] = []
    for version in found.get("versions") or [str(found.get("version") or "")]:
        forms.append(version)
        if found.get("manager") in ("rpm", "pacman"):
            bare = version.split(":", 1)[-1]
            forms += [bare, bare.rsplit("-", 1)[0]]
            if ":" not in version:
                forms.append("0:" + version)
    return forms


def version_matches(wanted: str, found: Item) -> bool:
    """Whether an installed version is the wanted one: exact, or a glob (C(1.24.0-1*))."""
    forms = version_forms(found)
    return wanted in forms or any(
        fnmatch.fnmatchcase(form, wanted) for form in forms if any(c in wanted for c in "*?[")
    )


def compare_package(item: Item, found: Item) -> Reasons:
    """Reasons why a package is not as wanted."""
    state = item.get("state", "present")
    if state == "absent":
        return [] if found["state"] == "absent" else [f"is {_installed(found)}, wanted absent"]
    if found["state"] != "present":
        return [f"is {found['state']}, wanted {item.get('version', 'present')}"]
    reasons: Reasons = []
    if "version" in item and not version_matches(item["version"], found):
        reasons.append(f"version is {found['version']}, wanted {item['version']}")
    if "hold" in item and item["hold"] != found.get("hold"):
        reasons.append(f"hold is {_word(found.get('hold'))}, wanted {_word(item['hold'])}")
    return reasons


def _installed(found: Item) -> str:
    return f"installed ({found['version']})" if found["state"] == "present" else str(found["state"])


def _word(value: Any) -> str:
    return {True: "true", False: "false", None: "unknown"}[value]


def compare_file(item: Item, found: Item) -> Reasons:
    """Reasons why a file is not as wanted."""
    if found["state"] != "file":
        what = f"a link to {found.get('target')}" if found["state"] == "link" else found["state"]
        return [f"is {what}, wanted a file"]
    reasons: Reasons = []
    wanted = item.get("sha256")
    if "content" in item:
        wanted = content_sha256(item["content"])
    if wanted and wanted != found.get("sha256"):
        reasons.append("content differs" if "content" in item else f"sha256 is {found.get('sha256')}, wanted {wanted}")
        if item.get("no_log"):
            reasons[-1] = "content differs"
    _attributes(item, found, reasons)
    return reasons


def compare_absent(item: Item, found: Item) -> Reasons:
    """Reason why something stands where nothing should."""
    return [] if found["state"] == "absent" else [f"is a {found['state']}, wanted nothing there"]


def compare_link(item: Item, found: Item) -> Reasons:
    """Reasons why a link is not as wanted."""
    if found["state"] != "link":
        return [f"is {found['state']}, wanted a link to {item['target']}"]
    return [] if found["target"] == item["target"] else [f"points to {found['target']}, wanted {item['target']}"]


def compare_directory(item: Item, found: Item) -> Reasons:
    """Reasons why a directory is not as wanted."""
    if found["state"] != "directory":
        return [f"is {found['state']}, wanted a directory"]
    reasons: Reasons = []
    _attributes(item, found, reasons)
    return reasons


def compare_unit(item: Item, found: Item) -> Reasons:
    """Reasons why a unit is not as wanted. What is not there is disabled, inactive and not masked."""
    reasons: Reasons = []
    load_state = found["load_state"]
    if "enabled" in item:
        enabled = found["enabled"]
        if load_state in ("not-found", "masked"):
            enabled = False
        # None: a static or generated unit, which can be neither enabled nor disabled
        if enabled is not None and enabled != item["enabled"]:
            detail = found.get("unit_file_state") or load_state
            reasons.append(f"enabled is {_word(enabled)} ({detail}), wanted {_word(item['enabled'])}")
    if "active" in item and item["active"] != found["active"]:
        detail = load_state if load_state != "loaded" else found["sub_state"]
        reasons.append(f"active is {_word(found['active'])} ({detail}), wanted {_word(item['active'])}")
    if "masked" in item and item["masked"] != found["masked"]:
        reasons.append(f"masked is {_word(found['masked'])}, wanted {_word(item['masked'])}")
    if reasons and found.get("note"):
        reasons.append(found["note"])
    return reasons


def compare_user(item: Item, found: Item) -> Reasons:
    """Reasons why an account is not as wanted; C(groups) must all be there, others may be."""
    state = item.get("state", "present")
    if state != found["state"]:
        return [f"is {found['state']}, wanted {state}"]
    if state == "absent":
        return []
    reasons: Reasons = []
    for key in ("home", "shell", "uid"):
        if key in item and item[key] != found[key]:
            reasons.append(f"{key} is {found[key]}, wanted {item[key]}")
    if "group" in item and item["group"] not in (found["group"], str(found["gid"])):
        reasons.append(f"group is {found['group']}, wanted {item['group']}")
    lacking = sorted(set(item.get("groups", [])) - set(found["groups"]) - {found["group"]})
    if lacking:
        reasons.append(f"is not in {', '.join(lacking)}")
    return reasons


def compare_key(item: Item, found: Item) -> Reasons:
    """Reasons why a key file does not hold exactly the wanted primary keys."""
    if found["state"] != "file":
        return [f"is {found['state']}, wanted a file"]
    reasons: Reasons = []
    have, want = set(found["fingerprints"]), set(item["fingerprints"])
    if want - have:
        reasons.append(f"lacks the key {', '.join(sorted(want - have))}")
    if have - want:
        reasons.append(f"holds the unwanted key {', '.join(sorted(have - want))}")
    _attributes(item, found, reasons)
    return reasons


def compare_git(item: Item, found: Item) -> Reasons:
    """Reasons why a clone is not as wanted."""
    if found["state"] in ("absent", "empty_directory", "not_a_repository", "file", "link", "other"):
        return [f"is {found['state'].replace('_', ' ')}, wanted a git repository"]
    reasons: Reasons = []
    if found["state"] == "no_git":
        reasons.append("the node has no git to look with")
    elif found["state"] != "present":
        reasons.append(f"git cannot read it: {found.get('error')}")
    if "commit" in item and item["commit"] != found["commit"]:
        reasons.append(f"commit is {found['commit']}, wanted {item['commit']}")
    if item.get("clean", True) and found["clean"] is False:
        shown = ", ".join(found["dirty_files"][:5])
        more = "" if len(found["dirty_files"]) <= 5 else ", …"
        reasons.append(f"is not clean: {shown}{more}")
    if "remote" in item and item["remote"] != found["remote"]:
        reasons.append(f"remote is {found['remote']}, wanted {item['remote']}")
    return reasons


def normal_name(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def same_release(wanted: str, found: str) -> bool:
    """Whether two versions are equal by PEP 440; a wanted one without local part takes any (C(2.13.0+cpu))."""
    if wanted == found:
        return True
    from packaging.version import InvalidVersion, Version  # ansible-core brings it

    try:
        want, have = Version(wanted), Version(found)
    except InvalidVersion:
        return False
    return want == have or (want.local is None and want == Version(have.public))


def python_matches(wanted: str, found: str | None) -> bool:
    """Whether a Python version is the wanted one or begins with it (C(3.10) takes C(3.10.14))."""
    return found is not None and (found == wanted or found.startswith(wanted + "."))


def conda_matches(wanted: str, found: str) -> bool:
    """Whether an installed C(version=build) is the wanted version, C(version=build), or glob of the version."""
    version = found.split("=", 1)[0]
    return wanted in (found, version) or (any(c in wanted for c in "*?") and fnmatch.fnmatchcase(version, wanted))


def _some(names: Sequence[str], limit: int = 5) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def compare_environment(item: Item, found: Item) -> Reasons:
    """Reasons why a venv or conda environment is not as wanted."""
    what = "a conda environment" if item["kind"] == "conda_env" else "a virtual environment"
    if found["state"] == "absent":
        return [f"is absent, wanted {what}"]
    reasons: Reasons = [f"is broken: {_some(found['damage'])}"] if found["state"] != "present" else []
    if "python" in item and not python_matches(item["python"], found["python"]):
        reasons.append(f"Python is {found['python']}, wanted {item['python']}")
    for key, matches in (("packages", conda_matches), ("requirements", same_release)):
        if key not in item:
            continue
        wanted = {normal_name(name) if key == "requirements" else name: one for name, one in item[key].items()}
        for name, version in sorted(wanted.items()):
            have = found[key].get(name)
            if have is None:
                reasons.append(f"{name} is missing" + (f", wanted {version}" if version else ""))
            elif version is not None and not matches(version, have):
                reasons.append(f"{name} is {have}, wanted {version}")
        extra = sorted(set(found[key]) - set(wanted))
        if extra and item.get("exact"):
            reasons.append(f"unwanted {'packages' if key == 'packages' else 'distributions'}: {_some(extra)}")
    return reasons


def compare_manifest(item: Item, found: Item) -> Reasons:
    """Reasons why weights are not as their manifest says."""
    if found["state"] not in ("present", "incomplete"):
        return [f"is {found['state']}, wanted a directory with the files of its manifest"]
    reasons: Reasons = []
    if found.get("manifest", "readable") != "readable":
        reasons.append(f"the manifest {item['manifest']} is {found['manifest']}")
    elif "fingerprint" in item and found.get("fingerprint") != item["fingerprint"]:
        reasons.append(f"the manifest's fingerprint is {found.get('fingerprint')}, wanted {item['fingerprint']}")
    for key, words in (
        ("missing", "missing"),
        ("changed", "not as in the manifest"),
        ("unverified", "not verified since last touched"),
    ):
        if found[key]:
            reasons.append(f"{words}: {_some(found[key])}")
    return reasons


def compare_command(item: Item, found: Item) -> Reasons:
    """Reasons why a command did not say what was wanted."""
    hidden = item.get("no_log", False)
    rc = item.get("rc", 0)
    out = found["stdout"]
    reasons: Reasons = []
    if found["rc"] != rc:
        said = "" if hidden else f": {(found['stderr'] or out).strip()[:200]}"
        reasons.append(f"rc is {found['rc']}, wanted {rc}{said}")
    if "stdout" in item and out.strip() != item["stdout"].strip():
        reasons.append("stdout differs" if hidden else f"stdout is {out.strip()[:200]!r}, wanted {item['stdout']!r}")
    if "regex" in item and not re.search(item["regex"], out):
        reasons.append(f"stdout does not match {item['regex']!r}")
    return reasons


def compare_kernel_module(item: Item, found: Item) -> Reasons:
    """Reason why a kernel module is not as wanted."""
    wanted = item.get("loaded", True)
    return [] if found["loaded"] == wanted else [f"loaded is {_word(found['loaded'])}, wanted {_word(wanted)}"]


def compare_glob(item: Item, found: Item) -> Reasons:
    """Reasons why a pattern matches other paths than wanted."""
    have, want = set(found["paths"]), {posixpath.normpath(path) for path in item.get("paths", [])}
    reasons: Reasons = []
    if want - have:
        reasons.append(f"missing: {', '.join(sorted(want - have))}")
    if have - want:
        reasons.append(f"unwanted: {', '.join(sorted(have - want))}")
    return reasons


COMPARE: dict[str, Callable[[Item, Item], Reasons]] = {
    "package": compare_package,
    "file": compare_file,
    "absent": compare_absent,
    "link": compare_link,
    "directory": compare_directory,
    "unit": compare_unit,
    "user": compare_user,
    "key": compare_key,
    "git": compare_git,
    "conda_env": compare_environment,
    "venv": compare_environment,
    "manifest": compare_manifest,
    "command": compare_command,
    "kernel_module": compare_kernel_module,
    "glob": compare_glob,
    "read": lambda item, found: [],
    "disk": lambda item, found: [],
}


def after_of(item: Item) -> Item:
    """What the item asked for, without what is only its address."""
    after = {key: value for key, value in item.items() if key not in ("kind", "key", "no_log")}
    for key in {"command": (), "read": ("path", "argv", "env"), "glob": ()}.get(
        item["kind"], ("name", "path", "prefix", "manager", "record")
    ):
        after.pop(key, None)
    if item["kind"] == "command":
        after = {"rc": 0, **{key: after[key] for key in ("rc", "stdout", "regex") if key in after}}
    elif item["kind"] == "glob":
        after = {"paths": after.get("paths", [])}
    elif item["kind"] in ("package", "user"):
        after = {"state": "present", **after}
    elif item["kind"] == "absent":
        after = {"state": "absent"}
    elif item["kind"] in ("file", "directory", "link"):
        after = {"state": item["kind"], **after}
    elif item["kind"] in ("conda_env", "venv"):
        after = {"state": "present", **after}
        after.pop("exact", None)
    elif item["kind"] == "manifest":
        after = {"state": "present", "missing": [], "changed": [], "unverified": []}
        if "manifest" in item:
            after["manifest"] = "readable"
        if "fingerprint" in item:
            after["fingerprint"] = item["fingerprint"]
    elif item["kind"] == "git":
        after.setdefault("clean", True)
    elif item["kind"] == "kernel_module":
        after.setdefault("loaded", True)
    if item["kind"] == "file" and "content" in item:
        after["sha256"] = content_sha256(item["content"])
    if item.get("no_log"):
        # a hash of a short secret gives the secret away
        for key in ("content", "sha256", "stdout", "regex"):
            after.pop(key, None)
    return after


def printable(value: Any) -> Any:
    """The value with every lone surrogate (a byte that is no UTF-8) shown as the replacement character."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if isinstance(value, dict):
        return {printable(key): printable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [printable(one) for one in value]
    return value


def compare_item(item: Item, found: Item) -> Item:
    """One entry of the result's C(items): {key, kind, name, differs, reasons, before, after}."""
    if "error" in found and len(found) == 1:
        reasons = [f"could not be looked at: {found['error']}"]
    else:
        try:
            reasons = COMPARE[item["kind"]](item, found)
        except (KeyError, TypeError, AttributeError) as error:
            reasons = [f"the node's answer cannot be compared: {type(error).__name__}: {error}"]
    before = dict(found)
    if item["kind"] in ("file", "directory", "key"):
        for key in ("uid", "gid"):
            before.pop(key, None)
    after = after_of(item)
    if item.get("no_log"):
        for key in ("content", "sha256", "stdout", "stderr"):
            before.pop(key, None)
    elif item["kind"] == "file" and not reasons:
        after.pop("content", None)
    return {
        "key": item["key"],
        "kind": item["kind"],
        "name": item_name(item),
        "differs": bool(reasons) and item["kind"] not in ("read", "disk"),
        "reasons": reasons,
        "before": before,
        "after": after,
    }


def compare(items: Sequence[Item], answer: Mapping[str, Any]) -> dict[str, Any]:
    """The result without C(changed), C(diff) and C(remote_calls). Raises ObserveError when the answer is another's."""
    seen = answer["seen"]
    if len(seen) != len(items):
        raise ObserveError(f"the node answered {len(seen)} items of {len(items)}")
    entries = printable([compare_item(item, found) for item, found in zip(items, seen)])
    return {
        "differs": any(entry["differs"] for entry in entries),
        "drift": [entry["key"] for entry in entries if entry["differs"]],
        "items": entries,
        "seen": {entry["key"]: entry["before"] for entry in entries},
        "platform": dict(answer.get("platform", {})),
        "python_missing": False,
    }


def result_without_python(items: Sequence[Item], unusable: Sequence[str] = ()) -> dict[str, Any]:
    """The result for a node without Python: everything differs, because nothing could be looked at."""
    entries = []
    reason = "the node has no Python 3.9 or newer" + (
        f" (too old or broken: {', '.join(unusable)})" if unusable else ""
    )
    for item in items:
        entry = compare_item(item, {"error": reason})
        entry["before"] = {}
        entries.append(printable(entry))
    return {
        "differs": any(entry["differs"] for entry in entries),
        "drift": [entry["key"] for entry in entries if entry["differs"]],
        "items": entries,
        "seen": {entry["key"]: {} for entry in entries},
        "platform": {"python": "", "kernel": "", "machine": "", "uid": None, "boot_time": None},
        "python_missing": True,
    }


# ------------------------------------------------------------------------------------------------------------------ diff


def yamlish(values: Mapping[str, Any]) -> str:
    """Values as lines a person reads: C(key: value), nested ones as JSON."""
    lines = []
    for key in sorted(values):
        value = values[key]
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
        lines.append(f"{key}: {shown}\n")
    return "".join(lines)


def build_diff(items: Sequence[Item], entries: Sequence[Item]) -> list[dict[str, str]]:
    """Entries for Ansible's C(diff): a file's content where both sides are known, else the values asked for."""
    diffs: list[dict[str, str]] = []
    for item, entry in zip(items, entries):
        if not entry["differs"]:
            continue
        before, after = dict(entry["before"]), dict(entry["after"])
        headers = {"before_header": entry["key"], "after_header": entry["key"]}
        if item.get("no_log"):
            diffs.append({**headers, "before": "(not shown: no_log)\n", "after": "(not shown: no_log) \n"})
            continue
        if "content" in after and (before.get("content") is not None or before.get("state") == "absent"):
            diffs.append({**headers, "before": before.get("content") or "", "after": after["content"]})
            for values in (before, after):
                values.pop("content", None)
                values.pop("sha256", None)
        after.pop("content", None)
        left = {key: before.get(key) for key in after if key in before}
        if not left and not before:
            left = {"state": "unknown"}
        if left != after:
            diffs.append({**headers, "before": yamlish(left), "after": yamlish(after)})
    return diffs
