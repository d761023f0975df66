# SPDX-License-Identifier: Apache-2.0
"""A place in guest memory is traced to the module that was loaded there."""

import struct

from test_firmware_modules import image, module

from sevkit.firmware.loaded import HEADER_BYTES, LoadedModules
from sevkit.guest.trial import trial_kernel

BASE_AT = 0x40 + 24 + 24
SIZE = 0x2000


def pe(mark: bytes) -> bytes:
    """Headers that `mark` makes those of a module of its own, and its code."""
    headers = bytearray(trial_kernel()[:HEADER_BYTES])
    headers[0x1E0 : 0x1E0 + len(mark)] = mark
    return bytes(headers) + b"code" * 64


class Memory:
    """Guest memory with modules at their places."""

    def __init__(self, **modules: bytes):
        self.pieces: dict[int, bytes] = {}
        for place, content in modules.items():
            start = int(place.removeprefix("at_"), 16)
            moved = bytearray(content)
            struct.pack_into("<Q", moved, BASE_AT, start)
            self.pieces[start] = bytes(moved)

    def read(self, address: int, size: int) -> bytes:
        for start, content in self.pieces.items():
            if start <= address < start + len(content):
                return content[address - start :][:size].ljust(size, b"\0")
        return bytes(size)


LOADED = LoadedModules.of_image(
    image(module("First", pe(b"one")), module("Second", pe(b"two"))), "x"
)


def test_the_module_that_holds_an_address_is_named() -> None:
    memory = Memory(at_700000=pe(b"one"), at_750000=pe(b"two"))
    assert LOADED.at(0x700000 + 0x1234, memory.read) == "First"
    assert LOADED.at(0x750000 + SIZE - 1, memory.read) == "Second"


def test_an_address_behind_a_module_or_in_an_unknown_one_is_in_none() -> None:
    memory = Memory(at_700000=pe(b"one"), at_750000=pe(b"three"))
    assert LOADED.at(0x700000 + SIZE, memory.read) == ""
    assert LOADED.at(0x750000 + 0x10, memory.read) == ""
    assert LOADED.at(0x10, memory.read) == ""


def test_a_module_that_nothing_runs_from_is_left_out() -> None:
    short, other = module("Short", pe(b"x")[:100]), module("Other", b"no headers" * 99)
    assert LoadedModules.of_image(image(short, other), "x").names == {}
