# SPDX-License-Identifier: Apache-2.0
"""The modules of firmware: found in a compressed volume, told apart, no trouble when damaged."""

import hashlib
import lzma
import random
import tracemalloc
from uuid import UUID

import pytest
from firmware_samples import FILES, firmware, volume

from sevkit.errors import ImageError
from sevkit.firmware.modules import described, modules

LZMA = UUID("ee4e5898-3914-4259-9d6e-dc7bd79403cf")
GUID = UUID("5b1b31a1-9562-11d2-8e3f-00a0c969723b")


def section(kind: int, content: bytes) -> bytes:
    made = (len(content) + 4).to_bytes(3, "little") + bytes([kind]) + content
    return made + bytes(-len(made) % 4)


def file(content: bytes, kind: int = 7) -> bytes:
    size = (24 + len(content)).to_bytes(3, "little")
    made = GUID.bytes_le + b"\0\0" + bytes([kind, 0]) + size + b"\xf8" + content
    return made + b"\xff" * (-len(made) % 8)


def module(name: str, code: bytes) -> bytes:
    text = (name + "\0").encode("utf-16-le")
    return file(section(0x10, code) + section(0x15, text))


def compressed(*files: bytes) -> bytes:
    """A file whose one section unpacks to a volume of `files`."""
    inner = section(0x17, bytes(volume(FILES, 16384, b"".join(files))))
    packed = lzma.compress(inner, lzma.FORMAT_ALONE)
    head = LZMA.bytes_le + (24).to_bytes(2, "little") + (1).to_bytes(2, "little")
    return file(section(0x02, head + packed), kind=0x0B)


def image(*files: bytes) -> bytes:
    return bytes(volume(FILES, 65536, compressed(*files))) + firmware()


def test_modules_are_found_by_name_behind_compression() -> None:
    first, second = module("DxeCore", b"one"), module("Shell", b"two")
    found = modules(image(first, second, file(b"data")), "x")
    content = first[24 : 24 + len(first.rstrip(b"\xff")) - 24]
    digest = hashlib.sha256(content).hexdigest()
    assert found["DxeCore"] == f"{len(content)} bytes, sha256 {digest}"
    assert {"DxeCore", "Shell", str(GUID)} <= found.keys()


def test_one_changed_module_is_the_only_one_that_differs() -> None:
    old = modules(image(module("A", b"same"), module("B", b"old!")), "x")
    new = modules(image(module("A", b"same"), module("B", b"new!")), "x")
    assert {key for key in old if old[key] != new[key]} == {"B"}
    assert old.keys() == new.keys()


def test_a_name_that_comes_again_is_numbered() -> None:
    found = modules(image(*[module("A", bytes([n])) for n in range(3)]), "x")
    assert {"A", "A, no. 2", "A, no. 3"} <= found.keys()


def test_a_name_that_looks_numbered_hides_nothing() -> None:
    parts = [("A", b"1"), ("A", b"2"), ("A, no. 2", b"3"), ("A", b"4"), ("B, no. 2", b"5")]
    parts += [("B", b"6"), ("B", b"7")]
    assert list(described(parts)) == [
        *("A", "A, no. 2", "A, no. 2, no. 2", "A, no. 3"),
        *("B, no. 2", "B", "B, no. 3"),
    ]


def test_thousands_of_modules_of_one_name_are_numbered_at_once() -> None:
    made = described(("A", b"") for _ in range(50_000))
    assert len(made) == 50_000
    assert list(made)[-1] == "A, no. 50000"


def test_what_can_t_be_taken_apart_is_one_module() -> None:
    damaged = file(section(0x02, LZMA.bytes_le + b"\x18\0\1\0" + b"noise" * 9), kind=0x0B)
    found = modules(bytes(volume(FILES, 65536, damaged)) + firmware(), "x")
    assert str(GUID) in found


def test_damage_gives_an_answer_or_one_error() -> None:
    good = image(module("A", b"code" * 99), module("B", b"more" * 99))
    chance = random.Random(2)
    answers = 0
    for _ in range(2000):
        data = bytearray(good)
        for _ in range(3):
            data[chance.randrange(1500)] = chance.randrange(256)
        try:
            answers += bool(modules(bytes(data), "x"))
        except ImageError as error:
            assert error.what.startswith("x ")  # noqa: PT017
    assert 100 < answers < 2000


def test_a_bomb_unpacks_to_no_more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sevkit.firmware.modules.LIMIT_BYTES", 8 << 20)
    packed = lzma.compress(section(0x10, b"code") + bytes(48 << 20), lzma.FORMAT_ALONE, preset=0)
    head = LZMA.bytes_le + (24).to_bytes(2, "little") + (1).to_bytes(2, "little")
    bomb = file(section(0x02, head + packed), kind=0x0B)
    data = bytes(volume(FILES, 131072, bomb)) + firmware()
    tracemalloc.start()
    found = modules(data, "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(GUID) in found
    assert 8 << 20 <= peak < 24 << 20
