# SPDX-License-Identifier: Apache-2.0
"""CBOR as RFC 8949 has it, core deterministic encoding (4.2.1): equal data, equal bytes. Writes
only, and only the kinds that a CoRIM has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Union

Cbor = Union[int, str, bytes, Sequence["Cbor"], Mapping["Cbor", "Cbor"], "Tag"]


@dataclass(frozen=True)
class Tag:
    """A value with a tag (RFC 8949, 3.4)."""

    number: int
    value: Cbor


def encode(value: Cbor) -> bytes:
    """The one encoding of a value. Numbers are from 0 to 2^64 less 1."""
    match value:
        case Tag(number, inner):
            return _head(6, number) + encode(inner)
        case int():
            return _head(0, value)
        case bytes():
            return _head(2, len(value)) + value
        case str():
            raw = value.encode()
            return _head(3, len(raw)) + raw
        case Mapping():
            pairs = sorted((encode(key), encode(one)) for key, one in value.items())
            return _head(5, len(pairs)) + b"".join(key + one for key, one in pairs)
        case _:
            return _head(4, len(value)) + b"".join(encode(one) for one in value)


def _head(kind: int, argument: int) -> bytes:
    if argument < 24:
        return bytes([kind << 5 | argument])
    for more, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if argument < 1 << 8 * size:
            return bytes([kind << 5 | more]) + argument.to_bytes(size, "big")
    raise ValueError(f"{argument} does not fit into 64 bits")
