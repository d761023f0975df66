# SPDX-License-Identifier: Apache-2.0
"""Whether this host can read a guest's memory: looks for a page that the guest keeps.

The guest is given a seed and makes the page itself, so the page never crosses memory that is shared
with the host. Reads the memory of the QEMU that it started, and of nobody else.

proc(5), /proc/pid/maps and /proc/pid/mem.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from sevkit.errors import HostError
from sevkit.guest.session import Session

PAGE_BYTES = 4096
_CHUNK_BYTES = 4 << 20
_MASK = (1 << 64) - 1


def page_of(seed: int) -> bytes:
    """4096 bytes: the numbers of SplitMix64 from `seed`, little endian.

    Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014, section 4.
    """
    numbers = []
    for _ in range(PAGE_BYTES // 8):
        seed = (seed + 0x9E3779B97F4A7C15) & _MASK
        mixed = ((seed ^ seed >> 30) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & _MASK
        numbers.append(mixed ^ mixed >> 31)
    return struct.pack(f"<{len(numbers)}Q", *numbers)


@dataclass(frozen=True)
class Sight:
    """What the host saw of a guest."""

    found_at: tuple[int, ...]
    """Addresses in QEMU where the page is."""
    searched_bytes: int
    is_sev: bool
    accelerator: str

    @property
    def is_as_it_must_be(self) -> bool:
        """Found without encryption; not found with it."""
        return bool(self.found_at) != self.is_sev

    def lines(self) -> list[str]:
        """The same in words."""
        searched = f"{self.searched_bytes >> 20} MiB of QEMU's memory searched ({self.accelerator})"
        if self.found_at:
            places = ", ".join(f"{place:#x}" for place in self.found_at)
            verdict = (
                "this host can read the guest's memory ALTHOUGH it was launched with encryption"
                if self.is_sev
                else "this host can read the guest's memory"
            )
            return [searched, f"the guest's page was found in plain at {places}", verdict]
        verdict = (
            "the host saw no plaintext"
            if self.is_sev
            else "without encryption it must be found: the probe itself does not work here"
        )
        return [searched, "the guest's page was not found", verdict]


def look(session: Session, *, seed: int) -> Sight:
    """Boot, have the guest keep the page of `seed`, and search QEMU's memory for it.

    Raises as `Guest` does, and `HostError` when this user may not read QEMU's memory.
    """
    with session.guest() as guest:
        guest.marker(seed)
        places, searched = search(guest.qemu_pid, page_of(seed))
        guest.shut_down()
    launch = session.setting.launch
    return Sight(tuple(places), searched, launch.is_sev, launch.accelerator)


def search(pid: int, page: bytes) -> tuple[list[int], int]:
    """Addresses of `page` in the memory of a process, and how many bytes could be read.

    Raises `HostError` when the memory may not be read.
    """
    found: list[int] = []
    searched = 0
    try:
        memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(
            "QEMU's memory can't be read",
            why=f"/proc/{pid}/mem: {error.strerror}",
            hint="run the probe as root",
        ) from error
    try:
        for start, end in _mappings(pid):
            place = start
            while place < end:
                data = _read(memory, place, min(_CHUNK_BYTES, end - place))
                searched += len(data)
                found += _aligned(data, page, place)
                place += len(data) or _CHUNK_BYTES
    finally:
        os.close(memory)
    return found, searched


def _mappings(pid: int) -> Iterator[tuple[int, int]]:
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:  # noqa: PTH123
        for line in maps:
            addresses, rights, *_ = line.split()
            if rights.startswith("r"):
                start, _, end = addresses.partition("-")
                yield int(start, 16), int(end, 16)


def _read(memory: int, place: int, size: int) -> bytes:
    """What can be read; guest memory that was never touched may be absent."""
    try:
        return os.pread(memory, size, place)
    except OSError:
        return b""


def _aligned(data: bytes, page: bytes, place: int) -> list[int]:
    """Where `page` is: a guest's page is one in QEMU too. Compares its first bytes, then all."""
    found = []
    at = data.find(page[:64])
    while at >= 0:
        if (place + at) % PAGE_BYTES == 0 and data[at : at + PAGE_BYTES] == page:
            found.append(place + at)
        at = data.find(page[:64], at + 1)
    return found
