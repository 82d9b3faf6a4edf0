#!/usr/bin/env python3
"""Every role: the keys of defaults and of the argument specs are the same, and every spec has a description.

Exits 1 and names each difference.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent


def load(path: Path) -> Any:
    """The YAML of a file, or of all files in C(<path minus .yml>/)."""
    if path.is_file():
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    merged: dict[str, Any] = {}
    for part in sorted(path.with_suffix("").glob("*.yml")):
        merged.update(yaml.safe_load(part.read_text(encoding="utf-8")) or {})
    return merged


def problems(role: Path) -> list[str]:
    """What is wrong with one role's interface, in words."""
    found: list[str] = []
    spec_file = role / "meta" / "argument_specs.yml"
    if not spec_file.is_file():
        return [f"{role.name}: meta/argument_specs.yml is missing"]
    main = load(spec_file).get("argument_specs", {}).get("main", {})
    options = main.get("options", {})
    defaults = load(role / "defaults" / "main.yml")
    required = {name for name, option in options.items() if option.get("required")}
    found += [
        f"{role.name}: {name} has a default and no argument spec" for name in sorted(set(defaults) - set(options))
    ]
    found += [
        f"{role.name}: {name} has an argument spec and no default"
        for name in sorted(set(options) - set(defaults) - required)
    ]
    found += [f"{role.name}: {name} is required and has a default" for name in sorted(required & set(defaults))]
    prefix = f"{role.name}_"
    found += [
        f"{role.name}: {name} does not start with {prefix}" for name in sorted(options) if not name.startswith(prefix)
    ]
    found += [
        f"{role.name}: {name} has no description" for name in sorted(options) if not options[name].get("description")
    ]
    if not main.get("short_description"):
        found.append(f"{role.name}: the role has no short_description")
    return found


def main() -> int:
    """All roles; prints problems, returns the exit status."""
    found = [line for role in sorted((ROOT / "roles").iterdir()) if role.is_dir() for line in problems(role)]
    print("\n".join(found) if found else "specs and defaults agree")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
