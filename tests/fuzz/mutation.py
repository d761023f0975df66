# SPDX-License-Identifier: Apache-2.0
"""Damaged bytes from good ones: what is made depends on nothing but the `Random` that is given."""

import copy
import json
import struct
from collections.abc import Sequence
from random import Random
from typing import Any

MOST_BYTES = 1 << 20
"""A mutation of a small input stays below this."""
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 62, (1 << 64) - 1)
_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1 << 31, 1 << 63, 1 << 64, 10**30, 1.5, 1e308, float("nan")),
    *("", "x", "/", "..", "../../x", "/etc/shadow", "a\nb", "\0", "\ud800", "é", "x" * 5000, "0:0"),
    *([], {}, [[]], [{}], [None], {"": None}, [1, "a"], {"a": [1]}),
)
_INSERTED = (
    *("/", "..", "\n", "\0", "é", "9", "x" * 300, " ", "=", ",", "#", ":", "-", "\\"),
    *("'", '"', "`", "$(x)", "]]>", "&", "<", "{{", "%", ";"),
)


def mutated(seeds: Sequence[bytes], words: Sequence[bytes], random: Random) -> bytes:
    """One of `seeds`, damaged one to eight times; `words` mean something to the reader."""
    data = bytearray(random.choice(seeds))
    for _ in range(1 << random.randrange(4)):
        _damage(data, seeds, words, random)
    return bytes(data[: max(MOST_BYTES, 2 * max(map(len, seeds)))])


def _damage(
    data: bytearray, seeds: Sequence[bytes], words: Sequence[bytes], random: Random
) -> None:
    at = random.randrange(len(data) + 1)
    length = min(len(data) - at, 1 << random.randrange(12))
    kind = random.randrange(9)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << random.randrange(8)
    elif kind == 1 and at < len(data):
        data[at] = random.choice((0, 1, 9, 10, 32, 47, 127, 128, 255))
    elif kind == 2:
        size, letter = random.choice(((2, "H"), (4, "I"), (8, "Q")))
        number = random.choice((*_NUMBERS, len(data), random.getrandbits(16)))
        order = random.choice("<>")
        data[at : at + size] = struct.pack(order + letter, number & ((1 << 8 * size) - 1))
    elif kind == 3:
        del data[at : at + length]
    elif kind == 4:
        data[at:at] = data[at : at + length] * random.choice((1, 1, 1, 2, 50))
    elif kind == 5:
        other = random.choice(seeds)
        start = random.randrange(len(other) + 1)
        data[at : at + length * random.randrange(2)] = other[start : start + length]
    elif kind == 6 and words:
        data[at : at + random.choice((0, 0, 1, length))] = random.choice(words)
    elif kind == 7:
        del data[at:]
    else:
        data[at : at + length] = random.randbytes(min(length, 64))


def mutated_json(seeds: Sequence[bytes], random: Random) -> bytes:
    """One of `seeds`, which are JSON, with some of its values replaced, removed or doubled."""
    value = json.loads(random.choice(seeds))
    for _ in range(1 << random.randrange(3)):
        place: Any = value
        while isinstance(place, dict | list) and place:
            key = random.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not isinstance(place[key], dict | list) or not place[key] or random.random() < 0.3:
                _replace(place, key, random)
                break
            place = place[key]
    return json.dumps(value).encode()


def _replace(place: Any, key: Any, random: Random) -> None:
    kind = random.randrange(4)
    if kind == 0:
        del place[key]
    elif kind == 1 and isinstance(place, list):
        place.append(copy.deepcopy(place[key]))
    elif kind == 1:
        place[random.choice(("x", "", "name", "a/b"))] = copy.deepcopy(place[key])
    elif kind == 2 and isinstance(place[key], str):
        text = place[key]
        at = random.randrange(len(text) + 1)
        place[key] = text[:at] + random.choice(_INSERTED) + text[at:]
    elif kind == 2 and type(place[key]) is int:
        place[key] += random.choice((1, -1, 4096))
    else:
        place[key] = copy.deepcopy(random.choice(_ODD))
