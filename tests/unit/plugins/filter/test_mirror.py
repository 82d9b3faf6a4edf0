# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The mirror filters as ansible-core sees them."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.gpufleet.llm.plugins.filter.mirror import FilterModule

FILTERS = FilterModule().filters()


def test_both_filters_are_offered():
    assert sorted(FILTERS) == ["mirror", "mirror_urls"]


def test_errors_are_filter_errors_with_the_names():
    with pytest.raises(AnsibleFilterError, match="unknown mirror profile 'nope'; there are: aliyun"):
        FILTERS["mirror"]("nope")
    with pytest.raises(AnsibleFilterError, match="exclusive"):
        FILTERS["mirror_urls"]("https://elsewhere.example/x", "depot")


def test_results():
    assert FILTERS["mirror"]("hf_mirror")["huggingface"]["endpoint"] == "https://hf-mirror.com"
    assert FILTERS["mirror_urls"]("https://x.example/a") == ["https://x.example/a"]
