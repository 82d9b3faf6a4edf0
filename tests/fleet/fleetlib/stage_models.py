# Copyright: Contributors to the gpufleet.llm project
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hub's models and the git repositories: written by programs, the same bytes and commits everywhere."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from .host import FLEET_DIR, run

MAKER = FLEET_DIR / "depot" / "make_models.py"
OWNER = "gpufleet-fixtures"
WHO = "gpufleet fixture <fixture@gpufleet.test>"
FIRST = 1_700_000_000  # 14 November 2023, one commit a day

# Repository → its commits, oldest first, each a whole tree.
REPOSITORIES: dict[str, list[dict[str, str]]] = {
    "tiny-lm": [
        {"README.md": "# tiny-lm\n\nA fixture.\n"},
        {"README.md": "# tiny-lm\n\nA fixture.\n", "demo.py": 'print("first edition")\n'},
        {
            "README.md": "# tiny-lm\n\nA fixture, with a requirements file.\n",
            "demo.py": 'print("second edition")\n',
            "requirements.txt": "transformers\n",
        },
        {
            "README.md": "# tiny-lm\n\nA fixture, with a requirements file.\n",
            "demo.py": 'print("third edition")\n',
            "requirements.txt": "transformers\n",
            "docs/usage.md": "Run `python demo.py`.\n",
        },
    ],
    "tiny-asr": [
        {"README.md": "# tiny-asr\n\nA fixture.\n"},
        {"README.md": "# tiny-asr\n\nA fixture.\n", "transcribe.py": 'print("first edition")\n'},
        {"README.md": "# tiny-asr\n\nA fixture, finished.\n", "transcribe.py": 'print("second edition")\n'},
    ],
}


def inputs() -> list[Path]:
    """What the models and repositories depend on."""
    return [MAKER, Path(__file__)]


def stage(folder: Path) -> None:
    """Write `models/` (with index.json) and `git/` (bare repositories with index.json) below folder."""
    run([sys.executable, str(MAKER), str(folder / "models"), "--git", str(folder / "git")])
    index = json.loads((folder / "git" / "index.json").read_text(encoding="utf-8"))
    for name, commits in REPOSITORIES.items():
        index[f"{OWNER}/{name}"] = _repository(folder / "git" / OWNER / f"{name}.git", commits)
    (folder / "git" / "index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _repository(place: Path, commits: list[dict[str, str]]) -> list[str]:
    """A bare repository with those commits; their names, oldest first."""
    place.mkdir(parents=True)
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    git = ["git", "-C", str(place)]
    run([*git, "init", "-q", "--bare", "--initial-branch=main", "."], env=environment)
    stream = place / "stream"
    stream.write_text(_stream(commits), encoding="utf-8")
    with stream.open(encoding="utf-8") as handle:
        run([*git, "fast-import", "--quiet", "--done"], env=environment, stdin=handle)
    stream.unlink()
    run([*git, "tag", "v1.0.0", "main"], env=environment)
    return run([*git, "rev-list", "--reverse", "main"], env=environment).stdout.split()


def _stream(commits: list[dict[str, str]]) -> str:
    out = []
    for number, files in enumerate(commits):
        message = f"Edition {number}\n"
        out.append("commit refs/heads/main\n")
        out += [f"{role} {WHO} {FIRST + 86_400 * number} +0000\n" for role in ("author", "committer")]
        out.append(f"data {len(message)}\n{message}deleteall\n")
        out += [f"M 100644 inline {path}\ndata {len(text)}\n{text}\n" for path, text in sorted(files.items())]
    return "".join(out) + "done\n"
