# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the YAML files of the collection."""

from __future__ import annotations

import os
from typing import Any

import yaml

# libyaml reads the tables about ten times faster than the parser in Python; not every PyYAML was built with it.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(path: str | os.PathLike[str]) -> Any:
    """The content of a file, with nothing but plain types in it. Raises OSError and yaml.YAMLError."""
    with open(path, encoding="utf-8") as stream:
        return yaml.load(stream, Loader=LOADER)  # noqa: S506 (both are safe loaders)
