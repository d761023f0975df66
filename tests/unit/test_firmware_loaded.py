# SPDX-License-Identifier: Apache-2.0
"""A place in guest memory is traced to the module that was loaded there."""

import struct

from test_firmware_modules import image, module

from sevkit.firmware.loaded import LoadedModules
from sevkit.guest.trial import trial_kernel

HEADER_BYTES = 512
SIZE = 0x2000


def pe(mark: bytes, code: bytes = b"code") -> bytes:
    """Headers that `mark`, 4 bytes, makes those of a module of its own, and its code."""
    headers = bytearray(trial_kernel()[:HEADER_BYTES])
    headers[0x48:0x4C] = mark
    return bytes(headers) + code * 64


class Memory:
    """Guest memory with modules at their places."""

    def __init__(self, **modules: bytes):
        self.pieces: dict[int, bytes] = {}
        for place, content in modules.items():
            start = int(place.removeprefix("at_"), 16)
            moved = bytearray(content)
            [headers] = struct.unpack_from("<I", moved, 0x3C)
            struct.pack_into("<Q", moved, headers + 24 + 24, start)
            self.pieces[start] = bytes(moved)

    def read(self, address: int, size: int) -> bytes:
        for start, content in self.pieces.items():
            if start <= address < start + len(content):
                return content[address - start :][:size].ljust(size, b"\0")
        return bytes(size)


LOADED = LoadedModules.of_image(
    image(module("First", pe(b"one.")), module("Second", pe(b"two."))), "x"
)


def test_the_module_that_holds_an_address_is_named() -> None:
    memory = Memory(at_700000=pe(b"one."), at_750000=pe(b"two."))
    assert LOADED.at(0x700000 + 0x1234, memory.read) == "First"
    assert LOADED.at(0x750000 + SIZE - 1, memory.read) == "Second"


def test_an_address_behind_a_module_or_in_an_unknown_one_is_in_none() -> None:
    memory = Memory(at_700000=pe(b"one."), at_750000=pe(b"else"))
    assert LOADED.at(0x700000 + SIZE, memory.read) == ""
    assert LOADED.at(0x750000 + 0x10, memory.read) == ""
    assert LOADED.at(0x10, memory.read) == ""


def test_a_module_that_nothing_runs_from_is_left_out() -> None:
    short, other = module("Short", pe(b"cut.")[:0x100]), module("Other", b"no headers" * 99)
    assert LoadedModules.of_image(image(short, other), "x").names == {}


def test_code_that_the_loader_moved_is_not_compared() -> None:
    memory = Memory(at_700000=pe(b"one.", code=b"edoc"))
    assert LOADED.at(0x700000 + 0x1234, memory.read) == "First"


def test_headers_at_the_end_of_the_first_page_are_found() -> None:
    def late(mark: bytes) -> bytes:
        made = pe(mark)
        dos = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0xE58)
        return dos.ljust(0xE58, b"\0") + made[0x40:]

    loaded = LoadedModules.of_image(image(module("Late", late(b"late"))), "x")
    memory = Memory(at_700000=late(b"late"))
    assert loaded.at(0x700000 + 0x1234, memory.read) == "Late"


def test_modules_that_can_t_be_told_apart_have_no_name() -> None:
    twins = module("First", pe(b"twin")), module("Second", pe(b"twin", code=b"edoc"))
    loaded = LoadedModules.of_image(image(*twins), "x")
    assert loaded.at(0x700000 + 0x1234, Memory(at_700000=pe(b"twin")).read) == ""
