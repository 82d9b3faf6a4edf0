# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SHA-512 crypt against the test vectors of its specification."""

from __future__ import annotations

import pytest
from ansible_collections.gpufleet.llm.plugins.plugin_utils.sha512_crypt import derived_salt, sha512_crypt

# U. Drepper, "Unix crypt using SHA-256 and SHA-512": (salt, rounds, password, result)
VECTORS = [
    (
        "saltstring",
        5000,
        "Hello world!",
        "$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1",
    ),
    (
        "saltstringsaltstring",
        10000,
        "Hello world!",
        "$6$rounds=10000$saltstringsaltst$OW1/O6BYHV6BcXZu8QVeXbDWra3Oeqh0sbHbbMCVNSnCM/UrjmM0Dp8vOuZeHBy/YTBmSK6H9qs/y3RnOaw5v.",
    ),
    (
        "toolongsaltstring",
        5000,
        "This is just a test",
        "$6$toolongsaltstrin$lQ8jolhgVRVhY4b5pZKaysCLi0QBxGoNeKQzQ3glMhwllF7oGDZxUhx1yxdYcz/e1JSbq3y6JMxxl8audkUEm0",
    ),
    (
        "asaltof16chars..",
        123456,
        "a short string",
        "$6$rounds=123456$asaltof16chars..$BtCwjqMJGx5hrJhZywWvt0RLE8uZ4oPwcelCjmw2kSYu.Ec6ycULevoBK25fs2xXgMNrCzIMVcgEJAstJeonj1",
    ),
    (
        "roundstoolow",
        10,
        "the minimum number is still observed",
        "$6$rounds=1000$roundstoolow$kUMsbe306n21p9R.FRkW3IGn.S9NPN0x50YhH1xhLsPuWGsUSklZt58jaTfF4ZEQpyUNGc0dqbpBYYBaHHrsX.",
    ),
]


@pytest.mark.parametrize(("salt", "rounds", "password", "wanted"), VECTORS, ids=[one[0] for one in VECTORS])
def test_vectors_of_the_specification(salt: str, rounds: int, password: str, wanted: str) -> None:
    assert sha512_crypt(password, salt, rounds) == wanted


@pytest.mark.parametrize("length", [0, 1, 31, 63, 64, 65, 127, 128, 200])
def test_every_length_of_password_gives_another_hash_of_86_characters(length: int) -> None:
    head, text = sha512_crypt("ä" * length, "salt").rsplit("$", 1)
    assert head == "$6$salt"
    assert len(text) == 86
    assert sha512_crypt("ä" * (length + 1), "salt").rsplit("$", 1)[1] != text


def test_the_salt_is_the_same_every_time_and_another_for_every_name() -> None:
    salts = {derived_salt(host, user) for host in ("n1", "n2") for user in ("anna", "bert")}
    assert len(salts) == 4
    assert derived_salt("n1", "anna") == derived_salt("n1", "anna")
    assert derived_salt("ab", "c") != derived_salt("a", "bc")
    assert all(len(salt) == 16 for salt in salts)
