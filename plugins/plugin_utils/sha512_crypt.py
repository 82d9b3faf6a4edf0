# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SHA-512 crypt (``$6$``), as libc's crypt(3) checks it, in pure Python.

Ansible's own ``password_hash`` needs passlib on the controller since ansible-core 2.19, and Python lost its ``crypt``
module in 3.13. The role nginx needs the same hash from every controller, or a second run would see a difference.

Source: U. Drepper, "Unix crypt using SHA-256 and SHA-512", version 0.6, whose test vectors are in the unit tests.
"""

from __future__ import annotations

import hashlib

ALPHABET = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ROUNDS_DEFAULT = 5000
ROUNDS_MIN = 1000
ROUNDS_MAX = 999_999_999
SALT_MAX = 16


def _encode(digest: bytes) -> str:
    """64 bytes in the order and the alphabet of crypt(3): 86 characters."""
    text = []
    a, b, c = 0, 21, 42
    for _block in range(21):
        word = digest[a] << 16 | digest[b] << 8 | digest[c]
        for _character in range(4):
            text.append(ALPHABET[word & 63])
            word >>= 6
        a, b, c = b + 1, c + 1, a + 1
    text.append(ALPHABET[digest[63] & 63])
    text.append(ALPHABET[digest[63] >> 6])
    return "".join(text)


def sha512_crypt(password: str, salt: str, rounds: int = ROUNDS_DEFAULT) -> str:
    """Hash ``password`` (UTF-8) with up to 16 characters of ``salt``; ``$6$salt$hash``, or ``$6$rounds=n$salt$hash``."""
    key = password.encode("utf-8")
    grain = salt.encode("ascii")[:SALT_MAX]
    rounds_used = min(max(rounds, ROUNDS_MIN), ROUNDS_MAX)

    other = hashlib.sha512(key + grain + key).digest()
    mix = key + grain + (other * (len(key) // 64 + 1))[: len(key)]
    count = len(key)
    while count:
        mix += other if count & 1 else key
        count >>= 1
    digest = hashlib.sha512(mix).digest()

    p = (hashlib.sha512(key * len(key)).digest() * (len(key) // 64 + 1))[: len(key)]
    s = hashlib.sha512(grain * (16 + digest[0])).digest()[: len(grain)]

    for turn in range(rounds_used):
        step = p if turn & 1 else digest
        if turn % 3:
            step += s
        if turn % 7:
            step += p
        step += digest if turn & 1 else p
        digest = hashlib.sha512(step).digest()

    head = "" if rounds == ROUNDS_DEFAULT else f"rounds={rounds_used}$"
    return f"$6${head}{grain.decode('ascii')}${_encode(digest)}"


def derived_salt(*parts: str) -> str:
    """A salt of 16 characters that is the same on every run and another one for every other ``parts``.

    Derived from names only, never from the password: a salt made from the password would be a fast hash of it, and
    salts stand beside the slow hash in the file.
    """
    digest = hashlib.sha256("\0".join(parts).encode("utf-8")).digest()
    return "".join(ALPHABET[byte & 63] for byte in digest[:SALT_MAX])
