# SPDX-License-Identifier: Apache-2.0
"""The plaintext probe's page, its search, and its verdicts."""

import subprocess
import sys

import pytest

from sevkit.errors import HostError
from sevkit.guest.plaintext import PAGE_BYTES, Sight, page_of, search

SEED = 0x0123456789ABCDEF


def test_the_page_is_that_of_splitmix64() -> None:
    first = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    assert page_of(0)[:32] == b"".join(number.to_bytes(8, "little") for number in first)
    assert len(page_of(SEED)) == PAGE_BYTES
    assert page_of(SEED) != page_of(SEED + 1)


HOLDER = """
import ctypes, mmap, sys
page, size = bytes.fromhex(sys.stdin.readline()), 4096
memory = mmap.mmap(-1, 8 * size)
memory[5 * size : 6 * size] = page
memory[0 : size - 1] = page[:-1]
memory[2 * size + 8 : 3 * size + 8] = page
print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
sys.stdin.read()
"""


def test_a_page_in_memory_is_found_where_it_is_and_only_whole() -> None:
    page = page_of(SEED)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write(page.hex() + "\n")
        holder.stdin.flush()
        address = int(holder.stdout.readline())
        found, searched = search(holder.pid, page)
        other, _ = search(holder.pid, page_of(SEED + 1))
        holder.stdin.close()
    in_memory = [place - address for place in found if 0 <= place - address < 8 * PAGE_BYTES]
    assert in_memory == [5 * PAGE_BYTES]
    assert searched > 1 << 20
    assert other == []


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
