# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mirror profiles: the table, the resolution, the rewriting."""

from __future__ import annotations

import pytest
from ansible_collections.gpufleet.llm.plugins.plugin_utils import mirrors
from hypothesis import given
from hypothesis import strategies as st

NAMES = ["aliyun", "depot", "hf_mirror", "modelscope", "sjtu", "tuna", "upstream", "ustc"]
ANACONDA = "https://repo.anaconda.com/archive/Anaconda3-2023.09-0-Linux-x86_64.sh"


def keys(value, where=""):
    """Every path of dict keys, without those whose keys are the user's own."""
    found = set()
    for key, inner in value.items():
        path = f"{where}{key}"
        found.add(path)
        if isinstance(inner, dict) and path not in ("rewrite", "conda.custom_channels"):
            found |= keys(inner, path + ".")
    return found


def test_table_has_the_promised_profiles():
    assert sorted(mirrors.profiles()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_profile_resolves_to_the_same_keys(name):
    resolved = mirrors.resolve(name)
    assert keys(resolved) == keys(mirrors.BLANK)
    assert resolved["name"] == name


@pytest.mark.parametrize("name", NAMES)
def test_every_entry_names_its_source(name):
    table = mirrors.profiles()[name]
    entries = {key for key in table if key not in mirrors.NOTES and key != "rewrite"}
    entries |= {f"rewrite:{prefix}" for prefix in table.get("rewrite", {})}
    assert entries == set(table["sources"])
    assert all(table["sources"].values())


@pytest.mark.parametrize("name", [name for name in NAMES if name != "depot"])
def test_public_profiles_speak_https_and_never_switch_verification_off(name):
    resolved = mirrors.resolve(name)
    assert resolved["pypi"]["trusted"] == []
    assert resolved["exclusive"] is False
    urls = [resolved["pypi"]["index_url"], resolved["pytorch"]["index_url"], resolved["huggingface"]["endpoint"]]
    urls += [target for targets in resolved["rewrite"].values() for target in targets]
    urls += list(resolved["conda"]["custom_channels"].values()) + resolved["conda"]["default_channels"]
    assert all(url == "" or url.startswith("https://") for url in urls)


def test_upstream_is_last_unless_exclusive():
    assert mirrors.candidates(ANACONDA, "tuna") == [
        "https://mirrors.tuna.tsinghua.edu.cn/anaconda/archive/Anaconda3-2023.09-0-Linux-x86_64.sh",
        ANACONDA,
    ]
    assert mirrors.candidates(ANACONDA, "depot") == [
        "https://depot.gpufleet.test/installers/Anaconda3-2023.09-0-Linux-x86_64.sh"
    ]
    assert mirrors.candidates(ANACONDA, "upstream") == [ANACONDA]


def test_longest_prefix_decides():
    release = "https://github.com/conda-forge/miniforge/releases/download/25.3.1-0/Miniforge3-25.3.1-0-Linux-x86_64.sh"
    assert mirrors.candidates(release, "depot") == [
        "https://depot.gpufleet.test/installers/Miniforge3-25.3.1-0-Linux-x86_64.sh"
    ]
    assert mirrors.candidates("https://github.com/THUDM/ChatGLM3", "depot") == [
        "https://depot.gpufleet.test/git/THUDM/ChatGLM3"
    ]


def test_several_urls_give_all_mirrors_first_and_no_doubles():
    urls = [
        "https://repo.anaconda.com/archive/a.sh",
        "https://repo.anaconda.com/archive/a.sh",
        "https://x.example/a.sh",
    ]
    overrides = {"rewrite": {"https://x.example/": ["https://one.example/", "https://two.example/"]}}
    assert mirrors.candidates(urls, "tuna", overrides) == [
        "https://mirrors.tuna.tsinghua.edu.cn/anaconda/archive/a.sh",
        "https://one.example/a.sh",
        "https://two.example/a.sh",
        "https://repo.anaconda.com/archive/a.sh",
        "https://x.example/a.sh",
    ]


def test_exclusive_refuses_what_it_does_not_cover_but_takes_its_own():
    with pytest.raises(mirrors.MirrorError, match=r"exclusive and has no rewrite for https://elsewhere\.example/a"):
        mirrors.candidates("https://elsewhere.example/a", "depot")
    own = "https://depot.gpufleet.test/installers/x.sh"
    assert mirrors.candidates(own, "depot") == [own]


def test_user_overrides_win_entry_by_entry():
    resolved = mirrors.resolve(
        "tuna",
        {
            "exclusive": True,
            "ca_path": "/etc/site.pem",
            "pypi": {"index_url": "https://site.example/simple"},
            "conda": {"custom_channels": {"conda-forge": "https://site.example/conda", "pytorch": ""}},
            "rewrite": {"https://repo.anaconda.com/archive/": "https://site.example/a/", "https://x/": []},
        },
    )
    assert resolved["exclusive"] is True
    assert resolved["pypi"] == {"index_url": "https://site.example/simple", "fallback_urls": [], "trusted": []}
    assert resolved["conda"]["custom_channels"] == {"conda-forge": "https://site.example/conda"}
    assert len(resolved["conda"]["default_channels"]) == 2
    assert resolved["rewrite"]["https://repo.anaconda.com/archive/"] == ["https://site.example/a/"]
    assert resolved["rewrite"]["https://repo.anaconda.com/miniconda/"]
    assert "https://x/" not in resolved["rewrite"]


def test_profiles_can_be_laid_over_each_other():
    resolved = mirrors.resolve("tuna+hf_mirror")
    assert resolved["huggingface"]["endpoint"] == "https://hf-mirror.com"
    assert resolved["pypi"]["index_url"] == "https://mirrors.tuna.tsinghua.edu.cn/pypi/web/simple"


def test_a_resolved_profile_goes_in_again_unchanged():
    once = mirrors.resolve("depot")
    assert mirrors.resolve(once) == once


@pytest.mark.parametrize("profile", ["tsinghua", "", "tuna+nowhere"])
def test_unknown_profile_lists_the_names(profile):
    with pytest.raises(mirrors.MirrorError) as caught:
        mirrors.resolve(profile)
    assert all(name in str(caught.value) for name in NAMES)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"pipy": {}}, r"no entry 'pipy'; known here: .*pypi"),
        ({"pypi": {"index": "x"}}, r"no entry 'pypi.index'; known here: fallback_urls, index_url, trusted"),
        ({"pypi": "https://x"}, r"'pypi' is a dict"),
        ({"exclusive": "yes"}, r"'exclusive' is true or false"),
        ({"pypi": {"trusted": 5}}, r"'pypi.trusted' is a list"),
        ({"huggingface": {"endpoint": 7}}, r"'huggingface.endpoint' is a string"),
        ({"rewrite": {"https://a/": 5}}, r"rewrite of 'https://a/' must be"),
        ([1], r"overrides must be a dict"),
    ],
)
def test_wrong_overrides_are_named(overrides, message):
    with pytest.raises(mirrors.MirrorError, match=message):
        mirrors.resolve("upstream", overrides)


def test_the_table_cannot_be_changed_through_a_result():
    mirrors.resolve("tuna")["rewrite"].clear()
    mirrors.resolve("tuna")["conda"]["default_channels"].append("x")
    assert mirrors.resolve("tuna")["rewrite"]
    assert len(mirrors.resolve("tuna")["conda"]["default_channels"]) == 2


@given(st.sampled_from([name for name in NAMES if name != "depot"]), st.text("abc/.", max_size=20))
def test_candidates_are_unique_deterministic_and_end_upstream(name, tail):
    url = "https://repo.anaconda.com/archive/" + tail
    result = mirrors.candidates(url, name)
    assert result == mirrors.candidates(url, name)
    assert len(set(result)) == len(result)
    assert result[-1] == url
