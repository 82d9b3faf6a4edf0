# SPDX-License-Identifier: GPL-3.0-or-later
"""What the pages promise is there: links lead somewhere, commands name targets, playbooks and inventories that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.gpufleet.llm.plugins.plugin_utils.catalog import wanted_models
from ansible_collections.gpufleet.llm.plugins.plugin_utils.nginx_sites import complaints

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "roles").glob("*/README.md")])
LINK = re.compile(r"\[[^\]]+\]\(([^)#\s]+)(?:#[^)]*)?\)")
TARGETS = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8")))
BLOCK = re.compile(r"```(?:console|sh|shell|bash)\n(.*?)```", re.DOTALL)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link for link in LINK.findall(text) if "://" not in link]
    dead = [link for link in links if not (page.parent / link).exists()]
    assert not dead


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_name_what_there_is(page: Path) -> None:
    wrong = []
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        wrong += [f"make {target}" for target in re.findall(r"(?m)^make ([a-z-]+)", block) if target not in TARGETS]
        wrong += [
            path
            for path in re.findall(
                r"(?<![\w/.])((?:playbooks/)?[a-z_]+\.yml|tools/[a-z_]+(?:\.py)?|inventories/[a-z]+)\b", block
            )
            if path.startswith(("playbooks/", "tools/", "site.yml", "inventories/"))
            and path != "inventories/yours"
            and not (ROOT / path).exists()
        ]
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_yaml_blocks_parse(page: Path) -> None:
    for block in re.findall(r"```ya?ml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        yaml.safe_load(block.replace("…", "dots"))


@pytest.mark.parametrize("folder", ["demo", "example", "local"])
def test_inventories_use_variables_that_exist(folder: str) -> None:
    known = {"gpufleet_roles", "gpufleet_mirror_profile", "gpufleet_pins", "gpufleet_results_dir", "gpufleet_notes"}
    known |= {"gpufleet_prefix", "ansible_become", "ansible_user", "ansible_python_interpreter"}
    for spec in (ROOT / "roles").glob("*/meta/argument_specs.yml"):
        known |= set(yaml.safe_load(spec.read_text(encoding="utf-8"))["argument_specs"]["main"].get("options") or {})
    for path in sorted((ROOT / "inventories" / folder).rglob("*_vars/*.yml")):
        used = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        assert set(used) <= known, f"{path.name} uses {sorted(set(used) - known)}"


def offered(path: Path) -> dict[str, Any]:
    """What an inventory's file sets, with the blocks that a user may take the comment signs from (C(# name: …) and below it)."""
    lines, inside = [], False
    for line in path.read_text(encoding="utf-8").splitlines():
        begins = re.match(r"# [a-z_]+:( |$)", line)
        inside = bool(begins) or (inside and line.startswith("#   "))
        lines.append(line[2:] if inside else line)
    return yaml.safe_load("\n".join(lines)) or {}


def test_what_the_example_offers_is_accepted_by_the_roles() -> None:
    folders = [str(ROOT / "roles/llm_model/catalog")]
    sites, models = [], []
    for path in sorted((ROOT / "inventories" / "example").rglob("*_vars/*.yml")):
        content = offered(path)
        sites += content.get("nginx_sites", [])
        models += wanted_models(content.get("llm_model_wanted", []), folders)
    assert sites and models
    sites = [
        {**site, "auth": {**site["auth"], "users": [{**u, "password_hash": "$6$a$b"} for u in site["auth"]["users"]]}}
        for site in sites
    ]
    assert complaints(sites) == []
