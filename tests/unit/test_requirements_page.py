# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page of requirements and their tests names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "explanation" / "driver-requirements.md"
# test_name, test_beginning… or …part…
NAMED = sorted(set(re.findall(r"`((?:…|test_)[\w…]+)`", PAGE.read_text(encoding="utf-8"))))
TESTS = {
    name
    for folder in ("tests", "molecule")
    for path in (ROOT / folder).rglob("test_*.py")
    for name in re.findall(r"(?m)^def (test_\w+)", path.read_text(encoding="utf-8"))
}


@pytest.mark.parametrize("named", NAMED)
def test_a_test_that_the_page_names_is_there(named: str) -> None:
    pattern = re.compile(re.escape(named).replace("…", r"\w*"))
    assert [name for name in TESTS if pattern.fullmatch(name)]


def test_the_page_names_tests() -> None:
    assert len(NAMED) > 50
