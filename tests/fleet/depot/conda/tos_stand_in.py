# Copyright: Contributors to the gpufleet.llm project
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for Anaconda's plugin conda-anaconda-tos, as far as unattended use goes; runs in the fixture's conda.

A channel has terms when it serves `terms.json`. `conda tos accept` writes what the real one writes, to the same place:
`<root>/conda-meta/tos/<sha256 of location and name>/<timestamp of the version>.json` (`--system`), below `~/.conda/tos`
(the default and `--user`) or `/etc/conda/tos` (`--site`). Commands that use a channel whose terms nobody has accepted
fail as they do without a terminal. There is no prompt, no `tos reject`, and no cache of terms.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from conda import plugins
from conda.base.context import context
from conda.exceptions import CondaError
from conda.gateways.connection.session import get_session
from conda.models.channel import Channel

SITE, USER = Path("/etc/conda/tos"), Path("~/.conda/tos").expanduser()


def system() -> Path:
    """Where `--system` writes: with the installation."""
    return Path(context.root_prefix, "conda-meta", "tos")


def in_use() -> Iterator[tuple[Any, dict[str, str] | None]]:
    """The channels in use, and their terms if they have any: {"version", "text", "support"}."""
    seen = set()
    for url in (url for name in context.channels for url in Channel(name).urls()):
        channel = Channel(Channel(url).base_url)
        if channel.base_url not in seen:
            seen.add(channel.base_url)
            answer = get_session(channel.base_url).get(f"{channel.base_url}/terms.json", timeout=30)
            yield channel, answer.json() if answer.ok else None


def place(root: Path, channel: Any, terms: dict[str, str]) -> Path:
    """The file that holds the answer to one version of a channel's terms."""
    digest = hashlib.sha256(channel.location.encode() + channel.name.encode()).hexdigest()
    version = datetime.fromisoformat(terms["version"].replace("Z", "+00:00"))
    return root / digest / f"{version.timestamp()}.json"


def accepted(channel: Any, terms: dict[str, str]) -> bool:
    """True if somebody has accepted this version."""
    paths = [place(root, channel, terms) for root in (SITE, system(), USER)]
    return any(json.loads(path.read_text())["tos_accepted"] for path in paths if path.is_file())


def configure(parser: Any) -> None:
    """The arguments of `conda tos`."""
    accept = parser.add_subparsers(dest="cmd", required=True).add_parser("accept")
    accept.add_argument("-c", "--channel", action="append")
    accept.add_argument("--override-channels", action="store_true")
    where = accept.add_mutually_exclusive_group()
    for flag, root in (("--site", SITE), ("--system", system()), ("--user", USER)):
        where.add_argument(flag, dest="tos_root", action="store_const", const=root)
    accept.set_defaults(tos_root=USER)


def execute(args: Any) -> int:
    """`conda tos accept`."""
    for channel, terms in in_use():
        if terms is None:
            print(f"Terms of Service not found for {channel.base_url}")
            continue
        path = place(args.tos_root, channel, terms)
        path.parent.mkdir(parents=True, exist_ok=True)
        stamp = datetime.now(tz=timezone.utc).isoformat()
        answer = {"base_url": channel.base_url, "tos_accepted": True, "acceptance_timestamp": stamp}
        path.write_text(json.dumps({**terms, **answer}))
        print(f"accepted Terms of Service for {channel.base_url}")
    return 0


def check(_command: str) -> None:
    """Before a command that uses channels: all their terms are accepted, or it ends here."""
    waiting = [channel.base_url for channel, terms in in_use() if terms and not accepted(channel, terms)]
    if waiting:
        raise CondaError(
            "Terms of Service have not been accepted for the following channels. Please accept or remove them before "
            "proceeding:\n" + "\n".join(f"    - {url}" for url in waiting)
        )


@plugins.hookimpl
def conda_subcommands() -> Iterator[Any]:
    """`conda tos`."""
    yield plugins.CondaSubcommand("tos", "terms of service of channels (stand-in)", execute, configure)


@plugins.hookimpl
def conda_pre_commands() -> Iterator[Any]:
    """What comes before the commands that use channels."""
    yield plugins.CondaPreCommand("check_tos", check, {"create", "install", "search", "update"})
