# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What playbooks/site.yml must know of the roles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
SET_FACT = "ansible.builtin.set_fact"


def tasks_in(content: Any) -> Iterator[dict[str, Any]]:
    """Every task in what a YAML file holds, those in blocks too."""
    if isinstance(content, list):
        for one in content:
            yield from tasks_in(one)
    elif isinstance(content, dict):
        yield content
        for key in ("tasks", "block", "rescue", "always"):
            yield from tasks_in(content.get(key))


def test_what_a_role_tells_the_world_is_told_by_the_survey_too() -> None:
    told = {
        name
        for path in ROOT.glob("roles/*/tasks/*.yml")
        for task in tasks_in(yaml.safe_load(path.read_text(encoding="utf-8")))
        for name in task.get(SET_FACT, {})
        if not name.startswith("__")
    }
    kept = next(
        task[SET_FACT]
        for task in tasks_in(yaml.safe_load((ROOT / "playbooks/site.yml").read_text(encoding="utf-8")))
        if SET_FACT in task
    )
    assert told == set(kept)
    assert all(f"__gpufleet_seen.facts.{name} |" in template for name, template in kept.items())
