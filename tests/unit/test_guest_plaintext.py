# SPDX-License-Identifier: Apache-2.0
"""The plaintext probe's page, its search, and its verdicts."""

import ctypes
import mmap
import os

import pytest

from sevkit.errors import HostError
from sevkit.guest.plaintext import PAGE_BYTES, Sight, page_of, search

SEED = 0x0123456789ABCDEF


def test_the_page_is_that_of_splitmix64() -> None:
    first = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    assert page_of(0)[:32] == b"".join(number.to_bytes(8, "little") for number in first)
    assert len(page_of(SEED)) == PAGE_BYTES
    assert page_of(SEED) != page_of(SEED + 1)


def test_a_page_in_memory_is_found_where_it_is_and_only_whole() -> None:
    page = page_of(SEED)
    with mmap.mmap(-1, 8 * PAGE_BYTES) as memory:
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        memory[5 * PAGE_BYTES : 6 * PAGE_BYTES] = page
        memory[0 : PAGE_BYTES - 1] = page[:-1]
        memory[2 * PAGE_BYTES + 8 : 3 * PAGE_BYTES + 8] = page
        found, searched = search(os.getpid(), page)
        in_memory = [place - address for place in found if 0 <= place - address < len(memory)]
        assert in_memory == [5 * PAGE_BYTES]
        assert searched > 1 << 20
        other, _ = search(os.getpid(), page_of(SEED + 1))
        assert [place for place in other if 0 <= place - address < len(memory)] == []


def test_memory_that_may_not_be_read_is_the_hosts_fault() -> None:
    with pytest.raises(HostError, match="can't be read"):
        search(1 << 30, page_of(SEED))


@pytest.mark.parametrize(
    ("found", "is_sev", "good", "verdict"),
    [
        ((4096,), False, True, "this host can read the guest's memory"),
        ((), False, False, "the probe itself does not work here"),
        ((), True, True, "the host saw no plaintext"),
        ((4096,), True, False, "ALTHOUGH it was launched with encryption"),
    ],
)
def test_the_verdict_depends_on_encryption(
    found: tuple[int, ...], is_sev: bool, good: bool, verdict: str
) -> None:
    sight = Sight(found, 1 << 20, is_sev, "sev" if is_sev else "tcg")
    assert sight.is_as_it_must_be is good
    assert verdict in sight.lines()[-1]
