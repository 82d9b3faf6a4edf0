# SPDX-License-Identifier: GPL-3.0-or-later
"""Change what a role manages by hand, one item at a time.

C(mutations(item)) turns an item, as observe returned it, into shell scripts that an operator could have typed on the node.
Every kind of item that a role may list has at least one; a kind without any is an error, so that nothing is left untested.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Mutation:
    """What is done, by which root shell script; C(deep): only a deep look can notice it; C(last): it takes others away."""

    what: str
    script: str
    deep: bool = False
    last: bool = False


REMOVE_PACKAGE = """
if command -v dpkg >/dev/null && [ -e /var/lib/dpkg/status ] && dpkg -s {name} >/dev/null 2>&1; then
  DEBIAN_FRONTEND=noninteractive apt-get -q -y --allow-change-held-packages remove {name}
elif command -v rpm >/dev/null && rpm -q {name} >/dev/null 2>&1; then rpm -e --nodeps {name}
else pacman -Rdd --noconfirm {name}; fi
"""

# Any other version that the node's repositories have. Arch has one of each, so there its database is told another.
OTHER_VERSION = """
set -e
if command -v dpkg >/dev/null && dpkg -s {name} >/dev/null 2>&1; then
  now=$(dpkg-query -W -f '${{Version}}' {name})
  other=$(apt-cache madison {name} | tr -d ' ' | cut -d'|' -f2 | grep -vxF "$now" | head -1)
  DEBIAN_FRONTEND=noninteractive apt-get -q -y --allow-downgrades --allow-change-held-packages \\
    -o Dpkg::Options::=--force-confold install {name}="$other" ||
    (cd /tmp && apt-get -q download {name}="$other" && dpkg --force-all -i {name}_*.deb && rm {name}_*.deb)
elif command -v rpm >/dev/null && rpm -q {name} >/dev/null 2>&1; then
  now=$(rpm -q --qf '%{{version}}-%{{release}}' {name})
  query="dnf -q --disableplugin=versionlock repoquery"
  other=$($query --qf '%{{version}}-%{{release}}\\n' {name} | grep -vxF "$now" | grep . | head -1)
  dnf -y install {name}-"$other" || true
  [ "$(rpm -q --qf '%{{version}}-%{{release}}' {name})" = "$other" ] || dnf -y downgrade {name}-"$other" ||
    rpm -U --oldpackage --nodeps "$($query --location {name}-"$other" | head -1)"
else
  cd /var/lib/pacman/local
  d=$(ls -d {name}-[0-9]*)
  sed -i '/^%VERSION%$/{{n;s/.*/0.0.1-1/}}' "$d/desc"
  mv "$d" {name}-0.0.1-1
fi
"""


# dnf's and pacman's holds stand in files of their own.
LET_GO = """
if command -v rpm >/dev/null && rpm -q {name} >/dev/null 2>&1; then sed -i '/{name}/d' /etc/dnf/plugins/versionlock.list
else sed -i '/^IgnorePkg/s/ {name}\\>//' /etc/pacman.conf; fi
"""


def _package(key: str, after: dict[str, Any], name: str) -> list[Mutation]:
    if after.get("state") == "absent":
        return []
    if key.startswith("hold:"):
        return [Mutation("the package is no longer held", LET_GO.format(name=name))] if after["hold"] else []
    found = []
    if "hold" in after:  # first, since another version lets go of it
        found.append(
            Mutation("the hold is another", f"apt-mark {'unhold' if after['hold'] else 'hold'} {name} >/dev/null")
        )
    if after.get("version"):
        found.append(Mutation("the package is of another version", OTHER_VERSION.format(name=name)))
    return [*found, Mutation("the package is removed", REMOVE_PACKAGE.format(name=name), last=True)]


def _file(item: dict[str, Any], path: str) -> list[Mutation]:
    after = item.get("after") or {}
    found = []
    if "sha256" in after or "content" in after:
        found.append(Mutation("a line is added", f"printf '\\n# by hand\\n' >> {path}"))
        found.append(Mutation("the file is removed", f"rm -f {path}"))
    else:
        found.append(Mutation("the file is removed", f"rm -f {path}"))
    if "mode" in after:
        found.append(Mutation("its mode is changed", f"chmod 0606 {path}"))
    if "owner" in after:
        found.append(Mutation("its owner is changed", f"chown 12345 {path}"))
    if "group" in after:
        found.append(Mutation("its group is changed", f"chgrp 12345 {path}"))
    return found


def _directory(item: dict[str, Any], path: str) -> list[Mutation]:
    after = item.get("after") or {}
    found = []
    if "mode" in after:
        found.append(Mutation("its mode is changed", f"chmod 0707 {path}"))
    if "owner" in after:
        found.append(Mutation("its owner is changed", f"chown 12345 {path}"))
    if "group" in after:
        found.append(Mutation("its group is changed", f"chgrp 12345 {path}"))
    return found or [Mutation("it is removed", f"rm -rf {path}", last=True)]


def _unit(item: dict[str, Any], name: str) -> list[Mutation]:
    after = item.get("after") or {}
    found = []
    if after.get("active") is True:
        found.append(Mutation("the unit is stopped", f"systemctl stop {name}"))
    if after.get("enabled") is True:
        found.append(Mutation("the unit is disabled", f"systemctl disable {name}"))
    if after.get("active") is False:
        found.append(Mutation("the unit is started", f"systemctl start {name}"))
    return found


def _environment(item: dict[str, Any], prefix: str) -> list[Mutation]:
    requirements = sorted((item.get("after") or {}).get("requirements") or {})
    # A pure-Python package that others need: what a hand-run pip would have left.
    name = next((n for n in ("idna", "packaging", "filelock", "certifi", "pip") if n in requirements), None)
    found = []
    if name:
        swap = (
            f"set -e; cd {prefix}/lib/python3*/site-packages; d=$(ls -d {name}-*.dist-info);"
            f" mv \"$d\" {name}-0.0.1.dist-info; sed -i 's/^Version: .*/Version: 0.0.1/' {name}-0.0.1.dist-info/METADATA"
        )
        found.append(Mutation(f"{name} is of another version", swap))
        found.append(
            Mutation(
                f"{name} is removed", f"cd {prefix}/lib/python3*/site-packages && rm -rf {name} {name}-*.dist-info"
            )
        )
    found.append(Mutation("the interpreter is gone", f"rm -f {prefix}/bin/python {prefix}/bin/python3"))
    return found


def _manifest(item: dict[str, Any], path: str) -> list[Mutation]:
    weights = f"$(ls -S {path}/*.safetensors | head -1)"
    flip = (
        f'set -e; f={weights}; size=$(stat -c %s "$f"); at=$((size - 64));'
        ' old=$(dd if="$f" bs=1 skip=$at count=1 2>/dev/null | od -An -tu1 | tr -d " ");'
        ' printf "$(printf "\\\\%03o" $(( (old + 1) % 256 )))" | dd of="$f" bs=1 seek=$at conv=notrunc 2>/dev/null'
    )
    keep_time = f'set -e; f={weights}; touch -r "$f" /tmp/.mtime; {flip}; touch -r /tmp/.mtime "$f"'
    return [
        Mutation("a byte of the weights is flipped", flip),
        Mutation("a file is removed", f"rm -f {path}/config.json"),
        Mutation("a byte is flipped behind the clock's back", keep_time, deep=True),
    ]


# What an item that is a command stands for can only be changed by hand if one knows what it is: by the start of its key.
COMMANDS = {
    "setting:filter.lfs": "git config --system filter.lfs.smudge cat",
    "setting:": "git config --system --unset-all {rest}",
    "running:nginx": "systemctl stop nginx",
    "smoke:": "rm -f /opt/gpufleet/results/{rest}.json",
    "shell:": "eval truncate -s 0 ~{rest}/.bashrc",
    "certificate:": "rm -f /etc/nginx/gpufleet/tls/{rest}.crt",
    "selinux:": "",
    "toolkit:": "rm -f /usr/local/cuda-{rest}/bin/nvcc",
    "cudnn:": "rm -f /usr/local/cuda-{rest}/include/cudnn_version.h",
    "default:cuda": "ln -sfn /nonexistent /usr/local/cuda",
    "pin:no-driver": "rm -f /etc/apt/preferences.d/zz-gpufleet-cuda-no-driver",
    "library:version": "find /usr/lib* -name 'libnvidia-ml.so.[0-9]*.*' -delete",
    "module:built": "find /lib/modules -name 'nvidia*.ko*' -delete",
    "module:flavour": "find /lib/modules -name nvidia.ko -exec sed -i 's/license=Dual MIT.GPL/license=NVIDIA other/' {{}} +",
}


def _command(item: dict[str, Any]) -> list[Mutation]:
    key = str(item["key"])
    for start, script in COMMANDS.items():
        if key.startswith(start):
            filled = script.format(rest=shlex.quote(key[len(start) :]))
            return [Mutation(filled, filled)] if filled else []
    raise AssertionError(f"no way is known to change {key} by hand: teach tests/fleet/drift.py")


def _user(after: dict[str, Any], name: str) -> list[Mutation]:
    ways = {
        "shell": f"usermod -s /bin/sh-by-hand {name}",
        "home": f"usermod -d /nonexistent {name}",
        "group": f"usermod -g nogroup {name}",
    }
    return [Mutation(f"the account's {key} is another", script) for key, script in ways.items() if after.get(key)]


def mutations(item: dict[str, Any]) -> list[Mutation]:
    """Ways to change one managed item by hand, the slighter ones first; empty for items that are looked at and not managed."""
    kind, after = item["kind"], item.get("after") or {}
    name = str(item["name"])
    quoted = shlex.quote(name)
    if kind in ("read", "disk", "glob", "kernel_module"):
        return []
    if kind == "command":
        return _command(item)
    if kind == "package":
        return _package(str(item["key"]), after, quoted)
    if kind == "file":
        return _file(item, quoted)
    if kind == "absent":
        return [Mutation("something is there", f"mkdir -p $(dirname {quoted}); touch {quoted}")]
    if kind == "link":
        return [Mutation("the link points elsewhere", f"ln -sfn /nonexistent {quoted}")]
    if kind == "directory":
        return _directory(item, quoted)
    if kind == "unit":
        return _unit(item, quoted)
    if kind == "user":
        return _user(after, quoted)
    if kind == "key":
        return [Mutation("the key is another", f"head -c 200 /dev/urandom > {quoted}")]
    if kind == "git":
        who = "-c safe.directory='*' -c user.name=hand -c user.email=hand@example.org"
        commit = f"git -C {quoted} {who} commit -q --allow-empty -m hand"
        return [Mutation("HEAD is moved", commit)]
    if kind in ("conda_env", "venv"):
        return _environment(item, quoted)
    if kind == "manifest":
        return _manifest(item, quoted)
    raise AssertionError(f"no way is known to change a {kind} by hand: teach tests/fleet/drift.py")


# What beside_others() goes by
BESIDE_OTHERS = ("file", "key", "link")
BESIDE_COMMANDS = ("pin:no-driver", "default:cuda")
# What these roles install is taken apart by some changes; after two of them at once they rightly ask (REFUSALS).
IN_TURN = ("anaconda", "cuda")

Change = tuple[dict[str, Any], Mutation]


def beside_others(item: dict[str, Any]) -> bool:
    """Whether changing an item says nothing about others, so that several can be changed before one look and one healing."""
    if item["kind"] == "directory":
        return any((item.get("after") or {}).get(key) for key in ("mode", "owner", "group"))
    if item["kind"] == "absent":
        return str(item["name"]).startswith("/etc/")
    return item["kind"] in BESIDE_OTHERS or item["key"] in BESIDE_COMMANDS


def rounds(role: str, items: list[dict[str, Any]], alone: bool) -> list[list[list[Change]]]:
    """All changes of all items, as rounds of steps: after a step everything in it must be noticed, after a round all is healed.

    An item that is changed again before it is healed must differ for another reason than before.

    C(alone) makes a round of each change. Otherwise the first changes of all items that are C(beside_others) make one round, the
    second ones another, and so on. The rest is changed one by one, and in roles of C(IN_TURN) healed one by one, else together;
    what takes others away comes apart from that, and so does what only a deep look can notice.
    """
    found = [(item, mutation) for item in items for mutation in mutations(item)]
    if alone:
        return [[[change]] for change in found]
    small: dict[int, list[Change]] = {}
    large: list[list[Change]] = []
    last: list[list[Change]] = []
    deep: list[list[Change]] = []
    for item in items:
        for number, mutation in enumerate(mutations(item)):
            if beside_others(item):
                small.setdefault(number, []).append((item, mutation))
            else:
                (deep if mutation.deep else last if mutation.last else large).append([(item, mutation)])
    together = [[small[number]] for number in sorted(small)]
    if role in IN_TURN:
        return together + [[step] for step in large + last + deep]
    return together + [steps for steps in (large, last, deep) if steps]


@dataclass(frozen=True)
class Refusal:
    """What a role finds and does not heal, because it may be somebody else's.

    C(script) makes it so, C(state) prints what must be the same after the refusal; C(consent) are the variables and
    C(way_out) the script with which an operator lets the role go on.
    """

    role: str
    name: str
    script: str
    state: str
    message: str
    consent: dict[str, Any] = field(default_factory=dict)
    way_out: str = "true"

    def __str__(self) -> str:
        return f"{self.role}: {self.name}"


REFUSALS = [
    Refusal(
        role="anaconda",
        name="the prefix holds other files",
        script="rm -rf /opt/gpufleet/conda; mkdir /opt/gpufleet/conda; echo mine > /opt/gpufleet/conda/notes",
        state="find /opt/gpufleet/conda* -printf '%p %u %m %s %T@\\n' | sort",
        message="/opt/gpufleet/conda holds something that is no conda installation. Move it away",
        way_out="mv /opt/gpufleet/conda /opt/gpufleet/mine",
    ),
    Refusal(
        role="cuda",
        name="a runfile's toolkit without record",
        script="rm /var/lib/gpufleet/cuda/12.0.toolkit /usr/local/cuda-12.0/bin/nvcc",
        state="find /usr/local/cuda-12.0 -printf '%p %u %m %s %T@\\n' | sort; ls /var/lib/gpufleet/cuda",
        message="/usr/local/cuda-12.0 holds a toolkit that this role did not install, by runfile",
        consent={"cuda_switch_method": True},
    ),
]
